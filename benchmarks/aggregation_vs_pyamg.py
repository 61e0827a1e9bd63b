"""Laplace's operator on a grid and on an unstructured mesh: conjugate gradients with smoothed aggregation beside PyAMG's.

    python benchmarks/aggregation_vs_pyamg.py [--most 1000000]

Needs pyamg (the extra `peers`). A five-point stencil as a sparse matrix, and linear elements on Delaunay's triangles of random points, zero on the rim; a random right-hand side, double
precision, to a true relative residual of 1e-8, for 1e4 to 1e6 unknowns. Set-up and solve are timed apart; ours is compiled before, for each pattern of levels. PyAMG's are
smoothed aggregation and Ruge-Stuben with their defaults, accelerated by conjugate gradients. The points of the mesh are numbered along strips, as a mesh generator or a
reordering leaves them; all solvers see the same numbering.

Bars: set-up and solve together, and the solve alone, take at most 1.0 of the time of the fastest; the time grows with the power 1.1 of the unknowns at most.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pyamg
import record
import scipy.sparse
import scipy.spatial

from optimand.linear import CG, SmoothedAggregation, SparseOperator, StencilOperator

__all__: list[str] = []

OURS = "CG with SmoothedAggregation"
SIZES = (10_000, 31_329, 99_856, 315_844, 1_000_000)
RTOL = 1e-8
ROUNDS = 3


def grid(count: int) -> scipy.sparse.csr_array:
    side = round(count**0.5)
    return StencilOperator.laplacian((side, side), 1.0).to_sparse().to_scipy().tocsr()


def mesh(count: int) -> scipy.sparse.csr_array:
    """Linear elements of about so many random points in the unit square."""
    rng, side = np.random.default_rng(0), round(count**0.5)
    points = rng.uniform(size=(count, 2))
    rim = np.linspace(0, 1, side)
    rim = np.concatenate([np.stack([rim, end * np.ones(side)], axis=1) for end in (0, 1)])
    points = np.unique(np.concatenate([points, rim, rim[:, ::-1]]), axis=0)
    points = points[np.lexsort((points[:, 0], np.floor(points[:, 1] * side)))]
    triangles = scipy.spatial.Delaunay(points).simplices
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    keep = np.abs(area) > 1e-12 / count
    normals = np.stack([np.stack([(q - r)[:, 1], (r - q)[:, 0]], axis=1) for q, r in ((b, c), (c, a), (a, b))], axis=1)[keep]
    local = np.einsum("eid,ejd->eij", normals, normals) / (4 * np.abs(area[keep]))[:, None, None]
    rows, columns = np.broadcast_arrays(triangles[keep][:, :, None], triangles[keep][:, None, :])
    matrix = scipy.sparse.coo_array((local.ravel(), (rows.ravel(), columns.ravel()))).tocsr()
    inner = np.flatnonzero(np.all((points > 0) & (points < 1), axis=1))
    matrix = matrix[inner][:, inner]
    return ((matrix + matrix.T) / 2).tocsr()


def contenders(matrix: scipy.sparse.csr_array, b: np.ndarray) -> dict[str, tuple[Callable, Callable]]:
    """Of each the set-up, and the solve with what that returns."""
    operator, field = SparseOperator.from_scipy(matrix, lx.positive_semidefinite_tag), jnp.asarray(b)
    ours = jax.jit(lambda operator, cycle, b: lx.linear_solve(operator, b, CG(RTOL, preconditioner=cycle), throw=False).value)
    solved = lambda levels: levels.solve(b, tol=RTOL, accel="cg")
    return {
        OURS: (lambda: jax.block_until_ready(SmoothedAggregation().of(operator)), lambda cycle: jax.block_until_ready(ours(operator, cycle, field))),
        "PyAMG, smoothed aggregation": (lambda: pyamg.smoothed_aggregation_solver(matrix), solved),
        "PyAMG, Ruge-Stuben": (lambda: pyamg.ruge_stuben_solver(matrix), solved),
    }


def measured(matrix: scipy.sparse.csr_array) -> dict[str, tuple[float, float]]:
    """The median seconds of set-up and of solve, in rounds in which each has its turn."""
    b = np.random.default_rng(1).standard_normal(matrix.shape[0])
    calls = contenders(matrix, b)
    for name, (prepare, solve) in calls.items():
        left = np.linalg.norm(b - matrix @ np.asarray(solve(prepare()))) / np.linalg.norm(b)
        if not left <= 1.1 * RTOL:
            raise SystemExit(f"{name} left a residual of {left:.2g} at {matrix.shape[0]} unknowns")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(ROUNDS):
        order.append(order.pop(0))
        for name in order:
            start = time.perf_counter()
            made = calls[name][0]()
            between = time.perf_counter()
            calls[name][1](made)
            taken[name].append((between - start, time.perf_counter() - between))
    return {name: (statistics.median(p for p, _ in times), statistics.median(s for _, s in times)) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000, help="unknowns; writes no file below the default")
    options = parser.parse_args()
    rows, claims = [], []
    with jax.enable_x64(True):
        for kind, make in (("grid", grid), ("mesh", mesh)):
            ours = {}
            for count in (size for size in SIZES if size <= options.most):
                matrix = make(count)
                unknowns = matrix.shape[0]
                times = measured(matrix)
                rows.append({"matrix": kind, "unknowns": unknowns})
                rows[-1] |= {f"{name}, {part}, ms": 1e3 * t[k] for name, t in times.items() for k, part in enumerate(("set-up", "solve"))}
                print(rows[-1], flush=True)
                ours[unknowns] = sum(times[OURS])
                for part, cost in (("set-up and solve", sum), ("solve", lambda t: t[1])):
                    others = {name: cost(t) for name, t in times.items() if name != OURS}
                    fastest = min(others, key=others.__getitem__)
                    claims.append((f"{kind}, {unknowns} unknowns: {part}, over that of the fastest, {fastest}", cost(times[OURS]) / others[fastest], 1.0))
            if len(ours) > 1:
                power = float(np.polyfit(np.log(list(ours)), np.log(list(ours.values())), 1)[0])
                claims.append((f"{kind}: the power of the unknowns with which the time grows", power, 1.1))
    if options.most >= 1_000_000:
        record.write("aggregation_vs_pyamg", "Smoothed aggregation, beside PyAMG", rows, claims)
    else:
        print(*claims, sep="\n")


if __name__ == "__main__":
    main()
