r"""Flexible conjugate gradients: the preconditioner may change from step to step.

A new direction is made conjugate to the last one with what the preconditioner gave just now,

$$d = z - \frac{z^\top A p}{p^\top A p}\, p, \qquad z = M r,$$

and not by a ratio of inner products that holds for one fixed, symmetric M only (Notay 2000, with one direction kept).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from .krylov import KrylovSolver, Piece, System

__all__ = ["FlexibleCG"]


class FlexibleCG(KrylovSolver):
    """Conjugate gradients with a preconditioner that need be neither linear nor symmetric, such as an inner iteration or a network.

    One product and four vectors a step. With a fixed symmetric preconditioner its iterates are those of `CG`. The matrix must be symmetric and positive definite.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`.

    A direction without curvature, or orthogonal to the residual, ends the solve as `breakdown`. Raises `ArgumentError`, naming the argument, for a number out of its range, and for an
    operator that is complex or not tagged as positive semidefinite.
    """

    reference: ClassVar[str] = "notay2000flexible"

    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if not lx.is_positive_semidefinite(operator):
            raise ArgumentError("operator", "must be tagged as positive semidefinite for FlexibleCG.", "FGMRES takes any matrix.")
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(operator.in_structure())):
            raise ArgumentError("operator", "must be real for FlexibleCG.", "FGMRES takes complex matrices.")

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        precondition = (lambda r: r) if system.precondition is None else system.precondition

        def going(carry):
            *_, left, step, broken = carry
            return (left > system.limit) & (step < steps) & ~broken

        def iterate(carry):
            move, r, p, image, curvature, _, step, _ = carry
            z = precondition(r)
            d = z - jnp.vdot(z, image) / curvature * p
            image = system.matvec(d)
            curvature, inner = jnp.vdot(d, image), jnp.vdot(r, d)
            broken = ~(curvature > 0) | (inner == 0)
            curvature = jnp.where(broken, 1, curvature)
            length = jnp.where(broken, 0, inner / curvature)
            move, r = move + length * d, r - length * image
            return move, r, d, image, curvature, jnp.linalg.norm(r), step + 1, broken

        none = jnp.zeros_like(residual)
        begin = (none, residual, none, none, jnp.ones((), residual.dtype), left, jnp.int32(0), jnp.array(False))
        move, *_, step, broken = jax.lax.while_loop(going, iterate, begin)
        return Piece(jnp.where(jnp.all(jnp.isfinite(move)), move, 0), step, step, broken)
