"""Operators on grids that multiply by a stencil: no matrix is stored, and vectors have the shape of the grid."""

import functools
import operator
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from ..core.errors import ArgumentError
from .sparse import SparseOperator, SparsePattern
from .tags import answer_by_tags

__all__ = ["StencilOperator"]

Offset = tuple[int, ...]


def _as_offsets(offsets: Any) -> tuple[Offset, ...]:
    return tuple(tuple(int(step) for step in offset) for offset in offsets)


class StencilOperator(lx.AbstractLinearOperator):
    """(A u)_i = sum_k c_k(i) u_(i + offset_k), where u is zero outside of the grid: a lineax operator.

    **Arguments:**

    - `coefficients`: a number for each offset, `(offsets,)`, or a field for each, `(offsets, *grid)`. They may be traced.
    - `offsets`: a whole number for each axis of the grid: `((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))`.
    - `grid`: the shape of the grid, which is that of the vectors.
    - `tags`: what lineax should know of the matrix. What links points of the grid to points outside of it does not count.

    `StencilOperator.laplacian` is that of -Laplace with zero on the boundary.

    Raises `ArgumentError`, naming the argument, for shapes that do not fit, and for offsets that occur twice.

    ```python
    import lineax as lx

    operator = om.linear.StencilOperator.laplacian((31, 31), 1 / 32)
    solver = om.linear.CG(1e-3, preconditioner=om.linear.Multigrid())
    lx.linear_solve(operator, jnp.ones((31, 31)), solver).stats["num_steps"]
    ```
    """

    coefficients: Inexact[Array, "offsets *grid"]
    offsets: tuple[Offset, ...] = eqx.field(static=True, converter=_as_offsets)
    grid: tuple[int, ...] = eqx.field(static=True, converter=tuple)
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, coefficients: Any, offsets: Any, grid: Iterable[int], tags: object | Iterable[object] = ()):
        self.coefficients = jnp.asarray(coefficients)
        if not jnp.issubdtype(self.coefficients.dtype, jnp.inexact):
            self.coefficients = self.coefficients.astype(jnp.result_type(float))
        self.offsets, self.grid = offsets, tuple(grid)
        self.tags = frozenset(tags) if isinstance(tags, Iterable) else frozenset([tags])

    def __check_init__(self):
        if not self.grid or any(not isinstance(n, int | np.integer) or n < 1 for n in self.grid):
            raise ArgumentError("grid", f"must be whole numbers above zero, not {self.grid}.")
        if any(len(offset) != len(self.grid) for offset in self.offsets) or not self.offsets:
            raise ArgumentError("offsets", f"must have {len(self.grid)} numbers each, not {self.offsets}.")
        if len(set(self.offsets)) < len(self.offsets):
            raise ArgumentError("offsets", f"must be different; they are {self.offsets}.")
        shapes = (len(self.offsets),), (len(self.offsets), *self.grid)
        if self.coefficients.shape not in shapes:
            raise ArgumentError("coefficients", f"must have the shape {shapes[0]} or {shapes[1]}, not {self.coefficients.shape}.")

    @staticmethod
    def laplacian(grid: Iterable[int], spacing: Any = 1.0) -> "StencilOperator":
        """-Laplace by second differences in two points on each axis; u = 0 on the boundary, one `spacing` beyond the outermost points.

        **Arguments:** `spacing`: the distance of points, one number or one for each axis.
        """
        grid = tuple(grid)
        links = 1 / jnp.broadcast_to(jnp.asarray(spacing, jnp.result_type(float)), (len(grid),)) ** 2
        offsets = [(0,) * len(grid)]
        for axis in range(len(grid)):
            offsets += [tuple(side if i == axis else 0 for i in range(len(grid))) for side in (-1, 1)]
        coefficients = jnp.concatenate([2 * jnp.sum(links)[None], -jnp.repeat(links, 2)])
        return StencilOperator(coefficients, offsets, grid, lx.positive_semidefinite_tag)

    @property
    def reach(self) -> int:
        """The largest step of an offset along an axis."""
        return max(abs(step) for offset in self.offsets for step in offset)

    def mv(self, vector: Inexact[Array, "*grid"]) -> Inexact[Array, "*grid"]:
        reach = self.reach
        padded = jnp.pad(vector, reach)
        at = lambda offset: padded[tuple(slice(reach + step, reach + step + n) for step, n in zip(offset, self.grid, strict=True))]
        terms = (c * at(offset) for c, offset in zip(self.coefficients, self.offsets, strict=True))
        return functools.reduce(operator.add, terms)

    def transpose(self) -> "StencilOperator":
        """The entry at i for i + offset becomes that at i + offset for i."""
        turned = [tuple(-step for step in offset) for offset in self.offsets]
        coefficients = self.coefficients
        if coefficients.ndim > 1:
            moved = [_shifted(c, offset) for c, offset in zip(coefficients, turned, strict=True)]
            coefficients = jnp.stack(moved)
        return StencilOperator(coefficients, turned, self.grid, lx.transpose_tags(self.tags))

    def as_matrix(self) -> Inexact[Array, "n n"]:
        return self.to_sparse().as_matrix()

    def to_sparse(self) -> SparseOperator:
        """The same as a `SparseOperator`, on vectors with one axis, in row-major order."""
        number = np.arange(int(np.prod(self.grid))).reshape(self.grid)
        rows, columns, data = [], [], []
        for c, offset in zip(self.coefficients, self.offsets, strict=True):
            inside = tuple(slice(max(0, -step), n - max(0, step)) for step, n in zip(offset, self.grid, strict=True))
            there = tuple(slice(max(0, step), n - max(0, -step)) for step, n in zip(offset, self.grid, strict=True))
            rows.append(number[inside].ravel())
            columns.append(number[there].ravel())
            data.append(jnp.broadcast_to(c, self.grid)[inside].ravel())
        pattern = SparsePattern.of(np.concatenate(rows), np.concatenate(columns), (number.size, number.size))
        return SparseOperator(jnp.concatenate(data), pattern, self.tags)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.grid, self.coefficients.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


def _shifted(field: Array, offset: Offset) -> Array:
    """The field at i + offset, zero outside of the grid."""
    reach = max(abs(step) for step in offset)
    padded = jnp.pad(field, reach)
    return padded[tuple(slice(reach + step, reach + step + n) for step, n in zip(offset, field.shape, strict=True))]


answer_by_tags(StencilOperator, lambda stencil: stencil.tags)


@lx.linearise.register(StencilOperator)
@lx.materialise.register(StencilOperator)
def _(stencil):
    return stencil


@lx.diagonal.register(StencilOperator)
def _(stencil):
    centre = (0,) * len(stencil.grid)
    if centre not in stencil.offsets:
        return jnp.zeros((int(np.prod(stencil.grid)),), stencil.coefficients.dtype)
    return jnp.broadcast_to(stencil.coefficients[stencil.offsets.index(centre)], stencil.grid).ravel()


@lx.conj.register(StencilOperator)
def _(stencil):
    return eqx.tree_at(lambda o: o.coefficients, stencil, jnp.conj(stencil.coefficients))
