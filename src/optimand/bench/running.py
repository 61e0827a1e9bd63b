"""Runs solvers over problems, a process a problem, and writes each result as a line of a table when it is there.

A process that hangs is ended when its solver's time is over, one that dies costs the solver it died in; in both cases the
rest of its solvers go on in a new one. Whatever ends the run, the lines that are written stay, and a run that is resumed
does only what is missing.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ArgumentError
from .catalogue import Card

__all__ = ["read_table", "run_all"]

TABLE = "table.jsonl"
_GRACE = 10.0  # seconds that a solver may overstay before its process is ended
_START = 120.0  # seconds for a process to begin
_ONE_THREAD = {  # so that libraries compare alike, and workers do not take each other's cores
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The rows that are there, the last of each problem and solver; a line cut short by the end of a process is left out."""
    path = folder / TABLE
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["problem"], row["solver"]] = row
    return list(rows.values())


def run_all(
    work: Sequence[tuple[Card, Sequence[str]]],
    folder: Path,
    *,
    seconds: float,
    workers: int,
    most_variables: int,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Run each problem's solvers, as far as the table of the folder does not have them.

    **Arguments:** `seconds` is the limit of one solver on one problem, compilation included. Problems of more than
    `most_variables` variables are noted in the table as left out.
    """
    if workers < 1:
        raise ArgumentError("workers", f"must be at least 1, not {workers}.")
    done: dict[str, set[str]] = {}
    for row in read_table(folder):
        done.setdefault(row["problem"], set()).add(row["solver"])
    table = _Table(folder / TABLE)
    tasks: queue.Queue[tuple[Card, list[str]]] = queue.Queue()
    for card, solvers in work:
        had = done.get(card.name, set())
        missing = [] if "left out" in had else [solver for solver in solvers if solver not in had]
        if missing:
            tasks.put((card, missing))
    total, stop = tasks.qsize(), threading.Event()
    failures: list[BaseException] = []

    def take_tasks() -> None:
        try:
            while not stop.is_set():
                card, solvers = tasks.get_nowait()
                progress(f"{total - tasks.qsize()}/{total} {card.name}")
                _run_one(card, solvers, table, seconds, most_variables, stop)
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=take_tasks, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        table.close()
    if failures:
        raise failures[0]


class _Table:
    """Lines at the end of a file, each whole."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        self._file = path.open("a", encoding="utf-8")
        if cut:  # a line that was being written when a run was ended
            self._file.write("\n")
        self._lock = threading.Lock()

    def write(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _run_one(card: Card, solvers: list[str], table: _Table, seconds: float, most: int, stop: threading.Event) -> None:
    """One problem: processes until each of its solvers has a row."""
    left = list(solvers)
    while left and not stop.is_set():
        process = _Process(card, left, seconds)
        try:
            current: str | None = None
            about: dict[str, Any] = {"kind": card.kind}
            deadline = time.monotonic() + _START
            while left:
                message = process.next(max(0.0, deadline - time.monotonic()), stop)
                if stop.is_set():
                    return
                if message is None:  # too long, or dead
                    dead = process.ended
                    reason = f"the process died: {process.last_words()}" if dead else "time limit"
                    for solver in [current] if current is not None else list(left):
                        table.write({"problem": card.name, "solver": solver, **about, "claims": False, "solved": False,
                                     "message": reason, "seconds": None if dead else seconds})  # fmt: skip
                        left.remove(solver)
                    break
                if "about" in message:
                    about |= message["about"]
                    if about["variables"] > most:
                        table.write({"problem": card.name, "solver": "left out", **about,
                                     "message": f"more than {most} variables"})  # fmt: skip
                        return
                elif "row" in message:
                    table.write(message["row"])
                    left.remove(message["row"]["solver"])
                    current, deadline = None, time.monotonic() + _START
                elif "solver" in message:
                    current, deadline = message["solver"], time.monotonic() + seconds + _GRACE
        finally:
            process.end()


class _Process:
    """A worker, and what it says."""

    def __init__(self, card: Card, solvers: Iterable[str], seconds: float):
        command = [sys.executable, "-m", "optimand.bench.worker", card.name, str(seconds), *solvers]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, start_new_session=True, env={**os.environ, **_ONE_THREAD},
        )  # fmt: skip
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        for target in (self._listen, self._collect):
            threading.Thread(target=target, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            if line.startswith("@"):
                self._said.put(json.loads(line[1:]))
        self._said.put(None)

    def _collect(self) -> None:
        for line in self._process.stderr or ():
            self._errors = [*self._errors[-20:], line.rstrip()]

    def next(self, timeout: float, stop: threading.Event) -> dict[str, Any] | None:
        """The next message; None if there is none in time, or ever."""
        end = time.monotonic() + timeout
        while not stop.is_set():
            try:
                return self._said.get(timeout=min(0.5, max(0.01, end - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= end:
                    return None
        return None

    @property
    def ended(self) -> bool:
        time.sleep(0.05)
        return self._process.poll() is not None

    def last_words(self) -> str:
        words = [line for line in self._errors if line.strip()]
        return words[-1][:200] if words else f"exit code {self._process.poll()}"

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
