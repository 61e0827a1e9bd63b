"""The study of sketched augmented Lagrangians runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import sketched_lagrangian as study
from optimand.studies.base import Run

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`


def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    pytest.importorskip("sklearn")
    settings = study.Settings(**study.QUICK)
    found = study.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.metrics["a gaussian_vector: solved, least"] == 1
    assert found.metrics["b logistic: gaussian_vector: kkt"] <= 1e-4
    claims = study.claims([dict(found.metrics)], settings)
    assert len(claims) == 7 and all(np.isfinite(claim.measured) for claim in claims)
    assert len(found.tables) == 2


def test_control_of_an_elliptic_equation_is_solved(tmp_path):
    settings = study.Settings(**{**study.QUICK, "parts": "c", "sketches": "exact", "rivals": "adaptive"})
    found = study.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.metrics["c 3 x 3: exact: kkt"] <= 1e-4
    assert found.metrics["c 4 x 4: exact: kkt"] <= 1e-4


def seed(**changes):
    """Metrics of a seed in which every claim holds, or of one that is changed."""
    names = ("gaussian_vector", "gmres", "adaptive", "gmres-full", "adaptive-full")
    numbers = {"evaluations": (10, 40, 12, 40, 12), "iterations": (5, 20, 5, 20, 5), "kkt": (1e-8, 1e-5, 1e-5, 1e-5, 1e-5)}
    good = {f"median {what}, {name}": value for what, row in numbers.items() for name, value in zip(names, row, strict=True)}
    good["median kkt, strict"] = 1e-9
    good |= {"a gaussian_vector: solved, least": 18, "a gaussian_block: solved, least": 17}
    good |= {"a gaussian_vector: share with unit steps at the end": 0.9}
    good |= {"a strict: as many iterations as exact Newton, within 2": 15, "b logistic: gaussian_vector: iterations, most": 10}
    return {name: float(value) for name, value in {**good, **changes}.items()}


def test_claims_look_at_the_worst_seed():
    settings = study.Settings()
    assert all(claim.holds for claim in study.claims([seed(), seed()], settings))
    for name, bad in (
        ("a gaussian_vector: solved, least", 16),
        ("median evaluations, gaussian_vector", 21),
        ("a gaussian_vector: share with unit steps at the end", 0.7),
        ("a strict: as many iterations as exact Newton, within 2", 14),
        ("b logistic: gaussian_vector: iterations, most", np.inf),
    ):
        claims = study.claims([seed(), seed(**{name: bad})], settings)
        assert not all(claim.holds for claim in claims), name


@pytest.mark.parametrize("bad", [{"parts": "x"}, {"problems": "HS1000"}, {"sketches": "none"}, {"problems": ""}, {"rivals": "ipopt"}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        study.Settings(**bad)
