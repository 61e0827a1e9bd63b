"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries.

Which one? A smooth objective: `LBFGS`; with few unknowns and high accuracy, `Newton`. Trained on batches: `Adam`, or any
transformation through `Optax`. Sums of squares: `LevenbergMarquardt`. Smooth plus simple: `ProximalGradient`, or
`ProjectedGradient` on a set. A fixed point: `Anderson`. A root: `Newton`. A linear system: `LinearSolve`. `Optimistix` and
`Scipy` bring in what those libraries have. `advise` answers for a given problem.

Modules of functions: `projections` and `proximal`, `isotonic` (regression, soft sorting), `perturbed` (smoothed discrete
optimisers), `objectives` (of linear models).
"""

from . import isotonic as isotonic
from . import objectives as objectives
from . import perturbed as perturbed
from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .advice import Advice, advise
from .anderson import Anderson
from .block_coordinate_descent import BlockCoordinateDescent
from .fire import FIRE
from .fixed_point_iteration import FixedPointIteration
from .gauss_newton import GaussNewton
from .gradient_descent import GradientDescent
from .lbfgs import LBFGS
from .levenberg_marquardt import LevenbergMarquardt
from .linear_solve import LinearSolve
from .mirror_descent import MirrorDescent
from .newton import Newton
from .optax import Optax
from .optimistix import Optimistix
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .scipy import Scipy

__all__ = [
    "FIRE",
    "LBFGS",
    "Adam",
    "Advice",
    "Anderson",
    "BlockCoordinateDescent",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "LevenbergMarquardt",
    "LinearSolve",
    "MirrorDescent",
    "Newton",
    "Optax",
    "Optimistix",
    "ProjectedGradient",
    "ProximalGradient",
    "Scipy",
    "advise",
    "isotonic",
    "objectives",
    "perturbed",
    "projections",
    "proximal",
]
