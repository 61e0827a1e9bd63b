r"""The filter, and the backtracking line search that it judges (Waechter and Biegler 2006, section 2.3 and algorithm A-5).

A trial point is a pair \((\theta, \varphi)\): the violation of the constraints, and the barrier function. It is acceptable
if it improves one of them enough on the current point and on every point of the filter; where the step promises enough
descent and the current point is nearly feasible, \(\varphi\) has to fall by Armijo's condition instead. Where the first
trial is refused and has become less feasible, second-order corrections are tried before the step is shortened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["Filter", "Found", "Start", "search"]

_PLACES = 64
_GAMMA_THETA, _GAMMA_PHI, _DELTA, _S_THETA, _S_PHI, _ETA, _GAMMA_ALPHA = 1e-5, 1e-8, 1.0, 1.1, 2.3, 1e-8, 0.05
_CORRECTIONS, _CORRECTION_GAIN = 4, 0.99  # p_max and kappa_soc


class Filter(eqx.Module):
    """Pairs that a trial point must not be dominated by; the oldest of 64 are forgotten. Violations above `most` are refused.

    Below `least` the switch to Armijo's condition is allowed.
    """

    pairs: Float[Array, "places 2"]
    count: Array
    least: Array
    most: Array

    @staticmethod
    def at(theta: Array) -> "Filter":
        """Empty, for a start with this violation."""
        size = jnp.maximum(1, theta)
        return Filter(jnp.full((_PLACES, 2), jnp.inf, theta.dtype), jnp.int32(0), 1e-4 * size, 1e4 * size)

    def emptied(self, when: Array) -> "Filter":
        """Without its pairs, where `when` holds."""
        pairs = jnp.where(when, jnp.inf, self.pairs)
        return Filter(pairs, jnp.where(when, 0, self.count), self.least, self.most)

    def extended(self, theta: Array, phi: Array, when: Array) -> "Filter":
        """With what a point forbids, where `when` holds."""
        pair = jnp.stack([(1 - _GAMMA_THETA) * theta, phi - _GAMMA_PHI * theta])
        added = jax.lax.dynamic_update_index_in_dim(self.pairs, pair, self.count % _PLACES, 0)
        return Filter(jnp.where(when, added, self.pairs), self.count + when, self.least, self.most)

    def accepts(self, theta: Array, phi: Array) -> Bool[Array, ""]:
        """Whether no pair dominates this one."""
        better = (theta <= self.pairs[:, 0]) | (phi <= self.pairs[:, 1])
        return jnp.all(better) & (theta <= self.most) & jnp.isfinite(phi)


class Start(NamedTuple):
    """Where the search starts: the violation and the barrier function there, and the slope of the latter along the step."""

    residual: Array
    theta: Array
    phi: Array
    slope: Array


class Found(NamedTuple):
    """What it ended with: the step that was tried last, whether it was accepted, and whether by Armijo's condition."""

    length: Array
    step: Array
    dual_step: Array
    accepted: Array
    descended: Array
    trials: Array
    constraints: Array
    objective: Array


class _Carry(NamedTuple):
    found: Found
    tried: Array  # the length of the next trial
    corrections: Array
    correcting: Array
    target: Array  # what the corrections add up to
    violation: Array  # of the last correction


def search(
    evaluate: Callable, solve: Callable, longest: Callable, start: Start, step: Array, dual_step: Array,
    pairs: Filter, wanted: Array, like: tuple[Array, Array],
) -> Found:  # fmt: skip
    """Shorten or correct the step until it is acceptable.

    **Arguments:** `evaluate(step)` returns objective and constraints of the user, and residual and barrier function there;
    `solve(residual)` the primal and dual step for another residual; `longest(step)` how long it may be. `like`: an objective
    and constraints, for their shapes. If not `wanted`, nothing is tried.
    """
    theta, phi, slope = start.theta, start.phi, start.slope
    rounding = 10 * jnp.finfo(phi.dtype).eps * jnp.abs(phi)
    downhill = slope < 0
    steep = jnp.where(downhill, -slope, 1)
    promised = lambda length: downhill & (length * steep**_S_PHI > _DELTA * theta**_S_THETA) & (theta <= pairs.least)
    shortest = jnp.where(downhill, jnp.minimum(_GAMMA_THETA, _GAMMA_PHI * theta / steep), _GAMMA_THETA)
    by_switch = jnp.where(downhill & (theta <= pairs.least), _DELTA * theta**_S_THETA / steep**_S_PHI, jnp.inf)
    shortest = _GAMMA_ALPHA * jnp.minimum(shortest, by_switch)
    shortest = jnp.maximum(shortest, 1e-14)
    first = longest(step)

    def trial(carry: _Carry) -> _Carry:
        last = carry.found
        moved = carry.tried * last.step
        objective, constraints, residual, phi_there = evaluate(moved)
        theta_there = jnp.sum(jnp.abs(residual))
        length = jnp.where(carry.correcting, first, carry.tried)  # of the step that is corrected
        switch = promised(length)
        armijo = phi_there - phi <= _ETA * length * slope + rounding
        improved = (theta_there <= (1 - _GAMMA_THETA) * theta) | (phi_there - phi <= -_GAMMA_PHI * theta + rounding)
        accepted = pairs.accepts(theta_there, phi_there) & jnp.where(switch, armijo, improved)

        begins = (last.trials == 0) & (theta_there >= theta) & jnp.isfinite(theta_there) & (len(residual) > 0)
        goes_on = carry.correcting & (carry.corrections < _CORRECTIONS)
        goes_on &= theta_there <= _CORRECTION_GAIN * carry.violation
        correct = ~accepted & (begins | goes_on)
        target = carry.tried * carry.target + jnp.where(jnp.isfinite(residual), residual, 0)
        kept = (jnp.where(accepted, last.step, step), jnp.where(accepted, last.dual_step, dual_step))
        next_step, next_dual = jax.lax.cond(correct, solve, lambda _: kept, target)
        shorter = jnp.where(carry.correcting, first / 2, carry.tried / 2)
        tried = jnp.where(correct, longest(next_step), shorter)
        found = Found(
            carry.tried, next_step, next_dual, accepted, accepted & switch & armijo, last.trials + 1, constraints, objective
        )
        return _Carry(
            found, tried, carry.corrections + correct, correct, jnp.where(correct, target, carry.target), theta_there
        )

    def searching(carry: _Carry) -> Any:
        return wanted & ~carry.found.accepted & (carry.correcting | (carry.tried >= shortest) | (carry.found.trials == 0))

    no = jnp.array(False)
    nothing = Found(first, step, dual_step, no, no, jnp.int32(0), like[1], like[0])
    begin = _Carry(nothing, first, jnp.int32(0), no, start.residual, theta)
    return jax.lax.while_loop(searching, trial, begin).found
