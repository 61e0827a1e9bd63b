"""`solve FILE`: a user's own problem, with everything that a study gets: progress, a run folder, resume, a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimand.report import html, record, style
from optimand.report.solved import save_value

from .guard import say
from .problem_file import ProblemFile, read_problem_file
from .show import Out

__all__ = ["solve_file"]


def solve_file(
    path: Path,
    assignments: Sequence[str],
    seed: int,
    folder: Path | None,
    resume: bool,
    save_every: float,
    verbose: bool,
    as_json: bool,
) -> int:
    """`optimand solve`: 0 if it ended with an answer and every claim holds, else 1; 130 if it was interrupted."""
    from optimand.core import Result
    from optimand.core.errors import ArgumentError, SolveError

    if resume and folder is None:
        raise ArgumentError("resume", "needs --out: the folder to go on in.")
    file = read_problem_file(path, assignments)
    for name in ("problem", "method"):
        file.need(name)
    checkpoint = None
    if folder is not None:
        folder = record.open_folder(folder, resume=resume)
        _begin(folder, file, seed)
        checkpoint = folder / "checkpoints" / "solve.ckpt"
    out = Out(as_json)
    failure = ""
    try:
        solution = _solve(file, seed, folder, checkpoint, save_every, verbose)
    except SolveError as error:  # with the best finite value so far
        solution, failure = error.solution, str(error)
    interrupted = bool(solution.result == Result.interrupted)
    found = _found(file, solution, failure)
    _write(folder, solution, found)  # what cost time is safe before the user's own code sees it
    if solution.result.usable:
        _report(file, solution, folder, found, out)
        _write(folder, None, found)
    out.line(f"{file.title}: {solution}")
    _show_value(solution.value, out)
    out.metrics(found["metrics"])
    out.claims(found["claims"])
    if folder is not None:
        out.line(f"report: {folder / 'report.html'}")
    if failure:
        again = (
            f"; go on with: optimand solve {path} --out {folder} --resume"
            if folder
            else " (nothing was saved: no --out)"
        )
        say(f"{'interrupted' if interrupted else 'error: ' + failure}{again if interrupted else ''}")
    out.result(found)
    if interrupted:
        return 130
    return 0 if not failure and all(claim["holds"] for claim in found["claims"]) else 1


def _begin(folder: Path, file: ProblemFile, seed: int) -> None:
    from optimand.core.errors import ArgumentError

    path = folder / "settings.json"
    settings = record.strict(file.settings)
    about: dict[str, Any] = {
        "format": record.FORMAT,
        "file": file.path.name,
        "title": file.title,
        "seeds": [seed],
        "settings": settings,
        "date": record.today(),
        "versions": record.versions(),
        "machine": record.machine(),
    }
    if path.exists():
        before = record.read_json(path)
        if before.get("file") != file.path.name:
            held = before.get("file") or before.get("study") or "something else"
            raise ArgumentError("out", f"{folder} holds a run of {held}, not of {file.path.name}.")
    record.write_json(path, about)
    (folder / "checkpoints").mkdir(exist_ok=True)


def _solve(
    file: ProblemFile, seed: int, folder: Path | None, checkpoint: Path | None, save_every: float, verbose: bool
) -> Any:
    import jax

    import optimand as om

    names = file.names
    callbacks: list[Any] = [om.core.Progress(file.path.stem)] if verbose else []
    if folder is not None and checkpoint is not None:
        callbacks += [om.core.History(folder / "history.jsonl"), om.core.Checkpoint(checkpoint, seconds=save_every)]
    going_on = checkpoint if checkpoint is not None and checkpoint.exists() else None
    return file.call(
        "solving",
        lambda: om.core.solve(
            names["problem"],
            names["method"],
            names.get("guess"),
            key=names.get("key", jax.random.key(seed)),
            budget=names.get("budget"),
            callbacks=callbacks,
            resume=going_on,
        ),
    )


def _found(file: ProblemFile, solution: Any, failure: str) -> dict[str, Any]:
    last = {name: float(np.ravel(column)[-1]) for name, column in solution.history.items() if np.size(column)}
    metrics = {"steps": int(solution.steps), **{n: x for n, x in last.items() if n != "step"}}
    metrics |= {name: count for name, count in solution.counters.asdict().items()}
    metrics |= {name: solution.stats[name] for name in ("seconds", "compile_seconds") if name in solution.stats}
    return {
        "format": record.FORMAT,
        "file": file.path.name,
        "title": file.title,
        "result": str(solution.result),
        "status": failure,
        "metrics": metrics,
        "claims": [],
        "tables": [],
        "figures": [],
        "date": record.today(),
        "seconds": solution.stats.get("seconds", 0.0),
    }


def _report(file: ProblemFile, solution: Any, folder: Path | None, found: dict[str, Any], out: Out) -> None:
    """What the file's own `report(solution)` and `claims(metrics)` say."""
    import dataclasses

    from optimand.core.errors import ArgumentError
    from optimand.studies.base import Findings

    if "report" in file.names:
        with style.house_style():
            said = file.call("in its report", file.names["report"], solution)
            if isinstance(said, dict):
                said = file.call("in its report", Findings, said)
            if said is not None and not isinstance(said, Findings):
                raise ArgumentError("file", f"`report` returns {type(said).__name__}.", "Numbers by name, or Findings.")
            if said is not None:
                found["metrics"] |= dict(said.metrics)
                for table in said.tables:
                    out.table(table.title, table.columns, table.rows)
                if folder is not None:
                    found["tables"] = record.write_tables(folder, said.tables)
                    found["figures"] = record.write_figures(folder, said.figures)
    if "claims" in file.names:
        claims = file.call("in its claims", file.names["claims"], found["metrics"])
        found["claims"] = [dataclasses.asdict(claim) for claim in claims]


def _write(folder: Path | None, solution: Any, found: dict[str, Any]) -> None:
    if folder is None:
        return
    if solution is not None:
        save_value(folder / "solution.npz", solution.value)
    html.write_report(folder, found)
    record.write_json(folder / "metrics.json", found)


def _show_value(value: Any, out: Out) -> None:
    """A small solution in full; a large one by its shapes."""
    import equinox as eqx
    import jax.tree_util as jtu

    leaves = jtu.tree_leaves_with_path(eqx.filter(value, eqx.is_inexact_array))
    if sum(leaf.size for _, leaf in leaves) > 200:
        out.line(f"value: {eqx.tree_pformat(value)}"[:2000])
        return
    for where, leaf in leaves:
        out.line(f"value{jtu.keystr(where)} = {np.array2string(np.asarray(leaf), precision=6, suppress_small=False)}")
