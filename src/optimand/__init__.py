"""optimand: optimisation problems that contain physics, constraints, inner problems, simulators and learned models.

A *Problem* knows its optimality conditions, a *Method* finds a value that satisfies them, `solve` runs it, and the
gradient of the solution follows from the conditions whatever the method was.

The core is imported here; every other room (`optimand.smooth`, `optimand.physics`, ...) is loaded when first touched.
"""

import importlib
from typing import TYPE_CHECKING

from .core import *  # noqa: F403
from .core import __all__ as _core_names

__version__ = "0.1.0"

ROOMS = ("core", "datasets", "informed", "nn", "operators", "physics", "smooth")

__all__ = [*_core_names, *ROOMS, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from . import core, datasets, informed, nn, operators, physics, smooth  # noqa: F401


def __getattr__(name: str):
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
