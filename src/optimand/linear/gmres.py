r"""GMRES and its flexible variant.

Arnoldi's process builds an orthonormal basis of the Krylov space of A M from the residual, \(A Z_m = V_{m+1} \bar H_m\) with \(Z_m = M V_m\), and the
move \(Z_m y\) minimises the residual, \(\lVert \beta e_1 - \bar H_m y \rVert\) (Saad and Schultz 1986; preconditioned from the right, Saad 1993,
algorithm 2.2). After `restart` vectors it begins anew. Vectors are made orthogonal by classical Gram-Schmidt twice: two passes over the basis each,
where the modified process needs one for each vector, and orthogonal to rounding (Giraud et al. 2005).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from ..core.errors import ArgumentError
from .krylov import KrylovSolver, Piece, System

__all__ = ["FGMRES", "GMRES"]


class GMRES(KrylovSolver):
    """Restarted GMRES, preconditioned from the right: for any regular matrix.

    The residual that it minimises is the true one, whatever the preconditioner. Memory: `restart` + 1 vectors. If it stagnates: a
    larger `restart`, a better preconditioner, or `SparseLU`.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; `restart`: vectors of the basis.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    lx.linear_solve(operator, b, om.linear.GMRES(1e-10, preconditioner=om.linear.Jacobi())).value
    ```
    """

    reference: ClassVar[str] = "saad1986gmres"
    patience = 20

    rtol: Any = 1e-8
    atol: Any = 0.0
    restart: int = eqx.field(static=True, default=30)
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    flexible: ClassVar[bool] = False

    def __check_init__(self):
        if not isinstance(self.restart, int) or self.restart < 1:
            raise ArgumentError("restart", f"must be a whole number above zero, not {self.restart!r}.")

    def run(self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""]) -> Piece:
        return cycle(system, residual, left, steps, min(self.restart, residual.size), self.flexible)


class FGMRES(GMRES):
    """Flexible GMRES: the preconditioner may be another one in each step, such as an inner iteration or a network.

    It keeps what the preconditioner made of each vector: twice the memory of `GMRES`.
    """

    reference: ClassVar[str] = "saad1993flexible"
    flexible: ClassVar[bool] = True


def cycle(system: System, residual: Array, left: Array, steps: Array, restart: int, flexible: bool) -> Piece:
    """One cycle of at most `restart` steps, ended where the residual is at the limit or the space is exhausted."""
    dtype, size = residual.dtype, residual.size
    precondition = (lambda v: v) if system.precondition is None else system.precondition
    basis = jnp.zeros((restart + 1, size), dtype).at[0].set(residual / left)
    images = jnp.zeros((restart if flexible else 0, size), dtype)
    triangle = jnp.eye(restart, dtype=dtype)  # R, by columns; one where no step has been
    rotations = jnp.zeros((restart, 2), dtype)
    target = jnp.zeros((restart + 1,), dtype).at[0].set(left)

    def going(carry):
        step, missing, exhausted = carry[0], carry[6], carry[7]
        return (step < restart) & (step < steps) & (missing > system.limit) & ~exhausted

    def iterate(carry):
        step, basis, images, triangle, rotations, target, _, _ = carry
        toward = precondition(basis[step])
        if flexible:
            images = images.at[step].set(toward)
        new = system.matvec(toward)
        before = jnp.linalg.norm(new)
        column = jnp.zeros((restart + 1,), dtype)
        for _ in range(2):
            overlap = jnp.conj(basis) @ new  # rows that are still zero have none
            new, column = new - overlap @ basis, column + overlap
        length = jnp.linalg.norm(new)
        exhausted = length <= 10 * jnp.finfo(dtype).eps * before
        basis = basis.at[step + 1].set(jnp.where(exhausted, 0, new / jnp.where(exhausted, 1, length)))

        def rotate(i, column):
            c, s = rotations[i]
            a, b = column[i], column[i + 1]
            return column.at[i].set(c * a + s * b).at[i + 1].set(-jnp.conj(s) * a + c * b)

        column = jax.lax.fori_loop(0, step, rotate, column)
        c, s, top = _rotation(column[step], length.astype(dtype))
        rotations = rotations.at[step].set(jnp.stack([c, s]))
        triangle = triangle.at[:, step].set(jnp.where(jnp.arange(restart) < step, column[:restart], 0).at[step].set(top))
        below = -jnp.conj(s) * target[step]
        target = target.at[step].set(c * target[step]).at[step + 1].set(below)
        return step + 1, basis, images, triangle, rotations, target, jnp.abs(below), exhausted

    begin = (jnp.int32(0), basis, images, triangle, rotations, target, left, jnp.array(False))
    step, basis, images, triangle, _, target, _, _ = jax.lax.while_loop(going, iterate, begin)
    taken = jnp.arange(restart) < step
    # Where the space is exhausted and A maps it to less, the last column has nothing of its own and is left out.
    diagonal = jnp.abs(jnp.diagonal(triangle))
    empty = taken & (diagonal <= restart * jnp.finfo(dtype).eps * jnp.max(jnp.where(taken, diagonal, 0)))
    triangle = jnp.where(empty, 0, triangle) + jnp.diag(empty.astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(taken & ~empty, target[:restart], 0))
    move = weights @ images if flexible else precondition(weights @ basis[:restart])
    return Piece(move, step, step, jnp.any(empty))


def _rotation(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """c (real), s and r with c a + s b = r and -conj(s) a + c b = 0, for a real b >= 0."""
    length = jnp.sqrt(jnp.abs(a) ** 2 + jnp.abs(b) ** 2)
    safe = jnp.where(length > 0, length, 1)
    phase = jnp.where(jnp.abs(a) > 0, a / jnp.where(jnp.abs(a) > 0, jnp.abs(a), 1), 1)
    c = jnp.where(length > 0, jnp.abs(a) / safe, 1)
    s = phase * jnp.conj(b) / safe
    return c.astype(a.dtype), s.astype(a.dtype), (phase * length).astype(a.dtype)
