r"""Fixed-point iteration (Picard, Banach).

$$x_{k+1} = (1 - \beta) x_k + \beta\, T(x_k)$$
"""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import FixedPoint
from .arguments import need_not_negative, need_positive
from .vectors import add, norm, subtract

__all__ = ["FixedPointIteration"]


class FixedPointIterationState(eqx.Module):
    """`residual` is T(x) - x."""

    x: PyTree
    residual: PyTree
    counters: Counters


class FixedPointIteration(Method):
    """Apply the map again and again. Converges linearly where it contracts; `Anderson` is nearly always faster.

    **Arguments:**

    - `damping`: beta; below 1 it damps oscillations.
    - `tolerance`: converged when the norm of T(x) - x is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = FixedPoint
    reference: ClassVar[str] = "nocedal2006numerical"

    damping: Any = 1.0
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("damping", self.damping)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: FixedPoint, guess: PyTree, *, key: Array | None) -> FixedPointIterationState:
        residual = subtract(problem.apply(guess), guess)
        return FixedPointIterationState(guess, residual, Counters.zero().add(residuals=1))

    def step(
        self, problem: FixedPoint, state: FixedPointIterationState, *, key: Array | None
    ) -> FixedPointIterationState:
        x = add(state.x, state.residual, self.damping)
        return FixedPointIterationState(x, subtract(problem.apply(x), x), state.counters.add(residuals=1))

    def done(self, problem: FixedPoint, state: FixedPointIterationState):
        return norm(state.residual) <= self.tolerance

    def answer(self, problem: FixedPoint, state: FixedPointIterationState) -> PyTree:
        return state.x

    def metrics(self, problem: FixedPoint, state: FixedPointIterationState) -> dict[str, Any]:
        return {"residual": norm(state.residual)}
