"""The light Schrödinger bridge beside OTT's entropic potentials, and the time of its step.

    python benchmarks/light_bridge_vs_ott.py [--points 5000]

Needs ott-jax (the extra `peers`). The plan is known (five Gaussians as potential, in the plane, epsilon 1): the means of y given 1,000 new x of a fitted `LightSB`
are compared with those of OTT's Sinkhorn between 5,000 samples of each end, extended by its potential, and both with the exact ones. Differences are root mean
squares, in units of the standard deviation of the end. Then a step of the fit with 50 components, 16 dimensions and batches of 128, in loops of 500 that are
compiled whole, as `solve` runs it.

Bars: the two differ by 3 % of the standard deviation at most; a step takes 1 ms at most.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import optax
import record
from ott.geometry import pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from timing import interleaved

import optimand as om
from optimand.transport import EntropicBridge, LightSBFit, MixtureBenchmark
from optimand.transport.bures import moments

__all__: list[str] = []

EPSILON = 1.0
LOOP = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=5000, help="samples of each end; writes no file below the default")
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 5)
    truth = MixtureBenchmark.random(keys[0], 2, EPSILON)
    x0, x1 = truth.sample_start(keys[1], options.points), truth.sample_end(keys[2], options.points)
    test = truth.sample_start(keys[3], 1000)
    method = LightSBFit(components=20, learning_rate=optax.cosine_decay_schedule(3e-2, 3000))
    solution = om.solve(EntropicBridge(x0, x1, EPSILON), method, key=keys[4], budget=om.Budget(steps=3000))
    ours = solution.value.conditional_moments(test)[0]

    solver = jax.jit(sinkhorn.Sinkhorn(threshold=1e-4, max_iterations=5000))
    problem = linear_problem.LinearProblem(pointcloud.PointCloud(x0, x1, epsilon=2 * EPSILON))  # its cost lacks the half
    jax.block_until_ready(solver(problem).f)
    clock = time.perf_counter()
    output = jax.block_until_ready(solver(problem))
    theirs_seconds = time.perf_counter() - clock
    if not bool(output.converged):
        raise SystemExit("OTT's Sinkhorn has not converged")
    theirs = output.to_dual_potentials().transport(test)

    exact, std = truth.conditional_moments(test)[0], float(jnp.sqrt(jnp.trace(moments(x1)[1])))
    apart = lambda one, other: float(jnp.sqrt(jnp.mean(jnp.sum((one - other) ** 2, -1)))) / std
    step = step_seconds(keys[0])
    rows = [
        {
            "samples of each end": options.points,
            "LightSB: seconds of the fit": solution.stats["seconds"] - solution.stats["compile_seconds"],
            "LightSB: seconds of compiling": solution.stats["compile_seconds"],
            "OTT: seconds, compiled": theirs_seconds,
            "LightSB: difference to the exact means": apart(ours, exact),
            "OTT: difference to the exact means": apart(theirs, exact),
        },
        {"a step with 50 components, 16 dimensions, batches of 128, ms": 1e3 * step},
    ]
    claims = [
        ("root mean square of the difference of conditional means / standard deviation of the end", apart(ours, theirs), 0.03),
        ("a step with 50 components, 16 dimensions, batches of 128, ms", 1e3 * step, 1.0),
    ]
    if options.points >= 5000:
        record.write("light_bridge_vs_ott", "The light Schrödinger bridge, beside OTT", rows, claims)
    else:
        print(rows, claims)


def step_seconds(key: jax.Array) -> float:
    """The median time of a step, in compiled loops of `LOOP`."""
    truth = MixtureBenchmark.random(key, 16, EPSILON)
    x0, x1 = truth.sample_start(jax.random.key(1), 10_000), truth.sample_end(jax.random.key(2), 10_000)
    problem, method = EntropicBridge(x0, x1, EPSILON), LightSBFit(components=50)
    state = method.init(problem, problem.start(None), key=jax.random.key(3))

    @jax.jit
    def loop(state):
        keys = jax.random.split(jax.random.key(4), LOOP)
        return jax.lax.scan(lambda state, key: (method.step(problem, state, key=key), None), state, keys)[0].value

    return statistics.median(interleaved({"steps": lambda: loop(state)}, seconds=3.0, least=5)["steps"]) / LOOP


if __name__ == "__main__":
    main()
