"""Ten thousand to a million unknowns: our L-BFGS methods against SciPy's compiled L-BFGS-B, with a JAX objective given to both.

    python benchmarks/large_vs_scipy.py [--most 1000000] [--seconds 20] [--only TEXT]

Bar: the solve takes at most 1.0 times the time of SciPy's, for every problem and size.

**Same accuracy.** Both stop by the largest entry of the projected gradient. The target is a hundred-thousandth of what it is at the guess, and both
get the loosest of the target times 10^(-k/4), k = 0, 1, ..., with which that of the answer, measured apart, is not above it.

**Same options.** Ten pairs. SciPy calls a compiled JAX function for value and gradient together, on arrays that cross between NumPy and JAX
without a copy where JAX can do so; its test of the objective's decrease is switched off; it runs with as many threads of BLAS as there are cores and
with one, and the faster counts. Ours has its defaults: `LBFGSB`, which is the same method, and on problems without bounds `LBFGS` beside
it, where the faster one counts.

Repeats are interleaved, medians count, compilation is apart. Everything is in double precision.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
import scipy.optimize
import threadpoolctl
from timing import interleaved, median

import optimand as om
from optimand import smooth

__all__: list[str] = []

STEPS = 20_000
ACCURACY = 1e-5


class Large(NamedTuple):
    """`fn` of a vector, where to start, and bounds (None: there are none)."""

    fn: Callable
    guess: np.ndarray
    bounds: tuple[float, float] | tuple[np.ndarray, float] | None


def picture(size: int, *, bounded: bool) -> Large:
    """Edge-preserving smoothing of a noisy disc; values between 0 and 1 if bounded."""
    side = round(size**0.5)
    i, j = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    noisy = np.where((i - 0.5) ** 2 + (j - 0.4) ** 2 < 0.09, 1.0, 0.0)
    noisy = noisy + 0.2 * np.random.default_rng(0).standard_normal((side, side))

    def fn(x):
        u = x.reshape(side, side)
        edges = jnp.sum(jnp.sqrt(jnp.diff(u, axis=0) ** 2 + 0.01)) + jnp.sum(jnp.sqrt(jnp.diff(u, axis=1) ** 2 + 0.01))
        return 0.5 * jnp.sum((u - noisy) ** 2) + 0.3 * edges

    return Large(fn, np.full(side * side, 0.5), (0.0, 1.0) if bounded else None)


def valley(size: int) -> Large:
    """Rosenbrock's function of neighbouring pairs with different scales, under bounds that cut off the minimiser of every third pair."""
    scale = jnp.asarray(np.linspace(10, 100, size // 2))

    def fn(x):
        a, b = x[::2], x[1::2]
        return jnp.sum(scale * (b - a**2) ** 2 + (1 - a) ** 2)

    lower = np.where(np.arange(size) % 6 == 1, 1.2, -2.0)
    return Large(fn, np.tile([-1.2, 1.5], size // 2), (lower, 2.0))


def obstacle(size: int) -> Large:
    """A membrane over an obstacle: the ill-conditioned one, whose steps grow with the side of the grid."""
    side = round(size**0.5)
    h = 1 / (side + 1)
    i, j = np.meshgrid(h * np.arange(1, side + 1), h * np.arange(1, side + 1), indexing="ij")
    ground = np.maximum(0.0, np.sin(3 * np.pi * i) * np.sin(2 * np.pi * j)) ** 3

    def fn(x):
        u = jnp.pad(x.reshape(side, side), 1)
        return 0.5 * (jnp.sum(jnp.diff(u, axis=0) ** 2) + jnp.sum(jnp.diff(u, axis=1) ** 2)) + h**2 * jnp.sum(u)

    return Large(fn, np.maximum(ground, 0.5).ravel(), (ground.ravel(), np.inf))


FAMILIES: dict[str, tuple[Callable[[int], Large], int]] = {
    "picture": (functools.partial(picture, bounded=False), 1_000_000),
    "picture between 0 and 1": (functools.partial(picture, bounded=True), 1_000_000),
    "valleys": (valley, 1_000_000),
    "obstacle": (obstacle, 100_000),  # a million of these take a thousand steps
}
SIZES = (10_000, 100_000, 1_000_000)


def projected_gradient(case: Large, x: Any) -> float:
    """The largest entry of P(x - g) - x, which is that of the gradient where there are no bounds."""
    lower, upper = case.bounds or (-np.inf, np.inf)
    gradient = np.asarray(jax.jit(jax.grad(case.fn))(jnp.asarray(x)))
    return float(np.max(np.abs(np.clip(x - gradient, lower, upper) - x)))


def by_scipy(case: Large, threads: int | None = None) -> Callable[[float], tuple[np.ndarray, int]]:
    compiled = jax.jit(jax.value_and_grad(case.fn))

    def fn(x):
        value, gradient = compiled(x)
        return float(value), np.asarray(gradient)

    bounds = None
    if case.bounds is not None:
        bounds = scipy.optimize.Bounds(*(np.broadcast_to(np.asarray(side), case.guess.shape) for side in case.bounds))

    def solve(tolerance):
        options = {"maxcor": 10, "ftol": 0.0, "gtol": tolerance, "maxiter": STEPS, "maxfun": 10 * STEPS}
        with threadpoolctl.threadpool_limits(threads, "blas"):
            found = scipy.optimize.minimize(fn, case.guess, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return found.x, found.nfev

    return solve


def ours(case: Large, method: Callable) -> Callable[[float], tuple[Any, Any]]:
    problem = om.Minimize(case.fn) if case.bounds is None else om.Constrained(case.fn, bounds=case.bounds)

    @jax.jit
    def solve(guess, tolerance):
        found = om.solve(problem, method(tolerance=tolerance), guess, budget=om.Budget(steps=STEPS), throw=False)
        value = found.value.primal if isinstance(found.value, om.PrimalDual) else found.value
        return value, found.counters.gradients

    return lambda tolerance: solve(case.guess, tolerance)


def loosest(solve: Callable, case: Large, target: float) -> float | None:
    """The loosest tolerance of the grid with which the target is reached."""
    for k in range(8):
        tolerance = target * 10.0 ** (-k / 4)
        if projected_gradient(case, np.asarray(solve(tolerance)[0])) <= target:
            return tolerance
    return None


def compare(name: str, size: int, case: Large, seconds: float):
    """Rows, and the ratio of the times."""
    target = ACCURACY * projected_gradient(case, case.guess)
    contenders: dict[str, Callable] = {"SciPy": by_scipy(case), "SciPy, one thread": by_scipy(case, 1), "LBFGSB": ours(case, smooth.LBFGSB)}
    if case.bounds is None:
        contenders["LBFGS"] = ours(case, smooth.LBFGS)
    compiling = {}
    for who, solve in contenders.items():
        clock = time.perf_counter()
        jax.block_until_ready(solve(np.inf)[0])  # no steps: what this takes is compilation, and one evaluation
        compiling[who] = time.perf_counter() - clock
    tolerance = {who: loosest(solve, case, target) for who, solve in contenders.items()}
    calls = {who: functools.partial(solve, tolerance[who]) for who, solve in contenders.items() if tolerance[who] is not None}
    times = median(interleaved(calls, seconds=seconds, least=3))
    rows = []
    for who in contenders:
        row = {"problem": name, "unknowns": case.guess.size, "contender": who, "compilation [s]": compiling[who]}
        if who in calls:
            x, evaluations = calls[who]()
            row |= {"seconds": times[who], "evaluations": int(evaluations), "microseconds an evaluation": 1e6 * times[who] / int(evaluations),
                    "projected gradient": projected_gradient(case, np.asarray(x)), "target": target}  # fmt: skip
        else:
            row |= {"seconds": float("nan"), "note": "does not reach the target"}
        rows.append(row)
    fastest = lambda theirs: min((time for who, time in times.items() if who.startswith("SciPy") is theirs), default=np.inf)
    return rows, fastest(False) / fastest(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=SIZES[-1], help="unknowns; with fewer than a million it writes no file")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each comparison")
    parser.add_argument("--only", default="", help="problems whose name contains this; writes no file")
    options = parser.parse_args()
    rows, claims = [], []
    with jax.enable_x64(True):
        for name, (make, most) in FAMILIES.items():
            for size in SIZES:
                if size > min(most, options.most) or options.only not in name:
                    continue
                found, ratio = compare(name, size, make(size), options.seconds)
                rows += found
                claims.append((f"{name}, {size:,} unknowns: time over that of SciPy's L-BFGS-B", ratio, 1.0))
                for row in [*found, claims[-1]]:
                    print(row, flush=True)
                jax.clear_caches()
    if not options.only and options.most >= SIZES[-1]:
        record.write("large_vs_scipy", "Many unknowns, beside SciPy", rows, claims)


if __name__ == "__main__":
    main()
