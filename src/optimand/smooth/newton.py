r"""Newton's method, for roots and for minima.

$$F'(x_k)\, d_k = -F(x_k), \qquad x_{k+1} = x_k + t_k d_k ,$$

with F the function of a `Root`, or the gradient of an objective (Nocedal and Wright 2006, chapters 3 and 11). The length
\(t_k\) is backtracked from 1: on the norm of F for a root, by Armijo's condition for a minimum. A Hessian that is not
positive definite is replaced by the one with the absolute values of its eigenvalues, so that the direction descends. Where
the gradient vanishes but the Hessian has a negative eigenvalue, at a saddle or a maximum, the step goes along the eigenvector
of the least one, down which the objective falls (section 7.1).
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.dense import eigh, in_turn, solve
from ..core.method import Method
from ..core.problem import Objective, Root
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative
from .line_search import backtrack, constant, evaluated, stay
from .vectors import add, norm, select

__all__ = ["Newton"]


class NewtonState(eqx.Module):
    """`f` is F(x); `value` the objective, or half of |F|^2 for a root.

    `proven`: no negative curvature was found where a step last looked. A root needs no proof.
    """

    x: PyTree
    value: Array
    f: PyTree
    stuck: Array
    proven: Array
    counters: Counters


class Newton(Method):
    """Newton's method with a line search: quadratic convergence, at the price of a linear system a step.

    Pick it for roots with a cheap Jacobian, and for minima where high accuracy is wanted or conditioning is bad.

    **Arguments:**

    - `dense_below`: up to so many unknowns the Jacobian is formed and factorised; above it products are used, in GMRES
      for a root and conjugate gradients for a minimum, to a relative accuracy of `rtol`.
    - `decrease`, `max_trials`: of the line search. If it finds nothing the solve ends as `stopped`.
    - `tolerance`: converged when the norm of F is at most this, and for a minimum no negative curvature was found there: among
      all directions up to `dense_below` unknowns, above it in the Krylov space of 40 products with the Hessian.

    A minimisation that starts at a stationary point therefore takes a step, to look. Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = (Root, Objective)
    reference: ClassVar[str] = "nocedal2006numerical"

    dense_below: int = eqx.field(static=True, default=256)
    rtol: float = eqx.field(static=True, default=1e-3)
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=20)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("dense_below", self.dense_below, least=0)
        need_between("rtol", self.rtol, 0, 1)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Root | Objective, guess: PyTree, *, key: Array | None) -> NewtonState:
        if isinstance(problem, Root):
            value, f = _half_square(problem, guess)
            counters = Counters.zero().add(residuals=1)
        else:
            value, f = problem.value_and_gradient(guess)
            counters = Counters.zero().add(values=1, gradients=1)
        return NewtonState(guess, value, f, jnp.array(False), jnp.array(isinstance(problem, Root)), counters)

    def step(self, problem: Root | Objective, state: NewtonState, *, key: Array | None) -> NewtonState:
        flat, unravel = ravel_pytree(state.x)
        curvature, downhill, proven = jnp.zeros((), flat.dtype), jnp.zeros_like(flat), state.proven
        f, _ = ravel_pytree(state.f)
        root = isinstance(problem, Root)
        function = problem.residual if root else problem.gradient
        stationary = norm(state.f) <= self.tolerance
        of_vector = lambda flat: ravel_pytree(function(unravel(flat)))[0]
        if flat.size <= self.dense_below:
            matrix = jax.jacfwd(of_vector)(flat)
            if root:
                d = solve(matrix, -f)
            else:
                d, curvature, downhill = descent(matrix, f)
                proven = curvature >= 0
            counters = state.counters.add(jacobians=1, linear_solves=1)
        else:
            _, product = jax.linearize(of_vector, flat)
            krylov = jax.scipy.sparse.linalg.gmres if root else jax.scipy.sparse.linalg.cg
            d, _ = krylov(product, -f, tol=self.rtol)
            counters = state.counters.add(linear_solves=1)
            if not root:
                d = jnp.where(jnp.isfinite(f @ d) & (f @ d < 0), d, -f)
                look = functools.partial(_least_curvature, product, flat)
                none = (curvature, downhill)
                curvature, downhill = jax.lax.cond(stationary, look, lambda: none)
                proven = stationary & (curvature >= 0)
        if root:
            return self._shorten(problem, state, unravel(d), counters)
        curvature, downhill = jax.lax.stop_gradient((curvature, downhill))
        leave = stationary & (curvature < 0)
        d = jnp.where(leave, jnp.where(f @ downhill > 0, -downhill, downhill), d)
        slope = jnp.where(leave, curvature / 2, f @ d)  # what a step of length one would gain
        found = backtrack(
            problem, state.x, state.value, slope, unravel(d), 1.0,
            decrease=self.decrease, max_trials=self.max_trials,
        )  # fmt: skip
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.f)
        counters = counters.add(values=found.trials, gradients=found.trials)
        return NewtonState(x, value, gradient, ~found.accepted, proven, counters)

    def _shorten(self, problem: Root, state: NewtonState, direction: PyTree, counters: Counters) -> NewtonState:
        """Halve the step until |F|^2 decreases: its slope along the Newton direction is -|F|^2."""
        still, origin, heading, value0 = constant((problem, state.x, direction, state.value))

        def trial(carry):
            length, _, _, trials, _ = carry
            length = jnp.where(trials == 0, length, length / 2)
            value, f = _half_square(still, add(origin, heading, length))
            return length, value, f, trials + 1, value <= (1 - 2 * self.decrease * length) * value0

        searching = lambda carry: ~carry[4] & (carry[3] < self.max_trials)
        start = (jnp.ones_like(value0), value0, constant(state.f), jnp.int32(0), jnp.array(False))
        length, value, f, trials, accepted = jax.lax.while_loop(searching, trial, start)
        x = add(state.x, direction, length)
        value, f = evaluated(_half_square, (problem, x), (value, f))
        x, value, f = select(accepted, (x, value, f), (state.x, state.value, state.f))
        return NewtonState(x, value, f, ~accepted, state.proven, counters.add(residuals=trials))

    def done(self, problem: Root | Objective, state: NewtonState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where((norm(state.f) <= self.tolerance) & state.proven, Result.converged.code, code)

    def answer(self, problem: Root | Objective, state: NewtonState) -> PyTree:
        return state.x

    def metrics(self, problem: Root | Objective, state: NewtonState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.f)}


def _half_square(problem: Root, x: PyTree) -> tuple[Array, PyTree]:
    f = problem.residual(x)
    flat, _ = ravel_pytree(f)
    return 0.5 * (flat @ flat), f


@in_turn
def descent(hessian: Array, gradient: Array) -> tuple[Array, Array, Array]:
    """-H^{-1} g by Cholesky; with the absolute eigenvalues of H where it is not positive definite.

    Also the least eigenvalue with its eigenvector if it is negative beyond rounding, else zero.
    """
    factor = jnp.linalg.cholesky(hessian)

    def by_eigenvalues():
        values, vectors = jnp.linalg.eigh(jnp.nan_to_num(hessian))
        least = jnp.finfo(gradient.dtype).eps * jnp.max(jnp.abs(values)) * gradient.size
        magnitude = jnp.maximum(jnp.abs(values), jnp.maximum(least, jnp.finfo(gradient.dtype).tiny))
        negative = values[0] < -_rounding(values)
        return (
            -vectors @ ((vectors.T @ gradient) / magnitude),
            jnp.where(negative, values[0], 0),
            jnp.where(negative, vectors[:, 0], 0),
        )

    def by_cholesky():
        return -jax.scipy.linalg.cho_solve((factor, True), gradient), jnp.zeros_like(hessian[0, 0]), jnp.zeros_like(gradient)

    return jax.lax.cond(jnp.all(jnp.isfinite(factor)), by_cholesky, by_eigenvalues)


def _least_curvature(product: Callable, like: Array) -> tuple[Array, Array]:
    """The least Ritz value of a symmetric operator and its vector, from Lanczos' method; zero if it is not negative.

    With full orthogonalisation, from a start that is orthogonal to nothing in particular (Golub and Van Loan 2013, 10.3).
    """
    steps = min(like.size, _LANCZOS_STEPS)
    first = jnp.cos(1.0 + jnp.arange(like.size, dtype=like.dtype) ** 2)

    def expand(i, carry):
        basis, images, v = carry
        v = v - basis.T @ (basis @ v)
        v = v - basis.T @ (basis @ v)  # twice is enough
        length = jnp.linalg.norm(v)
        v = jnp.where(length > jnp.finfo(like.dtype).eps, v / jnp.where(length > 0, length, 1), 0)  # the space is closed
        image = product(v)
        return basis.at[i].set(v), images.at[i].set(image), image / jnp.maximum(jnp.linalg.norm(image), 1e-30)

    empty = jnp.zeros((steps, like.size), like.dtype)
    basis, images, _ = jax.lax.fori_loop(0, steps, expand, (empty, empty, first / jnp.linalg.norm(first)))
    projected = basis @ images.T
    values, vectors = eigh((projected + projected.T) / 2)
    negative = values[0] < -_rounding(values)
    return jnp.where(negative, values[0], 0), jnp.where(negative, basis.T @ vectors[:, 0], 0)


_LANCZOS_STEPS = 40


def _rounding(eigenvalues: Array) -> Array:
    """How far below zero an eigenvalue of a singular Hessian may come out, since the Hessian itself is rounded."""
    return jnp.finfo(eigenvalues.dtype).eps ** (2 / 3) * jnp.max(jnp.abs(eigenvalues))
