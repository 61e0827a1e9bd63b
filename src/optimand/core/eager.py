"""The eager driver of `solve`: compiled chunks of steps, and what happens between them."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .budget import Budget
from .checkpoint import fingerprint, read_checkpoint
from .errors import ObjectiveError
from .loop import Carry, Run, advance, begin, finish_code, read_metrics, take_step
from .solution import Result, Solution

__all__ = ["Event"]

CHUNK_SECONDS = 0.1  # callbacks are called about this often
ROWS = 512  # of history that a chunk may fill


class Event:
    """What a callback sees between two chunks of an eager solve.

    - `step`: completed steps; `budget`: the limits; `seconds`: since the start of this call of `solve`.
    - `metrics`: what the method reported after the last step; `rows`: after each step since the last event.
    - `value`, `state`: computed when asked for.
    - `result`: `Result.running`, or how the solve has ended (`final` is then true).
    """

    def __init__(self, driver: "EagerDriver", carry: Carry, rows: list[dict[str, int | float]], final: bool):
        self._driver = driver
        self.carry = carry
        self.rows = rows
        self.final = final
        self.step = int(carry.step)
        self.seconds = time.perf_counter() - driver.started
        self.metrics = rows[-1] if rows else driver.last_row
        self.result = Result(np.int32(carry.code))
        self.budget = driver.run_data.budget

    @property
    def state(self) -> Any:
        """The method's state."""
        return self.carry.state

    @property
    def value(self) -> PyTree:
        """The current value, as the solution would hold it."""
        run = self._driver.run_data
        return eqx.combine(run.method.answer(run.problem, self.carry.state), self._driver.rest)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Everything recorded since the first step."""
        return self._driver.history()

    @property
    def fingerprint(self) -> dict[str, str]:
        """What identifies this problem, method and key: what a checkpoint is checked against."""
        return self._driver.fingerprint()


class EagerDriver:
    """Runs one solve in chunks. The carry between chunks is all there is to save, and what survives an error."""

    def __init__(self, problem, method, guess, key, budget, callbacks=(), rest=None):
        self.run_data = Run(problem, method, key, budget)
        counted = Budget(steps=0, evaluations=budget.evaluations, **dict(budget.limits))
        self.compiled_data = self.run_data._replace(budget=counted)  # more steps or seconds compile nothing anew
        self.guess = guess
        self.callbacks = callbacks
        self.rest = rest
        self.columns: dict[str, list] = {"step": []}
        self.last_row: dict[str, int | float] = {}
        self.compile_seconds = 0.0
        self.started = time.perf_counter()

    def run(self, resume: Any = None, need_sound_guess: bool = True) -> Solution:
        """From the guess, or from a checkpoint, to the end."""
        method = self.run_data.method
        record = 1 if method.host else ROWS
        begin_now = begin if method.host else _compiled_begin
        carry, sound = begin_now(self.compiled_data, self.guess, record)
        if not bool(sound) and not need_sound_guess:
            return self._solution(carry, Result.nonfinite)
        if not bool(sound):
            raise ObjectiveError(
                "guess",
                "is a point where the problem is not finite (NaN or Inf).",
                "Start from another point.",
            )
        if resume is not None:
            carry, recorded = read_checkpoint(resume, carry, self.fingerprint())
            self.columns = {name: list(column) for name, column in recorded.items()}
            self.last_row = {name: column[-1] for name, column in self.columns.items() if column}
        carry, code = self._loop(carry)
        return self._solution(carry, code)

    def _loop(self, carry: Carry):
        run = self.run_data
        steps, seconds = run.budget.steps, run.budget.seconds
        code = None
        with _interruptible() as interrupted:
            self._compile(carry)
            chunk = 1
            try:
                while True:
                    if interrupted:
                        code = Result.interrupted
                    elif seconds is not None and time.perf_counter() - self.started >= seconds:
                        code = code or Result.budget_spent
                    before = int(carry.step)
                    if code is None:
                        until = min(steps, before + chunk, *(self._stop_after(before)))
                        clock = time.perf_counter()
                        carry = self._chunk(carry, until, interrupted)
                        elapsed = time.perf_counter() - clock
                        chunk = _next_chunk(chunk, int(carry.step) - before, elapsed)
                        if not self._going(carry):
                            code = Result(np.int32(finish_code(carry)))
                    carry, stop = self._notify(carry, before, code)
                    if code is not None:
                        return carry, code
                    if stop:
                        code = Result.stopped
            except KeyboardInterrupt:  # a second Ctrl-C: do not wait for the chunk to end
                return carry, Result.interrupted

    def _going(self, carry: Carry) -> bool:
        budget = self.run_data.budget
        counters = self.run_data.method.counters(carry.state)
        running = int(carry.code) == int(Result.running.code)
        return running and int(carry.step) < budget.steps and not bool(budget.spent(counters))

    def _stop_after(self, step: int) -> list[int]:
        """Step numbers at which some callback asked to be called, as `Checkpoint(every=...)` does."""
        every = (getattr(callback, "every", None) for callback in self.callbacks)
        return [step + n - step % n for n in every if n]

    def _compile(self, carry: Carry) -> None:
        """Compile by advancing to where we are: no step is taken, and the time is known apart."""
        if not self.run_data.method.host:
            clock = time.perf_counter()
            jax.block_until_ready(_compiled_advance(self.compiled_data, carry, carry.step).code)
            self.compile_seconds = time.perf_counter() - clock

    def _chunk(self, carry: Carry, until: int, interrupted) -> Carry:
        run = self.run_data
        if not run.method.host:
            carry = _compiled_advance(self.compiled_data, carry, jnp.int32(until))
            jax.block_until_ready(carry.code)
            return carry
        clock = time.perf_counter()
        while self._going(carry) and int(carry.step) < until:
            carry = take_step(run, carry)
            if interrupted or time.perf_counter() - clock > CHUNK_SECONDS or self._host_rows_full(carry):
                break
        return carry

    def _host_rows_full(self, carry: Carry) -> bool:
        return len(carry.rows) <= 1 or int(carry.step) % len(carry.rows) == 0

    def _notify(self, carry: Carry, before: int, code: Result | None):
        """Move new rows from the ring into the history, and call the callbacks."""
        rows = self._drain(carry, before)
        if code is not None:
            carry = eqx.tree_at(lambda c: c.code, carry, jnp.asarray(code.code, jnp.int32))
        event = Event(self, carry, rows, final=code is not None)
        stop = False
        for callback in self.callbacks:
            stop = bool(callback(event)) or stop
        if rows:
            self.last_row = rows[-1]
        return carry, stop

    def _drain(self, carry: Carry, before: int) -> list[dict[str, int | float]]:
        names = ("step", *read_metrics(self.run_data, carry.state))
        numbers = np.asarray(carry.rows)
        new = np.flatnonzero(numbers > before)
        new = new[np.argsort(numbers[new])]
        history = np.asarray(carry.history)[new] if len(new) else np.zeros((0, len(names) - 1))
        rows = [
            dict(zip(names, (int(number), *map(float, values)), strict=True))
            for number, values in zip(numbers[new], history, strict=True)
        ]
        for name in names:
            self.columns.setdefault(name, []).extend(row[name] for row in rows)
        return rows

    def history(self) -> dict[str, np.ndarray]:
        """All rows so far, as columns."""
        return {name: np.asarray(column) for name, column in self.columns.items()}

    def fingerprint(self) -> dict[str, str]:
        """See `checkpoint.fingerprint`; computed once."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = fingerprint(self.run_data.problem, self.run_data.method, self.run_data.key)
        return self._fingerprint

    def _solution(self, carry: Carry, code: Result) -> Solution:
        run = self.run_data
        stats: dict[str, Any] = {"compile_seconds": self.compile_seconds}
        value, aux = (_answer if run.method.host else _compiled_answer)(self.compiled_data, carry.state)
        if int(carry.code) == int(Result.nonfinite.code) or code is Result.nonfinite:
            paths = [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(value)] + [" of the objective"]
            leaf = paths[min(int(carry.bad_leaf), len(paths) - 1)]
            stats["nonfinite"] = f"step {int(carry.step) + 1}: value{leaf}"
        stats["seconds"] = time.perf_counter() - self.started
        return Solution(
            value=value,
            result=Result(np.int32(code.code)),
            steps=int(carry.step),
            counters=jtu.tree_map(int, run.method.counters(carry.state)),
            history=self.history(),
            aux=aux,
            state=carry.state,
            stats=stats,
        )


_compiled_advance = eqx.filter_jit(advance)
_compiled_begin = eqx.filter_jit(begin)


def _answer(run: Run, state):
    value = run.method.answer(run.problem, state)
    return value, run.problem.aux(value)


_compiled_answer = eqx.filter_jit(_answer)


def _next_chunk(chunk: int, taken: int, elapsed: float) -> int:
    """The number of steps that should take `CHUNK_SECONDS`, at most four times as many as before."""
    if taken == 0:
        return chunk
    fitting = int(CHUNK_SECONDS * taken / max(elapsed, 1e-9))
    return max(1, min(fitting, 4 * chunk, ROWS))


@contextlib.contextmanager
def _interruptible() -> Iterator[list]:
    """Turn a first Ctrl-C into an entry of the list it yields, so that a solve ends between two steps.

    A second one interrupts at once. Only the main thread is told of signals; elsewhere nothing is changed.
    """
    interrupted: list = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number, frame):
        if interrupted:
            raise KeyboardInterrupt
        interrupted.append(number)
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)

    try:
        signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # an embedded interpreter
        yield interrupted
        return
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
