"""b. Logistic regression of the breast cancer data under random linear equations and on the unit sphere."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Constrained, PrimalDual
from optimand.core.errors import ArgumentError, MissingExtra
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import HEADINGS, compiled, figures_of, repeated, rivals, row, with_data


def regression(rows: int, key: jax.Array) -> tuple[Constrained, PrimalDual]:
    """min mean log(1 + exp(-y x'w)) with A w = b and |w|^2 = 1; w and the multipliers start at one.

    A and b are Gaussian; they are drawn anew where no solution of A w = b lies in the unit ball.
    """
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None
    data = datasets.load_breast_cancer()
    features = jnp.asarray((data.data - data.data.mean(0)) / data.data.std(0))
    signs = jnp.asarray(2.0 * data.target - 1)
    a, b = _equations(key, rows, features.shape[1])

    def loss(w, features, signs, a, b):
        return jnp.mean(jax.nn.softplus(-signs * (features @ w)))

    def equalities(w, features, signs, a, b):
        return jnp.concatenate([a @ w - b, jnp.sum(w**2, keepdims=True) - 1])

    problem = Constrained(loss, features, signs, a, b, equalities=equalities)
    return problem, PrimalDual(jnp.ones(features.shape[1]), jnp.ones(rows + 1))


def _equations(key: jax.Array, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    for attempt in range(1000):
        for_a, for_b = jax.random.split(jax.random.fold_in(key, attempt))
        a, b = jax.random.normal(for_a, (rows, columns)), jax.random.normal(for_b, (rows,))
        if jnp.linalg.norm(jnp.linalg.lstsq(a, b)[0]) < 1:
            return a, b
    raise ArgumentError("logistic_equations", f"are {rows}: too many for a solution on the unit sphere.")


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    for_problem, for_methods = jax.random.split(key)
    problem, guess = regression(settings.logistic_equations, for_problem)
    keys = jax.random.split(for_methods, settings.repeats)
    metrics: dict[str, float] = {}
    rows = []
    for name, method in rivals(settings, settings.most_sketches_large).items():
        measure = compiled(with_data(problem), method, guess, problem.args, settings.steps)
        outcomes = repeated(measure, name, problem.args, guess, keys)
        solved = sum(bool(outcome["kkt"] <= 1e-4) for outcome in outcomes)
        rows.append(row(name, outcomes, solved))
        metrics |= {f"logistic: {text}": value for text, value in figures_of(name, outcomes).items()}
        if solved < len(outcomes):
            metrics[f"logistic: {name}: iterations, most"] = np.inf
        out.progress(f"b: {name}: {rows[-1][1]} in {rows[-1][4]:g} iterations")
    size = f"{guess.primal.size} unknowns, {guess.equality.size} equations"
    return Findings(metrics, [Table(f"b. Constrained logistic regression, {size}", HEADINGS, rows, "Medians over the keys.")])
