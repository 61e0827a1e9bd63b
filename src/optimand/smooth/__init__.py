"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries.

Which one? A smooth objective: `LBFGS`; with few unknowns and high accuracy, `Newton`. Trained on batches: `Adam`, or any
transformation through `Optax`. Sums of squares: `LevenbergMarquardt`. Smooth plus simple: `ProximalGradient`, or
`ProjectedGradient` on a set. A fixed point: `Anderson`. A root: `Newton`. A linear system: `LinearSolve`. `Optimistix` and
`Scipy` bring in what those libraries have. An equilibrium (a game, a saddle point, a variational inequality) is a
`MonotoneInclusion`: `Extragradient`, or `VRHalpern` and `InexactHalpern` if it is a sum of many components.
"""

from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .anderson import Anderson
from .block_coordinate_descent import BlockCoordinateDescent
from .extragradient import ExtraAnchoredGradient, Extragradient
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gda import GDA
from .gradient_descent import GradientDescent
from .halpern import Halpern
from .inclusions import MonotoneInclusion, operator_residual
from .inexact_halpern import InexactHalpern
from .lbfgs import LBFGS
from .levenberg_marquardt import LevenbergMarquardt
from .linear_solve import LinearSolve
from .matrix_games import matrix_game
from .mirror_descent import MirrorDescent
from .newton import Newton
from .optax import Optax
from .optimistix import Optimistix
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
    "Adam",
    "Anderson",
    "BlockCoordinateDescent",
    "ExtraAnchoredGradient",
    "Extragradient",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "Halpern",
    "InexactHalpern",
    "LevenbergMarquardt",
    "LinearSolve",
    "MirrorDescent",
    "MonotoneInclusion",
    "Newton",
    "Optax",
    "Optimistix",
    "PopovReflected",
    "ProjectedGradient",
    "ProximalGradient",
    "Scipy",
    "VRForwardReflectedBackward",
    "VRHalpern",
    "matrix_game",
    "operator_residual",
    "projections",
    "proximal",
]
