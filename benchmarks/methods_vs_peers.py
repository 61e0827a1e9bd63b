"""The same algorithm on the same problem to the same tolerance: ours, jaxopt's and Optimistix's, solve and gradient.

    PYTHONPATH=src:PATH_OF_JAXOPT python benchmarks/methods_vs_peers.py [--repeats 30]

Every contender is one jitted function of the problem's parameter. Repeats are interleaved and the median is reported,
compile time apart. All stop by the Euclidean norm of the gradient (or residual); Optimistix, which stops by step and
decrease instead, is given the tolerance at which it reaches the same residual or a larger one than ours, never a
smaller. The gradient is that of a sum over the solution, by implicit differentiation in all three (their defaults).
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import optimistix as optx

import optimand as om
from optimand import smooth

jax.config.update("jax_enable_x64", True)
TOLERANCE = 1e-6
STEPS = 5000

ROWS = jax.random.normal(jax.random.key(0), (200, 100))
LABELS = jnp.sign(ROWS @ jnp.ones(100) + jax.random.normal(jax.random.key(1), (200,)))
MATRIX = jax.random.normal(jax.random.key(2), (100, 100)) / 12


def logistic(x, theta):
    return jnp.mean(jax.nn.softplus(-LABELS * (ROWS @ x))) + 0.5 * theta * jnp.sum(x**2)


def curve(x, theta):
    times = jnp.linspace(0, 4, 60)
    model = x[0] * jnp.exp(-x[1] * times) + x[2] * jnp.cos(x[3] * times)
    truth = 2.0 * jnp.exp(-theta * times) + 0.5 * jnp.cos(1.5 * times)
    return model - truth - 0.01 * jnp.sin(17 * times)


def contraction(x, theta):
    return jnp.tanh(MATRIX @ x + theta)


def lasso_smooth(x, theta):
    rows = ROWS / 14
    return 0.5 * jnp.sum((rows @ x - rows[:, :10].sum(1) * theta) ** 2)


def shrink(x, step_size):
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.01 * step_size, 0)


def ours(problem, method, guess):
    return lambda theta: om.solve(
        problem(theta), method, guess, budget=om.Budget(steps=STEPS), adjoint=om.Implicit(tolerance=None)
    ).value


def tasks():
    """name -> (theta, size of the optimality condition, {contender: function of theta})."""
    import jaxopt

    ones, zeros = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.zeros(100)
    options = {"tol": TOLERANCE, "maxiter": STEPS}
    optimistix = lambda entry, fn, solver, x0: (
        lambda theta: entry(fn, solver, x0, theta, max_steps=STEPS, throw=False).value
    )
    gradient = jax.grad(logistic)
    prox = lambda x, parameters, scaling=1.0: shrink(x, scaling)
    composite = lambda t: om.Composite(lasso_smooth, shrink, t)
    residual = lambda x, t: jnp.linalg.norm(curve(x, t) @ jax.jacobian(curve)(x, t))
    mapping = lambda x, t: jnp.linalg.norm(x - shrink(x - jax.grad(lasso_smooth)(x, t), 1.0))
    stationary = lambda x, t: jnp.linalg.norm(gradient(x, t))
    minimise = lambda t: om.Minimize(logistic, t)
    return {
        "gradient descent": (0.1, stationary, {
            "optimand": ours(minimise, smooth.GradientDescent(0.5, tolerance=TOLERANCE), zeros),
            "jaxopt": lambda t: jaxopt.GradientDescent(
                logistic, stepsize=0.5, acceleration=False, **options).run(zeros, t).params,
            "optimistix": optimistix(optx.minimise, logistic, optx.GradientDescent(0.5, 1e-9, 1e-7), zeros),
        }),
        "L-BFGS": (0.01, stationary, {
            "optimand": ours(minimise, smooth.LBFGS(tolerance=TOLERANCE), zeros),
            "jaxopt": lambda t: jaxopt.LBFGS(logistic, **options).run(zeros, t).params,
            "optimistix": optimistix(optx.minimise, logistic, optx.LBFGS(1e-6, 1e-6), zeros),
        }),
        "Levenberg-Marquardt": (0.7, residual, {
            "optimand": ours(lambda t: om.LeastSquares(curve, t), smooth.LevenbergMarquardt(tolerance=TOLERANCE), ones),
            "jaxopt": lambda t: jaxopt.LevenbergMarquardt(curve, **options).run(ones, t).params,
            "optimistix": optimistix(optx.least_squares, curve, optx.LevenbergMarquardt(1e-6, 1e-6), ones),
        }),
        "Anderson": (0.3, lambda x, t: jnp.linalg.norm(contraction(x, t) - x), {
            "optimand": ours(lambda t: om.FixedPoint(contraction, t), smooth.Anderson(tolerance=TOLERANCE), zeros),
            "jaxopt": lambda t: jaxopt.AndersonAcceleration(contraction, **options).run(zeros, t).params,
        }),
        "proximal gradient": (1.0, mapping, {
            "optimand": ours(composite, smooth.ProximalGradient(tolerance=TOLERANCE), zeros),
            "jaxopt": lambda t: jaxopt.ProximalGradient(lasso_smooth, prox, **options).run(zeros, None, t).params,
        }),
    }  # fmt: skip


def measure(functions, theta, repeats):
    """Median seconds of each, in interleaved repeats; and the seconds of the first call."""
    first, seconds = {}, {name: [] for name in functions}
    for name, function in functions.items():
        clock = time.perf_counter()
        jax.block_until_ready(function(theta))
        first[name] = time.perf_counter() - clock
    for _ in range(repeats):
        for name, function in functions.items():
            clock = time.perf_counter()
            jax.block_until_ready(function(theta))
            seconds[name].append(time.perf_counter() - clock)
    return {name: statistics.median(times) for name, times in seconds.items()}, first


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "methods_vs_peers.json"))
    arguments = parser.parse_args()
    rows, claims = [], []
    for task, (theta, residual, contenders) in tasks().items():
        theta = jnp.asarray(theta)
        solves = {name: jax.jit(solve) for name, solve in contenders.items()}
        gradients = {
            name: jax.jit(jax.grad(lambda t, solve=solve: jnp.sum(jnp.sin(solve(t)))))
            for name, solve in contenders.items()
        }
        derivative = {name: float(function(theta)) for name, function in gradients.items()}
        for what, functions in (("solve", solves), ("solve and implicit gradient", gradients)):
            seconds, first = measure(functions, theta, arguments.repeats)
            for name, median in seconds.items():
                rows.append({
                    "task": task, "what": what, "contender": name, "seconds": median, "first_call": first[name],
                    "residual": float(residual(solves[name](theta), theta)), "derivative": derivative[name],
                })  # fmt: skip
                print(json.dumps(rows[-1]))
            peers = min(median for name, median in seconds.items() if name != "optimand")
            ratio = seconds["optimand"] / peers
            claims.append({"name": f"{task}: {what}", "measured": ratio, "bar": "<= 1.0", "holds": ratio <= 1.0})
            print(json.dumps(claims[-1]))
    result = {
        "name": "methods_vs_peers",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} {platform.system()}, {jax.devices()[0].platform}",
        "versions": {name: version(name) for name in ("jax", "equinox", "optimistix", "lineax", "jaxopt")},
        "rows": rows,
        "claims": claims,
    }
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
