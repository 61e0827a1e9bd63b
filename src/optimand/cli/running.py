"""`run`, `verify`, `report` and `compare`."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimand.report import record

from .guard import say
from .show import Out

__all__ = ["compare_two", "run_one", "verify_all", "write_reports"]


def run_one(
    study: str,
    seeds: Sequence[int] | None,
    assignments: Sequence[str],
    quick: bool,
    folder: Path | None,
    resume: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """`optimand run`: 0 if it ended and every claim holds, else 1."""
    from optimand.core.errors import ArgumentError
    from optimand.studies import find, run_study

    if seeds is not None and len(set(seeds)) < len(seeds):
        raise ArgumentError("seed", "is given twice.")
    card = find(study)
    folder = folder or record.next_folder("runs", card.slug, resume=resume)
    out = Out(as_json)
    try:
        found = run_study(
            card, folder, seeds=seeds, assignments=assignments, quick=quick, resume=resume, verbose=verbose
        )
    except KeyboardInterrupt:
        _say_resumable(folder, f"optimand run {study} --out {folder} --resume")
        return 130
    out.metrics(found["metrics"], found.get("spread"))
    out.claims(found["claims"], card.title)
    out.line(f"report: {folder / 'report.html'}")
    out.result(found)
    return 0 if all(claim["holds"] for claim in found["claims"]) else 1


def _say_resumable(folder: Path, command: str) -> None:
    from optimand.report import html

    if (folder / "settings.json").exists():
        html.write_report(folder, None, status="Interrupted before it ended: what is here is what there was by then.")
    best = " (the best value so far is in best-so-far.npz)" if (folder / "best-so-far.npz").exists() else ""
    say(f"interrupted{best}; go on with: {command}")


def verify_all(
    names: Sequence[str], seeds: int, quick: bool, folder: Path | None, resume: bool, verbose: bool, as_json: bool
) -> int:
    """`optimand verify`: 0 if every study ended and every claim holds, else 1."""
    from optimand.report import html
    from optimand.studies import cards, find, run_study

    chosen = [find(name) for name in names] or list(cards().values())
    folder = record.open_folder(folder or record.next_folder("runs", "verify", resume=resume), resume=resume)
    about = {
        "format": record.FORMAT,
        "title": "Verification",
        "quick": quick,
        "seeds": list(range(seeds)),
        "date": record.today(),
        "versions": record.versions(),
        "machine": record.machine(),
    }
    record.write_json(folder / "settings.json", about)
    out = Out(as_json)
    claims: list[dict[str, Any]] = []
    failed: list[str] = []
    for card in chosen:
        try:
            found = run_study(
                card,
                folder / card.slug,
                seeds=range(seeds),
                quick=quick,
                resume=resume,
                nested=True,
                verbose=verbose,
            )
        except KeyboardInterrupt:
            _say_resumable(folder / card.slug, f"optimand verify ... --out {folder} --resume")
            return 130
        except Exception as error:  # one study that fails does not hide the others
            failed.append(card.slug)
            say("".join(traceback.format_exception(error)))
            out.line(f"{card.slug}: did not end: {type(error).__name__}: {error}")
            continue
        claims += [{**claim, "study": card.slug} for claim in found["claims"]]
        size = ", --quick (bars are meant for the full size)" if quick else ""
        out.claims(found["claims"], f"{card.slug}: {card.title}, seeds 0 to {seeds - 1}{size}")
        out.line(f"report: {folder / card.slug / 'report.html'}")
        out.line()
    held = sum(claim["holds"] for claim in claims)
    found = {
        "format": record.FORMAT,
        "seeds": list(range(seeds)),
        "metrics": {"claims": len(claims), "hold": held, "studies that failed": len(failed)},
        "claims": [{**claim, "name": f"{claim['study']}: {claim['name']}"} for claim in claims],
        "failed": failed,
        "date": record.today(),
    }
    html.write_report(folder, found)
    record.write_json(folder / "metrics.json", found)
    out.line(f"{held} of {len(claims)} claims hold" + (f"; did not end: {', '.join(failed)}" if failed else ""))
    out.result(found)
    return 0 if held == len(claims) and not failed else 1


def write_reports(runs: Sequence[Path], markdown: Path | None, benchmarks: Path) -> None:
    """`optimand report`."""
    from optimand.core.errors import ArgumentError
    from optimand.report import html
    from optimand.report import markdown as pages

    if markdown is not None:
        before = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        page = pages.results_page(runs, benchmarks, before)
        markdown.parent.mkdir(parents=True, exist_ok=True)
        record.write_whole(markdown, page)
        print(markdown)
        return
    if not runs:
        raise ArgumentError("RUN", "is missing: the folder of a run.", "Only a page of results (--markdown) can do without.")
    for folder in runs:
        run = record.read_run(folder)
        status = "" if run["metrics"] else "This run has not ended."
        print(html.write_report(folder, run["metrics"], status=status))


def compare_two(first: Path, second: Path, as_json: bool) -> None:
    """`optimand compare`."""
    from optimand.report.compare import compare_runs

    found = compare_runs(first, second)
    out = Out(as_json)
    names = ("", str(first), str(second))
    for part in ("settings", "versions", "machine"):
        if found[part]:
            rows = [(name, _plain(a), _plain(b)) for name, (a, b) in found[part].items()]
            out.table(f"{part} that differ", names, rows)
    rows = [(name, a, b, "" if change is None else f"{100 * change:+.2f} %") for name, a, b, change in found["metrics"]]
    out.table("metrics", (*names, "change"), rows, right=(1, 2, 3))
    if found["claims"]:
        out.table(
            "claims", ("claim", "bar", str(first), "", str(second), ""), _claim_rows(found["claims"]), right=(2, 4)
        )
    out.result(found)


def _claim_rows(claims):
    from optimand.report.text import bar_text, holds_text

    for claim in claims:
        cells = [
            cell
            for side in (claim["first"], claim["second"])
            for cell in ((side["measured"], holds_text(side["holds"])) if side else ("", ""))
        ]
        yield (claim["name"], bar_text(claim["bar"]), *cells)


def _plain(value: Any) -> str:
    return "" if value is None else str(value)
