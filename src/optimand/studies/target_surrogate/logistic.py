"""A. Logistic regression on two data sets: the loss after as many epochs, in batches and on all data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optimand.core.errors import MissingExtra
from optimand.report import figures
from optimand.smooth import TargetProblem
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import Rival, Sweep, adagrad, adam, loss_on_all, rows, sgd, sls, sso_rival, sweep

NOTE = """\
Loss on all data after {epochs} epochs. "Best" is the best of a grid, chosen by that loss for this seed: learning rates {rates},
and 1/L; longest steps {longest} for SLS. L is the largest eigenvalue of X'X / 4n, the least that is an L for these data; a step of
1/4L, which leaves out that the logistic loss has curvature 1/4, is shown too. SSO is not tuned: its step size in target space is {eta:g}. Passes
are those of the model over one batch, forward and backward counted apart."""


class Entry(NamedTuple):
    """A method after its last epoch: its loss, what was chosen of its grid, its loss by epochs, its passes of the model."""

    name: str
    loss: float
    choice: str
    curve: np.ndarray
    passes: int
    calls_per_step: float


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardised inputs with a constant beside them, and labels of -1 and 1."""
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None
    loaded: Any = datasets.load_breast_cancer() if name == "breast_cancer" else datasets.load_digits()
    inputs = loaded.data.astype(float)
    labels = loaded.target if name == "breast_cancer" else loaded.target % 2
    spread = inputs.std(axis=0)
    inputs = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.hstack([inputs, np.ones((len(inputs), 1))]), 2.0 * labels - 1


def model(weights, example):
    return example[0] @ weights


def loss(target, example):
    return jax.nn.softplus(-example[1] * target)


def run(settings: Settings, key, out: Run) -> Findings:
    metrics: dict[str, float] = {}
    tables, drawn = [], {}
    for name in settings.datasets:
        inputs, labels = data(name)
        theoretical = float(4 * len(inputs) / np.linalg.norm(inputs, 2) ** 2)  # 1 / L of the loss in the weights
        note = NOTE.format(
            epochs=settings.epochs, rates=", ".join(f"{rate:.3g}" for rate in settings.rates),
            longest=", ".join(f"{step:g}" for step in settings.longest), eta=settings.eta,
        )  # fmt: skip
        lines = []
        for size in settings.batches:
            batch = min(size, len(inputs)) if size else len(inputs)
            label = f"{name}, {'full' if batch == len(inputs) else f'batch {batch}'}"
            out.progress(f"A: {label}")
            problem = TargetProblem(model, loss, (inputs, labels), batch_size=batch)
            found = compare(problem, theoretical, inputs.shape[1], settings, key)
            metrics |= {f"{label}, {short}": entry.loss for short, entry in found.items()}
            metrics |= {
                f"{label}, {short}, calls per step": entry.calls_per_step
                for short, entry in found.items()
                if short.startswith("SSO")
            }
            lines += [[label, entry.name, entry.choice, entry.loss, entry.passes] for entry in found.values()]
            last = f"SSO {settings.inner_steps[-1]}"
            shown = {short: found[short] for short in ("SGD 1/L", "SGD", *settings.rivals, last)}
            drawn[f"A. {label}"] = figures.curves(
                {entry.name: (np.arange(len(entry.curve)), entry.curve) for entry in shown.values()},
                xlabel="epochs", ylabel="loss on all data", title=label,
            )  # fmt: skip
        tables.append(Table(f"A. {name}", ["batch", "method", "of its grid", "loss", "passes"], lines, note))
    return Findings(metrics, tables, drawn)


def compare(problem: TargetProblem, theoretical: float, size: int, settings: Settings, key) -> dict[str, Entry]:
    """Every method on one problem, by a short name."""
    epoch = max(1, round(1 / problem.fraction))
    calls = epoch * settings.epochs

    def of(rival: Rival, grid: np.ndarray) -> Sweep:
        return sweep(problem, rival, grid, jnp.zeros(size), key, calls=calls, every=epoch, measure=loss_on_all)

    def entry(name: str, found: Sweep, among: Any = None) -> Entry:
        chosen = found.best(among=among)
        curve = found.figures[chosen]
        return Entry(
            name, float(curve[-1]), f"{found.grid[chosen, 0]:.3g}", curve, int(found.model_passes[chosen]),
            found.calls_per_step(calls),
        )  # fmt: skip

    rates = [theoretical, theoretical / 4, *settings.rates]
    descent = of(Rival("SGD", sgd), rows([0.0, 0.5], rates)[:, ::-1])
    many = len(rates)
    decades = [at for at, rate in enumerate(rates) if at > 1 and np.isclose(np.log10(rate) % 1, [0, 1], atol=1e-6).any()]
    results = {
        "SGD 1/L": entry("SGD, 1/L", descent, [0]),
        "SGD 1/4L": entry("SGD, 1/4L", descent, [1]),
        **({"SGD decades": entry("SGD, best of powers of ten", descent, decades)} if decades else {}),
        "SGD": entry("SGD, best", descent, range(many)),
        "SGD decreasing": entry("SGD, 1/sqrt(t), best", descent, range(many, 2 * many)),
    }
    grids = {
        "SLS": (sls, rows(settings.longest)), "Adam": (adam, rows(settings.rates, [0.0])), "AdaGrad": (adagrad, rows(settings.rates)),
    }  # fmt: skip
    for name in settings.rivals:
        make, grid = grids[name]
        results[name] = entry(f"{name}, best", of(Rival(name, make), grid))
    powers = [0.0, 0.5] if settings.rule == "constant" else [0.0]
    for inner_steps in settings.inner_steps:
        found = of(sso_rival(settings, inner_steps, calls), rows([settings.eta], powers))
        results[f"SSO {inner_steps}"] = entry(found.name, found, [0])
        if len(powers) > 1:
            results[f"SSO {inner_steps} decreasing"] = entry(f"{found.name}, 1/sqrt(t)", found, [1])
    return results
