"""A study is run over its seeds into a folder; what was cut short goes on to the same results."""

import json
from pathlib import Path

import pytest

from optimand.core.errors import ArgumentError
from optimand.studies import find, run_study
from optimand.studies.runner import load

pytestmark = pytest.mark.xdist_group("runner")  # who share what is run

QUADRATICS = Path(__file__).with_name("quadratics.py")


@pytest.fixture(scope="module")
def card():
    return find(str(QUADRATICS))


@pytest.fixture(scope="module")
def two_seeds(card, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "two"
    run_study(card, folder, seeds=[0, 1], quick=True, verbose=False)
    return folder


def test_a_run_folder_holds_settings_metrics_history_figures_tables_and_a_report(two_seeds):
    for name in ("settings.json", "metrics.json", "report.html"):
        assert (two_seeds / name).is_file() and (two_seeds / "seed-1" / name).is_file()
    kinds = {path.suffix for path in (two_seeds / "seed-0").rglob("*")}
    assert {".png", ".svg", ".csv", ".ckpt", ".jsonl"} <= kinds
    settings = json.loads((two_seeds / "settings.json").read_text())
    assert settings["settings"]["steps"] == 4 and settings["quick"] and settings["seeds"] == [0, 1]
    assert {"python", "jax", "optimand"} <= set(settings["versions"]) and settings["machine"]["cpus"] >= 1


def test_claims_are_made_from_the_metrics_of_all_seeds(two_seeds):
    seeds = [json.loads((two_seeds / f"seed-{n}" / "metrics.json").read_text())["metrics"] for n in (0, 1)]
    found = json.loads((two_seeds / "metrics.json").read_text())
    assert seeds[0] != seeds[1]
    assert found["metrics"]["slow"] == pytest.approx((seeds[0]["slow"] + seeds[1]["slow"]) / 2)
    ratio = (seeds[0]["fast"] + seeds[1]["fast"]) / (seeds[0]["slow"] + seeds[1]["slow"])
    assert found["claims"][0]["measured"] == pytest.approx(ratio) and found["claims"][0]["holds"]


def test_a_folder_that_is_not_empty_is_refused_and_resuming_it_reads_what_is_there(card, two_seeds):
    with pytest.raises(ArgumentError, match=r"is not empty.*--resume"):
        run_study(card, two_seeds, seeds=[0, 1], quick=True, verbose=False)
    before = {path: path.stat().st_mtime_ns for path in two_seeds.glob("seed-*/metrics.json")}
    run_study(card, two_seeds, resume=True, verbose=False)
    assert before == {path: path.stat().st_mtime_ns for path in two_seeds.glob("seed-*/metrics.json")}


def test_a_run_is_not_resumed_with_other_settings_or_as_another_study(card, two_seeds, tmp_path):
    with pytest.raises(ArgumentError, match="begun with another steps"):
        run_study(card, two_seeds, assignments=["steps=9"], resume=True, verbose=False)
    other = tmp_path / "other.py"
    other.write_text(QUADRATICS.read_text().replace('"quadratics"', '"cubics"'))
    with pytest.raises(ArgumentError, match="holds a run of 'quadratics', not of 'cubics'"):
        run_study(find(str(other)), two_seeds, resume=True, verbose=False)


def test_a_run_that_was_cut_between_solves_ends_with_the_same_metrics(card, tmp_path, monkeypatch):
    whole = run_study(card, tmp_path / "whole", seeds=[3], quick=True, verbose=False)
    module = load(card)
    real = module.figures.curves  # called after the solves
    monkeypatch.setattr(module.figures, "curves", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("optimand.studies.runner.load", lambda _: module)
    with pytest.raises(KeyboardInterrupt):
        run_study(card, tmp_path / "cut", seeds=[3], quick=True, verbose=False)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    monkeypatch.setattr(module.figures, "curves", real)
    resumed = run_study(card, tmp_path / "cut", resume=True, verbose=False)
    assert resumed["metrics"] == whole["metrics"] and resumed["seeds"] == [3]
    rows = lambda name: [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
    assert rows("cut") == rows("whole")


def test_a_study_that_is_not_one_is_refused(tmp_path):
    cases = {
        "missing.py": (None, "is not a file"),
        "empty.py": ("x = 1\n", "has no `SLUG"),
        "broken.py": ("SLUG = 'a\n", "line 1: unterminated string"),
        "bare.py": ("SLUG = 'a'\n", "a has no `Settings`"),
        "loose.py": ("SLUG = 'a'\nclass Settings: ...\nrun = claims = None\n", "not a frozen dataclass"),
    }
    for name, (text, message) in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ArgumentError, match=message):
            load(find(str(tmp_path / name)))
    with pytest.raises(ArgumentError, match="'nonsense' is not known"):
        find("nonsense")


def test_an_output_that_is_a_file_or_cannot_be_written_is_refused(card, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="is a file, not a folder"):
        run_study(card, tmp_path / "file", verbose=False)
    with pytest.raises(ArgumentError, match="cannot be written to"):
        run_study(card, tmp_path / "file" / "below", verbose=False)
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "a.txt").write_text("")
    with pytest.raises(ArgumentError, match="not a run that could be resumed"):
        run_study(card, tmp_path / "things", resume=True, verbose=False)
