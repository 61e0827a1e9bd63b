"""Transport between clouds of 10,000 points: with the cost as a matrix, and evaluated in blocks as it goes.

    python benchmarks/large_clouds.py [--points 10000]

Two Gaussian clouds in three dimensions, squared distances, epsilon a twentieth of the mean cost, Sinkhorn's method to an error of the
marginals of 1e-3; then the gradient of the regularised value with respect to the points of one cloud, by the envelope theorem. In single
and in double precision, each way in a process of its own, so that the peak of its memory can be told; compiled before. The way is chosen by
`PointCloud(dense_below=...)`, the number of pairs up to which a solve makes a matrix of the cost.

Bars: both ways give the same cost; in blocks the memory that a solve and its gradient take beyond that of the loaded library is at most a
fourth of one matrix.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import record

import optimand as om
from optimand.transport import Coupling, PointCloud, Sinkhorn

__all__: list[str] = []

WAYS = ("matrix", "blocks")
PRECISIONS = ("float32", "float64")


def measure(points: int, way: str, precision: str) -> dict:
    """One solve and one gradient, in this process."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal((points, 3)) + shift, precision) for shift in (0.0, 0.5))
    dense_below = points**2 if way == "matrix" else 0

    def coupling(x, epsilon=None):
        cloud = PointCloud(x, y, dense_below=dense_below)
        problem = Coupling(cloud, epsilon=0.05, relative=True) if epsilon is None else Coupling(cloud, epsilon=epsilon)
        return problem if epsilon is None else problem.traced(None)

    def run(x):
        problem = coupling(x)
        solution = om.solve(problem, Sinkhorn(1e-3), budget=om.Budget(steps=300))
        return solution.value, solution.steps, problem.epsilon, problem.marginal_error(solution.value), problem.transport_cost(solution.value)

    gradient = jax.jit(jax.grad(lambda x, value, epsilon: coupling(x, epsilon).envelope(value)))
    of_solve = jax.eval_shape(run, x)
    solve, slope_of = jax.jit(run).lower(x).compile(), gradient.lower(x, of_solve[0], of_solve[2]).compile()
    before = _peak()
    clock = time.perf_counter()
    value, steps, epsilon, error, cost = jax.block_until_ready(solve(x))
    seconds = time.perf_counter() - clock
    clock = time.perf_counter()
    slope = jax.block_until_ready(slope_of(x, value, epsilon))
    seconds_of_gradient = time.perf_counter() - clock
    return {
        "points": points, "cost as": way, "precision": precision, "sweeps": int(steps), "seconds": seconds, "seconds a sweep": seconds / int(steps),
        "seconds of the gradient": seconds_of_gradient, "peak memory of the process, GiB": _peak(), "of which for solve and gradient, GiB": _peak() - before,
        "one matrix, GiB": points**2 * x.dtype.itemsize / 2**30, "error of the marginals": float(error), "transport cost": float(cost),
        "norm of the gradient": float(jnp.linalg.norm(slope)),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000, help="writes no file for another number")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with jax.enable_x64(options.one[1] == "float64"):
            print(json.dumps(measure(options.points, *options.one)))
        return
    rows = []
    for precision in PRECISIONS:
        for way in WAYS:
            command = [sys.executable, __file__, "--points", str(options.points), "--one", way, precision]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    found = {(row["precision"], row["cost as"]): row for row in rows}
    claims = []
    for precision, bar in zip(PRECISIONS, (1e-4, 1e-9), strict=True):
        matrix, blocks = (found[precision, way] for way in WAYS)
        for what in ("transport cost", "norm of the gradient"):
            claims.append((f"{precision}: relative difference of the two ways, {what}", abs(matrix[what] - blocks[what]) /
            abs(matrix[what]), bar))
        claims.append(
            (f"{precision}: memory for solve and gradient in blocks, over that of one matrix", blocks["of which for solve and gradient, GiB"] / blocks["one matrix, GiB"], 0.25)
        )
    if options.points == 10_000:
        record.write("large_clouds", "Transport between clouds of 10,000 points", rows, claims)
    else:
        print(claims)


if __name__ == "__main__":
    main()
