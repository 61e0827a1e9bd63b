"""Variance-reduced Halpern iteration beside its rivals, in component calls.

Cai, Alacaoglu and Diakonikolas (ICLR 2024). An *epoch* is as many component calls as there are components; a difference of
a component between two points costs two calls, or one if it is linear. A residual is one of an iterate (there are no
averages), at a point where the method itself called all components: no evaluation goes uncounted. Every method is run with
the same multiples of 1 / L_F as its step size, and its best is kept.

A. **Games.** Three families of matrix games: epochs to a residual; and the deterministic iteration beside the one on
   inexact resolvents, both untuned.
B. **Logistic regression** without regularisation, where the operator is cocoercive, as algorithm 1 assumes.
C. **Quadratic constraints**: a saddle point whose components are the constraints. Nothing is claimed.
D. **Growth**: component calls to one residual against the number of examples, n.

Constants of algorithm 1 (the probability of a full draw, the anchor's weight, the batch) are those in the docstring of
`optimand.smooth.VRHalpern`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError

from ..base import Claim, Findings, Run, Table

SLUG = "halpern"
TITLE = "Variance-reduced Halpern iteration for monotone inclusions"
REFERENCE = "cai2024variance"

Part = Literal["A", "B", "C", "D"]
Game = Literal["policeman-burglar", "symmetric-1", "symmetric-2"]
Name = Literal["GDA", "EG", "Popov", "EAG", "Halpern", "VRHalpern", "InexactHalpern"]


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: tuple[Part, ...] = _setting(("A", "B", "C", "D"), "parts to run")
    multiples: tuple[float, ...] = _setting((0.25, 0.5, 1.0, 2.0), "of 1 / L_F: step sizes tried for every method", least=1e-6)
    sampling: Literal["importance", "uniform"] = _setting("importance", "how components are drawn")
    batch: int | None = _setting(None, "b of VRHalpern; none is the root of n", least=1)
    probability: float | None = _setting(None, "of a full draw of VRHalpern; none is its schedule", least=0, most=1)
    anchoring: Literal["paper", "harmonic"] = _setting("paper", "of VRHalpern: 2 / (k + 4), or 1 / (k + 2)")

    games: tuple[Game, ...] = _setting(("policeman-burglar", "symmetric-1", "symmetric-2"), "A: games")
    methods: tuple[Name, ...] = _setting(
        ("GDA", "EG", "Popov", "EAG", "Halpern", "VRHalpern", "InexactHalpern"), "A, C: methods; the claims need EG, EAG, VRHalpern"
    )
    game_size: int = _setting(200, "A: rows and columns", least=2)
    game_epochs: float = _setting(300.0, "A: budget of a tuned run", least=1)
    untuned_epochs: float = _setting(300.0, "A: budget of an untuned run", least=1)

    logistic_n: int = _setting(10_000, "B: examples with non-negative features", least=2)
    logistic_d: int = _setting(60, "B, D: their features", least=1)
    gaussian_n: int = _setting(4000, "B: examples with Gaussian features", least=2)
    gaussian_d: int = _setting(100, "B: their features", least=1)
    logistic_level: float = _setting(1e-2, "B: norm of the gradient to reach", least=0)
    logistic_epochs: float = _setting(800.0, "B, D: budget of a run", least=1)
    margins: float = _setting(8.0, "B, D: deviation of x'w for the weights w that make the labels", least=0)

    constraints: int = _setting(200, "C: quadratic constraints", least=1)
    quadratic_d: int = _setting(30, "C: unknowns", least=1)
    quadratic_epochs: float = _setting(200.0, "C: budget of a run", least=1)
    quadratic_level: float = _setting(1e-2, "C: residual to reach", least=0)

    scaling_n: tuple[int, ...] = _setting((1000, 4000, 16_000, 64_000), "D: numbers of examples", least=2)
    scaling_level: float = _setting(1.5e-2, "D: norm of the gradient to reach", least=0)

    def __post_init__(self):
        for name in ("parts", "multiples", "games", "methods", "scaling_n"):
            if not getattr(self, name):
                raise ArgumentError(name, "must not be empty.")
        if self.probability == 0:
            raise ArgumentError("probability", "must be positive: a residual is known at full draws only.")


QUICK = {
    "multiples": (1.0,), "games": ("symmetric-1",), "methods": ("EG", "VRHalpern"), "game_size": 16,
    "game_epochs": 40.0, "untuned_epochs": 20.0, "logistic_n": 200, "logistic_d": 6, "gaussian_n": 200, "gaussian_d": 6,
    "logistic_level": 3e-2, "logistic_epochs": 60.0, "constraints": 9, "quadratic_d": 4, "quadratic_epochs": 20.0,
    "scaling_n": (200, 400), "scaling_level": 3e-2,
}  # fmt: skip


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed: all parts, in double precision."""
    import jax

    from . import games, logistic, quadratic

    parts = {"A": games.run, "B": logistic.run, "C": quadratic.run, "D": logistic.scaling}
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    with jax.enable_x64(True):
        for number, (letter, part) in enumerate(parts.items()):
            if letter in settings.parts:
                found = part(settings, jax.random.fold_in(key, number), out)
                metrics |= dict(found.metrics)
                tables += found.tables
                drawn |= found.figures
    return Findings(metrics, tables, drawn)


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars. Each seed has to keep them, so the worst counts; in D, which is about a slope, means over seeds."""
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    grid = f"multiples {', '.join(f'{multiple:g}' for multiple in settings.multiples)} of 1 / L_F for each method"

    def ratio(ours: str, theirs: str, budget: float) -> float:
        """Ours over theirs; a rival that never got there is taken to have got there at the end of its budget."""
        one, other = every(ours), every(theirs)
        return float(np.max(np.where(np.isfinite(one), one, np.nan) / np.minimum(other, budget)))

    said: list[Claim] = []
    if "A" in settings.parts:
        for kind in settings.games:
            if kind != "symmetric-2":
                for rival, bar in (("EG", 0.6), ("EAG", 0.5)):
                    name = lambda method, kind=kind: f"A {kind}: {method} epochs to 0.001"
                    figure = ratio(name("VRHalpern"), name(rival), settings.game_epochs)
                    said.append(Claim.at_most(f"A {kind}: epochs to 1e-3, VRHalpern / {rival}", figure, bar, note=grid))
            name = lambda method, kind=kind: f"A {kind}: {method} residual, untuned"
            figure = float(np.max(every(name("InexactHalpern")) / every(name("Halpern"))))
            title = f"A {kind}: residual after {settings.untuned_epochs:g} epochs, InexactHalpern / Halpern"
            said.append(Claim.at_most(title, figure, 0.5, note="untuned"))
    if "B" in settings.parts:
        ours = "B non-negative: VRHalpern epochs"
        for rival, bar in (("Halpern", 0.5), ("gradient descent", 0.6)):
            figure = ratio(ours, f"B non-negative: {rival} epochs", settings.logistic_epochs)
            title = f"B: epochs to {settings.logistic_level:g}, VRHalpern / {rival}"
            said.append(Claim.at_most(title, figure, bar, note=grid))
    if "D" in settings.parts:
        said += _growth(every, settings)
    for part in "AB":
        if part in settings.parts:
            worst = float(np.max(every(f"{part} misreported residual")))
            title = f"{part}: reported residual of the last iterate - an independent one"
            said.append(Claim.at_most(title, worst, 1e-10))
    return said


def _growth(every: Any, settings: Settings) -> list[Claim]:
    sizes = np.array(settings.scaling_n, float)
    epochs = {
        name: np.array([np.mean(every(f"D n = {n}: {name} epochs")) for n in settings.scaling_n])
        for name in ("Halpern", "VRHalpern")
    }
    said = []
    if len(sizes) > 1:
        with np.errstate(invalid="ignore"):
            slopes = {name: _slope(sizes, sizes * values) for name, values in epochs.items()}
        note = f"mean over seeds; Halpern's is {slopes['Halpern']:.3g}"
        said.append(Claim.at_most("D: slope of log component calls in log n, VRHalpern", slopes["VRHalpern"], 0.75, "0.5", note))
    gains = dict(zip(settings.scaling_n, np.minimum(epochs["Halpern"], settings.logistic_epochs) / epochs["VRHalpern"], strict=True))
    if 16_000 in gains:
        said.append(Claim.at_least("D: epochs at n = 16000, Halpern / VRHalpern", gains[16_000], 3.0))
        if 1000 in gains:
            more = gains[16_000] / gains[1000]
            said.append(Claim.at_least("D: that ratio at n = 16000 / at n = 1000", more, 1.0, note="has to be larger"))
    return said


def _slope(sizes: np.ndarray, calls: np.ndarray) -> float:
    if not np.all(np.isfinite(calls)):
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(calls), 1)[0])
