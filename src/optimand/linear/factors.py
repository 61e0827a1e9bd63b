"""Factors of sparse matrices, which live outside of JAX, in a table of this process.

Who wants to solve with them names them by a digest of the matrix, and gives the matrix as well: if the table has dropped the factors they are
made again, so the answer depends on nothing but the arguments, and only the time on the table.
"""

import collections
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import numpy as np
import scipy.sparse
from jaxtyping import Array, PyTree, UInt32

from ..core.host import call_on_host
from .sparse import SparseOperator

__all__ = ["Entry", "Factors", "Recipe", "factorise", "on_host", "solve_by", "turned"]


# How to make factors of a matrix: something with `solve(b, trans)`, as SciPy's SuperLU has it, and `nnz`; None for a matrix that has none. Recipes are
# hashable, and told from others by their `repr`.
Recipe = Callable[[scipy.sparse.csc_array], Any]


class Entry(NamedTuple):
    """A matrix and its factors, if it has any."""

    matrix: scipy.sparse.csc_array
    factors: Any

    @property
    def bytes(self) -> int:
        return 16 * (self.matrix.nnz + (0 if self.factors is None else self.factors.nnz))


class _Table:
    """The factors used last, up to a number of bytes, and always the newest."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._entries: collections.OrderedDict[bytes, Entry] = collections.OrderedDict()
        self._lock = threading.Lock()

    def find(self, digest: bytes) -> Entry | None:
        with self._lock:
            if digest in self._entries:
                self._entries.move_to_end(digest)
            return self._entries.get(digest)

    def put(self, digest: bytes, entry: Entry) -> None:
        with self._lock:
            self._entries[digest] = entry
            while len(self._entries) > 1 and sum(entry.bytes for entry in self._entries.values()) > self._most_bytes:
                self._entries.popitem(last=False)


_TABLE = _Table(2**30)


class Factors(NamedTuple):
    """The matrix, the digest of its factors, and how they are made and used: the recipe, and `trans` as for `solve_by`."""

    operator: SparseOperator
    digest: UInt32[Array, "8"]
    how: eqxi.Static

    @property
    def trans(self) -> str:
        return self.how.value[1]


def factorise(operator: SparseOperator, recipe: Recipe) -> Factors:
    """Make the factors, unless the table has them."""
    pattern, size = operator.pattern, operator.shape[0]

    def make(data, rows, columns):
        digest = _digest(repr(recipe), data, rows, columns)
        _entry(digest, recipe, size, data, rows, columns)
        return np.frombuffer(digest, np.uint32)

    digest = call_on_host(make, jax.ShapeDtypeStruct((8,), np.uint32), operator.data, pattern.rows, pattern.columns)
    return Factors(operator, digest, eqxi.Static((recipe, "N")))


_TRANSPOSED = {"N": "T", "T": "N", "H": "C", "C": "H"}
_CONJUGATED = {"N": "C", "C": "N", "T": "H", "H": "T"}


def turned(factors: Factors, *, conjugated: bool) -> Factors:
    """Those of the transposed matrix, or of the conjugate one; the same entry of the table."""
    recipe, trans = factors.how.value
    return factors._replace(how=eqxi.Static((recipe, (_CONJUGATED if conjugated else _TRANSPOSED)[trans])))


def on_host(factors: Factors, fn: Callable[[Entry, np.ndarray], Any], shapes: PyTree, vector: Array) -> PyTree:
    """`fn` of the entry of the table and the vector, through a callback."""
    recipe, _ = factors.how.value
    pattern, size = factors.operator.pattern, factors.operator.shape[0]

    def call(digest, data, rows, columns, vector):
        return fn(_entry(digest.tobytes(), recipe, size, data, rows, columns), vector)

    return call_on_host(call, shapes, factors.digest, factors.operator.data, pattern.rows, pattern.columns, vector)


def solve_by(entry: Entry, b: np.ndarray, trans: str) -> np.ndarray:
    """x of A x = b (`trans` "N"), A' x = b ("T"), conj(A) x = b ("C"), conj(A)' x = b ("H"); not a number without factors."""
    if entry.factors is None:
        return np.full(b.shape, np.nan, b.dtype)
    if trans == "C":
        return np.conj(entry.factors.solve(np.conj(b), "N"))
    return entry.factors.solve(b, trans)


def _digest(recipe: str, *arrays: np.ndarray) -> bytes:
    summary = hashlib.blake2b(recipe.encode(), digest_size=32)
    for array in arrays:
        array = np.ascontiguousarray(array)
        summary.update(f"{array.dtype}{array.shape}".encode())
        summary.update(array.data)
    return summary.digest()


def _entry(digest: bytes, recipe: Recipe, size: int, data: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Entry:
    """That of the table, or a new one."""
    found = _TABLE.find(digest)
    if found is None:
        matrix = scipy.sparse.coo_array((data, (rows, columns)), shape=(size, size)).tocsc()
        found = Entry(matrix, recipe(matrix) if np.all(np.isfinite(matrix.data)) else None)
        _TABLE.put(digest, found)
    return found
