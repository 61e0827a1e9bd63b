"""The study of variance-reduced Halpern iteration runs, and its claims follow from its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.smooth import projections
from optimand.studies import halpern
from optimand.studies.base import Run

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`


def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = halpern.Settings(**{**halpern.QUICK, "parts": ("A", "B", "D")})
    found = halpern.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert found.metrics["A misreported residual"] <= 1e-10
    assert all(np.isfinite(found.metrics[f"D n = {n}: VRHalpern epochs"]) for n in settings.scaling_n)
    names = {claim.name[0] for claim in halpern.claims([dict(found.metrics)], settings)}
    assert names == {"A", "B", "D"} and found.tables


def test_epochs_count_every_component_call_of_the_method():
    from optimand.smooth import VRHalpern, matrix_game
    from optimand.studies.halpern.measuring import trace

    with jax.enable_x64(True):
        game, uniform = matrix_game("symmetric-1", 9), jnp.full(9, 1 / 9)
        run = trace(game, VRHalpern(1.0, tolerance=0.0), (uniform, uniform), jax.random.key(0), 30.0)
    assert run.epochs[-1] == pytest.approx(run.solution.counters.calls / 18)
    assert 30.0 <= run.epochs[-1] < 31.0
    middle = float(run.residual[len(run.residual) // 2])
    assert run.epochs[0] == 1.0 and run.reach(float(run.residual[0])) == 1.0  # the guess is not for nothing
    assert run.reach(middle) <= run.epochs[len(run.residual) // 2] and run.reach(0.0) == np.inf


def test_the_independent_projection_is_that_of_the_library():
    from optimand.studies.halpern.games import _simplex

    with jax.enable_x64(True):
        v = np.random.default_rng(0).standard_normal(12)
        np.testing.assert_allclose(_simplex(v), projections.simplex(jnp.asarray(v)), atol=1e-12)


GOOD = {
    **{f"A {kind}: {name} epochs to 0.001": epochs
       for kind in ("policeman-burglar", "symmetric-1") for name, epochs in (("VRHalpern", 50.0), ("EG", 120.0), ("EAG", 150.0))},
    **{f"A {kind}: {name} residual, untuned": value
       for kind in ("policeman-burglar", "symmetric-1", "symmetric-2") for name, value in (("Halpern", 3e-3), ("InexactHalpern", 1e-3))},
    "A misreported residual": 0.0, "B misreported residual": 0.0,
    "B non-negative: VRHalpern epochs": 60.0, "B non-negative: Halpern epochs": 240.0,
    "B non-negative: gradient descent epochs": 180.0,
    **{f"D n = {n}: {name} epochs": epochs
       for n, both in ((1000, (105.0, 66.0)), (4000, (100.0, 38.0)), (16_000, (110.0, 24.0)), (64_000, (100.0, 15.0)))
       for name, epochs in zip(("Halpern", "VRHalpern"), both, strict=True)},
}  # fmt: skip


def test_claims_hold_for_good_figures_and_look_at_the_worst_seed():
    settings = halpern.Settings()
    good = halpern.claims([GOOD, GOOD, GOOD], settings)
    assert all(claim.holds for claim in good)
    assert len({claim.name for claim in good}) == len(good) == 14  # a name says which bar is meant
    bad = {**GOOD, "A symmetric-1: VRHalpern epochs to 0.001": 90.0, "B misreported residual": 1e-6}
    failed = [claim.name for claim in halpern.claims([GOOD, bad, GOOD], settings) if not claim.holds]
    assert len(failed) == 3 and sum("symmetric-1" in name for name in failed) == 2


def test_a_target_that_was_not_reached_counts_against_us_and_at_its_budget_for_rivals():
    settings = halpern.Settings(parts=("B",))
    never = {**GOOD, "B non-negative: VRHalpern epochs": np.inf}
    assert not any(claim.holds for claim in halpern.claims([never], settings)[:2])
    rival = {**GOOD, "B non-negative: Halpern epochs": np.inf}
    first = halpern.claims([rival], settings)[0]
    assert first.measured == 60.0 / settings.logistic_epochs


def test_a_slope_that_is_too_steep_does_not_hold():
    flat = {**GOOD, **{f"D n = {n}: VRHalpern epochs": 50.0 for n in (1000, 4000, 16_000, 64_000)}}
    claims = halpern.claims([flat], halpern.Settings(parts=("D",)))
    assert claims[0].measured == pytest.approx(1.0) and not claims[0].holds and not claims[1].holds


@pytest.mark.parametrize("bad", [{"parts": ()}, {"multiples": ()}, {"probability": 0.0}])
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ArgumentError, match=next(iter(bad))):
        halpern.Settings(**bad)
