r"""Euclidean projections onto convex sets, and entropic ones onto transport polytopes, with right derivatives.

$$\mathrm{proj}_C(y) = \operatorname{argmin}_{x \in C} \lVert x - y \rVert^2$$

| set | function |
|---|---|
| x >= 0, l <= x <= u | `non_negative`, `box` |
| x >= 0, sum x = s | `simplex` |
| norm(x) <= r | `l1_ball`, `l2_ball`, `linf_ball` |
| a'x = b, a'x <= b, A x = b | `hyperplane`, `half_space`, `affine_set` |
| l <= x <= u, a'x = b | `box_section` |
| norm(x) <= t | `second_order_cone` |
| doubly stochastic matrices | `birkhoff` |
| P 1 = a, P'1 = b, P >= 0 | `transport_polytope` (entropic) |

They are differentiable in every argument, sets included: `projected_gradient` in `optimand.core.optimality` relies on
it. At a kink the derivative is an element of the Clarke Jacobian, and it is finite everywhere, the apex of a cone
included. Where a search is needed (`box_section`, `birkhoff`, `transport_polytope`) its result is differentiated
implicitly. Those that are right in Optax (non-negative, l2 and linf balls, hyperplane, half-space) are Optax's; its
simplex, and the l1 ball that rests on it, answer in double precision where they are asked in single, so these are ours.
The sets of the first four rows take pytrees, affine sets excepted.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from optax import projections as _optax

from ..core.adjoint import implicit
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_count, need_positive

__all__ = [
    "affine_set",
    "birkhoff",
    "box",
    "box_section",
    "half_space",
    "hyperplane",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "non_negative",
    "second_order_cone",
    "simplex",
    "transport_plan",
    "transport_polytope",
]

non_negative = _optax.projection_non_negative
l2_ball = _optax.projection_l2_ball
linf_ball = _optax.projection_linf_ball
hyperplane = _optax.projection_hyperplane
half_space = _optax.projection_halfspace


def box(x: PyTree, lower: PyTree, upper: PyTree) -> PyTree:
    """The nearest point with lower <= x <= upper; each bound is a number, or a pytree like `x`.

    ```python
    om.smooth.projections.box({"a": jnp.array([-1.0, 2.0])}, 0.0, 1.0)      # {"a": [0., 1.]}
    ```
    """

    def like(bound):
        return jtu.tree_map(lambda _: bound, x) if jtu.treedef_is_leaf(jtu.tree_structure(bound)) else bound

    clip = lambda x, low, high: jnp.clip(x, jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype))
    return jtu.tree_map(clip, x, like(lower), like(upper))


def simplex(x: PyTree, scale: Any = 1.0) -> PyTree:
    """The nearest point with no negative entry whose entries sum to `scale`.

    By sorting (Held, Wolfe and Crowder 1974). The Jacobian is diag(s) - s s'/|s|_1 for the indicator s of the support.
    """
    y, unravel = ravel_pytree(x)
    return unravel(_on_simplex(y, jnp.asarray(scale, y.dtype)))


def _on_simplex(y: Float[Array, " n"], scale: Float[Array, ""]) -> Float[Array, " n"]:
    support = jax.lax.stop_gradient(y + _simplex_shift(y, scale) > 0)
    # The derivative comes from this line; that of the sort is not needed.
    shift = (scale - jnp.sum(jnp.where(support, y, 0.0))) / jnp.maximum(jnp.sum(support), 1).astype(y.dtype)
    return jnp.where(support, jnp.maximum(y + shift, 0.0), 0.0)


def _simplex_shift(y: Float[Array, " n"], scale: Any = 1.0) -> Float[Array, ""]:
    """The t for which max(y + t, 0) sums to `scale`."""
    ordered = jnp.sort(y)[::-1]
    shifts = (scale - jnp.cumsum(ordered)) / jnp.arange(1, y.size + 1, dtype=y.dtype)
    return shifts[jnp.maximum(jnp.sum(ordered + shifts > 0), 1) - 1]


def l1_ball(x: PyTree, scale: Any = 1.0) -> PyTree:
    """The nearest point with the sum of absolute values at most `scale`."""
    y, unravel = ravel_pytree(x)
    scale = jnp.asarray(scale, y.dtype)
    outside = jnp.sum(jnp.abs(y)) > scale
    return unravel(jnp.where(outside, jnp.sign(y) * _on_simplex(jnp.abs(y), scale), y))


def affine_set(x: Float[Array, " n"], a: Float[Array, "m n"], b: Float[Array, " m"]) -> Float[Array, " n"]:
    """The nearest point with a x = b, for a matrix of full row rank."""
    factor = jax.scipy.linalg.cho_factor(a @ a.T)
    return x - a.T @ jax.scipy.linalg.cho_solve(factor, a @ x - b)


def second_order_cone(x: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """The nearest point with |x_1, ..., x_{n-1}| <= x_0, along the last axis. The cone is its own dual."""
    head, tail = x[..., :1], x[..., 1:]
    squared = jnp.sum(tail**2, axis=-1, keepdims=True)
    nonzero = squared > 0
    norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1.0)), 0.0)
    direction = tail / jnp.where(nonzero, norm, 1.0)
    radius = 0.5 * (head + norm)
    boundary = jnp.concatenate([radius, radius * direction], axis=-1)
    return jnp.where(norm <= head, x, jnp.where(norm <= -head, 0.0, boundary))


# Sets that need a search for a multiplier, which is then differentiated implicitly.


def box_section(
    x: Float[Array, " n"], lower: Any, upper: Any, a: Any, b: Any, *, iterations: int = 100
) -> Float[Array, " n"]:
    r"""The nearest point with lower <= y <= upper and a'y = b.

    It is y(t) = clip(x + t a, lower, upper) for the t at which a'y(t), which never falls, is b: found by bisection.

    **Arguments:** `lower`, `upper` (finite or not) and `a` are numbers or vectors, `b` is a number.

    **Raises:** `ArgumentError` if no point of the box has a'y = b; in compiled code the result is NaN instead.
    """
    need_count("iterations", iterations)
    lower, upper, a = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in (lower, upper, a))
    b = jnp.asarray(b, x.dtype)
    weighted = jnp.where(a == 0, 0.0, a)
    ends = [
        jnp.sum(jnp.where(a == 0, 0.0, weighted * jnp.where(a > 0, *pair))) for pair in ((lower, upper), (upper, lower))
    ]
    slack = jnp.sqrt(jnp.finfo(x.dtype).eps) * (1 + jnp.abs(b))
    feasible = (ends[0] <= b + slack) & (b <= ends[1] + slack) & jnp.all(lower <= upper)
    if not is_tracer(feasible) and not bool(feasible):
        raise ArgumentError("b", f"= {b} is not attained: a'y lies in [{ends[0]}, {ends[1]}] on the box.")

    def point(t, x, lower, upper, a):
        return jnp.clip(x + t * a, lower, upper)

    def excess(t, x, lower, upper, a, b):
        return jnp.sum(a * point(t, x, lower, upper, a)) - b

    def bisect(_, x, lower, upper, a, b):
        grow = lambda end: 2.0 * end
        reach = 1.0 + (jnp.max(jnp.abs(x)) + 1.0) / jnp.maximum(jnp.max(jnp.abs(a)), jnp.finfo(x.dtype).tiny ** 0.25)
        low = jax.lax.while_loop(
            lambda t: (excess(t, x, lower, upper, a, b) > 0) & (t > -1e30), grow, -reach.astype(x.dtype)
        )
        high = jax.lax.while_loop(
            lambda t: (excess(t, x, lower, upper, a, b) < 0) & (t < 1e30), grow, reach.astype(x.dtype)
        )

        def halve(_, ends):
            low, high = ends
            middle = low + 0.5 * (high - low)
            below = excess(middle, x, lower, upper, a, b) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        low, high = jax.lax.fori_loop(0, iterations, halve, (low, high))
        return 0.5 * (low + high)

    # The system has one unknown; where every coordinate is at a bound it is zero, and so is the derivative.
    multiplier = implicit(excess, tolerance=None)(bisect)(jnp.zeros((), x.dtype), x, lower, upper, a, b)
    return jnp.where(feasible, point(multiplier, x, lower, upper, a), jnp.nan)


def birkhoff(
    x: Float[Array, "n n"], *, tolerance: float | None = None, iterations: int = 10_000
) -> Float[Array, "n n"]:
    """The nearest doubly stochastic matrix: no entry negative, all rows and columns sum to one.

    It is max(x + f_i + g_j, 0); the multipliers of the rows and of the columns are found in turn, each exactly as for a
    simplex, until the largest violation is below `tolerance` (1e-12 in double precision, 1e-6 in single).
    """
    need_count("iterations", iterations)
    if x.shape[0] != x.shape[1]:
        raise ArgumentError("x", f"must be a square matrix, not of shape {x.shape}.")
    bound = (1e-12 if x.dtype == jnp.float64 else 1e-6) if tolerance is None else tolerance

    def plan(potentials, x):
        f, g = potentials
        return jax.nn.relu(x + f[:, None] + g[None, :])

    def violation(potentials, x):
        matrix = plan(potentials, x)
        return 1 - jnp.sum(matrix, axis=1), 1 - jnp.sum(matrix, axis=0)

    def alternate(_, x):
        thresholds = jax.vmap(_simplex_shift)

        def step(carry):
            (_, g), _, count = carry
            f = thresholds(x + g[None, :])
            g = thresholds((x + f[:, None]).T)
            rows, _ = violation((f, g), x)
            return (f, g), jnp.max(jnp.abs(rows)), count + 1

        start = ((jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[0])), jnp.asarray(jnp.inf, x.dtype), 0)
        return jax.lax.while_loop(lambda carry: (carry[1] > bound) & (carry[2] < iterations), step, start)[0]

    # The Jacobian is a graph Laplacian: singular along constants, consistently so, which conjugate gradients accept.
    zeros = (jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[0]))
    solve = implicit(violation, symmetric=True, dense_below=0, tolerance=None)(alternate)
    return plan(solve(zeros, x), x)


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
    m, n = costs.shape
    dtype = costs.dtype
    a = jnp.full((m,), 1 / m, dtype) if a is None else a
    b = jnp.full((n,), 1 / n, dtype) if b is None else b
    for name, marginal in (("a", a), ("b", b)):
        if not is_tracer(marginal) and not np.all(np.asarray(marginal) >= 0):
            raise ArgumentError(name, "must not be negative.")
    if not is_tracer(a) and not is_tracer(b):
        total, other = float(np.sum(np.asarray(a))), float(np.sum(np.asarray(b)))
        if abs(total - other) > 1e-4 * max(total, other):
            raise ArgumentError("b", f"sums to {other:g}, and a to {total:g}; they must agree.")
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
