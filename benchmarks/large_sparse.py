"""A general sparse system of 2e6 entries, solved and differentiated: seconds and memory.

    python benchmarks/large_sparse.py [--entries 2000000]

Links are the edges of the Delaunay triangulation of random points in a square, numbered at random: no stencil, no band. The matrix is diffusion with random
conductivities, a wind that makes it unsymmetric, and a small decay; double precision. Its solution, and the gradient of |x|^2 with respect to the right-hand side and
to all entries, by `SparseLU` (factors once, the transposed system in the gradient with the same) and by `BiCGStab` with `IncompleteLU`; beside them SciPy, which is
told what the gradient needs: `splu`, a solve, and one with the transpose. Each runs in a process of its own, whose peak memory is recorded; ours are compiled before,
and make their factors anew: the entries of the two runs differ.

Bars: a relative residual of at most 1e-8, of every answer and of the gradient (that of the transposed system, and the difference of the entries' from -g_i x_j); the
peak stays below the memory of the machine. Time and memory beside SciPy are recorded without a bar.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import record
import scipy.sparse
import scipy.sparse.linalg
import scipy.spatial

from optimand.linear import BiCGStab, IncompleteLU, SparseLU, SparseOperator

__all__: list[str] = []

SOLVERS: dict[str, Any] = {
    "SparseLU": SparseLU(),
    "BiCGStab with IncompleteLU": BiCGStab(1e-9, max_steps=2000, preconditioner=IncompleteLU()),
}
SCIPY = "SciPy, splu"


def system(entries: int) -> scipy.sparse.csc_array:
    """About so many entries: seven in a row."""
    rng = np.random.default_rng(0)
    points = rng.random((entries // 7, 2))
    triangles = scipy.spatial.Delaunay(points).simplices
    pairs = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
    low, high = np.unique(pairs, axis=0).T
    conductivity = rng.lognormal(size=len(low))
    along = points[high] - points[low]
    wind = 0.3 * along @ [1.0, 0.5] / np.linalg.norm(along, axis=1)
    forth, back = conductivity * (1 - wind), conductivity * (1 + wind)
    n = len(points)
    links = scipy.sparse.coo_array((np.concatenate([forth, back]), (np.concatenate([low, high]), np.concatenate([high, low]))), shape=(n, n)).tocsr()
    return (scipy.sparse.diags_array(links.sum(1) + 1e-3) - links).tocsc()


def by_scipy(matrix: scipy.sparse.csc_array, b: np.ndarray) -> dict[str, float]:
    clock = time.perf_counter()
    factors = scipy.sparse.linalg.splu(matrix)
    x = factors.solve(b)
    solved = time.perf_counter() - clock
    turned = factors.solve(2 * x, "T")
    entries = matrix.tocoo()
    _ = -turned[entries.coords[0]] * x[entries.coords[1]]
    taken = time.perf_counter() - clock
    return {"solve, s": solved, "solve and gradient, s": taken, "residual": float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b))}


def by_ours(solver: Any, matrix: scipy.sparse.csc_array, b: np.ndarray) -> dict[str, float]:
    operator, b = SparseOperator.from_scipy(matrix), jnp.asarray(b)

    def size(data, b):
        answer = lx.linear_solve(operator.with_data(data), b, solver, throw=False)
        return jnp.sum(answer.value**2), answer

    clock = time.perf_counter()
    solve = jax.jit(lambda data, b: size(data, b)[1]).lower(operator.data, b).compile()
    both = jax.jit(jax.value_and_grad(size, (0, 1), has_aux=True)).lower(operator.data, b).compile()
    compiled = time.perf_counter() - clock
    other = jax.block_until_ready(operator.data * (1 + 1e-3))  # other entries, other factors
    clock = time.perf_counter()
    jax.block_until_ready(solve(other, b))
    solved = time.perf_counter() - clock
    clock = time.perf_counter()
    (_, answer), (of_entries, of_b) = jax.block_until_ready(both(operator.data, b))
    taken = time.perf_counter() - clock
    rows, columns, x = operator.pattern.rows, operator.pattern.columns, answer.value
    left = float(jnp.linalg.norm(b - operator.mv(x)) / jnp.linalg.norm(b))
    turned = float(jnp.linalg.norm(2 * x - operator.T.mv(of_b)) / jnp.linalg.norm(2 * x))  # A' g = 2 x for that with respect to b
    outer = float(jnp.linalg.norm(of_entries + of_b[rows] * x[columns]) / jnp.linalg.norm(of_entries))  # and -g_i x_j with respect to the entries
    steps = {"steps": float(answer.stats["num_steps"])} if "num_steps" in answer.stats else {}
    times = {"solve, s": solved, "solve and gradient, s": taken, "compilation, s": compiled}
    return times | {"residual": left, "residual of the gradient": max(turned, outer)} | steps


def measured(name: str, entries: int) -> dict[str, float]:
    matrix = system(entries)
    b = np.random.default_rng(2).standard_normal(matrix.shape[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    call: Callable = by_scipy if name == SCIPY else lambda matrix, b: by_ours(SOLVERS[name], matrix, b)
    with jax.enable_x64(True):
        found = call(matrix, b)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"unknowns": matrix.shape[0], "entries": matrix.nnz} | found | {"peak memory, GiB": peak, "of which before it began, GiB": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=2_000_000, help="of the matrix; writes no file below the default")
    parser.add_argument("--only", help="measure this one here, and print it")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only, options.entries)))
        return
    rows = []
    for name in (SCIPY, *SOLVERS):
        command = [sys.executable, __file__, "--entries", str(options.entries), "--only", name]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append({"solver": name} | json.loads(out.splitlines()[-1]))
        print(rows[-1], flush=True)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    claims = [(f"{row['solver']}: relative residual", row["residual"], 1e-8) for row in rows]
    claims += [(f"{row['solver']}: relative residual of the gradient", row["residual of the gradient"], 1e-8) for row in rows[1:]]
    claims += [(f"{row['solver']}: peak memory over that of the machine", row["peak memory, GiB"] / machine, 1.0) for row in rows]
    if options.entries >= 2_000_000:
        record.write("large_sparse", "A general sparse system of 2e6 entries, solved and differentiated", rows, claims)
    else:
        print(claims)


if __name__ == "__main__":
    main()
