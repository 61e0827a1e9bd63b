r"""Broyden's method, with limited memory, for roots and fixed points.

$$x_{k+1} = x_k - t_k H_k F(x_k), \qquad
  H_{k+1} = H_k + \frac{(s_k - H_k y_k)\, s_k^\top H_k}{s_k^\top H_k y_k},$$

with \(s_k = x_{k+1} - x_k\), \(y_k = F(x_{k+1}) - F(x_k)\): the least change of the Jacobian with \(J s = y\) (the "good" update, Broyden 1965),
by its inverse. H is \(\gamma I\) and the last m terms of the sum. The length is halved from 1 until

$$\lVert F(x_k + t d_k) \rVert \le (1 + \eta_k) \lVert F(x_k) \rVert - \sigma t^2 \lVert d_k \rVert^2, \qquad \sum_k \eta_k < \infty$$

(Li and Fukushima 2000, eq. 2.5): no derivative is needed, and a step need not go down at once.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import FixedPoint, Root
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative
from .line_search import constant, evaluated
from .vectors import norm

__all__ = ["Broyden"]


class BroydenState(eqx.Module):
    """H = gamma I + sum of left[i] right[i]'; the next term goes to number `slot` of the rings, `kept` are there."""

    x: PyTree
    f: Float[Array, " n"]
    left: Float[Array, "memory n"]
    right: Float[Array, "memory n"]
    gamma: Array
    slot: Array
    kept: Array
    number: Array
    stuck: Array
    counters: Counters


class Broyden(Method):
    """Broyden's good method: one evaluation a step and no derivatives, superlinear near the solution.

    For a `Root` whose Jacobian is too dear for `Newton`, or a `FixedPoint` as an alternative to `Anderson`, which has no search and so
    no protection far from the solution.

    **Arguments:**

    - `memory`: terms of the inverse Jacobian to keep; the oldest one goes.
    - `decrease`: sigma; `slack`: eta_k = slack / (k + 1)^2.
    - `max_trials`: evaluations of a search. If it finds nothing the memory is dropped, with gamma as measured on the last trial; if that
      does not help the solve ends as `stopped`.
    - `tolerance`: converged when the norm of F(x), or of T(x) - x, is at most this.

    A fixed point starts with the plain iteration (gamma = -1 for F = T(x) - x); a root with a secant along F, which costs one evaluation.
    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    om.solve(om.Root(lambda x: x + 0.3 * jnp.sin(x[::-1]) - 1), om.smooth.Broyden(), jnp.zeros(3)).value
    ```
    """

    problem = (Root, FixedPoint)
    reference: ClassVar[str] = "broyden1965class"

    memory: int = eqx.field(static=True, default=20)
    decrease: Any = 1e-4
    slack: Any = 0.5
    max_trials: int = eqx.field(static=True, default=15)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("memory", self.memory)
        need_between("decrease", self.decrease, 0, 1)
        need_not_negative("slack", self.slack)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Root | FixedPoint, guess: PyTree, *, key: Array | None) -> BroydenState:
        x, unravel = ravel_pytree(guess)
        f = _residual(problem, guess)
        counters = Counters.zero().add(residuals=1)
        gamma = -jnp.ones((), f.dtype)
        if isinstance(problem, Root):
            length = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.maximum(1, norm(x))
            s = length / jnp.maximum(norm(f), jnp.finfo(x.dtype).tiny) * f
            gamma = _scale(s, _residual(problem, unravel(x + s)) - f, jnp.ones_like(gamma))
            counters = counters.add(residuals=1)
        rows, none = jnp.zeros((self.memory, x.size), f.dtype), jnp.int32(0)
        return BroydenState(guess, f, rows, rows, constant(gamma), none, none, none, jnp.array(False), counters)

    def step(self, problem: Root | FixedPoint, state: BroydenState, *, key: Array | None) -> BroydenState:
        x, unravel = ravel_pytree(state.x)
        left, right, gamma = constant((state.left, state.right, state.gamma))
        direction = -(gamma * state.f + (right @ state.f) @ left)
        still, origin, heading, f = constant((problem, x, direction, state.f))
        size, length2 = norm(f), heading @ heading
        allowed = (1 + self.slack / (1.0 + state.number) ** 2) * size

        def trial(carry):
            t, _, trials, _ = carry
            t = jnp.where(trials == 0, t, t / 2)
            new = _residual(still, unravel(origin + t * heading))
            return t, new, trials + 1, norm(new) <= allowed - self.decrease * t**2 * length2

        searching = lambda carry: ~carry[3] & (carry[2] < self.max_trials)
        begin = (jnp.ones((), x.dtype), f, jnp.int32(0), jnp.array(False))
        t, found, trials, accepted = jax.lax.while_loop(searching, trial, begin)
        s, y = t * heading, found - f
        hy = gamma * y + (right @ y) @ left
        sh = gamma * s + (left @ s) @ right
        row = lambda rows: jax.lax.dynamic_index_in_dim(rows, state.slot, 0, keepdims=False)
        put = lambda rows, new: jax.lax.dynamic_update_index_in_dim(rows, new, state.slot, 0)
        dropped = lambda new: jnp.where(accepted, new, 0)
        # With a full memory the update is that of the H without its oldest term, whose part in hy and sh is taken out.
        old_left, old_right = row(left), row(right)
        hy, sh = hy - (old_right @ y) * old_left, sh - (old_left @ s) * old_right
        denominator = s @ hy
        useful = accepted & (jnp.abs(denominator) > jnp.finfo(x.dtype).eps * norm(s) * norm(hy))
        term = (s - hy) / jnp.where(useful, denominator, 1)
        left = dropped(put(left, jnp.where(useful, term, old_left)))
        right = dropped(put(right, jnp.where(useful, sh, old_right)))
        kept = jnp.where(accepted, jnp.minimum(state.kept + useful, self.memory), 0).astype(jnp.int32)
        gamma = jnp.where(accepted, gamma, _scale(s, y, gamma))
        slot = jnp.where(useful, (state.slot + 1) % self.memory, state.slot).astype(jnp.int32)
        new = jnp.where(accepted, x + t * direction, x)
        value = unravel(new)
        new_f = evaluated(_residual, (problem, value), jnp.where(accepted, found, f))
        return BroydenState(
            value, new_f, left, right, gamma, slot, kept, state.number + 1, ~accepted & (state.kept == 0) & (state.number > 0),
            state.counters.add(residuals=trials),
        )  # fmt: skip

    def done(self, problem: Root | FixedPoint, state: BroydenState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.f) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Root | FixedPoint, state: BroydenState) -> PyTree:
        return state.x

    def metrics(self, problem: Root | FixedPoint, state: BroydenState) -> dict[str, Any]:
        return {"residual": norm(state.f)}


def _residual(problem: Root | FixedPoint, x: PyTree) -> Array:
    """F(x), which for a fixed point is T(x) - x."""
    flat, _ = ravel_pytree(x)
    if isinstance(problem, Root):
        return ravel_pytree(problem.residual(x))[0].astype(flat.dtype)
    return ravel_pytree(problem.apply(x))[0].astype(flat.dtype) - flat


def _scale(s: Array, y: Array, otherwise: Array) -> Array:
    """The gamma for which gamma y is nearest to s; another one where y tells nothing."""
    yy, sy = y @ y, s @ y
    good = jnp.isfinite(yy) & (yy > 0) & (jnp.abs(sy) > 1e-8 * norm(s) * norm(y))
    return jnp.where(good, sy / jnp.where(good, yy, 1), otherwise).astype(otherwise.dtype)
