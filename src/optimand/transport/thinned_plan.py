"""The largest entries of a plan, as a matrix to multiply by."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..linear.traced_rows import TracedRows
from .rounding import largest, positions

__all__ = ["ThinnedPlan"]


class ThinnedPlan(NamedTuple):
    """By rows, and by columns: each product reads in the order of what it writes."""

    rows: TracedRows
    columns: TracedRows

    @staticmethod
    def of(plan: Float[Array, "n m"], count: int, slack: float = 0.0) -> "ThinnedPlan":
        """The `count` largest entries, or fewer, by up to the part `slack` (see `largest`)."""
        n, m = plan.shape
        place, there = positions(largest(plan, count, slack), count)
        rows = TracedRows.of(jnp.where(there, plan.reshape(-1)[place], 0), place // m, place % m, n)
        # Numbers in the transpose, which are sorted sooner than the order of columns would be found.
        turned = jnp.sort(jnp.where(there, place % m * n + place // m, n * m - 1))
        row, column = turned % n, turned // n
        entries = jnp.where(jnp.arange(count) < jnp.sum(there), plan[row, column], 0)
        return ThinnedPlan(rows, TracedRows.of(entries, column, row, m))

    def times(self, v: Float[Array, " m"]) -> Float[Array, " n"]:
        """The product with a vector."""
        return self.rows.mv(v)

    def times_transposed(self, u: Float[Array, " n"]) -> Float[Array, " m"]:
        """The product of the transpose with a vector."""
        return self.columns.mv(u)
