"""Each example solves at small size through the command line, and says what is wrong with its data."""

import json
from pathlib import Path

import jax
import pytest

from optimand.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def solve(capfd, as_a_user):
    """`solve(name, *words)` -> (exit code, last line as JSON, standard error); examples choose double precision."""
    before = jax.config.read("jax_enable_x64")

    def call(name, *words):
        with pytest.raises(SystemExit) as ended:
            main(["solve", str(EXAMPLES / name / "problem.py"), "-q", "--json", *map(str, words)])
        out, err = capfd.readouterr()
        return ended.value.code or 0, json.loads(out) if out else None, err

    yield call
    jax.config.update("jax_enable_x64", before)


def test_penalties_by_hypergradient_are_no_worse_than_the_grid(solve, tmp_path):
    code, found, _ = solve("ridge_diabetes", "--set", "GRID=5", "STEPS=8", "FOLDS=2", "--out", tmp_path / "out")
    assert code == 0 and found["claims"][0]["holds"]
    assert found["metrics"]["validation_implicit"] < found["metrics"]["validation_grid"] < 1.0
    assert "One common penalty".lower() in (tmp_path / "out" / "report.html").read_text().lower()


def test_the_welded_beam_costs_what_is_known_and_its_sensitivities_are_right(solve):
    code, found, _ = solve("constrained_design")
    assert code == 0 and len(found["claims"]) == 3 and all(claim["holds"] for claim in found["claims"])
    assert found["metrics"]["cost"] == pytest.approx(1.724852, rel=1e-5)


def test_sorption_parameters_are_found_with_intervals_that_hold_the_truth(solve, tmp_path):
    code, found, _ = solve("sorption_column", "--out", tmp_path / "out")
    assert code == 0 and found["result"] == "converged" and all(claim["holds"] for claim in found["claims"])
    assert found["metrics"]["noise"] == pytest.approx(0.01, rel=0.2)
    assert "Estimates with 95% confidence intervals" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("", "line 1: the header is missing"),
        ("time,port,concentration\n", "line 1: the header is time,port,concentration"),
        ("time_s,port,concentration\n1,0.5\n", "line 2: 2 cells where there should be 3"),
        ("time_s,port,concentration\n\n1,0.5,high\n", "line 3: concentration is 'high', which is no number"),
        ("time_s,port,concentration\n1,0.5,nan\n", "line 2: concentration is 'nan', which is no number"),
        ("time_s,port,concentration\n0,0.5,1\n", "line 2: time_s is 0; measurements come after time 0"),
        ("time_s,port,concentration\n1,1.5,1\n", "line 2: port is 1.5; it is a fraction of the length"),
        ("time_s,port,concentration\n1,0.5,1\n", "1 measurements cannot tell 2 parameters"),
    ],
)
def test_a_malformed_csv_file_is_told_with_its_line(solve, tmp_path, text, message):
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_text(text)
    code, _, err = solve("sorption_column", "--set", f"DATA={path}")
    assert code == 2 and message in err and "time_s, port, concentration" in err


def test_an_unknown_parameter_to_fit_is_refused(solve):
    code, _, err = solve("sorption_column", "--set", "FIT=sorption,colour")
    assert code == 2 and "must name some of diffusion, sorption, exponent" in err


def test_every_example_stands_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    folders = sorted(path.parent.name for path in EXAMPLES.glob("*/problem.py"))
    assert len(folders) == 3 and all(f"]({name}/problem.py)" in text for name in folders)
