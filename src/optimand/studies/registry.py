"""Finds studies by reading their source, not by importing it: a list of studies costs no JAX.

A study is a module or a package beside this one with a top-level `SLUG = "..."`; or any `.py` file of a user's with one.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Card", "cards", "find", "load"]


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a study without importing it."""

    slug: str
    title: str
    references: tuple[str, ...]
    path: Path
    summary: str


@functools.cache
def cards() -> dict[str, Card]:
    """All studies of this package, by slug."""
    here = Path(__file__).parent
    found = (_read(path) for path in sorted([*here.glob("*.py"), *here.glob("*/__init__.py")]))
    return {card.slug: card for card in found if card is not None}


def find(name: str) -> Card:
    """The study of this slug, or the one in this `.py` file.

    **Raises:** `ArgumentError`, with the studies there are and the closest one.
    """
    from optimand.core.errors import ArgumentError

    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ArgumentError("study", f"{name} is not a file.")
        try:
            card = _read(path)
        except SyntaxError as error:
            raise ArgumentError("study", f"{name}, line {error.lineno}: {error.msg}.") from None
        if card is None:
            raise ArgumentError("study", f"{name} is not a study: it has no `SLUG = ...` at the top level.")
        return card
    if name not in cards():
        raise ArgumentError("study", f"{name!r} is not known.{closest(name, cards())}", listed("Studies", cards()))
    return cards()[name]


def load(card: Card) -> ModuleType:
    """Import a study, and check that it has what a study must have."""
    from optimand.core.errors import ArgumentError

    place = card.path.parent if card.path.name == "__init__.py" else card.path.with_suffix("")
    if place.parent == Path(__file__).parent:
        module = importlib.import_module(f"optimand.studies.{place.name}")
    else:
        name = f"optimand_study_{card.path.stem}"
        spec = importlib.util.spec_from_file_location(name, card.path)
        assert spec is not None and spec.loader is not None  # it is a .py file
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    for part in ("Settings", "run", "claims"):
        if not hasattr(module, part):
            raise ArgumentError("study", f"{card.slug} has no `{part}`.")
    if not (dataclasses.is_dataclass(module.Settings) and module.Settings.__dataclass_params__.frozen):  # pyright: ignore
        raise ArgumentError("study", f"the Settings of {card.slug} are not a frozen dataclass.")
    return module


def _read(path: Path) -> Card | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("SLUG", "TITLE", "REFERENCE"):
                constants[name] = ast.literal_eval(node.value)
    if "SLUG" not in constants:
        return None
    references = constants.get("REFERENCE", ())
    references = (references,) if isinstance(references, str) else tuple(references)
    summary = (ast.get_docstring(tree) or "").strip()
    slug = constants["SLUG"]
    return Card(slug, constants.get("TITLE", slug), references, path, summary)


def closest(name: str, known: Any) -> str:
    """ " Did you mean 'x'?", or nothing."""
    near = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(what: str, known: Any) -> str:
    """ "Studies: a, b." or that there are none."""
    names = ", ".join(sorted(str(one) for one in known))
    return f"{what}: {names}." if names else f"{what}: none."
