"""Smooth optimisation: first-order, quasi-Newton and Newton methods, with and without constraints; fixed points and equilibria;
the solvers of other libraries.

Which one? A smooth objective: `TrustRegion` with few unknowns, `LBFGS` with many; with bounds `TrustRegion` or `LBFGSB`; with
equalities and inequalities `InteriorPoint`, or `SQP` and `AugmentedLagrangian`. A quadratic program: `ADMM`, or
`QuadraticInteriorPoint` for high accuracy. Trained on batches: `Adam`, or any transformation through `Optax`; `SLS` and
`PolyakSGD` need no learning rate; `SSO` trains on a `TargetProblem`, whose loss is dear and whose model is cheap; `LionK`
keeps what it trains in a set. Sums of squares: `LevenbergMarquardt`. Smooth plus simple: `ProximalGradient`, or
`ProjectedGradient` on a set. A fixed point: `Anderson`. A root: `Newton`, or `Broyden` without derivatives. An equilibrium (a
game, a saddle point, a variational inequality) is a `MonotoneInclusion`: `Extragradient`, or `VRHalpern` and `InexactHalpern`
if it is a sum of many components. A linear system: `LinearSolve`. `Optimistix` and `Scipy` bring in what those libraries have. `advise`
answers for a given problem.

Modules of functions: `projections` and `proximal`, `isotonic` (regression, soft sorting), `perturbed` (smoothed discrete
optimisers), `objectives` (of linear models).
"""

from . import isotonic as isotonic
from . import objectives as objectives
from . import perturbed as perturbed
from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .adasketch import AdaSketchNewton
from .admm import ADMM
from .advice import Advice, advise
from .anderson import Anderson
from .augmented_lagrangian import AugmentedLagrangian
from .bfgs import BFGS
from .block_coordinate_descent import BlockCoordinateDescent
from .broyden import Broyden
from .exact_augmented_lagrangian import ExactAugmentedLagrangian
from .extragradient import ExtraAnchoredGradient, Extragradient
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gda import GDA
from .gmres_sqp import GMRESL1SQP, AdaptiveGMRESL1SQP
from .gradient_descent import GradientDescent
from .hager_zhang import HagerZhang
from .halpern import Halpern
from .hock_schittkowski import hock_schittkowski
from .inclusions import MonotoneInclusion, operator_residual
from .inexact_halpern import InexactHalpern
from .interior_point import InteriorPoint
from .lbfgs import LBFGS
from .lbfgsb import LBFGSB
from .levenberg_marquardt import LevenbergMarquardt
from .line_search import Backtracking, LineSearch
from .linear_solve import LinearSolve
from .lion import LionK, lion_k
from .lion_flow import LionFlow, kkt_score, lion_k_flow, lyapunov
from .lion_kernels import (
    GroupKernel,
    HuberKernel,
    Kernel,
    L1Kernel,
    L2SquaredKernel,
    LpKernel,
    SmoothL1Kernel,
    SpectralKernel,
    ThresholdKernel,
    TopKKernel,
)
from .matrix_games import matrix_game
from .mirror_descent import MirrorDescent
from .newton import Newton
from .nonlinear_cg import NonlinearCG
from .optax import Optax
from .optimistix import Optimistix
from .polyak_sgd import PolyakSGD
from .popov_reflected import PopovReflected
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .quadratic_interior_point import QuadraticInteriorPoint
from .quadratic_program import QuadraticProgram
from .scipy import Scipy
from .sketch_project import SketchProject
from .sls import SLS
from .sqp import SQP
from .strong_wolfe import StrongWolfe
from .target_problem import Query, Surrogate, TargetProblem
from .target_steps import (
    AdaGradTargetStep,
    ArmijoTargetStep,
    ConstantTargetStep,
    DecreasingTargetStep,
    ExponentialTargetStep,
    NewtonTargetStep,
    TargetStep,
)
from .target_surrogate import SSO, ArmijoGD
from .trust_region import TrustRegion
from .vr_forward_reflected_backward import VRForwardReflectedBackward
from .vr_halpern import VRHalpern

__all__ = [
    "ADMM",
    "BFGS",
    "FIRE",
    "GDA",
    "GMRESL1SQP",
    "LBFGS",
    "LBFGSB",
    "SLS",
    "SQP",
    "SSO",
    "AdaGradTargetStep",
    "AdaSketchNewton",
    "Adam",
    "AdaptiveGMRESL1SQP",
    "Advice",
    "Anderson",
    "ArmijoGD",
    "ArmijoTargetStep",
    "AugmentedLagrangian",
    "Backtracking",
    "BlockCoordinateDescent",
    "Broyden",
    "ConstantTargetStep",
    "DecreasingTargetStep",
    "ExactAugmentedLagrangian",
    "ExponentialTargetStep",
    "ExtraAnchoredGradient",
    "Extragradient",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "GroupKernel",
    "HagerZhang",
    "Halpern",
    "HuberKernel",
    "InexactHalpern",
    "InteriorPoint",
    "Kernel",
    "L1Kernel",
    "L2SquaredKernel",
    "LevenbergMarquardt",
    "LineSearch",
    "LinearSolve",
    "LionFlow",
    "LionK",
    "LpKernel",
    "MirrorDescent",
    "MonotoneInclusion",
    "Newton",
    "NewtonTargetStep",
    "NonlinearCG",
    "Optax",
    "Optimistix",
    "PolyakSGD",
    "PopovReflected",
    "ProjectedGradient",
    "ProximalGradient",
    "QuadraticInteriorPoint",
    "QuadraticProgram",
    "Query",
    "Scipy",
    "SketchProject",
    "SmoothL1Kernel",
    "SpectralKernel",
    "StrongWolfe",
    "Surrogate",
    "TargetProblem",
    "TargetStep",
    "ThresholdKernel",
    "TopKKernel",
    "TrustRegion",
    "VRForwardReflectedBackward",
    "VRHalpern",
    "advise",
    "hock_schittkowski",
    "isotonic",
    "kkt_score",
    "lion_k",
    "lion_k_flow",
    "lyapunov",
    "matrix_game",
    "objectives",
    "operator_residual",
    "perturbed",
    "projections",
    "proximal",
]
