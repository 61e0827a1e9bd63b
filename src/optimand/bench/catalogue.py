"""The problems of the CUTEst collection as `sif2jax` has them.

To import that package as a whole takes a minute, since every problem's data become arrays. So its lists are read from its
source, and a problem is imported alone, from its own file.
"""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from ..core.errors import ArgumentError, MissingExtra

__all__ = ["KINDS", "Card", "cards", "find", "load"]

KINDS = ("unconstrained", "bounded", "constrained")

_LISTS = {  # folder -> name of its list -> kind of its problems
    "_unconstrained_minimisation": {"unconstrained_minimisation_problems": "unconstrained"},
    "_bounded_minimisation": {"bounded_minimisation_problems": "bounded"},
    "_constrained_minimisation": {"constrained_minimisation_problems": "constrained"},
    "_quadratic_problems": {
        "bounded_quadratic_problems": "bounded",
        "constrained_quadratic_problems": "constrained",
    },
}


@dataclasses.dataclass(frozen=True)
class Card:
    """Where a problem is, without having imported it: its class `name`, `kind`, module and arguments."""

    name: str
    kind: str
    module: str
    arguments: tuple[tuple[str, Any], ...] = ()


@functools.cache
def cards() -> tuple[Card, ...]:
    """All problems with an objective, in the order of the collection.

    **Raises:** `MissingExtra` if `sif2jax` is not installed.
    """
    root = _root() / "cutest"
    return tuple(card for folder, lists in _LISTS.items() for card in _read(root, folder, lists))


def find(name: str) -> Card:
    """The problem of this name.

    **Raises:** `ArgumentError` if there is none.
    """
    for card in cards():
        if card.name == name.upper():
            return card
    raise ArgumentError("problems", f"holds {name!r}, which is not in the collection.")


def load(card: Card) -> Any:
    """The problem itself: a `sif2jax` object with `objective`, `y0`, `args`, and if it has them `bounds`, `constraint`."""
    _stand_in()
    module = importlib.import_module(card.module)
    return getattr(module, card.name)(**dict(card.arguments))


def _root() -> Path:
    spec = importlib.util.find_spec("sif2jax") if "sif2jax" not in sys.modules else None
    if "sif2jax" in sys.modules:
        return Path(next(iter(sys.modules["sif2jax"].__path__)))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("bench", "sif2jax")
    return Path(spec.submodule_search_locations[0])


def _read(root: Path, folder: str, lists: dict[str, str]) -> list[Card]:
    tree = ast.parse((root / folder / "__init__.py").read_text(encoding="utf-8"))
    modules = {
        alias.asname or alias.name: f"sif2jax.cutest.{folder}.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    found = []
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        kind = lists.get(node.targets[0].id)
        if kind is None or not isinstance(node.value, ast.Tuple):
            continue
        for call in node.value.elts:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                arguments = tuple((str(word.arg), ast.literal_eval(word.value)) for word in call.keywords)
                found.append(Card(call.func.id, kind, modules[call.func.id], arguments))
    return found


def _stand_in() -> None:
    """Empty packages in the place of those that would import everything."""
    root = _root()
    for name in ("sif2jax", "sif2jax.cutest", *(f"sif2jax.cutest.{folder}" for folder in _LISTS)):
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
    problem = importlib.import_module("sif2jax._problem")  # of which some files ask the package
    vars(sys.modules["sif2jax"]).update({name: part for name, part in vars(problem).items() if name.startswith("Abstract")})
