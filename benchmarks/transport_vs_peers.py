"""Entropic transport beside OTT-JAX and POT: the time to equal errors of the marginals.

    python benchmarks/transport_vs_peers.py [--sizes 500 1000 2000 5000] [--cap 10]

Needs ott-jax and pot (the extra `peers`). Random assignments: costs uniform in [0, 1], equal weights, double precision; eta = 1 / epsilon of 100 and 1200. What
is asked for is an error |P 1 - a| + |P' 1 - b|, computed from what each returns, of 1e-6 and 1e-12 at eta = 100, and of 1e-6, 1e-9 and 1e-12 at eta = 1200.

Every library is tried in each of its settings and its fastest that got there counts: for ours the method and the relaxation, for OTT products or logarithms,
momentum, Anderson's acceleration and the sweeps between two looks at the error, for POT the method and NumPy's or JAX's arrays. A setting that did not get there is
not tried for a smaller error on the same points. With more points, for each eta and error, those settings are left out that took more than thrice the time of their library's best, or did not
get there; where none did, the one with the least error goes on. Theirs stop by other norms, so each gets the laxest of some thresholds with
which it keeps the error asked for. A call has `cap` seconds, and rivals' at least twice what the Newton steps took. OTT and ours are compiled before; what counts is then timed in
turns. A library that does not get there counts with the time that it spent, and its ratio is a bound.

Bars: sinkhorn-newton at most 1.0 of the fastest rival at eta = 1200, to 1e-9 and to 1e-12; Sinkhorn's method at most 1.0 of the fastest rival, at both eta; plans that
are asked for to 1e-12 differ by at most 1e-8. What the file of results holds of other sizes, eta and errors is kept, so that they can be run one by one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import ot
import record
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import acceleration, sinkhorn
from timing import interleaved

import optimand as om
from optimand.transport import Coupling, Sinkhorn, SinkhornNewton, SinkhornNewtonSparse

__all__: list[str] = []

SIZES = (500, 1000, 2000, 5000)
TARGETS = {100.0: (1e-6, 1e-12), 1200.0: (1e-6, 1e-9, 1e-12)}
LAXER = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
MOST = 200_000  # sweeps


class Trial(NamedTuple):
    """`solve(threshold, cap)` makes a call without arguments that returns (what potentials or plan to judge by, iterations)."""

    library: str
    setting: str
    solve: Callable[[float, int], Callable]
    exact: bool  # it stops by the error that is asked for


def plan_of(found: Any, cost: np.ndarray, epsilon: float) -> np.ndarray:
    """A plan itself, or that of potentials in the form exp((f + g - C) / epsilon)."""
    return np.asarray(found) if not isinstance(found, tuple) else np.exp((np.asarray(found[0])[:, None] + np.asarray(found[1])[None, :] - cost) / epsilon)


def error_of(found: Any, cost: np.ndarray, epsilon: float) -> float:
    n, plan = len(cost), plan_of(found, cost, epsilon)
    return float(np.abs(plan.sum(1) - 1 / n).sum() + np.abs(plan.sum(0) - 1 / n).sum())


def of_library(problem: Coupling, library: str, setting: str, method_of: Callable) -> Trial:
    shift = problem.epsilon * jnp.log(problem.a)

    def solve(threshold, cap):
        @jax.jit
        def run(problem):
            solution = om.solve(problem, method_of(threshold), budget=om.Budget(steps=cap), record=1, throw=False)
            return (solution.value.f + shift, solution.value.g + shift), solution.steps

        compiled = run.lower(problem).compile()
        return lambda: compiled(problem)

    return Trial(library, setting, solve, True)


def ours(problem: Coupling) -> list[Trial]:
    return [of_library(problem, "ours", f"relaxation {w:g}", lambda tolerance, w=w: Sinkhorn(tolerance, relaxation=w)) for w in (1.0, 1.5, 1.8)]


def newton(problem: Coupling) -> list[Trial]:
    trials = [of_library(problem, "sinkhorn-newton", "sparse", lambda tolerance: SinkhornNewtonSparse(tolerance))]
    if problem.a.size <= 1000:
        trials.append(of_library(problem, "sinkhorn-newton", "dense", lambda tolerance: SinkhornNewton(tolerance, hessian="dense")))
    return trials


def of_ott(cost: Any, epsilon: float) -> list[Trial]:
    n = len(cost)
    a = jnp.full(n, 1 / n)

    def trial(setting: str, **options: Any) -> Trial:
        inner = options.pop("inner_iterations", 10)

        def solve(threshold, cap):
            solver = sinkhorn.Sinkhorn(threshold=threshold, max_iterations=-(-cap // inner) * inner, inner_iterations=inner, **options)

            @jax.jit
            def run(cost):
                out = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=epsilon), a, a))
                return (out.f, out.g), out.n_iters

            compiled = run.lower(cost).compile()
            return lambda: compiled(cost)

        return Trial("OTT", setting, solve, False)

    trials = []
    for name, lse_mode in (("products", False), ("logarithms", True)):
        trials += [trial(f"{name}, momentum {w:g}", lse_mode=lse_mode, momentum=acceleration.Momentum(value=w)) for w in (1.0, 1.5, 1.8)]
        trials += [trial(f"{name}, error after each", lse_mode=lse_mode, inner_iterations=1)]
    return [*trials, trial("logarithms, Anderson", lse_mode=True, anderson=acceleration.AndersonAcceleration(memory=5))]


def of_pot(cost: np.ndarray, epsilon: float) -> list[Trial]:
    n = len(cost)
    weights = np.full(n, 1 / n)

    def trial(setting: str, method: str, arrays: Callable) -> Trial:
        a, c = arrays(weights), arrays(cost)

        def solve(threshold, cap):
            def run():
                plan, log = ot.sinkhorn(a, a, c, epsilon, method=method, numItermax=cap, stopThr=threshold / n**0.5, log=True, warn=False)
                return plan, log.get("niter", len(log["err"]) * 10)

            return run

        return Trial("POT", setting, solve, False)

    names = {"products": "sinkhorn", "products, stabilised": "sinkhorn_stabilized", "logarithms": "sinkhorn_log"}
    trials = [trial(f"{setting}, NumPy", method, np.asarray) for setting, method in names.items()]
    return [*trials, trial("products, JAX", "sinkhorn", jnp.asarray)]


def attempt(trial: Trial, target: float, cost: np.ndarray, epsilon: float, cap: float) -> dict[str, Any]:
    """The laxest threshold that does, its call, and what it took; or what was reached in the time."""
    pilot = trial.solve(0.0, 20)
    jax.block_until_ready(pilot())
    begun = time.perf_counter()
    jax.block_until_ready(pilot())
    sweeps = max(20, min(MOST, int(cap / max((time.perf_counter() - begun) / 20, 1e-7)) // 10 * 10))
    for laxer in (1.0,) if trial.exact else LAXER:
        call = trial.solve(target * laxer, sweeps)
        begun = time.perf_counter()
        found, iterations = jax.block_until_ready(call())
        seconds, error = time.perf_counter() - begun, error_of(found, cost, epsilon)
        if error <= 1.05 * target or int(iterations) >= sweeps or not np.isfinite(error):
            break
    for _ in range(3 if seconds < 1 else 0):  # else chance decides between the settings of a library where a solve is short
        begun = time.perf_counter()
        jax.block_until_ready(call())
        seconds = min(seconds, time.perf_counter() - begun)
    return {
        "call": call, "setting": trial.setting, "iterations": int(iterations), "seconds": seconds, "error": error, "reached": error <= 1.05 * target,
        "plan": plan_of(found, cost, epsilon),
    }  # fmt: skip


def compare(n: int, eta: float, target: float, cap: float, left_out: dict[Any, set[str]], given_up: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each library. `left_out[eta, target]` has the settings that are not worth a trial, and `given_up` what became of those that did not get to a larger error; both get more."""
    cost, epsilon = np.random.default_rng(0).uniform(size=(n, n)), 1 / eta
    problem = Coupling(jnp.asarray(cost), epsilon=epsilon)
    tried: dict[str, list[dict[str, Any]]] = {}
    for trial in [*newton(problem), *ours(problem), *of_ott(jnp.asarray(cost), epsilon), *of_pot(cost, epsilon)]:
        name = f"{trial.library}, {trial.setting}"
        if name in left_out.setdefault((eta, target), set()):
            continue
        needed = max((one["seconds"] for one in tried.get("sinkhorn-newton", [])), default=0.0)
        got = given_up.get(name) or attempt(trial, target, cost, epsilon, max(cap, 2 * needed))
        print(f"  {n} {eta:g} {target:g} {name}: {got['seconds']:.3g} s, {got['iterations']}, {got['error']:.2g}", flush=True)
        tried.setdefault(trial.library, []).append(got)
        if not got["reached"]:
            given_up[name] = got
    rank = lambda one: (not one["reached"], one["seconds"] if one["reached"] else np.nan_to_num(one["error"], nan=np.inf))
    best = {library: min(some, key=rank) for library, some in tried.items()}
    for library, some in tried.items():
        least = best[library]
        worse = [one for one in some if one is not least and (not one["reached"] or one["seconds"] > 3 * least["seconds"])]
        left_out[eta, target] |= {f"{library}, {one['setting']}" for one in worse}
    quick = {library: one["call"] for library, one in best.items() if one["reached"]}
    for library, taken in interleaved(quick, seconds=4.0, least=3).items():
        best[library]["seconds"] = statistics.median(taken)
    return [
        {
            "points": n, "eta": eta, "error asked for": target, "library": library, "setting": one["setting"], "iterations": one["iterations"],
            "ms": 1e3 * one["seconds"], "error": one["error"], "reached": one["reached"],
            "largest difference of the plan from sinkhorn-newton's": float(np.max(np.abs(one["plan"] - best["sinkhorn-newton"]["plan"]))),
        }
        for library, one in best.items()
    ]  # fmt: skip


def judged(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    claims = []
    for n, eta, target in dict.fromkeys((row["points"], row["eta"], row["error asked for"]) for row in rows):
        these = {row["library"]: row for row in rows if (row["points"], row["eta"], row["error asked for"]) == (n, eta, target)}
        rivals = {library: these[library] for library in ("OTT", "POT")}
        there = [library for library, row in rivals.items() if row["reached"]]
        fastest = min(there or rivals, key=lambda library: rivals[library]["ms"])
        for library, name in (("ours", "Sinkhorn"), ("sinkhorn-newton", "sinkhorn-newton")):
            judged_here = library == "ours" or (eta == 1200 and target <= 1e-9)
            if judged_here and (there or these[library]["reached"]):
                ratio = these[library]["ms"] / rivals[fastest]["ms"] if these[library]["reached"] else float("inf")
                bound = "" if there else ", which did not get there"
                claims.append((f"{n} points, eta {eta:g}, to {target:g}: time of {name} over that of the fastest, {fastest}{bound}", ratio, 1.0))
        if target <= 1e-12:
            apart = max(row["largest difference of the plan from sinkhorn-newton's"] for row in these.values() if row["reached"])
            claims.append((f"{n} points, eta {eta:g}, to {target:g}: largest difference of plans", apart, 1e-8))
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="points on each side")
    parser.add_argument("--etas", type=float, nargs="+", default=list(TARGETS), help="1 / epsilon")
    parser.add_argument("--errors", type=float, nargs="+", default=None, help="errors asked for, of those of the benchmark")
    parser.add_argument("--cap", type=float, default=10.0, help="seconds for a solve")
    options = parser.parse_args()
    path = record.RESULTS / "transport_vs_peers.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    left_out: dict[Any, set[str]] = {}
    with jax.enable_x64(True):
        for n in options.sizes:
            for eta in options.etas:
                given_up: dict[str, dict[str, Any]] = {}
                for target in TARGETS[eta]:
                    if options.errors is None or target in options.errors:
                        rows = [row for row in rows if (row["points"], row["eta"], row["error asked for"]) != (n, eta, target)]
                        rows += compare(n, eta, target, options.cap, left_out, given_up)
                        rows.sort(key=lambda row: (row["points"], row["eta"], -row["error asked for"]))
                        record.write("transport_vs_peers", "Entropic transport, beside OTT-JAX and POT", rows, judged(rows))


if __name__ == "__main__":
    main()
