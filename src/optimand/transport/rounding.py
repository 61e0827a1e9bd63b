"""Plans made feasible, and plans made sparse."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float, Int

from ..core.arguments import need_positive
from ..core.errors import ArgumentError

__all__ = ["largest", "rounded", "sparsify_coupling"]


def rounded(plan: Float[Array, "n m"], a: Float[Array, " n"], b: Float[Array, " m"]) -> Float[Array, "n m"]:
    """A plan with marginals a and b whose distance from this one is at most twice the error of its marginals, in sums of absolute values.

    Source: Altschuler, Weed and Rigollet 2017, algorithm 2.
    """
    rows = jnp.sum(plan, 1)
    plan = plan * jnp.minimum(a / jnp.where(rows > 0, rows, 1), 1)[:, None]
    columns = jnp.sum(plan, 0)
    plan = plan * jnp.minimum(b / jnp.where(columns > 0, columns, 1), 1)[None, :]
    lacking_a, lacking_b = jnp.maximum(a - jnp.sum(plan, 1), 0), jnp.maximum(b - jnp.sum(plan, 0), 0)
    total = jnp.sum(lacking_a)
    return plan + lacking_a[:, None] * lacking_b[None, :] / jnp.where(total > 0, total, 1)


def largest(plan: Float[Array, "n m"], count: int, slack: float = 0.0) -> Bool[Array, "n m"]:
    """Where the `count` largest entries are, or fewer, by up to the part `slack`: one threshold for all. Where entries at it are equal, there are more.

    The threshold is found by bisection between the largest logarithm and 200 below it, which needs no sorting; entries that are smaller still are
    left out.
    """
    plan = jax.lax.stop_gradient(plan)
    top = jnp.log(jnp.maximum(jnp.max(plan), jnp.finfo(plan.dtype).tiny))
    fewest = math.ceil(count * (1 - slack))
    is_right = lambda found: (found <= count) & (found >= fewest)

    def halve(carry):
        low, high, _, step = carry
        middle = (low + high) / 2
        found = jnp.sum(plan >= jnp.exp(middle), dtype=jnp.int32)
        down = (found >= count) | is_right(found)
        return jnp.where(down, middle, low), jnp.where(down, high, middle), found, step + 1

    going = lambda carry: ~is_right(carry[2]) & (carry[3] < 50)
    low, _, _, _ = jax.lax.while_loop(going, halve, (top - 200, top, jnp.int32(-1), jnp.int32(0)))
    return plan >= jnp.exp(low)


BLOCK = 16  # entries


def positions(chosen: Bool[Array, "n m"], count: int) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
    """The places of the first `count` chosen in the order of rows, as numbers into the flat array; whether there is one (else the number is that of the last place).

    The block of each is found among running sums over blocks, then its place inside: a running sum over all entries takes longer.
    """
    flat = chosen.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    ends = jnp.cumsum(jnp.sum(blocks, 1, dtype=jnp.int32), dtype=jnp.int32)
    wanted = jnp.arange(1, count + 1, dtype=jnp.int32)
    block = jnp.minimum(jnp.searchsorted(ends, wanted), len(ends) - 1)
    inside = jnp.cumsum(blocks[block], 1, dtype=jnp.int32) + jnp.where(block > 0, ends[block - 1], 0)[:, None]
    place = block * BLOCK + jnp.sum(inside < wanted[:, None], 1, dtype=jnp.int32)
    return jnp.minimum(place, flat.size - 1).astype(jnp.int32), wanted <= ends[-1]


def sparsify_coupling(plan: Float[Array, "n m"], density: Any = 15) -> BCOO:
    """The `density` * max(n, m) largest entries of a plan, as a sparse matrix of JAX.

    Raises `ArgumentError` for a density that is not positive or a plan that is no matrix.

    ```python
    om.transport.sparsify_coupling(jnp.eye(3) + 0.01, density=1).todense()
    ```
    """
    need_positive("density", density)
    if plan.ndim != 2:
        raise ArgumentError("plan", f"must be a matrix, not an array of shape {plan.shape}.")
    count = min(plan.size, math.ceil(density * max(plan.shape)))
    place, there = positions(largest(plan, count), count)
    indices = jnp.stack([place // plan.shape[1], place % plan.shape[1]], 1)
    return BCOO((jnp.where(there, plan.reshape(-1)[place], 0), indices), shape=plan.shape)
