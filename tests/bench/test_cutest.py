"""The collection itself, where it is installed."""

import importlib.util

import pytest

import optimand as om
from optimand.bench import catalogue, cutest, solvers

# not `importorskip`: to import the whole collection takes a minute
if importlib.util.find_spec("sif2jax") is None:
    pytest.skip("the CUTEst collection is an extra", allow_module_level=True)


def test_the_catalogue_has_every_problem():
    kinds = [card.kind for card in catalogue.cards()]
    assert [kinds.count(kind) for kind in catalogue.KINDS] == [200, 108, 356]


def test_a_small_run_solves_and_resumes(tmp_path):
    chosen = {"problems": ["rosenbr", "HS71"], "solvers": ["smooth.LBFGS", "scipy.SLSQP"]}
    rows = cutest.run(tmp_path / "run", **chosen)
    assert {(row["problem"], row["solver"]) for row in rows if row["solved"]} == {
        ("ROSENBR", "smooth.LBFGS"), ("HS71", "scipy.SLSQP"),
    }  # fmt: skip
    assert cutest.run(tmp_path / "run", **chosen, resume=True) == rows


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(om.core.errors.ArgumentError, match="HS7100"):
        cutest.run(tmp_path / "a", problems=["HS7100"])
    with pytest.raises(om.core.errors.ArgumentError, match=r"smooth\.LBFGZ"):
        solvers.takes("smooth.LBFGZ", "bounded")
