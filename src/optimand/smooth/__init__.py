"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries.

Which one? A smooth objective: `LBFGS`; with few unknowns, `TrustRegion`; with bounds, `LBFGSB` or `TrustRegion`. Trained on batches: `Adam`, or any
transformation through `Optax`. Sums of squares: `LevenbergMarquardt`. Smooth plus simple: `ProximalGradient`, or
`ProjectedGradient` on a set. A fixed point: `Anderson`. A root: `Newton`. A linear system: `LinearSolve`. `Optimistix` and
`Scipy` bring in what those libraries have. `SLS` and `PolyakSGD` train without a learning rate; `SSO` trains on a `TargetProblem`, whose
loss is dear and whose model is cheap.
`Scipy` bring in what those libraries have. An equilibrium (a game, a saddle point, a variational inequality) is a
`MonotoneInclusion`: `Extragradient`, or `VRHalpern` and `InexactHalpern` if it is a sum of many components.
"""

from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .adasketch import AdaSketchNewton
from .anderson import Anderson
from .augmented_lagrangian import AugmentedLagrangian
from .block_coordinate_descent import BlockCoordinateDescent
from .broyden import Broyden
from .extragradient import ExtraAnchoredGradient, Extragradient
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gda import GDA
from .gradient_descent import GradientDescent
from .hager_zhang import HagerZhang
from .halpern import Halpern
from .inclusions import MonotoneInclusion, operator_residual
from .inexact_halpern import InexactHalpern
from .exact_augmented_lagrangian import ExactAugmentedLagrangian
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gmres_sqp import GMRESL1SQP, AdaptiveGMRESL1SQP
from .gradient_descent import GradientDescent
from .hock_schittkowski import hock_schittkowski
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
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .scipy import Scipy
from .sls import SLS
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
from .strong_wolfe import StrongWolfe
from .trust_region import TrustRegion
from .popov_reflected import PopovReflected
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .scipy import Scipy
from .vr_forward_reflected_backward import VRForwardReflectedBackward
from .vr_halpern import VRHalpern

__all__ = [
    "FIRE",
    "GDA",
    "LBFGS",
    "SLS",
    "SSO",
    "AdaGradTargetStep",
from .sketch_project import SketchProject

__all__ = [
    "FIRE",
    "GMRESL1SQP",
    "LBFGS",
    "AdaSketchNewton",
    "Adam",
    "AdaptiveGMRESL1SQP",
    "Anderson",
    "ArmijoGD",
    "ArmijoTargetStep",
    "BlockCoordinateDescent",
    "ConstantTargetStep",
    "DecreasingTargetStep",
    "ExponentialTargetStep",
    "AugmentedLagrangian",
    "BlockCoordinateDescent",
    "ExactAugmentedLagrangian",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "GroupKernel",
    "HuberKernel",
    "Kernel",
    "L1Kernel",
    "L2SquaredKernel",
    "LBFGSB",
    "Adam",
    "Anderson",
    "Backtracking",
    "BlockCoordinateDescent",
    "Broyden",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "HagerZhang",
    "ExtraAnchoredGradient",
    "Extragradient",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "Halpern",
    "InexactHalpern",
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
    "Query",
    "Scipy",
    "SmoothL1Kernel",
    "SpectralKernel",
    "Surrogate",
    "TargetProblem",
    "TargetStep",
    "ThresholdKernel",
    "TopKKernel",
    "kkt_score",
    "lion_k",
    "lion_k_flow",
    "lyapunov",
    "StrongWolfe",
    "TrustRegion",
    "VRForwardReflectedBackward",
    "VRHalpern",
    "matrix_game",
    "operator_residual",
    "SketchProject",
    "hock_schittkowski",
    "projections",
    "proximal",
]
