"""LU factors of a sparse matrix: factor once, solve for many right-hand sides, and for the transpose in the derivative.

The factors are SuperLU's (Demmel et al. 1999, through SciPy) and live outside of JAX, in a table of this process. A solve names them by
a digest of the matrix, and is given the matrix as well: if the table has dropped them they are made again, so the answer depends on
nothing but the arguments, and only the time on the table.
"""

import collections
import hashlib
import threading
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, PyTree, UInt32

from ..core.errors import ArgumentError
from ..core.host import call_on_host
from .preconditioners import as_sparse
from .sparse import SparseOperator

__all__ = ["SparseLU"]


class _Factors(NamedTuple):
    """What SuperLU made of a matrix in CSC; no `lu` where it is singular."""

    matrix: scipy.sparse.csc_array
    lu: Any

    @property
    def bytes(self) -> int:
        return 16 * (self.matrix.nnz + (0 if self.lu is None else self.lu.nnz))


class _Table:
    """The factors used last, up to a number of bytes, and always the newest."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._entries: collections.OrderedDict[bytes, _Factors] = collections.OrderedDict()
        self._lock = threading.Lock()

    def find(self, digest: bytes) -> _Factors | None:
        with self._lock:
            if digest in self._entries:
                self._entries.move_to_end(digest)
            return self._entries.get(digest)

    def put(self, digest: bytes, factors: _Factors) -> None:
        with self._lock:
            self._entries[digest] = factors
            while len(self._entries) > 1 and sum(entry.bytes for entry in self._entries.values()) > self._most_bytes:
                self._entries.popitem(last=False)


_TABLE = _Table(2**30)


class SparseLUState(NamedTuple):
    """The matrix, the digest of its factors, and whether it is the transpose that is solved with."""

    operator: SparseOperator
    digest: UInt32[Array, "8"]
    transposed: eqxi.Static


class SparseLU(lx.AbstractLinearSolver[SparseLUState]):
    """Direct solves with a sparse matrix: a lineax solver for `SparseOperator`.

    The right one for systems that one machine can factorise (in two dimensions some hundred thousand unknowns, in three some ten
    thousand), for many right-hand sides, and where iterations stagnate. A state, `solver.init(operator, {})`, serves any number of
    solves, and derivatives use its factors for the transposed system.

    **Arguments:**

    - `ordering`: of the columns, by which SuperLU keeps the factors sparse: `"auto"` (`"MMD_AT_PLUS_A"` if the matrix is tagged as
      symmetric, else `"COLAMD"`), or a `permc_spec` of `scipy.sparse.linalg.splu`.
    - `refinements`: steps of iterative refinement at most; one is taken where the residual is above ten roundings.

    A matrix that is singular, or not finite, ends as `RESULTS.singular`. `stats` holds the relative `residual`, computed with the matrix, and
    the `fill`, entries of the factors over those of the matrix. Runs on the host: inside `jit` through a callback, under `vmap`
    one after the other.

    **Raises:** `ArgumentError` for an operator that is not a `SparseOperator` or not square, and for an ordering that is not known.

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

    def __check_init__(self):
        known = ("auto", "COLAMD", "MMD_AT_PLUS_A", "MMD_ATA", "NATURAL")
        if self.ordering not in known:
            raise ArgumentError("ordering", f"must be one of {', '.join(known)}, not {self.ordering!r}.")
        if not isinstance(self.refinements, int) or self.refinements < 0:
            raise ArgumentError("refinements", f"must be a whole number, not {self.refinements!r}.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> SparseLUState:
        operator = as_sparse(operator, "SparseLU")
        spec = self.ordering
        if spec == "auto":
            spec = "MMD_AT_PLUS_A" if lx.is_symmetric(operator) else "COLAMD"
        pattern, size = operator.pattern, operator.shape[0]

        def factorise(data, rows, columns):
            digest = _digest(spec, data, rows, columns)
            _factors(digest, spec, size, data, rows, columns)
            return np.frombuffer(digest, np.uint32)

        key = jax.ShapeDtypeStruct((8,), np.uint32)
        digest = call_on_host(factorise, key, operator.data, pattern.rows, pattern.columns)
        return SparseLUState(operator, digest, eqxi.Static((spec, "N")))

    def compute(self, state: SparseLUState, vector: PyTree[Array], options: dict[str, Any]):
        operator, digest, how = state
        spec, trans = how.value
        pattern, size, dtype = operator.pattern, operator.shape[0], jnp.result_type(operator.data, vector)
        real = jnp.finfo(dtype).dtype

        def substitute(digest, data, rows, columns, vector):
            factors = _factors(digest.tobytes(), spec, size, data, rows, columns)
            x, residual = _solve(factors, vector.astype(dtype), trans, self.refinements)
            nonzeros = 0 if factors.lu is None else factors.lu.nnz
            return x, residual, nonzeros / max(1, factors.matrix.nnz)

        shapes = (jax.ShapeDtypeStruct(vector.shape, dtype), *[jax.ShapeDtypeStruct((), real)] * 2)
        x, residual, fill = call_on_host(substitute, shapes, digest, operator.data, pattern.rows, pattern.columns, vector)
        singular = ~jnp.isfinite(residual)
        result = lx.RESULTS.where(singular, lx.RESULTS.singular, lx.RESULTS.successful)
        return x, result, {"residual": residual, "fill": fill}

    def transpose(self, state: SparseLUState, options: dict[str, Any]):
        spec, trans = state.transposed.value
        turned = {"N": "T", "T": "N", "H": "C", "C": "H"}[trans]
        return state._replace(transposed=eqxi.Static((spec, turned))), {}

    def conj(self, state: SparseLUState, options: dict[str, Any]):
        spec, trans = state.transposed.value
        turned = {"N": "C", "T": "H", "H": "T", "C": "N"}[trans]
        return state._replace(transposed=eqxi.Static((spec, turned))), {}

    def assume_full_rank(self) -> bool:
        return True


def _digest(spec: str, *arrays: np.ndarray) -> bytes:
    summary = hashlib.blake2b(spec.encode(), digest_size=32)
    for array in arrays:
        array = np.ascontiguousarray(array)
        summary.update(f"{array.dtype}{array.shape}".encode())
        summary.update(array.data)
    return summary.digest()


def _factors(digest: bytes, spec: str, size: int, data: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> _Factors:
    """Those of the table, or new ones."""
    found = _TABLE.find(digest)
    if found is None:
        matrix = scipy.sparse.coo_array((data, (rows, columns)), shape=(size, size)).tocsc()
        found = _Factors(matrix, _superlu(matrix, spec))
        _TABLE.put(digest, found)
    return found


def _superlu(matrix: scipy.sparse.csc_array, spec: str) -> Any:
    if not np.all(np.isfinite(matrix.data)):
        return None
    symmetric = {"diag_pivot_thresh": 0.1, "options": {"SymmetricMode": True}} if spec == "MMD_AT_PLUS_A" else {}
    try:
        return scipy.sparse.linalg.splu(matrix, permc_spec=spec, **symmetric)
    except RuntimeError:  # exactly singular
        return None


def _solve(factors: _Factors, b: np.ndarray, trans: str, refinements: int) -> tuple[np.ndarray, float]:
    """x, and |b - A x| / |b|; both NaN if there are no factors."""
    if factors.lu is None:
        return np.full(b.shape, np.nan, b.dtype), np.nan
    if trans == "C":  # conj(A) x = b
        x, residual = _solve(factors, np.conj(b), "N", refinements)
        return np.conj(x), residual
    turned = {"N": factors.matrix, "T": factors.matrix.T, "H": factors.matrix.conj().T}[trans]
    size = np.linalg.norm(b) or 1.0
    x = factors.lu.solve(b, trans=trans)
    left = b - turned @ x
    for _ in range(refinements):
        if not np.linalg.norm(left) > 10 * np.finfo(b.dtype).eps * size:
            break
        better = x + factors.lu.solve(left.astype(b.dtype), trans=trans)
        left_then = b - turned @ better
        if not np.linalg.norm(left_then) < np.linalg.norm(left):
            break
        x, left = better, left_then
    return x, float(np.linalg.norm(left) / size)
