"""A user's own Python file that defines `problem`, `method` and `guess`: read, with its settings changed, and run.

Its settings are the top-level names that it assigns, once, a number, a text, a bool, None or a tuple of these. `--set`
replaces the value in the source before anything that depends on it is computed.
"""

import ast
import dataclasses
import sys
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Optional, Union

from optimand.core.errors import ArgumentError, OptimandError, SolveError
from optimand.studies.registry import closest, listed
from optimand.studies.settings import coerce, split

__all__ = ["ProblemFile", "ProblemFileError", "read_problem_file"]

_MODULE = "optimand_problem"


class ProblemFileError(ArgumentError):
    """Code in the user's file raised: says what, and where in the file."""

    def __init__(self, problem: str, hint: str = "", where: str = ""):
        super().__init__("file", problem, hint)
        self.where = where

    def __reduce__(self):
        return type(self), (self.problem, self.hint, self.where)


@dataclasses.dataclass(frozen=True)
class ProblemFile:
    """The names that a file defines, and its settings."""

    path: Path
    names: dict[str, Any]
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """The first line of the file's docstring, or its name."""
        text = (self.names.get("__doc__") or "").strip()
        return text.splitlines()[0].rstrip(".") if text else self.path.stem

    def need(self, name: str) -> Any:
        """The value of a name. **Raises:** `ArgumentError` if the file does not define it."""
        if name not in self.names:
            hint = "It defines `problem`, `method` and `guess`, and may define `budget`, `key`, `report`, `claims`."
            raise ArgumentError("file", f"{self.path} does not define `{name}`.", hint)
        return self.names[name]

    def call(self, what: str, fn: Any, *arguments: Any) -> Any:
        """`fn(*arguments)`, where an exception that comes from the file is told with its line."""
        try:
            return fn(*arguments)
        except SolveError:  # a solve that failed, not code that raised
            raise
        except Exception as error:
            raise explained(error, self.path, what) from error


def read_problem_file(path: Path, assignments: Iterable[str]) -> ProblemFile:
    """Run the file, with its settings changed.

    **Raises:** `ArgumentError` if there is no such file or setting; `ProblemFileError` if the file is not Python or
    raises, with the line.
    """
    if not path.is_file():
        raise ArgumentError("file", f"{path} is not there." if not path.exists() else f"{path} is not a file.")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise ProblemFileError(f"{path}, line {error.lineno}: {error.msg}", where=f"line {error.lineno}") from None
    except (UnicodeDecodeError, ValueError):
        raise ProblemFileError(f"{path} is not text in UTF-8.") from None
    nodes = _settings_in(tree)
    _assign(tree, nodes, split(assignments))
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # dataclasses and pickles look their module up
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python FILE` does: the file may import its neighbours
        sys.path.insert(0, folder)
    try:
        exec(compile(tree, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise explained(error, path, "") from error
    except SystemExit as error:
        raise ProblemFileError(f"{path} ends the process (exit {error.code}).") from None
    return ProblemFile(path, module.__dict__, {name: module.__dict__[name] for name in nodes})


def explained(error: Exception, path: Path, what: str) -> Exception:
    """An error that comes out of the user's code, with its line in the file; other errors as they are."""
    cause: BaseException | None = error
    last = None
    while cause is not None and last is None:  # the core's errors have the user's own as their cause
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == str(path)]
        last, cause = (frames[-1] if frames else None), cause.__cause__
    if last is None:
        return error
    within = f" in {last.name}" if last.name != "<module>" else ""
    where = f"{path}, line {last.lineno}{within}"
    code = f"\n    {last.line}" if last.line else ""
    doing = f" (while {what})" if what else ""
    known = isinstance(error, OptimandError)  # says itself what is wrong
    said = f"is not right: {error}" if known else f"raised {type(error).__name__}: {error}{doing}"
    return ProblemFileError(f"{said}\n  {where}{code}", where=where)


def _settings_in(tree: ast.Module) -> dict[str, ast.Assign | ast.AnnAssign]:
    """The assignments of literals to names that the top level assigns once."""
    counts: dict[str, int] = {}
    found: dict[str, ast.Assign | ast.AnnAssign] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            for name in ast.walk(target) if target is not None else ():
                if isinstance(name, ast.Name):
                    counts[name.id] = counts.get(name.id, 0) + 1
        if isinstance(node, ast.Assign | ast.AnnAssign) and len(targets) == 1 and isinstance(targets[0], ast.Name):
            name = targets[0].id
            if node.value is not None and _is_literal(node.value) and not name.startswith("_"):
                found[name] = node
    return {name: node for name, node in found.items() if counts[name] == 1}


def _is_literal(node: ast.expr) -> bool:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return False
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(part, plain) for part in value))


def _assign(tree: ast.Module, nodes: dict[str, ast.Assign | ast.AnnAssign], pairs: list[tuple[str, str]]) -> None:
    for name, text in pairs:
        if name not in nodes:
            defaults = [f"{known}={ast.unparse(node.value)}" for known, node in nodes.items() if node.value]
            hint = listed("Settings of this file", defaults)
            raise ArgumentError("set", f"{name!r} is not a setting of the file.{closest(name, nodes)}", hint)
        node = nodes[name]
        assert node.value is not None  # a literal, found above
        try:
            value = coerce(text, _type_of(node, ast.literal_eval(node.value)))
        except ValueError as error:
            raise ArgumentError("set", f"{name}: {error}") from None
        text_value = str(value) if isinstance(value, Path) else value
        node.value = ast.copy_location(ast.parse(repr(text_value), mode="eval").body, node.value)
        ast.fix_missing_locations(tree)


def _type_of(node: ast.Assign | ast.AnnAssign, value: Any) -> Any:
    """From the annotation, if there is one that can be read; else from the value."""
    if isinstance(node, ast.AnnAssign):
        known = {"Literal": Literal, "Optional": Optional, "Union": Union, "Path": Path}
        try:
            return eval(compile(ast.Expression(node.annotation), "<annotation>", "eval"), known)
        except Exception:  # a name that only the file knows: the value will do
            pass
    if value is None:
        return int | float | str | None
    if isinstance(value, tuple):
        kinds = {type(part) for part in value}
        return tuple[(kinds.pop() if len(kinds) == 1 else int | float | str), ...]
    return type(value)
