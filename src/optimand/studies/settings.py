"""Settings: a frozen dataclass whose fields can be set as text, `--set name=value`.

Types: `int`, `float`, `bool`, `str`, `Path`, `None`, `Literal[...]`, tuples of these, and unions. A field's metadata may
hold `help`, and bounds `least` and `most` for its number (or each of its numbers).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from .registry import closest

__all__ = ["coerce", "make", "restore"]


def make(cls: type, assignments: Iterable[str], base: Mapping[str, Any] | None = None) -> Any:
    """An instance of `cls`: its defaults, changed by `base` (values), changed by `assignments` ("name=value").

    **Raises:** `ArgumentError` that names the setting, and lists the settings or values there are.
    """
    from optimand.core.errors import ArgumentError

    types_, fields = typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}
    values = {name: _checked(fields, types_, name, value) for name, value in (base or {}).items()}
    for name, text in split(assignments):
        values[name] = _checked(fields, types_, name, text)
    try:
        return cls(**values)
    except ArgumentError:
        raise
    except (TypeError, ValueError) as error:  # the study's own `__post_init__`
        raise ArgumentError(
            "set", f"makes settings that {cls.__module__.rpartition('.')[2]} refuses: {error}"
        ) from None


def split(assignments: Iterable[str]) -> list[tuple[str, str]]:
    """ "name=value" texts as pairs; a name may stand in them once."""
    from optimand.core.errors import ArgumentError

    pairs: dict[str, str] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ArgumentError("set", f"{text!r} is not of the form name=value.")
        if name in pairs:
            raise ArgumentError("set", f"gives {name!r} twice.")
        pairs[name] = value.strip()
    return list(pairs.items())


def _checked(fields, types_, name: str, value: Any) -> Any:
    from optimand.core.errors import ArgumentError

    if name not in fields:
        raise ArgumentError("set", f"{name!r} is not a setting.{closest(name, fields)}", _list(fields))
    try:
        value = coerce(value, types_[name])
        _within(value, fields[name].metadata)
    except ValueError as error:
        about = fields[name].metadata.get("help")
        raise ArgumentError("set", f"{name}: {error}" + (f" ({about})" if about else "")) from None
    return value


def _list(fields) -> str:
    if not fields:
        return "There are no settings."
    return "Settings: " + ", ".join(f"{name}={_text(field.default)}" for name, field in fields.items()) + "."


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, tuple) else str(value)


def _within(value: Any, metadata: Mapping[str, Any]) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if "least" in metadata and number < metadata["least"]:
                raise ValueError(f"must be at least {metadata['least']}, not {number}.")
            if "most" in metadata and number > metadata["most"]:
                raise ValueError(f"must be at most {metadata['most']}, not {number}.")


def restore(cls: type, values: Mapping[str, Any]) -> Any:
    """Settings from what `settings.json` holds."""
    return make(cls, (), values)


def coerce(value: Any, kind: Any) -> Any:
    """`value`, text or already of a Python type, as the type `kind`. **Raises:** `ValueError`, saying what is wanted."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, typing.get_args(kind))
    if origin is Literal:
        for option in typing.get_args(kind):
            if value == option or (isinstance(value, str) and value == str(option)):
                return option
        options = [str(option) for option in typing.get_args(kind)]
        near = closest(value, options) if isinstance(value, str) else ""
        raise ValueError(f"must be one of {', '.join(options)}, not {value!r}.{near}")
    if kind is tuple or origin is tuple:
        return _tuple(value, typing.get_args(kind) or (Any, ...))
    reader = {bool: _bool, int: _int, float: _float, str: _str, Path: Path, types.NoneType: _none, Any: _any}.get(kind)
    if reader is None:
        raise ValueError(f"has a type that cannot be set as text: {kind}.")
    return reader(value)


def _one_of(value, kinds):
    kinds = sorted(kinds, key=lambda kind: kind is str)  # anything is a str: that comes last
    reasons = []
    for kind in [types.NoneType] * (types.NoneType in kinds) + [k for k in kinds if k is not types.NoneType]:
        try:
            return coerce(value, kind)
        except ValueError as error:
            reasons.append(str(error).rstrip("."))
    raise ValueError("; ".join(reasons) + ".")


def _tuple(value, kinds):
    parts = _parts(value) if isinstance(value, str) else list(value)
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(parts)
    if len(parts) != len(kinds):
        raise ValueError(f"must be {len(kinds)} values with commas between, not {value!r}.")
    return tuple(coerce(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _parts(text: str) -> list[str]:
    """The parts of "1,2", "(1, 2)" or "(1,2),(3,4)"; commas inside brackets do not part."""
    text = text.strip()
    if text[:1] in "([" and _closes(text) == len(text) - 1:
        text = text[1:-1]
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    return parts[:-1] if parts[-1] == "" else parts


def _closes(text: str) -> int:
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0:
            return place
    return -1


def _bool(value):
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in known):
        return value if isinstance(value, bool) else known[value.lower()]
    raise ValueError(f"must be true or false, not {value!r}.")


def _int(value):
    try:
        number = value if isinstance(value, int) else float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a whole number, not {value!r}.") from None
    return int(value) if isinstance(value, str) and value.lstrip("+-").replace("_", "").isdigit() else int(number)


def _float(value):
    try:
        number = float(value)
        if isinstance(value, bool) or math.isnan(number):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"must be a number, not {value!r}.") from None
    return number


def _str(value):
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}.")
    return value


def _none(value):
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "")):
        return None
    raise ValueError(f"may be none, not {value!r}.")


def _any(value):
    return value
