"""Two runs side by side."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import record

__all__ = ["compare_runs"]


def compare_runs(first: str | Path, second: str | Path) -> dict[str, Any]:
    """What differs in the settings, versions and machines of two runs; their metrics and claims beside each other.

    **Returns:** "settings", "versions", "machine": name -> (first, second), where they differ; "metrics": rows (name,
    first, second, relative change or None); "claims": one entry a name, with "first" and "second".

    **Raises:** `ArgumentError` if one is not a run, or has not ended.
    """
    from optimand.core.errors import ArgumentError

    a, b = record.read_run(first), record.read_run(second)
    for run in (a, b):
        if run["metrics"] is None:
            raise ArgumentError("run", f"{run['folder']} has not ended: it holds no metrics.json.")
    found: dict[str, Any] = {
        part: _differences(a["settings"].get(part) or {}, b["settings"].get(part) or {})
        for part in ("settings", "versions", "machine")
    }
    heads = [{name: run["settings"].get(name) for name in ("study", "quick", "seeds")} for run in (a, b)]
    found["settings"] = {**_differences(*heads), **found["settings"]}
    numbers = [record.read_numbers(run["metrics"]["metrics"]) for run in (a, b)]
    found["metrics"] = [
        (name, numbers[0].get(name), numbers[1].get(name), _change(numbers[0].get(name), numbers[1].get(name)))
        for name in dict.fromkeys([*numbers[0], *numbers[1]])
    ]
    claims = [{claim["name"]: claim for claim in run["metrics"].get("claims", [])} for run in (a, b)]
    found["claims"] = [
        {
            "name": name,
            "bar": (claims[0].get(name) or claims[1][name])["bar"],
            "first": claims[0].get(name),
            "second": claims[1].get(name),
        }
        for name in dict.fromkeys([*claims[0], *claims[1]])
    ]
    return found


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*a, *b])
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _change(a: float | None, b: float | None) -> float | None:
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)) or a == 0:
        return None
    return (b - a) / abs(a)
