"""The study of hard constraints: it runs whole at a small size, and its claims are what they say."""

import dataclasses

import jax
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.datasets import FieldData, read_fields, write_fields
from optimand.studies import hard_moe
from optimand.studies.base import Run
from optimand.studies.hard_moe import training
from optimand.studies.settings import make


def run_quickly(folder, **changes):
    settings = make(hard_moe.Settings, [], {**hard_moe.QUICK, **changes})
    found = hard_moe.run(settings, jax.random.key(0), Run(folder, verbose=False))
    assert all(np.isfinite(value) for value in found.metrics.values())
    return found


@pytest.mark.thorough
def test_a_quick_run_goes_through_flows_and_scaling(tmp_path):
    found = run_quickly(tmp_path, parts=("ns", "scaling"))
    expected = {"ns/moe/error", "ns/persistence/error", "ns/moe/solve_seconds", "ns/moe/jump", "scaling/4/64/critical"}
    assert expected <= set(found.metrics)
    assert len(found.tables) == 3 and len(found.figures) == 3


@pytest.mark.thorough
def test_a_quick_run_on_own_initial_conditions_reads_one_format_and_writes_predictions_in_another(tmp_path):
    pytest.importorskip("h5py")
    x = np.linspace(0, 1, 16)
    own, predictions = tmp_path / "own.h5", tmp_path / "predicted.npz"
    write_fields(own, FieldData({"u": np.full((3, 16), 0.15) + 0.01 * np.arange(3)[:, None]}, (x,)))
    found = run_quickly(tmp_path / "run", parts=("ds",), initial_conditions=own, predictions=predictions)
    assert {"ds/moe/error", "ds/tuned/moe/error", "ds/local_excess"} <= set(found.metrics)
    assert len(found.tables) == 1 and len(found.figures) == 2
    written = read_fields(predictions, 1)
    assert written.fields["concentration"].shape == (3, 8, 16)
    np.testing.assert_allclose(written.grid[0], x)


@pytest.fixture
def predicting(tmp_path):
    """`predicting(part, write)`: run one part on a file of initial conditions made by `write(path)`."""

    def call(part, write, **changes):
        own = tmp_path / "own.npz"
        write(own)
        own_files = {"parts": (part,), "initial_conditions": own, "predictions": tmp_path / "predicted.npz"}
        return run_quickly(tmp_path / "run", **{**own_files, **changes})

    return call


def stored(x, **fields):
    return lambda path: write_fields(path, FieldData({name: np.asarray(field) for name, field in fields.items()}, x))


LINE, HALF = (np.linspace(0, 1, 16),), (np.linspace(0, 1, 8),)
SQUARE = (np.arange(8) / 8,) * 2


@pytest.mark.parametrize(
    ("part", "write", "message"),
    [
        ("ds", lambda path: None, "initial_conditions` names no file"),
        ("ds", lambda path: path.write_bytes(b"PK"), "initial_conditions`.*own.npz, which cannot be read"),
        ("ds", stored(HALF, u=np.full((2, 8), 0.1)), r"own.npz\), sample 0: .*not shape \(8,\)"),
        ("ds", stored(LINE, u=[np.full(16, 0.1), np.zeros(16)]), "sample 1: .*u0 = 0.*absolute"),
        ("ns", stored(SQUARE, w=np.ones((1, 8, 8))), "sample 0: .*mean vorticity"),
        ("ns", stored(LINE, u=np.full((2, 16), 0.1)), "initial_conditions`.*own.npz"),
    ],
    ids=["no file", "damaged", "another grid", "zero", "a mean", "another equation"],
)
def test_own_initial_conditions_that_are_not_right_are_refused_before_training(
    predicting, monkeypatch, part, write, message
):
    def train(*arguments):
        raise AssertionError("trained first")

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(ArgumentError, match=message):
        predicting(part, write)


def test_settings_of_own_files_that_do_not_go_together_are_refused(predicting, tmp_path):
    write = stored(LINE, u=np.full((2, 16), 0.1))
    for changes, message in (
        ({"predictions": None}, "predictions` must name the file"),
        ({"predictions": tmp_path / "predicted.csv"}, r"predictions` must end in \.npz"),
        ({"predictions": tmp_path / "nowhere" / "predicted.npz"}, "predictions` lies in a folder that is not there"),
        ({"parts": ("ds", "ns")}, "parts` must be the one equation"),
    ):
        with pytest.raises(ArgumentError, match=message):
            predicting("ds", write, **changes)


def metrics(**changes):
    """Figures that meet every bar, and changes to them."""
    good = {
        "ds/soft/error": 0.4, "ds/hc/error": 0.3, "ds/moe/error": 0.2, "ds/hc/worst": 0.4, "ds/moe/worst": 0.3,
        "ds/local_excess": 0.0, "ns/soft/error": 0.3, "ns/hc/error": 0.1, "ns/moe/error": 0.1,
        "ns/persistence/error": 0.4, "ns/hc/solve_seconds": 1.0, "ns/moe/solve_seconds": 0.3, "ns/local_excess": 0.0,
        "scaling/1/65536/critical": 1.0, "scaling/16/65536/critical": 0.1, "scaling/1/4096/critical": 0.08,
        "scaling/devices/one": 1.0, "scaling/devices/many": 0.7,
    }  # fmt: skip
    return {**good, **changes}


def test_the_bars_are_those_of_the_plan_and_hold_or_not_with_the_figures():
    settings = hard_moe.Settings()
    seeds = [metrics(), metrics(**{"ds/hc/error": 0.36})]
    claims = hard_moe.claims(seeds, settings)
    assert len(claims) == 13 and all(claim.holds for claim in claims)
    bars = {claim.bar for claim in claims}
    assert {"<= 0.9", "<= 0.65", "<= 1.03", "<= 0.75", "<= 0.45", "<= 0.5", "<= 0.2", "<= 1.5", "<= 0.85"} <= bars
    for name, value, failing in (
        ("ds/moe/error", 0.29, "DS: error of MoE / PI-HC"),
        ("ns/soft/error", 0.12, "NS: error of MoE / PI-SC"),
        ("scaling/devices/many", 0.9, "Scaling: wall time on 2 host devices"),
        ("ns/local_excess", 0.1, "NS: squared residual"),
        ("ds/moe/worst", np.nan, "DS: worst error"),
    ):
        spoiled = hard_moe.claims([metrics(**{name: value})] * 2, settings)
        assert any(claim.name.startswith(failing) and not claim.holds for claim in spoiled)


def test_tuned_claims_are_made_beside_those_at_the_schedule_of_the_paper():
    settings = hard_moe.Settings()
    names = ("soft/error", "hc/error", "moe/error", "hc/worst", "moe/worst")
    cases = ("ds", "ds_sound", "ds_sound_compact")
    tuned = {f"{case}/tuned/{name}": metrics()[f"ds/{name}"] for case in cases for name in names}
    tuned |= {f"ns/tuned/{name}": metrics()[f"ns/{name}"] for name in names if name.endswith("error")}
    claims = hard_moe.claims([metrics(**tuned), metrics(**{**tuned, "ds/tuned/moe/error": 0.5})], settings)
    assert len(claims) == 13 + 3 * 4 + 3
    failed = {claim.name for claim in claims if not claim.holds}
    assert failed == {
        "DS: deviation over seeds of MoE / PI-HC",
        "DS, tuned: error of MoE / PI-HC (equal total points)",
        "DS, tuned: error of MoE / PI-SC",
        "DS, tuned: deviation over seeds of MoE / PI-HC",
        "DS, sound rows, tuned: deviation over seeds of MoE / PI-HC",
        "DS, sound rows, compact stencil, tuned: deviation over seeds of MoE / PI-HC",
    }


def test_the_short_schedule_halves_after_each_fifth_of_the_steps_and_the_paper_s_after_its_number_of_steps():
    settings = hard_moe.Settings()
    short, paper = (training.schedule_of(name, 200, settings) for name in ("short", "paper"))
    assert [round(float(short(step) / settings.short_rate), 6) for step in (0, 39, 40, 199)] == [1, 1, 0.5, 0.0625]
    assert [round(float(paper(step) / settings.learning_rate), 6) for step in (0, 199, 800)] == [1, 1, 0.5]


def test_the_fast_profile_halves_the_steps():
    settings = hard_moe.Settings()
    fast = dataclasses.replace(settings, profile="fast")
    assert [fast.steps(part) * 2 for part in ("ds", "ns")] == [settings.steps(part) for part in ("ds", "ns")]
