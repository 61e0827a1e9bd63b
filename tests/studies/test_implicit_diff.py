"""The study of implicit differentiation runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import implicit_diff
from optimand.studies.base import Run


@pytest.mark.thorough
def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    pytest.importorskip("sklearn")
    settings = implicit_diff.Settings(**{**implicit_diff.QUICK, "parts": "AD"})
    found = implicit_diff.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert 0.9 <= found.metrics["A logistic slope"] <= 1.1
    assert found.metrics["D median relative error"] <= 1e-3
    assert len(found.figures) == 4
    claims = implicit_diff.claims([dict(found.metrics)], settings)
    assert {claim.name[0] for claim in claims} == {"A", "D"}


@pytest.mark.thorough
@pytest.mark.parametrize("part", "BCEP")
def test_the_other_parts_run_and_their_claims_are_measured(part, tmp_path):
    pytest.importorskip("sklearn")
    settings = implicit_diff.Settings(**{**implicit_diff.QUICK, "parts": part})
    found = implicit_diff.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.metrics and found.tables
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert all(np.isfinite(claim.measured) for claim in implicit_diff.claims([dict(found.metrics)], settings))
    held = {
        "B": lambda m: (
            max(value for name, value in m.items() if name.endswith("relative error")) <= 1e-3
            and 0.9 <= m["B memory of implicit, ten times the iterations"] <= 1.1
        ),
        "C": lambda m: 0.95 <= m["C unrolled / implicit loss"] <= 1.05,
        "E": lambda m: m["E AUC, task-driven"] > 90,
        "P": lambda m: m["P methods that agree"] == m["P methods"] == 1,
    }
    assert held[part](found.metrics)


def test_parity_refuses_a_method_it_does_not_know(tmp_path):
    settings = implicit_diff.Settings(parts="P", parity_methods="LBFGS,Magic")
    with pytest.raises(ArgumentError, match="Magic"):
        implicit_diff.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))


def test_losses_of_distillation_must_be_equal_either_way():
    settings = implicit_diff.Settings(parts="C")
    for ratio, holds in ((1.0, True), (0.95, False), (1.05, False)):
        seed = {"C unrolled / implicit loss": ratio, "C unrolled / implicit time": 3.0}
        seed |= {f"C same solver: {name[2:]}": value for name, value in seed.items()}
        assert [claim.holds for claim in implicit_diff.claims([seed], settings)] == [holds, True, holds, True]


def test_of_the_routes_that_are_as_good_the_fastest_counts():
    from optimand.studies.implicit_diff.distillation import Distilled, fastest

    routes = [Distilled(None, [0], seconds, loss, 1.0) for seconds, loss in ((3.0, 1.0), (2.0, 1.005), (1.0, 1.2))]
    assert fastest(routes, 1.0).seconds == 2.0
    assert fastest(routes[2:], 1.0).loss == 1.2


def test_claims_look_at_the_worst_seed():
    settings = implicit_diff.Settings(parts="A")
    seed = {
        f"A {name} {what}": 1.0 for name in ("ridge", "logistic") for what in ("slope", "worst implicit / unrolled")
    }
    good = implicit_diff.claims([seed, seed], settings)
    bad = implicit_diff.claims([seed, {**seed, "A ridge slope": 0.5}], settings)
    assert all(claim.holds for claim in good)
    assert [claim.measured for claim in bad if not claim.holds] == [0.5]


@pytest.mark.parametrize("bad", [{"parts": "XYZ"}, {"svm_features": "50,many"}, {"distil_unrolled": ""}, {"distil_implicit": "1e-5"}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        implicit_diff.Settings(**bad)
