"""`optimand bench cutest`: run, resume, and say what came out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ArgumentError
from ..report import record
from ..studies.base import Claim
from . import profiles
from .catalogue import KINDS, Card, cards, find
from .running import read_table, run_all
from .solvers import defaults, takes

__all__ = ["claims", "page", "run"]

QUICK = ("ROSENBR", "HS110", "HS71")


def run(
    folder: Path,
    *,
    kinds: Sequence[str] = (),
    problems: Sequence[str] = (),
    solvers: Sequence[str] = (),
    most_variables: int = 1000,
    seconds: float = 60.0,
    workers: int = 1,
    quick: bool = False,
    resume: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Fill the table of the folder, and write the page and the figures from it.

    **Arguments:** `kinds`, `problems` and `solvers` choose; all of them, and those meant for each kind, by default.
    `resume` goes on with the table that is there.

    **Returns:** the rows of the table.

    **Raises:** `ArgumentError` for a name that is not known, and for a folder with a table if it is not resumed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ArgumentError("kind", f"{kind!r} is not known.", f"Kinds: {', '.join(KINDS)}.")
    if seconds <= 0:
        raise ArgumentError("seconds", f"must be positive, not {seconds}.")
    listed = [find(name) for name in problems] if problems else cards()
    chosen = list({card.name: card for card in reversed(listed)}.values())[::-1]  # the collection lists a few of its problems twice
    if quick:
        chosen = [card for card in chosen if card.name in QUICK] or chosen[:3]
    chosen = [card for card in chosen if not kinds or card.kind in kinds]
    record.open_folder(folder, resume=resume)
    about = {
        "format": record.FORMAT,
        "title": "CUTEst",
        "date": record.today(),
        "versions": record.versions(),
        "machine": record.machine(),
        "seconds": seconds,
        "workers": workers,
        "most_variables": most_variables,
    }
    record.write_json(folder / "settings.json", about)
    work = [(card, _suiting(card, solvers)) for card in chosen]
    run_all(work, folder, seconds=seconds, workers=workers, most_variables=most_variables, progress=progress)
    rows = read_table(folder)
    write(folder, rows, about)
    return rows


def _suiting(card: Card, solvers: Sequence[str]) -> Sequence[str]:
    """The solvers for a problem: of those chosen, the ones that take problems of its kind."""
    meant = defaults(card.kind)
    return [solver for solver in solvers if solver in meant or takes(solver, card.kind)] if solvers else meant


def claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The bars: what ours solve against what the others do, and no false claims."""
    found = []
    for kind in KINDS:
        counts = profiles.counts(rows, kind)
        best = {library: max((n for name, n in counts.items() if name.startswith(library)), default=0)
                for library in ("smooth.", "scipy.", "optimistix.", "ipopt")}  # fmt: skip
        ours = best["smooth."]
        if not any(solver.startswith("smooth.") for solver in counts):
            continue
        peers = ("scipy.", "optimistix.") if kind != "constrained" else ()
        for peer in peers:
            if best[peer]:
                name = f"{kind}: solved by our best, over {peer.rstrip('.')}'s best"
                found.append(Claim.at_least(name, ours / best[peer], 1.0, note=f"{ours} and {best[peer]}"))
        if kind == "constrained":
            if best["ipopt"]:
                found.append(_share_of_ipopt(rows))
            for peer in ("scipy.SLSQP", "scipy.trust-constr"):
                if counts.get(peer):
                    name = f"{kind}: solved by our best, over {peer}"
                    found.append(Claim.at_least(name, ours / counts[peer], 1.0, note=f"{ours} and {counts[peer]}"))
    share = _share_of_union(rows)
    if share is not None:
        found.append(share)
    false = [row for row in profiles.false_claims(rows) if row["solver"].startswith("smooth.")]
    found.append(Claim.at_most("false claims of convergence by ours", len(false), 0.0))
    return found


def _solved_by(rows: Sequence[Mapping[str, Any]], kind: str, solver: str) -> set[str]:
    of_kind = (row for row in rows if row["kind"] == kind and row.get("solved"))
    return {row["problem"] for row in of_kind if row["solver"] == solver or (solver == "" and row["solver"])}


def _share_of_ipopt(rows: Sequence[Mapping[str, Any]]) -> Claim:
    ours = [solver for solver in profiles.counts(rows, "constrained") if solver.startswith("smooth.")]
    theirs = _solved_by(rows, "constrained", "ipopt")
    shares = {name: len(_solved_by(rows, "constrained", name) & theirs) / len(theirs) for name in ours}
    best = max(shares, key=lambda name: shares[name])
    note = f"{best}, of {len(theirs)} problems"
    return Claim.at_least("constrained: share of what Ipopt solves that our best solves", shares[best], 0.9, note=note)


def _share_of_union(rows: Sequence[Mapping[str, Any]]) -> Claim | None:
    """What the method that `minimize` picks solves, of what any tested method solves, without general constraints."""
    picked = {row["problem"]: f"smooth.{row['default']}" for row in rows if row.get("default")}
    union, ours = 0, 0
    for kind in ("unconstrained", "bounded"):
        for problem in _solved_by(rows, kind, ""):
            if problem in picked:
                union += 1
                ours += problem in _solved_by(rows, kind, picked[problem])
    if not union:
        return None
    name = "unconstrained and bounded: share that the default solves of what any solves"
    return Claim.at_least(name, ours / union, 0.95, note=f"of {union} problems")


def write(folder: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """The page, the figures and the claims of a table, into its folder."""
    judged = [dataclasses.asdict(claim) for claim in claims(rows)]
    record.write_json(folder / "claims.json", {"claims": judged})
    for kind in KINDS:
        for measure in ("seconds", "evaluations"):
            figure = _figure(rows, measure, kind)
            if figure is not None:
                import matplotlib.pyplot as plt

                figure.savefig(folder / f"{kind}-{measure}.svg", bbox_inches="tight")
                plt.close(figure)
    record.write_whole(folder / "cutest.md", page(rows, about, folder))


def _figure(rows: Sequence[Mapping[str, Any]], measure: str, kind: str) -> Any:
    from ..report.figures import curves

    problems, solvers, table = profiles.costs(rows, measure, kind)
    if not problems:
        return None
    ratios = np.logspace(0, 4 if measure == "seconds" else 3, 200)
    shares = profiles.profile(table, ratios)
    order = np.argsort(-shares[:, -1])
    lines = {solvers[i]: (ratios, shares[i]) for i in order}
    title = f"{kind}, {len(problems)} problems"
    return curves(lines, xlabel=f"{measure}, relative to the least", ylabel="share of problems", title=title, log="x")


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], folder: Path) -> str:
    """The page of results, as Markdown, with the figures of the folder."""
    machine = about.get("machine") or {}
    processor = machine.get("processor", "") if isinstance(machine, Mapping) else str(machine)
    lines = [
        "# CUTEst\n",
        "Written by `optimand bench cutest` from its table: nothing in it is typed in. Every point that a solver returned was",
        "judged apart from the solver, in double precision, by the relative residual of its KKT conditions with the multipliers",
        "that fit best (at most 1e-5; solvers were asked for 1e-6). Times leave compilation out; all solvers were given exact",
        "derivatives, a JAX objective, and the same limits of iterations and seconds. They are those of one run right after",
        "compilation: of a solve of a millisecond most is its start.\n",
        f"{about.get('date', '')}; {processor}; limit {about.get('seconds')} s for a solver and problem, compilation included;",
        f"at most {about.get('most_variables')} variables; {about.get('workers')} at a time (in the last sitting, if there were several).\n",
    ]
    left_out = [row for row in rows if row["solver"] == "left out"]
    if left_out:
        lines.append(f"{len(left_out)} problems are larger, and left out.\n")
    lines += ["| claim | measured | bar | |", "| --- | ---: | ---: | --- |"]
    for claim in claims(rows):
        verdict = "holds" if claim.holds else "**does not hold**"
        bar = claim.bar.replace("<=", "≤").replace(">=", "≥")
        lines.append(f"| {claim.name}{f' ({claim.note})' if claim.note else ''} | {claim.measured:.4g} | {bar} | {verdict} |")
    lines.append("")
    false = profiles.false_claims(rows)
    for kind in KINDS:
        counts = profiles.counts(rows, kind)
        if not counts:
            continue
        of_kind = {row["problem"] for row in rows if row["kind"] == kind and row["solver"] != "left out"}
        lines += [f"## {kind.capitalize()}\n", "| solver | tried | solved | false claims | median seconds |"]
        lines.append("| --- | ---: | ---: | ---: | ---: |")
        for solver, count in sorted(counts.items(), key=lambda pair: -pair[1]):
            own = [row for row in rows if row["kind"] == kind and row["solver"] == solver]
            wrong = sum(row["solver"] == solver and row["kind"] == kind for row in false)
            spent = [row["seconds"] for row in own if row.get("solved") and row.get("seconds") is not None]
            middle = f"{np.median(spent):.2g}" if spent else ""
            lines.append(f"| `{solver}` | {len(own)} | {count} | {wrong} | {middle} |")
        lines.append(f"\n{len(of_kind)} problems.\n")
        for measure in ("seconds", "evaluations"):
            if (folder / f"{kind}-{measure}.svg").exists():
                lines.append(f"![Performance profile of {measure}]({kind}-{measure}.svg)\n")
    lines += _failures_of_the_default(rows)
    lines += _failures(rows)
    return "\n".join(lines) + "\n"


def _failures_of_the_default(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the method that `minimize` picks does not solve though another does."""
    solved: dict[str, list[str]] = {}
    for row in rows:
        if row.get("solved"):
            solved.setdefault(row["problem"], []).append(row["solver"])
    picked = [row for row in rows if row["solver"] == f"smooth.{row.get('default')}" and not row.get("solved")]
    missed = sorted((row for row in picked if row["problem"] in solved), key=lambda row: row["problem"])
    if not missed:
        return []
    lines = ["## Problems that the default does not solve though others do\n", "| problem | default | how it ended | solved by |"]
    lines.append("| --- | --- | --- | --- |")
    for row in missed:
        by = ", ".join(f"`{solver}`" for solver in solved[row["problem"]])
        lines.append(f"| {row['problem']} | `{row['solver']}` | {profiles.reason(row).replace('|', '/')} | {by} |")
    return [*lines, ""]


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = {row["solver"] for row in rows if row["solver"].startswith("smooth.")}
    failed = profiles.unsolved(rows, ours)
    if not failed:
        return []
    others: dict[str, list[str]] = {}
    for row in rows:
        if row.get("solved") and row["solver"] not in ours:
            others.setdefault(row["problem"], []).append(row["solver"])
    lines = ["## Problems that none of ours solves\n", "| problem | how ours ended | solved by |", "| --- | --- | --- |"]
    for problem in sorted(failed):
        ended = "; ".join(f"{solver.removeprefix('smooth.')}: {reason}" for solver, reason in failed[problem].items())
        lines.append(f"| {problem} | {ended.replace('|', '/')} | {', '.join(others.get(problem, [])) or 'nobody'} |")
    return [*lines, ""]

