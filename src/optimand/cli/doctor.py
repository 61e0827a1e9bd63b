"""`doctor`: what is installed, and does it work."""

import importlib.util
import os
import shutil
import sys
import tempfile
from typing import Any

from optimand.report import record

from .show import Out

__all__ = ["examine"]

_OPTIONAL = {"h5py": "data", "kvxopt": "klu", "sklearn": "data", "pytest": "test", "beartype": "test"}


def examine(as_json: bool) -> int:
    """0 if everything that is needed is there and works, else 1."""
    out = Out(as_json)
    rows: list[tuple[str, str, str]] = []
    found: dict[str, Any] = {"versions": record.versions()}
    rows += [(name, version, "") for name, version in found["versions"].items()]
    try:
        found["machine"] = record.machine()
        devices = ", ".join(f"{count} x {kind}" for kind, count in found["machine"]["devices"].items())
        rows.append(("machine", f"{found['machine']['system']}, {found['machine']['cpus']} CPUs", devices))
    except Exception as error:
        rows.append(("devices", "FAILED", f"{type(error).__name__}: {error}"))
    checks = {"python 3.11 or newer": _python, "a small solve": _small_solve, "its gradient": _gradient}
    checks |= {"double precision": _double, "a folder to write to": _writable}
    found["checks"] = {}
    for name, check in checks.items():
        try:
            problem = check()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        found["checks"][name] = problem or "ok"
        rows.append((name, "FAILED" if problem else "ok", problem))
    found["extras"] = {}
    for package, extra in _OPTIONAL.items():
        there = importlib.util.find_spec(package) is not None
        found["extras"][package] = there
        rows.append((package, "installed" if there else "missing", "" if there else f"pip install 'optimand[{extra}]'"))
    out.table("", ("", "", ""), rows)
    healthy = all(state == "ok" for state in found["checks"].values())
    out.line("all is well" if healthy else "something is wrong: see FAILED above")
    out.result({**found, "healthy": healthy})
    return 0 if healthy else 1


def _python() -> str:
    return "" if sys.version_info >= (3, 11) else f"this is {sys.version.split()[0]}"


def _square_root():
    import optimand as om

    @om.implicit(lambda x, target: x**2 - target)
    def newton(guess, target):
        for _ in range(8):
            guess = (guess + target / guess) / 2
        return guess

    return lambda target: newton(1.0, target)


def _small_solve() -> str:
    value = float(_square_root()(2.0))
    return "" if abs(value - 2**0.5) < 1e-5 else f"the square root of 2 came out as {value}"


def _gradient() -> str:
    import jax

    slope = float(jax.grad(_square_root())(4.0))
    return "" if abs(slope - 0.25) < 1e-5 else f"the derivative of the square root at 4 came out as {slope}"


def _double() -> str:
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        return "" if jnp.ones(()).dtype == jnp.float64 else "JAX has no float64 here"


def _writable() -> str:
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free / 2**30
    here = os.access(".", os.W_OK)
    if not here:
        return "the current folder cannot be written to: give --out"
    return "" if free > 0.5 else f"only {free:.1f} GiB are free"
