"""B and D. Logistic regression without regularisation: a cocoercive operator, the gradient; and its growth with n."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import figures
from optimand.smooth import MonotoneInclusion
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import Trace, builders, tune


def component(w, i, features, labels):
    """The gradient of the loss of one example."""
    return features[i] * (jax.nn.sigmoid(features[i] @ w) - labels[i])


def gradient(w, features, labels):
    """Their mean at once."""
    return (jax.nn.sigmoid(features @ w) - labels) @ features / labels.size


def weights(key: Any, d: int, law: str, margins: float) -> Any:
    """Normal weights scaled so that x'w has the deviation `margins`, and mean zero: both labels are equally likely.

    Features that are not negative have a mean that would else decide most labels, and the seed how hard the problem is.
    """
    spread = scales(d, law)
    truth = jax.random.normal(key, (d,))
    deviation = 1.0
    if law == "non-negative":
        truth = truth - spread * (spread @ truth) / (spread @ spread)
        deviation = 12**-0.5  # of a uniform number
    return truth * margins / (deviation * jnp.linalg.norm(spread * truth))


def scales(d: int, law: str) -> Any:
    """What the features are multiplied by."""
    return jnp.ones(d) if law == "gaussian" else jnp.logspace(0, -1.5, d)


def draw(key: Any, n: int, law: str, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features, not negative with a spread of scales or Gaussian; labels by a logistic model with the weights `truth`."""
    first, second = jax.random.split(key)
    sample = jax.random.normal if law == "gaussian" else jax.random.uniform
    features = sample(first, (n, truth.size)) * scales(truth.size, law)
    labels = jax.random.uniform(second, (n,)) < jax.nn.sigmoid(features @ truth)
    return np.asarray(features), np.asarray(labels, float)


def make(settings: Settings, features: np.ndarray, labels: np.ndarray) -> tuple[MonotoneInclusion, float, float]:
    """The problem, L_F and the average constant L."""
    n = len(labels)
    squares = np.sum(features**2, axis=1)
    probabilities = squares / squares.sum() if settings.sampling == "importance" else None
    problem = MonotoneInclusion(
        component, n, None, features, labels, operator=gradient, probabilities=probabilities, probes=0
    )
    lipschitz = float(np.linalg.eigvalsh(features.T @ features)[-1]) / (4 * n)
    average = squares.mean() / 4 if settings.sampling == "importance" else squares.max() / 4
    return problem, lipschitz, float(average)


NAMES = {"GDA": "gradient descent", "Halpern": "Halpern", "VRHalpern": "VRHalpern"}


def _compare(settings: Settings, data, key, epochs: float, level: float, names) -> dict[str, tuple[Trace, list[Trace]]]:
    problem, lipschitz, average = make(settings, *data)
    start = jnp.zeros(data[0].shape[1])
    return {
        name: tune(problem, builders(settings, lipschitz, average)[name], start, key, multiples=settings.multiples,
                   epochs=epochs, level=level)
        for name in names
    }  # fmt: skip


def _misreported(data, runs: list[Trace]) -> float:
    features, labels = data
    gaps = []
    for one in runs:
        w = np.asarray(one.solution.value)
        slope = features.T @ (0.5 * (1 + np.tanh(0.5 * (features @ w))) - labels) / len(labels)
        gaps.append(abs(np.linalg.norm(slope) - one.residual[-1]) if one.outcome == "ran" else 0.0)
    return float(max(gaps))


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """B: epochs to a gradient norm."""
    metrics: dict[str, float] = {}
    rows, drawn, worst = [], {}, 0.0
    cases = {
        "non-negative": (settings.logistic_n, settings.logistic_d, "non-negative"),
        "gaussian": (settings.gaussian_n, settings.gaussian_d, "gaussian"),
    }
    for number, (label, (n, d, law)) in enumerate(cases.items()):
        data_key, truth_key, sample = jax.random.split(jax.random.fold_in(key, number), 3)
        data = draw(data_key, n, law, weights(truth_key, d, law, settings.margins))
        found = _compare(settings, data, sample, settings.logistic_epochs, settings.logistic_level, NAMES)
        for name, (best, runs) in found.items():
            worst = max(worst, _misreported(data, runs))
            metrics[f"B {label}: {NAMES[name]} epochs"] = best.reach(settings.logistic_level)
            failed = ", ".join(f"{one.multiple:g}" for one in runs if one.outcome == "diverged")
            rows.append([label, n, d, NAMES[name], best.multiple, best.reach(settings.logistic_level), failed or "none"])
        drawn[f"B. Logistic regression, {label} features: gradient norm over epochs"] = figures.curves(
            {NAMES[name]: (best.epochs, best.residual) for name, (best, _) in found.items()},
            xlabel="component calls / n", ylabel="norm of the gradient", title=f"n = {n}, d = {d}",
        )  # fmt: skip
        out.progress(f"B: {label}")
    metrics["B misreported residual"] = worst
    columns = ["features", "n", "d", "method", "best multiple", f"epochs to {settings.logistic_level:g}", "diverged"]
    return Findings(metrics, [Table("B. Logistic regression: epochs to a gradient norm", columns, rows)], drawn)


def scaling(settings: Settings, key: Any, out: Run) -> Findings:
    """D: the same weights and law of the features, more and more examples."""
    metrics: dict[str, float] = {}
    rows = []
    truth_key, sample = jax.random.split(key)
    truth = weights(truth_key, settings.logistic_d, "non-negative", settings.margins)
    names = ("Halpern", "VRHalpern")
    for n in settings.scaling_n:
        data = draw(jax.random.fold_in(key, n), n, "non-negative", truth)
        found = _compare(settings, data, sample, settings.logistic_epochs, settings.scaling_level, names)
        reached = {name: best.reach(settings.scaling_level) for name, (best, _) in found.items()}
        metrics |= {f"D n = {n}: {name} epochs": epochs for name, epochs in reached.items()}
        rows.append([n, *(x for name in names for x in (reached[name], found[name][0].multiple))])
        out.progress(f"D: n = {n}")
    sizes = np.asarray(settings.scaling_n, float)
    calls = {name: (sizes, sizes * [metrics[f"D n = {n}: {name} epochs"] for n in settings.scaling_n]) for name in names}
    drawn = {}
    if all(np.all(np.isfinite(line[1])) for line in calls.values()):
        drawn["D. Component calls to one residual against the number of components"] = figures.scaling(
            calls, xlabel="n", ylabel="component calls", slope=0.5
        )
    columns = ["n", *(x for name in names for x in (f"{name}: epochs", f"{name}: multiple"))]
    return Findings(metrics, [Table(f"D. Epochs to {settings.scaling_level:g} against n", columns, rows)], drawn)
