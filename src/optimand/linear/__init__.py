"""Linear systems: sparse operators for every lineax solver, and solvers that are lineax solvers themselves.

Which solver? A `SparseOperator` of up to some hundred thousand unknowns: `SparseLU`, which factors once. Larger, by products: `CG` for positive
definite matrices, `MINRES` for symmetric ones, `GMRES` for others (`BiCGStab` where memory is short, `FGMRES` where the preconditioner
changes), `GCRODR` for
sequences of them. Each with a preconditioner, `Jacobi`, `BlockJacobi`, `SSOR`, `IncompleteLU`, `AdditiveSchwarz`, for elliptic equations `SmoothedAggregation`, on
grids (`StencilOperator`) `Multigrid`, or any lineax operator that is close to the inverse; derivatives use its transpose. `SOR` is relaxation on its own.

Many systems of one kind are a `LinearSequence`, which `om.solve` takes with `SolveEach` or `RecycledSequence`, in an order that puts like beside like (`greedy_order` and
others); or with `TunedSequence`, which learns a parameter of the solver from what solves cost: by `TsallisINF`, and with a number that is known before each solve by
`ChebCB` or `TsallisINFContextual`.
"""

from .bicgstab import BiCGStab
from .cg import CG
from .cheb_cb import ChebCB
from .gcrodr import GCRODR
from .gmres import FGMRES, GMRES
from .incomplete_lu import AdditiveSchwarz, IncompleteLU
from .krylov import KrylovSolver
from .learners import ParameterLearner
from .minres import MINRES
from .multigrid import Multigrid
from .optimal_omega import conjugate_gradient_bound, optimal_omega, sor_iteration_bound
from .preconditioners import BlockJacobi, Jacobi, Preconditioner
from .recycled_sequence import RecycledSequence
from .sequence import LinearSequence, SequenceMethod, SolveEach
from .smoothed_aggregation import SmoothedAggregation, rigid_body_modes
from .sor import SOR
from .sorting import greedy_order, hilbert_order, projected_order, spectral_order
from .sparse import SparseOperator, SparsePattern
from .sparse_lu import SparseLU
from .ssor import SSOR
from .stencil import StencilOperator
from .tsallis_inf import TsallisINF, TsallisINFContextual
from .tuned_sequence import TunedSequence

__all__ = [
    "CG",
    "FGMRES",
    "GCRODR",
    "GMRES",
    "MINRES",
    "SOR",
    "SSOR",
    "AdditiveSchwarz",
    "BiCGStab",
    "BlockJacobi",
    "ChebCB",
    "IncompleteLU",
    "Jacobi",
    "KrylovSolver",
    "LinearSequence",
    "Multigrid",
    "ParameterLearner",
    "Preconditioner",
    "RecycledSequence",
    "SequenceMethod",
    "SmoothedAggregation",
    "SolveEach",
    "SparseLU",
    "SparseOperator",
    "SparsePattern",
    "StencilOperator",
    "TsallisINF",
    "TsallisINFContextual",
    "TunedSequence",
    "conjugate_gradient_bound",
    "greedy_order",
    "hilbert_order",
    "optimal_omega",
    "projected_order",
    "rigid_body_modes",
    "sor_iteration_bound",
    "spectral_order",
]
