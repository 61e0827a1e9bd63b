"""The study of target-based surrogates runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import target_surrogate
from optimand.studies.base import Run
from optimand.studies.target_surrogate import Settings, claims
from optimand.studies.target_surrogate.imitation import first_below
from optimand.studies.target_surrogate.measuring import Sweep, rows

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`


@pytest.mark.parametrize("part", "ABCO")
def test_a_short_run_of_each_part_measures_what_its_claims_are_made_of(part, tmp_path):
    if part == "A":
        pytest.importorskip("sklearn")
    settings = Settings(**{**target_surrogate.QUICK, "parts": (part,)})
    found = target_surrogate.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.tables and all(name.startswith(part) for name in found.metrics)
    per_step = [value for name, value in found.metrics.items() if name.endswith("calls per step")]
    assert per_step and set(per_step) == {1.0}
    said = claims([dict(found.metrics)], settings)
    assert said[-1].holds and "oracle" in said[-1].name
    check = {
        "A": lambda m: m["A breast_cancer, batch 125, SSO 5"] < np.log(2),
        "B": lambda m: m["B full, 10 calls, SSO 10"] < m["B full, 10 calls, SSO 1"],
        "C": lambda m: m["C least loss"] < 1 and 0 <= m["C Adam upright"] <= 1,
        "O": lambda m: len(per_step) == 8,
    }
    assert check[part](found.metrics)


def seed(**changes):
    base = {
        "A digits, batch 25, SSO 5": 0.04, "A digits, batch 25, SGD": 0.05, "A digits, full, SSO 20": 0.07,
        "A digits, full, SGD 1/L": 0.2, "A digits, full, SGD": 0.07, "A digits, full, SGD decades": 0.075,
        "A digits, batch 25, SGD decades": 0.06, "B full, 50 calls, SSO 10": 1e-8,
        "B full, 50 calls, SSO 1": 1e-3, "B full, 50 calls, GD": 1e-2, "B full, 10 calls, SSO 50": 1e-8,
        "B full, 10 calls, SSO 1": 0.1, "C SSO 100 calls": 400.0, "C Adam calls": 1000.0, "O eager, m = 1, calls per step": 1.0,
    }  # fmt: skip
    return base | changes


def test_claims_are_means_over_seeds_held_to_the_bars():
    settings = Settings(datasets=("digits",))
    good = claims([seed(), seed()], settings)
    assert len(good) == 10 and all(claim.holds for claim in good)
    for name, value in (
        ("A digits, batch 25, SGD", 0.02),
        ("B full, 10 calls, SSO 50", 1e-3),
        ("C SSO 100 calls", np.nan),
        ("C SSO 100 calls", 700.0),
        ("O eager, m = 1, calls per step", 1.05),
    ):
        bad = claims([seed(), seed(**{name: value})], settings)
        assert [claim.holds for claim in bad].count(False) == 1, name


def test_a_rival_that_never_comes_so_low_counts_with_what_it_was_given():
    claim = [c for c in claims([seed(**{"C Adam calls": np.nan})], Settings(datasets=("digits",))) if "Adam" in c.name]
    assert claim[0].measured == 400 / 4000


def test_the_best_of_a_grid_is_finite_and_of_those_that_are_asked_for():
    found = Sweep("SGD", rows([1.0, 2.0, 3.0]), np.array([[1.0, 0.5], [1.0, np.nan], [1.0, 0.2]]), np.array([4, 4, 5]), np.zeros(3))
    assert found.best() == 2 and found.best(among=[0, 1]) == 0
    assert found.calls_per_step(4) == 1.25
    assert first_below(np.array([3.0, 2.0, 1.0]), 2.0) == 1 and np.isinf(first_below(np.array([3.0]), 2.0))
    np.testing.assert_array_equal(rows([1, 2], [5]), [[1, 5], [2, 5]])


@pytest.mark.parametrize("bad", [{"parts": ()}, {"inner_steps": ()}, {"eta": 0.0}, {"inner_rate": 0.0}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        Settings(**bad)
