"""A. Matrix games: epochs to a residual, every method with its best multiple, and untuned runs of 300 epochs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import figures
from optimand.smooth import Halpern, InexactHalpern, matrix_game
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import Trace, builders, trace, tune

LEVELS = (1e-2, 3e-3, 1e-3)


def run(settings: Settings, key: Any, out: Run) -> Findings:
    metrics: dict[str, float] = {}
    rows, untuned, drawn, worst = [], [], {}, 0.0
    for number, kind in enumerate(settings.games):
        data, sample = jax.random.split(jax.random.fold_in(key, number))
        game = matrix_game(kind, settings.game_size, key=data, sampling=settings.sampling)
        payoff = np.asarray(game.args[0])
        average = _average_constant(game)
        uniform = jnp.full(settings.game_size, 1 / settings.game_size)
        curves: dict[str, Any] = {}
        for name, build in builders(settings, 1.0, average).items():
            if name not in settings.methods:
                continue
            best, runs = tune(
                game, build, (uniform, uniform), sample, multiples=settings.multiples, epochs=settings.game_epochs,
                level=LEVELS[-1],
            )  # fmt: skip
            for one in runs:
                worst = max(worst, _misreported(payoff, one))
            for level in LEVELS:
                metrics[f"A {kind}: {name} epochs to {level:g}"] = best.reach(level)
            shown = [best.reach(level) for level in LEVELS]
            failed = ", ".join(f"{one.multiple:g}" for one in runs if one.outcome == "diverged")
            rows.append([kind, name, best.multiple, *(_text(value) for value in shown), failed or "none"])
            curves[name] = (best.epochs, best.residual)
        label = f"A. {kind}: residual over epochs, each method with its best multiple"
        drawn[label] = figures.curves(curves, xlabel="component calls / n", ylabel="residual", title=kind)
        out.progress(f"A: {kind}, tuned")

        quarter = jnp.asarray(0.125)  # of Halpern's 2 / L_F: the step size 1 / (4 L_F)
        last = {}
        for name, method in (
            ("Halpern", Halpern(jnp.asarray(1.0), step_scale=quarter, tolerance=0.0)),
            ("InexactHalpern", InexactHalpern(jnp.asarray(average), step_scale=jnp.asarray(1.0), tolerance=0.0)),
        ):
            found = trace(game, method, (uniform, uniform), sample, settings.untuned_epochs)
            worst = max(worst, _misreported(payoff, found))
            last[name] = float(found.residual[-1])
            metrics[f"A {kind}: {name} residual, untuned"] = last[name]
        untuned.append([kind, last["Halpern"], last["InexactHalpern"], last["InexactHalpern"] / last["Halpern"]])
        out.progress(f"A: {kind}, untuned")
    metrics["A misreported residual"] = worst
    tables = [
        Table(
            f"A. Matrix games, {settings.game_size} x {settings.game_size}: epochs to a residual",
            ["game", "method", "best multiple", *(f"to {level:g}" for level in LEVELS), "multiples that diverged"], rows,
            f"An epoch is one call of every component. Multiples tried, for each method: {_listed(settings.multiples)}, of "
            f"1 / L_F; for InexactHalpern of sqrt(n) / L. Budget {settings.game_epochs:g} epochs.",
        ),
        Table(
            f"A. Residual after {settings.untuned_epochs:g} epochs, nothing tuned",
            ["game", "Halpern, 1 / (4 L_F)", "InexactHalpern", "ratio"], untuned,
            "Halpern at its last iterate, InexactHalpern at its last approximate resolvent.",
        ),
    ]  # fmt: skip
    return Findings(metrics, tables, drawn)


def _average_constant(game) -> float:
    """L: the Frobenius norm of the matrix with importance sampling, more with uniform sampling."""
    payoff = np.asarray(game.args[0])
    if game.probabilities is not None:
        return float(np.linalg.norm(payoff))
    rows, columns = payoff.shape
    return float(np.sqrt(max(columns * np.max(np.sum(payoff**2, axis=0)), rows * np.max(np.sum(payoff**2, axis=1)))))


def _misreported(payoff: np.ndarray, found: Trace) -> float:
    """How far the residual that a run reports is from one computed here, from its answer, in plain NumPy."""
    x, y = (np.asarray(part) for part in found.solution.value)
    moved = _simplex(x - payoff @ y), _simplex(y + x @ payoff)
    independent = np.sqrt(np.sum((x - moved[0]) ** 2) + np.sum((y - moved[1]) ** 2))
    return float(abs(independent - found.residual[-1]))


def _simplex(v: np.ndarray) -> np.ndarray:
    """The projection by bisection on the shift: another algorithm than that of the library."""
    low, high = v.min() - 1.0, v.max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - high, 0)


def _listed(numbers) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _text(value: float) -> Any:
    return round(value, 1) if np.isfinite(value) else "not reached"
