r"""Arnoldi's process, and the move in its space that leaves the least residual.

From \(v_1 = r / \lVert r \rVert\) it makes an orthonormal basis with \(P B V_s^\top = V_{s+1}^\top \bar H\), where P takes out a given space, if there is one, and
what it takes out is \(E = C B V_s^\top\). Givens rotations turn \(\bar H\) to a triangle as it grows, so the least residual is known in each step (Saad and
Schultz 1986). Vectors are made orthogonal by classical Gram-Schmidt twice: two passes over the basis each, where the modified
process needs one for each vector, and orthogonal to rounding (Giraud et al. 2005).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

__all__ = ["Arnoldi", "arnoldi"]


class Arnoldi(NamedTuple):
    """`basis` V, `images` of the preconditioner if they were kept, `hessenberg` H and `overlaps` E, of `steps` steps; zero beyond.

    `weights` are those of the move; `empty`, the steps that A maps to nothing new, which have none.
    """

    basis: Inexact[Array, "most_plus_one n"]
    images: Inexact[Array, "kept n"]
    hessenberg: Inexact[Array, "most_plus_one most"]
    overlaps: Inexact[Array, "space most"]
    weights: Inexact[Array, " most"]
    steps: Int[Array, ""]
    empty: Bool[Array, " most"]


class _Growing(NamedTuple):
    basis: Array
    images: Array
    hessenberg: Array
    overlaps: Array
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
    """At most `steps` steps (and `most`, for which there is room), ended where the residual is at `limit` or the space is exhausted.

    `left` is the norm of the residual; `space`, orthonormal rows (or zeros) to be taken out of every product.
    """
    dtype, size = residual.dtype, residual.size
    out = jnp.zeros((0, size), dtype) if space is None else space
    begin = _Growing(
        basis=jnp.zeros((most + 1, size), dtype).at[0].set(residual / jnp.where(left > 0, left, 1)),
        images=jnp.zeros((most if keep_images else 0, size), dtype),
        hessenberg=jnp.zeros((most + 1, most), dtype),
        overlaps=jnp.zeros((out.shape[0], most), dtype),
        triangle=jnp.eye(most, dtype=dtype),  # R; one where no step has been
        rotations=jnp.zeros((most, 2), dtype),
        target=jnp.zeros((most + 1,), dtype).at[0].set(left),
        step=jnp.int32(0),
        missing=left,
        exhausted=jnp.array(False),
    )

    def going(at: _Growing):
        return (at.step < most) & (at.step < steps) & (at.missing > limit) & ~at.exhausted

    def iterate(at: _Growing) -> _Growing:
        step = at.step
        toward = precondition(at.basis[step])
        images = at.images.at[step].set(toward) if keep_images else at.images
        new = matvec(toward)
        before = jnp.linalg.norm(new)
        column, taken_out = jnp.zeros((most + 1,), dtype), jnp.zeros((out.shape[0],), dtype)
        for _ in range(2):
            if out.shape[0]:
                part = jnp.conj(out) @ new
                new, taken_out = new - part @ out, taken_out + part
            part = jnp.conj(at.basis) @ new  # rows that are still zero have none
            new, column = new - part @ at.basis, column + part
        length = jnp.linalg.norm(new)
        exhausted = length <= 10 * jnp.finfo(dtype).eps * before
        basis = at.basis.at[step + 1].set(jnp.where(exhausted, 0, new / jnp.where(exhausted, 1, length)))
        hessenberg = at.hessenberg.at[:, step].set(column.at[step + 1].set(length))

        def rotate(i, column):
            c, s = at.rotations[i]
            a, b = column[i], column[i + 1]
            return column.at[i].set(c * a + s * b).at[i + 1].set(-jnp.conj(s) * a + c * b)

        column = jax.lax.fori_loop(0, step, rotate, column)
        c, s, top = _rotation(column[step], length.astype(dtype))
        below = -jnp.conj(s) * at.target[step]
        return _Growing(
            basis, images, hessenberg, at.overlaps.at[:, step].set(taken_out),
            at.triangle.at[:, step].set(jnp.where(jnp.arange(most) < step, column[:most], 0).at[step].set(top)),
            at.rotations.at[step].set(jnp.stack([c, s])),
            at.target.at[step].set(c * at.target[step]).at[step + 1].set(below),
            step + 1, jnp.abs(below), exhausted,
        )  # fmt: skip

    end = jax.lax.while_loop(going, iterate, begin)
    taken = jnp.arange(most) < end.step
    # Where the space is exhausted and A maps it to less, the last column has nothing of its own and is left out.
    diagonal = jnp.abs(jnp.diagonal(end.triangle))
    empty = taken & (diagonal <= most * jnp.finfo(dtype).eps * jnp.max(jnp.where(taken, diagonal, 0)))
    triangle = jnp.where(empty, 0, end.triangle) + jnp.diag(empty.astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(taken & ~empty, end.target[:most], 0))
    return Arnoldi(end.basis, end.images, end.hessenberg, end.overlaps, weights, end.step, empty)


def _rotation(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """c (real), s and r with c a + s b = r and -conj(s) a + c b = 0, for a real b >= 0."""
    length = jnp.sqrt(jnp.abs(a) ** 2 + jnp.abs(b) ** 2)
    safe = jnp.where(length > 0, length, 1)
    phase = jnp.where(jnp.abs(a) > 0, a / jnp.where(jnp.abs(a) > 0, jnp.abs(a), 1), 1)
    c = jnp.where(length > 0, jnp.abs(a) / safe, 1)
    s = phase * jnp.conj(b) / safe
    return c.astype(a.dtype), s.astype(a.dtype), (phase * length).astype(a.dtype)
