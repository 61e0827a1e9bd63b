r"""Symmetric successive over-relaxation as a preconditioner.

For A = D + L + U, in a given order of the unknowns,

$$M = \frac{1}{\omega (2 - \omega)} (D + \omega L) D^{-1} (D + \omega U), \qquad
  M^{-1} r = \omega (2 - \omega) (D + \omega U)^{-1} D (D + \omega L)^{-1} r,$$

a sweep forth and a sweep back. If A is symmetric with a positive diagonal and \(0 < \omega < 2\), M is symmetric and positive definite
(Axelsson 1972).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .preconditioners import Preconditioner, as_sparse
from .sparse import SparseOperator
from .sweeps import Sweeps, Triangle, need_ordering
from .tags import answer_by_tags

__all__ = ["SSOR", "need_diagonal", "need_omega"]


class SSOR(Preconditioner):
    """Symmetric successive over-relaxation: a sweep forth and a sweep back.

    For symmetric and positive definite matrices; it serves others, for `GMRES`, where their diagonal dominates. On grids a good `omega`
    makes the number of steps of `CG` grow as the square root of what it is without; which is good depends on the matrix, and
    `optimal_omega` is that of another method, `SOR`.

    **Arguments:**

    - `omega`: between 0 and 2; may be traced.
    - `ordering`: of the unknowns: `"natural"`, or `"redblack"`, whose sweeps take two steps on five-point grids where the natural ones take as
      many as two sides, but which saves fewer steps of the solver.

    For a `SparseOperator`. Raises `ArgumentError` for another operator, an `omega` out of its range, and, where the entries are known, for one
    of the diagonal that is zero or negative, with its row. Inside of `lineax.linear_solve` they are not known: there it is not noticed but by how the solve ends.

    ```python
    import lineax as lx
    import scipy.sparse

    laplacian = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(100, 100))
    operator = om.linear.SparseOperator.from_scipy(laplacian, tags=lx.positive_semidefinite_tag)
    solver = om.linear.CG(1e-4, preconditioner=om.linear.SSOR(1.5))
    lx.linear_solve(operator, jnp.ones(100), solver).stats["num_steps"]
    ```
    """

    reference: ClassVar[str] = "axelsson1972generalized"

    omega: Any = 1.0
    ordering: str = eqx.field(static=True, default="natural")

    def __check_init__(self):
        need_omega(self.omega)
        need_ordering(self.ordering)

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = as_sparse(operator, "SSOR")
        need_diagonal(operator)
        sweeps = Sweeps.of(operator.pattern, self.ordering)
        omega = jnp.asarray(self.omega, jnp.finfo(operator.data.dtype).dtype)
        lower, upper = sweeps.lower_triangle(operator, omega), sweeps.upper_triangle(operator, omega)
        tags = operator.tags & {lx.symmetric_tag, lx.positive_semidefinite_tag}
        return _Sweeping(lower, upper, omega * (2 - omega), frozenset(tags))


class _Sweeping(lx.AbstractLinearOperator):
    """scale * second^{-1} D first^{-1}, for two triangles with the same diagonal D."""

    first: Triangle
    second: Triangle
    scale: Inexact[Array, ""]
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        between = self.scale * self.first.diagonal * self.first.solve(vector)
        return self.second.solve(between)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        return jax.vmap(self.mv, out_axes=1)(jnp.eye(self.first.diagonal.size, dtype=self.first.diagonal.dtype))

    def transpose(self) -> "_Sweeping":
        return _Sweeping(self.second.transpose(), self.first.transpose(), self.scale, self.tags)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.first.diagonal.shape, self.first.diagonal.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_Sweeping, lambda operator: operator.tags)


@lx.linearise.register(_Sweeping)
@lx.materialise.register(_Sweeping)
def _(operator):
    return operator


@lx.conj.register(_Sweeping)
def _(operator):
    return _Sweeping(operator.first.conj(), operator.second.conj(), operator.scale, operator.tags)


def need_omega(omega: Any) -> None:
    """Raise `ArgumentError` if a relaxation parameter is known and not between 0 and 2."""
    if not is_tracer(omega) and (np.shape(omega) != () or not 0 < np.asarray(omega) < 2):
        raise ArgumentError("omega", f"must be a number between 0 and 2, both excluded, not {omega}.")


def need_diagonal(operator: SparseOperator) -> None:
    """Raise `ArgumentError` if the diagonal is known, and zero or negative somewhere."""
    if is_tracer(operator.data):
        return
    rows, columns, data = operator.pattern.places.rows, operator.pattern.places.columns, np.asarray(operator.data)
    on, diagonal = rows == columns, np.zeros(operator.shape[0], data.dtype)
    np.add.at(diagonal, rows[on], data[on])
    wrong = diagonal == 0 if np.iscomplexobj(diagonal) else diagonal <= 0
    if wrong.any():
        row = int(np.argmax(wrong))
        hint = "" if diagonal[row] == 0 else "Multiply its row, and the right-hand side there, by -1."
        raise ArgumentError("operator", f"must have a positive diagonal, but entry ({row}, {row}) is {diagonal[row]}.", hint)
