"""Sparse matrices as lineax operators.

A product visits every row at once: the k-th entries of all rows are line k of two arrays, with as many lines as a typical row has
entries (ELLPACK), so that it is a sum of gathers, which XLA makes one loop of; the entries of longer rows come after, in a list. Both
the rows and the columns are laid out so when the operator is made, hence a transposed product is as fast, and the numbers
themselves stand in one array in the order they were given in, with respect to which everything is differentiable.
"""

import functools
import hashlib
import operator
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Inexact, Int

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .tags import SYMMETRIC, answer_by_tags

__all__ = ["SparseOperator", "SparsePattern", "gathered_sum"]


class _Lines(eqx.Module):
    """The rows, or the columns, of a pattern: entry k of line i is number `entry[k, i]` of the data, and lies on line `across[k, i]` of the other kind.

    Where a line is shorter `entry` points behind the data, to a zero. What a line has beyond the width is in the tail.
    """

    entry: Int[Array, "width lines"]
    across: Int[Array, "width lines"]
    tail: Int[Array, " tail"]
    tail_line: Int[Array, " tail"]
    tail_across: Int[Array, " tail"]

    @staticmethod
    def of(line: np.ndarray, across: np.ndarray, count: int) -> "_Lines":
        order = np.argsort(line, kind="stable")
        line, across = line[order], across[order]
        lengths = np.bincount(line, minlength=count)
        place = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        width = _width(lengths)
        entry = np.full((width, count), len(line), np.int32)
        other = np.zeros((width, count), np.int32)
        fits = place < width
        entry[place[fits], line[fits]], other[place[fits], line[fits]] = order[fits], across[fits]
        rest = [np.asarray(part[~fits], np.int32) for part in (order, line, across)]
        return _Lines(jnp.asarray(entry), jnp.asarray(other), *map(jnp.asarray, rest))

    def values(self, data: Array) -> Array:
        """The data in the shape of `entry`."""
        return jnp.concatenate([data, jnp.zeros((1,), data.dtype)])[self.entry]

    def times(self, values: Array, data: Array, vector: Array) -> Array:
        """The product of the matrix of these lines with a vector."""
        out = gathered_sum(values, self.across, vector)
        if self.tail.size:
            out = out.at[self.tail_line].add(data[self.tail] * vector[self.tail_across])
        return out


_FEW, _MANY = 2**14, 2**16  # entries, and lines, between which a sum is a loop over its terms


def gathered_sum(values: Inexact[Array, "width lines"], across: Int[Array, "width lines"], vector: Inexact[Array, " n"]) -> Inexact[Array, " lines"]:
    """The sum over k of `values[k] * vector[across[k]]`.

    Of many lines term by term, which XLA makes one loop over the lines of, ten times as fast as a sum along an axis, but takes longer to compile.
    """

    def term(values, across):
        return values * vector.at[across].get(mode="promise_in_bounds")

    if values.size <= _FEW:
        return jnp.sum(term(values, across), axis=0)
    if len(values) <= 32 and values.shape[1] >= _MANY:
        return functools.reduce(operator.add, (term(values[k], across[k]) for k in range(len(values))))
    add = lambda total, one: (total + term(*one), None)
    return jax.lax.scan(add, jnp.zeros(values.shape[1:], jnp.result_type(values, vector)), (values, across))[0]


def _width(lengths: np.ndarray) -> int:
    """The most that lines need, as long as the arrays stay below twice the entries."""
    longest, total = int(lengths.max(initial=1)), int(lengths.sum())
    return max(1, min(longest, 2 * total // max(1, len(lengths))))


class Places:
    """The rows and columns of entries, in NumPy; those that are the same are equal."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray):
        self.rows, self.columns = rows, columns
        summary = hashlib.blake2b(np.ascontiguousarray(rows).data, digest_size=32)
        summary.update(np.ascontiguousarray(columns).data)
        self._digest = summary.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


class SparsePattern(eqx.Module):
    """Where the entries of a sparse matrix are: made once, and shared by all matrices that have them at the same places.

    `SparsePattern.of` makes it. Its `places` are known where its arrays are traced, so what depends on the pattern only, as the
    order of work of a triangular solve, can be found out under `jit`; a function is compiled for each pattern.
    """

    rows: Int[Array, " entries"]
    columns: Int[Array, " entries"]
    by_row: _Lines
    by_column: _Lines
    shape: tuple[int, int] = eqx.field(static=True)
    places: Places = eqx.field(static=True)

    @staticmethod
    def of(rows: Any, columns: Any, shape: tuple[int, int]) -> "SparsePattern":
        """The pattern of entries in these rows and columns, in this order. They must be known, under `jit` too.

        **Raises:** `ArgumentError` for places that are no whole numbers or lie outside the shape, and for arrays of different lengths.
        """
        shape = (int(shape[0]), int(shape[1]))
        at_row, at_column = _places("rows", rows, shape[0]), _places("columns", columns, shape[1])
        if at_row.ndim != 1 or at_row.shape != at_column.shape:
            raise ArgumentError("columns", f"must be a vector as long as `rows`: {at_column.shape} and {at_row.shape}.")
        by_row, by_column = _Lines.of(at_row, at_column, shape[0]), _Lines.of(at_column, at_row, shape[1])
        return SparsePattern(jnp.asarray(at_row), jnp.asarray(at_column), by_row, by_column, shape, Places(at_row, at_column))

    def transpose(self) -> "SparsePattern":
        """That of the transposed matrix, for the same data."""
        places = Places(self.places.columns, self.places.rows)
        return SparsePattern(self.columns, self.rows, self.by_column, self.by_row, (self.shape[1], self.shape[0]), places)


def _as_data(data: Any) -> Array:
    data = jnp.asarray(data)
    return data if jnp.issubdtype(data.dtype, jnp.inexact) else data.astype(jnp.result_type(float))


def _as_tags(tags: object | Iterable[object]) -> frozenset[object]:
    return frozenset(tags) if isinstance(tags, Iterable) else frozenset([tags])


class SparseOperator(lx.AbstractLinearOperator):
    """A sparse matrix, for every lineax solver and for those of this room.

    **Arguments:**

    - `data`: the entries, real or complex; entries at one place are added up. They may be traced.
    - `pattern`: where they are.
    - `tags`: what lineax should know of the matrix: `lineax.symmetric_tag`, `lineax.positive_semidefinite_tag`, ... That it is symmetric
      is checked where the entries are known.

    `SparseOperator.from_scipy`, `from_bcoo` and `from_entries` take a matrix in another form.

    **Raises:** `ArgumentError` for data that are not one number for each entry of the pattern, and for tags of symmetry on a matrix that is
    not symmetric.

    ```python
    import lineax as lx
    import scipy.sparse

    laplacian = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(100, 100))
    operator = om.linear.SparseOperator.from_scipy(laplacian, tags=lx.positive_semidefinite_tag)
    lx.linear_solve(operator, jnp.ones(100), lx.CG(1e-4, 1e-4)).value
    ```
    """

    data: Inexact[Array, " entries"] = eqx.field(converter=_as_data)
    pattern: SparsePattern
    tags: frozenset[object] = eqx.field(static=True, converter=_as_tags, default=frozenset())

    def __check_init__(self):
        if self.data.shape != self.pattern.rows.shape:
            raise ArgumentError("data", f"must have the shape of the pattern, {self.pattern.rows.shape}, not {self.data.shape}.")
        if self.tags & SYMMETRIC:
            self._need_symmetry()

    def _need_symmetry(self) -> None:
        if self.shape[0] != self.shape[1]:
            raise ArgumentError("tags", f"say that the matrix is symmetric, but its shape is {self.shape}.")
        if is_tracer(self.data) or is_tracer(self.pattern.rows):
            return
        matrix = self.to_scipy()
        off = abs(matrix - matrix.conj().T).tocoo()
        if off.nnz and off.data.max() > 100 * jnp.finfo(self.data.dtype).eps * abs(matrix).max():
            i, j = (int(places[np.argmax(off.data)]) for places in off.coords)
            entries = f"entry ({i}, {j}) is {matrix[i, j]} and entry ({j}, {i}) is {matrix[j, i]}"
            raise ArgumentError("tags", f"say that the matrix is symmetric, but {entries}.", "Leave the tag out.")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pattern.shape

    @staticmethod
    def from_entries(
        data: Any, rows: Any, columns: Any, shape: tuple[int, int], tags: object | Iterable[object] = ()
    ) -> "SparseOperator":
        """The operator of entries and the row and column of each."""
        return SparseOperator(data, SparsePattern.of(rows, columns, shape), tags)

    @staticmethod
    def from_scipy(matrix: Any, tags: object | Iterable[object] = ()) -> "SparseOperator":
        """The operator of a sparse array or matrix of SciPy, of any format."""
        if not scipy.sparse.issparse(matrix):
            raise ArgumentError("matrix", f"must be a sparse array of SciPy, not {type(matrix).__name__}.")
        entries = matrix.tocoo()
        return SparseOperator.from_entries(entries.data, entries.row, entries.col, entries.shape, tags)

    @staticmethod
    def from_bcoo(matrix: BCOO, tags: object | Iterable[object] = ()) -> "SparseOperator":
        """The operator of a two-dimensional `BCOO` of JAX without batch or dense dimensions."""
        if matrix.n_batch or matrix.n_dense or matrix.ndim != 2:
            raise ArgumentError("matrix", f"must be two-dimensional, without batch or dense dimensions, not {matrix}.")
        rows, columns = matrix.indices[:, 0], matrix.indices[:, 1]
        return SparseOperator.from_entries(matrix.data, rows, columns, (matrix.shape[0], matrix.shape[1]), tags)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """The matrix for SciPy; outside `jit`."""
        entries = (np.asarray(self.data), (np.asarray(self.pattern.rows), np.asarray(self.pattern.columns)))
        return scipy.sparse.coo_array(entries, shape=self.shape).tocsr()

    def with_data(self, data: Inexact[Array, " entries"]) -> "SparseOperator":
        """The same places with other entries: nothing is laid out anew."""
        return SparseOperator(data, self.pattern, self.tags)

    def mv(self, vector: Inexact[Array, " columns"]) -> Inexact[Array, " rows"]:
        by_row = self.pattern.by_row
        return by_row.times(by_row.values(self.data), self.data, vector)

    def as_matrix(self) -> Inexact[Array, "rows columns"]:
        return jnp.zeros(self.shape, self.data.dtype).at[self.pattern.rows, self.pattern.columns].add(self.data)

    def transpose(self) -> "SparseOperator":
        if self.tags & SYMMETRIC and not jnp.iscomplexobj(self.data):
            return self
        return SparseOperator(self.data, self.pattern.transpose(), lx.transpose_tags(self.tags))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.shape[1],), self.data.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.shape[0],), self.data.dtype)


class _Prepared(lx.AbstractLinearOperator):
    """A `SparseOperator` whose entries are laid out in lines already: what an iterative solver multiplies by."""

    operator: SparseOperator
    by_row: Inexact[Array, "width rows"]
    by_column: Inexact[Array, "length columns"]

    def mv(self, vector: Inexact[Array, " columns"]) -> Inexact[Array, " rows"]:
        return self.operator.pattern.by_row.times(self.by_row, self.operator.data, vector)

    def as_matrix(self) -> Inexact[Array, "rows columns"]:
        return self.operator.as_matrix()

    def transpose(self) -> "_Prepared":
        if self.operator.tags & SYMMETRIC and not jnp.iscomplexobj(self.by_row):
            return self
        return _Prepared(self.operator.transpose(), self.by_column, self.by_row)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.operator.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.operator.out_structure()


def _places(name: str, places: Any, count: int) -> np.ndarray:
    if is_tracer(places):
        raise ArgumentError(name, "is traced; where the entries are must be known.", "Make the pattern outside.")
    places = np.asarray(places)
    if not np.issubdtype(places.dtype, np.integer):
        raise ArgumentError(name, f"must be whole numbers, not {places.dtype}.")
    if places.size and (places.min() < 0 or places.max() >= count):
        wrong = int(places.flat[np.argmax((places < 0) | (places >= count))])
        raise ArgumentError(name, f"holds {wrong}, which is not between 0 and {count - 1}.")
    return places.astype(np.int32)


# What lineax asks of an operator.


@lx.linearise.register(SparseOperator)
@lx.materialise.register(SparseOperator)
def _(operator):
    pattern, data = operator.pattern, operator.data
    return _Prepared(operator, pattern.by_row.values(data), pattern.by_column.values(data))


@lx.linearise.register(_Prepared)
@lx.materialise.register(_Prepared)
def _(operator):
    return operator


@lx.diagonal.register(SparseOperator)
def _(operator):
    return _diagonal(operator, 0)


@lx.tridiagonal.register(SparseOperator)
def _(operator):
    return _diagonal(operator, 0), _diagonal(operator, -1), _diagonal(operator, 1)


def _diagonal(operator: SparseOperator, offset: int) -> Array:
    """The entries in column `row + offset`, added up where there are several."""
    rows, columns = operator.pattern.rows, operator.pattern.columns
    on = columns - rows == offset
    place = jnp.minimum(rows, columns)
    size = min(operator.shape) - abs(offset)
    return jnp.zeros((size,), operator.data.dtype).at[place].add(jnp.where(on, operator.data, 0), mode="drop")


def _conj(operator: SparseOperator) -> SparseOperator:
    return operator.with_data(jnp.conj(operator.data))


lx.conj.register(SparseOperator)(_conj)


answer_by_tags(SparseOperator, lambda operator: operator.tags)
answer_by_tags(_Prepared, lambda prepared: prepared.operator.tags)
lx.diagonal.register(_Prepared)(lambda operator: lx.diagonal(operator.operator))
lx.tridiagonal.register(_Prepared)(lambda operator: lx.tridiagonal(operator.operator))


@lx.conj.register(_Prepared)
def _(operator):
    return _Prepared(_conj(operator.operator), jnp.conj(operator.by_row), jnp.conj(operator.by_column))
