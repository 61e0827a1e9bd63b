"""The study of Newton's method for transport: a short run, and what its claims look at."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import sinkhorn_newton
from optimand.studies.base import Run


@pytest.mark.thorough
def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = sinkhorn_newton.Settings(**{**sinkhorn_newton.QUICK, "cases": ("assignment", "points"), "n": 20, "points": 15, "etas": (30.0,)})
    found = sinkhorn_newton.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    for case in ("assignment, eta 30", "points"):
        assert found.metrics[f"{case}: SinkhornNewtonSparse, least error"] <= 1e-12
        assert found.metrics[f"{case}: SinkhornNewtonSparse, steps to 1e-12"] <= 40
        assert found.metrics[f"{case}: cost above that of the linear program, relative"] >= -1e-9
    assert found.metrics["assignment, eta 30: plans, largest difference"] <= 1e-9
    said = sinkhorn_newton.claims([dict(found.metrics)], settings)
    assert len(said) == 5 and all(np.isfinite(claim.measured) for claim in said) and len(found.figures) == 2


def metrics(**changes):
    return {
        "assignment, eta 1200: SinkhornNewtonSparse, steps to 1e-12": 29.0,
        "assignment, eta 1200: SinkhornNewtonSparse, seconds to 1e-06": 0.5,
        "assignment, eta 1200: Sinkhorn, error after 1500 steps": 1e-6,
        "assignment, eta 1200: Sinkhorn, seconds": 20.0,
        "assignment, eta 100: SinkhornNewtonSparse, seconds to 1e-12": 0.5,
        "assignment, eta 100: Sinkhorn, seconds to 1e-12": 0.4,
        **changes,
    }


def test_a_rival_that_never_got_there_counts_with_all_it_spent():
    settings = sinkhorn_newton.Settings(cases=("assignment",), etas=(100.0, 1200.0))
    of = lambda *seeds: {claim.name: claim for claim in sinkhorn_newton.claims(list(seeds), settings)}
    ratio = "assignment, eta 1200: seconds to 1e-6, Sinkhorn / SinkhornNewtonSparse"
    assert of(metrics())[ratio].measured == pytest.approx(40) and all(claim.holds for claim in of(metrics()).values())
    assert not of(metrics(), metrics(**{"assignment, eta 1200: Sinkhorn, seconds to 1e-06": 4.0}))[ratio].holds
    never = metrics()
    del never["assignment, eta 1200: SinkhornNewtonSparse, steps to 1e-12"]
    assert not of(never)["assignment, eta 1200: Newton steps to 1e-12"].holds


@pytest.mark.parametrize("changes, name", [({"cases": ()}, "cases"), ({"pair": (1,)}, "pair")])
def test_bad_settings_are_named(changes, name):
    with pytest.raises(ArgumentError, match=name):
        sinkhorn_newton.Settings(**changes)
