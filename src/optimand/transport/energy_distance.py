r"""The energy distance between two sets of points (Székely and Rizzo 2013): zero, in expectation, if and only if they come from one distribution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.errors import ArgumentError
from .costs import as_floats

__all__ = ["energy_distance"]


def energy_distance(x: Any, y: Any, block: int = 512) -> Float[Array, ""]:
    """E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2, estimated without bias from points in rows (n, d) and (m, d).

    So many rows are compared with all others at once. Half of what some call the energy distance. Raises `ArgumentError` for points that
    differ in dimension, and for fewer than two.
    """
    x, y = (as_floats(name, points) for name, points in (("x", x), ("y", y)))
    for name, points in (("x", x), ("y", y)):
        if points.ndim != 2 or points.shape[0] < 2:
            raise ArgumentError(name, f"must be two or more points in rows (n, d), not an array of shape {points.shape}.")
    if x.shape[1] != y.shape[1]:
        raise ArgumentError("y", f"has points of dimension {y.shape[1]}; those of x have {x.shape[1]}.")
    n, m = x.shape[0], y.shape[0]
    middle = jnp.mean(x, 0)
    x, y = x - middle, y - middle  # the less the length of points exceeds their distance, the less is lost below
    between = _sum_of_distances(x, y, False, block) / (n * m)
    within = [_sum_of_distances(points, points, True, block) / (2 * count * (count - 1)) for points, count in ((x, n), (y, m))]
    return between - within[0] - within[1]


@functools.partial(jax.jit, static_argnums=(2, 3))  # compiled once for arrays of one shape
def _sum_of_distances(x: Array, y: Array, same: bool, block: int) -> Array:
    lengths = jnp.sum(y**2, -1)

    def of_row(row_and_number):
        row, number = row_and_number
        squares = jnp.maximum(jnp.sum(row**2) + lengths - 2 * (y @ row), 0)
        squares = jnp.where(same & (jnp.arange(y.shape[0]) == number), 0, squares)
        return jnp.sum(jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0))

    rows = jax.lax.map(of_row, (x, jnp.arange(x.shape[0])), batch_size=block)
    return jnp.sum(rows)
