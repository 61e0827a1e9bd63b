"""The report is one file that shows what was found, whatever names it was given."""

import dataclasses
import json
import re

import matplotlib.pyplot as plt
import pytest

from optimand.report import record
from optimand.report.html import write_report
from optimand.studies import Claim, Table


@pytest.fixture
def folder(tmp_path):
    about = {
        "title": "A <b>bold</b> title",
        "study": "toy",
        "references": ["blondel2022efficient", "nobody2000nothing"],
        "settings": {"steps": 3, "sizes": [1, 2]},
        "versions": {"jax": "0"},
        "machine": {"system": "Linux", "devices": {"cpu:cpu": 2}, "memory_gib": 1.5},
        "seeds": [0],
        "date": "2026-01-01",
    }
    record.write_json(tmp_path / "settings.json", about)
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    claims = [Claim.at_most("a < b", float("nan"), 1.0, paper="0.5"), Claim.at_least("c", 2.0, 1.0, note="few")]
    found = {
        "metrics": {"error": 0.123456, "time": float("inf")},
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "tables": record.write_tables(tmp_path, [Table("T & U", ("name", "x"), [("a|b", 1.5), ("c", None)], "n")]),
        "figures": record.write_figures(tmp_path, {"A figure": figure}),
        "seeds": [0],
        "seconds": 1.25,
    }
    record.write_json(tmp_path / "metrics.json", found)
    return tmp_path


def test_the_report_holds_claims_metrics_tables_figures_and_how_it_was_run(folder):
    page = write_report(folder, record.read_json(folder / "metrics.json")).read_text()
    for part in (
        "1 of 2 hold",
        "does not hold",
        "a &lt; b",
        ">nan<",
        "≥ 1",
        "0.1235",
        "T &amp; U",
        "a|b",
        "data:image/svg+xml;base64,",
        "2 x cpu:cpu",
        "1.5 GiB",
        "Efficient and Modular Implicit Differentiation",
        "nobody2000nothing",
        "[1, 2]",
    ):
        assert part in page, part
    assert "<b>bold</b>" not in page


def test_the_report_needs_no_other_file_and_fits_a_telephone_and_the_dark(folder):
    page = write_report(folder, record.read_json(folder / "metrics.json")).read_text()
    sources = re.findall(r'(?:src|rel="stylesheet" href)="([^"]{0,20})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page


def test_a_run_that_has_not_ended_says_so_and_shows_its_history(folder):
    rows = [{"label": "a", "step": n, "value": 1 / n} for n in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"label": "a", "st'
    (folder / "history.jsonl").write_text(text)
    page = write_report(folder, None, status="Interrupted.").read_text()
    assert "Interrupted." in page and "What the method reported after each step" in page


def test_numbers_that_are_not_finite_survive_strict_json(folder):
    def refuse(name):
        raise AssertionError(name)

    content = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert record.read_numbers(content["metrics"])["time"] == float("inf")
