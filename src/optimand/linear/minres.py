r"""MINRES, for symmetric matrices that may be indefinite or singular.

Lanczos' process in the inner product of M makes A tridiagonal, \(A Z_k = V_{k+1} \bar T_k\) with \(z_i = M v_i\); Givens rotations reduce \(\bar T_k\) to a
triangle of three diagonals, so the minimiser of the residual in the norm of M needs two vectors of the past only (Paige and Saunders
1975; preconditioned as in Elman, Silvester and Wathen 2014, algorithm 4.1).
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from .krylov import KrylovSolver, Piece, System

__all__ = ["MINRES"]


class _Lanczos(NamedTuple):
    """Vectors v and z = M v of this step and v of the last one, the entry of T between them, two rotations, and the last two directions."""

    v: Array
    z: Array
    v_old: Array
    beta: Array
    c: Array
    s: Array
    c_old: Array
    s_old: Array
    w: Array
    w_old: Array
    move: Array
    phi: Array  # the norm of the residual, that of M, with a sign
    step: Array
    broken: Array
    over: Array


class MINRES(KrylovSolver):
    """The minimal residual method: for symmetric matrices, indefinite or singular too, in one product and seven vectors a step.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; the preconditioner must be positive definite
    (or the solve ends as `breakdown`).

    The operator must be tagged as symmetric. Raises `ArgumentError`, naming the argument, if it is not, if it is complex, and for
    a number out of its range.

    ```python
    import lineax as lx

    operator = lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 4.0)), lx.symmetric_tag)
    lx.linear_solve(operator, jnp.ones(3), om.linear.MINRES(1e-5)).value
    ```
    """

    reference: ClassVar[str] = "paige1975solution"

    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator)):
            raise ArgumentError("operator", "must be tagged as symmetric for MINRES.", "GMRES takes any matrix.")
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree_util.tree_leaves(operator.in_structure())):
            raise ArgumentError("operator", "must be real for MINRES.", "GMRES takes complex matrices.")

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        precondition = (lambda r: r) if system.precondition is None else system.precondition
        number = lambda value: jnp.asarray(value, residual.dtype)
        z = precondition(residual)
        square = residual @ z
        first = jnp.sqrt(jnp.maximum(square, 0))
        scale = jnp.where(first > 0, first, 1)
        nothing = jnp.zeros_like(residual)
        goal = first * system.limit / left  # as small a part of the residual in the norm of M as is asked for in the Euclidean one

        def going(at: _Lanczos):
            return (jnp.abs(at.phi) > goal) & (at.step < steps) & ~at.broken & ~at.over

        def iterate(at: _Lanczos) -> _Lanczos:
            image = system.matvec(at.z)
            alpha = at.z @ image
            v = image - alpha * at.v - at.beta * at.v_old
            z = precondition(v)
            square = v @ z
            beta = jnp.sqrt(jnp.maximum(square, 0))
            over = beta <= 10 * jnp.finfo(v.dtype).eps * (jnp.abs(alpha) + at.beta)
            safe = jnp.where(over, 1, beta)
            # The new column of T is (beta_old, alpha, beta): the two rotations before it turn it to (epsilon, delta, gamma), a new one ends it.
            epsilon, passed = at.s_old * at.beta, at.c_old * at.beta
            delta, bar = at.c * passed + at.s * alpha, at.c * alpha - at.s * passed
            gamma = jnp.hypot(bar, beta)
            regular = gamma > 0
            c = jnp.where(regular, bar / jnp.where(regular, gamma, 1), 1)
            s = jnp.where(regular, beta / jnp.where(regular, gamma, 1), 0)
            w = jnp.where(regular, (at.z - epsilon * at.w_old - delta * at.w) / jnp.where(regular, gamma, 1), 0)
            move = at.move + c * at.phi * w
            negative = square < -1e3 * jnp.finfo(v.dtype).eps * (v @ v + z @ z)
            return _Lanczos(
                v / safe, z / safe, at.v, beta, c, s, at.c, at.s, w, at.w, move, -s * at.phi, at.step + 1, negative, over,
            )  # fmt: skip

        one, zero = number(1.0), number(0.0)
        begin = _Lanczos(
            residual / scale, z / scale, nothing, zero, one, zero, one, zero, nothing, nothing, nothing, first, jnp.int32(0), ~(square > 0),
            jnp.array(False),
        )  # fmt: skip
        end = jax.lax.while_loop(going, iterate, begin)
        return Piece(end.move, end.step, end.step, end.broken)
