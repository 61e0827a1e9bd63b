"""Differentiable physics: derivatives of fields on grids, and simulators.

A simulator is a pure map from a state to the next; its array fields are the physical parameters, and derivatives with
respect to them, to the state and to controls are those of the map.
"""

from .cart_pole import CartPole, CartPoleState, lqr
from .diffusion_sorption import DiffusionSorption, DiffusionSorptionState
from .elliptic import (
    ConvectionDiffusion,
    Darcy,
    EllipticFamily,
    Helmholtz,
    Poisson,
    Thermal,
    cosine_field,
    five_point_pattern,
)
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
from .obstacles import ball_mask, bars_mask, box_mask, cell_centres
from .poisson_grid import PoissonGrid
from .rollout import SimulationError, Trajectory, rollout
from .simulator import Simulator, SteadySimulator
from .smoke import Smoke, SmokeState, smoke_systems
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
    "ConvectionDiffusion",
    "Darcy",
    "DiffusionSorption",
    "DiffusionSorptionState",
    "EllipticFamily",
    "HeatCrankNicolson",
    "HeatState",
    "Helmholtz",
    "LinearStep",
    "NavierStokes2D",
    "NavierStokes2DState",
    "Poisson",
    "PoissonGrid",
    "ShiftedLaplacian",
    "SimulationError",
    "Simulator",
    "Smoke",
    "SmokeState",
    "SoftDiscs",
    "SteadySimulator",
    "Thermal",
    "Trajectory",
    "backward_derivative",
    "ball_mask",
    "bars_mask",
    "bidisperse",
    "box_mask",
    "bump",
    "cell_centres",
    "cosine_field",
    "dirichlet_laplacian",
    "divergence",
    "first_derivative",
    "five_point_pattern",
    "gaussian_field",
    "lqr",
    "periodic_first_derivative",
    "periodic_second_derivative",
    "rollout",
    "second_derivative",
    "smoke_systems",
    "spectral_derivative",
    "spectral_laplacian",
    "subsample",
    "taylor_green",
    "velocity_from_vorticity",
    "vorticity_from_velocity",
    "wave_numbers",
]
