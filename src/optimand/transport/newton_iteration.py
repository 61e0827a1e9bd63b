r"""Newton's method on the dual of entropic transport: what its variants have in common.

$$\frac{1}{\varepsilon} \begin{pmatrix} \mathrm{diag}(P 1) & S \\ S^\top & \mathrm{diag}(P^\top 1) \end{pmatrix}
  \begin{pmatrix} \delta f \\ \delta g \end{pmatrix} = \begin{pmatrix} a - P 1 \\ b - P^\top 1 \end{pmatrix}, \qquad S \approx P,$$

after some sweeps of Sinkhorn's method, followed by a search along the direction until Armijo's condition holds for D. With S = P the matrix is the
negative Hessian, singular along (1, -1), along which D does not change. With entries of S left out, but not of the diagonals, it
is diagonally dominant, hence still semidefinite, and the direction one of ascent.

A direction that is none, or along which nothing is found, is followed by five sweeps. If the error has not halved over three steps, or has not fallen in one where D cannot tell,
S is taken from the next `level`, which is nearer to P; from the last, where S = P, if the linear solver did not reach its tolerance either.

Where P is formed, it also gives the soft minima of the points tried and of sweeps, as products (`stabilised_kernel`).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from ..core.arguments import need_count, need_not_negative, need_positive
from ..core.budget import Counters
from ..core.method import Method
from ..core.solution import Result
from ..linear.cg import CG
from .problem import Coupling, Potentials
from .sinkhorn import need_precision, sweep
from .stabilised_kernel import StabilisedKernel, is_moderate

__all__ = ["Direction", "NewtonIteration", "NewtonState", "newton_system"]

RESCUE = 5  # sweeps where Newton's direction is of no use
MOST_SWEEPS = 500  # of a warm-up that ends by itself
SUFFICIENT = 1e-4  # of the predicted rise of D: c_1 of Armijo's condition
HALVINGS = 30
FAR = 100  # times epsilon: how far a step moves a potential at most


class NewtonState(eqx.Module):
    """`error` is that of the marginals; `errors` are those before the last three Newton steps. `level` says what S is.

    `sweeps_left` are to be done before the next Newton step. `warming`: they are those of the warm-up. `idle` counts Newton steps in a row, with the
    last S there is, whose rise of D is below rounding and that do not lower the error. `kernel` is there where the plan is formed.
    """

    x: Potentials
    soft_rows: Array
    soft_columns: Array
    value: Array
    error: Array
    errors: Float[Array, "3"]
    level: Array
    sweeps_left: Array
    warming: Array
    idle: Array
    sweeps: Array
    newton_steps: Array
    kernel: StabilisedKernel | None
    counters: Counters


class Direction(NamedTuple):
    """(df, dg), the steps of the linear solver that it took, and whether they were enough for its tolerance."""

    move: Potentials
    iterations: Array
    solved: Array


class NewtonIteration(Method):
    """Newton's method on D: abstract. What differs is how the direction is found."""

    problem = Coupling

    tolerance: eqx.AbstractVar[Any]
    warmup: eqx.AbstractVar[Any]
    inner_tolerance: eqx.AbstractVar[Any]
    inner_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)
        need_positive("inner_tolerance", self.inner_tolerance)
        need_count("inner_steps", self.inner_steps)
        if self.warmup != "auto":
            need_count("warmup", self.warmup, least=0)

    @abc.abstractmethod
    def levels(self, problem: Coupling) -> int:
        """How many choices of S there are."""

    @abc.abstractmethod
    def forms_plan(self, problem: Coupling) -> bool:
        """Whether P is formed."""

    @abc.abstractmethod
    def direction(self, problem: Coupling, x: Potentials, plan: Any, lack: Potentials, rtol: Array, level: Array) -> Direction:
        """The solution of Newton's system with S of this level, where `lack` is the gradient of D, and `plan` is P, or None where it is not formed."""

    @abc.abstractmethod
    def warm(self, problem: Coupling, x: Potentials) -> Array:
        """Whether Newton's method can begin here, for `warmup="auto"`."""

    def check(self, problem: Coupling, guess: Potentials) -> None:
        need_precision(problem, self.tolerance)

    def init(self, problem: Coupling, guess: Potentials, *, key: Array | None) -> NewtonState:
        kernel = StabilisedKernel.at(problem, guess) if self.forms_plan(problem) else None
        soft_rows_of, soft_columns_of = _soft_minima(problem, kernel)
        soft_rows, soft_columns = soft_rows_of(guess.g), soft_columns_of(guess.f)
        value, error = _measures(problem, guess, soft_rows, soft_columns)
        zero, counters = jnp.int32(0), Counters.zero().add(values=1, gradients=1)
        never = jnp.full((3,), jnp.inf, error.dtype)
        sweeps = jnp.int32(MOST_SWEEPS if self.warmup == "auto" else self.warmup)
        return NewtonState(
            guess, soft_rows, soft_columns, value, error, never, zero, sweeps, jnp.array(True), zero, zero, zero, kernel, counters
        )  # fmt: skip

    def step(self, problem: Coupling, state: NewtonState, *, key: Array | None) -> NewtonState:
        sweeping, kernel = state.sweeps_left > 0, state.kernel
        if kernel is not None:
            log_rows, log_columns = _log_errors(problem, state)
            kernel = kernel.near(problem, state.x, is_moderate(log_rows) & is_moderate(log_columns), exact=~sweeping)
        sweep, newton = (lambda state: self._sweep(problem, kernel, state)), (lambda state: self._newton(problem, kernel, state))
        state = jax.lax.cond(sweeping, sweep, newton, dataclasses.replace(state, kernel=None))  # which would copy what goes through it
        return dataclasses.replace(state, kernel=kernel)

    def _sweep(self, problem: Coupling, kernel: StabilisedKernel | None, state: NewtonState) -> NewtonState:
        soft_rows_of, soft_columns_of = _soft_minima(problem, kernel)
        x, soft_columns = sweep(problem, state.x, state.soft_rows, problem.epsilon, soft_columns_of=lambda f, _: soft_columns_of(f))
        soft_rows = soft_rows_of(x.g)
        value, error = _measures(problem, x, soft_rows, soft_columns)
        left = state.sweeps_left - 1
        if self.warmup == "auto":  # to look at the plan costs as much as some sweeps
            ask = state.warming & (state.sweeps % 10 == 9)
            ready = jax.lax.cond(ask, lambda x: self.warm(problem, x), lambda _: jnp.array(False), jax.lax.stop_gradient(x))
            left = jnp.where(ready, 0, left)
        counters = state.counters.add(values=1, gradients=1)
        warming = state.warming & (left > 0)
        return NewtonState(
            x, soft_rows, soft_columns, value, error, state.errors, state.level, left, warming, state.idle, state.sweeps + 1, state.newton_steps, None,
            counters,
        )  # fmt: skip

    def _newton(self, problem: Coupling, kernel: StabilisedKernel | None, state: NewtonState) -> NewtonState:
        log_rows, log_columns = _log_errors(problem, state)
        lack = Potentials(-problem.a * jnp.expm1(log_rows), -problem.b * jnp.expm1(log_columns))
        rtol = jnp.minimum(self.inner_tolerance, 0.1 * jax.lax.stop_gradient(state.error))
        plan = None if kernel is None else kernel.plan
        found = self.direction(problem, state.x, plan, lack, rtol, state.level)
        slope = lack.f @ found.move.f + lack.g @ found.move.g
        noise = _noise(problem, state.x)
        promised = problem.epsilon * jnp.sum(problem.a) * state.error**2 / 8  # by a sweep, at least (Pinsker's inequality)
        blind = promised <= noise  # D cannot tell any more: the error decides
        (x, soft_rows, soft_columns), better, trials = _climb(problem, kernel, state, found.move, slope, noise, blind)
        value, error = _measures(problem, x, soft_rows, soft_columns)
        useful = jnp.where(blind, slope > 0, slope >= promised)
        accepted = better & useful & jnp.isfinite(error)
        new, old = (x, soft_rows, soft_columns, value, error), (state.x, state.soft_rows, state.soft_columns, state.value, state.error)
        x, soft_rows, soft_columns, value, error = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)

        last = self.levels(problem) - 1
        unchanged = blind & (error > 0.99 * state.error)
        stalled = (unchanged | (error > state.errors[0] / 2)) & (state.level < last)
        level = jnp.where(stalled, jnp.where(found.solved, state.level + 1, last), state.level).astype(jnp.int32)
        errors = jnp.where(stalled, jnp.inf, jnp.append(state.errors[1:], state.error))
        idle = jnp.where(unchanged & ~stalled, state.idle + 1, 0)
        sweeps_left = jnp.where(accepted, 0, RESCUE).astype(jnp.int32)
        counters = state.counters.add(values=trials, gradients=1, linear_solves=1, linear_iterations=found.iterations)
        return NewtonState(
            x, soft_rows, soft_columns, value, error, errors, level, sweeps_left, jnp.array(False), idle.astype(jnp.int32),
            state.sweeps, state.newton_steps + 1, None, counters,
        )  # fmt: skip

    def done(self, problem: Coupling, state: NewtonState):
        code = jnp.where(state.idle >= 3, Result.stopped.code, Result.running.code)
        return jnp.where(state.error <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Coupling, state: NewtonState) -> Potentials:
        return state.x.centred()

    def metrics(self, problem: Coupling, state: NewtonState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.error, "newton_steps": state.newton_steps, "level": state.level}


def _soft_minima(problem: Coupling, kernel: StabilisedKernel | None) -> tuple[Callable, Callable]:
    """Those of rows as a function of g, and of columns as one of f."""
    if kernel is None:
        return problem.soft_rows, problem.soft_columns
    epsilon = problem.epsilon
    return (lambda g: kernel.soft_rows(problem, g, epsilon)), (lambda f: kernel.soft_columns(problem, f, epsilon))


def _log_errors(problem: Coupling, state: NewtonState) -> tuple[Array, Array]:
    """log(P 1 / a) and log(P' 1 / b)."""
    return state.x.f / problem.epsilon + state.soft_rows, state.x.g / problem.epsilon + state.soft_columns


def _measures(problem: Coupling, x: Potentials, soft_rows: Array, soft_columns: Array) -> tuple[Array, Array]:
    """-D and the error of the marginals."""
    log_rows = x.f / problem.epsilon + soft_rows
    return -problem.dual_from(x, log_rows), problem.error_from(log_rows, x.g / problem.epsilon + soft_columns)


def _noise(problem: Coupling, x: Potentials) -> Array:
    """What rounding may do to D."""
    size = problem.a @ jnp.abs(x.f) + problem.b @ jnp.abs(x.g) + problem.epsilon * jnp.sum(problem.a)
    return jax.lax.stop_gradient(10 * jnp.finfo(size.dtype).eps * size)


def _climb(problem: Coupling, kernel: StabilisedKernel | None, state: NewtonState, move: Potentials, slope: Array, noise: Array, blind: Array):
    """The point along `move` with Armijo's condition, from length 1 by halves, with its soft minima; whether there is one; trials.

    The condition is one for D, or for the error where D is `blind`. Where mass is hardly exchanged between parts of the plan D is nearly linear,
    and a whole step goes as far as to infinity: it is cut.
    """

    def at(problem, x, move, length):
        x = Potentials(x.f + length * move.f, x.g + length * move.g)
        soft_rows_of, soft_columns_of = _soft_minima(problem, kernel)
        return x, soft_rows_of(x.g), soft_columns_of(x.f)

    arrays, static = eqx.partition((problem, state.x, move), eqx.is_array)
    held, start, direction = eqx.combine(jax.lax.stop_gradient(arrays), static)
    slope, value, error = jax.lax.stop_gradient((slope, state.value, state.error))

    def enough(point, length):
        new_value, new_error = _measures(held, *point)
        armijo = new_value <= value - SUFFICIENT * length * slope + noise
        return jnp.where(blind, new_error <= (1 - SUFFICIENT * length) * error, armijo)

    farthest = jnp.maximum(jnp.max(jnp.abs(direction.f)), jnp.max(jnp.abs(direction.g)))
    whole = jnp.minimum(1, FAR * held.epsilon / jnp.maximum(farthest, jnp.finfo(farthest.dtype).tiny))
    point = at(problem, state.x, move, whole)
    good = enough(jax.lax.stop_gradient(point), whole)

    def halve(carry):
        length, _, trials = carry
        return length / 2, enough(at(held, start, direction, length / 2), length / 2), trials + 1

    length, better, trials = jax.lax.while_loop(lambda carry: ~carry[1] & (carry[2] <= HALVINGS), halve, (whole, good, jnp.int32(1)))
    point = jax.lax.cond(good, lambda: point, lambda: at(problem, state.x, move, length))
    return point, better, trials


def newton_system(
    times: Callable,
    times_transposed: Callable,
    rows: Float[Array, " n"],
    columns: Float[Array, " m"],
    lack: Potentials,
    solve: Callable,
    ridge: float = 0.0,
) -> Direction:
    """(df, dg) with diag(rows) df + S dg = lack.f and S' df + diag(columns) dg = lack.g, up to a multiple of (1, -1).

    dg is eliminated: the matrix diag(rows) - S diag(1 / columns) S' that is left has a fourth of the condition number, and conjugate gradients
    take half as many steps, each as long. `solve(product, right-hand side)` solves with it, and returns the steps it took and whether they were enough.
    The diagonal of what is left is raised by the factor 1 + `ridge`.
    """
    tiny = jnp.finfo(rows.dtype).tiny
    rows, columns = jnp.maximum(rows, tiny), jnp.maximum(columns, tiny)
    excess = (jnp.sum(lack.f) - jnp.sum(lack.g)) / (jnp.sum(rows) + jnp.sum(columns))  # along (1, -1), where S = P has no image
    r, c = lack.f - excess * rows, lack.g + excess * columns
    df, iterations, solved = solve(lambda u: (1 + ridge) * rows * u - times(times_transposed(u) / columns), r - times(c / columns))
    dg = (c - times_transposed(df)) / columns
    return Direction(Potentials(df, dg).centred(), iterations, solved)


def ridge_of(dtype: Any) -> float:
    """What keeps rounding errors from passing for curvature where parts of the plan hardly exchange mass: 1e-11 in double precision."""
    return float(jnp.finfo(dtype).eps) ** 0.7


def conjugate_gradients(rows: Float[Array, " n"], rtol: Array, steps: int) -> Callable:
    """`solve` of `newton_system` by conjugate gradients, preconditioned with its diagonal as far as it is known, `rows`."""

    def solve(product, rhs):
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: rhs), lx.positive_semidefinite_tag)
        near = lx.DiagonalLinearOperator(1 / jnp.maximum(rows, jnp.finfo(rows.dtype).tiny))
        answer = lx.linear_solve(operator, rhs, CG(rtol, max_steps=steps, preconditioner=near), throw=False)
        return answer.value, jnp.int32(answer.stats["num_steps"]), answer.result == lx.RESULTS.successful

    return solve


def cholesky(plan: Float[Array, "n m"], rows: Float[Array, " n"], columns: Float[Array, " m"]) -> Callable:
    r"""`solve` of `newton_system` for S = P, by Cholesky's factorisation of \(I - D P C^{-1} P^\top D\), where \(D^{-2}\) and C are the marginals of P.

    Where parts of the plan hardly exchange mass, that matrix is nearly singular once for each part, and conjugate gradients do not get to an end. Scaled like
    this, only those exchanges are lost that are below rounding errors beside the mass of their points; so is what is added to its diagonal to keep
    the pivots positive.
    """
    tiny = jnp.finfo(plan.dtype).tiny
    scale = jax.lax.rsqrt(jnp.maximum(rows, tiny))
    factor = scale[:, None] * plan * jax.lax.rsqrt(jnp.maximum(columns, tiny))
    matrix = (1 + 4 * jnp.finfo(plan.dtype).eps * rows.size**0.5) * jnp.eye(rows.size, dtype=plan.dtype) - factor @ factor.T

    def solve(_, rhs):
        lower = jnp.linalg.cholesky(matrix, symmetrize_input=False)
        df = scale * jax.scipy.linalg.cho_solve((lower, True), scale * rhs)
        return df, jnp.int32(0), jnp.array(True)

    return solve
