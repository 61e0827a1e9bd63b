"""The page of results, `docs/results.md`: every claim of the runs it is given, and the tables of the benchmarks.

    optimand verify --out runs/verify
    optimand report runs/verify --markdown docs/results.md

A benchmark is a JSON file with `name`, `date`, `machine`, `versions`, `rows` (a list of objects) and `claims` (`name`,
`measured`, `bar`, `holds`), and if it likes `title` and `note`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import record
from .text import bar_text, holds_text, number_text

__all__ = ["results_page"]

_HEAD = """# Results

Every figure on this page was measured by a command that stands beside it, and the page itself is written from the files
that command left: nothing in it is typed in. Bars come from the literature or from the plan of the study, never from what
was measured; a claim that does not hold says so.
"""


def results_page(runs: Sequence[str | Path], benchmarks: str | Path | None = None, before: str = "") -> str:
    """The page, as Markdown.

    **Arguments:** `runs` are run folders, or folders of them as `verify` writes. `benchmarks` is a folder of JSON files;
    one that does not exist is left out. `before` is the page as it was: studies of it that are not run again stay.

    **Raises:** `ArgumentError` if a run is none, or a file is damaged.
    """
    studies = {run["settings"]["title"]: _study(run) for folder in runs for run in _studies_in(Path(folder))}
    studies = _studies_of(before) | studies
    parts = [_HEAD]
    if studies:
        parts += ["## Studies\n", *studies.values()]
    folder = Path(benchmarks) if benchmarks is not None else None
    files = sorted(folder.glob("*.json")) if folder is not None and folder.is_dir() else []
    if files:
        parts.append("## Speed\n")
        parts += [_benchmark(record.read_json(path), path) for path in files]
    return "\n".join(parts).rstrip() + "\n"


def _studies_of(page: str) -> dict[str, str]:
    """The studies of a page by their titles."""
    _, _, rest = page.partition("\n## Studies\n")
    sections = rest.partition("\n## ")[0].split("\n### ")[1:]
    return {section.partition("\n")[0].strip(): f"### {section.rstrip()}\n" for section in sections}


def _studies_in(folder: Path) -> list[dict[str, Any]]:
    """The run in this folder, or the ended runs in the folders of `verify`."""
    from optimand.core.errors import ArgumentError

    run = record.read_run(folder)
    if "study" in run["settings"]:
        if run["metrics"] is None:
            raise ArgumentError("run", f"{folder} has not ended: it holds no metrics.json.")
        return [run]
    inner = [record.read_run(path.parent) for path in sorted(folder.glob("*/settings.json"))]
    return [run for run in inner if run["metrics"] is not None]


def _study(run: Mapping[str, Any]) -> str:
    about, found = run["settings"], run["metrics"]
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [f"### {about['title']}\n", *_sources(about)]
    size = " --quick" if about.get("quick") else ""
    plural = "seeds" if len(found["seeds"]) > 1 else "seed"
    lines.append(f"`optimand verify {about['study']}{size}`, {plural} {seeds}, {_conditions(about, found)}.\n")
    if about.get("quick"):
        lines.append("At the small size of `--quick`: the bars are meant for the full size.\n")
    lines.append(_claims(found["claims"]))
    if found["metrics"]:
        spread = found.get("spread") or {}
        rows = [
            (f"`{name}`", number_text(_number(value)), number_text(_number(spread[name])) if name in spread else "")
            for name, value in found["metrics"].items()
        ]
        title = "Metrics: mean and standard deviation over seeds" if spread else "Metrics"
        lines.append(f'??? note "{title}"\n')
        lines.append(_indented(_table(("metric", "mean" if spread else "", "spread" if spread else ""), rows, (1, 2))))
    return "\n".join(lines)


def _sources(about: Mapping[str, Any]) -> list[str]:
    from .references import references

    lines = []
    for key in about.get("references", []):
        if key in references():
            short = references()[key].short()
            lines.append(f"{short['text']}" + (f" <{short['url']}>" if short["url"] else "") + "\n")
    return lines


def _conditions(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    machine = about.get("machine") or {}
    if isinstance(machine, str):
        where = [machine]
    else:
        where = [str(machine.get(part)) for part in ("processor", "system") if machine.get(part)]
        where += [f"{machine['cpus']} CPUs"] if "cpus" in machine else []
    versions = about.get("versions") or {}
    wanted = [f"{name} {versions[name]}" for name in ("python", "optimand", "jax") if name in versions]
    seconds = [f"{float(found['seconds']):.0f} s"] if "seconds" in found else []
    return "; ".join([str(found.get("date", about.get("date", ""))), *where, ", ".join(wanted), *seconds])


def _benchmark(content: Mapping[str, Any], path: Path) -> str:
    name = content.get("name", path.stem)
    lines = [f"### {content.get('title', name)}\n"]
    if content.get("note"):
        lines.append(f"{content['note']}\n")
    script = f"`benchmarks/{path.stem}.py`"
    versions = content.get("versions") or {}
    listed = ", ".join(f"{part} {version}" for part, version in versions.items())
    lines.append(f"{script}, {_conditions({**content, 'versions': {}}, content)}; {listed}.\n".replace("; ;", ";"))
    rows = content.get("rows") or []
    if rows:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[number_text(_number(row.get(column))) for column in columns] for row in rows]
        numeric = [i for i, column in enumerate(columns) if all(not isinstance(row.get(column), str) for row in rows)]
        lines.append(_table(columns, cells, numeric))
    lines.append(_claims(content.get("claims") or []))
    return "\n".join(lines)


def _claims(claims: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for claim in claims:
        verdict = holds_text(claim["holds"])
        name = claim["name"] + (f" ({claim['note']})" if claim.get("note") else "")
        measured = number_text(_number(claim["measured"]))
        rows.append(
            (
                name,
                measured,
                bar_text(claim["bar"]),
                claim.get("paper") or "",
                verdict if claim["holds"] else f"**{verdict}**",
            )
        )
    return _table(("claim", "measured", "bar", "paper", ""), rows, (1, 2)) if rows else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    escape = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    rule = ["---:" if number in right else "---" for number in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines) + "\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.split("\n"))


def _number(value: Any) -> Any:
    try:
        return float(value) if not isinstance(value, bool) else value
    except (TypeError, ValueError):
        return value
