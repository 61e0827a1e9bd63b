"""Runs a study over its seeds into a run folder, or goes on with one that was cut short."""

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimand.report import record

from .base import Claim, Findings, Run
from .registry import Card, load
from .settings import make, restore

__all__ = ["run_study"]


def run_study(
    card: Card,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    assignments: Sequence[str] = (),
    quick: bool = False,
    resume: bool = False,
    nested: bool | None = None,
    verbose: bool = True,
) -> dict[str, Any]:
    """Run `card` for each seed, and write the run folder.

    **Arguments:**

    - `seeds`: by default those the run was begun with, or 0.
    - `folder`: must be empty, unless `resume`; then seeds that ended are read, one that was cut short goes on from its
      checkpoints, and the settings are those the run began with.
    - `assignments`: "name=value" for settings. `quick`: change them first by the study's `QUICK`.
    - `nested`: give each seed its own folder; by default if there are several.

    **Returns:** what is in `metrics.json`.

    **Raises:** `ArgumentError` for whatever the user can have wrong, before anything runs; `KeyboardInterrupt`.
    """
    module = load(card)
    settings = make(module.Settings, assignments, getattr(module, "QUICK", {}) if quick else {})
    folder = record.open_folder(folder, resume=resume)
    about, settings = _begin(card, module, folder, settings, seeds, quick, bool(assignments))
    numbers: list[int] = about["seeds"] if seeds is None else list(seeds)
    if nested is None:
        nested = len(about["seeds"]) > 1 or any(folder.glob("seed-*"))
    metrics: list[dict[str, float]] = []
    try:
        for seed in numbers:
            place = folder / f"seed-{seed}" if nested else folder
            metrics.append(_one_seed(card, module, place, settings, seed, resume, about, verbose))
    except KeyboardInterrupt as error:
        _keep_best(folder, error)
        raise
    if not nested:
        return record.read_json(folder / "metrics.json")
    columns = {name: [found[name] for found in metrics if name in found] for found in metrics for name in found}
    ended = [record.read_json(folder / f"seed-{seed}" / "metrics.json") for seed in numbers]
    found = {
        **_head(card),
        "seeds": numbers,
        "metrics": {name: float(np.mean(column)) for name, column in columns.items()},
        "spread": {name: _spread(column) for name, column in columns.items()},
        "claims": _claims(module, metrics, settings),
        "seconds": sum(float(seed["seconds"]) for seed in ended),
        "date": record.today(),
    }
    return _finish(folder, found)


def _begin(card, module, folder: Path, settings, seeds, quick, assigned):
    """Write settings.json; or read the one of the run that is resumed, and check that it is the same run."""
    from optimand.core.errors import ArgumentError

    path = folder / "settings.json"
    about: dict[str, Any] = {
        **_head(card),
        "references": list(card.references),
        "quick": quick,
        "seeds": [0] if seeds is None else list(seeds),
        "settings": dataclasses.asdict(settings),
        "date": record.today(),
        "versions": record.versions(),
        "machine": record.machine(),
    }
    if path.exists():
        before = record.read_json(path)
        if before.get("study") != card.slug:
            raise ArgumentError("out", f"{folder} holds a run of {before.get('study')!r}, not of {card.slug!r}.")
        old = restore(module.Settings, before["settings"])
        if (assigned or quick) and old != settings:
            changed = [f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(settings, f.name)]
            hint = "Leave --set and --quick out to go on with its settings, or choose another folder."
            raise ArgumentError("resume", f"{folder} was begun with another {', '.join(changed)}.", hint)
        if before["versions"] != about["versions"]:
            changed = [name for name, version in about["versions"].items() if before["versions"].get(name) != version]
            print(f"warning: this run was begun with other versions of {', '.join(changed)}", file=sys.stderr)
        about = {**before, "seeds": sorted({*before["seeds"], *(seeds or ())})}
        settings = old
    record.write_json(path, about)
    return about, settings


def _one_seed(card, module, folder: Path, settings, seed, resume, about, verbose) -> dict[str, float]:
    import jax

    done = folder / "metrics.json"
    if resume and done.exists():
        found = record.read_json(done)
        if found.get("seeds") == [seed]:
            return record.read_numbers(found["metrics"])
    run = Run(folder, name=card.slug, seed=seed, quick=about["quick"], resuming=resume, verbose=verbose)
    record.write_json(folder / "settings.json", {**about, "seeds": [seed]})
    (folder / "best-so-far.npz").unlink(missing_ok=True)
    with _house_style():
        clock = time.perf_counter()
        findings: Findings = module.run(settings, jax.random.key(seed), run)
        if not isinstance(findings, Findings):
            raise TypeError(f"the study {card.slug} returned {type(findings).__name__}, not Findings")
        found = {
            **_head(card),
            "seeds": [seed],
            "metrics": dict(findings.metrics),
            "claims": _claims(module, [dict(findings.metrics)], settings),
            "tables": record.write_tables(folder, findings.tables),
            "figures": record.write_figures(folder, findings.figures),
            "seconds": time.perf_counter() - clock,
            "date": record.today(),
        }
    _finish(folder, found)
    # Each compiled function holds mappings of memory, of which a process may have some ten thousand: drop them.
    jax.clear_caches()
    return dict(findings.metrics)


def _head(card: Card) -> dict[str, Any]:
    return {"format": record.FORMAT, "study": card.slug, "title": card.title}


def _claims(module, metrics, settings) -> list[dict[str, Any]]:
    claims: list[Claim] = module.claims(metrics, settings)
    return [dataclasses.asdict(claim) for claim in claims]


def _spread(numbers: list[float]) -> float:
    """The sample standard deviation; zero for a single seed."""
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0


def _house_style():
    from optimand.report import style

    return style.house_style()


def _finish(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write what was found, and the report of it. The metrics come last: where they are, a run is complete."""
    render: Callable = importlib.import_module("optimand.report.html").write_report
    render(folder, found)
    record.write_json(folder / "metrics.json", found)
    return record.read_json(folder / "metrics.json")


def _keep_best(folder: Path, error: BaseException) -> None:
    """The best value of the solve that was interrupted, if it was one."""
    solution = getattr(error, "solution", None)
    if solution is not None:
        from optimand.report.solved import save_value

        save_value(folder / "best-so-far.npz", solution.value)
