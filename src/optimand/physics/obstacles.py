"""Obstacles on grids of square cells, as masks: true in the cells whose centre the obstacle holds.

Lengths are in units of the first axis: cell i of an axis of the grid has its centre at (i + 1/2) h, h = 1 / shape[0]. Times and places may be traced, so a
mask may move.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ..core.errors import ArgumentError

__all__ = ["ball_mask", "bars_mask", "box_mask", "cell_centres", "need_grid"]


def need_grid(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a grid in two or three dimensions; raises `ArgumentError` for another."""
    shape = tuple(shape)
    if len(shape) not in (2, 3) or any(not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise ArgumentError("shape", f"must be two or three whole numbers above zero, not {shape}.")
    return tuple(int(n) for n in shape)


def cell_centres(shape: Sequence[int]) -> Float[Array, "*grid axes"]:
    """Where the centres of the cells are."""
    shape = need_grid(shape)
    lines = [(jnp.arange(n) + 0.5) / shape[0] for n in shape]
    return jnp.stack(jnp.meshgrid(*lines, indexing="ij"), -1)


def _centre(shape: tuple[int, ...], centre: Any) -> Array:
    place = jnp.asarray(shape) / (2 * shape[0]) if centre is None else jnp.asarray(centre)
    if place.shape != (len(shape),):
        raise ArgumentError("centre", f"must be {len(shape)} numbers, not of shape {place.shape}.")
    return place


def ball_mask(shape: Sequence[int], radius: ArrayLike, centre: Any = None) -> Bool[Array, "*grid"]:
    """A disk, or a sphere in three dimensions; in the middle of the grid by default.

    ```python
    om.physics.ball_mask((32, 32), 0.2).sum()
    ```
    """
    shape = need_grid(shape)
    return jnp.sum((cell_centres(shape) - _centre(shape, centre)) ** 2, -1) < jnp.asarray(radius) ** 2


def box_mask(shape: Sequence[int], sides: Any, centre: Any = None, *, angle: ArrayLike = 0.0) -> Bool[Array, "*grid"]:
    """A box of these side lengths, one for each axis, turned about its centre by an angle (radian) from the first axis to the second."""
    shape = need_grid(shape)
    sides = jnp.asarray(sides)
    if sides.shape != (len(shape),):
        raise ArgumentError("sides", f"must be {len(shape)} numbers, not of shape {sides.shape}.")
    away = cell_centres(shape) - _centre(shape, centre)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    along = [cosine * away[..., 0] + sine * away[..., 1], cosine * away[..., 1] - sine * away[..., 0], *jnp.moveaxis(away[..., 2:], -1, 0)]
    return jnp.all(jnp.abs(jnp.stack(along, -1)) < sides / 2, -1)


def bars_mask(shape: Sequence[int], count: int = 2, *, length: float = 0.5, thickness: float = 0.08) -> Bool[Array, "*grid"]:
    """Level bars at equal distances of height (the last axis), that begin in turns at the lower and the upper end of the first axis.

    In three dimensions they span the second axis.

    **Raises:** `ArgumentError` for a count below one.
    """
    shape = need_grid(shape)
    if not isinstance(count, int) or count < 1:
        raise ArgumentError("count", f"must be a whole number above zero, not {count!r}.")
    x, height = (cell_centres(shape)[..., axis] for axis in (0, -1))
    top = shape[-1] / shape[0]
    bars = jnp.zeros(shape, bool)
    for number in range(count):
        at = top * (number + 1) / (count + 1)
        reached = x < length if number % 2 == 0 else x > 1 - length
        bars = bars | (reached & (jnp.abs(height - at) < thickness / 2))
    return bars
