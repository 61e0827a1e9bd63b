"""Methods on equal footing: the same multiples of 1 / L_F for each, component calls counted, the best multiple kept."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Result, solve
from optimand.core.method import Method
from optimand.core.solution import Solution
from optimand.smooth import (
    GDA,
    ExtraAnchoredGradient,
    Extragradient,
    Halpern,
    InexactHalpern,
    MonotoneInclusion,
    PopovReflected,
    VRHalpern,
)

from . import Settings

PLAIN: dict[str, tuple[Any, float]] = {
    "GDA": (GDA, 1.0),
    "EG": (Extragradient, 0.9),
    "Popov": (PopovReflected, 0.45),
    "EAG": (ExtraAnchoredGradient, 0.5),
    "Halpern": (Halpern, 2.0),
}  # with the multiple of 1 / L_F that a step_scale of 1 stands for
HARMONIC = lambda k: 1 / (k + 2)


def builders(settings: Settings, lipschitz: Any, average: Any) -> dict[str, Callable[[float], Method]]:
    """Each method as a function of a multiple of 1 / L_F, its step size: of sqrt(n) / L for resolvents."""
    number = lambda x: jnp.asarray(x, float)  # an array: one compilation serves the grid

    def plain(cls, coefficient):
        return lambda multiple: cls(number(lipschitz), step_scale=number(multiple / coefficient), tolerance=0.0)

    anchoring = HARMONIC if settings.anchoring == "harmonic" else None
    return {
        **{name: plain(cls, coefficient) for name, (cls, coefficient) in PLAIN.items()},
        "VRHalpern": lambda multiple: VRHalpern(
            number(lipschitz), step_scale=number(4 * multiple), tolerance=0.0, batch=settings.batch,
            probability=settings.probability, anchoring=anchoring,
        ),
        "InexactHalpern": lambda multiple: InexactHalpern(number(average), step_scale=number(multiple), tolerance=0.0),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trace:
    """The residuals of one run over component calls / n ("epochs"), and how it ended."""

    multiple: float
    epochs: np.ndarray
    residual: np.ndarray
    solution: Solution

    def reach(self, level: float) -> float:
        """Epochs until the residual is first seen at most `level`; infinite if it never was."""
        there = np.flatnonzero(self.residual <= level)
        return float(self.epochs[there[0]]) if len(there) else np.inf

    @property
    def outcome(self) -> str:
        return "diverged" if self.solution.result in (Result.diverged, Result.nonfinite) else "ran"


def trace(
    problem: MonotoneInclusion, method: Method, guess: Any, key: Any, epochs: float, multiple: float = 1.0
) -> Trace:
    """One run of so many epochs. The clock counts calls, so steps are as many as it takes."""
    budget = Budget(steps=10**8, calls=int(epochs * problem.total))
    solution = solve(problem, method, guess, key=key, budget=budget, throw=False)
    calls, residual = (np.asarray(solution.history[name]) for name in ("component_calls", "residual"))
    # the guess comes first: its residual has cost one epoch, and it may be all there is
    epochs_spent = np.concatenate([[1.0], calls / problem.total])
    return Trace(multiple, epochs_spent, np.concatenate([[float(solution.state.checked.first)], residual]), solution)


def tune(
    problem: MonotoneInclusion,
    build: Callable[[float], Method],
    guess: Any,
    key: Any,
    *,
    multiples: Sequence[float],
    epochs: float,
    level: float,
) -> tuple[Trace, list[Trace]]:
    """A run for each multiple: the one that reaches `level` first, or that comes nearest to it, and all of them.

    Runs stop once they are at `level`.
    """
    runs = []
    for multiple in multiples:
        method = dataclasses.replace(build(multiple), tolerance=jnp.asarray(level, float))  # pyright: ignore
        runs.append(trace(problem, method, guess, key, epochs, multiple))
    return min(runs, key=lambda run: (run.reach(level), run.residual[-1])), runs


def spectral_norm(operator: Callable, u: Any) -> float:
    """The Lipschitz constant of an operator at a point: the largest singular value of its Jacobian."""
    flat, unravel = jax.flatten_util.ravel_pytree(u)  # pyright: ignore
    jacobian = jax.jacfwd(lambda v: jax.flatten_util.ravel_pytree(operator(unravel(v)))[0])(flat)  # pyright: ignore
    return float(jnp.linalg.norm(jacobian, 2))
