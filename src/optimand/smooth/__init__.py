"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries."""

from . import projections as projections
from . import proximal as proximal
from .adam import Adam
from .gradient_descent import GradientDescent
from .lbfgs import LBFGS
from .optax import Optax

__all__ = ["LBFGS", "Adam", "GradientDescent", "Optax", "projections", "proximal"]
