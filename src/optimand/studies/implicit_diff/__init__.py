r"""Implicit differentiation: five experiments of Blondel et al. 2022 at the size of two cores, and a parity suite.

A. **Precision.** The Jacobian of ridge and logistic ridge regression (diabetes data) at the iterates of gradient
   descent: the error of the implicit one is proportional to that of the iterate, that of the unrolled one lags behind.
B. **Hyperparameters.** The derivative of a validation loss in the regularisation of a multiclass support vector machine,
   through its dual on a product of simplices: time and memory, implicit against unrolled.
C. **Distillation.** Ten images from which a classifier learns to read the digits: bilevel, gradient by either route.
D. **Discs.** How a jammed packing of soft discs moves when half of them grow: implicit against unrolled tangents.
E. **Dictionary.** Task-driven dictionary learning on the breast cancer data against its rivals.
P. **Parity.** Every method of `optimand.smooth`: implicit gradients agree with finite differences and with unrolling.

The unrolled rivals run the same method for the same iterations. Reverse mode is given its fastest form: a scan that
stores all it needs, or a loop with checkpoints, whichever is quicker.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from optimand.core.errors import ArgumentError
from optimand.studies.base import Claim, Findings, Run, Table

SLUG = "implicit-diff"
TITLE = "Implicit differentiation: precision, cost, and five problems"
REFERENCE = "blondel2022efficient"


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: str = _setting("ABCDEP", "which experiments to run")
    rtol: float = _setting(1e-8, "relative tolerance of the linear solves of implicit derivatives")
    ridge_iterations: int = _setting(2000, "A: iterations of gradient descent")
    ridge_theta: float = _setting(0.01, "A: weight of the ridge")
    svm_features: str = _setting("50,200,1000,4000", "B: numbers of features, separated by commas")
    svm_samples: int = _setting(300, "B: training samples; as many for validation")
    svm_classes: int = _setting(5, "B: classes")
    svm_theta: float = _setting(30.0, "B: regularisation")
    svm_iterations: int = _setting(1000, "B: iterations of mirror descent and projected gradient")
    svm_block_iterations: int = _setting(300, "B: iterations of block coordinate descent")
    svm_block_largest: int = _setting(1000, "B: most features for block coordinate descent, which is slow")
    distil_steps: int = _setting(200, "C: outer steps")
    distil_theta: float = _setting(1e-3, "C: l2 regularisation of the classifier")
    distil_rate: float = _setting(0.02, "C: outer learning rate, with momentum 0.9")
    distil_implicit: str = _setting(
        "1e-7/1e-8,1e-5/1e-4,1e-4/1e-4,1e-3/1e-2",
        "C: tolerances the implicit route may use, of the inner problem / of the linear system; the fastest good one counts",
    )
    distil_unrolled: str = _setting(
        "10,15,20,30", "C: inner iterations the unrolled rival may use; the fastest good one counts"
    )
    distil_warm: bool = _setting(True, "C: also let each route start the inner problem where the outer step before left it")
    distil_tolerance: float = _setting(1e-3, "C: tolerance of the inner problem in the paper's comparison")
    discs_count: int = _setting(64, "D: discs")
    discs_theta: float = _setting(0.6, "D: diameter of the small half")
    discs_packing: float = _setting(0.98, "D: packing fraction")
    discs_time_step: float = _setting(0.1, "D: first time step of FIRE; the longest is four times it")
    discs_runs: int = _setting(20, "D: random starts")
    discs_iterations: int = _setting(2000, "D: most iterations of FIRE")
    discs_unrolled: int = _setting(300, "D: iterations after which unrolled tangents are held to the bar")
    dictionary_data: str = _setting("", "E: an .npz file with arrays X and y; breast cancer data by default")
    dictionary_atoms: int = _setting(10, "E: atoms")
    dictionary_splits: int = _setting(10, "E: random splits")
    dictionary_steps: int = _setting(150, "E: outer steps of Adam")
    parity_methods: str = _setting("", "P: names of methods, separated by commas; all of them by default")

    def __post_init__(self):
        try:
            pairs = [[float(number) for number in pair.split("/")] for pair in self.distil_implicit.split(",")]
        except ValueError:
            pairs = [[]]
        if not all(len(pair) == 2 and min(pair) > 0 for pair in pairs):
            text = f"must be pairs of tolerances like 1e-5/1e-4, separated by commas, not {self.distil_implicit!r}."
            raise ArgumentError("distil_implicit", text)
        if not set(self.parts) <= set("ABCDEP") or not self.parts:
            raise ArgumentError("parts", f"must be letters of ABCDEP, not {self.parts!r}.")
        for name in ("svm_features", "distil_unrolled"):
            if not all(part.strip().isdigit() and int(part) > 0 for part in getattr(self, name).split(",")):
                raise ArgumentError(name, f"must be whole numbers separated by commas, not {getattr(self, name)!r}.")


QUICK = {
    "svm_features": "20",
    "svm_samples": 24,
    "svm_iterations": 300,
    "svm_block_largest": 1,
    "distil_steps": 3,
    "distil_implicit": "1e-5/1e-4",
    "distil_unrolled": "10",
    "distil_warm": False,
    "distil_tolerance": 1e-2,
    "discs_count": 12,
    "discs_runs": 2,
    "discs_iterations": 1000,
    "dictionary_splits": 1,
    "dictionary_steps": 3,
    "parity_methods": "FixedPointIteration",
}


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    """One seed: all parts, in double precision."""
    from . import dictionary, discs, distillation, parity, precision, support_vectors  # each needs Settings

    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    parts = {"A": precision, "B": support_vectors, "C": distillation, "D": discs, "E": dictionary, "P": parity}
    with jax.enable_x64(True):
        for number, (letter, part) in enumerate(parts.items()):
            if letter in settings.parts:
                out.progress(f"part {letter}")
                found = part.run(settings, jax.random.fold_in(key, number), out)
                metrics |= {f"{letter} {name}": float(value) for name, value in found.metrics.items()}
                tables += found.tables
                drawn |= found.figures
    return Findings(metrics, tables, drawn)


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars, over all seeds: the worst seed counts, except where a claim says median."""
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    found: list[Claim] = []
    if "A" in settings.parts:
        for name in ("ridge", "logistic"):
            worst = every(f"A {name} worst implicit / unrolled").max()
            found.append(Claim.at_most(f"A: {name}: largest implicit error / unrolled error", worst, 1.0))
            slopes = every(f"A {name} slope")
            far = slopes[np.argmax(np.abs(slopes - 1))]
            found.append(
                Claim.between(f"A: {name}: slope of log error of J against log error of x", far, 0.9, 1.1, "1")
            )
    if "B" in settings.parts:
        last = settings.svm_features.split(",")[-1].strip()
        for name in ("mirror descent", "projected gradient"):
            label = f"B {name}, p = {last}"
            ratio = np.median(every(f"{label}: unrolled / implicit time"))
            found.append(
                Claim.at_least(f"{label}: unrolled time / implicit time", ratio, 1.5, "faster at all sizes",
                               "the fastest unrolled form; median of seeds")
            )  # fmt: skip
        errors = [
            value for seed in seeds for key, value in seed.items() if key.startswith("B") and "relative error" in key
        ]
        found.append(Claim.at_most("B: relative error of implicit hypergradients", np.max(errors), 1e-4))
        growth = every("B memory of implicit, ten times the iterations")
        found.append(
            Claim.between("B: memory at ten times the iterations", growth[np.argmax(abs(growth - 1))], 0.9, 1.1)
        )
    if "C" in settings.parts:
        gaps = every("C unrolled / implicit loss")
        gap = gaps[np.argmax(np.abs(gaps - 1))]
        note = "each the fastest of its grid whose loss is as good"
        found.append(Claim.between("C: loss of unrolled / loss of implicit", gap, 0.99, 1.01, "same", note))
        ratio = np.median(every("C unrolled / implicit time"))
        found.append(Claim.at_least("C: unrolled time / implicit time", ratio, 2.0, None, note))
        note = f"the paper's comparison: both run gradient descent to {settings.distil_tolerance:g}"
        gaps = every("C same solver: unrolled / implicit loss")
        gap = gaps[np.argmax(np.abs(gaps - 1))]
        found.append(Claim.between("C: loss, unrolling that solves as accurately / implicit", gap, 0.99, 1.01, "same", note))
        ratio = np.median(every("C same solver: unrolled / implicit time"))
        found.append(Claim.at_least("C: time, unrolling that solves as accurately / implicit", ratio, 2.0, "about 4", note))
    if "D" in settings.parts:
        error = every("D median relative error").max()
        found.append(Claim.at_most("D: median relative error of implicit tangents", error, 1e-3))
        found.append(Claim.at_most("D: implicit tangents that diverge", every("D divergences").sum(), 0.0))
        share = lambda name: every(f"D runs with {name}").mean()
        after = f"after {settings.discs_unrolled} iterations"
        note = (
            f"implicit tangents of the same iterates: {share('implicit norm beyond 10 x, at the same iterates'):.2g}; "
            f"unrolled ones once FIRE has converged: {share('unrolled norm beyond 10 x, relaxed'):.2g}"
        )
        beyond = share("unrolled norm beyond 10 x")
        found.append(
            Claim.at_least(f"D: fraction of unrolled tangents beyond 10 x {after}", beyond, 0.2, "many", note)
        )
    if "P" in settings.parts:
        share = (every("P methods that agree") / every("P methods")).min()
        found.append(Claim.at_least("P: fraction of methods whose gradients agree", share, 1.0))
    return found
