"""One problem, in a process of its own: `python -m optimand.bench.worker NAME SECONDS SOLVER ...`.

Writes a line of JSON when it begins with a solver and one when that has ended: whoever watches knows which solver a process
hangs or dies in.
"""

import json
import math
import os
import sys
import threading
import time
from typing import Any


def work(name: str, seconds: float, solvers: list[str]) -> None:
    """Run the solvers on the problem, one after the other."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from .catalogue import find, load
    from .entry import Entry
    from .judge import judge
    from .solvers import default, run

    card = find(name)
    entry = Entry(load(card), card.name, card.kind)
    about = {
        "kind": entry.kind,
        "variables": entry.size,
        "equalities": entry.equality_count,
        "inequalities": entry.inequality_count,
        "default": default(entry),
    }
    _say({"about": about})
    for solver in solvers:
        _say({"solver": solver})
        row: dict[str, Any] = {"problem": entry.name, "solver": solver, **about}
        clock = time.perf_counter()
        try:
            outcome = run(solver, entry, seconds)
            verdict = judge(entry, outcome.x)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            row.update(claims=False, solved=False, message=text, seconds=time.perf_counter() - clock)
        else:
            row.update(
                claims=outcome.claims, solved=verdict.solved, message=outcome.message, steps=outcome.steps,
                evaluations=outcome.evaluations, seconds=outcome.seconds, compile_seconds=outcome.compile_seconds,
                value=verdict.value, stationarity=verdict.stationarity, complementarity=verdict.complementarity,
                violation=verdict.violation,
            )  # fmt: skip
        _say({"row": row})


def end_with_parent() -> None:
    """End this process soon after the one that started it, however that ends: else it would go on, in the way of whatever is timed next."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say(content: dict[str, Any]) -> None:
    print("@" + json.dumps(_plain(content)), flush=True)


def _plain(content: Any) -> Any:
    """The same, with numbers to five figures, and as None those that JSON does not know."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, float):
        return float(f"{content:.5g}") if math.isfinite(content) else None
    return content


if __name__ == "__main__":
    end_with_parent()
    work(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
