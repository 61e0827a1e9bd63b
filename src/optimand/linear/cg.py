"""Conjugate gradients."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from .krylov import KrylovSolver, Piece, System

__all__ = ["CG"]


class CG(KrylovSolver):
    """Conjugate gradients, for positive (or negative) definite matrices: one product and three vectors a step.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; the preconditioner must be positive definite.

    The operator must be tagged as `lineax.positive_semidefinite_tag` or `negative_semidefinite_tag`; a wrong tag is found where a direction
    without curvature is met, and ends the solve as `breakdown`, as a preconditioner that is not positive definite does. A
    singular matrix is no obstacle if the right-hand side lies in its range.

    Raises `ArgumentError`, naming the argument, for a number out of its range and for an operator without such a tag.

    ```python
    import lineax as lx

    operator = lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 4.0)), lx.positive_semidefinite_tag)
    lx.linear_solve(operator, jnp.ones(3), om.linear.CG(1e-5, preconditioner=om.linear.Jacobi())).value
    ```
    """

    reference: ClassVar[str] = "hestenes1952methods"

    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if not (lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator)):
            hint = "MINRES takes symmetric matrices, GMRES any."
            raise ArgumentError("operator", "must be tagged as positive or negative semidefinite for CG.", hint)

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        precondition = (lambda r: r) if system.precondition is None else system.precondition

        def going(carry):
            *_, left, step, broken = carry
            return (left > system.limit) & (step < steps) & ~broken

        def iterate(carry):
            move, r, p, inner, _, step, _ = carry
            image = system.matvec(p)
            curvature = system.sign * jnp.real(jnp.vdot(p, image))
            broken = ~(curvature > 0) | ~(inner > 0)
            length = (system.sign * inner / jnp.where(broken, jnp.inf, curvature)).astype(r.dtype)
            move, r = move + length * p, r - length * image
            z = precondition(r)
            following = jnp.real(jnp.vdot(r, z))
            p = z + (following / jnp.where(broken, 1, inner)).astype(r.dtype) * p
            return move, r, p, following, jnp.linalg.norm(r), step + 1, broken

        z = precondition(residual)
        begin = (jnp.zeros_like(residual), residual, z, jnp.real(jnp.vdot(residual, z)), left, jnp.int32(0), jnp.array(False))
        move, *_, step, broken = jax.lax.while_loop(going, iterate, begin)
        return Piece(move, step, step, broken)
