r"""Lanczos' process: Ritz pairs of a symmetric matrix.

From \(q_1 = w / \lVert w \rVert\) it makes an orthonormal basis Q with \(Q^\top A Q = T\), tridiagonal; an eigenpair \((\theta, s)\) of T gives the
Ritz pair \((\theta, Q s)\), close to one of A at the ends of the spectrum first (Saad 2003, section 6.6). In floating point the three-term recurrence loses
orthogonality as soon as a pair converges, so that each vector is made orthogonal to all of the basis, twice (Giraud et al. 2005).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["RitzPairs", "ritz_pairs"]


class RitzPairs(NamedTuple):
    """Ascending values with orthonormal vectors, as rows; where the process ended early, the rows that are not there are zero and come last."""

    values: Float[Array, " count"]
    vectors: Float[Array, "count n"]
    there: Int[Array, ""]


def ritz_pairs(matvec: Callable[[Array], Array], start: Float[Array, " n"], count: int) -> RitzPairs:
    """`count` steps from `start`, or fewer where its Krylov space is exhausted."""
    n, dtype = start.size, start.dtype
    tiny = 100 * jnp.finfo(dtype).eps

    def step(k, carry):
        basis, alpha, beta, size = carry
        image = matvec(basis[k])
        along = jnp.vdot(basis[k], image)
        for _ in range(2):
            image = image - (basis @ image) @ basis
        length = jnp.linalg.norm(image)
        size = jnp.maximum(size, jnp.abs(along) + length)
        goes_on = length > tiny * size
        following = jnp.where(goes_on, image / jnp.where(goes_on, length, 1), 0)
        return basis.at[k + 1].set(following), alpha.at[k].set(along), beta.at[k].set(jnp.where(goes_on, length, 0)), size

    size = jnp.linalg.norm(start)
    basis = jnp.zeros((count + 1, n), dtype).at[0].set(start / jnp.where(size > 0, size, 1))
    begin = (basis, jnp.zeros(count, dtype), jnp.zeros(count, dtype), jnp.zeros((), dtype))
    basis, alpha, beta, size = jax.lax.fori_loop(0, count, step, begin)
    there = jnp.any(basis[:-1] != 0, axis=1)
    diagonal = jnp.where(there, alpha, 2 * size + 1)  # what is not there is sorted behind the spectrum
    values, weights = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
    kept = jnp.arange(count) < jnp.sum(there)
    vectors = jnp.where(kept[:, None], weights.T @ basis[:-1], 0)
    return RitzPairs(jnp.where(kept, values, 0), vectors, jnp.sum(there).astype(jnp.int32))
