r"""Newton's method on the KKT conditions of a problem with equalities: the system, and what is known of it.

With \(z = (x, \lambda)\), \(L = f + \lambda^\top c\) and \(G = \partial c\),

$$F(z) = \begin{pmatrix} \nabla_x L \\ c \end{pmatrix}, \qquad
  K = \partial F = \begin{pmatrix} H & G^\top \\ G & 0 \end{pmatrix}, \qquad K d = -F .$$

Where H is not positive definite on the null space of G, it is replaced by \(B = H + (\xi_B + \lVert H \rVert_F) I\).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from .flat_program import FlatProgram
from .line_search import constant

__all__ = ["KKTMatrix", "Point", "equality_program", "evaluate", "kkt_matrix", "pack", "unpack"]


class Point(NamedTuple):
    """Objective, and F = (gradient of the Lagrangian, constraints) as one vector."""

    objective: Array
    residual: Array


class KKTMatrix(NamedTuple):
    """K with B in the place of H, and K itself; |H|_F, |B|_F, |G|_F and the smallest singular value of G."""

    matrix: Array
    unmodified: Array
    hessian_norm: Array
    modified_norm: Array
    jacobian_norm: Array
    smallest: Array


def equality_program(problem: Constrained, like: PrimalDual, method: str) -> FlatProgram:
    """The problem as vectors.

    **Raises:** `ArgumentError` if it has inequalities or bounds, no equalities, or more of them than unknowns.
    """
    elsewhere = "AugmentedLagrangian takes them; or write g(x) <= 0 as g(x) + s**2 = 0 with one more unknown s for each."
    if problem.inequality_fn is not None:
        raise ArgumentError("inequalities", f"are not for {method}, which takes equalities only.", elsewhere)
    if problem.bounds != (None, None):
        raise ArgumentError("bounds", f"are not for {method}, which takes equalities only.", elsewhere)
    program = FlatProgram(problem, like)
    if program.equality_count == 0:
        raise ArgumentError("equalities", f"are missing: {method} needs some.", "LBFGS minimises without constraints.")
    if program.equality_count > program.size:
        numbers = f"{program.equality_count} equations for {program.size} unknowns"
        raise ArgumentError("equalities", f"are {numbers}: no point has independent gradients of all.", "Drop some.")
    return program


def unpack(program: FlatProgram, value: PrimalDual) -> Float[Array, " n_m"]:
    """z."""
    x, equality, *_ = program.unpack(value)
    return jnp.concatenate([x, equality])


def pack(program: FlatProgram, z: Float[Array, " n_m"]) -> PrimalDual:
    """The value that z is."""
    none = jnp.zeros((0,), z.dtype)
    return program.pack(z[: program.size], z[program.size :], none, none, none)


def evaluate(z: Float[Array, " n_m"], arguments: tuple) -> Point:
    """f and F at z, for `arguments` = (problem, a value like its solution): one value and one gradient."""
    program = FlatProgram(*arguments)
    multipliers = z[program.size :]

    def lagrangian(x):
        f, c = program.value(x), program.equalities(x)
        return f + multipliers @ c, (f, c)

    (_, (f, c)), gradient = jax.value_and_grad(lagrangian, has_aux=True)(z[: program.size])
    return Point(f, jnp.concatenate([gradient, c]))


def kkt_matrix(
    problem: Constrained,
    like: PrimalDual,
    z: Float[Array, " n_m"],
    *,
    least: Any,
    shift: Any,
    regularisation: Any = 0.0,
) -> KKTMatrix:
    """K at z, held constant under differentiation: where F vanishes its derivative does not matter.

    It has a Hessian that is at least `least` on the null space of G, or else moved by |H|_F + `shift`.

    `regularisation` is subtracted from the zeros on the diagonal.
    """
    fixed, origin = constant(((problem, like), z))
    program = FlatProgram(*fixed)
    n, m = program.size, program.equality_count
    matrix = jax.jacfwd(lambda z: evaluate(z, fixed).residual)(origin)
    clean = jnp.nan_to_num(matrix)
    hessian, jacobian = clean[:n, :n], clean[n:, :n]
    _, singular, rows = jnp.linalg.svd(jacobian, full_matrices=True)
    hessian_norm = jnp.linalg.norm(hessian)
    indefinite = jnp.array(False)
    if m < n:
        null = rows[m:]
        indefinite = jnp.linalg.eigvalsh(null @ hessian @ null.T)[0] < least
    move = jnp.where(indefinite, shift + hessian_norm, 0)
    diagonal = jnp.concatenate([jnp.full((n,), move), jnp.full((m,), -regularisation)]).astype(z.dtype)
    modified_norm = jnp.linalg.norm(hessian + move * jnp.eye(n, dtype=z.dtype))
    return KKTMatrix(
        matrix + jnp.diag(diagonal), matrix, hessian_norm, modified_norm, jnp.linalg.norm(singular), singular[-1]
    )  # fmt: skip
