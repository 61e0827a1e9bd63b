"""`run`, `verify`, `report` and `compare`: exit codes, the last line of JSON, and what is refused."""

import errno
import json
from pathlib import Path

import pytest

QUADRATICS = Path(__file__).parents[1] / "studies" / "quadratics.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def verified(folder):
    from optimand.cli import main

    out = folder / "verify"
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(QUADRATICS), "--seeds", "2", "--quick", "-q", "--out", str(out)])
    assert not ended.value.code
    return out


def test_run_prints_claims_and_with_json_metrics_as_the_last_line(optimand, folder):
    code, out, err = optimand(
        "run", QUADRATICS, "--quick", "--set", "steps=6", "size=2", "--out", folder / "a", "--json"
    )
    found = json.loads(out)
    assert code == 0 and found["metrics"]["fast"] < found["metrics"]["slow"]
    assert "holds" in err and "step size 0.5: 6/6" in err
    settings = json.loads((folder / "a" / "settings.json").read_text())["settings"]
    assert settings["steps"] == 6 and settings["size"] == 2
    code, out, err = optimand("run", QUADRATICS, "--quick", "--seed", "1", "--out", folder / "b", "-q")
    assert code == 0 and "holds" in out and not err


def test_a_claim_that_does_not_hold_and_a_study_that_raises_exit_with_1(optimand, tmp_path):
    code, out, _ = optimand("run", QUADRATICS, "--quick", "-q", "--set", "bar=1e-9", "--out", tmp_path / "a")
    assert code == 1 and "does not hold" in out
    import optimand.cli as cli

    with pytest.raises(RuntimeError, match="no luck"):
        cli.main(["run", str(QUADRATICS), "--set", "fail=no luck", "--out", str(tmp_path / "b"), "-q"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hard-mow"], "study 'hard-mow' is not known"),
        ([QUADRATICS, "--set", "stepz=3"], "'stepz' is not a setting. Did you mean 'steps'"),
        ([QUADRATICS, "--set", "steps=few"], "steps: must be a whole number, not 'few'"),
        ([QUADRATICS, "--set", "noise=norml"], "must be one of normal, uniform, not 'norml'. Did you mean 'normal'"),
        ([QUADRATICS, "--seed", "-1"], "--seed"),
        ([QUADRATICS, "--seeds", "1", "1"], "is given twice"),
        ([QUADRATICS, "--out", QUADRATICS], "is a file, not a folder"),
        ([QUADRATICS, "--out", QUADRATICS / "below"], "cannot be written to"),
    ],
)
def test_misuse_exits_with_2_and_says_what_would_be_right(optimand, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = optimand("run", *words)
    assert code == 2 and message in err.replace("\n", " ") and not out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_misuse(optimand, verified):
    code, _, err = optimand("run", QUADRATICS, "--out", verified)
    assert code == 2 and "--out:" in err and "is not empty" in err and "--resume" in err


def test_a_folder_without_permission_to_write_is_misuse(optimand, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # a chmod would not stop the superuser
    code, _, err = optimand("run", QUADRATICS, "--quick", "--out", tmp_path / "a")
    assert code == 2 and "--out:" in err and "cannot be written to: Permission denied" in err.replace("\n", " ")


def test_runs_are_numbered_when_no_folder_is_named(optimand, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert optimand("run", QUADRATICS, "--quick", "-q")[0] == 0
        assert (tmp_path / "runs" / f"quadratics-{number}" / "metrics.json").exists()


def test_verify_writes_every_claim_and_can_be_resumed(optimand, verified):
    found = json.loads((verified / "metrics.json").read_text())
    assert [claim["study"] for claim in found["claims"]] == ["quadratics"] and (verified / "report.html").exists()
    done = verified / "quadratics" / "seed-1" / "metrics.json"
    before = done.stat().st_mtime_ns
    code, out, err = optimand("verify", QUADRATICS, "--seeds", "2", "--quick", "--resume", "--out", verified, "--json")
    assert code == 0 and json.loads(out)["claims"] == found["claims"] and "1 of 1 claims hold" in err
    assert done.stat().st_mtime_ns == before


def test_verify_goes_on_after_a_study_that_raises_and_exits_with_1(optimand, tmp_path):
    broken = tmp_path / "broken.py"
    text = QUADRATICS.read_text().replace('SLUG = "quadratics"', 'SLUG = "broken"')
    broken.write_text(text.replace('fail: str = ""', 'fail: str = "no luck"'))
    code, out, err = optimand("verify", broken, QUADRATICS, "--seeds", 1, "--quick", "-q", "--out", tmp_path / "out")
    assert code == 1 and "broken: did not end: RuntimeError: no luck" in out and "1 of 1 claims hold" in out
    assert "Traceback" in err


def test_the_results_page_holds_claims_dates_machine_and_benchmarks(optimand, verified, tmp_path):
    benchmark = {
        "name": "overhead",
        "title": "Overhead of solve",
        "date": "2026-01-01",
        "machine": "2 cores",
        "versions": {"jax": "0.10.2"},
        "rows": [{"case": "traced", "ratio": 1.01}, {"case": "eager | host", "ratio": None}],
        "claims": [{"name": "traced", "measured": 1.2, "bar": "<= 1.05", "holds": False}],
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "overhead.json").write_text(json.dumps(benchmark))
    page = tmp_path / "docs" / "results.md"
    code, out, _ = optimand("report", verified, "--markdown", page, "--benchmarks", tmp_path / "results")
    text = page.read_text()
    assert code == 0 and str(page) in out
    for part in (
        "### Two step sizes on a quadratic",
        "seeds 0, 1",
        "| loss of the longer step / of the shorter (toy) |",
        "≤ 1 | about 0.1 | holds |",
        "### Overhead of solve",
        "2026-01-01; 2 cores",
        "jax 0.10.2",
        "| eager \\| host |  |",
        "| traced | 1.2 | ≤ 1.05 |  | **does not hold** |",
    ):
        assert part in text, part
    page.write_text(text.replace("## Studies\n", "## Studies\n\n### Another study\n\nOf another day.\n"))
    code, _, _ = optimand("report", verified, "--markdown", page, "--benchmarks", tmp_path / "results")
    kept = page.read_text()
    assert code == 0 and "### Another study\n\nOf another day.\n" in kept
    assert [kept.count(f"### {title}\n") for title in ("Two step sizes on a quadratic", "Overhead of solve")] == [1, 1]
    (tmp_path / "results" / "overhead.json").write_text(json.dumps(benchmark | {"title": "Overhead, again"}))
    code, _, _ = optimand("report", "--markdown", page, "--benchmarks", tmp_path / "results")  # benchmarks alone
    again = page.read_text()
    assert code == 0 and "### Two step sizes on a quadratic\n" in again and "### Overhead, again\n" in again
    code, _, err = optimand("report")
    assert code == 2 and "RUN" in err


def test_a_report_is_written_anew_and_a_folder_that_is_no_run_is_refused(optimand, verified, tmp_path):
    report = verified / "quadratics" / "report.html"
    report.unlink()
    code, out, _ = optimand("report", verified / "quadratics")
    assert code == 0 and report.exists() and str(report) in out
    code, _, err = optimand("report", tmp_path)
    assert code == 2 and "is not a run folder" in err
    (tmp_path / "settings.json").write_text('{"study": ')
    code, _, err = optimand("report", tmp_path)
    assert code == 2 and "is damaged" in err


def test_compare_shows_what_differs(optimand, verified):
    seeds = [verified / "quadratics" / f"seed-{n}" for n in (0, 1)]
    code, out, _ = optimand("compare", *seeds, "--json")
    found = json.loads(out)
    assert code == 0 and found["settings"] == {"seeds": [[0], [1]]}
    assert [row[0] for row in found["metrics"]] == ["slow", "fast"] and all(
        row[3] is not None for row in found["metrics"]
    )
    code, out, _ = optimand("compare", *seeds)
    assert code == 0 and "change" in out and "holds" in out


def test_a_full_disk_ends_a_run_with_a_message(optimand, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("optimand.report.record.write_figures", full)
    code, _, err = optimand("run", QUADRATICS, "--quick", "-q", "--out", tmp_path / "a")
    assert code == 1 and "No space left on device" in err and "Traceback" not in err
    monkeypatch.undo()
    assert optimand("run", QUADRATICS, "-q", "--out", tmp_path / "a", "--resume")[0] == 0


def test_doctor_finds_a_working_installation(optimand):
    code, out, _ = optimand("doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["healthy"] and set(found["checks"].values()) == {"ok"}
