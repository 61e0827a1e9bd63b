"""Physics-informed models: fields that satisfy a differential equation by construction, or are trained to.

`LinearTermsPDE` is what an equation says about itself, `NLLSConstraint` the differentiable local solve that imposes it on
a combination of basis fields, `ExpertGrid` and `RandomExperts` divide a grid among such solves.
"""

from .constraint import LocalInfo, NLLSConstraint
from .experts import ExpertGrid, RandomExperts, Router
from .grid import SpaceTimeGrid
from .local import LocalProblem
from .pde import LinearTermsPDE

__all__ = [
    "ExpertGrid",
    "LinearTermsPDE",
    "LocalInfo",
    "LocalProblem",
    "NLLSConstraint",
    "RandomExperts",
    "Router",
    "SpaceTimeGrid",
]
