r"""Gauss-Newton.

$$\delta_k = \arg\min_\delta \lVert J(x_k)\, \delta + r(x_k) \rVert, \qquad x_{k+1} = x_k + t_k \delta_k$$

(Nocedal and Wright 2006, section 10.3), with \(t_k\) backtracked from 1 until the sum of squares decreases enough.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import LeastSquares
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative
from .levenberg_marquardt import linearised
from .line_search import backtrack, stay
from .vectors import norm

__all__ = ["GaussNewton"]


class GaussNewtonState(eqx.Module):
    """`gradient` is J'r at `x`."""

    x: PyTree
    value: Array
    gradient: PyTree
    stuck: Array
    counters: Counters


class GaussNewton(Method):
    """Gauss-Newton with a line search: nonlinear least squares whose Jacobian has full rank.

    Its steps come from a QR factorisation of J, so the condition number is not squared. Where the Jacobian may lose rank,
    or the guess is far off, `LevenbergMarquardt` is safer.

    **Arguments:**

    - `linear_solver`: a lineax solver for the linear least-squares problem.
    - `decrease`, `max_trials`: of the line search. If it finds nothing the solve ends as `stopped`.
    - `tolerance`: converged when the norm of J'r is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = LeastSquares
    reference: ClassVar[str] = "nocedal2006numerical"

    linear_solver: lx.AbstractLinearSolver = lx.QR()
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=20)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: LeastSquares, guess: PyTree, *, key: Array | None) -> GaussNewtonState:
        value, gradient = problem.value_and_gradient(guess)
        counters = Counters.zero().add(values=1, gradients=1)
        return GaussNewtonState(guess, value, gradient, jnp.array(False), counters)

    def step(self, problem: LeastSquares, state: GaussNewtonState, *, key: Array | None) -> GaussNewtonState:
        _, unravel = ravel_pytree(state.x)
        r, transposed = linearised(problem, state.x)
        operator = lx.MatrixLinearOperator(transposed.T)
        delta = lx.linear_solve(operator, -r, self.linear_solver, throw=False).value
        slope = (transposed @ r) @ delta
        found = backtrack(
            problem, state.x, state.value, slope, unravel(delta), 1.0,
            decrease=self.decrease, max_trials=self.max_trials,
        )  # fmt: skip
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        counters = state.counters.add(values=found.trials, gradients=found.trials, jacobians=1, linear_solves=1)
        return GaussNewtonState(x, value, gradient, ~found.accepted, counters)

    def done(self, problem: LeastSquares, state: GaussNewtonState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.gradient) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: LeastSquares, state: GaussNewtonState) -> PyTree:
        return state.x

    def metrics(self, problem: LeastSquares, state: GaussNewtonState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
