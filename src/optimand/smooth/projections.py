r"""Euclidean projections onto convex sets, and entropic ones onto transport polytopes, with right derivatives.

$$\mathrm{proj}_C(y) = \operatorname{argmin}_{x \in C} \lVert x - y \rVert^2$$

| set | function |
|---|---|
| x >= 0, l <= x <= u | `non_negative`, `box` |
| x >= 0, sum x = s | `simplex` |
| norm(x) <= r | `l1_ball`, `l2_ball`, `linf_ball` |
| norm(x) = r; the simplex with at most k nonzeros (not convex) | `l1_sphere`, `l2_sphere`; `sparse_simplex` |
| a'x = b, a'x <= b, A x = b | `hyperplane`, `half_space`, `affine_set` |
| A x = b, G x <= h | `polyhedron` |
| l <= x <= u, a'x = b | `box_section` |
| norm(x) <= t | `second_order_cone` |
| doubly stochastic matrices | `birkhoff` |
| P 1 = a, P'1 = b, P >= 0 | `euclidean_transport_polytope`, `transport_polytope` (entropic) |

They are differentiable in every argument, sets included: `projected_gradient` in `optimand.core.optimality` relies on
it. At a kink the derivative is an element of the Clarke Jacobian, and it is finite everywhere, the apex of a cone
included. Where a search is needed (`box_section`, and the sets of `projections_polytopes`) its result is differentiated
implicitly. Those that are right in Optax (non-negative, l2 and linf balls, hyperplane, half-space) are Optax's; its
simplex, and the l1 ball that rests on it, answer in double precision where they are asked in single, so these are ours.
Boxes, simplices, balls, spheres, hyperplanes and half-spaces take pytrees.
A set that is not convex may have several nearest points; one of them is returned, with its derivative.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from optax import projections as _optax

from ..core.adjoint import implicit
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_count
from .projections_polytopes import (
    birkhoff,
    euclidean_transport_polytope,
    polyhedron,
    simplex_shift,
    transport_plan,
    transport_polytope,
)

__all__ = [
    "affine_set",
    "birkhoff",
    "box",
    "box_section",
    "euclidean_transport_polytope",
    "half_space",
    "hyperplane",
    "l1_ball",
    "l1_sphere",
    "l2_ball",
    "l2_sphere",
    "linf_ball",
    "non_negative",
    "polyhedron",
    "second_order_cone",
    "simplex",
    "sparse_simplex",
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
    support = jax.lax.stop_gradient(y + simplex_shift(y, scale) > 0)
    # The derivative comes from this line; that of the sort is not needed.
    shift = (scale - jnp.sum(jnp.where(support, y, 0.0))) / jnp.maximum(jnp.sum(support), 1).astype(y.dtype)
    return jnp.where(support, jnp.maximum(y + shift, 0.0), 0.0)


def l1_ball(x: PyTree, scale: Any = 1.0) -> PyTree:
    """The nearest point with the sum of absolute values at most `scale`."""
    y, unravel = ravel_pytree(x)
    scale = jnp.asarray(scale, y.dtype)
    outside = jnp.sum(jnp.abs(y)) > scale
    return unravel(jnp.where(outside, jnp.sign(y) * _on_simplex(jnp.abs(y), scale), y))


def l1_sphere(x: PyTree, scale: Any = 1.0) -> PyTree:
    """A nearest point whose absolute values sum to `scale`."""
    y, unravel = ravel_pytree(x)
    sign = jnp.where(y >= 0, 1, -1).astype(y.dtype)  # at zero both are as near
    return unravel(sign * _on_simplex(jnp.abs(y), jnp.asarray(scale, y.dtype)))


def l2_sphere(x: PyTree, scale: Any = 1.0) -> PyTree:
    """The nearest point of norm `scale`; for x = 0, where all are as near, the one with equal entries."""
    y, unravel = ravel_pytree(x)
    squared = jnp.sum(y**2)
    nonzero = squared > 0
    direction = jnp.where(nonzero, y / jnp.sqrt(jnp.where(nonzero, squared, 1.0)), 1 / y.size**0.5)
    return unravel(jnp.asarray(scale, y.dtype) * direction)


def sparse_simplex(x: PyTree, nonzeros: int, scale: Any = 1.0) -> PyTree:
    """A nearest point of the simplex with at most `nonzeros` entries above zero.

    The projection of the `nonzeros` largest entries, with the others at zero (Kyrillidis et al. 2013, theorem 1).
    """
    need_count("nonzeros", nonzeros)
    y, unravel = ravel_pytree(x)
    largest, where = jax.lax.top_k(y, min(nonzeros, y.size))
    return unravel(jnp.zeros_like(y).at[where].set(_on_simplex(largest, jnp.asarray(scale, y.dtype))))


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


# A set that needs a search for a multiplier, which is then differentiated implicitly; more are in `projections_polytopes`.


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
