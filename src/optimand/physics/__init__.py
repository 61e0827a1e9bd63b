"""Differentiable physics: derivatives of fields on grids, and simulators.

A simulator is a pure map from a state to the next; its array fields are the physical parameters, and derivatives with
respect to them, to the state and to controls are those of the map.
"""

from .cart_pole import CartPole, CartPoleState, lqr
from .diffusion_sorption import DiffusionSorption, DiffusionSorptionState
from .fourier import (
    divergence,
    gaussian_field,
    spectral_derivative,
    spectral_laplacian,
    velocity_from_vorticity,
    vorticity_from_velocity,
    wave_numbers,
)
from .heat import HeatCrankNicolson, HeatState, bump
from .laplacian import LinearStep, ShiftedLaplacian, dirichlet_laplacian
from .navier_stokes import NavierStokes2D, NavierStokes2DState, subsample, taylor_green
from .rollout import SimulationError, Trajectory, rollout
from .simulator import Simulator, SteadySimulator
from .soft_discs import SoftDiscs, bidisperse
from .stencils import (
    backward_derivative,
    first_derivative,
    periodic_first_derivative,
    periodic_second_derivative,
    second_derivative,
)

__all__ = [
    "CartPole",
    "CartPoleState",
    "DiffusionSorption",
    "DiffusionSorptionState",
    "HeatCrankNicolson",
    "HeatState",
    "LinearStep",
    "NavierStokes2D",
    "NavierStokes2DState",
    "ShiftedLaplacian",
    "SimulationError",
    "Simulator",
    "SoftDiscs",
    "SteadySimulator",
    "Trajectory",
    "backward_derivative",
    "bidisperse",
    "bump",
    "dirichlet_laplacian",
    "divergence",
    "first_derivative",
    "gaussian_field",
    "lqr",
    "periodic_first_derivative",
    "periodic_second_derivative",
    "rollout",
    "second_derivative",
    "spectral_derivative",
    "spectral_laplacian",
    "subsample",
    "taylor_green",
    "velocity_from_vorticity",
    "vorticity_from_velocity",
    "wave_numbers",
]
