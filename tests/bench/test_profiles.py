"""What a table of solvers and problems says, on tables made up for the purpose."""

import numpy as np
import pytest

from optimand.bench import cutest, profiles


def row(problem, solver, seconds=None, kind="bounded", **more):
    solved = seconds is not None
    return {"problem": problem, "solver": solver, "kind": kind, "solved": solved, "claims": solved, "seconds": seconds,
            "variables": 2, **more}  # fmt: skip


@pytest.fixture
def rows():
    return [
        row("A", "smooth.One", 1.0, default="One"),
        row("A", "scipy.Two", 2.0),
        row("B", "smooth.One", 4.0, default="One"),
        row("B", "scipy.Two", 1.0),
        row("C", "smooth.One", None, message="stopped", stationarity=0.1, violation=0.2, default="One"),
        row("C", "scipy.Two", 3.0),
        row("D", "smooth.One", None, message="diverged", default="One"),
        row("D", "scipy.Two", None, claims=True),
        {"problem": "E", "solver": "left out", "kind": "bounded", "variables": 9999},
    ]


def test_a_profile_is_the_share_of_problems_within_a_ratio_of_the_best(rows):
    problems, solvers, table = profiles.costs(rows, "seconds", "bounded")
    assert problems == ["A", "B", "C", "D"] and solvers == ["smooth.One", "scipy.Two"]
    shares = profiles.profile(table, np.array([1.0, 2.0, 3.9, 4.0, 1e9]))
    np.testing.assert_allclose(shares, [[0.25, 0.25, 0.25, 0.5, 0.5], [0.5, 0.75, 0.75, 0.75, 0.75]])


def test_counts_failures_and_false_claims(rows):
    assert profiles.counts(rows, "bounded") == {"smooth.One": 2, "scipy.Two": 3}
    assert [claim["problem"] for claim in profiles.false_claims(rows)] == ["D"]
    failed = profiles.unsolved(rows, ["smooth.One"])
    assert failed == {"C": {"smooth.One": "stopped (violation 2.0e-01)"}, "D": {"smooth.One": "diverged"}}


def test_a_row_written_again_replaces_the_one_before(rows):
    assert profiles.counts([*rows, row("C", "smooth.One", 1.0)], "bounded")["smooth.One"] == 3


def test_claims_compare_ours_with_the_others(rows):
    claims = {claim.name: claim for claim in cutest.claims(rows)}
    over = claims["bounded: solved by our best, over scipy's best"]
    assert over.measured == pytest.approx(2 / 3) and not over.holds
    share = next(claim for name, claim in claims.items() if "default" in name)
    assert share.measured == pytest.approx(2 / 3) and not share.holds  # of A, B and C, which somebody solves
    assert claims["false claims of convergence by ours"].holds  # the false claim is the other's
    own = [*rows, row("F", "smooth.One", None, claims=True)]
    assert not {claim.name: claim for claim in cutest.claims(own)}["false claims of convergence by ours"].holds


def test_the_share_of_ipopt_is_that_of_one_method():
    rows = [row(name, "ipopt", 1.0, kind="constrained") for name in "ABCD"]
    rows += [row(name, "smooth.One", 1.0, kind="constrained") for name in "ABE"]
    rows += [row(name, "smooth.Two", 1.0, kind="constrained") for name in "BCD"]
    share = next(claim for claim in cutest.claims(rows) if "Ipopt" in claim.name)
    assert share.measured == 0.75 and "smooth.Two" in share.note


def test_the_page_names_what_is_not_solved(rows, tmp_path):
    cutest.write(tmp_path, rows, {"date": "today", "seconds": 60, "workers": 1, "most_variables": 1000})
    page = (tmp_path / "cutest.md").read_text()
    assert "| C | One: stopped (violation 2.0e-01) | scipy.Two |" in page
    assert "| D | One: diverged | nobody |" in page
    assert (tmp_path / "bounded-seconds.svg").exists() and "bounded-seconds.svg" in page
