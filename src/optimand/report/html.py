"""`report.html`: one file with everything in it, readable on a telephone and at a desk, in light and in dark."""

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import record
from .text import bar_text, holds_text, number_text

__all__ = ["write_report"]

_SVG_UP_TO = 400_000  # bytes; a larger drawing is shown as PNG
_FIGURES_OF_SEEDS = 3  # seeds whose figures a report over many seeds shows


def write_report(folder: str | Path, found: Mapping[str, Any] | None, *, status: str = "") -> Path:
    """Write `folder/report.html` from the files of a run folder.

    **Arguments:** `found` is what `metrics.json` holds, or will hold; None for a run that has not ended. `status` is a
    sentence to stand at the top, as "interrupted after 12 steps".
    """
    folder = Path(folder)
    page = _environment().get_template("report.html.jinja").render(**_content(folder, found, status))
    path = folder / "report.html"
    record.write_whole(path, page)
    return path


def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optimand.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number_text, bar=bar_text, holds=holds_text)
    return environment


def _content(folder: Path, found: Mapping[str, Any] | None, status: str) -> dict[str, Any]:
    about = record.read_json(folder / "settings.json")
    found = found or {"metrics": {}, "claims": [], "seeds": about.get("seeds", [])}
    seeds = [seed for seed in found.get("seeds", []) if (folder / f"seed-{seed}" / "metrics.json").exists()]
    parts = [_part(folder, found, "")] if not seeds else []
    for seed in seeds[:_FIGURES_OF_SEEDS]:
        place = folder / f"seed-{seed}"
        parts.append(_part(place, record.read_json(place / "metrics.json"), f"Seed {seed}"))
    claims = record.strict(found.get("claims", []))
    return {
        "title": about.get("title", "A run"),
        "study": about.get("study", ""),
        "references": [_cited(key) for key in about.get("references", [])],
        "status": status or found.get("status", ""),
        "claims": claims,
        "held": sum(bool(claim["holds"]) for claim in claims),
        "metrics": record.strict(found.get("metrics", {})),
        "spread": record.strict(found.get("spread", {})),
        "seeds": found.get("seeds", []),
        "parts": [part for part in parts if part["tables"] or part["figures"]],
        "settings": about.get("settings", {}),
        "versions": about.get("versions", {}),
        "machine": _machine_lines(about.get("machine", {})),
        "quick": about.get("quick", False),
        "date": found.get("date", about.get("date", "")),
        "seconds": found.get("seconds"),
    }


def _cited(key: str) -> dict[str, str]:
    from .references import reference

    try:
        return reference(key).short()
    except KeyError:
        return {"text": key, "url": ""}


def _machine_lines(machine: Mapping[str, Any]) -> dict[str, str]:
    lines = dict(machine)
    devices = lines.pop("devices", {})
    lines["devices"] = ", ".join(f"{count} x {kind}" for kind, count in devices.items())
    if "memory_gib" in lines:
        lines["memory"] = f"{lines.pop('memory_gib')} GiB"
    return {name: str(value) for name, value in lines.items() if value != ""}


def _part(folder: Path, found: Mapping[str, Any], heading: str) -> dict[str, Any]:
    """The tables and figures of one seed."""
    figures = [_figure(folder, entry) for entry in found.get("figures", [])]
    if not figures:
        drawn = _drawn_history(folder)
        figures = [drawn] if drawn else []
    return {"heading": heading, "tables": [_table(folder, t) for t in found.get("tables", [])], "figures": figures}


def _table(folder: Path, entry: Mapping[str, str]) -> dict[str, Any]:
    with open(folder / entry["file"], newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file))
    typed = [[_typed(cell) for cell in row] for row in rows]
    numeric = [all(not isinstance(row[i], str) or row[i] == "" for row in typed) for i in range(len(columns))]
    return {
        "title": entry["title"],
        "note": entry.get("note", ""),
        "columns": columns,
        "rows": typed,
        "numeric": numeric,
    }


def _typed(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _figure(folder: Path, entry: Mapping[str, str]) -> dict[str, str]:
    svg, png = (folder / f"{entry['file']}.{kind}" for kind in ("svg", "png"))
    path, kind = (svg, "svg+xml") if svg.stat().st_size <= _SVG_UP_TO else (png, "png")
    data = base64.b64encode(path.read_bytes()).decode()
    width = 96 * float(entry["inches"])  # at which it is drawn; below `least` its text would be too small to read
    shown = {"width": str(round(width)), "least": str(round(0.58 * width))}
    return {"caption": entry["caption"], "source": f"data:image/{kind};base64,{data}", **shown}


def _drawn_history(folder: Path) -> dict[str, str] | None:
    """Where a run has no figure of its own: its history."""
    path = folder / "history.jsonl"
    if not path.exists():
        return None
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the half-written last line of a killed run
            continue
    from .figures import histories

    figure = histories(rows)
    if figure is None:
        return None
    entry = record.write_figures(folder, {"History": figure})[0]
    return _figure(folder, {**entry, "caption": "What the method reported after each step"})
