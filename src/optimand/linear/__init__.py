"""Linear systems: sparse operators for every lineax solver, and solvers that are lineax solvers themselves.

Which solver? A `SparseOperator` of up to some hundred thousand unknowns: `SparseLU`, which factors once. Larger, by products: `CG` for positive
definite matrices, `MINRES` for symmetric ones, `GMRES` for others (`BiCGStab` where memory is short), `GCRODR` for sequences of them; `FlexibleCG` and `FGMRES` where
the preconditioner changes from step to step, `DeflatedCG` where a few eigenvalues are in the way. Each with a preconditioner: `Jacobi`, `BlockJacobi`, `SSOR`,
`IncompleteCholesky`, `IncompleteLU`, `AdditiveSchwarz`, for elliptic equations `SmoothedAggregation`, on grids (`StencilOperator`) `Multigrid`, or any lineax operator that is
close to the inverse; derivatives use its transpose. `SOR` is relaxation on its own. For pressure systems on grids, `DeepConjugateDirection` takes its directions from a
network, a `ConjugateDirectionNet`, which is there pretrained, and which `train_inverse` trains without solutions.

Many systems of one kind are a `LinearSequence`, which `om.solve` takes with `SolveEach` or `RecycledSequence`, in an order that puts like beside like (`greedy_order` and
others); or with `TunedSequence`, which learns a parameter of the solver from what solves cost: by `TsallisINF`, and with a number that is known before each solve by
`ChebCB` or `TsallisINFContextual`.
"""

from .bicgstab import BiCGStab
from .cg import CG
from .cheb_cb import ChebCB
from .conjugate_direction_net import ConjugateDirectionNet
from .deep_conjugate import DeepConjugateDirection
from .deflated_cg import DeflatedCG
from .flexible_cg import FlexibleCG
from .gcrodr import GCRODR
from .gmres import FGMRES, GMRES
from .incomplete_cholesky import IncompleteCholesky
from .incomplete_lu import AdditiveSchwarz, IncompleteLU
from .krylov import KrylovSolver
from .learners import ParameterLearner
from .minres import MINRES
from .multigrid import Multigrid
from .network_preconditioner import NetworkPreconditioner
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
from .train_inverse import RitzSampler, train_inverse
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
    "ConjugateDirectionNet",
    "DeepConjugateDirection",
    "DeflatedCG",
    "FlexibleCG",
    "IncompleteCholesky",
    "IncompleteLU",
    "Jacobi",
    "KrylovSolver",
    "LinearSequence",
    "Multigrid",
    "NetworkPreconditioner",
    "ParameterLearner",
    "Preconditioner",
    "RecycledSequence",
    "RitzSampler",
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
    "train_inverse",
]
