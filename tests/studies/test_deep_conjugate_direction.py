"""The study of deep conjugate directions runs, and its claims follow from its metrics."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import deep_conjugate_direction as study
from optimand.studies.base import Run

SMALL = {**study.QUICK, "n_train": 8, "n_test": (8, 12), "steps": 10, "n_ritz": 20, "scenes": ("disk",), "q": (0, 2)}


@pytest.mark.thorough
def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = study.Settings(**SMALL)
    found = study.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    for n in settings.n_test:
        for method in ("CG", "IC(0)-CG", "DeflatedCG", "CG multigrid", "DCDM q=0", "DCDM q=2", "FCG network", "DCDM pretrained"):
            assert found.metrics[f"2-D {n} disk 0.0001: {method} iterations"] > 0
            assert found.metrics[f"2-D {n} disk 0.0001: {method} residual / rtol"] <= 1.0001
    assert found.metrics["2-D 12 disk 0.0001: CG multigrid iterations"] < found.metrics["2-D 12 disk 0.0001: CG iterations"]
    assert found.metrics["2-D 12 disk 0.0001: IC(0)-CG iterations"] < found.metrics["2-D 12 disk 0.0001: CG iterations"]
    said = study.claims([dict(found.metrics)], settings)
    assert len(said) == 7 and all(np.isfinite(claim.measured) for claim in said) and found.tables and len(found.figures) == 2


def metrics(**changes):
    found = {}
    counts = {"CG": (66, 130), "IC(0)-CG": (22, 42), "DeflatedCG": (20, 36), "DCDM q=0": (14, 25), "DCDM q=1": (11, 20), "DCDM q=2": (10, 18)}
    for n, at in ((32, 0), (64, 1)):
        for scene in ("empty", "disk", "bars", "smoke"):
            for method, two in counts.items():
                found[f"2-D {n} {scene} 0.0001: {method} iterations"] = float(two[at])
            found[f"2-D {n} {scene} 0.0001: CG residual / rtol"] = 0.99
    return found | changes


def test_every_scene_and_every_seed_has_to_keep_a_bar():
    settings = study.Settings()
    holds = lambda *seeds: {claim.name: claim.holds for claim in study.claims(list(seeds), settings)}
    assert all(holds(metrics(), metrics()).values()) and len(holds(metrics())) == 7
    for name, value, claim in (
        ("2-D 32 disk 0.0001: DCDM q=2 iterations", 17.0, "32^2, solids: iterations, CG / DCDM"),
        ("2-D 64 smoke 0.0001: DCDM q=2 iterations", 33.0, "64^2, solids: iterations, CG / DCDM"),
        ("2-D 64 empty 0.0001: DCDM q=2 iterations", 27.0, "iterations of DCDM, 64^2 / 32^2"),
        ("2-D 64 bars 0.0001: DeflatedCG iterations", 20.0, "64^2: iterations, DCDM / DeflatedCG"),
        ("2-D 64 bars 0.0001: IC(0)-CG iterations", 17.0, "64^2: iterations, DCDM / IC(0)-CG"),
        ("2-D 64 empty 0.0001: DCDM q=0 iterations", 19.0, "64^2: iterations, DCDM q=2 / q=0"),
        ("2-D 64 empty 0.0001: CG residual / rtol", 1.1, "true relative residual / rtol, of every solution"),
    ):
        failing = holds(metrics(), metrics(**{name: value}))
        assert not failing[claim], name


@pytest.mark.parametrize("changes, name", [({"q": ()}, "q"), ({"q": (12,)}, "q"), ({"n_test": ()}, "n_test"), ({"scenes": ("smoke",)}, "scenes")])
def test_bad_settings_are_named(changes, name):
    with pytest.raises(ArgumentError, match=name):
        study.Settings(**changes)
