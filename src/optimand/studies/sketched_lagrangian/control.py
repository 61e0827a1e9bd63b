"""c. Elliptic control on a grid: states W follow controls Z by a discrete Poisson equation, and are to be near given ones."""

import jax
import jax.numpy as jnp

from optimand import Constrained, PrimalDual
from optimand.core.method import Method
from optimand.smooth import AdaSketchNewton
from optimand.studies.base import Findings, Run, Table

from . import Settings, split
from .measuring import HEADINGS, compiled, figures_of, repeated, rivals, row, theta, with_data


def elliptic_control(points: int) -> tuple[Constrained, PrimalDual]:
    """min |W - target|^2 / 2 + 0.05 |Z|^2 with Lap_h W + Z = 0 and zeros around, h = 2 / (points + 1); all starts at one."""
    h = 2 / (points + 1)
    offsets = (0.1 / 15**0.5) * (jnp.arange(1.0, points + 1) - (points + 1) / 2)
    target = jnp.sin(4 + offsets)[:, None] + jnp.cos(3 + offsets)

    def objective(x, target):
        return 0.5 * jnp.sum((x["states"] - target) ** 2) + 0.05 * jnp.sum(x["controls"] ** 2)

    def equalities(x, target):
        w = jnp.pad(x["states"], 1)
        around = w[2:, 1:-1] + w[:-2, 1:-1] + w[1:-1, 2:] + w[1:-1, :-2]
        return (around - 4 * x["states"]) / h**2 + x["controls"]

    one = jnp.ones((points, points))
    return Constrained(objective, target, equalities=equalities), PrimalDual({"states": one, "controls": one}, one)


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    keys = jax.random.split(key, settings.repeats)
    tables, metrics = [], {}
    large: dict[str, Method] = {
        name: AdaSketchNewton(
            name, tolerance=settings.tolerance, relative=settings.relative, theta=theta(settings), block=settings.block,
            shift=settings.shift, most_sketches=settings.large_sketches, matrix_free=True, equilibrate=True,
        )
        for name in ("gaussian_block", "exact")
        if name in split(settings.sketches)
    }  # fmt: skip
    small = rivals(settings, settings.most_sketches_large)
    cases = (
        (settings.grid, small, settings.steps, keys, ""),
        (settings.large_grid, large, settings.large_steps, keys[:1], ", without a matrix"),
    )
    for points, methods, steps, keys, text in cases:
        problem, guess = elliptic_control(points)
        rows = []
        for name, method in methods.items():
            measure = compiled(with_data(problem), method, guess, problem.args, steps)
            outcomes = repeated(measure, name, problem.args, guess, keys)
            solved = sum(bool(outcome["kkt"] <= 1e-4) for outcome in outcomes)
            rows.append(row(name, outcomes, solved))
            metrics |= {f"{points} x {points}: {label}": value for label, value in figures_of(name, outcomes).items()}
            out.progress(f"c: {points} x {points}, {name}: {rows[-1][1]} in {rows[-1][4]:g} iterations")
        title = f"c. Elliptic control, {points} x {points} grid, {3 * points**2} unknowns with multipliers{text}"
        note = "Medians over the keys."
        if text:
            note = f"One key, {steps} iterations at most, and {settings.large_sketches} block sketches for each of their linear systems."
        tables.append(Table(title, HEADINGS, rows, note))
    return Findings(metrics, tables)
