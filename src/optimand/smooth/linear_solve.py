r"""A linear system by a lineax solver, with iterative refinement.

$$x_{k+1} = x_k + A^{-1}_{\text{approx}} (b - A x_k)$$

One step is one call of the solver. A direct solver is done after the first, up to rounding; an iterative one that
returned early is called again on what is left.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Linear
from ..core.solution import Result
from .arguments import need_not_negative
from .vectors import add, norm, select, subtract

__all__ = ["LinearSolve"]


class LinearSolveState(eqx.Module):
    """`residual` is b - A x; `stuck`, that the last correction made it no smaller."""

    x: PyTree
    residual: PyTree
    stuck: Array
    counters: Counters


class LinearSolve(Method):
    """Solve `Linear` by any lineax solver.

    **Arguments:**

    - `solver`: by default the one that suits what lineax knows of the operator (triangular, positive definite, ...).
    - `tolerance`: converged when |b - A x| is at most this times |b|.

    Ends as `stopped` when a correction no longer makes the residual smaller. Raises `ArgumentError` if `solver` is not one.
    """

    problem = Linear
    reference: ClassVar[str] = "rader2023lineax"

    solver: Any = lx.AutoLinearSolver(well_posed=True)
    tolerance: Any = 1e-6

    def __check_init__(self):
        if not isinstance(self.solver, lx.AbstractLinearSolver):
            raise ArgumentError("solver", f"must be a lineax solver, not {type(self.solver).__name__}.")
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Linear, guess: PyTree, *, key: Array | None) -> LinearSolveState:
        residual = subtract(problem.rhs, problem.operator.mv(guess))
        return LinearSolveState(guess, residual, jnp.array(False), Counters.zero().add(residuals=1))

    def step(self, problem: Linear, state: LinearSolveState, *, key: Array | None) -> LinearSolveState:
        correction = lx.linear_solve(problem.operator, state.residual, self.solver, throw=False).value
        x = add(state.x, correction)
        residual = subtract(problem.rhs, problem.operator.mv(x))
        stuck = norm(residual) >= norm(state.residual)
        x, residual = select(stuck, (state.x, state.residual), (x, residual))
        return LinearSolveState(x, residual, stuck, state.counters.add(residuals=1, linear_solves=1))

    def done(self, problem: Linear, state: LinearSolveState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        reached = norm(state.residual) <= self.tolerance * norm(problem.rhs)
        return jnp.where(reached, Result.converged.code, code)

    def answer(self, problem: Linear, state: LinearSolveState) -> PyTree:
        return state.x

    def metrics(self, problem: Linear, state: LinearSolveState) -> dict[str, Any]:
        return {"residual": norm(state.residual)}
