"""Physics-informed models: fields that satisfy a differential equation by construction, or are trained to.

`LinearTermsPDE` is what an equation says about itself (`DiffusionSorption1D`, `NavierStokes2DVorticity`, or yours),
`NLLSConstraint` the differentiable local solve that imposes it on a combination of basis fields; `ExpertGrid` and
`RandomExperts` divide a grid among such solves. `ConstrainedBasis` is a network with that constraint as its last layer,
`SoftField` one without, and `ResidualProblem` trains either.
"""

from .basis import ConstrainedBasis, ConstraintInfo, SoftField, local_problems, solve_experts
from .constraint import LocalInfo, NLLSConstraint
from .diffusion_sorption import DiffusionSorption1D
from .experts import ExpertGrid, RandomExperts, Router
from .grid import SpaceTimeGrid
from .local import LocalProblem
from .navier_stokes import NavierStokes2DVorticity
from .pde import LinearTermsPDE
from .problem import ResidualProblem

__all__ = [
    "ConstrainedBasis",
    "ConstraintInfo",
    "DiffusionSorption1D",
    "ExpertGrid",
    "LinearTermsPDE",
    "LocalInfo",
    "LocalProblem",
    "NLLSConstraint",
    "NavierStokes2DVorticity",
    "RandomExperts",
    "ResidualProblem",
    "Router",
    "SoftField",
    "SpaceTimeGrid",
    "local_problems",
    "solve_experts",
]
