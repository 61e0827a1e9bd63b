"""The same algorithm on the same problem to the same accuracy: ours, JAXopt's and Optimistix's, solve and gradient.

    python benchmarks/methods_vs_peers.py [--seconds 1.5] [--only TEXT]

Needs jaxopt (the extra `peers`) beside optimand. Bars: the solve at most 1.0 times the time of the fastest rival, the
implicit gradient likewise.

**Same accuracy.** Solvers stop by different rules: ours and most of JAXopt's by the norm of the gradient or of the
residual (JAXopt's proximal gradient by the length of a step of its accelerated sequence, its Anderson by the residual
before the last application of the map), Optimistix's by the length of the step and the decrease together. So the rule is
not compared but used: each contender gets the loosest tolerance of a grid, 10^(-k/4), at which the defect of its answer,
measured apart in double precision, is at most the target. The defects reached and the iterations are in the table.

**Same options.** Step sizes, memories and dampings are equal where the algorithm has them. Where a rival has more than one
line search, linear solver or regularisation, each is a contender and the fastest counts. Ours has its defaults. Optimistix
has no Anderson acceleration; its plain iteration is shown and does not count, being another method.

**The gradient** is that of the sum of the sines of the solution. Its time is that of value and gradient minus that of the
value, both from a guess at the contender's own answer, so that next to nothing is spent on the solve, and both the shortest
that was measured: of a difference of some microseconds medians know nothing. Linear systems are solved to the same tolerance, 1e-8 (or directly), and the relative difference of the derivative from ours
is in the table. Optimistix' default, a dense factorisation, is left out above 1,000 unknowns, where conjugate gradients
(or GMRES) take its place.

Repeats are interleaved and medians count; compile time is not part of any figure. Where arrays come to lie in memory changes
a time by some percent, so everything is compiled and timed afresh several times, and the median ratio counts; the rows are
those of the last.
"""

import argparse
import functools
import statistics

import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import optimistix as optx
import problems
import record
from jaxopt import linear_solve
from timing import interleaved, median

import optimand as om
from optimand import smooth

STEPS = 5000
COMPILATIONS = 3
RTOL = 1e-8


def ours(problem, method):
    """(value, steps) of a guess, the parameter and a tolerance."""

    def solve(guess, theta, tolerance):
        solution = om.solve(problem(theta), method(tolerance), guess, budget=om.Budget(steps=STEPS), throw=False)
        return solution.value, solution.steps

    return solve


def theirs(make, fn, between=()):
    """The same by a solver of JAXopt, with `between` the guess and the parameter."""

    def solve(guess, theta, tolerance):
        found = make(fn, tol=tolerance, maxiter=STEPS).run(guess, *between, theta)
        return found.params, found.state.iter_num

    return solve


def optimistix(entry, fn, make, linear_solver=None, tags=frozenset()):
    """The same by Optimistix."""
    adjoint = optx.ImplicitAdjoint() if linear_solver is None else optx.ImplicitAdjoint(linear_solver)

    def solve(guess, theta, tolerance):
        found = entry(
            fn, make(tolerance, tolerance), guess, theta, max_steps=STEPS, throw=False, adjoint=adjoint, tags=tags
        )
        return found.value, found.stats["num_steps"]

    return solve


def jaxopt_solvers(symmetric: bool, size: int) -> dict:
    """The linear solvers that a user of JAXopt would choose from."""
    solvers = {"normal CG": functools.partial(linear_solve.solve_normal_cg, tol=RTOL)}
    if symmetric:
        solvers["CG"] = functools.partial(linear_solve.solve_cg, tol=RTOL)
    else:
        solvers["GMRES"] = functools.partial(linear_solve.solve_gmres, tol=RTOL)
        solvers["BiCGSTAB"] = functools.partial(linear_solve.solve_bicgstab, tol=RTOL)
    if size <= 1000:
        solvers["LU"] = linear_solve.solve_lu
    return solvers


def tasks():
    """(task, size, case, contenders of the solve, contenders of the gradient); of each, a function of (guess, theta, tolerance)."""
    partial = functools.partial
    cg, gmres = lx.CG(RTOL, 0.0), lx.GMRES(RTOL, 0.0)
    for size, case in {"100": problems.logistic(), "10,000": problems.smoothing()}.items():
        small = case.guess.size <= 1000
        minimise = lambda theta, case=case: om.Minimize(case.fn, theta)
        step = case.step_size
        descend = partial(jaxopt.GradientDescent, stepsize=step, acceleration=False)
        descent = lambda rtol, atol, step=step: optx.GradientDescent(step, rtol, atol)
        mine = ours(minimise, lambda tolerance, step=step: smooth.GradientDescent(step, tolerance=tolerance))
        symmetric = {f"jaxopt, {name}": solver for name, solver in jaxopt_solvers(True, case.guess.size).items()}
        yield "gradient descent", size, case, {
            "optimand": mine,
            "jaxopt": theirs(descend, case.fn),
            "optimistix": optimistix(optx.minimise, case.fn, descent),
        }, {
            "optimand": mine,
            **{name: theirs(partial(descend, implicit_diff_solve=s), case.fn) for name, s in symmetric.items()},
            **({"optimistix, default": optimistix(optx.minimise, case.fn, descent)} if small else {}),
            "optimistix, CG": optimistix(
                optx.minimise, case.fn, descent, cg, frozenset({lx.positive_semidefinite_tag})
            ),
        }  # fmt: skip
        mine = ours(minimise, lambda tolerance: smooth.LBFGS(tolerance=tolerance))
        searches = {
            "jaxopt, zoom": partial(jaxopt.LBFGS, linesearch="zoom"),
            "jaxopt, backtracking": partial(jaxopt.LBFGS, linesearch="backtracking"),
            "jaxopt, Hager-Zhang": partial(jaxopt.LBFGS, linesearch="hager-zhang"),
        }
        make = lambda rtol, atol: optx.LBFGS(rtol, atol, history_length=10)
        yield "L-BFGS", size, case, {
            "optimand": mine,
            **{name: theirs(search, case.fn) for name, search in searches.items()},
            "optimistix": optimistix(optx.minimise, case.fn, make),
        }, {
            "optimand": mine,
            **{
                name: theirs(partial(jaxopt.LBFGS, linesearch="backtracking", implicit_diff_solve=s), case.fn)
                for name, s in symmetric.items()
            },
            "optimistix, CG": optimistix(optx.minimise, case.fn, make, cg, frozenset({lx.positive_semidefinite_tag})),
        }  # fmt: skip
    for size, case in {"4 x 60": problems.curve(), "30 x 10,000": problems.peaks()}.items():
        mine = ours(
            lambda theta, case=case: om.LeastSquares(case.fn, theta),
            lambda tolerance: smooth.LevenbergMarquardt(tolerance=tolerance),
        )
        marquardt = partial(jaxopt.LevenbergMarquardt, materialize_jac=True, solver="cholesky", damping_parameter=1e-3)
        levenberg = lambda rtol, atol: optx.LevenbergMarquardt(rtol, atol)
        least_squares = optimistix(optx.least_squares, case.fn, levenberg)
        yield "Levenberg-Marquardt", size, case, {
            "optimand": mine,
            "jaxopt, Cholesky": theirs(marquardt, case.fn),
            "jaxopt, QR": theirs(partial(marquardt, solver="qr"), case.fn),
            "optimistix": least_squares,
        }, {
            "optimand": mine,
            **{
                f"jaxopt, {name}": theirs(partial(marquardt, implicit_diff_solve=s), case.fn)
                for name, s in jaxopt_solvers(True, case.guess.size).items()
            },
            "optimistix, default": least_squares,
        }  # fmt: skip
    for size, case in {"100": problems.contraction(False), "10,000": problems.contraction(True)}.items():
        mine = ours(
            lambda theta, case=case: om.FixedPoint(case.fn, theta),
            lambda tolerance: smooth.Anderson(tolerance=tolerance),
        )
        anderson = partial(jaxopt.AndersonAcceleration, history_size=5)
        yield "Anderson", size, case, {
            "optimand": mine,
            **{f"jaxopt, ridge {r:g}": theirs(partial(anderson, ridge=r), case.fn) for r in (1e-5, 1e-8, 1e-12)},
            "optimistix, plain iteration (another method)": optimistix(optx.fixed_point, case.fn, optx.FixedPointIteration),
        }, {
            "optimand": mine,
            **{
                f"jaxopt, {name}": theirs(partial(anderson, implicit_diff_solve=s), case.fn)
                for name, s in jaxopt_solvers(False, case.guess.size).items()
            },
            **({"optimistix, default": optimistix(optx.fixed_point, case.fn, optx.FixedPointIteration)}
               if case.guess.size <= 1000 else {}),
            "optimistix, GMRES": optimistix(optx.fixed_point, case.fn, optx.FixedPointIteration, gmres),
        }  # fmt: skip
    prox = lambda x, parameters, scaling=1.0: problems.shrink(x, scaling)
    for size, case in {"100": problems.lasso(False), "10,000": problems.lasso(True)}.items():
        mine = ours(
            lambda theta, case=case: om.Composite(case.fn, problems.shrink, theta),
            lambda tolerance: smooth.ProximalGradient(tolerance=tolerance),
        )
        make = partial(jaxopt.ProximalGradient, prox=prox)
        solver = lambda fn, make=make, **options: make(fn, **options)
        yield "proximal gradient", size, case, {
            "optimand": mine,
            "jaxopt": theirs(solver, case.fn, (None,)),
            "jaxopt, no acceleration": theirs(partial(solver, acceleration=False), case.fn, (None,)),
        }, {
            "optimand": mine,
            **{
                f"jaxopt, {name}": theirs(partial(solver, implicit_diff_solve=s), case.fn, (None,))
                for name, s in jaxopt_solvers(False, case.guess.size).items()
            },
        }  # fmt: skip


def loosest(solve, case):
    """The loosest tolerance of the grid with which the target is reached; None if none does."""
    for k in range(0, 53):
        tolerance = 10.0 ** (1 - k / 4)
        if float(case.defect(solve(case.guess, case.theta, tolerance)[0], case.theta)) <= case.target:
            return tolerance
    return None


def compare(task, size, case, solvers, seconds):
    """Rows of the solve, and the ratio to the fastest rival."""
    compiled = {name: jax.jit(solve) for name, solve in solvers.items()}
    tolerance = {name: loosest(solve, case) for name, solve in compiled.items()}
    fit = {name: solve for name, solve in compiled.items() if tolerance[name] is not None}
    calls = {n: functools.partial(solve, case.guess, case.theta, tolerance[n]) for n, solve in fit.items()}
    ratios, times = [], {}
    for _ in range(COMPILATIONS):
        jax.clear_caches()
        times = median(interleaved(calls, seconds=seconds / COMPILATIONS))
        rivals = [time for name, time in times.items() if name != "optimand" and "another method" not in name]
        ratios.append(times["optimand"] / min(rivals))
    rows = []
    for name in compiled:
        row = {"task": task, "unknowns": size, "what": "solve", "contender": name}
        if name in fit:
            value, steps = calls[name]()
            row |= {"milliseconds": 1e3 * times[name], "iterations": int(steps),
                    "defect": float(case.defect(value, case.theta)), "tolerance": tolerance[name]}  # fmt: skip
        else:
            row |= {"milliseconds": float("nan"), "note": f"does not reach {case.target:g} in {STEPS} iterations"}
        rows.append(row)
    return rows, statistics.median(ratios)


def compare_gradients(task, size, case, solvers, seconds):
    """Rows of the implicit gradient alone, and the ratio to the fastest rival."""
    calls, derivative = {}, {}
    best = jax.jit(solvers["optimand"])(case.guess, case.theta, 1e-11)[0]
    for name, solve in solvers.items():

        def value(theta, guess, solve=solve):
            return jnp.sum(jnp.sin(solve(guess, theta, 1e-6)[0]))

        alone, both = jax.jit(value), jax.jit(jax.value_and_grad(value))
        derivative[name] = float(both(case.theta, best)[1])
        calls[name, "value"] = functools.partial(alone, case.theta, best)
        calls[name, "both"] = functools.partial(both, case.theta, best)
    gaps = {name: abs(derivative[name] / derivative["optimand"] - 1) for name in solvers}
    ratios, cost = [], {}
    for _ in range(COMPILATIONS):
        jax.clear_caches()
        times = interleaved(calls, seconds=seconds / COMPILATIONS)
        cost = {name: min(times[name, "both"]) - min(times[name, "value"]) for name in solvers}
        ratios.append(cost["optimand"] / min(cost[name] for name in solvers if name != "optimand" and gaps[name] <= 1e-5))
    rows = [
        {
            "task": task, "unknowns": size, "what": "implicit gradient", "contender": name,
            "milliseconds": 1e3 * cost[name], "difference of the derivative": gaps[name],
        }
        for name in solvers
    ]  # fmt: skip
    return rows, statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing, for each comparison")
    parser.add_argument("--only", default="", help="tasks whose name contains this; writes no file")
    options = parser.parse_args()
    rows, claims = [], []
    for task, size, case, solvers, gradients in tasks():
        if options.only not in f"{task}, {size}":
            continue
        for what, measure, contenders in (
            ("solve", compare, solvers),
            ("implicit gradient", compare_gradients, gradients),
        ):
            found, ratio = measure(task, size, case, contenders, options.seconds)
            rows += found
            claims.append((f"{task}, {size} unknowns: {what}, over the time of the fastest rival", ratio, 1.0))
            if options.only:
                for row in found:
                    print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                print(claims[-1], flush=True)
        jax.clear_caches()
    if not options.only:
        record.write("methods_vs_peers", "Methods against JAXopt and Optimistix", rows, claims,
                     conditions={"seconds of timing for each comparison": options.seconds})  # fmt: skip


if __name__ == "__main__":
    main()
