r"""Solvers for quadratic programs, with jaxopt's form of their data.

$$\min_x \tfrac12 x^\top Q x + c^\top x \quad\text{s.t.}\quad A x = b,\; G x \le h ,$$

or \(l \le A x \le u\) (`BoxOSQP`), or \(l \le x \le u\) (`BoxCDQP`). x is a vector. A matrix may be given as one, or as
parameters of a `matvec`, whose matrix is then formed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from ... import smooth
from ...core.budget import Budget
from ...core.errors import ArgumentError
from ...core.problem import Linear
from ...core.solve import solve
from .solver import OptStep, SolverState

__all__ = ["OSQP", "BoxCDQP", "BoxOSQP", "EqualityConstrainedQP", "KKTSolution"]


class KKTSolution(NamedTuple):
    """The point and the multipliers of its constraints, `None` where there is none."""

    primal: Any
    dual_eq: Any = None
    dual_ineq: Any = None


@dataclasses.dataclass(eq=False, kw_only=True)
class _Quadratic:
    """What the solvers for quadratic programs share."""

    matvec_Q: Callable | None = None
    matvec_A: Callable | None = None
    fun: Callable | None = None
    maxiter: int = 4000
    tol: float = 1e-3
    verbose: bool | int = False
    implicit_diff: bool = True
    implicit_diff_solve: Any = None
    jit: Any = None

    def _objective(self, params_obj: Any, n: int | None) -> tuple[Array, Array]:
        """Q and c."""
        if self.fun is not None:
            if n is None:
                raise ArgumentError("init_params", "is needed with `fun`, for the number of unknowns.")
            fun, zero = self.fun, jnp.zeros(n)
            return jax.hessian(lambda x: fun(x, params_obj))(zero), jax.grad(lambda x: fun(x, params_obj))(zero)
        if not (isinstance(params_obj, tuple | list) and len(params_obj) == 2):
            raise ArgumentError("params_obj", "must be the pair (Q, c).")
        q, c = params_obj
        return _matrix(self.matvec_Q, q, jnp.shape(c)[0]), jnp.asarray(c)

    def _solve(self, q, c, guess, **constraints) -> OptStep:
        guess = jnp.zeros_like(c) if guess is None else jnp.asarray(guess, c.dtype)
        problem, method = smooth.QuadraticProgram(q, c, **constraints), smooth.QuadraticInteriorPoint(tolerance=self.tol)
        solution = solve(problem, method, guess, budget=Budget(steps=self.maxiter), throw=False)
        nan = jnp.asarray(jnp.nan)
        error = jnp.asarray(solution.history["residual"][-1]) if len(solution.history.get("residual", ())) else nan
        state = SolverState(jnp.asarray(solution.steps), error, problem.value(solution.value.primal), None, solution)
        return OptStep(solution.value, state)


def _matrix(matvec: Callable | None, given: Any, n: int) -> Array:
    if matvec is None:
        return jnp.asarray(given)
    return jax.jacfwd(lambda v: matvec(given, v))(jnp.zeros(n))


@dataclasses.dataclass(eq=False, kw_only=True)
class OSQP(_Quadratic):
    """`optimand.smooth.QuadraticInteriorPoint`: `run(init_params, params_obj, params_eq, params_ineq)`."""

    matvec_G: Callable | None = None

    def run(self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None) -> OptStep:
        """`params_obj` is (Q, c), `params_eq` (A, b), `params_ineq` (G, h); a `KKTSolution` comes back."""
        guess = init_params.primal if isinstance(init_params, KKTSolution) else init_params
        q, c = self._objective(params_obj, None if guess is None else guess.size)
        constraints = {}
        for matvec, given, names in ((self.matvec_A, params_eq, "Ab"), (self.matvec_G, params_ineq, "Gh")):
            if given is not None:
                constraints |= {names[0]: _matrix(matvec, given[0], c.size), names[1]: jnp.asarray(given[1])}
        (value, state) = self._solve(q, c, guess, **constraints)
        return OptStep(KKTSolution(value.primal, value.equality, value.inequality), state)


@dataclasses.dataclass(eq=False, kw_only=True)
class BoxOSQP(_Quadratic):
    """The same with constraints l <= A x <= u: `run(init_params, params_obj, params_eq=A, params_ineq=(l, u))`.

    The solution's `primal` is the pair (x, A x), `dual_eq` the multiplier of A x = z, and `dual_ineq` those of z <= u and
    l <= z, not negative.
    """

    def run(self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None) -> OptStep:
        """Solve."""
        guess = init_params.primal[0] if isinstance(init_params, KKTSolution) else init_params
        q, c = self._objective(params_obj, None if guess is None else guess.size)
        a = _matrix(self.matvec_A, params_eq, c.size)
        low, high = (jnp.broadcast_to(jnp.asarray(side, c.dtype), a.shape[:1]) for side in params_ineq)
        value, state = self._solve(q, c, guess, G=jnp.concatenate([a, -a]), h=jnp.concatenate([high, -low]))
        mu, phi = jnp.split(value.inequality, 2)
        return OptStep(KKTSolution((value.primal, a @ value.primal), mu - phi, (mu, phi)), state)


@dataclasses.dataclass(eq=False, kw_only=True)
class BoxCDQP(_Quadratic):
    """A quadratic program in a box, l <= x <= u: `run(init_params, params_obj, params_ineq)`."""

    maxiter: int = 500
    tol: float = 1e-4

    def run(self, init_params: Any, params_obj: Any = None, params_ineq: Any = None) -> OptStep:
        """Solve: `params_obj` is (Q, c), `params_ineq` (l, u). The vector comes back."""
        q, c = self._objective(params_obj, None)
        value, state = self._solve(q, c, init_params, bounds=tuple(params_ineq))
        return OptStep(value.primal, state)


@dataclasses.dataclass(eq=False, kw_only=True)
class EqualityConstrainedQP(_Quadratic):
    """A quadratic program with equalities: one linear system, `optimand.smooth.LinearSolve` of its KKT matrix."""

    solve: Any = None
    refine_regularization: Any = None
    refine_maxiter: Any = None
    tol: float = 1e-5
    maxiter: int = 1000

    def run(self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None) -> OptStep:
        """`params_obj` is (Q, c), `params_eq` (A, b); a `KKTSolution` comes back."""
        guess = init_params.primal if isinstance(init_params, KKTSolution) else init_params
        q, c = self._objective(params_obj, None if guess is None else guess.size)
        a, b = _matrix(self.matvec_A, params_eq[0], c.size), jnp.asarray(params_eq[1])
        matrix = jnp.block([[q, a.T], [a, jnp.zeros((b.size, b.size), q.dtype)]])
        problem = Linear(lx.MatrixLinearOperator(matrix, lx.symmetric_tag), jnp.concatenate([-c, b]))
        method = smooth.LinearSolve(lx.AutoLinearSolver(well_posed=None), tolerance=self.tol)
        solution = solve(problem, method, throw=False)
        x, nu = solution.value[: c.size], solution.value[c.size :]
        residual = jnp.linalg.norm(problem.optimality(solution.value))
        value = 0.5 * x @ q @ x + c @ x
        return OptStep(KKTSolution(x, nu, None), SolverState(jnp.asarray(solution.steps), residual, value, None, solution))
