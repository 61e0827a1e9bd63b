r"""Triangular sweeps: solving with the part of a sparse matrix that comes before, or after, its diagonal.

Row i of \((D + N) x = b\) needs the \(x_j\) with \(N_{ij} \ne 0\) first. Rows that wait for none make level 0, those that wait for
level 0 only make level 1, and so on: rows of a level are solved at once, so a sweep takes as many steps as there are levels
(Saad 2003, section 11.6). The order of the unknowns decides how many: in the natural one a five-point stencil on an m by m grid has
2 m - 1 levels, in the red-black one it has 2, at the price of another splitting of the matrix.

The levels are found in NumPy, from the pattern, which is known under `jit` too. They are cut into pieces of one width, so that a sweep is
a scan; unknowns are stored piece by piece, so that a step writes one slice. A row with many more entries than others
is made of partial sums, which are rows of their own in an earlier level.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Int

from ..core.errors import ArgumentError
from .sparse import Places, SparseOperator, SparsePattern

__all__ = ["ORDERINGS", "Sweeps", "Triangle", "need_ordering"]

ORDERINGS = ("natural", "redblack")


class _Sweep(eqx.Module):
    """The order of work for one triangle. Slot s of piece p holds the unknown `unknown[p, s]`, or none where that is the number of unknowns.

    Its k-th entry is number `entry[p, s, k]` of the data, and multiplies what lies in the slot `across[p, s, k]`, counted over all pieces.
    Behind the data there are a zero, for rows that are shorter, and minus one, for partial sums. `place` is the slot of each unknown.
    """

    entry: Int[Array, "pieces width length"]
    across: Int[Array, "pieces width length"]
    unknown: Int[Array, "pieces width"]
    place: Int[Array, " n"]

    def values(self, data: Inexact[Array, " entries"]) -> Inexact[Array, "pieces width length"]:
        """The data in the shape of `entry`."""
        return jnp.concatenate([data, jnp.array([0, -1], data.dtype)])[self.entry]

    def solve(
        self, values: Inexact[Array, "pieces width length"], diagonal: Inexact[Array, " n"], b: Inexact[Array, " n"]
    ) -> Inexact[Array, " n"]:
        """x with (D + N) x = b."""
        pieces, width = self.unknown.shape
        inverse = jnp.concatenate([1 / diagonal, jnp.ones((1,), diagonal.dtype)])[self.unknown]
        rest = jnp.concatenate([b, jnp.zeros((1,), b.dtype)])[self.unknown]

        def piece(x, at):
            start, values, across, rest, inverse = at
            known = x.at[across].get(mode="promise_in_bounds")
            new = (rest - jnp.sum(values * known, axis=1)) * inverse
            return jax.lax.dynamic_update_slice(x, new, (start,)), None

        begin = jnp.zeros((pieces * width,), jnp.result_type(values, b))
        steps = (jnp.arange(pieces, dtype=jnp.int32) * width, values, self.across, rest.astype(begin.dtype), inverse)
        return jax.lax.scan(piece, begin, steps)[0][self.place]


class Sweeps(eqx.Module):
    """The sweeps over a pattern in an order of its unknowns; `Sweeps.of` makes them, and keeps those of a few patterns."""

    side: Int[Array, " entries"]  # below the diagonal -1, on it 0, above it 1
    lower: _Sweep
    upper: _Sweep
    lower_transposed: _Sweep  # of the transpose of the lower part
    upper_transposed: _Sweep

    @staticmethod
    def of(pattern: SparsePattern, ordering: str = "natural") -> "Sweeps":
        """The sweeps over a square pattern.

        **Arguments:** `ordering`: `"natural"`, by number; or `"redblack"`, colour by colour, where no entry couples two unknowns of one
        colour. Each unknown takes, in its turn, the first colour that no neighbour has: two colours on five-point grids, a few on others.

        **Raises:** `ArgumentError` for another ordering, and for a pattern that is not square.
        """
        need_ordering(ordering)
        if pattern.shape[0] != pattern.shape[1]:
            raise ArgumentError("pattern", f"must be square, not of shape {pattern.shape}.")
        return _sweeps(pattern.places, pattern.shape[0], ordering)

    def lower_triangle(self, operator: SparseOperator, omega: Inexact[Array, ""]) -> "Triangle":
        """D + omega L."""
        return self._triangle(operator, omega, -1, self.lower, self.lower_transposed)

    def upper_triangle(self, operator: SparseOperator, omega: Inexact[Array, ""]) -> "Triangle":
        """D + omega U."""
        return self._triangle(operator, omega, 1, self.upper, self.upper_transposed)

    def _triangle(self, operator: SparseOperator, omega: Array, side: int, sweep: _Sweep, transposed: _Sweep) -> "Triangle":
        data = jnp.where(self.side == side, omega.astype(operator.data.dtype) * operator.data, 0)
        diagonal = jnp.zeros((operator.shape[0],), data.dtype).at[operator.pattern.rows].add(jnp.where(self.side == 0, operator.data, 0))
        return Triangle(SparseOperator(data, operator.pattern), diagonal, sweep, transposed, sweep.values(data), transposed.values(data))


class Triangle(eqx.Module):
    """A triangular matrix D + N, laid out to be solved with; its derivatives are those of the linear solve, by the transposed sweep."""

    strict: SparseOperator  # N
    diagonal: Inexact[Array, " n"]
    sweep: _Sweep
    transposed: _Sweep
    values: Inexact[Array, "pieces width length"]
    values_transposed: Inexact[Array, "pieces_transposed width_transposed length_transposed"]

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        return self.diagonal * x + self.strict.mv(x)

    def solve(self, b: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """x with (D + N) x = b."""

        def forth(_, b):
            return self.sweep.solve(self.values, self.diagonal, b)

        def back(_, b):
            return self.transposed.solve(self.values_transposed, self.diagonal, b)

        return jax.lax.custom_linear_solve(self.mv, b, forth, back)

    def transpose(self) -> "Triangle":
        turned = self.strict.transpose()
        return Triangle(turned, self.diagonal, self.transposed, self.sweep, self.values_transposed, self.values)

    def conj(self) -> "Triangle":
        strict = self.strict.with_data(jnp.conj(self.strict.data))
        values, turned = jnp.conj(self.values), jnp.conj(self.values_transposed)
        return Triangle(strict, jnp.conj(self.diagonal), self.sweep, self.transposed, values, turned)


def need_ordering(ordering: str) -> None:
    """Raise `ArgumentError` if there is no such ordering."""
    if ordering not in ORDERINGS:
        raise ArgumentError("ordering", f"must be one of {', '.join(ORDERINGS)}, not {ordering!r}.")


# From here on in NumPy: what depends on the pattern only.


@functools.lru_cache(maxsize=4)
def _sweeps(places: Places, size: int, ordering: str) -> Sweeps:
    row, column = places.rows, places.columns
    order = np.arange(size) if ordering == "natural" else np.argsort(_colours(row, column, size), kind="stable")
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    side = np.sign(rank[column] - rank[row]).astype(np.int32)
    below, above = np.flatnonzero(side < 0), np.flatnonzero(side > 0)
    count = len(row)
    with jax.ensure_compile_time_eval():
        return Sweeps(
            jnp.asarray(side),
            _sweep(row[below], column[below], below, size, count),
            _sweep(row[above], column[above], above, size, count),
            _sweep(column[below], row[below], below, size, count),
            _sweep(column[above], row[above], above, size, count),
        )


def _sweep(row: np.ndarray, across: np.ndarray, entry: np.ndarray, size: int, count: int) -> _Sweep:
    """The order of work where `row` waits for `across`; `count` is the number of all data."""
    longest = int(np.bincount(row, minlength=size).max(initial=1))
    length = min(longest, 2 * (size + len(row)) // max(1, size))
    row, across, entry, nodes = _with_partial_sums(row, across, entry, size, length, count + 1)
    level = _levels(row, across, nodes)
    sizes = np.bincount(level)
    width = _piece_width(sizes)
    pieces = -(-sizes // width)
    order = np.argsort(level, kind="stable")
    slot = np.empty(nodes, np.int64)
    slot[order] = ((np.cumsum(pieces) - pieces) * width)[level[order]] + _place(sizes)
    total = int(pieces.sum())
    entries, others = np.full((total * width, length), count, np.int32), np.zeros((total * width, length), np.int32)
    place = _place(np.bincount(row, minlength=nodes))  # rows are sorted
    entries[slot[row], place], others[slot[row], place] = entry, slot[across]
    unknown = np.full(total * width, size, np.int32)
    unknown[slot[:size]] = np.arange(size)
    shape = (total, width)
    arrays = (entries.reshape(*shape, length), others.reshape(*shape, length), unknown.reshape(shape), slot[:size].astype(np.int32))
    return _Sweep(*map(jnp.asarray, arrays))


def _place(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each line, one line after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _with_partial_sums(
    row: np.ndarray, across: np.ndarray, entry: np.ndarray, nodes: int, length: int, minus_one: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The same with at most `length` entries a row, sorted by row: what a row has beyond goes to new rows, which it waits for instead."""
    while True:
        order = np.argsort(row, kind="stable")
        row, across, entry = row[order], across[order], entry[order]
        lengths = np.bincount(row, minlength=nodes)
        if lengths.max(initial=0) <= length:
            return row, across, entry, nodes
        place, long = _place(lengths), lengths[row] > length
        first = long & (place % length == 0)
        owners = row[first]
        new = nodes + np.arange(len(owners))
        row = np.concatenate([np.where(long, nodes - 1 + np.cumsum(first), row), owners])
        across = np.concatenate([across, new])
        entry = np.concatenate([entry, np.full(len(owners), minus_one)])
        nodes += len(owners)


def _levels(row: np.ndarray, across: np.ndarray, nodes: int) -> np.ndarray:
    """The longest chain of rows that each row waits for."""
    waiting = np.bincount(row, minlength=nodes)
    followers = row[np.argsort(across, kind="stable")]
    counts = np.bincount(across, minlength=nodes)
    starts = np.cumsum(counts) - counts
    level, depth = np.zeros(nodes, np.int64), 0
    front = np.flatnonzero(waiting == 0)
    while front.size:
        level[front] = depth
        lengths = counts[front]
        reached = followers[np.repeat(starts[front], lengths) + _place(lengths)]
        np.subtract.at(waiting, reached, 1)
        reached = np.unique(reached)
        front, depth = reached[waiting[reached] == 0], depth + 1
    return level


def _piece_width(sizes: np.ndarray) -> int:
    """The largest width, of powers of two and the longest level, with which pieces hold at most twice as many slots as there are rows."""
    longest, total = int(sizes.max(initial=1)), int(sizes.sum())
    widths = [longest, *(2**k for k in range(longest.bit_length() - 1, -1, -1))]
    return next(width for width in widths if width * int(np.sum(-(-sizes // width))) <= 2 * total)


def _colours(row: np.ndarray, column: np.ndarray, size: int) -> np.ndarray:
    """Greedy colours in the natural order, level by level: within a level no two unknowns are neighbours."""
    off = row != column
    later, earlier = np.maximum(row, column)[off], np.minimum(row, column)[off]
    level = _levels(later, earlier, size)
    order = np.argsort(level[later], kind="stable")
    later, earlier = later[order], earlier[order]
    ends = np.searchsorted(level[later], np.arange(int(level.max(initial=0)) + 2))
    colour = np.zeros(size, np.int64)
    for start, end in itertools.pairwise(ends[1:]):
        taken = np.unique(np.stack([later[start:end], colour[earlier[start:end]]]), axis=1)  # sorted by unknown, then by colour
        unknowns, lengths = np.unique(taken[0], return_counts=True)
        place = _place(lengths)
        free = np.where(taken[1] == place, np.repeat(lengths, lengths), place)  # the first place where a colour is missing
        colour[unknowns] = np.minimum.reduceat(free, np.cumsum(lengths) - lengths)
    return colour
