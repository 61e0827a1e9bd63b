r"""Derivatives of fields on grids of points, by finite differences; the points may be unequally far apart.

The weights of a stencil are the derivatives of its Lagrange polynomials, so that each formula is exact for polynomials
up to the degree of its number of points less one.

| function | inside | at the ends | order |
|---|---|---|---|
| `first_derivative` | 3 points, central | 3 points one-sided (`ends=2`), or 2 points (`ends=1`) | 2 (1 at the ends if `ends=1`) |
| `backward_derivative` | 2 points, this and the one before | forward at the first | 1 |
| `second_derivative` | 3 points, central | 4 points, one-sided | 2 (1 inside, on unequal spacing) |
| `periodic_first_derivative`, `periodic_second_derivative` | 3 points, central | around the corner | 2 |
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ..core.errors import ArgumentError

__all__ = [
    "backward_derivative",
    "first_derivative",
    "periodic_first_derivative",
    "periodic_second_derivative",
    "second_derivative",
]


def first_derivative(u: Float[Array, "..."], x: ArrayLike, *, axis: int = 0, ends: int = 2) -> Float[Array, "..."]:
    """The first derivative of `u` along an axis.

    **Arguments:**

    - `u`: values at the points.
    - `x`: the coordinates of the points, increasing, or one number: their distance.
    - `axis`: the axis of `u` that runs along `x`.
    - `ends`: the order of the one-sided differences at both ends, 2 or 1.

    Raises `ArgumentError` if the lengths differ or the axis has too few points.
    """
    if ends not in (1, 2):
        raise ArgumentError("ends", f"must be 1 or 2; it is {ends}.")
    u, x = _along(u, x, axis, points=3)
    left, middle, right = x[:-2], x[1:-1], x[2:]
    inside = _combine(u, (0, 1, 2), _weights((left, middle, right), middle, 1))
    count = ends + 1
    first = _combine_ends(u, range(count), _weights(tuple(x[i] for i in range(count)), x[0], 1))
    last = _combine_ends(u, range(-count, 0), _weights(tuple(x[i] for i in range(-count, 0)), x[-1], 1))
    return jnp.moveaxis(jnp.concatenate([first, inside, last], axis=-1), -1, axis)


def backward_derivative(u: Float[Array, "..."], x: ArrayLike, *, axis: int = 0) -> Float[Array, "..."]:
    """The difference of each value and the one before, over their distance; that of the first two stands first too.

    In time this is the implicit Euler method's derivative. Arguments and errors as for `first_derivative`.
    """
    u, x = _along(u, x, axis, points=2)
    slopes = jnp.diff(u, axis=-1) / jnp.diff(x)
    return jnp.moveaxis(jnp.concatenate([slopes[..., :1], slopes], axis=-1), -1, axis)


def second_derivative(u: Float[Array, "..."], x: ArrayLike, *, axis: int = 0) -> Float[Array, "..."]:
    """The second derivative of `u` along an axis, from three neighbours inside and four points at the ends.

    Arguments and errors as for `first_derivative`.
    """
    u, x = _along(u, x, axis, points=4)
    left, middle, right = x[:-2], x[1:-1], x[2:]
    inside = _combine(u, (0, 1, 2), _weights((left, middle, right), middle, 2))
    first = _combine_ends(u, range(4), _weights(tuple(x[i] for i in range(4)), x[0], 2))
    last = _combine_ends(u, range(-4, 0), _weights(tuple(x[i] for i in range(-4, 0)), x[-1], 2))
    return jnp.moveaxis(jnp.concatenate([first, inside, last], axis=-1), -1, axis)


def periodic_first_derivative(u: Float[Array, "..."], spacing: ArrayLike, *, axis: int = 0) -> Float[Array, "..."]:
    """The first derivative of a periodic field on equally spaced points, by central differences."""
    return (jnp.roll(u, -1, axis) - jnp.roll(u, 1, axis)) / (2 * jnp.asarray(spacing, u.dtype))


def periodic_second_derivative(u: Float[Array, "..."], spacing: ArrayLike, *, axis: int = 0) -> Float[Array, "..."]:
    """The second derivative of a periodic field on equally spaced points, by central differences."""
    return (jnp.roll(u, -1, axis) - 2 * u + jnp.roll(u, 1, axis)) / jnp.asarray(spacing, u.dtype) ** 2


def _along(u: Array, x: ArrayLike, axis: int, points: int) -> tuple[Array, Array]:
    """`u` with the axis last, and the coordinates on it."""
    if not -u.ndim <= axis < u.ndim:
        raise ArgumentError("axis", f"is {axis}, but `u` has the shape {u.shape}.")
    n = u.shape[axis]
    if n < points:
        raise ArgumentError("u", f"has {n} points on axis {axis}; this derivative needs at least {points}.")
    x = jnp.asarray(x, u.dtype)
    if x.ndim == 0:
        x = x * np.arange(n)
    if x.shape != (n,):
        raise ArgumentError("x", f"must have the shape ({n},), as axis {axis} of `u`; it has {x.shape}.")
    return jnp.moveaxis(u, axis, -1), x


def _weights(nodes: tuple[Array, ...], at: Array, order: int) -> list[Array]:
    """The weights of a derivative at a point: those of the Lagrange polynomials of the nodes there.

    For k nodes these are sums of products of k - 1 - order distances; one formula for each of the cases needed.
    """
    weights = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        below = 1.0
        for other in others:
            below = below * (node - other)
        degree = len(others) - order  # of the derivative of the Lagrange polynomial
        above = 1.0 if degree == 0 else sum(at - other for other in others)
        weights.append(order * above / below)  # order! = order, for 1 and 2
    return weights


def _combine(u: Array, offsets, weights: list[Array]) -> Array:
    n = u.shape[-1] - len(weights) + 1
    return sum(w * u[..., k : k + n] for k, w in zip(offsets, weights, strict=True))  # pyright: ignore


def _combine_ends(u: Array, indices, weights: list[Array]) -> Array:
    return sum(w * u[..., i] for i, w in zip(indices, weights, strict=True))[..., None]  # pyright: ignore
