"""Factors by KLU of SuiteSparse (Davis and Palamadai Natarajan 2010), through kvxopt."""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse

from ..core.errors import MissingExtra

__all__ = ["KLU", "need_klu"]


def need_klu() -> Any:
    """kvxopt, or a `MissingExtra` that says how to get it."""
    try:
        import kvxopt
        import kvxopt.klu
    except ImportError as error:
        raise MissingExtra("klu", "kvxopt") from error
    return kvxopt


@dataclasses.dataclass(frozen=True)
class KLU:
    """Factors of the whole matrix, in double precision, with KLU's own ordering of its blocks."""

    def __call__(self, matrix: scipy.sparse.csc_array) -> "_Factors | None":
        kvxopt = need_klu()
        complex_ = np.iscomplexobj(matrix.data)
        entries = matrix.tocoo()
        values = kvxopt.matrix(entries.data.astype(complex if complex_ else float))
        places = [kvxopt.matrix(np.asarray(at, np.int64)) for at in (entries.row, entries.col)]
        sparse = kvxopt.spmatrix(values, *places, entries.shape, "z" if complex_ else "d")
        try:
            symbolic = kvxopt.klu.symbolic(sparse)
            numeric = kvxopt.klu.numeric(sparse, symbolic)
        except ArithmeticError:  # singular
            return None
        lower, upper = kvxopt.klu.get_numeric(sparse, symbolic, numeric)[:2]
        return _Factors(sparse, symbolic, numeric, len(lower) + len(upper), complex_)


@dataclasses.dataclass(frozen=True)
class _Factors:
    sparse: Any
    symbolic: Any
    numeric: Any
    nnz: int
    complex_: bool

    def solve(self, b: np.ndarray, trans: str) -> np.ndarray:
        kvxopt = need_klu()
        if np.iscomplexobj(b) and not self.complex_:
            return self.solve(np.real(b), trans) + 1j * self.solve(np.imag(b), trans)
        x = kvxopt.matrix(b.astype(complex if self.complex_ else float))
        kvxopt.klu.solve(self.sparse, self.symbolic, self.numeric, x, trans={"N": "N", "T": "T", "H": "C"}[trans])
        return np.array(x).reshape(b.shape).astype(np.result_type(b.dtype, np.complex64) if self.complex_ else b.dtype)
