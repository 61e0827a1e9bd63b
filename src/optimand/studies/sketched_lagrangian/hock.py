"""a. The Hock-Schittkowski problems. Those of one shape share what is compiled: the problem's number is an argument."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Constrained, solve
from optimand.core.errors import SolveError
from optimand.smooth import Scipy, hock_schittkowski
from optimand.smooth.hock_schittkowski import TestProblem
from optimand.studies.base import Findings, Run, Table

from . import Settings, split
from .measuring import HEADINGS, compiled, figures_of, repeated, rivals, row


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    tests = [hock_schittkowski(name) for name in split(settings.problems)]
    keys = jax.random.split(key, settings.repeats)
    methods = rivals(settings, settings.most_sketches)
    shape = lambda test: (test.guess.size, test.problem.equalities(test.guess).size)
    results: dict[str, dict[str, list]] = {test.name: {} for test in tests}
    for (n, m), grouped in itertools.groupby(sorted(tests, key=shape), key=shape):
        group = list(grouped)
        for name, method in methods.items():
            measure = compiled(lambda which, group=group: _one_of(group, which), method, group[0].guess, jnp.int32(0), settings.steps)
            for which, test in enumerate(group):
                results[test.name][name] = repeated(measure, name, jnp.int32(which), test.guess, keys)
        out.progress(f"a: {', '.join(test.name for test in group)} ({n} unknowns, {m} equations)")

    metrics: dict[str, float] = {}
    rows = []
    for test in tests:
        for name, outcomes in results[test.name].items():
            solved = sum(is_solved(test, outcome) for outcome in outcomes)
            rows.append([test.name, *row(name, outcomes, solved)])
            metrics |= {f"{test.name}: {text}": value for text, value in figures_of(name, outcomes).items()}
        rows.append([test.name, *_slsqp(test)])
    for name in methods:
        by_key = zip(*(results[test.name][name] for test in tests), strict=True)
        counts = [sum(is_solved(test, outcome) for test, outcome in zip(tests, outcomes, strict=True)) for outcomes in by_key]
        metrics[f"{name}: solved, least"] = min(counts)
        ended = [np.mean([outcome["unit"] for outcome in results[test.name][name]]) == 1 for test in tests]
        metrics[f"{name}: share with unit steps at the end"] = float(np.mean(ended))
    strict = [outcome for test in tests for outcome in results[test.name].get("strict", ())]
    if strict and "exact" in methods:
        alike = sum(
            all(abs(int(o["iterations"]) - int(results[test.name]["exact"][0]["iterations"])) <= 2 for o in results[test.name]["strict"])
            for test in tests
        )
        metrics["strict: as many iterations as exact Newton, within 2"] = float(alike)
    capped = sum(int(outcome["capped"]) for outcome in strict)
    note = (
        "Medians over the keys. f and KKT at the answer; values are of objective and constraints, gradients of both. The augmented "
        "Lagrangian counts products with the Hessian and every inner iteration. "
        f"Linear solves of the adaptive rule that ended by the limit on sketches: {capped}."
    )
    return Findings(metrics, [Table("a. Hock-Schittkowski problems", ["problem", *HEADINGS], rows, note)])


def is_solved(test: TestProblem, outcome: dict) -> bool:
    """The bar of a solved problem."""
    near = abs(float(outcome["f"]) - test.optimum) <= 1e-3 * max(1.0, abs(test.optimum))
    return bool(outcome["kkt"] <= 1e-4 and near)


def _one_of(group: list[TestProblem], which: jax.Array) -> Constrained:
    """The problem of this number in the group."""
    objectives = [test.problem.fn for test in group]
    constraints: list[Any] = [test.problem.equality_fn for test in group]
    return Constrained(
        lambda x, which: jax.lax.switch(which, objectives, x),
        which,
        equalities=lambda x, which: jax.lax.switch(which, constraints, x),
    )


def _slsqp(test: TestProblem) -> list:
    """The row of SciPy's SLSQP, for orientation."""
    began = time.perf_counter()
    try:
        solution = solve(test.problem, Scipy("SLSQP", tolerance=1e-6), test.guess, budget=Budget(steps=500))
    except SolveError as error:
        solution = error.solution
    residual = test.problem.kkt_residual(solution.value)
    f, counters = float(test.problem.value(solution.value.primal)), solution.counters.asdict()
    outcome = f"{solution.result}, {time.perf_counter() - began:.2g} s"
    values, gradients = counters.get("values", 0), counters.get("gradients", 0)
    return ["SLSQP (SciPy)", outcome, f, float(residual.largest), int(solution.steps), values, gradients, None, None]
