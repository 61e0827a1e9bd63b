"""What a study works with: claims, tables, findings and its folder."""

import math
import subprocess
import sys

import numpy as np
import pytest

from optimand.report.record import slugify
from optimand.studies import Claim, Findings, Run, Table, cards, find, load


def test_a_claim_holds_exactly_where_its_figure_meets_the_bar():
    assert Claim.at_most("a", 0.9, 0.9).holds
    assert not Claim.at_most("a", 0.91, 0.9).holds
    assert Claim.at_least("a", 2, 1.5).holds
    assert not Claim.at_least("a", 1.4, 1.5).holds
    assert Claim.between("a", 1.0, 0.9, 1.1).holds
    assert not Claim.between("a", 1.2, 0.9, 1.1).holds


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_never_holds(figure):
    made = (Claim.at_most("a", figure, 1.0), Claim.at_least("a", figure, 1.0), Claim.between("a", figure, 0.0, 1.0))
    assert not any(claim.holds for claim in made)


def test_findings_take_any_single_number_as_a_metric_and_refuse_arrays():
    assert Findings({"a": np.float32(2), "b": np.array([3])}).metrics == {"a": 2.0, "b": 3.0}
    with pytest.raises(ValueError, match="'a' must be one number"):
        Findings({"a": np.zeros(2)})


def test_a_table_with_a_short_row_is_refused():
    with pytest.raises(ValueError, match="row 1 of the table 't' has 1 cells for 2 columns"):
        Table("t", ("a", "b"), [(1, 2), (3,)])


def test_what_is_kept_once_is_read_by_a_resumed_run_only(tmp_path):
    first = Run(tmp_path, verbose=False).once("data set", lambda: {"x": np.arange(3.0), "seconds": 1.5})
    again = Run(tmp_path, verbose=False, resuming=True).once("data set", lambda: pytest.fail("computed again"))
    anew = Run(tmp_path, verbose=False).once("data set", lambda: {"x": np.zeros(1)})
    np.testing.assert_array_equal(first["x"], again["x"])
    assert again["seconds"] == 1.5 and anew["x"].shape == (1,)


def test_labels_of_solves_are_used_once(tmp_path):
    out = Run(tmp_path, verbose=False)
    assert out.resume("a") is None
    out.callbacks("a")
    with pytest.raises(ValueError, match="'a' is used twice"):
        out.callbacks("a")


def test_file_names_are_made_of_letters_and_digits():
    assert slugify("Error, MoE (K=4)") == "error-moe-k-4"


def test_listing_the_studies_imports_no_jax():
    code = "import sys, optimand.studies as s; s.cards(); assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_study_of_the_package_has_a_title_and_a_reference():
    for card in cards().values():
        assert card.title and card.references, card.slug


def test_a_study_may_be_a_package():
    card = find("implicit-diff")
    assert card.path.name == "__init__.py" and card.summary
    assert load(card).__name__ == "optimand.studies.implicit_diff"
