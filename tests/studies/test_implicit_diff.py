"""The study of implicit differentiation runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import implicit_diff
from optimand.studies.base import Run


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


def test_claims_look_at_the_worst_seed():
    settings = implicit_diff.Settings(parts="A")
    seed = {
        f"A {name} {what}": 1.0 for name in ("ridge", "logistic") for what in ("slope", "worst implicit / unrolled")
    }
    good = implicit_diff.claims([seed, seed], settings)
    bad = implicit_diff.claims([seed, {**seed, "A ridge slope": 0.5}], settings)
    assert all(claim.holds for claim in good)
    assert [claim.measured for claim in bad if not claim.holds] == [0.5]


@pytest.mark.parametrize("bad", [{"parts": "XYZ"}, {"svm_features": "50,many"}, {"distil_unrolled": ""}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        implicit_diff.Settings(**bad)
