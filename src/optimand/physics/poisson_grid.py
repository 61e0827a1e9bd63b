r"""Poisson's equation for the pressure on a grid of fluid, solid and air cells.

For a fluid cell, with the neighbours that share a face with it,

$$(A u)_i = (\text{neighbours that are not solid}) \, u_i - \sum_{j \text{ fluid}} u_j,$$

\(h^2\) times minus the Laplacian: no flux into solid cells (Neumann), zero in air cells (Dirichlet). Rows and columns of all other cells are zero. What pressure
projections of fluids solve (Bridson 2015, chapter 5).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.ndimage
from equinox import field
from jaxtyping import Array, Bool, Inexact, Int

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from ..linear import SparseOperator, StencilOperator
from ..linear.tags import answer_by_tags
from .obstacles import need_grid

__all__ = ["PoissonGrid"]


class PoissonGrid(lx.AbstractLinearOperator):
    """The Laplacian with obstacles, as a lineax operator without a matrix; symmetric and positive semidefinite.

    ```python
    import lineax as lx

    grid = om.physics.PoissonGrid((32, 32), solid=om.physics.ball_mask((32, 32), 0.2))
    b = jnp.where(grid.fluid, 1.0, 0.0).ravel()
    pressure = grid.field(lx.linear_solve(grid, b, om.linear.CG(1e-5)).value)
    ```

    **Arguments:**

    - `shape`: of the grid, in two or three dimensions. Vectors have `prod(shape)` entries, the last axis fastest.
    - `solid`, `air`: masks of that shape, none by default; what is both is solid. They may be traced.
    - `boundary`: what is outside of the grid: `"air"`, or `"solid"`.
    - `dtype`: of the vectors.

    Solvers by products take it as it is: right-hand sides that are zero in all but fluid cells lie in its range, unless a part of the fluid is enclosed by solid
    cells. There the mean must be zero as well, and the answer is known up to a constant: `without_mean` takes it out of each such part, `check` names what does not
    fit. `to_stencil` and `to_sparse` are for what needs a matrix.

    **Raises:** `ArgumentError`, naming the argument, for masks that are not boolean or of another shape, and an unknown boundary.
    """

    reference: ClassVar[str] = "bridson2015fluid"

    solid: Bool[Array, "*grid"]
    air: Bool[Array, "*grid"]
    degree: Int[Array, "*grid"]
    """The neighbours of each fluid cell that are not solid; zero in other cells."""
    enclosed: Int[Array, "*grid"] | None
    """The number of the enclosed part of the fluid a cell is in, from 1; 0 in all others. None where the masks are traced."""
    enclosed_parts: int = field(static=True)
    shape: tuple[int, ...] = field(static=True)
    boundary: str = field(static=True)
    dtype: Any = field(static=True)

    def __init__(self, shape: Sequence[int], solid: Any = None, air: Any = None, boundary: str = "air", *, dtype: Any = None):
        self.shape = need_grid(shape)
        if boundary not in ("air", "solid"):
            raise ArgumentError("boundary", f"must be 'air' or 'solid', not {boundary!r}.")
        self.boundary = boundary
        self.dtype = jnp.zeros((), jnp.result_type(float) if dtype is None else dtype).dtype
        if not jnp.issubdtype(self.dtype, jnp.inexact):
            raise ArgumentError("dtype", f"must be that of real or complex numbers, not {self.dtype}.")
        self.solid = _mask("solid", solid, self.shape)
        self.air = _mask("air", air, self.shape) & ~self.solid
        open_to = sum(_neighbours(~self.solid, outside=boundary == "air"), start=jnp.zeros(self.shape, jnp.int8))
        self.degree = jnp.where(self.fluid, open_to, 0).astype(jnp.int8)
        self.enclosed, self.enclosed_parts = None, 0
        if not (is_tracer(self.solid) or is_tracer(self.air)):
            enclosed, self.enclosed_parts = _enclosed(np.asarray(self.fluid), np.asarray(self.air), boundary)
            self.enclosed = jnp.asarray(enclosed)

    @property
    def fluid(self) -> Bool[Array, "*grid"]:
        """The cells that are unknowns."""
        return ~(self.solid | self.air)

    def field(self, vector: Inexact[Array, "*batch n"]) -> Inexact[Array, "..."]:
        """A vector on its grid."""
        return jnp.reshape(vector, (*vector.shape[:-1], *self.shape))

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        u = jnp.where(self.fluid, vector.reshape(self.shape), 0)
        around = sum(_neighbours(u, outside=0), start=jnp.zeros_like(u))
        return jnp.where(self.fluid, self.degree * u - around, 0).ravel()

    def transpose(self) -> "PoissonGrid":
        return self

    def as_matrix(self) -> Inexact[Array, "n n"]:
        return self.to_sparse(0.0).as_matrix()

    def to_stencil(self, others: float = 1.0) -> StencilOperator:
        """The same for vectors of the shape of the grid, as `om.linear.Multigrid` takes it.

        **Arguments:** `others`: the diagonal of cells that are not fluid. One makes the matrix invertible, unless a part is enclosed, and the solution is the same as long
        as the right-hand side is zero there; zero is this operator.
        """
        axes = len(self.shape)
        offsets, links = [(0,) * axes], []
        both = _neighbours(self.fluid, outside=False)
        for number, there in enumerate(both):
            offsets.append(tuple((-1, 1)[number % 2] if axis == number // 2 else 0 for axis in range(axes)))
            links.append(jnp.where(self.fluid & there, -1, 0))
        centre = jnp.where(self.fluid, self.degree, others)
        coefficients = jnp.stack([centre.astype(self.dtype), *[link.astype(self.dtype) for link in links]])
        return StencilOperator(coefficients, offsets, self.shape, self.tags)

    def to_sparse(self, others: float = 1.0) -> SparseOperator:
        """The same as a sparse matrix, for direct solvers and preconditioners; `others` as for `to_stencil`.

        The pattern is that of the grid, whatever the obstacles: links that they cut are entries that are zero.
        """
        return self.to_stencil(others).to_sparse()

    def without_mean(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """The vector less its mean over each enclosed part of the fluid: the orthogonal projection onto the range, for a vector that is zero in other cells.

        **Raises:** `ArgumentError` where the masks were traced, for then the parts are not known.
        """
        return vector - self._means(vector)[self._parts().ravel()]

    def check(self, b: Inexact[Array, " n"]) -> None:
        """Raise `ArgumentError` for a right-hand side without a solution; outside `jit`.

        For a vector of another size, one that is not zero in a solid or air cell (which is named), and one whose mean over an enclosed part of the fluid is not zero, to
        the root of a rounding of its largest entry there; the mean is named.
        """
        values = np.asarray(b)
        if values.shape != (self.solid.size,):
            raise ArgumentError("b", f"must have {self.solid.size} entries, one for each cell, not the shape {values.shape}.")
        for kind, mask in (("a solid", self.solid), ("an air", self.air)):
            wrong = np.flatnonzero(np.asarray(mask).ravel() & (values != 0))
            if wrong.size:
                cell = tuple(int(i) for i in np.unravel_index(wrong[0], self.shape))
                raise ArgumentError("b", f"is {values[wrong[0]]:.6g} in cell {cell}, {kind} cell.", "It must be zero where there is no fluid.")
        parts, means = np.asarray(self._parts()).ravel(), np.asarray(self._means(jnp.asarray(b)))
        for part in range(1, self.enclosed_parts + 1):
            inside = np.abs(values[parts == part])
            if not abs(means[part]) <= np.sqrt(np.finfo(values.dtype).eps) * inside.max():
                place = tuple(int(i) for i in np.unravel_index(np.argmax(parts == part), self.shape))
                where = f"the {inside.size} fluid cells around {place}, which no air cell touches"
                raise ArgumentError("b", f"has the mean {means[part]:.6g} over {where}; it must be zero there.", "Take grid.without_mean(b).")

    def _parts(self) -> Array:
        if self.enclosed is None:
            raise ArgumentError("solid", "was traced, so the enclosed parts of the fluid are not known.", "Make the PoissonGrid outside of jit.")
        return self.enclosed

    def _means(self, vector: Array) -> Array:
        """Over each enclosed part; zero for number 0."""
        parts, count = self._parts().ravel(), self.enclosed_parts + 1
        total = jax.ops.segment_sum(vector, parts, count)
        cells = jax.ops.segment_sum(jnp.ones(parts.shape, vector.dtype), parts, count)
        return jnp.where(jnp.arange(count) > 0, total / jnp.maximum(cells, 1), 0)

    @property
    def tags(self) -> frozenset[object]:
        """What lineax may know."""
        return frozenset([lx.symmetric_tag, lx.positive_semidefinite_tag])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.solid.size,), self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


def _mask(name: str, mask: Any, shape: tuple[int, ...]) -> Array:
    if mask is None:
        return jnp.zeros(shape, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise ArgumentError(name, f"must be a boolean mask, not {mask.dtype}.")
    if mask.shape != shape:
        raise ArgumentError(name, f"must have the shape of the grid, {shape}, not {mask.shape}.")
    return mask


def _neighbours(u: Array, outside: Any) -> list[Array]:
    """The values in the neighbouring cells: those below and above along each axis, `outside` beyond the grid."""
    found = []
    for axis, n in enumerate(u.shape):
        padded = jnp.pad(u, [(1, 1) if i == axis else (0, 0) for i in range(u.ndim)], constant_values=outside)
        found += [jax.lax.slice_in_dim(padded, start, start + n, axis=axis) for start in (0, 2)]
    return found


def _enclosed(fluid: np.ndarray, air: np.ndarray, boundary: str) -> tuple[np.ndarray, int]:
    """Connected parts of the fluid that touch no air, numbered from 1, and how many there are."""
    labels, count = cast(tuple[np.ndarray, int], scipy.ndimage.label(fluid))
    touched = np.zeros(count + 1, bool)
    touched[0] = True  # no fluid
    outside = np.pad(air, 1, constant_values=boundary == "air")
    near: np.ndarray = scipy.ndimage.binary_dilation(outside)  # pyright: ignore[reportAssignmentType]
    near = near[(slice(1, -1),) * fluid.ndim]
    touched[labels[near]] = True
    number = np.where(touched, 0, np.cumsum(~touched))
    return number[labels].astype(np.int32), int(number.max())


answer_by_tags(PoissonGrid, lambda grid: grid.tags)


@lx.linearise.register(PoissonGrid)
@lx.materialise.register(PoissonGrid)
@lx.conj.register(PoissonGrid)
def _(grid):
    return grid


@lx.diagonal.register(PoissonGrid)
def _(grid):
    return grid.degree.ravel().astype(grid.dtype)
