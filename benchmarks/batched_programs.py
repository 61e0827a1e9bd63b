"""A thousand random programs at once: ours under `vmap`, against loops over OSQP and SciPy.

    python benchmarks/batched_programs.py [--instances 1000] [--seconds 5] [--only TEXT]

Needs osqp (the extra `peers`). Bars: a batch takes at most a twentieth of the time of the faster loop (of those that solve the
instances); solutions agree with the loop's to 1e-5; on every instance the gradient agrees with central differences (extrapolated from two steps) to 1e-4,
but for those where a constraint is weakly active, which are counted and may have no gradient. The differences are those of solutions as
accurate as can be had, whatever method the gradient belongs to. An interior method at 1e-12 still knows to 1e-6 only where a
constraint is nearly inactive; so for quadratic programs NumPy solves the KKT system of its active set, and changes that set until no
constraint is violated and no multiplier negative: exact to rounding.

**Quadratic programs**: 20 unknowns, 5 equalities, 20 inequalities, a strongly convex objective; feasible by construction, about half
of the inequalities near enough to matter. **Nonlinear programs**: 6 unknowns, a soft maximum of affine functions plus a
double well, inside a ball, with one linear equality, a bilinear inequality and bounds; not convex.

**The loops** are what somebody without batches writes: one `osqp.OSQP()` set up and solved for each instance, with matrices that
are sparse already, polishing, and tolerances of 1e-6 (and its defaults, 1e-3, shown beside); `scipy.optimize.minimize` by SLSQP with
exact gradients. Functions for SciPy are written in NumPy, which costs it less than calls into JAX would. OSQP is timed in its
faster setting; the comparison of solutions is with the accurate one. A nonlinear program may have several local solutions: where the
two disagree in the objective as well, the instance is counted as another local solution if both satisfy the KKT conditions.

Compilation is apart. Everything is in double precision.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import record
import scipy.optimize
import scipy.sparse

import optimand as om
from optimand import smooth

__all__: list[str] = []

BAR = 1 / 20


class Family(NamedTuple):
    """Random instances: `draw(key)` is the data of one, whose leaf number `moved` is differentiated, against differences of a `step` of what
    `accurate` finds, polished by `polish`."""

    draw: Callable
    problem: Callable
    guess: Callable
    moved: int
    accurate: om.Method
    polish: Callable
    step: float
    methods: dict[str, om.Method]
    loops: dict[str, Callable]


def rows_of(data):
    """The instances as tuples of NumPy arrays."""
    return list(zip(*map(np.asarray, data), strict=True))


# Quadratic programs.

UNKNOWNS, EQUALITIES, INEQUALITIES = 20, 5, 20


def draw_quadratic(key):
    keys = jax.random.split(key, 6)
    factor = jax.random.normal(keys[0], (UNKNOWNS, UNKNOWNS))
    P = factor @ factor.T / UNKNOWNS + 0.1 * jnp.eye(UNKNOWNS)
    q = jax.random.normal(keys[1], (UNKNOWNS,))
    A, G = (jax.random.normal(k, (rows, UNKNOWNS)) for k, rows in ((keys[2], EQUALITIES), (keys[3], INEQUALITIES)))
    inside = jax.random.normal(keys[4], (UNKNOWNS,))
    return P, q, A, A @ inside, G, G @ inside + 0.5 * jax.random.uniform(keys[5], (INEQUALITIES,))


def by_osqp(data, tolerance):
    import osqp

    found = []
    for P, q, C, low, up in data:
        solver = osqp.OSQP()
        solver.setup(P, q, C, low, up, verbose=False, polishing=True, eps_abs=tolerance, eps_rel=tolerance, max_iter=20_000)
        found.append(solver.solve().x)
    return np.array(found)


def for_osqp(data):
    """What OSQP takes, made before the clock runs."""
    return [
        (scipy.sparse.csc_matrix(np.triu(P)), q, scipy.sparse.csc_matrix(np.vstack([A, G])),
         np.concatenate([b, np.full(len(h), -np.inf)]), np.concatenate([b, h]))
        for P, q, A, b, G, h in zip(*map(np.asarray, data), strict=True)
    ]  # fmt: skip


def quadratic_by_slsqp(data):
    found = []
    for P, q, A, b, G, h in data:
        constraints = [
            {"type": "eq", "fun": lambda x, A=A, b=b: A @ x - b, "jac": lambda x, A=A: A},
            {"type": "ineq", "fun": lambda x, G=G, h=h: h - G @ x, "jac": lambda x, G=G: -G},
        ]
        objective = lambda x, P=P, q=q: (0.5 * x @ P @ x + q @ x, P @ x + q)
        found.append(
            scipy.optimize.minimize(
                objective, np.zeros(len(q)), jac=True, method="SLSQP", constraints=constraints, options={"ftol": 1e-12}
            ).x
        )
    return np.array(found)


def by_active_sets(data, value: om.PrimalDual) -> om.PrimalDual:
    """The solutions exact to rounding, from accurate ones; NaN where no active set is found."""
    x, mu = np.array(value.primal), np.array(value.inequality)
    for i, (P, q, A, b, G, h) in enumerate(rows_of(data)):
        active, seen = mu[i] > h - G @ x[i], set()
        while active.tobytes() not in seen:
            seen.add(active.tobytes())
            rows = np.vstack([A, G[active]])
            system = np.block([[P, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
            found = np.linalg.solve(system, np.concatenate([-q, b, h[active]]))
            x[i], mu[i] = found[: len(q)], 0
            mu[i, active] = found[len(q) + len(b) :]
            wrong = np.where(active, mu[i] < 0, G @ x[i] > h + 1e-13 * (1 + np.abs(h)))
            if not wrong.any():
                break
            active = active ^ wrong
        else:
            x[i] = np.nan
    return dataclasses.replace(value, primal=jnp.asarray(x), inequality=jnp.asarray(mu))


# Nonlinear programs.

SIZE, PIECES = 6, 8


def draw_nonlinear(key):
    keys = jax.random.split(key, 3)
    slopes, offsets = jax.random.normal(keys[0], (PIECES, SIZE)), jax.random.normal(keys[1], (PIECES,))
    return slopes, offsets, 0.5 * jax.random.normal(keys[2], (SIZE,))


def nonlinear_value(x, slopes, offsets, tilt):
    return jax.nn.logsumexp(slopes @ x + offsets) + 0.25 * jnp.sum((x**2 - 0.5) ** 2) + tilt @ x


def nonlinear_equality(x, slopes, offsets, tilt):
    return jnp.sum(x, keepdims=True) - 0.5


def nonlinear_inequality(x, slopes, offsets, tilt):
    return jnp.stack([x @ x - 2.0, x[0] * x[1] - x[2] - 0.3])


def nonlinear(slopes, offsets, tilt):
    return om.Constrained(
        nonlinear_value, slopes, offsets, tilt,
        equalities=nonlinear_equality, inequalities=nonlinear_inequality, bounds=(-0.8, 1.0),
    )  # fmt: skip


def nonlinear_by_slsqp(data):
    ones = np.ones(SIZE)

    def curvature(x):
        return np.array([-2 * x, [-x[1], -x[0], 1.0, *np.zeros(SIZE - 3)]])

    constraints = [
        {"type": "eq", "fun": lambda x: np.sum(x) - 0.5, "jac": lambda x: ones},
        {"type": "ineq", "fun": lambda x: np.array([2.0 - x @ x, 0.3 + x[2] - x[0] * x[1]]), "jac": curvature},
    ]
    bounds = scipy.optimize.Bounds(np.full(SIZE, -0.8), ones)
    found = []
    for slopes, offsets, tilt in data:

        def objective(x, slopes=slopes, offsets=offsets, tilt=tilt):
            levels = slopes @ x + offsets
            top = levels.max()
            weights = np.exp(levels - top)
            total = weights.sum()
            well = x**2 - 0.5
            value = top + np.log(total) + 0.25 * well @ well + tilt @ x
            return value, weights @ slopes / total + well * x + tilt

        found.append(
            scipy.optimize.minimize(
                objective, np.full(SIZE, 0.5 / SIZE), jac=True, method="SLSQP", bounds=bounds, constraints=constraints,
                options={"ftol": 1e-12, "maxiter": 500},
            ).x
        )  # fmt: skip
    return np.array(found)


FAMILIES = {
    "quadratic programs": Family(
        draw_quadratic,
        smooth.QuadraticProgram,
        lambda: jnp.zeros(UNKNOWNS),
        1,
        smooth.QuadraticInteriorPoint(tolerance=1e-12),
        by_active_sets,
        1e-4,  # solutions are piecewise linear
        {
            "ADMM": smooth.ADMM(tolerance=1e-10),
            "QuadraticInteriorPoint": smooth.QuadraticInteriorPoint(tolerance=1e-10),
        },
        {
            "OSQP, 1e-6": lambda data: functools.partial(by_osqp, for_osqp(data), 1e-6),
            "OSQP, 1e-3": lambda data: functools.partial(by_osqp, for_osqp(data), 1e-3),
            "SciPy SLSQP": lambda data: functools.partial(quadratic_by_slsqp, rows_of(data)),
        },
    ),
    "nonlinear programs": Family(
        draw_nonlinear,
        nonlinear,
        lambda: jnp.full(SIZE, 0.5 / SIZE),
        2,
        smooth.SQP(tolerance=1e-9),
        lambda data, value: value,
        1e-5,
        {"SQP": smooth.SQP(tolerance=1e-9)},
        {"SciPy SLSQP": lambda data: functools.partial(nonlinear_by_slsqp, rows_of(data))},
    ),
}


def median_time(call: Callable, seconds: float) -> tuple[float, Any]:
    """The median of as many calls as fit, after one that is not counted."""
    out = jax.block_until_ready(call())
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        clock = time.perf_counter()
        out = jax.block_until_ready(call())
        times.append(time.perf_counter() - clock)
    return statistics.median(times), out


def compare(name: str, family: Family, instances: int, seconds: float):
    """Rows and claims of one family."""
    data = jax.jit(jax.vmap(family.draw))(jax.random.split(jax.random.key(2026), instances))
    rows, claims, times, found = [], [], {}, {}
    for who, prepare in family.loops.items():
        call = prepare(data)
        clock = time.perf_counter()
        found[who] = call()
        times[who] = time.perf_counter() - clock  # long enough to need no repetition
        rows.append({"case": name, "contender": f"{who}, a loop", "seconds": times[who]})
    fastest = min(times, key=times.__getitem__)
    reference = found[next(iter(family.loops))]

    for who, method in family.methods.items():

        def solve(*data, method=method):
            return om.solve(family.problem(*data), method, family.guess(), throw=False)

        batch = jax.jit(jax.vmap(solve))
        clock = time.perf_counter()
        compiled = batch.lower(*data).compile()
        compiling = time.perf_counter() - clock
        taken, solution = median_time(functools.partial(compiled, *data), seconds)
        solved = np.asarray(solution.result == om.Result.converged)
        residual = jax.jit(jax.vmap(lambda value, *data: family.problem(*data).kkt_residual(value).largest))
        worst = np.asarray(residual(solution.value, *data))
        gap = np.max(np.abs(np.asarray(solution.value.primal) - reference), axis=1)
        value = jax.jit(jax.vmap(lambda x, *data: family.problem(*data).value(x)))
        ours, theirs = (np.asarray(value(x, *data)) for x in (solution.value.primal, jnp.asarray(reference)))
        elsewhere = (gap > 1e-5) & (np.abs(ours - theirs) > 1e-7) & (worst <= 1e-5)
        gap = np.where(elsewhere, 0, gap)
        differing, kinks, most = gradients(family, solve, solution.value, data)
        rows.append(
            {"case": name, "contender": f"{who}, a batch", "seconds": taken, "compilation [s]": compiling,
             "converged": int(solved.sum()), "steps at most": int(np.max(solution.steps)), "largest KKT residual": float(worst.max()),
             "other local solutions": int(elsewhere.sum()), "of them better": int((elsewhere & (ours < theirs)).sum()),
             "weakly active": kinks, "largest error of a gradient": most}
        )  # fmt: skip
        claims += [
            (f"{name}: time of {who} over that of the loop over {fastest}", taken / times[fastest], BAR),
            (f"{name}: instances that {who} does not solve", float(instances - solved.sum()), 0.0),
            (f"{name}: largest difference of {who} from {next(iter(family.loops))}", float(gap.max()), 1e-5),
            (f"{name}: gradients of {who} that are not those of central differences", float(differing), 0.0),
        ]
    return rows, claims


def gradients(family: Family, solve: Callable, found, data) -> tuple[int, int, float]:
    """Instances whose gradient is wrong though no constraint is weakly active, those where one is, and the largest error."""
    shape = data[family.moved].shape
    weights, direction = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(7)))
    moved_by = lambda step: [leaf + step * direction if i == family.moved else leaf for i, leaf in enumerate(data)]

    def gradient(weights, *data):
        def outer(moved):
            return jnp.vdot(weights, solve(*(moved if i == family.moved else leaf for i, leaf in enumerate(data))).value.primal)

        return jax.grad(outer)(data[family.moved])

    along = jnp.sum(jax.jit(jax.vmap(gradient))(weights, *data) * direction, axis=1)
    accurately = lambda *data: om.solve(family.problem(*data), family.accurate, family.guess(), throw=False)
    batch, h = jax.jit(jax.vmap(accurately)), family.step
    known = lambda data: family.polish(data, batch(*data).value)
    here, ahead, behind, nearer, nearer_behind = (known(moved_by(step)) for step in (0.0, h, -h, h / 2, -h / 2))
    slope = lambda a, b, h: jnp.sum(weights * (a.primal - b.primal), axis=1) / (2 * h)
    # Extrapolated: some solutions move so far and so curved that plain differences are wrong in the third figure.
    numeric = (4 * slope(nearer, nearer_behind, h / 2) - slope(ahead, behind, h)) / 3
    error = np.asarray(jnp.abs(along - numeric) / (1 + jnp.abs(numeric)))

    # A constraint that becomes active between the points of a difference makes them as meaningless as a kink at the solution.
    # What the solution that was differentiated says of itself counts too: it comes with a warning.
    weak = jax.vmap(lambda value, *data: family.problem(*data).weakly_active(value))
    kinks = [np.asarray(leaf) for value in (here, found) for leaf in jax.tree_util.tree_leaves(weak(value, *data))]
    sets = [jax.tree_util.tree_leaves(_signed(value)) for value in (here, ahead, behind, nearer, nearer_behind)]
    kinks += [np.asarray((a > 1e-7) != (b > 1e-7)) for other in sets[1:] for a, b in zip(sets[0], other, strict=True)]
    kink = functools.reduce(np.logical_or, [leaf.any(axis=1) for leaf in kinks])
    return int((~(error <= 1e-4) & ~kink).sum()), int(kink.sum()), float(np.max(np.where(kink, 0, error)))


def _signed(value: om.PrimalDual) -> tuple:
    return value.inequality, value.lower, value.upper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each batch")
    parser.add_argument("--only", default="", help="families whose name contains this")
    options = parser.parse_args()
    rows, claims = [], []
    with jax.enable_x64(True):
        for name, family in FAMILIES.items():
            if options.only in name:
                more_rows, more_claims = compare(name, family, options.instances, options.seconds)
                rows += more_rows
                claims += more_claims
    if options.instances == 1000 and not options.only:
        record.write("batched_programs", "A thousand programs at once", rows, claims)
    else:  # a trial, which leaves no figures
        for row in [*rows, *claims]:
            print(row)


if __name__ == "__main__":
    main()
