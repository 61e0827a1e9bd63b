r"""The local solve: nonlinear least squares in the weights of a basis, differentiable by the implicit function theorem.

At the minimiser \(w^\star\) of a `LocalProblem` the gradient \(g(w, S) = J^\top r\) vanishes. For a cotangent \(v\) of
\(w^\star\), one N x N system \(H \lambda = v\) with the exact Hessian and one VJP of \(g\) give the cotangent
\(-(\partial g / \partial S)^\top \lambda\) of everything the problem was made of; no iteration is stored.

Source: Chalapathi, Du and Krishnapriyan 2024, "Scaling physics-informed hard constraints with mixture-of-experts",
section 3 (ICLR 2024, arXiv 2402.13412). Where we differ: the residual is formed from terms computed once on the whole
grid; the Hessian comes from the structure of the residual; a Hessian that is not positive definite is replaced by the
Gauss-Newton matrix, and counted.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int

from ..core.dense import cholesky, in_turn
from ..core.errors import ArgumentError
from .local import LocalProblem

__all__ = ["LocalInfo", "NLLSConstraint"]

_DAMPING_START = 1e-4
_DAMPING_SMALLEST = 1e-15
_DAMPING_LARGEST = 1e8
_HESSIAN_SHIFT = 1e-10


class LocalInfo(eqx.Module):
    """How a local solve went; under `vmap` every entry has a leading axis of experts.

    - `iterations`: steps taken.
    - `converged`: whether the tolerance was met; if not, the weights are the best found.
    - `residual`: the norm of all rows at the weights; `gradient`: that of J' r.
    - `fallbacks`: 1 where the exact Hessian is not positive definite and derivatives use the Gauss-Newton matrix.
    """

    iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]
    residual: Float[Array, "..."]
    gradient: Float[Array, "..."]
    fallbacks: Int[Array, "..."]


class NLLSConstraint(eqx.Module):
    r"""Weights that minimise the residual on the points of an expert, found in float64 and differentiated implicitly.

    **Arguments:**

    - `points`: points drawn (without replacement) from each expert's box; `None` takes all of them.
    - `rtol`, `atol`: the solve ends when an accepted step changes the weights and half the sum of squares by less.
    - `max_steps`: of the solver; `None` is 100 for "optimistix" and 12 for "normal". Running out is flagged, not raised.
    - `ridge`: a row `ridge * w` is appended.
    - `solver`: "optimistix", a Levenberg-Marquardt with a QR factorisation of the Jacobian; or "normal", damped normal
      equations with column scaling, which cost a third under `vmap`. "auto" takes "normal" for more than one expert.
    - `polish`: Newton steps with the exact Hessian after the solver, each kept only if it helps: the implicit gradient
      is that of a stationary point, and a solver that looks at the change of the value stops before it is one.
    - `adjoint`: "exact" (the full Hessian) or "gauss_newton" (J' J: cheaper, exact where the residual vanishes).

    Calling it with a `LocalProblem` returns the weights, shape (N,), and a `LocalInfo`. Calls can be vmapped, jitted and
    differentiated in reverse mode.

    **Raises:** `ArgumentError` for values out of range, for fewer rows than unknowns, and where JAX has no float64.
    """

    points: int | None = eqx.field(static=True, default=None)
    rtol: float = eqx.field(static=True, default=1e-4)
    atol: float = eqx.field(static=True, default=1e-4)
    max_steps: int | None = eqx.field(static=True, default=None)
    ridge: float = eqx.field(static=True, default=1e-4)
    solver: str = eqx.field(static=True, default="auto")
    polish: int = eqx.field(static=True, default=1)
    adjoint: str = eqx.field(static=True, default="exact")

    reference: ClassVar[str] = "chalapathi2024scaling"

    def __check_init__(self):
        for name in ("rtol", "atol", "ridge"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ArgumentError(name, f"must be a number that is not negative, not {value!r}.")
        for name, smallest in (("points", 1), ("max_steps", 1), ("polish", 0)):
            value = getattr(self, name)
            if value is None and name != "polish":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ArgumentError(name, f"must be a whole number of at least {smallest}, not {value!r}.")
        for name, valid in (("solver", ("auto", "optimistix", "normal")), ("adjoint", ("exact", "gauss_newton"))):
            if getattr(self, name) not in valid:
                raise ArgumentError(name, f"must be one of {', '.join(valid)}, not {getattr(self, name)!r}.")

    def resolved(self, experts: int) -> "NLLSConstraint":
        """This constraint with "auto" decided for a number of experts."""
        if self.solver != "auto":
            return self
        return dataclasses.replace(self, solver="normal" if experts > 1 else "optimistix")

    @property
    def limit(self) -> int:
        """The most steps of the solver."""
        return self.max_steps or (12 if self.solver == "normal" else 100)

    def __call__(self, problem: LocalProblem, start: Float[Array, " unknowns"]) -> tuple[Array, LocalInfo]:
        """The weights (N,) from a start (N,), and how the solve went."""
        need_float64()
        rows = problem.points.shape[0] + problem.target.shape[0]
        if rows < problem.unknowns:
            raise ArgumentError(
                "points",
                f"leaves the constraint underdetermined: N={problem.unknowns} unknowns, {rows} rows.",
                "Take more points for each expert, or a smaller basis.",
            )
        problem = jtu.tree_map(
            lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf,
            dataclasses.replace(problem, ridge=self.ridge),
        )
        return _solve(problem, self.resolved(1), jax.lax.stop_gradient(jnp.asarray(start, jnp.float64)))


def need_float64() -> None:
    """Raise an `ArgumentError` with the one-line fix where JAX has no double precision."""
    if jnp.zeros(()).dtype != jnp.float64:
        raise ArgumentError(
            "constraint",
            "needs double precision, which JAX has switched off.",
            "Run inside `with jax.enable_x64(True):`, or set JAX_ENABLE_X64=1; the network may stay in float32.",
        )


@eqx.filter_custom_vjp
def _solve(problem, constraint, start):
    weights, info, _ = _solve_and_factorise(problem, constraint, start)
    return weights, info


@_solve.def_fwd
def _solve_fwd(perturbed, problem, constraint, start):
    del perturbed
    weights, info, factor = _solve_and_factorise(problem, constraint, start)
    return (weights, info), (weights, factor)


@_solve.def_bwd
def _solve_bwd(residuals, cotangents, perturbed, problem, constraint, start):
    del constraint, start
    weights, (factor, scale) = residuals
    cotangent = cotangents[0]
    if cotangent is None:
        return jtu.tree_map(lambda leaf: None, problem)
    multiplier = jax.scipy.linalg.cho_solve((factor, True), cotangent / scale) / scale
    moving = jtu.tree_map(lambda leaf, moves: leaf if moves else None, problem, perturbed)
    fixed = jtu.tree_map(lambda leaf, moves: None if moves else leaf, problem, perturbed)
    _, pullback = jax.vjp(lambda moving: eqx.combine(moving, fixed).gradient(weights), moving)
    return pullback(-multiplier)[0]


def _solve_and_factorise(problem: LocalProblem, constraint: NLLSConstraint, start):
    if constraint.solver == "normal":
        weights, iterations, converged, normal = _damped_normal_equations(problem, constraint, start)
    else:
        weights, iterations, converged, normal = _levenberg_marquardt(problem, constraint, start)
    for _ in range(constraint.polish):
        weights, normal = _newton(problem, weights, normal)
    value, gradient, gauss_newton = normal
    factor, scale, fallbacks = _factorise(problem, constraint, weights, gauss_newton)
    info = LocalInfo(iterations, converged, jnp.sqrt(2 * value), jnp.linalg.norm(gradient), fallbacks)
    return weights, info, (factor, scale)


def _factorise(problem, constraint, weights, gauss_newton):
    """The Cholesky factor of the scaled Hessian, or of the Gauss-Newton matrix where that fails."""
    scale = _column_scale(gauss_newton)
    shift = _HESSIAN_SHIFT * jnp.diag(1 / scale**2)
    plain = _scaled(gauss_newton, scale) + shift
    safe = plain + 1e-14 * jnp.eye(len(scale))
    if constraint.adjoint == "gauss_newton":
        return cholesky(safe), scale, jnp.int32(0)
    curvature = problem.curvature(weights)
    factor, definite = _first_factor(plain + _scaled((curvature + curvature.T) / 2, scale), safe)
    return factor, scale, jnp.where(definite, 0, 1).astype(jnp.int32)


@in_turn
def _first_factor(exact, safe):
    """Cholesky's factor of the first matrix if it has one, else of the second; and whether it has."""
    factor = jnp.linalg.cholesky(exact)
    definite = jnp.all(jnp.isfinite(factor))
    return jax.lax.cond(definite, lambda: factor, lambda: jnp.linalg.cholesky(safe)), definite


def _column_scale(normal_matrix):
    """The norms of the columns of the Jacobian; 1 for a column of zeros."""
    diagonal = jnp.diagonal(normal_matrix)
    return jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))


def _scaled(matrix, scale):
    return matrix / (scale[:, None] * scale[None, :])


# The two solvers.


def _levenberg_marquardt(problem: LocalProblem, constraint: NLLSConstraint, start):
    """Optimistix, for one problem at a time: it stops where it is accurate, and a batch waits for its slowest item."""
    solver = optx.LevenbergMarquardt(rtol=constraint.rtol, atol=constraint.atol)
    solution = optx.least_squares(
        lambda w, _: problem.residual(w), solver, start, max_steps=constraint.limit, throw=False
    )
    weights = jnp.where(jnp.all(jnp.isfinite(solution.value)), solution.value, start)
    converged = solution.result == optx.RESULTS.successful
    now = problem.normal_equations(weights, problem.linear_part())
    return weights, solution.stats["num_steps"].astype(jnp.int32), converged, now


def _damped_normal_equations(problem: LocalProblem, constraint: NLLSConstraint, start):
    """Levenberg-Marquardt on J' J, scaled by column, all in one pass over the points for each step.

    The loop ends when every item of a batch has converged, and after `max_steps` at the latest. An item that has
    converged stands still, so that a batch and a loop over its items give the same weights.
    """
    linear_part = problem.linear_part()
    identity = jnp.eye(problem.unknowns, dtype=start.dtype)
    evaluate = lambda w: problem.normal_equations(w, linear_part)

    def small(change, size):
        return jnp.max(jnp.abs(change) / (constraint.atol + constraint.rtol * jnp.abs(size))) < 1

    def going(carry):
        _, _, _, iterations, converged, stuck = carry
        return (iterations < constraint.limit) & ~converged & ~stuck

    def step(carry):
        w, (value, gradient, matrix), damping, iterations, converged, stuck = carry
        del converged, stuck
        scale = _column_scale(matrix)
        factor = jnp.linalg.cholesky(_scaled(matrix, scale) + damping * identity)
        move = -jax.scipy.linalg.cho_solve((factor, True), gradient / scale) / scale
        trial = w + move
        tried = evaluate(trial)
        # Within rounding of the value a step is a good one too: there the gradient is what gets smaller.
        rounding = 1e-14 * value
        accept = jnp.isfinite(tried[0]) & jnp.all(jnp.isfinite(trial)) & (tried[0] <= value + rounding)
        # A step that heavy damping has shortened says nothing about convergence.
        converged = accept & small(move, trial) & small(value - tried[0], value) & (damping <= _DAMPING_START)
        w = jnp.where(accept, trial, w)
        now = jtu.tree_map(lambda new, old: jnp.where(accept, new, old), tried, (value, gradient, matrix))
        damping = jnp.where(accept, jnp.maximum(damping * 1e-2, _DAMPING_SMALLEST), damping * 10)
        return w, now, damping, iterations + 1, converged, damping > _DAMPING_LARGEST

    carry = (start, evaluate(start), jnp.asarray(_DAMPING_START), jnp.int32(0), jnp.array(False), jnp.array(False))
    w, now, _, iterations, converged, _ = jax.lax.while_loop(going, step, carry)
    return w, iterations, converged, now


def _newton(problem, w, now):
    """One Newton step with the exact Hessian, kept if the gradient shrinks and the value does not grow."""
    value, gradient, matrix = now
    scale = _column_scale(matrix)
    curvature = problem.curvature(w)
    factor = jnp.linalg.cholesky(_scaled(matrix + (curvature + curvature.T) / 2, scale))
    trial = w - jax.scipy.linalg.cho_solve((factor, True), gradient / scale) / scale
    tried = problem.normal_equations(trial, problem.linear_part())
    better = jnp.linalg.norm(tried[1] / scale) < jnp.linalg.norm(gradient / scale)
    accept = jnp.all(jnp.isfinite(trial)) & better & (tried[0] <= value * (1 + 1e-14))
    return jtu.tree_map(lambda new, old: jnp.where(accept, new, old), (trial, tried), (w, now))
