r"""What L-BFGS remembers: the last pairs \(s_i = x_{i+1} - x_i\), \(y_i = \nabla f(x_{i+1}) - \nabla f(x_i)\).

They make an inverse Hessian H out of \(\gamma I\), \(\gamma = s_m^\top y_m / y_m^\top y_m\) (Liu and Nocedal 1989), and there are two ways to multiply by it.
With \(S = [s_1 \dots s_m]\), \(Y = [y_1 \dots y_m]\), \(R = \mathrm{triu}(S^\top Y)\), \(D = \mathrm{diag}(S^\top Y)\) (Byrd, Nocedal and Schnabel
1994, eq. 3.13)

$$H g = \gamma g + S R^{-\top} \big((D + \gamma Y^\top Y) R^{-1} S^\top g - \gamma Y^\top g\big) - \gamma Y R^{-1} S^\top g ,$$

two passes over the memory, where the two-loop recursion takes 4 m operations that wait for one another; but that one needs no
matrices of m x m, which are most of the work where there are fewer unknowns than pairs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .vectors import curved

__all__ = ["CompactPairs", "LoopedPairs", "no_pairs"]

# Up to arrays of this size XLA executes a program on a CPU one operation after the other without any bookkeeping: then loops are cheap.
_FEW_BYTES = 512


class CompactPairs(eqx.Module):
    """Pairs for the formula with matrices.

    \\(R^{-1}\\) is kept itself: without the row and column of the oldest pair it is the inverse of R without that pair, and a new pair adds
    a column. All of it holds in any order of the pairs, so nothing is ever moved: the next pair goes to number `slot` of `pairs` (all s,
    then all y), which has no weight: there `inverse` (R^-1), `diagonal` and `yy` are zero. `gamma` is zero while there is no pair.
    """

    pairs: Float[Array, "twice_places unknowns"]
    inverse: Float[Array, "places places"]
    diagonal: Float[Array, " places"]
    yy: Float[Array, "places places"]
    gamma: Float[Array, ""]
    slot: Array

    @staticmethod
    def none(memory: int, like: Float[Array, " unknowns"]) -> "CompactPairs":
        places = memory + 1
        products = jnp.zeros((places, places), like.dtype)
        pairs = jnp.zeros((2 * places, like.size), like.dtype)
        return CompactPairs(pairs, products, products[0], products, products[0, 0], jnp.int32(0))

    def followed_by(
        self, s: Float[Array, " unknowns"], y: Float[Array, " unknowns"], accepted: Bool[Array, ""]
    ) -> tuple["CompactPairs", Bool[Array, ""]]:
        """With this pair, if its curvature is good, and whether it is. Nothing is left if the step was not `accepted`."""
        slot, places = self.slot, len(self.diagonal)
        put = lambda row, rows, at: jax.lax.dynamic_update_index_in_dim(rows, row, at, 0, allow_negative_indices=False)
        pairs = put(y, put(s, self.pairs, slot), places + slot)
        sy, yy_new = jnp.reshape(pairs @ y, (2, places))
        curvature, yy_last = sy[slot], yy_new[slot]
        useful = accepted & curved(curvature, s @ s, yy_last)

        place = jnp.arange(places)
        slot = jnp.where(useful, (slot + 1) % places, slot)  # that of the oldest pair, which is dropped
        new, dropped = place == self.slot, place == slot
        curvature = jnp.where(useful, curvature, 1)
        column = (jnp.where(new, 1, 0) - self.inverse @ sy) / curvature
        drop = lambda matrix: jnp.where(dropped | dropped[:, None], 0, matrix)
        keep = lambda changed, old: jnp.where(useful, changed, jnp.where(accepted, old, 0))
        inverse = keep(drop(jnp.where(new, column[:, None], self.inverse)), self.inverse)
        diagonal = keep(jnp.where(dropped, 0, jnp.where(new, curvature, self.diagonal)), self.diagonal)
        yy = jnp.where(new, yy_new[:, None], jnp.where(new[:, None], yy_new, self.yy))
        yy = keep(drop(yy), self.yy)
        gamma = keep(curvature / jnp.where(useful, yy_last, 1), self.gamma)
        return CompactPairs(pairs, inverse, diagonal, yy, gamma, slot), useful

    def times(self, g: Float[Array, " unknowns"]) -> Float[Array, " unknowns"]:
        """H g."""
        sg, yg = jnp.reshape(self.pairs @ g, (2, -1))
        u = self.inverse @ sg
        v = (self.diagonal * u + self.gamma * (self.yy @ u - yg)) @ self.inverse
        return self.gamma * g + jnp.concatenate([v, -self.gamma * u]) @ self.pairs


class LoopedPairs(eqx.Module):
    """Pairs for the two-loop recursion, oldest first. `rho` is 1 / s'y, zero where there is no pair; `gamma` is zero while there is none."""

    s: Float[Array, "memory unknowns"]
    y: Float[Array, "memory unknowns"]
    rho: Float[Array, " memory"]
    gamma: Float[Array, ""]

    @staticmethod
    def none(memory: int, like: Float[Array, " unknowns"]) -> "LoopedPairs":
        rows = jnp.zeros((memory, like.size), like.dtype)
        return LoopedPairs(rows, rows, rows[:, 0], rows[0, 0])

    def followed_by(
        self, s: Float[Array, " unknowns"], y: Float[Array, " unknowns"], accepted: Bool[Array, ""]
    ) -> tuple["LoopedPairs", Bool[Array, ""]]:
        """With this pair, if its curvature is good, and whether it is. Nothing is left if the step was not `accepted`."""
        curvature, yy = s @ y, y @ y
        useful = accepted & curved(curvature, s @ s, yy)
        curvature, yy = (jnp.where(useful, product, 1) for product in (curvature, yy))
        keep = lambda changed, old: jnp.where(useful, changed, jnp.where(accepted, old, 0))
        add = lambda rows, row: keep(jnp.concatenate([rows[1:], row[None]]), rows)
        kept = LoopedPairs(add(self.s, s), add(self.y, y), add(self.rho, 1 / curvature), keep(curvature / yy, self.gamma))
        return kept, useful

    def times(self, g: Float[Array, " unknowns"]) -> Float[Array, " unknowns"]:
        """H g."""

        def newest_first(g, pair):
            s, y, rho = pair
            along = rho * (s @ g)
            return g - along * y, along

        def oldest_first(g, pair):
            s, y, rho, along = pair
            return g + (along - rho * (y @ g)) * s, None

        left, along = jax.lax.scan(newest_first, g, (self.s, self.y, self.rho), reverse=True)
        return jax.lax.scan(oldest_first, self.gamma * left, (self.s, self.y, self.rho, along))[0]


def no_pairs(memory: int, like: Float[Array, " unknowns"]) -> CompactPairs | LoopedPairs:
    """Place for so many pairs of vectors like this, in the form that is faster for its size."""
    few = memory * like.nbytes <= _FEW_BYTES
    return (LoopedPairs if few else CompactPairs).none(memory, like)
