"""Single-cell data: a day that was held out, predicted from the days around it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.core.errors import ArgumentError
from optimand.transport import EntropicBridge, energy_distance

from ..base import Findings, Run, Table
from . import Settings
from .measuring import discrete_plan, fit

TRIPLES = ((2, 3, 4), (3, 4, 7))  # start, held out, end
TRIVIAL = ("random pairs", "start day", "end day")


def load(settings: Settings) -> dict[int, np.ndarray]:
    """The cells of each day in rows, as they are in the files."""
    found = {}
    assert settings.cells is not None  # looked at by `run`
    for day in (2, 3, 4, 7):
        path = settings.cells / f"full_cite_pcas_{settings.cell_dimension}_day_{day}.npy"
        try:
            cells = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArgumentError("cells", f"has no readable file {path.name}: {error}.") from None
        if cells.ndim != 2 or cells.shape[1] != settings.cell_dimension:
            raise ArgumentError("cells", f"has {path.name} of shape {cells.shape}, not (cells, {settings.cell_dimension}).")
        found[day] = cells.astype(np.float32)
    return found


def run(settings: Settings, key: Any, out: Run) -> Findings:
    if settings.cells is None:
        text = "not run: the data are not part of this package. --set cells=FOLDER names a folder with full_cite_pcas_50_day_2.npy, ..._3, ..._4 and ..._7."
        out.progress(f"cells: {text}")
        return Findings({}, [Table("Single-cell data", ["part", "what became of it"], [["cells", text]])])
    days = load(settings)
    scale = float(np.mean(np.std(np.concatenate(list(days.values())), axis=0)))
    metrics: dict[str, float] = {}
    rows, every, seconds = [], [], []
    for number, (start, middle, end) in enumerate(TRIPLES):
        keys = jax.random.split(jax.random.fold_in(key, number), 8)
        x0, truth, x1 = (jnp.asarray(days[day] / scale) for day in (start, middle, end))
        t = (middle - start) / (end - start)
        problem = EntropicBridge(x0, x1, settings.cell_epsilon)
        case = f"cells: day {middle}"
        found = fit(problem, settings.cell_components, settings.cell_rate, settings.cell_steps, settings, keys[0], case, out)
        few = (jax.random.permutation(keys[1], x0)[: settings.plan_points], jax.random.permutation(keys[2], x1)[: settings.plan_points])
        plan = discrete_plan(*few, settings.cell_epsilon, settings.sweeps)
        rows_of_plan, columns_of_plan = plan.pairs(keys[3], len(x0))
        noise = jnp.sqrt(settings.cell_epsilon * t * (1 - t)) * jax.random.normal(keys[4], x0.shape)
        random = x1[jax.random.randint(keys[5], (len(x0),), 0, len(x1))]
        predictions = {
            "LightSB": found.bridge.sample_at(x0, t, keys[6]),
            "Sinkhorn": (1 - t) * few[0][rows_of_plan] + t * few[1][columns_of_plan] + noise,
            "random pairs": (1 - t) * x0 + t * random,
            "start day": x0,
            "end day": x1,
        }
        distances = {name: scale * float(energy_distance(cells, truth)) for name, cells in predictions.items()}
        metrics |= {f"{case}: energy distance: {name}": distance for name, distance in distances.items()}
        metrics |= {
            f"{case}: effective components": float(found.bridge.effective_components(x0)),
            f"{case}: marginal error of Sinkhorn's plan": plan.error,
        }
        every.append(distances)
        seconds.append(found.seconds + found.compile_seconds)
        rows.append([f"{start}, {end}", middle, *distances.values(), seconds[-1], plan.error])
    mean = {name: float(np.mean([distances[name] for distances in every])) for name in every[0]}
    metrics |= {f"cells: energy distance: {name}": distance for name, distance in mean.items()}
    metrics["cells: energy distance: best trivial"] = min(mean[name] for name in TRIVIAL)
    metrics["cells: seconds of a fit"] = max(seconds)
    rows.append(["mean", "", *mean.values(), max(seconds), None])
    columns = ["from days", "day", *[f"energy distance: {name}" for name in mean], "seconds of the fit, with compiling", "marginal error of Sinkhorn's plan"]
    note = f"{settings.cell_dimension} principal components, in their units. Sinkhorn's plan is between {settings.plan_points} cells of each day; LightSB has all."
    return Findings(metrics, [Table("Single-cell data", columns, rows, note)])
