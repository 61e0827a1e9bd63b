"""What methods for monotone inclusions share: the last iterate whose residual is known, and how that residual fares.

The residual of an iterate needs all of F there. A deterministic method evaluates that in every step, a method with
variance reduction only at its full draws; either way a residual costs one resolvent more and no component call, and it
belongs to an iterate, not to an average. That iterate is the answer of the method.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_not_negative, need_positive
from .inclusions import MonotoneInclusion, residual_at
from .vectors import dtype_of

__all__ = ["Checked", "InclusionMethod", "first_check"]

WINDOW = 50  # evaluations of the residual over which it may grow
GROWTH = 10.0  # and by how much
BLOWN_UP = 1e8  # growth since the start for which no window is awaited


class Checked(eqx.Module):
    """The last iterate whose residual is known. `since` is the residual when the current window of checks began."""

    x: PyTree
    residual: Array
    first: Array
    since: Array
    checks: Array
    diverged: Array

    def again(self, problem: MonotoneInclusion, x: PyTree, operator: PyTree) -> "Checked":
        """With a new iterate, at which F is `operator`."""
        residual = residual_at(problem, x, operator).astype(self.residual.dtype)
        checks = self.checks + 1
        full = checks >= WINDOW
        # Growth from something tiny, as rounding makes it, is no divergence: hence the comparison with the first.
        grown = full & (residual > GROWTH * self.since) & (residual > self.first)
        diverged = self.diverged | grown | (residual > BLOWN_UP * self.first)
        since = jnp.where(full, residual, self.since)
        return Checked(x, residual, self.first, since, jnp.where(full, 0, checks), diverged)


def first_check(problem: MonotoneInclusion, x: PyTree, operator: PyTree) -> Checked:
    """At the guess."""
    residual = residual_at(problem, x, operator).astype(dtype_of(x))
    return Checked(x, residual, residual, residual, jnp.int32(0), jnp.array(False))


def full_evaluation(problem: MonotoneInclusion, times: int = 1) -> dict[str, int]:
    """What evaluations of F, each followed by that of a residual, add to the counters."""
    return {"calls": times * problem.total, "residuals": times, "proximal": times}


class InclusionMethod(Method):
    """A method for `MonotoneInclusion`: abstract.

    Its states have the fields `checked` and `counters`, where component calls are `calls`, evaluations of F `residuals`
    and resolvents `proximal`.
    """

    problem = MonotoneInclusion

    lipschitz: Any
    step_scale: Any = 1.0
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("lipschitz", self.lipschitz)
        need_positive("step_scale", self.step_scale)
        need_not_negative("tolerance", self.tolerance)

    def step_size(self, coefficient: float, dtype: Any) -> Array:
        """`step_scale * coefficient / lipschitz`."""
        return jnp.asarray(self.step_scale * coefficient / self.lipschitz, dtype)

    @abc.abstractmethod
    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> Any: ...

    @abc.abstractmethod
    def step(self, problem: MonotoneInclusion, state: Any, *, key: Array | None) -> Any: ...

    def done(self, problem: MonotoneInclusion, state: Any):
        checked = state.checked
        code = jnp.where(checked.diverged, Result.diverged.code, Result.running.code)
        return jnp.where(checked.residual <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: MonotoneInclusion, state: Any) -> PyTree:
        return state.checked.x

    def metrics(self, problem: MonotoneInclusion, state: Any) -> dict[str, Any]:
        return {"residual": state.checked.residual, "component_calls": state.counters.calls}

    def counters(self, state: Any) -> Counters:
        return state.counters
