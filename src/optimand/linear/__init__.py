"""Linear systems: sparse operators for every lineax solver, and solvers that are lineax solvers themselves.

Which solver? A `SparseOperator` of up to some hundred thousand unknowns: `SparseLU`, which factors once. Larger, by products: `CG` for positive
definite matrices, `MINRES` for symmetric ones, `GMRES` for others (`BiCGStab` where memory is short, `FGMRES` where the preconditioner
changes), `GCRODR` for
sequences of them. Each with a preconditioner, `Jacobi`, `BlockJacobi`, or any lineax operator that is close to the inverse; derivatives use its transpose.
"""

from .bicgstab import BiCGStab
from .cg import CG
from .gcrodr import GCRODR
from .gmres import FGMRES, GMRES
from .krylov import KrylovSolver
from .minres import MINRES
from .preconditioners import BlockJacobi, Jacobi, Preconditioner
from .sparse import SparseOperator, SparsePattern
from .sparse_lu import SparseLU

__all__ = [
    "CG",
    "FGMRES",
    "GCRODR",
    "GMRES",
    "MINRES",
    "BiCGStab",
    "BlockJacobi",
    "Jacobi",
    "KrylovSolver",
    "Preconditioner",
    "SparseLU",
    "SparseOperator",
    "SparsePattern",
]
