"""LU factors of a sparse matrix: factor once, solve for many right-hand sides, and for the transpose in the derivative.

The factors are SuperLU's (Demmel et al. 1999, through SciPy), or KLU's, and live outside of JAX: see `factors`.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from .factors import Entry, Factors, factorise, on_host, solve_by, turned
from .klu import KLU, need_klu
from .preconditioners import as_sparse

__all__ = ["SparseLU", "SuperLU"]


@dataclasses.dataclass(frozen=True)
class SuperLU:
    """Factors of the whole matrix, with this `permc_spec`."""

    ordering: str

    def __call__(self, matrix: scipy.sparse.csc_array) -> Any:
        symmetric = {"diag_pivot_thresh": 0.1, "options": {"SymmetricMode": True}} if self.ordering == "MMD_AT_PLUS_A" else {}
        try:
            return scipy.sparse.linalg.splu(matrix, permc_spec=self.ordering, **symmetric)
        except RuntimeError:  # exactly singular
            return None


class SparseLU(lx.AbstractLinearSolver[Factors]):
    """Direct solves with a sparse matrix: a lineax solver for `SparseOperator`.

    The right one for systems that one machine can factorise (in two dimensions some hundred thousand unknowns, in three some ten
    thousand), for many right-hand sides, and where iterations stagnate. A state, `solver.init(operator, {})`, serves any number of
    solves, and derivatives use its factors for the transposed system.

    **Arguments:**

    - `ordering`: of the columns, by which SuperLU keeps the factors sparse: `"auto"` (`"MMD_AT_PLUS_A"` if the matrix is tagged as
      symmetric, else `"COLAMD"`), or a `permc_spec` of `scipy.sparse.linalg.splu`.
    - `library`: `"superlu"`, or `"klu"`, which is the faster one for matrices that are nearly triangular up to an ordering, as those of circuits
      are, and makes its own ordering; it needs the extra `klu`, that is kvxopt, which is under the GNU General Public License.
    - `refinements`: steps of iterative refinement at most; one is taken where the residual is above ten roundings.

    A matrix that is singular, or not finite, ends as `RESULTS.singular`. `stats` holds the relative `residual`, computed with the matrix, and
    the `fill`, entries of the factors over those of the matrix. Runs on the host: inside `jit` through a callback, under `vmap`
    one after the other.

    **Raises:** `ArgumentError` for an operator that is not a `SparseOperator` or not square, for an ordering or a library that is not known, and
    `MissingExtra` where KLU is not installed.

    ```python
    import lineax as lx
    import scipy.sparse

    operator = om.linear.SparseOperator.from_scipy(scipy.sparse.eye_array(5) * 2.0)
    lx.linear_solve(operator, jnp.ones(5), om.linear.SparseLU()).value
    ```
    """

    reference: ClassVar[str] = "demmel1999supernodal"

    ordering: str = eqx.field(static=True, default="auto")
    refinements: int = eqx.field(static=True, default=2)
    library: str = eqx.field(static=True, default="superlu")

    def __check_init__(self):
        if self.library not in ("superlu", "klu"):
            raise ArgumentError("library", f"must be superlu or klu, not {self.library!r}.")
        if self.library == "klu":
            need_klu()
            if self.ordering != "auto":
                raise ArgumentError("ordering", f"is {self.ordering!r}, but KLU makes its own.", 'Leave it at "auto".')
        known = ("auto", "COLAMD", "MMD_AT_PLUS_A", "MMD_ATA", "NATURAL")
        if self.ordering not in known:
            raise ArgumentError("ordering", f"must be one of {', '.join(known)}, not {self.ordering!r}.")
        if not isinstance(self.refinements, int) or self.refinements < 0:
            raise ArgumentError("refinements", f"must be a whole number, not {self.refinements!r}.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Factors:
        operator = as_sparse(operator, "SparseLU")
        if self.library == "klu":
            return factorise(operator, KLU())
        ordering = self.ordering
        if ordering == "auto":
            ordering = "MMD_AT_PLUS_A" if lx.is_symmetric(operator) else "COLAMD"
        return factorise(operator, SuperLU(ordering))

    def compute(self, state: Factors, vector: PyTree[Array], options: dict[str, Any]):
        dtype = jnp.result_type(state.operator.data, vector)
        real = jnp.finfo(dtype).dtype

        def substitute(entry: Entry, vector: np.ndarray):
            x, residual = _refined(entry, vector.astype(dtype), state.trans, self.refinements)
            nonzeros = 0 if entry.factors is None else entry.factors.nnz
            return x, residual, nonzeros / max(1, entry.matrix.nnz)

        shapes = (jax.ShapeDtypeStruct(vector.shape, dtype), *[jax.ShapeDtypeStruct((), real)] * 2)
        x, residual, fill = on_host(state, substitute, shapes, vector)
        singular = ~jnp.isfinite(residual)
        result = lx.RESULTS.where(singular, lx.RESULTS.singular, lx.RESULTS.successful)
        return x, result, {"residual": residual, "fill": fill}

    def transpose(self, state: Factors, options: dict[str, Any]):
        return turned(state, conjugated=False), {}

    def conj(self, state: Factors, options: dict[str, Any]):
        return turned(state, conjugated=True), {}

    def assume_full_rank(self) -> bool:
        return True


def _refined(entry: Entry, b: np.ndarray, trans: str, refinements: int) -> tuple[np.ndarray, float]:
    """x, and |b - A x| / |b|; both NaN if there are no factors."""
    if trans == "C":  # conj(A) x = b
        x, residual = _refined(entry, np.conj(b), "N", refinements)
        return np.conj(x), residual
    matrix = {"N": entry.matrix, "T": entry.matrix.T, "H": entry.matrix.conj().T}[trans]
    size = np.linalg.norm(b) or 1.0
    x = solve_by(entry, b, trans)
    left = b - matrix @ x
    for _ in range(refinements):
        if not np.linalg.norm(left) > 10 * np.finfo(b.dtype).eps * size:
            break
        better = x + solve_by(entry, left.astype(b.dtype), trans)
        left_then = b - matrix @ better
        if not np.linalg.norm(left_then) < np.linalg.norm(left):
            break
        x, left = better, left_then
    return x, float(np.linalg.norm(left) / size)
