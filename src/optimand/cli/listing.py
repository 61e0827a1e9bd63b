"""`list` and `cite`: methods and studies, read from the source so that nothing has to be imported."""

import ast
import dataclasses
from pathlib import Path

import optimand
from optimand.report.references import reference, references
from optimand.studies.registry import cards, closest, listed

from .show import Out

__all__ = ["methods", "rooms", "show_citation", "show_list"]


@dataclasses.dataclass(frozen=True)
class MethodCard:
    """What is known of a method without importing it."""

    room: str
    name: str
    summary: str
    reference: str
    problem: str


def rooms() -> list[str]:
    """The rooms that hold methods."""
    return sorted({method.room for method in methods()})


def methods() -> list[MethodCard]:
    """The public methods of each room: classes that descend from `Method`, in the room's `__all__`."""
    root = Path(optimand.__file__).parent
    found = []
    for room in optimand.ROOMS:
        if room == "core":
            continue
        classes, public = _classes(root / room)
        for name, node in sorted(classes.items()):
            if name in public and _descends(name, classes):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                key, problem = (_inherited(name, classes, field) for field in ("reference", "problem"))
                found.append(MethodCard(room, name, summary, key.strip("'\""), problem or "Objective"))
    return found


def _classes(folder: Path) -> tuple[dict[str, ast.ClassDef], set[str]]:
    classes: dict[str, ast.ClassDef] = {}
    public: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
            elif path.name == "__init__.py" and isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named = any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)
                if named and isinstance(node.value, ast.List):
                    public |= {str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)}
    return classes, public


def _bases(node: ast.ClassDef) -> list[str]:
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return [ast.unparse(base).rpartition(".")[2] for base in bases]


def _descends(name: str, classes: dict[str, ast.ClassDef]) -> bool:
    return name == "Method" or (name in classes and any(_descends(base, classes) for base in _bases(classes[name])))


def _inherited(name: str, classes: dict[str, ast.ClassDef], field: str) -> str:
    """The source text of a class variable, from the class or the nearest base that sets it."""
    if name not in classes:
        return ""
    for node in classes[name].body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        if names == [field] and value is not None:
            if isinstance(value, ast.Tuple):
                return ", ".join(ast.unparse(item).rpartition(".")[2] for item in value.elts)
            return ast.unparse(value).rpartition(".")[2] if field == "problem" else ast.unparse(value)
    return next((found for base in _bases(classes[name]) if (found := _inherited(base, classes, field))), "")


def show_list(room: str | None, as_json: bool) -> None:
    """`optimand list`."""
    known = [*rooms(), "studies"]
    if room is not None and room not in known:
        from optimand.core.errors import ArgumentError

        raise ArgumentError("room", f"{room!r} is not known.{closest(room, known)}", listed("Rooms", known))
    out = Out(as_json)
    chosen = [method for method in methods() if room in (None, method.room)]
    for name in sorted({method.room for method in chosen}):
        rows = [(m.name, m.problem, _cited(m.reference), m.summary) for m in chosen if m.room == name]
        out.table(f"{name}: methods", ("method", "solves", "source", ""), rows)
    studies = list(cards().values()) if room in (None, "studies") else []
    if studies:
        rows = [(card.slug, ", ".join(map(_cited, card.references)), card.title) for card in studies]
        out.table("studies: optimand run SLUG", ("study", "source", ""), rows)
    out.result(
        {
            "methods": [dataclasses.asdict(method) for method in chosen],
            "studies": [{"slug": c.slug, "title": c.title, "references": c.references} for c in studies],
        }
    )


def _cited(key: str) -> str:
    """ "Blondel et al. (2022)"."""
    if key not in references():
        return key
    return reference(key).short()["text"].partition(").")[0] + ")"


def show_citation(name: str) -> None:
    """`optimand cite`."""
    keys = _keys(name)
    if not keys:
        from optimand.core.errors import ArgumentError

        known = [*references(), *cards(), *(method.name for method in methods())]
        hint = "`optimand list` shows methods and studies, with their sources."
        raise ArgumentError("name", f"{name!r} is no method, study or key with a source.{closest(name, known)}", hint)
    print("\n\n".join(reference(key).bibtex for key in keys))


def _keys(name: str) -> list[str]:
    if name in references():
        return [name]
    if name in cards():
        return [key for key in cards()[name].references if key in references()]
    last = name.rpartition(".")[2].lower()
    return sorted({m.reference for m in methods() if m.name.lower() == last and m.reference in references()})
