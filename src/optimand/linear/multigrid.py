r"""Geometric multigrid as a preconditioner for stencils.

A coarser grid has every second point of each axis. What is interpolated to the finer one, linearly along each axis, is P; the operator on the coarser
grid is \(P^\top A P\) (Galerkin), again a stencil of nearest neighbours, whatever the coefficients are. Its coefficients are read off from products
with combs, vectors with ones at every third point: \(3^d\) products a level. On each level errors are smoothed by a few steps of Chebyshev's
iteration on \(D^{-1} A\), over the upper part of its spectrum (Adams, Brezina, Hu and Tuminaro 2003); on the coarsest one the matrix is inverted.
A V-cycle from zero is a symmetric and positive definite operator if A is one, with a condition number that does not depend on the grid
(Trottenberg, Oosterlee and Schüller 2001, chapters 2 and 7).
"""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from ..core.dense import cholesky, cholesky_solve
from ..core.errors import ArgumentError
from .preconditioners import Preconditioner
from .stencil import StencilOperator
from .tags import answer_by_tags

__all__ = ["Multigrid", "interpolated", "restricted"]


class Multigrid(Preconditioner):
    """A V-cycle of geometric multigrid, for symmetric stencils of nearest neighbours in any number of dimensions.

    The preconditioner for elliptic equations on grids: `CG` needs some ten steps, however many points there are.

    **Arguments:**

    - `smoothing`: steps of Chebyshev's iteration before and after the coarser grid.
    - `lowest`: the part of the spectrum that they leave to the coarser grid: they damp from `lowest` times its upper end on.
    - `coarsest`: points from which on the matrix is inverted.

    For a `StencilOperator` that is tagged as positive semidefinite. Raises `ArgumentError`, naming the argument, for another operator, for a stencil that
    reaches further than the next point, and for a number out of its range.
    """

    reference: ClassVar[str] = "trottenberg2001multigrid"

    smoothing: int = eqx.field(static=True, default=2)
    lowest: float = eqx.field(static=True, default=0.25)
    coarsest: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        for name in ("smoothing", "coarsest"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(name, f"must be a whole number above zero, not {value!r}.")
        if not 0 < self.lowest < 1:
            raise ArgumentError("lowest", f"must be between 0 and 1, not {self.lowest!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        if not isinstance(operator, StencilOperator):
            raise ArgumentError("operator", f"must be a StencilOperator for Multigrid, not a {type(operator).__name__}.")
        if operator.reach > 1:
            raise ArgumentError("operator", f"reaches {operator.reach} points; Multigrid takes stencils of nearest neighbours.")
        if not lx.is_positive_semidefinite(operator):
            raise ArgumentError("operator", "must be tagged as positive semidefinite for Multigrid.", "lineax.positive_semidefinite_tag")
        levels, at = [], operator
        while np.prod(at.grid) > self.coarsest and max(at.grid) > 2:
            diagonal = jnp.reshape(lx.diagonal(at), at.grid)
            levels.append(_Level(at, 1 / diagonal, _gershgorin(at, diagonal)))
            at = _coarser(at)
        return _VCycle(tuple(levels), cholesky(at.as_matrix()), operator.grid, self.smoothing, self.lowest)


def _halved(n: int) -> int:
    """Points of an axis with n on the coarser grid: numbers 1, 3, 5, ...; an axis of two points or one is left as it is."""
    return n // 2 if n > 2 else n


def interpolated(u: Inexact[Array, "*coarse"], grid: tuple[int, ...]) -> Inexact[Array, "*grid"]:
    """From the coarser grid to this one: its points keep their values, those between have the mean of their neighbours, of which zero lies outside."""
    for axis, n in enumerate(grid):
        m = u.shape[axis]
        if m == n:
            continue
        along = lambda start, stop, v, axis=axis: jax.lax.slice_in_dim(v, start, stop, axis=axis)
        padded = jnp.pad(u, [(1, 1) if i == axis else (0, 0) for i in range(u.ndim)])
        between = (along(0, m + 1, padded) + along(1, m + 2, padded)) / 2
        pairs = jnp.stack([between, along(1, m + 2, padded)], axis + 1)
        u = along(0, n, pairs.reshape(*u.shape[:axis], 2 * (m + 1), *u.shape[axis + 1 :]))
    return u


def restricted(r: Inexact[Array, "*grid"]) -> Inexact[Array, "*coarse"]:
    """The transpose of `interpolated`."""
    for axis, n in enumerate(r.shape):
        if _halved(n) == n:
            continue
        m = n // 2
        padded = jnp.pad(r, [(0, 1 - n % 2) if i == axis else (0, 0) for i in range(r.ndim)])  # an even axis lacks the point beyond its last one
        at = lambda start, axis=axis, m=m, padded=padded: jax.lax.slice_in_dim(padded, start, start + 2 * m - 1, 2, axis)
        r = at(1) + (at(0) + at(2)) / 2
    return r


def _coarser(operator: StencilOperator) -> StencilOperator:
    """P' A P, read off from its products with combs."""
    grid = tuple(_halved(n) for n in operator.grid)
    offsets = list(itertools.product((-1, 0, 1), repeat=len(grid)))
    colours = jnp.asarray(offsets) + 1
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(n) % 3 for n in grid], indexing="ij"))

    def product(colour):
        comb = jnp.all(places == colour.reshape(-1, *[1] * len(grid)), axis=0).astype(operator.coefficients.dtype)
        return restricted(operator.mv(interpolated(comb, operator.grid)))

    products = jax.lax.map(product, colours)
    weights = 3 ** jnp.arange(len(grid))[::-1]
    coefficients = []
    for offset in offsets:  # at each point, the comb that the neighbour belongs to
        neighbour = (places + jnp.asarray(offset).reshape(-1, *[1] * len(grid))) % 3
        number = jnp.tensordot(weights, neighbour, 1)
        coefficients.append(jnp.take_along_axis(products, number[None], axis=0)[0])
    return StencilOperator(jnp.stack(coefficients), offsets, grid, operator.tags)


class _Level(eqx.Module):
    """An operator, the inverse of its diagonal, and a bound of the spectrum of their product."""

    operator: StencilOperator
    inverse: Inexact[Array, "*grid"]
    largest: Inexact[Array, ""]


def _gershgorin(operator: StencilOperator, diagonal: Array) -> Array:
    """The largest row sum of |D^-1 A|."""
    sizes = StencilOperator(jnp.abs(operator.coefficients), operator.offsets, operator.grid)
    return jnp.max(sizes.mv(jnp.ones_like(diagonal)) / jnp.abs(diagonal))


class _VCycle(lx.AbstractLinearOperator):
    """One V-cycle from zero."""

    levels: tuple[_Level, ...]
    factor: Inexact[Array, "n n"]  # of the matrix on the coarsest grid
    grid: tuple[int, ...] = eqx.field(static=True)
    smoothing: int = eqx.field(static=True)
    lowest: float = eqx.field(static=True)

    def mv(self, vector: Array) -> Array:
        return self._cycle(0, vector)

    def _cycle(self, number: int, b: Array) -> Array:
        if number == len(self.levels):
            return cholesky_solve(self.factor, b.ravel()).reshape(b.shape)
        level = self.levels[number]
        x = self._smooth(level, jnp.zeros_like(b), b, b)
        coarse = self._cycle(number + 1, restricted(b - level.operator.mv(x)))
        x = x + interpolated(coarse, level.operator.grid)
        return self._smooth(level, x, b, b - level.operator.mv(x))

    def _smooth(self, level: _Level, x: Array, b: Array, residual: Array) -> Array:
        """Chebyshev's iteration on D^-1 A (Saad 2003, algorithm 12.1); `residual` is b - A x."""
        middle, half = level.largest * (1 + self.lowest) / 2, level.largest * (1 - self.lowest) / 2
        sigma = middle / half
        rho = 1 / sigma
        move = level.inverse * residual / middle
        for _ in range(self.smoothing - 1):
            x = x + move
            following = 1 / (2 * sigma - rho)
            residual = b - level.operator.mv(x)
            move = following * rho * move + 2 * following / half * (level.inverse * residual)
            rho = following
        return x + move

    def as_matrix(self) -> Inexact[Array, "n n"]:
        shape = self.in_structure()
        unit = jnp.eye(int(np.prod(shape.shape)), dtype=shape.dtype).reshape(-1, *shape.shape)
        return jax.lax.map(self.mv, unit).reshape(len(unit), -1).T

    def transpose(self) -> "_VCycle":
        return self  # the same smoothing before and after the coarser grid

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.grid, self.factor.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_VCycle, lambda _: frozenset([lx.positive_semidefinite_tag]))


@lx.linearise.register(_VCycle)
@lx.materialise.register(_VCycle)
@lx.conj.register(_VCycle)
def _(operator):
    return operator
