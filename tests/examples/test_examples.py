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


def test_every_example_stands_in_the_readme():
    text = (EXAMPLES / "README.md").read_text()
    folders = sorted(path.parent.name for path in EXAMPLES.glob("*/problem.py"))
    assert len(folders) >= 1 and all(f"]({name}/problem.py)" in text for name in folders)
