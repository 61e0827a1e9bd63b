"""Products with a sparse matrix whose pattern is found inside of compiled code.

The first entries of each row stand in one line of `WIDTH`, and what longer rows have more in further lines, of which there are at most as many as the entries need.
So a product is a gather with a sum for each line, and few of those have to be added up by their rows: a matrix in coordinates, or in compressed rows, is
multiplied by adding entry by entry, which takes four times as long.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .sparse import gathered_sum

__all__ = ["TracedRows"]

WIDTH = 8  # entries


class TracedRows(eqx.Module):
    """A matrix by lines of rows: those of all rows in order, then further ones, which belong to `owners`."""

    values: Float[Array, "width lines"]
    across: Int[Array, "width lines"]
    owners: Int[Array, " further"]

    @staticmethod
    def of(
        entries: Float[Array, " entries"], rows: Int[Array, " entries"], columns: Int[Array, " entries"], count: int
    ) -> "TracedRows":
        """The matrix with these entries, in the order of rows, of which there are `count`."""
        ends = jnp.searchsorted(rows, jnp.arange(count + 1, dtype=rows.dtype)).astype(jnp.int32)
        starts, ends = ends[:-1], ends[1:]
        more = jnp.maximum((ends - starts - 1) // WIDTH, 0)
        last = jnp.cumsum(more, dtype=jnp.int32)
        line = jnp.arange(entries.size // WIDTH, dtype=jnp.int32)
        owners = jnp.minimum(jnp.searchsorted(last, line, side="right"), count - 1).astype(jnp.int32)
        nth = 1 + line - (last - more)[owners]
        begin = jnp.concatenate([starts, starts[owners] + WIDTH * nth])
        end = jnp.concatenate([ends, jnp.where(line < last[-1], ends[owners], 0)])
        place = begin + jnp.arange(WIDTH, dtype=jnp.int32)[:, None]
        there = place < end
        place = jnp.where(there, place, 0)
        return TracedRows(jnp.where(there, entries[place], 0), columns[place], owners)

    def mv(self, vector: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """The product with a vector."""
        sums = gathered_sum(self.values, self.across, vector)
        count = sums.size - self.owners.size
        return sums[:count].at[self.owners].add(sums[count:], indices_are_sorted=True, mode="promise_in_bounds")
