"""optimand: optimisation problems that contain physics, constraints, inner problems, simulators and learned models.

A *Problem* knows its optimality conditions, a *Method* finds a value that satisfies them, `solve` runs it, and the
gradient of the solution follows from the conditions whatever the method was.

Everything is loaded when it is first touched (PEP 562), so that `import optimand` costs next to nothing: the names of
the core (`optimand.solve`, `optimand.Minimize`, ...), the rooms (`optimand.smooth`, `optimand.physics`, ...), and
`optimand.minimize` and `optimand.advise`, which live in rooms but are what many come for.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

ROOMS = ("compat", "core", "datasets", "informed", "linear", "nn", "operators", "physics", "smooth", "transport")
_GUESTS = {"advise": "smooth", "minimize": "compat"}  # names of a room that are also at the top

if TYPE_CHECKING:
    from . import compat, core, datasets, informed, linear, nn, operators, physics, smooth, transport  # noqa: F401
    from .compat import minimize  # noqa: F401
    from .core import *  # noqa: F403
    from .smooth import advise  # noqa: F401


def __getattr__(name: str):
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _GUESTS:
        return getattr(importlib.import_module(f"{__name__}.{_GUESTS[name]}"), name)
    if not name.startswith("_"):
        core = importlib.import_module(f"{__name__}.core")
        if name in core.__all__:
            return getattr(core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    core = importlib.import_module(f"{__name__}.core")
    return sorted({*core.__all__, *ROOMS, *_GUESTS, "__version__"})
