"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries.

Which one? A smooth objective: `LBFGS`; with few unknowns, `TrustRegion`; with bounds, `LBFGSB` or `TrustRegion`.
Trained on batches: `Adam`, or any transformation through `Optax`. Sums of squares: `LevenbergMarquardt`. Smooth plus simple: `ProximalGradient`, or
`ProjectedGradient` on a set. A fixed point: `Anderson`. A root: `Newton`. A linear system: `LinearSolve`. `Optimistix` and
`Scipy` bring in what those libraries have.
"""

from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .anderson import Anderson
from .block_coordinate_descent import BlockCoordinateDescent
from .broyden import Broyden
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gradient_descent import GradientDescent
from .hager_zhang import HagerZhang
from .lbfgs import LBFGS
from .lbfgsb import LBFGSB
from .levenberg_marquardt import LevenbergMarquardt
from .line_search import Backtracking, LineSearch
from .linear_solve import LinearSolve
from .mirror_descent import MirrorDescent
from .newton import Newton
from .nonlinear_cg import NonlinearCG
from .optax import Optax
from .optimistix import Optimistix
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .scipy import Scipy
from .strong_wolfe import StrongWolfe
from .trust_region import TrustRegion

__all__ = [
    "FIRE",
    "LBFGS",
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
    "LevenbergMarquardt",
    "LineSearch",
    "LinearSolve",
    "MirrorDescent",
    "Newton",
    "NonlinearCG",
    "Optax",
    "Optimistix",
    "ProjectedGradient",
    "ProximalGradient",
    "Scipy",
    "StrongWolfe",
    "TrustRegion",
    "projections",
    "proximal",
]
