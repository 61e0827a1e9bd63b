"""Poisson's equation on the unit square: conjugate gradients with geometric multigrid beside PyAMG and SciPy.

    python benchmarks/poisson_vs_pyamg.py [--most 1000000]

Needs pyamg (the extra `peers`). -Laplace u = f with random f, five-point stencil, double precision, to a relative residual of 1e-8, for 1e4 to 1e6 unknowns. Each
solver makes its preconditioner anew in every solve, as for a matrix seen once; ours is compiled before. PyAMG's are smoothed aggregation and Ruge-Stuben (classical)
algebraic multigrid with its defaults, each accelerated by conjugate gradients; it does not know that the matrix is a stencil, ours does. SciPy: conjugate
gradients by themselves (up to 1e5 unknowns) and SuperLU. Every answer is judged by its true residual.

Bars: at most 1.0 of the time of the fastest; the time grows with the power 1.1 of the unknowns at most; a gradient of the solution with respect to f and to the
coefficients at 1e6 unknowns is computed in the memory of the machine.
"""

import argparse
import resource
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pyamg
import record
import scipy.sparse
import scipy.sparse.linalg
from timing import interleaved

from optimand.linear import CG, Multigrid, StencilOperator

__all__: list[str] = []

OURS = "CG with Multigrid"
SIDES = (100, 177, 316, 562, 1000)
RTOL = 1e-8


def contenders(operator: StencilOperator, matrix: scipy.sparse.csr_array, f: np.ndarray) -> dict[str, Callable]:
    """A solve by each, from the matrix to the answer."""
    b, columns, field = f.ravel(), matrix.tocsc(), jnp.asarray(f)
    solve = jax.jit(lambda operator, f: lx.linear_solve(operator, f, CG(RTOL, preconditioner=Multigrid()), throw=False).value)
    calls: dict[str, Callable] = {
        OURS: lambda: solve(operator, field),
        "PyAMG, smoothed aggregation": lambda: pyamg.smoothed_aggregation_solver(matrix).solve(b, tol=RTOL, accel="cg"),
        "PyAMG, Ruge-Stuben": lambda: pyamg.ruge_stuben_solver(matrix).solve(b, tol=RTOL, accel="cg"),
        "SciPy, SuperLU": lambda: scipy.sparse.linalg.splu(columns).solve(b),
    }
    if b.size <= 100_000:
        calls["SciPy, CG"] = lambda: scipy.sparse.linalg.cg(matrix, b, rtol=RTOL)[0]
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000, help="unknowns; writes no file below the default")
    options = parser.parse_args()
    rows, ratios, ours = [], [], {}
    with jax.enable_x64(True):
        for side in SIDES:
            if side**2 > options.most:
                continue
            operator = StencilOperator.laplacian((side, side), 1 / (side + 1))
            matrix = operator.to_sparse().to_scipy().tocsr()
            f = np.random.default_rng(0).standard_normal((side, side))
            b, calls = f.ravel(), contenders(operator, matrix, f)
            for name, call in calls.items():
                left = np.linalg.norm(b - matrix @ np.asarray(call()).ravel()) / np.linalg.norm(b)
                if not left <= 1.1 * RTOL:
                    raise SystemExit(f"{name} left a residual of {left:.2g} at {side**2} unknowns")
            times = {name: statistics.median(taken) for name, taken in interleaved(calls, seconds=2.0, least=3).items()}
            fastest = min((name for name in times if name != OURS), key=times.__getitem__)
            ours[side**2] = times[OURS]
            ratios.append((side**2, fastest, ours[side**2] / times[fastest]))
            rows.append({"unknowns": side**2, **{f"{name}, ms": 1e3 * seconds for name, seconds in times.items()}})
            print(rows[-1], flush=True)
        sizes = np.log(list(ours))
        power = float(np.polyfit(sizes, np.log(list(ours.values())), 1)[0]) if len(ours) > 1 else float("nan")
        claims = [(f"{size} unknowns: time over that of the fastest, {fastest}", ratio, 1.0) for size, fastest, ratio in ratios]
        claims.append(("the power of the unknowns with which the time grows", power, 1.1))
        last = max(ours)
        side = round(last**0.5)
        seconds, error = gradient(side)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append({"unknowns": last, "seconds of a gradient with respect to f and the coefficients": seconds, "peak memory of the process, GiB": peak})
    claims.append((f"{last} unknowns: relative error of the gradient along a direction, against a difference", error, 1e-5))
    if options.most >= 1_000_000:
        record.write("poisson_vs_pyamg", "Poisson's equation, beside PyAMG and SciPy", rows, claims)
    else:
        print(claims)


def gradient(side: int) -> tuple[float, float]:
    """Seconds of a compiled gradient of |u|^2, and its relative error along a random direction of f and of the coefficients."""
    operator = StencilOperator.laplacian((side, side), 1 / (side + 1))
    rng = np.random.default_rng(1)
    f = jnp.asarray(rng.standard_normal((side, side)))
    coefficients = jnp.asarray(np.broadcast_to(np.asarray(operator.coefficients)[:, None, None], (5, side, side)))

    def size(coefficients, f):
        changed = StencilOperator(coefficients, operator.offsets, operator.grid, operator.tags)
        return jnp.sum(lx.linear_solve(changed, f, CG(1e-11, preconditioner=Multigrid()), throw=False).value ** 2)

    grad = jax.jit(jax.grad(size, (0, 1)))
    found = jax.block_until_ready(grad(coefficients, f))
    seconds = statistics.median(interleaved({"gradient": lambda: grad(coefficients, f)}, seconds=1.0, least=2)["gradient"])
    # Of the coefficients the diagonal alone, so that the matrix stays symmetric, by what is small beside its least eigenvalue, 2 pi^2.
    shift = jnp.zeros_like(coefficients).at[0].set(1 + jnp.sin(jnp.arange(side)))
    toward = (shift, jnp.asarray(rng.standard_normal((side, side))))
    along = sum(float(jnp.vdot(g, t)) for g, t in zip(found, toward, strict=True))
    step, value = 1e-4, jax.jit(size)
    ahead, behind = (float(value(coefficients + s * toward[0], f + s * toward[1])) for s in (step, -step))
    return seconds, abs(along - (ahead - behind) / (2 * step)) / abs(along)


if __name__ == "__main__":
    main()
