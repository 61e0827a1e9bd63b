r"""Arnoldi's process, and the move in its space that leaves the least residual.

From \(v_1 = r / \lVert r \rVert\) it makes an orthonormal basis with \(P B V_s^\top = V_{s+1}^\top \bar H\), where P takes out a given space, if there is one, and
what it takes out is \(E = C B V_s^\top\). Givens rotations turn \(\bar H\) to a triangle as it grows, so the least residual is known in each step (Saad and
Schultz 1986). Vectors are made orthogonal by classical Gram-Schmidt, in two passes over the basis where the modified process needs two for each vector, and a
second time where little of a vector is left, a tenth, so that they are orthogonal to a few roundings (Giraud et al. 2005). The passes are most of what a step costs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

__all__ = ["Arnoldi", "arnoldi"]


class Arnoldi(NamedTuple):
    """`basis` [C; V], `images` of the preconditioner if they were kept, and [E; H], of `steps` steps; zero beyond.

    All of them are numbered as the rows of the basis are: what belongs to V begins at `first`, the number of rows of C. `weights` are those of the move; `empty`, the
    steps that A maps to nothing new, which have none.
    """

    basis: Inexact[Array, "most_plus_one n"]
    images: Inexact[Array, "kept n"]
    hessenberg: Inexact[Array, "most_plus_one most"]
    weights: Inexact[Array, " most"]
    first: Int[Array, ""]
    steps: Int[Array, ""]
    empty: Bool[Array, " most"]


class _Growing(NamedTuple):
    basis: Array
    images: Array
    hessenberg: Array
    triangle: Array
    rotations: Array
    target: Array
    step: Array
    missing: Array
    exhausted: Array


def arnoldi(
    matvec: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    residual: Inexact[Array, " n"],
    left: Float[Array, ""],
    limit: Float[Array, ""],
    steps: Any,
    most: int,
    *,
    space: Inexact[Array, "space n"] | None = None,
    keep_images: bool = False,
) -> Arnoldi:
    """At most `steps` steps, ended where the residual is at `limit` or the space is exhausted.

    `left` is the norm of the residual; `space`, orthonormal rows to be taken out of every product, or zeros, which have to be the last ones. The basis has room for `most`
    rows and one more, those of the space included.
    """
    dtype, size = residual.dtype, residual.size
    basis, first = jnp.zeros((most + 1, size), dtype), jnp.int32(0)
    if space is not None:
        basis, first = basis.at[: len(space)].set(space), jnp.sum(jnp.any(space != 0, axis=1)).astype(jnp.int32)
    begin = _Growing(
        basis=basis.at[first].set(residual / jnp.where(left > 0, left, 1)),
        images=jnp.zeros((most if keep_images else 0, size), dtype),
        hessenberg=jnp.zeros((most + 1, most), dtype),
        triangle=jnp.eye(most, dtype=dtype),  # R; one where no step has been
        rotations=jnp.eye(most + 1, dtype=dtype),  # all of them, as one matrix
        target=jnp.zeros((most + 1,), dtype).at[first].set(left),
        step=first,
        missing=left,
        exhausted=jnp.array(False),
    )
    last = jnp.minimum(most, first + steps)

    def going(at: _Growing):
        return (at.step < last) & (at.missing > limit) & ~at.exhausted

    def iterate(at: _Growing) -> _Growing:
        step = at.step
        toward = precondition(at.basis[step])
        images = at.images.at[step].set(toward) if keep_images else at.images
        product = matvec(toward)

        def orthogonal(new: Array) -> tuple[Array, Array, Array]:
            part = jnp.conj(at.basis) @ new  # rows that are still zero have none
            new = new - part @ at.basis
            return new, part, jnp.linalg.norm(new)

        def again(new: Array, column: Array) -> tuple[Array, Array, Array]:
            new, part, length = orthogonal(new)
            return new, column + part, length

        before = jnp.linalg.norm(product)
        new, column, length = orthogonal(product)
        new, column, length = jax.lax.cond(length > 0.1 * before, lambda new, column: (new, column, length), again, new, column)
        exhausted = length <= 10 * jnp.finfo(dtype).eps * before
        basis = at.basis.at[step + 1].set(jnp.where(exhausted, 0, new / jnp.where(exhausted, 1, length)))
        hessenberg = at.hessenberg.at[:, step].set(column.at[step + 1].set(length))

        column = at.rotations @ column
        c, s, top = _rotation(column[step], length.astype(dtype))
        above, under = at.rotations[step], at.rotations[step + 1]
        rotations = at.rotations.at[step].set(c * above + s * under).at[step + 1].set(-jnp.conj(s) * above + c * under)
        below = -jnp.conj(s) * at.target[step]
        number = jnp.arange(most)
        return _Growing(
            basis, images, hessenberg,
            at.triangle.at[:, step].set(jnp.where((number >= first) & (number < step), column[:most], 0).at[step].set(top)),
            rotations,
            at.target.at[step].set(c * at.target[step]).at[step + 1].set(below),
            step + 1, jnp.abs(below), exhausted,
        )  # fmt: skip

    end = jax.lax.while_loop(going, iterate, begin)
    taken = (jnp.arange(most) >= first) & (jnp.arange(most) < end.step)
    # Where the space is exhausted and A maps it to less, the last column has nothing of its own and is left out.
    diagonal = jnp.abs(jnp.diagonal(end.triangle))
    empty = taken & (diagonal <= most * jnp.finfo(dtype).eps * jnp.max(jnp.where(taken, diagonal, 0)))
    triangle = jnp.where(empty, 0, end.triangle) + jnp.diag(empty.astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(taken & ~empty, end.target[:most], 0))
    return Arnoldi(end.basis, end.images, end.hessenberg, weights, first, end.step - first, empty)


def _rotation(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """c (real), s and r with c a + s b = r and -conj(s) a + c b = 0, for a real b >= 0."""
    length = jnp.sqrt(jnp.abs(a) ** 2 + jnp.abs(b) ** 2)
    safe = jnp.where(length > 0, length, 1)
    phase = jnp.where(jnp.abs(a) > 0, a / jnp.where(jnp.abs(a) > 0, jnp.abs(a), 1), 1)
    c = jnp.where(length > 0, jnp.abs(a) / safe, 1)
    s = phase * jnp.conj(b) / safe
    return c.astype(a.dtype), s.astype(a.dtype), (phase * length).astype(a.dtype)
