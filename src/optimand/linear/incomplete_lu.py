"""Preconditioners by factors on the host: an incomplete LU factorisation, and overlapping Schwarz blocks."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Inexact

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .factors import Factors, factorise, on_host, solve_by, turned
from .preconditioners import Preconditioner, as_sparse
from .tags import answer_by_tags

__all__ = ["AdditiveSchwarz", "IncompleteLU", "by_factors"]


class IncompleteLU(Preconditioner):
    """Solve with the factors of the matrix, without those of their entries that are small: SuperLU's ILUTP (Li and Shao 2011), through SciPy.

    For `GMRES` and its kin where a diagonal is not enough; not symmetric, whatever the matrix is. Made and applied on the host.

    **Arguments:**

    - `drop`: entries below this, relative to their column, are left out. Smaller: closer to the inverse, and dearer.
    - `fill`: entries of the factors at most, over those of the matrix.

    For a `SparseOperator`. Raises `ArgumentError`, naming the argument, for another operator, for a number out of its range, and for a matrix
    whose entries are known and without factors; where they are traced, what it is applied to becomes not a number.

    ```python
    import lineax as lx
    import scipy.sparse

    matrix = scipy.sparse.diags_array([-1.5, 2.2, -0.5], offsets=[-1, 0, 1], shape=(50, 50))
    operator = om.linear.SparseOperator.from_scipy(matrix)
    lx.linear_solve(operator, jnp.ones(50), om.linear.GMRES(1e-5, preconditioner=om.linear.IncompleteLU())).value
    ```
    """

    drop: float = eqx.field(static=True, default=1e-4)
    fill: float = eqx.field(static=True, default=10.0)

    def __check_init__(self):
        if not 0 <= self.drop < 1:
            raise ArgumentError("drop", f"must be a number from 0 to below 1, not {self.drop!r}.")
        if not 1 <= self.fill < float("inf"):
            raise ArgumentError("fill", f"must be a number of at least 1, not {self.fill!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        return by_factors(as_sparse(operator, "IncompleteLU"), _Incomplete(self.drop, self.fill), frozenset())


class AdditiveSchwarz(Preconditioner):
    """Solve with overlapping parts of the matrix, and add up what they give.

    The unknowns are cut into `blocks` of neighbouring numbers, each with the unknowns that are linked to it in `overlap` steps. Made and applied
    on the host, by SuperLU.

    **Arguments:**

    - `blocks`: how many.
    - `overlap`: none at 0, which is block Jacobi with large blocks.
    - `restricted`: of a block's result only what belongs to itself is added (Cai and Sarkis 1999): fewer iterations as a rule, but not
      symmetric.

    For a `SparseOperator`. Raises `ArgumentError`, naming the argument, for another operator, for a number out of its range, and for a matrix
    whose entries are known and of which a block is singular.
    """

    blocks: int = eqx.field(static=True, default=2)
    overlap: int = eqx.field(static=True, default=1)
    restricted: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        for name, least in (("blocks", 1), ("overlap", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(name, f"must be a whole number of at least {least}, not {value!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = as_sparse(operator, "AdditiveSchwarz")
        if self.blocks > operator.shape[0]:
            raise ArgumentError("blocks", f"must be at most the number of unknowns, {operator.shape[0]}, not {self.blocks}.")
        kept = frozenset() if self.restricted else operator.tags & {lx.symmetric_tag, lx.positive_semidefinite_tag}
        return by_factors(operator, _Schwarz(self.blocks, self.overlap, self.restricted), frozenset(kept))


@dataclasses.dataclass(frozen=True)
class _Incomplete:
    drop: float
    fill: float

    def __call__(self, matrix: scipy.sparse.csc_array) -> Any:
        try:
            return scipy.sparse.linalg.spilu(matrix, drop_tol=self.drop, fill_factor=self.fill)
        except RuntimeError:  # a column without a pivot
            return None


@dataclasses.dataclass(frozen=True)
class _Schwarz:
    blocks: int
    overlap: int
    restricted: bool

    def __call__(self, matrix: scipy.sparse.csc_array) -> "_Parts | None":
        size = matrix.indptr.size - 1
        links = scipy.sparse.csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
        links = links + links.T
        parts: list[tuple[np.ndarray, np.ndarray, Any]] = []
        for own in np.array_split(np.arange(size), self.blocks):
            inside = np.zeros(size)
            inside[own] = 1
            for _ in range(self.overlap):
                inside = ((links @ inside + inside) > 0).astype(float)
            places = np.flatnonzero(inside)
            try:
                lu = scipy.sparse.linalg.splu(scipy.sparse.csc_array(matrix[:, places][places]))
            except RuntimeError:  # exactly singular
                return None
            kept = np.isin(places, own) if self.restricted else np.ones(len(places), bool)
            parts.append((places, kept, lu))
        return _Parts(parts)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Of each block its unknowns, which of them its result is kept for, and its factors."""

    parts: list[tuple[np.ndarray, np.ndarray, Any]]

    @property
    def nnz(self) -> int:
        return sum(lu.nnz for _, _, lu in self.parts)

    def solve(self, b: np.ndarray, trans: str) -> np.ndarray:
        x = np.zeros_like(b)
        for places, kept, lu in self.parts:
            if trans == "N":
                x[places[kept]] += lu.solve(b[places])[kept]
            else:
                x[places] += lu.solve(np.where(kept, b[places], 0), trans)
        return x


def by_factors(operator, recipe, tags: frozenset[object]) -> "_ByFactors":
    """The operator that solves with the factors of this recipe. Raises `ArgumentError` where the entries are known and have none."""
    factors = factorise(operator, recipe)
    made = _ByFactors(factors, tags)
    if not is_tracer(operator.data):
        answer = made.mv(jnp.ones((operator.shape[0],), operator.data.dtype))
        if not is_tracer(answer) and not jnp.all(jnp.isfinite(answer)):
            raise ArgumentError("operator", "has no such factors: it holds numbers that are not finite, or a pivot is zero.")
    return made


class _ByFactors(lx.AbstractLinearOperator):
    """Substitution with factors on the host."""

    factors: Factors
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        dtype = jnp.result_type(self.factors.operator.data, vector)
        substitute = lambda entry, b: solve_by(entry, b.astype(dtype), self.factors.trans)
        return on_host(self.factors, substitute, jax.ShapeDtypeStruct(vector.shape, dtype), vector)

    def as_matrix(self) -> Inexact[Array, "n n"]:
        unit = jnp.eye(self.in_size(), dtype=self.factors.operator.data.dtype)
        return jax.lax.map(self.mv, unit).T

    def transpose(self) -> "_ByFactors":
        return _ByFactors(turned(self.factors, conjugated=False), self.tags)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.factors.operator.in_structure()

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_ByFactors, lambda operator: operator.tags)


@lx.linearise.register(_ByFactors)
@lx.materialise.register(_ByFactors)
def _(operator):
    return operator


@lx.conj.register(_ByFactors)
def _(operator):
    return _ByFactors(turned(operator.factors, conjugated=True), operator.tags)
