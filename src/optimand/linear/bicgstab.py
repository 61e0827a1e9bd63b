"""BiCGStab."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PyTree

from .krylov import KrylovSolver, Piece, System

__all__ = ["BiCGStab"]


class BiCGStab(KrylovSolver):
    """The stabilised biconjugate gradient method, preconditioned from the right: any matrix, two products a step, seven vectors.

    Where `GMRES` would need more vectors than there is memory for. Its residual may rise by orders of magnitude on the way; if a
    recurrence divides by zero the next run begins with another shadow residual, and if that does not help either the solve ends as
    `breakdown`.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    import lineax as lx

    operator = lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 4.0)))
    lx.linear_solve(operator, jnp.ones(3), om.linear.BiCGStab(1e-5)).value
    ```
    """

    reference: ClassVar[str] = "vandervorst1992bicgstab"
    patience = 3

    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        precondition = (lambda r: r) if system.precondition is None else system.precondition
        eps = jnp.finfo(residual.dtype).eps
        shadow, size = residual, left

        def going(carry):
            *_, left, step, broken = carry
            return (left > system.limit) & (step < steps) & ~broken

        def iterate(carry):
            move, r, p, rho, left, step, _ = carry
            toward = precondition(p)
            v = system.matvec(toward)
            overlap = jnp.vdot(shadow, v)
            broken = jnp.abs(overlap) <= eps**2 * size * jnp.linalg.norm(v)
            alpha = jnp.where(broken, 0, rho / jnp.where(broken, 1, overlap))
            half = r - alpha * v
            onward = precondition(half)
            t = system.matvec(onward)
            length = jnp.real(jnp.vdot(t, t))
            omega = jnp.where(length > 0, jnp.vdot(t, half) / jnp.where(length > 0, length, 1), 0)
            move, r = move + alpha * toward + omega * onward, half - omega * t
            following = jnp.vdot(shadow, r)
            left = jnp.linalg.norm(r)
            broken = broken | (left > system.limit) & ((omega == 0) | (jnp.abs(following) <= eps**2 * size * left))
            safe = jnp.where(broken, 1, rho * omega)
            p = r + (following * alpha / safe) * (p - omega * v)
            return move, r, p, following, left, step + 1, broken

        begin = (jnp.zeros_like(residual), residual, residual, jnp.vdot(shadow, residual), left, jnp.int32(0), jnp.array(False))
        move, *_, step, broken = jax.lax.while_loop(going, iterate, begin)
        return Piece(move, step, 2 * step, broken & (step <= 1))  # else the next run has another shadow
