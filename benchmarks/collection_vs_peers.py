"""The unconstrained and bounded problems of the CUTEst collection: our methods beside the same ones of JAXopt and Optimistix, warm.

    python benchmarks/collection_vs_peers.py [--most 1000] [--every 1] [--only TEXT]

Needs sif2jax and jaxopt (the extra `peers`). Bar, for every pair of methods: the median over the problems that both solve of the
ratio of the times is at most 1.0.

`optimand bench cutest` times the first run of each solver; most of these problems are solved in less than a millisecond, so here every
solve is compiled, run once, and then timed in turns with its rivals. What a solver's own rule takes for an answer is judged as there: KKT
residuals computed apart, at most 1e-5 relative to the scale of the gradient. Ours and JAXopt's are asked for a gradient of 1e-6. Optimistix
stops by the length of a step and the decrease together, and gets the loosest of 1e-3, 1e-4, ..., 1e-9 with which its answer is accepted. Each has 3,000
iterations. Of JAXopt's line searches the default counts.
"""

import argparse
import functools
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
PAIRS = {
    "LBFGS": ("jaxopt.LBFGS", "optimistix.LBFGS"),
    "NonlinearCG": ("jaxopt.NonlinearCG", "optimistix.NonlinearCG"),
    "BFGS": ("jaxopt.BFGS", "optimistix.BFGS"),
    "TrustRegion": ("jaxopt.BFGS", "optimistix.BFGS"),  # another method, which `om.minimize` picks where theirs would take BFGS
    "LBFGSB": ("jaxopt.LBFGSB",),
}
KINDS = {"LBFGSB": "bounded"}


def ours(entry: Entry, name: str) -> Callable:
    method, problem = getattr(smooth, name)(tolerance=ASKED), entry.problem()

    def solve(guess):
        found = om.solve(problem, method, guess, budget=om.Budget(steps=STEPS), record=0, throw=False)
        return found.value.primal if isinstance(found.value, om.PrimalDual) else found.value

    return solve


def by_jaxopt(entry: Entry, name: str) -> Callable:
    solver = getattr(jaxopt, name)(entry.objective, tol=ASKED, maxiter=STEPS, implicit_diff=False)
    if name == "LBFGSB":
        return lambda guess: solver.run(guess, bounds=(jnp.asarray(entry.lower), jnp.asarray(entry.upper))).params
    return lambda guess: solver.run(guess).params


def by_optimistix(entry: Entry, name: str, tolerance: float) -> Callable:
    solver = getattr(optx, name)(rtol=tolerance, atol=tolerance)
    return lambda guess: optx.minimise(lambda x, _: entry.objective(x), solver, guess, max_steps=STEPS, throw=False).value


def candidates(entry: Entry, who: str) -> list[Callable]:
    """What to try, until one is accepted."""
    library, _, name = who.rpartition(".")
    if library == "optimistix":
        return [by_optimistix(entry, name, 10.0**-k) for k in range(3, 10)]
    return [by_jaxopt(entry, name) if library else ours(entry, name)]


def times_of(entry: Entry, contenders: list[str]) -> dict[str, float]:
    """The median seconds of those that solve the problem."""
    guess = jnp.asarray(entry.guess)
    calls = {}
    for who in contenders:
        for solve in candidates(entry, who):
            compiled = jax.jit(solve)
            if judge(entry, np.asarray(compiled(guess))).solved:
                calls[who] = functools.partial(compiled, guess)
                break
    if len(calls) < 2:
        return {}
    times = interleaved(calls, seconds=0.3, least=5)
    return {who: statistics.median(taken) for who, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1000, help="unknowns")
    parser.add_argument("--every", type=int, default=1, help="take one of so many problems; writes no file if more than one")
    parser.add_argument("--only", default="", help="methods whose name contains this; writes no file")
    options = parser.parse_args()
    rows: list[dict] = []
    with jax.enable_x64(True):
        for kind in ("unconstrained", "bounded"):
            cards = [card for card in catalogue.cards() if card.kind == kind]
            for card in cards[:: options.every]:
                entry = Entry(catalogue.load(card), card.name, card.kind)
                if entry.size > options.most:
                    continue
                for mine, theirs in PAIRS.items():
                    if KINDS.get(mine, "unconstrained") != kind or options.only not in mine:
                        continue
                    times = times_of(entry, [mine, *theirs])
                    rows += [
                        {"problem": card.name, "unknowns": entry.size, "method": mine, "rival": rival, "microseconds": 1e6 * times[mine],
                         "microseconds of the rival": 1e6 * times[rival], "ratio": times[mine] / times[rival]}
                        for rival in theirs if mine in times and rival in times
                    ]  # fmt: skip
                print(card.name, {f"{row['method']}/{row['rival']}": round(row["ratio"], 2) for row in rows if row["problem"] == card.name}, flush=True)
                jax.clear_caches()
    claims = []
    for mine, theirs in PAIRS.items():
        for rival in theirs:
            ratios = [row["ratio"] for row in rows if (row["method"], row["rival"]) == (mine, rival)]
            if ratios:
                claims.append((f"{mine}: median over {len(ratios)} problems of its time over that of {rival}", statistics.median(ratios), 1.0))
    if options.every == 1 and not options.only and options.most >= 1000:
        record.write("collection_vs_peers", "The collection, beside JAXopt and Optimistix", rows, claims)
    else:
        for claim in claims:
            print(claim)


if __name__ == "__main__":
    main()
