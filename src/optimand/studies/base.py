"""What a study is made of: it gets a `Run` to work in and returns `Findings`; `Claim`s are made from all seeds.

A study is one module, or one package, with

```text
SLUG = "implicit-diff"                        # its name on the command line
TITLE = "Implicit differentiation"            # one line
REFERENCE = "blondel2022efficient"            # a key of references.bib, or a tuple of keys

@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = dataclasses.field(default=300, metadata={"help": "gradient steps"})

QUICK = {"steps": 20}                         # what --quick changes, so that the run soon ends

def run(settings: Settings, key, out: Run) -> Findings: ...                    # one seed
def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]: ...   # metrics of each seed -> claims
```

A study holds no method: it states problems, calls `solve`, and measures. Nothing here imports JAX.
"""

import dataclasses
import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimand.report.record import slugify, write_whole

__all__ = ["Claim", "Findings", "Run", "Table"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something a study says, with the figure measured for it and the bar it is held to.

    Make one with `at_most`, `at_least` or `between`; a figure that is not finite never holds.

    - `name`: the statement, short: "DS: error of MoE / error of PI-HC".
    - `measured`: the figure. `bar`: what it is held to, as text. `holds`: whether it does.
    - `paper`: what the paper reports for it, as text, if it does.
    - `note`: conditions a reader needs (sizes, number of seeds, equal steps, ...).
    """

    name: str
    measured: float
    bar: str
    holds: bool
    paper: str | None = None
    note: str = ""

    @staticmethod
    def at_most(name: str, measured: Any, bar: float, paper: str | None = None, note: str = "") -> "Claim":
        """measured <= bar."""
        measured = float(measured)
        holds = math.isfinite(measured) and measured <= bar
        return Claim(name, measured, f"<= {bar:.6g}", holds, paper, note)

    @staticmethod
    def at_least(name: str, measured: Any, bar: float, paper: str | None = None, note: str = "") -> "Claim":
        """measured >= bar."""
        measured = float(measured)
        holds = math.isfinite(measured) and measured >= bar
        return Claim(name, measured, f">= {bar:.6g}", holds, paper, note)

    @staticmethod
    def between(name: str, measured: Any, low: float, high: float, paper: str | None = None, note: str = "") -> "Claim":
        """low <= measured <= high."""
        measured = float(measured)
        return Claim(name, measured, f"in [{low:.6g}, {high:.6g}]", low <= measured <= high, paper, note)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for the report: cells are text, numbers or None."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self):
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of the table {self.title!r} has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one seed of a study found.

    - `metrics`: name -> number. Names are the keys that `claims` reads; NaN is allowed, and shown.
    - `tables`, and `figures`: caption -> matplotlib figure (see `optimand.report.figures` for the house's own).
    """

    metrics: Mapping[str, Any]
    tables: Sequence[Table] = ()
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        numbers = {}
        for name, number in self.metrics.items():
            try:
                numbers[str(name)] = float(np.asarray(number).item())
            except (TypeError, ValueError):
                raise ValueError(f"the metric {name!r} must be one number, not {number!r}") from None
        object.__setattr__(self, "metrics", numbers)


class Run:
    """The place one seed of a study works in.

    - `folder`: where its files go. `seed`: its number. `quick`: whether it was asked to be short.
    - `resuming`: whether it goes on from what an earlier, interrupted run left in the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        name: str = "study",
        seed: int = 0,
        quick: bool = False,
        resuming: bool = False,
        verbose: bool = True,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.seed = seed
        self.quick = quick
        self.resuming = resuming
        self.verbose = verbose
        self.started = time.monotonic()
        self._labels: set[str] = set()

    def progress(self, text: str) -> None:
        """Say what is going on, on standard error."""
        if self.verbose:
            seconds = time.monotonic() - self.started
            print(f"{self.name}, seed {self.seed}: {text}  [{seconds:.0f} s]", file=sys.stderr, flush=True)

    def callbacks(self, label: str, *, every: int | None = None, seconds: float = 10.0, keep: int = 1) -> tuple:
        """The stock callbacks for one `solve` of this run: progress, history.jsonl, and a checkpoint.

        **Arguments:** `label` names the solve, and is used once in a run; `every` and `seconds` say how often a
        checkpoint is written, as for `Checkpoint`; `keep` records one step in so many.
        """
        from optimand.core import Checkpoint, History, Progress

        if label in self._labels:
            raise ValueError(f"the label {label!r} is used twice in this run; each solve needs its own")
        self._labels.add(label)
        path = self._checkpoint(label)
        path.parent.mkdir(exist_ok=True)
        stock: list = [
            History(self.folder / "history.jsonl", label, every=keep),
            Checkpoint(path, every=every, seconds=seconds),
        ]
        return (Progress(f"{self.name}, seed {self.seed}: {label}"), *stock) if self.verbose else tuple(stock)

    def resume(self, label: str) -> Path | None:
        """The checkpoint that the solve `label` can go on from, for `solve(..., resume=)`, or None."""
        path = self._checkpoint(label)
        return path if self.resuming and path.exists() else None

    def once(self, label: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays that `compute()` returns, by name; a resumed run reads what was computed before it.

        For what is expensive and no `solve`: generated data, measured times. Numbers become arrays of no dimension.
        """
        path = self.folder / "kept" / f"{slugify(label)}.npz"
        if self.resuming and path.exists():
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        arrays = {name: np.asarray(array) for name, array in compute().items()}
        path.parent.mkdir(exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        write_whole(path, content.getvalue())
        return arrays

    def _checkpoint(self, label: str) -> Path:
        return self.folder / "checkpoints" / f"{slugify(label)}.ckpt"
