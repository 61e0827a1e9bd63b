r"""Projections onto polytopes that take a search: transport polytopes, doubly stochastic matrices, polyhedra.

Each searches for the multipliers of the projection and differentiates them implicitly, so that the projection has right
derivatives in the point and in the set. Public names are those of `optimand.smooth.projections`.
"""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.adjoint import implicit
from ..core.dense import cholesky, cholesky_solve
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_count, need_positive

__all__ = [
    "birkhoff",
    "euclidean_transport_polytope",
    "polyhedron",
    "simplex_shift",
    "transport_plan",
    "transport_polytope",
]


def simplex_shift(y: Float[Array, " n"], scale: Any = 1.0) -> Float[Array, ""]:
    """The t for which max(y + t, 0) sums to `scale`."""
    ordered = jnp.sort(y)[::-1]
    shifts = (scale - jnp.cumsum(ordered)) / jnp.arange(1, y.size + 1, dtype=y.dtype)
    return shifts[jnp.maximum(jnp.sum(ordered + shifts > 0), 1) - 1]


def polyhedron(
    x: Float[Array, " n"],
    a: Float[Array, "p n"],
    b: Float[Array, " p"],
    g: Float[Array, "m n"],
    h: Float[Array, " m"],
    *,
    tolerance: float | None = None,
    iterations: int = 60,
) -> Float[Array, " n"]:
    r"""The nearest point with a y = b and g y <= h; either may have no rows.

    By a primal-dual interior point with Mehrotra's predictor and corrector, dense, whose active set is then taken for
    granted in one Newton step on the equations of the multipliers,

    $$a\,y = b, \quad \min(\mu, h - g\,y) = 0, \qquad y = x - a^\top \nu - g^\top \mu ,$$

    which are what it is differentiated through.

    **Arguments:** `tolerance`: the largest violation of these equations, relative to the size of the numbers in them
    (1e-10 in double precision, 1e-4 in single).

    **Raises:** `ArgumentError` if no such point was found, because the set is empty; in compiled code the result is NaN.

    Source: Mehrotra 1992; Nocedal and Wright 2006, algorithm 16.4.
    """
    need_count("iterations", iterations)
    need_positive("tolerance", tolerance)
    dtype = x.dtype
    a, b, g, h = (jnp.asarray(part, dtype) for part in (a, b, g, h))
    for name, matrix, side, rows in (("a", a, "b", b), ("g", g, "h", h)):
        if matrix.ndim != 2 or matrix.shape[1] != x.size or rows.shape != matrix.shape[:1]:
            raise ArgumentError(name, f"has shape {matrix.shape} and `{side}` {rows.shape}; x has {x.size} entries.")
    bound = (1e-10 if dtype == jnp.float64 else 1e-4) if tolerance is None else tolerance

    def point(multipliers, x, a, g):
        nu, mu = multipliers
        return x - nu @ a - mu @ g

    def condition(multipliers, x, a, b, g, h):
        y = point(multipliers, x, a, g)
        return a @ y - b, jnp.minimum(multipliers[1], h - g @ y)

    def largest(residual):
        return jnp.max(jnp.abs(jnp.concatenate([jnp.ravel(part) for part in residual])), initial=0.0)

    def search(_, x, a, b, g, h):
        inner = _interior_point(x, a, b, g, h, iterations)
        flat, unravel = jax.flatten_util.ravel_pytree(inner)
        equations = lambda flat: jax.flatten_util.ravel_pytree(condition(unravel(flat), x, a, b, g, h))[0]
        before = equations(flat)
        polished = flat - jnp.linalg.lstsq(jax.jacfwd(equations)(flat), before)[0]
        better = jnp.max(jnp.abs(equations(polished)), initial=0.0) < jnp.max(jnp.abs(before), initial=0.0)
        return unravel(jnp.where(better, polished, flat))

    zeros = jnp.zeros(b.shape, dtype), jnp.zeros(h.shape, dtype)
    if not a.shape[0] and not g.shape[0]:
        return x
    multipliers = implicit(condition, tolerance=None)(search)(zeros, x, a, b, g, h)
    size = 1 + largest((x, b, h))
    feasible = largest(condition(multipliers, x, a, b, g, h)) <= bound * size
    if not is_tracer(feasible) and not bool(feasible):
        raise ArgumentError("h", "leaves no point with a y = b and g y <= h, or none was found.")
    return jnp.where(feasible, point(multipliers, x, a, g), jnp.nan)


def _interior_point(x, a, b, g, h, iterations):
    """The multipliers of a and g, as near as rounding allows."""
    n, (p, _), (m, _) = x.size, a.shape, g.shape
    eps = jnp.finfo(x.dtype).eps
    size = 1 + jnp.max(jnp.abs(jnp.concatenate([x, b, h])))

    def residuals(y, s, nu, mu):
        return y - x + nu @ a + mu @ g, a @ y - b, g @ y + s - h

    def longest(values, moves):
        """How far the values may go along their moves and stay positive."""
        ratios = jnp.where(moves < 0, -values / jnp.where(moves < 0, moves, -1.0), jnp.inf)
        return jnp.minimum(1.0, jnp.min(ratios, initial=jnp.inf))

    def step(carry):
        (y, s, nu, mu), count, _ = carry
        dual, equal, unequal = residuals(y, s, nu, mu)
        weights = mu / s
        factor = cholesky(jnp.eye(n, dtype=x.dtype) + (g.T * weights) @ g)
        through = cholesky_solve(factor, a.T)
        schur = a @ through
        schur = schur + 10 * eps * (jnp.trace(schur) / max(p, 1)) * jnp.eye(p, dtype=x.dtype)  # redundant equalities
        schur_factor: Any = cholesky(schur) if p else None

        def direction(target):
            """With s mu moved towards `target`."""
            shift = target / s - mu + weights * unequal
            right = -dual - shift @ g
            free = cholesky_solve(factor, right)
            d_nu = cholesky_solve(schur_factor, a @ free + equal) if p else nu
            d_y = free - through @ d_nu
            return d_y, -unequal - g @ d_y, d_nu, shift + weights * (g @ d_y)

        average = jnp.sum(s * mu) / max(m, 1)
        _, ds, _, d_mu = direction(jnp.zeros_like(s))
        length = jnp.minimum(longest(s, ds), longest(mu, d_mu))
        after = jnp.sum((s + length * ds) * (mu + length * d_mu)) / max(m, 1)
        centring = (after / jnp.maximum(average, jnp.finfo(x.dtype).tiny)) ** 3
        d_y, ds, d_nu, d_mu = direction(centring * average - ds * d_mu)
        length = jnp.minimum(1.0, 0.995 * jnp.minimum(longest(s, ds), longest(mu, d_mu)))
        moved = (y + length * d_y, s + length * ds, nu + length * d_nu, mu + length * d_mu)
        gap = jnp.max(jnp.abs(jnp.concatenate([*residuals(*moved), moved[1] * moved[3]])))
        sound = jnp.all(jnp.isfinite(jnp.concatenate(moved)))
        kept = tuple(jnp.where(sound, new, old) for new, old in zip(moved, (y, s, nu, mu), strict=True))
        return kept, jnp.where(sound, count + 1, iterations), gap

    ones = jnp.full((m,), size)
    start = (x, jnp.maximum(h - g @ x, ones), jnp.zeros((p,), x.dtype), ones)
    going = lambda carry: (carry[1] < iterations) & (carry[2] > 10 * eps * size)
    (_, _, nu, mu), _, _ = jax.lax.while_loop(going, step, (start, 0, jnp.asarray(jnp.inf, x.dtype)))
    return nu, mu


def euclidean_transport_polytope(
    x: Float[Array, "m n"],
    a: Float[Array, " m"] | None = None,
    b: Float[Array, " n"] | None = None,
    *,
    tolerance: float | None = None,
    iterations: int = 10_000,
) -> Float[Array, "m n"]:
    """The nearest matrix with no negative entry, rows that sum to a and columns that sum to b.

    It is max(x + f_i + g_j, 0), sparse where the entropic one of `transport_polytope` is not; the multipliers of the rows
    and of the columns are found in turn, each exactly as for a simplex, until the largest violation is below
    `tolerance` (1e-12 in double precision, 1e-6 in single).

    **Arguments:** `a` and `b` sum to the same number, uniform distributions by default.

    Source: Blondel, Seguy and Rolet 2018, with the dual maximised by blocks.
    """
    need_count("iterations", iterations)
    a, b = _marginals(x, a, b)
    bound = (1e-12 if x.dtype == jnp.float64 else 1e-6) if tolerance is None else tolerance

    def plan(potentials, x):
        f, g = potentials
        return jax.nn.relu(x + f[:, None] + g[None, :])

    def violation(potentials, x, a, b):
        matrix = plan(potentials, x)
        return a - jnp.sum(matrix, axis=1), b - jnp.sum(matrix, axis=0)

    def alternate(_, x, a, b):
        thresholds = jax.vmap(simplex_shift)

        def step(carry):
            (_, g), _, count = carry
            f = thresholds(x + g[None, :], a)
            g = thresholds((x + f[:, None]).T, b)
            rows, _ = violation((f, g), x, a, b)
            return (f, g), jnp.max(jnp.abs(rows)), count + 1

        start = ((jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[0])), jnp.asarray(jnp.inf, x.dtype), 0)
        return jax.lax.while_loop(lambda carry: (carry[1] > bound) & (carry[2] < iterations), step, start)[0]

    # The Jacobian is a graph Laplacian: singular along constants, consistently so, which conjugate gradients accept.
    zeros = (jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[0]))
    solve = implicit(violation, symmetric=True, dense_below=0, tolerance=None)(alternate)
    return plan(solve(zeros, x, a, b), x)


def birkhoff(
    x: Float[Array, "n n"], *, tolerance: float | None = None, iterations: int = 10_000
) -> Float[Array, "n n"]:
    """The nearest doubly stochastic matrix: `euclidean_transport_polytope` with marginals of ones."""
    if x.shape[0] != x.shape[1]:
        raise ArgumentError("x", f"must be a square matrix, not of shape {x.shape}.")
    ones = jnp.ones(x.shape[:1], x.dtype)
    return euclidean_transport_polytope(x, ones, ones, tolerance=tolerance, iterations=iterations)


def _marginals(matrix: Array, a: Array | None, b: Array | None) -> tuple[Array, Array]:
    """Both in the dtype of the matrix, uniform where they are None; refused if they cannot be those of one plan."""
    m, n = matrix.shape
    a = jnp.full((m,), 1 / m, matrix.dtype) if a is None else a
    b = jnp.full((n,), 1 / n, matrix.dtype) if b is None else b
    for name, marginal, length in (("a", a, m), ("b", b, n)):
        if jnp.shape(marginal) != (length,):
            raise ArgumentError(name, f"has shape {jnp.shape(marginal)}; the matrix has {length} in that direction.")
        if not is_tracer(marginal) and not np.all(np.asarray(marginal) >= 0):
            raise ArgumentError(name, "must not be negative.")
    if not is_tracer(a) and not is_tracer(b):
        total, other = float(np.sum(np.asarray(a))), float(np.sum(np.asarray(b)))
        if abs(total - other) > 1e-4 * max(total, other):
            raise ArgumentError("b", f"sums to {other:g}, and a to {total:g}; they must agree.")
    return jnp.asarray(a, matrix.dtype), jnp.asarray(b, matrix.dtype)


def transport_polytope(
    scores: Float[Array, "m n"],
    a: Float[Array, " m"] | None = None,
    b: Float[Array, " n"] | None = None,
    *,
    regularization: Any = 1.0,
    tolerance: float | None = None,
    iterations: int = 10_000,
) -> Float[Array, "m n"]:
    r"""The Kullback-Leibler projection of exp(scores / regularization) onto the matrices with marginals a and b.

    $$\operatorname{argmax}_{P \ge 0} \langle P, S \rangle - \varepsilon \textstyle\sum_{ij} P_{ij} (\log P_{ij} - 1)
      \quad\text{s.t.}\quad P 1 = a,\; P^\top 1 = b$$

    **Arguments:** `a` and `b` sum to the same number, uniform distributions by default. `tolerance` bounds the violation
    of the marginals (1e-10 in double precision, 1e-6 in single).

    Solved by Sinkhorn's algorithm on logarithms (Cuturi 2013; Peyre and Cuturi 2019, section 4.4), differentiated
    implicitly.
    """
    return transport_plan(-scores, a, b, regularization=regularization, tolerance=tolerance, iterations=iterations)


def transport_plan(
    costs: Float[Array, "m n"],
    a: Float[Array, " m"] | None = None,
    b: Float[Array, " n"] | None = None,
    *,
    regularization: Any = 1.0,
    tolerance: float | None = None,
    iterations: int = 10_000,
) -> Float[Array, "m n"]:
    """The plan that moves the distribution a to b at least cost, blurred by entropy: `transport_polytope(-costs)`."""
    need_count("iterations", iterations)
    need_positive("regularization", regularization)
    m, dtype = costs.shape[0], costs.dtype
    a, b = _marginals(costs, a, b)
    bound = (1e-10 if dtype == jnp.float64 else 1e-6) if tolerance is None else tolerance
    tiny = jnp.finfo(dtype).tiny
    scaled = -costs / jnp.asarray(regularization, dtype)
    log = lambda marginal: jnp.log(jnp.maximum(marginal.astype(dtype), tiny))

    def column_potential(f, scaled, log_b):
        return log_b - jax.nn.logsumexp(scaled + f[:, None], axis=0)

    def row_potential(f, scaled, log_a, log_b):
        g = column_potential(f, scaled, log_b)
        return log_a - jax.nn.logsumexp(scaled + g[None, :], axis=1)

    def condition(f, scaled, log_a, log_b):
        # A constant may be added to f and taken from g: fixed by a mean of zero.
        image = row_potential(f, scaled, log_a, log_b)
        return image - jnp.mean(image) - f

    def sinkhorn(_, scaled, log_a, log_b):
        def step(carry):
            f, _, count = carry
            image = row_potential(f, scaled, log_a, log_b)
            # the violation of a by the plan of (f, g(f)) is a (1 - exp(f - image))
            error = jnp.sum(jnp.exp(log_a) * jnp.abs(jnp.expm1(f - image)))
            return image - jnp.mean(image), error, count + 1

        going = lambda carry: (carry[1] > bound) & (carry[2] < iterations)
        f = row_potential(jnp.zeros((m,), dtype), scaled, log_a, log_b)
        f = f - jnp.mean(f)
        return jax.lax.while_loop(going, step, (f, jnp.asarray(jnp.inf, dtype), 0))[0]

    log_a, log_b = log(a), log(b)
    f = implicit(condition, tolerance=None)(sinkhorn)(jnp.zeros((m,), dtype), scaled, log_a, log_b)
    g = column_potential(f, scaled, log_b)
    # rows of f off by a common constant do not matter: g takes it back
    return jnp.exp(scaled + f[:, None] + g[None, :])
