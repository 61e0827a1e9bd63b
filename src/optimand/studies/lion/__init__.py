r"""Lion as constrained optimisation: what Chen et al. 2024 prove of Lion-K, measured.

A. **A quadratic on the set of every kernel.** The end point against the constrained optimum found by SciPy, with a learning
   rate that falls to zero and with two that stay; and how fast the iterates enter the set from outside.
B. **Digits.** A two-layer network on scikit-learn's 8 x 8 digits: Lion, AdamW, momentum descent, and momentum descent
   projected on Lion's box; each with its own grid of learning rates, of which a validation set chooses.
C. **Lyapunov.** H along the flow of nonconvex problems, and without its cross term; and Lion, Frank-Wolfe and projected
   gradient on A by gradients spent.

The learning rates of B fall as in A. Everything runs in double precision unless `precision` says otherwise for the network: in
single precision a weight that enters the box stops short of it, where learning rate times lambda times the distance is
less than half a unit in its last place: at about 1e-6 of the half-width here, which is where the bar is.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError
from optimand.studies.base import Claim, Findings, Run, Table

SLUG = "lion"
TITLE = "Lion-K: Lion solves constrained problems, as its Lyapunov function predicts"
REFERENCE = ("chen2024lion", "chen2023symbolic")

KERNELS = ("l1", "lp2", "lp4", "topk", "group", "huber", "threshold")


def _setting(default: Any, text: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: str = _setting("ABC", "which experiments to run")
    kernels: tuple[str, ...] = _setting(KERNELS, f"A: kernels, of {', '.join(KERNELS)}")
    dimension: int = _setting(40, "A: unknowns; a multiple of `group`", least=2)
    group: int = _setting(8, "A: entries of a group", least=1)
    topk: int = _setting(10, "A: k of the top-k kernel", least=1)
    e: float = _setting(0.1, "A, C: e of the Huber, threshold and smoothed L1 kernels", least=1e-6)
    steps: int = _setting(20_000, "A: steps", least=10)
    rate: float = _setting(1e-2, "A: learning rate, at the start of the schedule and of the longer constant one", least=0)
    small_rate: float = _setting(1e-3, "A: the shorter constant learning rate", least=0)
    schedule: Literal["linear", "cosine"] = _setting("linear", "A: how the learning rate falls to zero")
    weight_decay: float = _setting(1.0, "A, C: lambda", least=1e-6)
    b1: float = _setting(0.9, "beta 1", least=0, most=1)
    b2: float = _setting(0.99, "beta 2", least=0, most=1)
    decay: Literal["explicit", "implicit"] = _setting("explicit", "form of the weight decay")

    decays: tuple[float, ...] = _setting((0.1, 1.0, 3.0, 10.0), "B: lambdas", least=1e-6)
    lion_rates: tuple[float, ...] = _setting((1e-3, 3e-3, 1e-2, 3e-2), "B: learning rates of Lion", least=0)
    adamw_rates: tuple[float, ...] = _setting((1e-3, 3e-3, 1e-2, 3e-2), "B: learning rates of AdamW", least=0)
    sgd_rates: tuple[float, ...] = _setting((0.03, 0.1, 0.3, 1.0), "B: learning rates of momentum descent, also projected", least=0)
    precision: Literal["float32", "float64"] = _setting("float64", "B: of the training")
    examples: int = _setting(1797, "B: images, of which three fifths are trained on", least=50, most=1797)
    hidden: int = _setting(128, "B: hidden units", least=1)
    batch: int = _setting(64, "B: images in a step", least=1)
    epochs: int = _setting(40, "B: passes over the training images", least=1)

    flows: int = _setting(5, "C: random problems", least=1)
    flow_dimension: int = _setting(10, "C: unknowns", least=1)
    flow_time: float = _setting(40.0, "C: how long the flow is followed", least=0.1)
    flow_points: int = _setting(4000, "C: points at which H is compared", least=10)
    epsilon: float = _setting(0.1, "C: epsilon of the flow, 1 - beta 1 of Lion; alpha = gamma = 1", least=0, most=1)
    race_steps: int = _setting(2000, "C: gradients that Lion, Frank-Wolfe and projected gradient may spend", least=10)
    race_rate: float = _setting(0.05, "C: first learning rate of Lion in that comparison", least=0)

    def __post_init__(self):
        if not self.parts or not set(self.parts) <= set("ABC"):
            raise ArgumentError("parts", f"must be letters of ABC, not {self.parts!r}.")
        if not self.kernels or not set(self.kernels) <= set(KERNELS):
            raise ArgumentError("kernels", f"must be some of {', '.join(KERNELS)}, not {', '.join(self.kernels)}.")
        if self.dimension % self.group:
            raise ArgumentError("dimension", f"must be a multiple of group = {self.group}, not {self.dimension}.")
        if self.topk > self.dimension:
            raise ArgumentError("topk", f"must be at most the dimension, {self.dimension}, not {self.topk}.")
        if self.rate * self.weight_decay >= 1 and self.decay == "explicit":
            raise ArgumentError("rate", f"times weight_decay must be less than 1, not {self.rate * self.weight_decay:g}.")
        if max(self.lion_rates) * max(self.decays) >= 1 and self.decay == "explicit":
            raise ArgumentError("lion_rates", "times decays must be less than 1, in every pair.")
        if self.small_rate >= self.rate:
            raise ArgumentError("small_rate", f"must be less than rate = {self.rate}, not {self.small_rate}.")


QUICK = {
    "kernels": ("l1", "group"),
    "dimension": 16,
    "topk": 4,
    "steps": 3000,
    "rate": 3e-2,
    "small_rate": 3e-3,
    "decays": (1.0, 10.0),
    "lion_rates": (3e-2,),
    "adamw_rates": (1e-2,),
    "sgd_rates": (0.1,),
    "examples": 400,
    "hidden": 16,
    "epochs": 10,
    "batch": 16,
    "flows": 2,
    "flow_dimension": 3,
    "flow_time": 10.0,
    "flow_points": 500,
    "race_steps": 300,
}


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed of every part that was asked for."""
    import jax

    from . import digits, lyapunov, quadratic  # each needs Settings

    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    for number, (letter, part) in enumerate({"A": quadratic, "B": digits, "C": lyapunov}.items()):
        if letter in settings.parts:
            out.progress(f"part {letter}")
            with jax.enable_x64(letter != "B" or settings.precision == "float64"):
                found = part.run(settings, jax.random.fold_in(key, number), out)
            metrics |= {f"{letter} {name}": value for name, value in found.metrics.items()}
            tables += found.tables
            drawn |= found.figures
    return Findings(metrics, tables, drawn)


STALLED = 1e-10  # a constant learning rate has stalled if it leaves more than this, and ten times what the falling one leaves


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars, over all seeds and kernels: the worst counts."""
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    found: list[Claim] = []
    if "A" in settings.parts:
        over = f"worst of {len(settings.kernels)} kernels, {settings.steps} steps"
        worst = lambda what: np.max([every(f"A {kernel}: {what}").max() for kernel in settings.kernels])
        found += [
            Claim.at_most("A: relative gap to the optimum, falling rate", worst("gap, falling"), 1e-5, note=over),
            Claim.at_most("A: violation at the end, falling rate", worst("violation, falling"), 1e-9, note=over),
            Claim.at_most("A: |rate of entry / log(1 - eps lambda) - 1|", worst("entry"), 0.05,
                          note="steps held at the side of the boundary, every kernel"),
        ]  # fmt: skip
        if "l1" in settings.kernels:
            excess = every("A quadratic: slowest entry").max()
            found.append(Claim.at_most("A: largest violation after / before a step, over (1 - eps lambda)", excess, 1 + 1e-7,
                                       note="the quadratic, from 5 / lambda in every coordinate"))  # fmt: skip
        ratios = [
            small / large
            for kernel in settings.kernels
            for small, large, falling in zip(
                *(every(f"A {kernel}: gap, {rate}") for rate in ("small", "constant", "falling")), strict=True
            )
            if not large <= max(STALLED, 10 * falling)
        ]
        note = f"worst of the {len(ratios)} cases (kernels, seeds) that stall at {settings.rate:g}"
        ratio = max(ratios) if ratios else np.nan
        found.append(Claim.at_most(f"A: gap at constant {settings.small_rate:g} / at {settings.rate:g}", ratio, 0.2, "O(eps)", note))
    if "C" in settings.parts:
        note = f"{settings.flows} problems, each seed"
        found += [
            Claim.at_most("C: largest increase of H along the flow", every("C largest increase").max(), 1e-7, "none", note),
            Claim.at_least("C: problems in which H without its cross term rises", every("C without cross term").min(), 1.0, note=note),
        ]  # fmt: skip
    if "B" in settings.parts:
        tight = max(settings.decays)
        inside = every("B Lion: least share inside").min()
        found += [
            Claim.at_least("B: share of Lion's weights with |w| <= 1/lambda (1 + 1e-6)", inside, 1.0, "1",
                           "every lambda and rate whose phase 1 is over"),
            Claim.at_least(f"B: AdamW's weights outside 1/lambda, lambda = {tight:g}",
                           every("B AdamW: outside, tightest").min(), 1.0, note="its best learning rate"),
            Claim.at_least("B: test accuracy, best Lion - best AdamW, points",
                           (every("B Lion: accuracy") - every("B AdamW: accuracy")).min(), -1.0),
        ]  # fmt: skip
    return found
