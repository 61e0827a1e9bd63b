"""Factorisations of dense matrices that can be batched on a CPU.

Under `vmap` JAX hands LAPACK a whole batch. jaxlib 0.10 cuts it into pieces for XLA's pool of threads and waits for them in a
thread of the same pool: as many calls that do not depend on each other as there are threads, such as the two branches of a
`cond`, which a batch turns into a `select`, then wait for ever. (jaxlib 0.11 has no such pieces any more.) And both branches
are paid for by all of the batch.

`in_turn` makes a loop of the batch instead, in which LAPACK sees one matrix at a time and a branch is a branch; for matrices of
the size that batches have it takes about as long as one call does. Where calls cost more than the arithmetic in them, a few unknowns, a
batch is better factorised entry by entry, each an array of the whole batch, and, up to some tens, substituted into row by row.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["cholesky", "cholesky_solve", "eigh", "in_turn", "solve"]


def in_turn(fn: Callable[..., Any], together: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`fn` of arrays, a batch of which is a loop on a CPU and what it always is elsewhere.

    `together` takes the place of the loop: it is `fn` of a batch, which is the first axis of all arguments (of length one in what the
    batch shares) and of what it returns.

    It must not close over anything that is traced. Its derivatives are those of `fn`, of all orders, forward and reverse; they are
    batched as JAX does it.
    """

    @jax.custom_batching.custom_vmap
    def one(*arguments):
        return fn(*arguments)

    @one.def_vmap
    def _(size, batched, *arguments):
        if not any(jax.tree_util.tree_leaves(batched)):
            out = fn(*arguments)
            return out, jax.tree_util.tree_map(lambda _: False, out)
        moving, still = _parted(arguments, tuple(batched))
        whole = lambda moving, call: call(*_joined(moving, still))

        def on_cpu(moving):
            if together is None:
                return jax.lax.map(lambda row: whole(row, one), moving)
            return together(*_joined(moving, jax.tree_util.tree_map(lambda leaf: leaf[None], still)))

        out = jax.lax.platform_dependent(
            moving, cpu=on_cpu, default=lambda moving: jax.vmap(lambda row: whole(row, fn))(moving)
        )
        return out, jax.tree_util.tree_map(lambda _: True, out)

    @jax.custom_jvp
    @functools.wraps(fn)
    def call(*arguments):
        return one(*arguments)

    @call.defjvp
    def _(primals, tangents):
        return one(*primals), jax.jvp(fn, primals, tangents)[1]

    return call


def _parted(arguments: Any, moves: Any) -> tuple[Any, Any]:
    part = lambda wanted: jax.tree_util.tree_map(lambda leaf, flag: leaf if flag is wanted else None, arguments, moves)
    return part(True), part(False)


def _joined(moving: Any, still: Any) -> Any:
    return jax.tree_util.tree_map(lambda a, b: b if a is None else a, moving, still, is_leaf=lambda leaf: leaf is None)


_FEW = 8  # unknowns, up to which entries are cheaper than calls (measured: a tenth to a quarter of the time at 6, half at 12, more at 20, and compiled longer)
_SOME = 32  # unknowns, up to which a batch is substituted into row by row


def _cholesky_by_entries(matrix):
    """The same as `cholesky`, of operations that a batch shares: for a few unknowns."""
    columns = []
    for j in range(len(matrix)):
        column = matrix[j:, j]
        for k, before in enumerate(columns):
            column = column - before[j - k :] * before[j - k]
        columns.append(column / jnp.sqrt(column[0]))
    factor = jnp.stack([jnp.pad(column, (j, 0)) for j, column in enumerate(columns)], axis=1)
    return jnp.where(jnp.all(jnp.isfinite(factor)), factor, jnp.nan)


def _solve_by_entries(factor, rhs):
    x = rhs
    for j in range(len(factor)):
        x = x.at[j].divide(factor[j, j])
        x = x.at[j + 1 :].subtract(jnp.tensordot(factor[j + 1 :, j], x[j], 0))
    for j in reversed(range(len(factor))):
        x = x.at[j].divide(factor[j, j])
        x = x.at[:j].subtract(jnp.tensordot(factor[j, :j], x[j], 0))
    return x


def _solve_by_rows(factor, rhs):
    """A^{-1} b, with the batch as the last axis of both."""
    size = len(factor)
    rhs = jnp.broadcast_to(rhs, (*rhs.shape[:-1], max(rhs.shape[-1], factor.shape[-1])))
    place = jnp.arange(size).reshape(size, *[1] * (rhs.ndim - 1))
    lift = lambda entries: entries.reshape(*entries.shape[:-1], *[1] * (rhs.ndim - 2), entries.shape[-1])

    def eliminated(j, x, column, later):
        entry = x[j] / lift(factor[j, j])
        return jnp.where(later, x - lift(column) * entry, jnp.where(place == j, entry, x))

    def backward(number, x):
        j = size - 1 - number
        return eliminated(j, x, factor[j], place < j)

    half = jax.lax.fori_loop(0, size, lambda j, x: eliminated(j, x, factor[:, j], place > j), rhs)
    return jax.lax.fori_loop(0, size, backward, half)


def _cholesky(matrix):
    return jnp.linalg.cholesky(matrix)


def _cholesky_of_many(matrices):
    if 0 < matrices.shape[-1] <= _FEW:
        return jax.vmap(_cholesky_by_entries)(matrices)
    return jax.lax.map(cholesky, matrices)


def _cholesky_solve(factor, rhs):
    return jax.scipy.linalg.cho_solve((factor, True), rhs)


def _cholesky_solve_of_many(factors, rhs):
    size = factors.shape[-1]
    if 0 < size <= _FEW:
        return jax.vmap(_solve_by_entries)(*_of_one_length(factors, rhs))
    if 0 < size <= _SOME:
        last = _solve_by_rows(jnp.moveaxis(factors, 0, -1), jnp.moveaxis(rhs, 0, -1))
        return jnp.moveaxis(last, -1, 0)
    return jax.lax.map(lambda pair: cholesky_solve(*pair), _of_one_length(factors, rhs))


def _of_one_length(*arrays):
    size = max(len(array) for array in arrays)
    return tuple(jnp.broadcast_to(array, (size, *array.shape[1:])) for array in arrays)


def cholesky(matrix):
    """The lower factor of a symmetric positive definite matrix; NaN if it is not."""
    return _factored(matrix)


def cholesky_solve(factor, rhs):
    """A^{-1} b, for the lower factor of A."""
    return _solved(factor, rhs)


_factored, _solved = in_turn(_cholesky, _cholesky_of_many), in_turn(_cholesky_solve, _cholesky_solve_of_many)


@in_turn
def eigh(matrix):
    """The eigenvalues of a symmetric matrix, the least first, and its eigenvectors, a column each."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@in_turn
def solve(matrix, rhs):
    """A^{-1} b, by LU."""
    return jnp.linalg.solve(matrix, rhs)
