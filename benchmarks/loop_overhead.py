"""What `solve` costs over a loop written by hand: traced, and eager with progress, history and checkpoints.

    python benchmarks/loop_overhead.py [--seconds 2]

Bars: traced, at most 1.05 times a `jax.lax.while_loop` of the same step; eager, with progress, history and checkpoints, at
most 1.10 times it for steps of 1 ms and more.

The same step is `method.step`, in a loop that ends by the same test; the number of steps is equal. The loop by hand keeps no
history, looks at no budget and does not notice numbers that are not finite. It returns the metrics of the last step: if it
did not, the compiler would drop the objective's value, which gradient descent does not use, and the step would be another
one. For gradient descent there is also a loop
without anything of optimand in it, which does not evaluate the objective, only its gradient; that ratio is shown and not
held to the bar, since a solve always knows its value. Repeats are interleaved, medians count, compile time is not in them.
Where arrays come to lie in memory changes a step by more than the bar, so a traced case is compiled afresh several times,
and the median of those ratios counts.
"""

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import problems
import record
from timing import interleaved, median

import optimand as om
from optimand import smooth

_COMPILATIONS = 5


def traced(problem, method, steps):
    """The solution, the number of steps and the last metrics, by `solve`."""

    def run(guess, theta):
        solution = om.solve(problem(theta), method, guess, budget=om.Budget(steps=steps), throw=False)
        return solution.value, solution.steps, method.metrics(problem(theta), solution.state)

    return jax.jit(run)


def by_hand(problem, method, steps):
    """The same by a loop over `method.step`."""

    def run(guess, theta):
        stated = problem(theta)

        def going(carry):
            state, step = carry
            done = jnp.asarray(method.done(stated, state))
            return (~done if done.dtype == bool else done == 0) & (step < steps)

        def body(carry):
            state, step = carry
            return method.step(stated, state, key=None), step + 1

        begin = (method.init(stated, guess, key=None), jnp.int32(0))
        state, step = jax.lax.while_loop(going, body, begin)
        return method.answer(stated, state), step, method.metrics(stated, state)

    return jax.jit(run)


def plain_descent(fn, step_size, tolerance, steps):
    """Gradient descent in eight lines of JAX."""

    def run(guess, theta):
        gradient = jax.grad(fn)
        going = lambda carry: (jnp.linalg.norm(jnp.ravel(carry[1])) > tolerance) & (carry[2] < steps)

        def body(carry):
            x = carry[0] - step_size * carry[1]
            return x, gradient(x, theta), carry[2] + 1

        x, _, step = jax.lax.while_loop(going, body, (guess, gradient(guess, theta), jnp.int32(0)))
        return x, step

    return jax.jit(run)


def heavy(size: int):
    """An objective whose value and gradient take a millisecond or more: a dense quadratic."""
    matrix = jax.random.normal(jax.random.key(9), (size, size)) / size**0.5

    def fn(x, theta):
        return 0.5 * jnp.sum((matrix @ x) ** 2) + 0.5 * theta * jnp.sum((x - 1) ** 2)

    return problems.Case(fn, jnp.zeros(size), jnp.asarray(0.1), None, 1e-6, 0.2)


def compare_traced(seconds):
    """Rows and claims of the traced form."""
    logistic, smoothing = problems.logistic(), problems.smoothing()
    minimise = lambda case: functools.partial(om.Minimize, case.fn)
    fixed = lambda case: functools.partial(om.FixedPoint, case.fn)
    descent = lambda case: smooth.GradientDescent(case.step_size, tolerance=1e-6)
    peaks, dense, local = problems.peaks(), problems.contraction(False), problems.contraction(True)
    cases = {
        "gradient descent, 100 unknowns": (logistic, minimise(logistic), descent(logistic)),
        "gradient descent, 10,000 unknowns": (smoothing, minimise(smoothing), descent(smoothing)),
        "L-BFGS, 100 unknowns": (logistic, minimise(logistic), smooth.LBFGS(tolerance=1e-6)),
        "L-BFGS, 10,000 unknowns": (smoothing, minimise(smoothing), smooth.LBFGS(tolerance=1e-6)),
        "Levenberg-Marquardt, 30 unknowns": (
            peaks, functools.partial(om.LeastSquares, peaks.fn), smooth.LevenbergMarquardt(tolerance=1e-6)
        ),
        "Anderson, 100 unknowns": (dense, fixed(dense), smooth.Anderson(tolerance=1e-6)),
        "Anderson, 10,000 unknowns": (local, fixed(local), smooth.Anderson(tolerance=1e-6)),
    }  # fmt: skip
    rows, claims = [], []
    for name, (case, problem, method) in cases.items():
        ratios = []
        for _ in range(_COMPILATIONS):
            found, ratio = compare_once(name, case, problem, method, seconds / _COMPILATIONS)
            rows += found
            ratios.append(ratio)
            jax.clear_caches()
        claims.append((f"traced solve over a loop by hand: {name}", statistics.median(ratios), 1.05))
    return rows, claims


def compare_once(name, case, problem, method, seconds):
    """Rows, and the ratio, of one compilation."""
    # The loop by hand gets a problem that is traced, as that of `solve` is: the same step to the last operation.
    stated = lambda theta, problem=problem, case=case: problem(theta).traced(case.guess)
    runs = {"solve": traced(problem, method, 5000), "by hand": by_hand(stated, method, 5000)}
    if "descent" in name:
        runs["by hand, gradient only"] = plain_descent(case.fn, case.step_size, 1e-6, 5000)
    calls = {what: functools.partial(run, case.guess, case.theta) for what, run in runs.items()}
    steps = {what: int(call()[1]) for what, call in calls.items()}
    times = median(interleaved(calls, seconds=seconds))
    rows = []
    for what, time in times.items():
        rows.append({
            "case": f"traced: {name}", "what": what, "milliseconds": 1e3 * time, "steps": steps[what],
            "microseconds a step": 1e6 * time / steps[what], "ratio": time / times["by hand"],
        })  # fmt: skip
    return rows, times["solve"] / times["by hand"]


def compare_eager(seconds):
    """Rows and claims of the eager form, for steps of about 1 and 10 ms."""
    rows, claims = [], []
    for size, steps in ((2500, 100), (4000, 60)):
        case = heavy(size)
        method = smooth.GradientDescent(case.step_size, tolerance=0.0)
        loop = by_hand(lambda theta, case=case: om.Minimize(case.fn, theta).traced(case.guess), method, steps)
        with tempfile.TemporaryDirectory() as folder:

            def eager(case=case, method=method, steps=steps, folder=folder):
                with contextlib.redirect_stderr(io.StringIO()):
                    callbacks = (
                        om.Progress(), om.History(Path(folder) / "history.jsonl"),
                        om.Checkpoint(Path(folder) / "state.ckpt", seconds=1.0),
                    )  # fmt: skip
                    solution = om.solve(
                        om.Minimize(case.fn, case.theta), method, case.guess,
                        budget=om.Budget(steps=steps), callbacks=callbacks,
                    )  # fmt: skip
                return solution.value

            calls = {"solve": eager, "by hand": lambda case=case, loop=loop: loop(case.guess, case.theta)[0]}
            times = median(interleaved(calls, seconds=4 * seconds, least=9))
        for what, time in times.items():
            rows.append({
                "case": f"eager, everything on: gradient descent, {size} unknowns", "what": what,
                "milliseconds": 1e3 * time, "steps": steps, "microseconds a step": 1e6 * time / steps,
                "ratio": time / times["by hand"],
            })  # fmt: skip
        ratio = times["solve"] / times["by hand"]
        a_step = 1e3 * times["by hand"] / steps
        claims.append((f"eager solve with callbacks over a loop by hand: {a_step:.1f} ms a step", ratio, 1.10))
    return rows, claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each comparison")
    parser.add_argument("--only", choices=("traced", "eager"), help="one form; writes no file")
    options = parser.parse_args()
    rows, claims = [], []
    for form, measure in (("traced", compare_traced), ("eager", compare_eager)):
        if options.only in (None, form):
            found, judged = measure(options.seconds)
            rows += found
            claims += judged
    if options.only:
        for row in rows + claims:
            print(row)
    else:
        record.write("loop_overhead", "`solve` against a loop written by hand", rows, claims)


if __name__ == "__main__":
    main()
