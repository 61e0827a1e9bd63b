"""The study of learned relaxation runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import learned_relaxation
from optimand.studies.base import Run


@pytest.mark.thorough
def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = learned_relaxation.Settings(**learned_relaxation.QUICK)
    found = learned_relaxation.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.metrics["B: largest residual / rtol"] <= 1.0001
    assert found.metrics["B: best for each iterations"] <= found.metrics["B: best fixed iterations"] <= found.metrics["B: omega = 1 iterations"]
    for policy in learned_relaxation.LEARNERS:
        assert found.metrics["A high variance: best for each mean sweeps"] <= found.metrics[f"A high variance: {policy} mean sweeps"]
        assert found.metrics[f"B: {policy} iterations"] >= found.metrics["B: best for each iterations"]
    said = learned_relaxation.claims([dict(found.metrics)], settings)
    assert len(said) == 11 and all(np.isfinite(claim.measured) for claim in said) and len(found.tables) == 2 and len(found.figures) == 3


GOOD = {
    "B: TsallisINF iterations": 9200.0, "B: ChebCB iterations": 7500.0, "B: best fixed iterations": 8700.0, "B: best for each iterations": 6800.0,
    "B: omega = 1 iterations": 12000.0, "B: CG iterations": 32000.0, "B: largest residual / rtol": 1.0,
    "B: TsallisINF seconds of the learner / of a step": 0.01, "B: ChebCB seconds of the learner / of a step": 0.03,
    "A high variance: TsallisINF mean sweeps at the end": 52.0, "A high variance: ChebCB mean sweeps at the end": 45.0,
    "A high variance: best fixed mean sweeps at the end": 50.0, "A: counts of the table beside SOR's own, furthest": 1.0,
}  # fmt: skip


def test_claims_are_about_means_over_seeds_and_fail_with_their_figures():
    settings = learned_relaxation.Settings()
    holds = lambda **changes: {claim.name: claim.holds for claim in learned_relaxation.claims([GOOD, {**GOOD, **changes}], settings)}
    assert all(holds().values()) and len(holds()) == 11
    for changes, claim in (
        ({"B: TsallisINF iterations": 10500.0}, "B: iterations, TsallisINF / best fixed"),
        ({"B: ChebCB iterations": 9500.0}, "B: iterations, ChebCB / best fixed"),
        ({"B: best for each iterations": 5000.0}, "B: iterations, ChebCB / best for each"),
        ({"B: largest residual / rtol": 1.1}, "B: true residual / rtol, of every solve"),
        ({"A: counts of the table beside SOR's own, furthest": 2.0}, "A: sweeps by which the table of costs differs from SOR itself"),
        ({"A high variance: ChebCB mean sweeps at the end": 60.0}, "A high variance: sweeps, ChebCB / best fixed omega"),
    ):
        assert not holds(**changes)[claim], claim


@pytest.mark.parametrize("changes, name", [({"parts": ()}, "parts"), ({"highest": 1.0}, "highest")])
def test_bad_settings_are_named(changes, name):
    with pytest.raises(ArgumentError, match=name):
        learned_relaxation.Settings(**changes)
