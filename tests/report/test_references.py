"""The bibliography is well-formed, and every method and study points into it."""

import ast
from pathlib import Path

import pytest

import optimand
from optimand.report.references import parse, reference, references
from optimand.studies import cards


def test_every_entry_has_an_author_a_title_and_a_year_and_prints_without_tex():
    assert len(references()) > 20
    for entry in references().values():
        assert {"author", "title", "year"} <= set(entry.fields), entry.key
        assert not set("{}\\") & set(entry.short()["text"]), entry.short()["text"]
        assert str(entry.fields["year"]) in entry.key


def test_accents_are_read_as_letters():
    assert "Llinares-López" in reference("blondel2022efficient").fields["author"]
    assert "Gähler" in reference("bitzek2006structural").fields["author"]


def test_a_key_that_stands_twice_and_an_open_entry_are_refused():
    with pytest.raises(ValueError, match="the key a twice"):
        parse("@misc{a,\n title = {x},\n}\n@misc{a,\n title = {y},\n}\n")
    with pytest.raises(ValueError, match="not closed"):
        parse("@misc{a,\n title = {x},\n")


def test_every_reference_of_a_method_or_study_stands_in_the_bibliography():
    used = {key for card in cards().values() for key in card.references}
    for path in Path(optimand.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if names == ["reference"] and isinstance(getattr(node, "value", None), ast.Constant):
                used.add(node.value.value)
    assert used - {""} <= set(references())
