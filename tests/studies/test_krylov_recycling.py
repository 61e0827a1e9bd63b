"""The study of Krylov recycling runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import krylov_recycling
from optimand.studies.base import Run

SMALL = {**krylov_recycling.QUICK, "families": ("darcy",), "side": 8, "count": 3, "sweep": (1e-4,), "preconditioners": ("jacobi",)}


def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = krylov_recycling.Settings(**SMALL)
    found = krylov_recycling.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    for method in krylov_recycling.METHODS:
        assert found.metrics[f"darcy, none, 1e-08: {method} products"] > 5
        assert found.metrics[f"darcy, jacobi, 1e-08: {method} failures"] == 0
    assert found.metrics["darcy, none, 1e-08: largest residual / rtol"] <= 1.0001
    assert 0 < found.metrics["darcy: angle between spaces that follow"] <= 90
    said = krylov_recycling.claims([dict(found.metrics)], settings)
    assert len(said) == 5 and all(np.isfinite(claim.measured) for claim in said) and found.tables and len(found.figures) == 2


def metrics(**changes):
    found = {}
    for name in ("darcy", "helmholtz"):
        for kind, rtol in (("none", 1e-5), ("none", 1e-8), ("jacobi", 1e-8), ("ilu", 1e-8)):
            for method, products in (("GMRES", 2500.0), ("GMRES-DR", 280.0), ("recycled", 260.0), ("SKR", 220.0), ("gcrotmk", 210.0)):
                case = f"{name}, {kind}, {rtol:g}"
                found |= {f"{case}: {method} products": products, f"{case}: {method} seconds": products, f"{case}: {method} failures": 0.0}
            found |= {f"{case}: largest residual / rtol": 1.0, f"{case}: distance to a direct solve": 1e-7}
    return found | changes


def test_every_seed_has_to_keep_a_bar():
    settings = krylov_recycling.Settings(families=("darcy", "helmholtz"))
    holds = lambda *seeds: {claim.name: claim.holds for claim in krylov_recycling.claims(list(seeds), settings)}
    assert all(holds(metrics(), metrics()).values())
    for name, value, claim in (
        ("helmholtz, none, 1e-08: SKR products", 400.0, "helmholtz: products, GMRES / SKR"),
        ("helmholtz, none, 1e-08: SKR failures", 1.0, "helmholtz: systems on which SKR fails"),
        ("helmholtz, none, 1e-08: SKR seconds", 2000.0, "helmholtz: wall time, GMRES / SKR"),
        ("darcy, none, 1e-08: recycled products", 225.0, "darcy: products, recycled in the given order / sorted"),
        ("darcy, ilu, 1e-08: largest residual / rtol", 1.1, "true relative residual / rtol, of every solution"),
        ("darcy, none, 1e-08: distance to a direct solve", 1e-4, "darcy: relative distance to a direct solve"),
        ("darcy, none, 1e-08: gcrotmk products", 150.0, "darcy: products, SKR / SciPy's gcrotmk"),
    ):
        failing = holds(metrics(), metrics(**{name: value}))
        assert not failing[claim], name


@pytest.mark.parametrize("changes, name", [({"recycle": 30}, "recycle"), ({"families": ()}, "families")])
def test_bad_settings_are_named(changes, name):
    with pytest.raises(ArgumentError, match=name):
        krylov_recycling.Settings(**changes)
