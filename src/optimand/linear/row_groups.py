"""Products with sparse matrices that are made on the host: rows of about one length are laid out together.

Entry k of each row of a group is in line k of two arrays, its number and its column, so a product is a gather and a sum for each group,
over entries of which
few are padding. The layout depends on the lengths of the rows only: matrices whose rows are no longer than those that it was made for fit
in as well.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .sparse import gathered_sum

__all__ = ["Csr", "Layout", "Rows", "layout_of"]

Csr = Any  # a csr_array of SciPy

_MOST_GROUPS = 4
_SPARE = 0.1  # of all entries: the padding that one more group must save


class Layout(NamedTuple):
    """Rows and width of each group; the rows in the order of the groups, or None where there is one group."""

    counts: tuple[int, ...]
    widths: tuple[int, ...]
    order: np.ndarray | None

    def of(self, matrix: Csr) -> "Rows":
        """The matrix in this layout, in NumPy."""
        lengths = np.diff(matrix.indptr)
        rows = np.arange(len(lengths)) if self.order is None else self.order
        values, across, done = [], [], 0
        for count, width in zip(self.counts, self.widths, strict=True):
            part = rows[done : done + count]
            line = np.repeat(np.arange(count), lengths[part])
            starts = np.cumsum(lengths[part]) - lengths[part]
            place = np.arange(len(line)) - np.repeat(starts, lengths[part])
            entry = place + np.repeat(matrix.indptr[part], lengths[part])
            numbers, columns = np.zeros((width, count), matrix.dtype), np.zeros((width, count), np.int32)
            numbers[place, line], columns[place, line] = matrix.data[entry], matrix.indices[entry]
            values.append(numbers)
            across.append(columns)
            done += count
        place = None
        if self.order is not None:
            place = np.empty(len(rows), np.int32)
            place[rows] = np.arange(len(rows))
        return Rows(tuple(values), tuple(across), place)


class Rows(eqx.Module):
    """The rows of a matrix by groups; `place` is that of each row among them, None where they are in order."""

    values: tuple[Any, ...]  # arrays of width by rows
    across: tuple[Any, ...]
    place: Any

    def mv(self, vector: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """The product with a vector."""
        parts = [gathered_sum(values, across, vector) for values, across in zip(self.values, self.across, strict=True)]
        out = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        return out if self.place is None else out.at[self.place].get(mode="promise_in_bounds")


def layout_of(matrix: Csr) -> Layout:
    """At most four groups, as few as leave little padding."""
    lengths = np.diff(matrix.indptr)
    if not lengths.size:
        return Layout((0,), (1,), None)
    widths, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    ends = _cuts(widths, counts)
    limits = widths[ends]
    if len(limits) == 1:
        return Layout((len(lengths),), (int(limits[0]),), None)
    group = np.searchsorted(limits, lengths)
    return Layout(tuple(map(int, np.bincount(group, minlength=len(limits)))), tuple(map(int, limits)), np.argsort(group, kind="stable"))


def _cuts(widths: np.ndarray, counts: np.ndarray) -> list[int]:
    """The last width of each group: those with the least entries, padding included, and a price for each group."""
    price = _SPARE * float(np.sum(widths * counts))
    rows = np.concatenate([[0], np.cumsum(counts)])
    cost = widths * (rows[1:] - 0.0)  # of the widths up to here in one group
    best, path = cost + price, [[k] for k in range(len(widths))]
    for _ in range(_MOST_GROUPS - 1):
        more, longer = best.copy(), list(path)
        for k in range(1, len(widths)):
            with_it = best[:k] + widths[k] * (rows[k + 1] - rows[1 : k + 1]) + price
            j = int(np.argmin(with_it))
            if with_it[j] < more[k]:
                more[k], longer[k] = with_it[j], [*path[j], k]
        best, path = more, longer
    return path[-1]
