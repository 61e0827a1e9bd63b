"""Routers: which points belong to which expert, and whose weights make the field where."""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.errors import ArgumentError

__all__ = ["ExpertGrid", "RandomExperts", "Router"]


class Router(eqx.Module):
    """How a grid is divided among experts. Abstract: `ExpertGrid`, `RandomExperts`."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """The number of experts, K."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an `ArgumentError` for a grid that cannot be divided so."""

    @abc.abstractmethod
    def split(self, values: Any, dimensions: int) -> Any:
        """Values on the grid (*grid, ...) as (K, points of one expert, ...); `dimensions` is the number of grid axes."""

    @abc.abstractmethod
    def combine(self, basis: Float[Array, "..."], weights: Float[Array, "experts unknowns"]) -> Float[Array, "..."]:
        """The combined field (*grid) of a basis (*grid, N) with weights (K, N)."""


class ExpertGrid(Router):
    """Equal boxes in time and space: (Kt, Kx[, Ky]) along the axes of the grid. Ones give a single global constraint.

    Each expert k has its own N weights. The field is chosen piecewise, u(x) = b(x) . w_k for x in box k: it is not
    averaged and not gated, the basis is shared, and there are K N unknowns in all. (The sum over experts in the paper's
    figure means this selection.)
    """

    parts: tuple[int, ...] = eqx.field(static=True, converter=tuple)

    def __check_init__(self):
        bad = not self.parts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in self.parts)
        if bad:
            raise ArgumentError("experts", f"needs a positive whole number for each axis, not {self.parts!r}.")

    @property
    def count(self) -> int:
        return math.prod(self.parts)

    def check(self, shape: tuple[int, ...]) -> None:
        if len(self.parts) != len(shape):
            raise ArgumentError("experts", f"divides {len(self.parts)} axes, but the grid has {len(shape)}: {shape}.")
        for axis, (size, parts) in enumerate(zip(shape, self.parts, strict=True)):
            if size % parts:
                valid = [n for n in range(1, size + 1) if size % n == 0]
                below = max(n for n in valid if n < parts)
                above = min((n for n in valid if n > parts), default=below)
                raise ArgumentError(
                    "experts",
                    f"asks for {parts} parts along axis {axis} ({'txyz'[axis] if axis < 4 else axis}), which has {size} "
                    f"points: not a whole number each.",
                    f"Nearest valid counts: {below} and {above}.",
                )

    def split(self, values: Any, dimensions: int) -> Any:
        shape, rest = values.shape[:dimensions], values.shape[dimensions:]
        interleaved = [n for size, parts in zip(shape, self.parts, strict=True) for n in (parts, size // parts)]
        outer, inner = list(range(0, 2 * dimensions, 2)), list(range(1, 2 * dimensions, 2))
        tail = list(range(2 * dimensions, 2 * dimensions + len(rest)))
        boxes = values.reshape(*interleaved, *rest).transpose(*outer, *inner, *tail)
        return boxes.reshape(self.count, -1, *rest)

    def join(self, boxes: Any, shape: tuple[int, ...]) -> Any:
        """The inverse of `split`, for a grid of this shape."""
        rest, dimensions = boxes.shape[2:], len(shape)
        sizes = [size // parts for size, parts in zip(shape, self.parts, strict=True)]
        blocks = boxes.reshape(*self.parts, *sizes, *rest)
        order = [axis for i in range(dimensions) for axis in (i, dimensions + i)]
        tail = list(range(2 * dimensions, 2 * dimensions + len(rest)))
        return blocks.transpose(*order, *tail).reshape(*shape, *rest)

    def combine(self, basis: Float[Array, "..."], weights: Float[Array, "experts unknowns"]) -> Float[Array, "..."]:
        shape = basis.shape[:-1]
        boxes = self.split(basis, len(shape))
        return self.join(jnp.einsum("kmn,kn->km", boxes, weights), shape)


class RandomExperts(Router):
    """Points dealt to the experts at random, each point to one: the ablation of what boxes are good for.

    A point that was not dealt has no expert of its own, so the field is made with the mean of the weights.

    **Arguments:** `number` of experts (must divide the number of points); `seed` of the deal, the same in every step.
    """

    number: int = eqx.field(static=True)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        if isinstance(self.number, bool) or not isinstance(self.number, int) or self.number < 1:
            raise ArgumentError("number", f"must be a positive whole number of experts, not {self.number!r}.")

    @property
    def count(self) -> int:
        return self.number

    def check(self, shape: tuple[int, ...]) -> None:
        size = math.prod(shape)
        if size % self.number:
            valid = [n for n in range(1, size + 1) if size % n == 0]
            nearest = sorted(valid, key=lambda n: abs(n - self.number))[:2]
            raise ArgumentError(
                "experts",
                f"asks for {self.number} experts on {size} points: not a whole number each.",
                f"Nearest valid counts: {nearest[0]} and {nearest[1]}.",
            )

    def split(self, values: Any, dimensions: int) -> Any:
        size = math.prod(values.shape[:dimensions])
        deal = np.random.default_rng(self.seed).permutation(size)
        rest = values.shape[dimensions:]
        return values.reshape(size, *rest)[deal].reshape(self.number, size // self.number, *rest)

    def combine(self, basis: Float[Array, "..."], weights: Float[Array, "experts unknowns"]) -> Float[Array, "..."]:
        return basis @ jnp.mean(weights, axis=0)
