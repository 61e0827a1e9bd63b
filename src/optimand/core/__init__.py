"""The core: problems that know their optimality conditions, methods that satisfy them, `solve`, and its derivatives.

Read it in this order: `problem` (what is optimised), `method` (how), `loop` and `solve` (one loop, two drivers),
`adjoint` (the gradient follows from the conditions). `tracing` is the one mechanism underneath: a user's function is
traced once, and what it captured becomes data.
"""

import importlib
from typing import TYPE_CHECKING

from . import errors as errors
from . import optimality as optimality
from .adjoint import Adjoint, Detached, Implicit, OneStep, Unrolled, implicit, root_jvp, root_vjp
from .budget import Budget, Counters
from .checkpoint import Checkpoint
from .constrained import Constrained, KKTResidual, PrimalDual
from .eager import Event
from .executor import Executor, Failure, ProcessPool, SerialExecutor
from .fit import Fit
from .history import History
from .method import Method
from .problem import Composite, FixedPoint, LeastSquares, Linear, Minimize, Objective, Problem, Root
from .progress import Progress
from .solution import Result, Solution
from .solve import solve

if TYPE_CHECKING:
    from . import checks as checks

__all__ = [
    "Adjoint",
    "Budget",
    "Checkpoint",
    "Composite",
    "Constrained",
    "Counters",
    "Detached",
    "Event",
    "Executor",
    "Failure",
    "Fit",
    "FixedPoint",
    "History",
    "Implicit",
    "KKTResidual",
    "LeastSquares",
    "Linear",
    "Method",
    "Minimize",
    "Objective",
    "OneStep",
    "PrimalDual",
    "Problem",
    "ProcessPool",
    "Progress",
    "Result",
    "Root",
    "SerialExecutor",
    "Solution",
    "Unrolled",
    "checks",
    "errors",
    "implicit",
    "optimality",
    "root_jvp",
    "root_vjp",
    "solve",
]


def __getattr__(name: str):
    if name == "checks":  # the conformance suite has problems with arrays, for which JAX looks for its devices
        return importlib.import_module(f"{__name__}.checks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
