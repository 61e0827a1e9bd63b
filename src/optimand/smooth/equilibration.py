r"""Ruiz equilibration of a quadratic program.

$$\bar P = c\, D P D, \quad \bar q = c\, D q, \quad \bar M = E M D,$$

with diagonal D, E > 0 such that the columns of the KKT matrix \([P, M^\top; M, 0]\) have largest entries of about one (Ruiz
2001; Stellato et al. 2020, algorithm 2), and c such that the objective has a gradient of about one. The unknowns of the
scaled program are \(\bar x = D^{-1} x\), multipliers \(\bar y = c E^{-1} y\).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Scaling", "equilibrate"]


class Scaling(NamedTuple):
    """D, E and c."""

    columns: Float[Array, " n"]
    rows: Float[Array, " k"]
    cost: Float[Array, ""]


def equilibrate(P: Float[Array, "n n"], q: Float[Array, " n"], M: Float[Array, "k n"], iterations: int) -> Scaling:
    """The scaling after so many sweeps; none of it is differentiated, as it does not change the solution."""
    P, q, M = jax.lax.stop_gradient((P, q, M))

    def sweep(_, scaling):
        columns, rows = scaling
        matrix = jnp.abs(M * columns) * rows[:, None]
        of_rows = jnp.max(matrix, axis=1, initial=0.0)
        of_columns = jnp.maximum(
            columns * jnp.max(jnp.abs(P) * columns[:, None], axis=0, initial=0.0), jnp.max(matrix, axis=0, initial=0.0)
        )
        return columns * _inverse_root(of_columns), rows * _inverse_root(of_rows)

    start = (jnp.ones_like(q), jnp.ones((M.shape[0],), q.dtype))
    columns, rows = jax.lax.fori_loop(0, iterations, sweep, start)
    curvature = columns * jnp.max(jnp.abs(P) * columns[:, None], axis=0, initial=0.0)
    size = jnp.maximum(jnp.mean(curvature), jnp.max(jnp.abs(columns * q), initial=0.0))
    cost = jnp.where((size > 1e-12) & (iterations > 0), 1 / jnp.maximum(size, 1e-12), 1.0)
    return Scaling(columns, rows, cost.astype(q.dtype))


def _inverse_root(size: Array) -> Array:
    """1 / sqrt(size), at most 100; one where a row or column is empty."""
    return jnp.where(size > 1e-12, jax.lax.rsqrt(jnp.clip(size, 1e-4, 1e4)), 1.0)
