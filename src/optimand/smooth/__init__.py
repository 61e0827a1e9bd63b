"""Smooth optimisation: first-order, quasi-Newton and Newton methods, fixed points, and the solvers of other libraries."""

from .adam import Adam
from .optax import Optax

__all__ = ["Adam", "Optax"]
