"""The light Schrödinger bridge beside discrete entropic transport, a Gaussian bridge and an independent coupling.

Korotin, Gushchin and Burnaev (ICLR 2024). Three parts, each of which can be run alone:

- `benchmark`: distributions whose plan is known, in several dimensions and for several epsilons. Judged by the conditional distributions of y given x
  (cBW2-UVP: a wrong plan can have the right ends), and by the end that is reached (BW2-UVP). The discrete plan is Sinkhorn's between samples, extended to new x
  by the entropic kernel of its potential.
- `cells`: single-cell data of several days (CITE-seq, 50 or 100 principal components): predict a day that was held out from those around it. The data are not part
  of this package: `--set cells=FOLDER` names a folder with the files `full_cite_pcas_50_day_2.npy`, ..., of days 2, 3, 4 and 7, as the authors' repository has
  them. Without it the part is not run, the report says so, and nothing is claimed of it.
- `toys`: from a Gaussian to eight Gaussians and to a spiral, for figures.

Two things differ from the authors' runs, which take twice the steps. The learning rate falls to zero over the steps of a fit (a cosine); its first value depends
on epsilon alone, and is the same in all dimensions. And components begin at samples that are far apart: of the end's mass a mode may have a thousandth, and
random samples miss it (`--set centres=random` begins there).
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError

from ..base import Claim, Findings, Run, Table

SLUG = "light-bridge"
TITLE = "Light Schrödinger bridge"
REFERENCE = ("korotin2024light", "gushchin2023building")

Part = Literal["benchmark", "cells", "toys"]


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: tuple[Part, ...] = _setting(("benchmark", "cells", "toys"), "parts to run")
    dimensions: tuple[int, ...] = _setting((2, 16, 64), "of the benchmark", least=1)
    epsilons: tuple[float, ...] = _setting((0.1, 1.0, 10.0), "of the benchmark", least=1e-6)
    components: int = _setting(50, "Gaussians of the benchmark's fits", least=1)
    steps: int = _setting(5000, "of the benchmark's fits", least=1)
    learning_rates: tuple[float, ...] = _setting((1e-2, 3e-2, 1e-1), "first values, one for each epsilon", least=1e-8)
    batch: int = _setting(128, "samples a step of each end, in all parts", least=1)
    covariance: Literal["diag", "full"] = _setting("diag", "of the components, in all parts")
    centres: Literal["random", "apart"] = _setting("apart", "samples at which components begin, in all parts")
    samples: int = _setting(50_000, "of each end of the benchmark", least=10)
    n_test: int = _setting(1000, "points at which plans are compared", least=2)
    pushed: int = _setting(20_000, "points of which the ends are compared", least=10)
    plan_points: int = _setting(2000, "samples of each end for the discrete plan, also of cells", least=2)
    sweeps: int = _setting(3000, "of Sinkhorn's method at most", least=1)
    path_starts: int = _setting(50, "points from which paths are simulated", least=1)
    path_count: int = _setting(500, "paths from each", least=2)
    path_steps: int = _setting(100, "of Euler and Maruyama", least=1)

    cells: Path | None = dataclasses.field(default=None, metadata={"help": "folder of the single-cell data; without it that part is not run"})
    cell_dimension: Literal[50, 100] = _setting(50, "principal components")
    cell_components: int = _setting(10, "Gaussians", least=1)
    cell_steps: int = _setting(10_000, "of the fits", least=1)
    cell_rate: float = _setting(1e-2, "first learning rate", least=1e-8)
    cell_epsilon: float = _setting(0.1, "in units of the mean standard deviation squared", least=1e-6)

    toy_epsilons: tuple[float, ...] = _setting((0.002, 0.01, 0.1), "of the figures", least=1e-6)
    toy_components: int = _setting(100, "Gaussians", least=1)
    toy_steps: int = _setting(4000, "of the fits", least=1)
    toy_rate: float = _setting(3e-3, "first learning rate", least=1e-8)

    def __post_init__(self):
        if len(self.learning_rates) != len(self.epsilons):
            raise ArgumentError("learning_rates", f"must be {len(self.epsilons)} numbers, one for each epsilon, not {len(self.learning_rates)}.")
        if self.pushed > self.samples or self.n_test > self.samples or self.plan_points > self.samples:
            raise ArgumentError("samples", f"must be at least `pushed`, `n_test` and `plan_points`, not {self.samples}.")
        if self.cells is not None and not self.cells.is_dir():
            raise ArgumentError("cells", f"is not a folder: {self.cells}.")


QUICK = {
    "dimensions": (2,), "epsilons": (1.0,), "learning_rates": (3e-2,), "components": 20, "steps": 400, "samples": 2000, "n_test": 50, "pushed": 1000,
    "plan_points": 100, "sweeps": 50, "path_starts": 5, "path_count": 50, "path_steps": 20, "cell_steps": 200, "toy_epsilons": (0.1,),
    "toy_components": 10, "toy_steps": 100,
}  # fmt: skip


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed, in single precision."""
    import jax

    from . import benchmark, cells, toys

    metrics: dict[str, float] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    for number, (name, part) in enumerate({"benchmark": benchmark, "cells": cells, "toys": toys}.items()):
        if name in settings.parts:
            found = part.run(settings, jax.random.fold_in(key, number), out)
            metrics |= found.metrics
            tables.extend(found.tables)
            drawn |= found.figures
    return Findings(metrics, tables, drawn)


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars. Each seed has to keep them, so the worst counts; what was not run is not claimed."""
    said: list[Claim] = []
    note = f"{settings.components} components, {settings.steps} steps; worst of {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"

    def worst(*names: str) -> float | None:
        if any(name not in seed for seed in seeds for name in names):
            return None
        return float(max(seed[names[0]] / (seed[names[1]] if len(names) > 1 else 1) for seed in seeds))

    def most(title: str, measured: float | None, bar: float, paper: str | None = None, note: str = note) -> None:
        if measured is not None:
            said.append(Claim.at_most(title, measured, bar, paper, note))

    for d, bar, paper in ((2, 0.3, "0.05"), (16, 0.6, "0.09"), (64, 1.5, "0.24")):
        most(f"d = {d}, epsilon 1: cBW2-UVP, %", worst(f"d = {d}, epsilon 1: cBW2-UVP"), bar, paper)
    case = "d = 16, epsilon 0.1"
    most(f"{case}: cBW2-UVP / that of the discrete plan", worst(f"{case}: cBW2-UVP", f"{case}: discrete plan: cBW2-UVP"), 0.2)
    for d in (2, 16):
        pushed = [worst(f"d = {d}, epsilon {epsilon:g}: BW2-UVP of the end") for epsilon in settings.epsilons]
        if d in settings.dimensions and None not in pushed:
            most(f"d = {d}: BW2-UVP of the end, %, largest over epsilon", float(np.max(np.array(pushed, float))), 0.1)
    gaps = [seed[name] for seed in seeds for name in seed if name.endswith("gap of simulated paths")]
    most("cBW2-UVP of paths - that of the exact sampler, points, largest", float(np.max(gaps)) if gaps else None, 0.5, note=f"{settings.path_steps} steps")
    cells = "cells: energy distance: "
    note = f"mean of days 3 and 4, held out; {settings.cell_dimension} principal components; worst of {len(seeds)}"
    most("cells: energy distance / that of Sinkhorn's plan", worst(f"{cells}LightSB", f"{cells}Sinkhorn"), 1.02, "2.31 / 2.34", note)
    most("cells: energy distance / that of the best trivial prediction", worst(f"{cells}LightSB", f"{cells}best trivial"), 0.9, note=note)
    most("cells: seconds of a fit, the slower", worst("cells: seconds of a fit"), 60.0, "65, on 4 cores", note)
    return said
