"""Linear systems: sparse operators for every lineax solver, and solvers that are lineax solvers themselves.

Which solver? A `SparseOperator` of up to some hundred thousand unknowns: `SparseLU`, which factors once. Larger, by products: `CG` for positive
definite matrices, `MINRES` for symmetric ones, `GMRES` for others (`BiCGStab` where memory is short, `FGMRES` where the preconditioner
changes), `GCRODR` for
sequences of them. Each with a preconditioner, `Jacobi`, `BlockJacobi`, `IncompleteLU`, `AdditiveSchwarz`, for a `StencilOperator` `Multigrid`, or any lineax operator that is close to the
inverse; derivatives use its transpose.

Many systems of one kind are a `LinearSequence`, which `om.solve` takes with `SolveEach`, `RecycledSequence` or `TunedSequence`, in an order that puts like beside like
(`greedy_order` and others).
"""

from .bicgstab import BiCGStab
from .cg import CG
from .gcrodr import GCRODR
from .gmres import FGMRES, GMRES
from .incomplete_lu import AdditiveSchwarz, IncompleteLU
from .krylov import KrylovSolver
from .minres import MINRES
from .multigrid import Multigrid
from .preconditioners import BlockJacobi, Jacobi, Preconditioner
from .recycled_sequence import RecycledSequence
from .sequence import LinearSequence, SequenceMethod, SolveEach
from .sorting import greedy_order, hilbert_order, projected_order, spectral_order
from .sparse import SparseOperator, SparsePattern
from .sparse_lu import SparseLU
from .stencil import StencilOperator
from .tuned_sequence import TunedSequence

__all__ = [
    "CG",
    "FGMRES",
    "GCRODR",
    "GMRES",
    "MINRES",
    "AdditiveSchwarz",
    "BiCGStab",
    "BlockJacobi",
    "IncompleteLU",
    "Jacobi",
    "KrylovSolver",
    "LinearSequence",
    "Multigrid",
    "Preconditioner",
    "RecycledSequence",
    "SequenceMethod",
    "SolveEach",
    "SparseLU",
    "SparseOperator",
    "SparsePattern",
    "StencilOperator",
    "TunedSequence",
    "greedy_order",
    "hilbert_order",
    "projected_order",
    "spectral_order",
]
