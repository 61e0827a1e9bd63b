"""What survives: checkpoints, resumption bit by bit, Ctrl-C, kill -9, a full disk, damaged files."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from toys import Descent, HostDescent, NoisyDescent, quadratic

TARGET = jnp.array([1.0, -2.0, 0.5])
PROBLEM = om.Minimize(quadratic, TARGET)
GUESS = jnp.zeros(3)
KEY = jax.random.key(3)


def run(method=None, **options):
    method = NoisyDescent(tolerance=0.0) if method is None else method
    return om.solve(PROBLEM, method, GUESS, key=KEY, budget=options.pop("budget", om.Budget(steps=20)), **options)


@pytest.mark.parametrize("method", [NoisyDescent(tolerance=0.0), HostDescent(tolerance=0.0)], ids=["traced", "host"])
def test_a_resumed_solve_ends_with_the_same_bits(tmp_path, method):
    whole = run(method)
    half = run(method, budget=om.Budget(steps=9), callbacks=[om.Checkpoint(tmp_path / "c", every=4)])
    assert half.steps == 9
    resumed = run(method, resume=tmp_path / "c")
    np.testing.assert_array_equal(resumed.value, whole.value)
    assert resumed.history.keys() == whole.history.keys()
    for name, column in whole.history.items():
        np.testing.assert_array_equal(resumed.history[name], column)
    assert resumed.counters.asdict() == whole.counters.asdict()


def test_a_finished_solve_can_be_resumed_to_the_same_answer(tmp_path):
    method = Descent()
    whole = om.solve(PROBLEM, method, GUESS, callbacks=[om.Checkpoint(tmp_path / "c")])
    again = om.solve(PROBLEM, method, GUESS, resume=tmp_path / "c")
    assert again.steps == whole.steps and again.result == om.Result.converged
    np.testing.assert_array_equal(again.value, whole.value)


def refused(path, *words, problem=PROBLEM, method=None, key=KEY):
    method = NoisyDescent(tolerance=0.0) if method is None else method
    with pytest.raises(om.errors.CheckpointError) as raised:
        om.solve(problem, method, GUESS, key=key, budget=om.Budget(steps=20), resume=path)
    assert raised.value.argument == "resume"
    for word in words:
        assert word in str(raised.value), raised.value


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "state.ckpt"
    run(budget=om.Budget(steps=5), callbacks=[om.Checkpoint(path)])
    return path


def test_a_checkpoint_of_something_else_is_refused(checkpoint):
    refused(checkpoint, "another problem", problem=om.Minimize(quadratic, 2 * TARGET))
    refused(checkpoint, "another problem", problem=om.Minimize(lambda x, t: 2 * quadratic(x, t), TARGET))
    refused(checkpoint, "another method", method=NoisyDescent(tolerance=0.0, step_size=0.3))
    refused(checkpoint, "another method", method=Descent(tolerance=0.0))
    refused(checkpoint, "another key", key=jax.random.key(4))


def test_a_damaged_checkpoint_is_refused(checkpoint):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    refused(checkpoint, "damaged")
    checkpoint.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    refused(checkpoint, "damaged")
    checkpoint.write_bytes(b"hello\n" + content)
    refused(checkpoint, "not an optimand checkpoint")
    checkpoint.write_bytes(b"")
    refused(checkpoint, "not an optimand checkpoint")
    line, _, data = content.partition(b"\n")
    header = json.loads(line) | {"format": 99}
    checkpoint.write_bytes(json.dumps(header).encode() + b"\n" + data)
    refused(checkpoint, "format 99")
    checkpoint.unlink()
    refused(checkpoint, "cannot be read")
    refused(checkpoint.parent, "cannot be read")
    refused(3, "must be the path")


def test_a_checkpoint_needs_a_folder_and_a_positive_interval(tmp_path):
    with pytest.raises(om.errors.ArgumentError, match="path"):
        om.Checkpoint(tmp_path / "missing" / "c")
    with pytest.raises(om.errors.ArgumentError, match="every"):
        om.Checkpoint(tmp_path / "c", every=0)
    with pytest.raises(om.errors.ArgumentError, match="seconds"):
        om.Checkpoint(tmp_path / "c", seconds=-1.0)
    with pytest.raises(om.errors.ArgumentError, match="seconds"):
        om.Progress(seconds=-1.0)
    with pytest.raises(om.errors.ArgumentError, match="path"):
        om.History(tmp_path / "missing" / "h")
    with pytest.raises(om.errors.ArgumentError, match="every"):
        om.History(tmp_path / "h", every=0)


def test_a_full_disk_keeps_the_checkpoint_before_and_the_solve_going(tmp_path):
    path = tmp_path / "c"
    run(budget=om.Budget(steps=4), callbacks=[om.Checkpoint(path)])
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # writes beyond it fail
    try:
        with pytest.warns(RuntimeWarning, match="not written"):
            solution = run(callbacks=[om.Checkpoint(path, every=3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert solution.steps == 20 and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # no half-written file is left
    np.testing.assert_array_equal(run(resume=path).value, run().value)


def test_the_history_file_holds_each_step_once_across_a_resume(tmp_path):
    log, state = tmp_path / "history.jsonl", tmp_path / "c"
    run(budget=om.Budget(steps=6), callbacks=[om.Checkpoint(state), om.History(log, label="fit")])
    with log.open("a") as file:
        file.write('{"label": "fit", "step": 7, "value": 9}\n{"label": "other", "step": 9}\n{"label": "fi')
    run(resume=state, callbacks=[om.History(log, label="fit")])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if row["label"] == "fit"] == list(range(1, 21))
    assert [row for row in rows if row["label"] == "other"] == [{"label": "other", "step": 9}]


def test_progress_goes_to_the_file_it_is_given(tmp_path):
    with (tmp_path / "log").open("w") as file:
        run(callbacks=[om.Progress("toy", file=file)])
    text = (tmp_path / "log").read_text()
    assert "toy: 20/20" in text and "value" in text and "budget_spent" in text


# In processes of their own, because they die.

SCRIPT = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optimand as om
sys.path.insert(0, {tests!r})
from toys import HostDescent, NoisyDescent, quadratic

class Slow(NoisyDescent):
    host = True
    def step(self, problem, state, *, key):
        time.sleep(0.01)
        return super().step(problem, state, key=key)

problem = om.Minimize(quadratic, jnp.array([1.0, -2.0, 0.5]))
resume = {folder!r} + "/c" if "resume" in sys.argv else None
method = Slow(tolerance=0.0)
try:
    solution = om.solve(problem, method, jnp.zeros(3), key=jax.random.key(3), budget=om.Budget(steps=60),
        resume=resume, callbacks=[om.Checkpoint({folder!r} + "/c", every=2), lambda event: print(event.step, flush=True) and None])
except om.errors.Interrupted as error:
    solution = error.solution
    print("interrupted", solution.steps, str(solution.result), flush=True)
    sys.exit(130)
np.save({folder!r} + "/value.npy", solution.value)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=str(folder), tests=str(Path(__file__).parent.parent)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen, number: int) -> None:
    for line in process.stdout:
        if int(line) >= number:
            return
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return np.load(folder / "value.npy")


def test_a_killed_process_resumes_with_the_same_bits(tmp_path, uninterrupted):
    for steps in (6, 25):
        process = start(tmp_path, *(["resume"] if (tmp_path / "c").exists() else []))
        wait_for_step(process, steps)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "value.npy").exists()
    process = start(tmp_path, "resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    np.testing.assert_array_equal(np.load(tmp_path / "value.npy"), uninterrupted)


def test_control_c_ends_with_the_best_so_far_and_can_be_resumed(tmp_path, uninterrupted):
    process = start(tmp_path)
    wait_for_step(process, 5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in output.splitlines()[-1] and "Ctrl-C again" in errors
    process = start(tmp_path, "resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    np.testing.assert_array_equal(np.load(tmp_path / "value.npy"), uninterrupted)


@pytest.mark.parametrize("throw", [None, False])
def test_control_c_stops_a_compiled_solve_and_what_called_it(throw):
    began = time.monotonic()

    def interrupt(event):
        if event.step > 0 and time.monotonic() - began < 60:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(om.errors.Interrupted, match="interrupted") as raised:
        run(budget=om.Budget(steps=10**9), callbacks=[interrupt], throw=throw)
    solution = raised.value.solution
    assert isinstance(raised.value, KeyboardInterrupt)
    assert solution.result == om.Result.interrupted and 0 < solution.steps < 10**9
    assert np.all(np.isfinite(solution.value)) and signal.getsignal(signal.SIGINT) is before
