"""`solve FILE`: a user's own problem, everything that can be wrong with it, Ctrl-C and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BOWL = Path(__file__).with_name("bowl.py")


def test_a_problem_is_solved_with_changed_settings_and_written(optimand, tmp_path):
    out = tmp_path / "out"
    code, text, err = optimand("solve", BOWL, "--set", "TARGET=3", "SIZE=2", "--out", out, "--json")
    found = json.loads(text)
    assert code == 0 and found["result"] == "budget_spent" and found["metrics"]["distance"] < 1e-4
    assert "60/60" in err and "distance to the target" in err
    with np.load(out / "solution.npz") as stored:
        np.testing.assert_allclose(stored["value"], [3.0, 3.0], rtol=1e-4)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["TARGET"] == 3.0 and settings["title"] == "A bowl with its lowest point somewhere"
    assert "data:image/svg+xml" in (out / "report.html").read_text()
    assert len((out / "history.jsonl").read_text().splitlines()) == 60


def test_without_a_folder_nothing_is_written(optimand, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = optimand("solve", BOWL, "-q")
    assert code == 0 and "budget_spent" in out and "value = [" in out and not err
    assert not list(tmp_path.iterdir())


def test_a_claim_that_does_not_hold_exits_with_1(optimand):
    code, out, _ = optimand("solve", BOWL, "-q", "--set", "STEPS=2")
    assert code == 1 and "does not hold" in out


def test_a_larger_budget_goes_on_from_where_the_first_one_ended(optimand, tmp_path):
    optimand("solve", BOWL, "-q", "--set", "STEPS=20", "--out", tmp_path / "a")
    code, _, err = optimand("solve", BOWL, "-q", "--set", "STEPS=60", "--out", tmp_path / "a")
    assert code == 2 and "is not empty" in err
    code, out, _ = optimand("solve", BOWL, "-q", "--set", "STEPS=60", "--out", tmp_path / "a", "--resume", "--json")
    whole = optimand("solve", BOWL, "-q", "--json")[1]
    assert code == 0 and json.loads(out)["metrics"]["value"] == json.loads(whole)["metrics"]["value"]
    code, _, err = optimand("solve", BOWL, "-q", "--set", "TARGET=9", "--out", tmp_path / "a", "--resume")
    assert code == 2 and "another problem" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "KIND=broken"], "which raised TypeError"),
        (["--set", "KIND=vector"], "`fn` must return a scalar"),
        (["--set", "KIND=report"], "raised RuntimeError: no ink (while in its report)"),
        (["--set", "KIND=plan"], "must be one of plain, broken, vector, nan, report, not 'plan'. Did you mean 'plain'"),
        (["--set", "SIZE=2.5"], "SIZE: must be a whole number"),
        (["--set", "TARGT=1"], "'TARGT' is not a setting of the file. Did you mean 'TARGET'"),
        (["--set", "problem=1"], "'problem' is not a setting of the file"),
        (["--set", "STEPS=-1"], "`steps` must be a whole number that is not negative, not -1"),
        (["--resume"], "--resume: needs --out"),
        (["--out", BOWL], "is a file, not a folder"),
        (["--out", BOWL / "below"], "cannot be written to"),
    ],
)
def test_misuse_exits_with_2_and_names_what_is_wrong(optimand, words, message):
    code, _, err = optimand("solve", BOWL, "-q", *words)
    assert code == 2 and message in err.replace("\n", " ")


def test_an_error_in_the_file_is_told_with_its_line(optimand):
    code, _, err = optimand("solve", BOWL, "-q", "--set", "KIND=broken")
    line = next(n for n, text in enumerate(BOWL.read_text().splitlines(), start=1) if 'x["nothing"]' in text)
    assert code == 2 and f"{BOWL}, line {line} in bowl" in err and 'return x["nothing"]' in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not there"),
        ("x = (", "line 1: '(' was never closed"),
        ("import json\n\n1 / 0\n", "raised ZeroDivisionError: division by zero\n  FILE, line 3\n    1 / 0"),
        ("import nothing_like_it\n", "raised ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "ends the process (exit 3)"),
        ("guess = 1.0\n", "does not define `problem`"),
        ("problem = 3\nmethod = 3\n", "`problem` must be an optimand Problem, not int"),
        (
            "import optimand as om\nproblem = om.Minimize(abs)\nmethod = 3\nguess = 1.0\n",
            "`method` must be an optimand Method",
        ),
    ],
)
def test_a_file_that_is_not_right_is_misuse(optimand, tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    code, _, err = optimand("solve", path, "-q")
    assert code == 2 and message in err.replace(str(path), "FILE"), err


def test_a_solve_that_fails_exits_with_1_and_keeps_the_last_finite_value(optimand, tmp_path):
    code, out, err = optimand("solve", BOWL, "-q", "--set", "KIND=nan", "--out", tmp_path / "a", "--json")
    assert code == 1 and json.loads(out)["result"] == "nonfinite" and "was not finite" in err
    with np.load(tmp_path / "a" / "solution.npz") as stored:
        assert np.all(np.isfinite(stored["value"]))


def _start(out, *words):
    code = "from optimand.cli import main; main()"
    command = [sys.executable, "-c", code, "solve", str(BOWL), "--set", "PAUSE=0.03", "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition, process):
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def _solution(out):
    with np.load(out / "solution.npz") as stored:
        return stored["value"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    process = _start(out, "--json")
    assert process.wait(240) == 0, process.communicate()
    return _solution(out)


def test_ctrl_c_ends_with_the_best_so_far_and_the_run_can_be_resumed(tmp_path, uninterrupted):
    out = tmp_path / "out"
    process = _start(out, "--json")
    history = out / "history.jsonl"
    _wait_for(lambda: history.exists() and history.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    text, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert json.loads(text.splitlines()[-1])["result"] == "interrupted" and "--resume" in err and "Traceback" not in err
    assert not np.array_equal(_solution(out), uninterrupted) and "interrupted" in (out / "report.html").read_text()
    assert _start(out, "--resume").wait(240) == 0
    assert np.array_equal(_solution(out), uninterrupted)


def test_a_run_that_is_killed_resumes_to_the_same_bits(tmp_path, uninterrupted):
    out = tmp_path / "out"
    process = _start(out, "--save-every", "0")
    checkpoint = out / "checkpoints" / "solve.ckpt"
    _wait_for(checkpoint.exists, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "solution.npz").exists()
    assert _start(out, "--resume").wait(240) == 0
    assert np.array_equal(_solution(out), uninterrupted)
    steps = [json.loads(line)["step"] for line in (out / "history.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_a_study_that_is_interrupted_says_how_to_go_on(tmp_path):
    study = Path(__file__).parents[1] / "studies" / "quadratics.py"
    out = tmp_path / "out"
    words = ["run", str(study), "--set", "steps=300000", "--out", str(out)]
    command = [sys.executable, "-c", "from optimand.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    history = out / "history.jsonl"
    _wait_for(lambda: history.exists() and history.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert (out / "best-so-far.npz").exists() and "Interrupted" in (out / "report.html").read_text()
