"""The study of Lion-K runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import lion
from optimand.studies.base import Run

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("sklearn")
    settings = lion.Settings(**lion.QUICK)
    run = Run(tmp_path_factory.mktemp("lion"), verbose=False)
    return settings, lion.run(settings, jax.random.key(0), run)


def test_a_short_run_measures_what_its_claims_are_made_of(found):
    settings, findings = found
    claims = lion.claims([dict(findings.metrics)], settings)
    assert len(claims) == 10
    assert all(np.isfinite(claim.measured) for claim in claims)
    assert len(findings.tables) == 3 and len(findings.figures) == 5


def test_its_end_points_are_those_of_scipy_and_it_enters_at_the_rate_of_the_decay(found):
    metrics = found[1].metrics
    for kernel in lion.QUICK["kernels"]:
        assert metrics[f"A {kernel}: gap, falling"] < 1e-5
        assert metrics[f"A {kernel}: violation, falling"] < 1e-9
        assert metrics[f"A {kernel}: entry"] < 1e-2
    assert metrics["A l1: gap, constant"] > 10 * metrics["A l1: gap, falling"]
    assert metrics["A quadratic: slowest entry"] < 1 + 1e-7


def test_its_lyapunov_function_never_rises_and_its_network_learns(found):
    metrics = found[1].metrics
    assert metrics["C largest increase"] < 1e-7 and metrics["C decrease of H, smallest of the problems"] > 0.1
    assert metrics["B Lion: accuracy"] > 60 and metrics["B AdamW: accuracy"] > 60
    assert metrics["B Lion: of these, begun outside"] >= 1 and metrics["B Lion: least share inside"] == 1


@pytest.mark.parametrize("name", ["lp4", "topk", "threshold"])
def test_the_reference_satisfies_the_optimality_of_every_kernel(name):
    """No step of Lion-K from there finds anything better, and its own end is no worse."""
    from optimand.studies.lion import quadratic

    settings = lion.Settings(dimension=8, group=4, topk=3, steps=2000, rate=5e-2, small_rate=1e-3, kernels=(name,))
    with jax.enable_x64(True):
        matrix, centre = quadratic.draw(settings, jax.random.key(3))
        best = quadratic.reference(name, settings, matrix, centre)
        values, outside, _ = quadratic.ends(quadratic.kernels(settings)[name], settings, matrix, centre)
    assert outside[0] < 1e-9
    assert abs(values[0] - best) <= 1e-5 * abs(best)


def test_claims_look_at_the_worst_seed(found):
    settings, findings = found
    good = dict(findings.metrics)
    bad = {**good, "A l1: gap, falling": 1.0, "C largest increase": 1e-3, "B Lion: least share inside": 0.9}
    broken = {claim.name[:1] for claim in lion.claims([good, bad], settings) if not claim.holds}
    assert broken >= {"A", "B", "C"}


@pytest.mark.parametrize(
    "name, bad",
    [
        ("parts", {"parts": "AD"}),
        ("kernels", {"kernels": ("l1", "l3")}),
        ("dimension", {"dimension": 41}),
        ("topk", {"topk": 41}),
        ("small_rate", {"small_rate": 0.1}),
        ("rate", {"rate": 0.5, "weight_decay": 2.0}),
        ("lion_rates", {"lion_rates": (0.1,)}),
    ],
)
def test_bad_settings_are_refused_by_name(name, bad):
    with pytest.raises(ArgumentError) as caught:
        lion.Settings(**bad)
    assert caught.value.argument == name
