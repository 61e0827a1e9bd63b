"""Linear systems: sparse operators for every lineax solver, and solvers that are lineax solvers themselves.

Which solver? A `SparseOperator` of up to some hundred thousand unknowns: `SparseLU`, which factors once. Larger, by products: `CG` for positive
definite matrices, `MINRES` for symmetric ones, `GMRES` for others (`BiCGStab` where memory is short, `FGMRES` where the preconditioner
changes), `GCRODR` for
sequences of them. Each with a preconditioner, `Jacobi`, `BlockJacobi`, `SSOR`, or any lineax operator that is close to the inverse; derivatives use its
transpose. `SOR` is relaxation on its own. A parameter whose best value nobody knows, as theirs, is learned over a sequence of systems from what
solves cost: by `TsallisINF`, and with a number that is known before each solve by `ChebCB` or `TsallisINFContextual`.
"""

from .bicgstab import BiCGStab
from .cg import CG
from .cheb_cb import ChebCB
from .gcrodr import GCRODR
from .gmres import FGMRES, GMRES
from .krylov import KrylovSolver
from .learners import ParameterLearner
from .minres import MINRES
from .optimal_omega import optimal_omega, sor_iteration_bound
from .preconditioners import BlockJacobi, Jacobi, Preconditioner
from .sor import SOR
from .sparse import SparseOperator, SparsePattern
from .sparse_lu import SparseLU
from .ssor import SSOR
from .tsallis_inf import TsallisINF, TsallisINFContextual

__all__ = [
    "CG",
    "FGMRES",
    "GCRODR",
    "GMRES",
    "MINRES",
    "SOR",
    "SSOR",
    "BiCGStab",
    "BlockJacobi",
    "ChebCB",
    "Jacobi",
    "KrylovSolver",
    "ParameterLearner",
    "Preconditioner",
    "SparseLU",
    "SparseOperator",
    "SparsePattern",
    "TsallisINF",
    "TsallisINFContextual",
    "optimal_omega",
    "sor_iteration_bound",
]
