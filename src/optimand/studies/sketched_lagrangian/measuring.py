"""The rivals, and what is measured of a solve."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optimand import Budget, Constrained, solve
from optimand.core.method import Method
from optimand.smooth import GMRESL1SQP, AdaptiveGMRESL1SQP, AdaSketchNewton, AugmentedLagrangian

from . import Settings, split

RANDOMISED = ("gaussian_vector", "kaczmarz", "gaussian_block", "strict")
HEADINGS = ("method", "outcome", "f", "KKT", "outer", "values", "gradients", "sketches or GMRES", "unit steps at the end")


def rivals(settings: Settings, most_sketches: int) -> dict[str, Method]:
    """The methods by name: each sketch with the relative rule, "strict" with the adaptive one, and the baselines."""
    options: dict[str, Any] = {
        "tolerance": settings.tolerance, "relative": settings.relative, "block": settings.block, "theta": theta(settings),
        "violation": settings.violation, "stationarity": settings.stationarity, "delta": settings.delta,
        "growth": settings.growth, "shift": settings.shift, "decrease": settings.decrease, "most_sketches": most_sketches,
    }  # fmt: skip
    sqp: dict[str, Any] = {"tolerance": settings.tolerance, "shift": settings.shift}
    adaptive, restart = {**sqp, "growth": settings.growth}, {"restart": settings.gmres_restart}
    beside: dict[str, Method] = {
        "strict": AdaSketchNewton("gaussian_vector", accuracy="adaptive", **options),
        "gmres": GMRESL1SQP(**restart, **sqp),
        "adaptive": AdaptiveGMRESL1SQP(**restart, **adaptive),
        "gmres-full": GMRESL1SQP(**sqp),
        "adaptive-full": AdaptiveGMRESL1SQP(**adaptive),
        "augmented-lagrangian": AugmentedLagrangian(
            tolerance=settings.tolerance, penalty=1.0, inner_solver="gmres", scale=False
        ),
    }
    sketched: dict[str, Method] = {name: AdaSketchNewton(name, **options) for name in split(settings.sketches)}
    return sketched | {name: beside[name] for name in split(settings.rivals)}


def theta(settings: Settings) -> Any:
    """The factor of the accuracy, or its schedule."""
    return (lambda step: settings.theta / (step + 1)) if settings.theta_schedule else settings.theta


def with_data(problem: Constrained) -> Callable:
    """The problem as a function of its data."""
    return lambda args: Constrained(problem.fn, *args, equalities=problem.equality_fn)


def compiled(build: Callable, method: Method, guess: Any, argument: Any, steps: int) -> Callable:
    """`(argument, guess, key)` -> what is measured of a solve of `build(argument)`, compiled once for all of them.

    Where few operations follow, the compiler is asked for speed of its own rather than of what it makes.
    """

    def measure(argument, guess, key):
        problem = build(argument)
        solution = solve(problem, method, guess, key=key, budget=Budget(steps=steps), record=max(steps, 2), throw=False)
        counters, history = solution.counters, solution.history
        x = solution.value.primal
        lengths = history["step_length"][-2:] if "step_length" in history else jnp.full((2,), jnp.nan)
        taken = history["step"][-2:] > 0
        gradient = problem.optimality(solution.value)
        residual = jnp.linalg.norm(ravel_pytree(gradient)[0])
        return {
            "f": problem.value(x), "kkt": residual, "iterations": solution.steps, "values": counters.values,
            "gradients": counters.gradients, "evaluations": counters.values + counters.gradients,
            "sketches": counters.linear_iterations, "products": counters.hessian_products,
            "unit": jnp.all(jnp.where(taken, lengths == 1, True)), "code": solution.result.code,
            "capped": jnp.sum(history["capped"] == 1) if "capped" in history else 0,
        }  # fmt: skip

    few = not (isinstance(method, AdaSketchNewton) and method.sketch in ("gaussian_vector", "kaczmarz"))
    options: Any = {"xla_backend_optimization_level": 0} if few and jax.default_backend() == "cpu" else None
    lowered = jax.jit(measure).lower(argument, guess, jax.random.key(0))
    return lowered.compile(compiler_options=options)


def repeated(measure: Callable, name: str, argument: Any, guess: Any, keys: Any) -> list[dict[str, Any]]:
    """What is measured with each key, or once where nothing is random; and the seconds it took."""
    found = []
    for key in keys if name in RANDOMISED else keys[:1]:
        began = time.perf_counter()
        outcome = {name: np.asarray(value) for name, value in measure(argument, guess, key).items()}
        found.append({**outcome, "seconds": time.perf_counter() - began})
    return found


def median(outcomes: list[dict[str, Any]], what: str) -> float:
    return float(np.median([outcome[what] for outcome in outcomes]))


def row(name: str, outcomes: list[dict[str, Any]], solved: int) -> list[Any]:
    """Of the table: medians over the keys."""
    sketches = median(outcomes, "sketches")
    sketches = sketches if sketches else median(outcomes, "products")
    return [
        name, f"{solved} of {len(outcomes)} solved", median(outcomes, "f"), median(outcomes, "kkt"), median(outcomes, "iterations"),
        median(outcomes, "values"), median(outcomes, "gradients"), sketches, float(np.mean([o["unit"] for o in outcomes])),
    ]  # fmt: skip


def figures_of(name: str, outcomes: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of a method on one problem."""
    found = {f"{name}: {what}": median(outcomes, what) for what in ("evaluations", "iterations", "kkt", "sketches", "seconds")}
    found[f"{name}: iterations, most"] = float(max(outcome["iterations"] for outcome in outcomes))
    return found
