"""The study of the light bridge runs, its claims follow from its metrics, and what it has no data for it does not claim."""

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import light_bridge
from optimand.studies.base import Run

SMALL = {
    **light_bridge.QUICK, "components": 4, "steps": 40, "samples": 200, "n_test": 20, "pushed": 100, "plan_points": 30, "sweeps": 20, "path_starts": 2,
    "path_count": 10, "path_steps": 5, "toy_components": 4, "toy_steps": 10, "cell_steps": 10, "cell_components": 3,
}  # fmt: skip


@pytest.mark.thorough
def test_a_short_run_measures_what_its_claims_are_made_of(tmp_path):
    settings = light_bridge.Settings(**{**SMALL, "parts": ("benchmark", "cells")})
    found = light_bridge.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    case = "d = 2, epsilon 1"
    assert found.metrics[f"{case}: independent: cBW2-UVP"] > found.metrics[f"{case}: discrete plan: cBW2-UVP"] > 0
    assert found.metrics[f"{case}: cBW2-UVP"] < found.metrics[f"{case}: independent: cBW2-UVP"]
    assert not any(name.startswith("cells") for name in found.metrics)
    assert any("not run" in str(row) for table in found.tables for row in table.rows)
    said = light_bridge.claims([dict(found.metrics)], settings)
    assert len(said) == 3 and all(np.isfinite(claim.measured) for claim in said)
    assert not any(claim.name.startswith("cells") for claim in said)


@pytest.mark.thorough
def test_cells_from_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for day in (2, 3, 4, 7):
        np.save(tmp_path / f"full_cite_pcas_50_day_{day}.npy", (rng.normal(size=(40, 50)) * np.linspace(10, 1, 50) + day).astype(np.float32))
    settings = light_bridge.Settings(**{**SMALL, "parts": ("cells",), "cells": tmp_path})
    found = light_bridge.run(settings, jax.random.key(0), Run(tmp_path / "run", verbose=False))
    names = ("LightSB", "Sinkhorn", "random pairs", "start day", "end day")
    assert all(np.isfinite(found.metrics[f"cells: day {day}: energy distance: {name}"]) for day in (3, 4) for name in names)
    assert len(light_bridge.claims([dict(found.metrics)], settings)) == 3
    np.save(tmp_path / "full_cite_pcas_50_day_3.npy", np.zeros((4, 3)))
    with pytest.raises(ArgumentError, match=r"full_cite_pcas_50_day_3.npy of shape \(4, 3\)"):
        light_bridge.run(settings, jax.random.key(0), Run(tmp_path / "again", verbose=False))
    (tmp_path / "full_cite_pcas_50_day_2.npy").unlink()
    with pytest.raises(ArgumentError, match="no readable file full_cite_pcas_50_day_2"):
        light_bridge.run(settings, jax.random.key(0), Run(tmp_path / "again", verbose=False))


@pytest.mark.thorough
def test_figures_of_the_plane(tmp_path):
    settings = light_bridge.Settings(**{**SMALL, "parts": ("toys",)})
    found = light_bridge.run(settings, jax.random.key(0), Run(tmp_path, verbose=False))
    assert len(found.figures) == 1 and np.isfinite(found.metrics["spiral, epsilon 0.1: energy distance of the end"])


def metrics(**changes):
    found = {}
    for d in (2, 16, 64):
        for epsilon in ("0.1", "1", "10"):
            case = f"d = {d}, epsilon {epsilon}"
            found |= {f"{case}: cBW2-UVP": 0.2, f"{case}: discrete plan: cBW2-UVP": 20.0, f"{case}: BW2-UVP of the end": 0.05}
            found |= {f"{case}: gap of simulated paths": 0.1}
    cells = "cells: energy distance: "
    found |= {f"{cells}LightSB": 2.0, f"{cells}Sinkhorn": 2.1, f"{cells}best trivial": 3.0, "cells: seconds of a fit": 20.0}
    return found | changes


def test_every_seed_has_to_keep_a_bar():
    settings = light_bridge.Settings()
    holds = lambda *seeds: {claim.name: claim.holds for claim in light_bridge.claims(list(seeds), settings)}
    good = holds(metrics(), metrics())
    assert len(good) == 10 and all(good.values())
    for name, value, claim in (
        ("d = 2, epsilon 1: cBW2-UVP", 0.31, "d = 2, epsilon 1: cBW2-UVP, %"),
        ("d = 64, epsilon 1: cBW2-UVP", 1.6, "d = 64, epsilon 1: cBW2-UVP, %"),
        ("d = 16, epsilon 0.1: cBW2-UVP", 4.1, "d = 16, epsilon 0.1: cBW2-UVP / that of the discrete plan"),
        ("d = 16, epsilon 10: BW2-UVP of the end", 0.2, "d = 16: BW2-UVP of the end, %, largest over epsilon"),
        ("d = 64, epsilon 10: gap of simulated paths", 0.6, "cBW2-UVP of paths - that of the exact sampler, points, largest"),
        ("cells: energy distance: LightSB", 2.2, "cells: energy distance / that of Sinkhorn's plan"),
        ("cells: energy distance: best trivial", 2.1, "cells: energy distance / that of the best trivial prediction"),
        ("cells: seconds of a fit", 61.0, "cells: seconds of a fit, the slower"),
    ):
        assert not holds(metrics(), metrics(**{name: value}))[claim], name


@pytest.mark.parametrize("changes, name", [({"learning_rates": (0.1,)}, "learning_rates"), ({"pushed": 10**6}, "samples"), ({"cells": "nowhere"}, "cells")])
def test_bad_settings_are_named(changes, name):
    from pathlib import Path

    changes = {key: Path(value) if key == "cells" else value for key, value in changes.items()}
    with pytest.raises(ArgumentError, match=name):
        light_bridge.Settings(**changes)
