"""The unconstrained and bounded problems of the CUTEst collection: our methods beside the same ones of JAXopt and Optimistix, warm.

    python benchmarks/collection_vs_peers.py [--most 1000] [--every 1] [--only TEXT] [--kept FILE]

Needs sif2jax and jaxopt (the extra `peers`). Bar, for every pair of methods: the median over the problems that both solve of the
ratio of the times is at most 1.0.

`optimand bench cutest` times the first run of each solver; most of these problems are solved in less than a millisecond, so here every
solve is compiled, run once, and then timed in turns with its rivals. What a solver's own rule takes for an answer is judged as there: KKT
residuals computed apart, at most 1e-5 relative to the scale of the gradient. Ours and JAXopt's are asked for a gradient of 1e-6. Optimistix
stops by the length of a step and the decrease together, and gets the loosest of 1e-3, 1e-4, ..., 1e-9 with which its answer is accepted. Each has 3,000
iterations. Of JAXopt's line searches the default counts. Who took more than 20 seconds of a problem in `docs/cutest/table.jsonl`, where there is a limit, is
left out there (of ours only runs that did not solve the problem). It takes an hour; with `--kept` it goes on where it was stopped.
"""

import argparse
import concurrent.futures
import functools
import json
import pathlib
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
import record
from timing import interleaved

import optimand as om
from optimand import smooth
from optimand.bench import catalogue
from optimand.bench.entry import Entry
from optimand.bench.judge import judge

__all__: list[str] = []

STEPS = 3000
ASKED = 1e-6
TABLE = pathlib.Path(__file__).parents[1] / "docs/cutest/table.jsonl"
# Ours and theirs, timed together. `TrustRegion` is another method, which `om.minimize` picks where theirs would take BFGS.
CONTESTS = {
    "unconstrained": (
        (("LBFGS",), ("jaxopt.LBFGS", "optimistix.LBFGS")),
        (("NonlinearCG",), ("jaxopt.NonlinearCG", "optimistix.NonlinearCG")),
        (("BFGS", "TrustRegion"), ("jaxopt.BFGS", "optimistix.BFGS")),
    ),
    "bounded": ((("LBFGSB",), ("jaxopt.LBFGSB",)),),
}


# Each is a function of the guess and of a tolerance, which only Optimistix's looks at: so one compilation serves all that are tried.


def ours(entry: Entry, name: str) -> Callable:
    method, problem = getattr(smooth, name)(tolerance=ASKED), entry.problem()

    def solve(guess, tolerance):
        found = om.solve(problem, method, guess, budget=om.Budget(steps=STEPS), record=0, throw=False)
        return found.value.primal if isinstance(found.value, om.PrimalDual) else found.value

    return solve


def by_jaxopt(entry: Entry, name: str) -> Callable:
    solver = getattr(jaxopt, name)(entry.objective, tol=ASKED, maxiter=STEPS, implicit_diff=False)
    bounds = {"bounds": (jnp.asarray(entry.lower), jnp.asarray(entry.upper))} if name == "LBFGSB" else {}
    return lambda guess, tolerance: solver.run(guess, **bounds).params


def by_optimistix(entry: Entry, name: str) -> Callable:
    def solve(guess, tolerance):
        solver = getattr(optx, name)(rtol=tolerance, atol=tolerance)
        return optx.minimise(lambda x, _: entry.objective(x), solver, guess, max_steps=STEPS, throw=False).value

    return solve


def contender(entry: Entry, who: str) -> Callable:
    library, _, name = who.rpartition(".")
    return {"": ours, "jaxopt": by_jaxopt, "optimistix": by_optimistix}[library](entry, name)


def compiled(entry: Entry, who: str) -> Callable:
    with jax.enable_x64(True):  # which another thread does not inherit
        return jax.jit(contender(entry, who)).lower(jnp.asarray(entry.guess), jnp.asarray(ASKED)).compile()


def times_of(entry: Entry, contenders: list[str]) -> dict[str, float]:
    """The median seconds of those that solve the problem."""
    guess, calls = jnp.asarray(entry.guess), {}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # nothing is timed while this runs
        solvers = dict(zip(contenders, pool.map(functools.partial(compiled, entry), contenders), strict=True))
    for who, solve in solvers.items():
        for tolerance in [10.0**-k for k in range(3, 10)] if who.startswith("optimistix") else [ASKED]:
            call = functools.partial(solve, guess, jnp.asarray(tolerance))
            if judge(entry, np.asarray(call())).solved:
                calls[who] = call
                break
    if len(calls) < 2:
        return {}
    times = interleaved(calls, seconds=0.3, least=5)
    return {who: statistics.median(taken) for who, taken in times.items()}


def too_slow() -> set[tuple[str, str]]:
    """Problem and contender of the runs that took more than 20 seconds."""
    rows = map(json.loads, TABLE.read_text().splitlines())
    return {(row["problem"], row["solver"].removeprefix("smooth.")) for row in rows if (row.get("seconds") or 0) > 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1000, help="unknowns")
    parser.add_argument("--every", type=int, default=1, help="take one of so many problems; writes no file if more than one")
    parser.add_argument("--only", default="", help="methods whose name contains this; writes no file")
    parser.add_argument("--kept", type=pathlib.Path, help="where to keep the rows that are done, a line for each problem and set of methods, and to take up from")
    options = parser.parse_args()
    lines = options.kept.read_text().splitlines() if options.kept and options.kept.exists() else []
    done = {(problem, first): rows for problem, first, rows in map(json.loads, lines)}
    left_out = too_slow()
    with jax.enable_x64(True):
        for kind in CONTESTS:
            cards = [card for card in catalogue.cards() if card.kind == kind]
            for card in cards[:: options.every]:
                entry = Entry(catalogue.load(card), card.name, card.kind)
                if entry.size > options.most:
                    continue
                for mine, theirs in CONTESTS[kind]:
                    if (card.name, mine[0]) in done or not any(options.only in name for name in mine):
                        continue
                    times = times_of(entry, [who for who in (*mine, *theirs) if (card.name, who) not in left_out])
                    rows = [
                        {"problem": card.name, "unknowns": entry.size, "method": name, "rival": rival, "microseconds": 1e6 * times[name],
                         "microseconds of the rival": 1e6 * times[rival], "ratio": times[name] / times[rival]}
                        for name in mine for rival in theirs if name in times and rival in times
                    ]  # fmt: skip
                    print(card.name, {f"{row['method']}/{row['rival']}": round(row["ratio"], 2) for row in rows}, flush=True)
                    done[card.name, mine[0]] = rows
                    if options.kept:
                        with options.kept.open("a") as kept:
                            kept.write(json.dumps([card.name, mine[0], rows]) + "\n")
                jax.clear_caches()
    claims, rows = [], [row for some in done.values() for row in some]
    for name, rival in dict.fromkeys((row["method"], row["rival"]) for row in rows):
        ratios = [row["ratio"] for row in rows if (row["method"], row["rival"]) == (name, rival)]
        claims.append((f"{name}: median over {len(ratios)} problems of its time over that of {rival}", statistics.median(ratios), 1.0))
    if options.every == 1 and not options.only and options.most >= 1000:
        record.write("collection_vs_peers", "The collection, beside JAXopt and Optimistix", rows, claims)
    else:
        for claim in claims:
            print(claim)


if __name__ == "__main__":
    main()
