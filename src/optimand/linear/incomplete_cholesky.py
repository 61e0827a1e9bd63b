r"""The incomplete Cholesky factorisation without fill, as a preconditioner.

L has the pattern of the lower triangle of A, and \(L L^\top\) agrees with A on it (Meijerink and van der Vorst 1977). Row by row,

$$l_{ij} = \Big(a_{ij} - \sum_{k < j} l_{ik} l_{jk}\Big) / l_{jj}, \qquad l_{ii} = \Big(a_{ii} - \sum_{k < i} l_{ik}^2\Big)^{1/2}.$$

For M-matrices all pivots are positive. For other positive definite ones they need not be; then the factors are those of A with a larger diagonal (Manteuffel 1980).
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from ..core.errors import ArgumentError
from .incomplete_lu import by_factors
from .preconditioners import Preconditioner, as_sparse

__all__ = ["IncompleteCholesky", "incomplete_cholesky"]


class IncompleteCholesky(Preconditioner):
    """Solve with the incomplete Cholesky factors without fill, IC(0): for `CG` on positive definite matrices. Made and applied on the host.

    **Arguments:** `shift`: by which part of itself the diagonal is larger at first; more is added where a pivot is not positive.

    An empty row, as that of a cell that is no unknown, counts as one of the identity. For a real `SparseOperator` that is tagged as positive semidefinite. Raises
    `ArgumentError`, naming the argument, for another operator, a number out of its range, and a matrix whose entries are known and without factors.

    ```python
    import lineax as lx

    operator = om.linear.StencilOperator.laplacian((16, 16)).to_sparse()
    solver = om.linear.CG(1e-4, preconditioner=om.linear.IncompleteCholesky())
    lx.linear_solve(operator, jnp.ones(256), solver).stats["num_steps"]
    ```
    """

    reference: ClassVar[str] = "meijerink1977iterative"

    shift: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not 0 <= self.shift < float("inf"):
            raise ArgumentError("shift", f"must be a number that is not negative, not {self.shift!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = as_sparse(operator, "IncompleteCholesky")
        if not lx.is_positive_semidefinite(operator):
            raise ArgumentError("operator", "must be tagged as positive semidefinite for IncompleteCholesky.", "IncompleteLU takes any matrix.")
        if jnp.iscomplexobj(operator.data):
            raise ArgumentError("operator", "must be real for IncompleteCholesky.", "IncompleteLU takes complex matrices.")
        return by_factors(operator, _Recipe(self.shift), frozenset([lx.positive_semidefinite_tag]))


@dataclasses.dataclass(frozen=True)
class _Recipe:
    shift: float

    def __call__(self, matrix: scipy.sparse.csc_array) -> "_Factors | None":
        shift = self.shift
        while shift <= max(1.0, self.shift):
            factor = incomplete_cholesky(matrix, shift)
            if factor is not None:
                # of a triangular matrix SuperLU makes no fill: it is there for its substitution
                settings = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
                return _Factors(scipy.sparse.linalg.splu(factor, **settings))
            shift = max(1e-3, 4 * shift)
        return None


@dataclasses.dataclass(frozen=True)
class _Factors:
    lower: scipy.sparse.linalg.SuperLU

    @property
    def nnz(self) -> int:
        return self.lower.nnz

    def solve(self, b: np.ndarray, trans: str) -> np.ndarray:
        return self.lower.solve(self.lower.solve(b), "T")  # symmetric, whatever `trans` is


def incomplete_cholesky(matrix: scipy.sparse.csc_array, shift: float = 0.0) -> scipy.sparse.csc_array | None:
    """L of IC(0) for A + shift diag(A), or None where a pivot is not positive."""
    rows = scipy.sparse.csr_array(scipy.sparse.tril(matrix))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    full = scipy.sparse.csr_array(matrix)
    full.eliminate_zeros()
    empty = np.diff(full.indptr) == 0
    rows = scipy.sparse.csr_array(rows + scipy.sparse.diags_array(shift * matrix.diagonal() + empty, shape=matrix.shape))
    rows.sort_indices()
    lists: Any = (rows.indptr.tolist(), rows.indices.tolist(), rows.data.astype(float).tolist())
    indptr, columns, data = lists
    done: list[dict[int, float]] = []
    for i in range(len(indptr) - 1):
        row: dict[int, float] = {}
        for at in range(indptr[i], indptr[i + 1]):
            j, value = columns[at], data[at]
            if j < i:
                other = done[j]
                value = (value - sum(left * other[k] for k, left in row.items() if k in other)) / other[j]
            else:
                value -= sum(left * left for left in row.values())
                if not value > 0:
                    return None
                value = value**0.5
            row[j] = data[at] = value
        if i not in row:
            return None
        done.append(row)
    return scipy.sparse.csc_array(scipy.sparse.csr_array((data, columns, indptr), shape=matrix.shape))
