r"""GMRES and its flexible variant.

Arnoldi's process builds an orthonormal basis of the Krylov space of A M from the residual, \(A Z_m = V_{m+1} \bar H_m\) with \(Z_m = M V_m\), and the
move \(Z_m y\) minimises the residual, \(\lVert \beta e_1 - \bar H_m y \rVert\) (Saad and Schultz 1986; preconditioned from the right, Saad 1993,
algorithm 2.2). After `restart` vectors it begins anew.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from .arnoldi import arnoldi
from .krylov import KrylovSolver, Piece, System

__all__ = ["FGMRES", "GMRES"]


class GMRES(KrylovSolver):
    """Restarted GMRES, preconditioned from the right: for any regular matrix.

    The residual that it minimises is the true one, whatever the preconditioner. Memory: `restart` + 1 vectors. If it stagnates: a
    larger `restart`, a better preconditioner, or `SparseLU`.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; `restart`: vectors of the basis.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    import lineax as lx

    operator = lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 4.0)))
    lx.linear_solve(operator, jnp.ones(3), om.linear.GMRES(1e-5, preconditioner=om.linear.Jacobi())).value
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

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        precondition = (lambda v: v) if system.precondition is None else system.precondition
        most = min(self.restart, residual.size)
        found = arnoldi(system.matvec, precondition, residual, left, system.limit, steps, most, keep_images=self.flexible)
        move = found.weights @ found.images if self.flexible else precondition(found.weights @ found.basis[:-1])
        return Piece(move, found.steps, found.steps, jnp.any(found.empty))


class FGMRES(GMRES):
    """Flexible GMRES: the preconditioner may be another one in each step, such as an inner iteration or a network.

    It keeps what the preconditioner made of each vector: twice the memory of `GMRES`.
    """

    reference: ClassVar[str] = "saad1993flexible"
    flexible: ClassVar[bool] = True
