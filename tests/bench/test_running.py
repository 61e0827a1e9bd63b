"""Processes that hang or die, and tables that are resumed, with a worker that solves nothing."""

import json
import os
import subprocess
import sys
import time

import pytest

from optimand.bench import running
from optimand.bench.catalogue import Card

WORKER = """
import json, os, sys, time
name, seconds, *solvers = sys.argv[1:]
say = lambda content: print("@" + json.dumps(content), flush=True)
say({"about": {"kind": "bounded", "variables": 5000 if name == "LARGE" else 2}})
for solver in solvers:
    say({"solver": solver})
    if solver == "hangs":
        time.sleep(60)
    if solver == "dies":
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    say({"row": {"problem": name, "solver": solver, "solved": True}})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch = running.subprocess.Popen
    started = []

    def start(command, **options):
        started.append(command[3:])
        return launch([sys.executable, str(script), *command[3:]], **options)

    monkeypatch.setattr(running.subprocess, "Popen", start)
    monkeypatch.setattr(running, "_GRACE", 0.2)
    return started


def go(folder, work, **options):
    work = [(Card(name, "bounded", ""), solvers) for name, solvers in work.items()]
    running.run_all(work, folder, **{"seconds": 0.3, "workers": 1, "most_variables": 1000, **options})
    return {(row["problem"], row["solver"]): row for row in running.read_table(folder)}


def test_a_solver_that_hangs_or_dies_costs_only_itself(worker, tmp_path):
    rows = go(tmp_path / "run", {"A": ["good", "hangs", "dies", "fine"], "B": ["good"]}, workers=2)
    assert rows["A", "good"]["solved"] and rows["A", "fine"]["solved"] and rows["B", "good"]["solved"]
    assert rows["A", "hangs"]["message"] == "time limit" and not rows["A", "hangs"]["solved"]
    assert "out of memory" in rows["A", "dies"]["message"] and not rows["A", "dies"]["solved"]


def test_a_resumed_run_does_only_what_is_missing(worker, tmp_path):
    folder = tmp_path / "run"
    go(folder, {"A": ["good"]})
    with (folder / running.TABLE).open("a") as file:
        file.write('{"problem": "A", "solver": "cut sho')  # as after a kill
    worker.clear()
    rows = go(folder, {"A": ["good", "fine"], "B": ["good"]})
    assert set(rows) == {("A", "good"), ("A", "fine"), ("B", "good")}
    assert [command[2:] for command in worker] == [["fine"], ["good"]]


def test_problems_that_are_too_large_are_noted_and_not_tried_again(worker, tmp_path):
    rows = go(tmp_path / "run", {"LARGE": ["good"]})
    assert list(rows) == [("LARGE", "left out")]
    worker.clear()
    go(tmp_path / "run", {"LARGE": ["good"]})
    assert not worker


def test_rows_are_whole_lines(worker, tmp_path):
    go(tmp_path / "run", {name: ["good", "fine"] for name in "ABC"}, workers=3)
    lines = (tmp_path / "run" / running.TABLE).read_text().splitlines()
    assert len(lines) == 6 and all(json.loads(line)["solved"] for line in lines)


def test_a_worker_ends_with_the_process_that_started_it():
    child = "import time; from optimand.bench.worker import end_with_parent; end_with_parent(); print('up', flush=True); time.sleep(120)"
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    found = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=120, check=False)
    pid = int(found.stdout)
    for _ in range(100):
        if not _running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("it goes on")


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.strip().startswith("Z")  # one that has ended and that nobody has asked after
