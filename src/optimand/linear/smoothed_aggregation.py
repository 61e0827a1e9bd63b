r"""Algebraic multigrid by smoothed aggregation, a preconditioner for sparse matrices without a grid.

Coarser levels are made from the matrix alone: unknowns that are strongly coupled are put together, and what smoothing cannot reduce, the
candidates B, is
represented exactly on the aggregates and then smoothed itself (Vanek, Mandel and Brezina 1996; see `aggregation`). That is done on the
host. A cycle runs in JAX:
errors are smoothed on each level, by Chebyshev's iteration on \(D^{-1} A\) (Adams, Brezina, Hu and Tuminaro 2003) or by that of Jacobi, the
same before the
coarser level and after it, so that a cycle from zero is a symmetric operator.
"""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..core.host import call_on_host
from ..core.tracing import is_tracer
from .aggregation import Candidates, Levels, Recipe, levels_of
from .preconditioners import Preconditioner, as_sparse
from .row_groups import Csr, Layout, Rows, layout_of
from .sparse import Places, SparseOperator
from .tags import answer_by_tags

__all__ = ["SmoothedAggregation", "rigid_body_modes"]


def _as_candidates(candidates: Any) -> Candidates | None:
    return candidates if candidates is None or isinstance(candidates, Candidates) else Candidates(candidates)


class SmoothedAggregation(Preconditioner):
    """A cycle of algebraic multigrid by smoothed aggregation, for positive definite matrices of elliptic equations on any mesh.

    With it `CG` needs a number of steps that hardly grows with the number of unknowns. On a grid, `Multigrid` is the faster one.

    **Arguments:**

    - `strength`: of couplings, theta: unknowns are put together where the square of their entry is above theta^2 times those of the
      diagonal. At 0 all couplings
      count, and what belongs together depends on the places of the entries only; from 0.02 (coefficients that jump) to 0.1 (a direction
      that is much stronger than the other) the levels follow the strong ones. Couplings of equal size to
      k neighbours are not strong any more from 1 / k on.
    - `smoothing`: steps before and after the coarser level.
    - `smoother`: `"chebyshev"` or `"jacobi"`.
    - `cycle`: `"V"`, or `"W"`, which visits each coarser level twice.
    - `candidates`: vectors that the matrix takes to nearly zero, as the columns of an array; constants by default. For elasticity
      `rigid_body_modes`.
    - `block`: unknowns of a point, which stand next to each other, and stay together.
    - `coarsest`: unknowns from which on the matrix is inverted.
    - `lowest`: the part of the spectrum that Chebyshev's iteration leaves to the coarser level.

    For a real `SparseOperator` that is tagged as positive semidefinite. With a strength above 0 the entries must be known, and inside of
    `lineax.linear_solve` they are not:
    make it before, `preconditioner=SmoothedAggregation(0.1).of(operator)`. What is made so serves other matrices that are close to this
    one, too: a
    time step, an optimisation, a derivative.

    Raises `ArgumentError`, naming the argument, for another operator, for a number out of its range, for candidates that do not fit, and
    for a matrix
    whose entries are known and which is not positive semidefinite as far as the levels show it; where they are traced, what it is applied
    to becomes not a number.

    ```python
    import lineax as lx
    import scipy.sparse

    matrix = scipy.sparse.diags_array([-1.0, 2.1, -1.0], offsets=[-1, 0, 1], shape=(1000, 1000))
    operator = om.linear.SparseOperator.from_scipy(matrix, tags=lx.positive_semidefinite_tag)
    cycle = om.linear.SmoothedAggregation().of(operator)
    lx.linear_solve(operator, jnp.ones(1000), om.linear.CG(1e-4, preconditioner=cycle)).stats["num_steps"]
    ```
    """

    reference: ClassVar[str] = "vanek1996algebraic"

    strength: float = eqx.field(static=True, default=0.0)
    smoothing: int = eqx.field(static=True, default=2)
    smoother: str = eqx.field(static=True, default="chebyshev")
    cycle: str = eqx.field(static=True, default="V")
    candidates: Any = eqx.field(static=True, default=None, converter=_as_candidates)
    block: int = eqx.field(static=True, default=1)
    coarsest: int = eqx.field(static=True, default=300)
    lowest: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        for name in ("smoothing", "block", "coarsest"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(name, f"must be a whole number above zero, not {value!r}.")
        for name, known in (("smoother", ("chebyshev", "jacobi")), ("cycle", ("V", "W"))):
            if getattr(self, name) not in known:
                raise ArgumentError(name, f"must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if not 0 <= self.strength < 1:
            raise ArgumentError("strength", f"must be a number from 0 to below 1, not {self.strength!r}.")
        if not 0 < self.lowest < 1:
            raise ArgumentError("lowest", f"must be between 0 and 1, not {self.lowest!r}.")
        if self.candidates is not None and (self.candidates.vectors.ndim != 2 or not np.isfinite(self.candidates.vectors).all()):
            shape = self.candidates.vectors.shape
            raise ArgumentError("candidates", f"must be finite numbers, a column for each vector, not of shape {shape} or with numbers that are not finite.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = self._checked(operator)
        recipe = Recipe(float(self.strength), self.block, self.coarsest, self.candidates)
        if is_tracer(operator.data):
            if self.strength > 0:
                hint = "Make the preconditioner before: preconditioner=SmoothedAggregation(...).of(operator)."
                raise ArgumentError("operator", "is traced, but which couplings are strong depends on its entries.", hint)
            levels, inverse = _made_in_trace(operator, recipe)
        else:
            data = np.asarray(operator.data)
            if not np.isfinite(data).all():
                raise ArgumentError("operator", f"holds a number that is not finite, entry {int(np.argmin(np.isfinite(data)))} of its data.")
            made = levels_of(_matrix(data, operator.pattern.places, operator.shape[0]), recipe)
            if made.flaw:
                raise ArgumentError("operator", f"must be positive semidefinite for SmoothedAggregation, but {made.flaw}.")
            levels, inverse = jax.device_put(_arrays(made, _layouts(made)))
        return _Cycle(levels, inverse, self.smoothing, self.smoother, 2 if self.cycle == "W" else 1, self.lowest)

    def _checked(self, operator: lx.AbstractLinearOperator) -> SparseOperator:
        operator = as_sparse(operator, "SmoothedAggregation")
        if jnp.iscomplexobj(operator.data):
            raise ArgumentError("operator", "must be real for SmoothedAggregation.")
        if not lx.is_positive_semidefinite(operator):
            raise ArgumentError("operator", "must be tagged as positive semidefinite for SmoothedAggregation.", "lineax.positive_semidefinite_tag")
        size = operator.shape[0]
        if size % self.block:
            raise ArgumentError("block", f"must divide the number of unknowns, {size}, but is {self.block}.")
        if self.candidates is not None and len(self.candidates.vectors) != size:
            raise ArgumentError("candidates", f"must have as many rows as there are unknowns, {size}, not {len(self.candidates.vectors)}.")
        return operator


def rigid_body_modes(points: Float[np.ndarray, "points dimension"]) -> Float[np.ndarray, "unknowns modes"]:
    """What linear elasticity takes to zero: the translations and rotations of points in two or three dimensions, as `candidates`.

    The displacements of a point stand next to each other: `block` is the dimension. Three modes in two dimensions, six in three, about the
    centre of the points.

    **Raises:** `ArgumentError` for points that are not of two or three dimensions.
    """
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ArgumentError("points", f"must have a row of two or three coordinates each, not the shape {points.shape}.")
    count, dimension = points.shape
    x = (points - points.mean(axis=0)) / max(np.ptp(points, axis=0).max(initial=0), np.finfo(float).tiny)
    modes = np.zeros((count, dimension, dimension * (dimension + 1) // 2))
    modes[:, range(dimension), range(dimension)] = 1
    turns = [(0, 1), (0, 2), (1, 2)][: dimension * (dimension - 1) // 2]
    for number, (i, j) in enumerate(turns):
        modes[:, i, dimension + number], modes[:, j, dimension + number] = -x[:, j], x[:, i]
    return modes.reshape(count * dimension, -1)


# The levels as arrays.


class _Level(eqx.Module):
    """The matrix, the inverse of its diagonal, a bound of the spectrum of their product, and the ways to the coarser level and back."""

    matrix: Rows
    inverse: Any  # n numbers
    largest: Any
    prolongation: Rows
    restriction: Rows


Layouts = tuple[tuple[Layout, Layout, Layout], ...]


def _matrix(data: np.ndarray, places: Places, size: int) -> Csr:
    return scipy.sparse.coo_array((data, (places.rows, places.columns)), shape=(size, size)).tocsr()


def _layouts(levels: Levels) -> Layouts:
    return tuple((layout_of(level.matrix), layout_of(level.prolongation), layout_of(level.restriction)) for level in levels.levels)


def _arrays(levels: Levels, layouts: Layouts) -> PyTree:
    """What a cycle needs, in NumPy."""
    made = []
    for level, (matrix, up, down) in zip(levels.levels, layouts, strict=True):
        dtype = level.matrix.dtype
        rows = matrix.of(level.matrix), up.of(level.prolongation.astype(dtype)), down.of(level.restriction.astype(dtype))
        made.append(_Level(rows[0], level.inverse.astype(dtype), np.asarray(level.largest, dtype), *rows[1:]))
    return tuple(made), levels.inverse.astype(levels.last.dtype)


@functools.lru_cache(maxsize=4)
def _structure(places: Places, size: int, recipe: Recipe) -> tuple[list[Csr], Layouts, PyTree]:
    """What depends on the places of the entries only: the aggregates, the layouts, and the shapes of the arrays of a cycle, in single precision."""
    ones = _matrix(np.ones(len(places.rows), np.float32), places, size)
    levels = levels_of((ones + ones.T).tocsr(), recipe, symbolic=True)
    layouts = _layouts(levels)
    shapes = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _arrays(levels, layouts))
    return [level.tentative for level in levels.levels], layouts, shapes


def _made_in_trace(operator: SparseOperator, recipe: Recipe) -> PyTree:
    """The same for entries that are not there yet: shapes from the places, numbers by a callback."""
    places, size, dtype = operator.pattern.places, operator.shape[0], operator.data.dtype
    tentative, layouts, shapes = _structure(places, size, recipe)
    shapes = jtu.tree_map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype if s.dtype == np.float32 else s.dtype), shapes)

    def make(data):
        levels = levels_of(_matrix(data, places, size), recipe, tentative) if np.all(np.isfinite(data)) else None
        if levels is None or levels.flaw:
            return jtu.tree_map(lambda s: np.full(s.shape, np.nan if s.dtype == dtype else 0, s.dtype), shapes)
        return _arrays(levels, layouts)

    return call_on_host(make, shapes, jax.lax.stop_gradient(operator.data))


class _Cycle(lx.AbstractLinearOperator):
    """One cycle from zero."""

    levels: tuple[_Level, ...]
    inverse: Float[Array, "..."]  # of the matrix on the last level, or of its diagonal
    smoothing: int = eqx.field(static=True)
    smoother: str = eqx.field(static=True)
    visits: int = eqx.field(static=True)  # of each coarser level
    lowest: float = eqx.field(static=True)

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return self._cycle(0, vector)

    def _cycle(self, number: int, b: Array) -> Array:
        if number == len(self.levels):
            return self.inverse @ b if self.inverse.ndim == 2 else self.inverse * b
        level = self.levels[number]
        x = self._smooth(level, None, b, b)
        for _ in range(self.visits if number + 1 < len(self.levels) else 1):
            x = x + level.prolongation.mv(self._cycle(number + 1, level.restriction.mv(b - level.matrix.mv(x))))
        return self._smooth(level, x, b, b - level.matrix.mv(x))

    def _smooth(self, level: _Level, x: Any, b: Array, residual: Array) -> Array:
        """From x, or from zero, by Chebyshev's iteration on D^-1 A (Saad 2003, algorithm 12.1), or by Jacobi's; `residual` is b - A x."""
        lowest = self.lowest if self.smoother == "chebyshev" else 0.5  # Jacobi's is that of the degree one, for the upper half
        middle, half = level.largest * (1 + lowest) / 2, level.largest * (1 - lowest) / 2
        sigma = middle / half
        rho = 1 / sigma
        move = level.inverse * residual / middle
        for _ in range(self.smoothing - 1):
            x = move if x is None else x + move
            residual = b - level.matrix.mv(x)
            if self.smoother == "jacobi":
                move = level.inverse * residual / middle
                continue
            following = 1 / (2 * sigma - rho)
            move = following * rho * move + 2 * following / half * (level.inverse * residual)
            rho = following
        return move if x is None else x + move

    def as_matrix(self) -> Float[Array, "n n"]:
        shape = self.in_structure()
        return jax.lax.map(self.mv, jnp.eye(shape.shape[0], dtype=shape.dtype)).T

    def transpose(self) -> "_Cycle":
        return self  # the same smoothing before and after the coarser level

    def in_structure(self) -> jax.ShapeDtypeStruct:
        size = len(self.levels[0].inverse) if self.levels else len(self.inverse)
        return jax.ShapeDtypeStruct((size,), self.inverse.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_Cycle, lambda _: frozenset([lx.positive_semidefinite_tag]))


@lx.linearise.register(_Cycle)
@lx.materialise.register(_Cycle)
@lx.conj.register(_Cycle)
def _(operator):
    return operator
