"""Pressure systems with a solid: directions of the network of the package beside multigrid, ours and PyAMG's.

    python benchmarks/conjugate_directions_vs_pyamg.py

Needs pyamg (the extra `peers`). A ball of radius 0.2 in a box that is open to air, white noise on the right, double precision, to a relative residual of 1e-6. PyAMG's is Ruge-Stuben
(classical) algebraic multigrid with its defaults, accelerated by conjugate gradients; its time is with and without the set-up. Iterations and times stand side by side: an iteration
of a network costs as much as many products, and on a CPU multigrid is what to use. There is no bar on time; the bar is that every residual is a true one.
"""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pyamg
import record
from timing import interleaved

from optimand.linear import CG, ConjugateDirectionNet, DeepConjugateDirection, IncompleteCholesky, Multigrid
from optimand.physics import PoissonGrid, ball_mask

__all__: list[str] = []

SHAPES = ((32, 32), (64, 64), (128, 128), (16, 16, 16), (24, 24, 24))
RTOL = 1e-6


def main() -> None:
    rows, worst = [], 0.0
    with jax.enable_x64(True):
        for shape in SHAPES:
            grid = PoissonGrid(shape, solid=ball_mask(shape, 0.2))
            b = np.random.default_rng(0).standard_normal(grid.solid.size) * np.asarray(grid.fluid).ravel()
            matrix = grid.to_sparse().to_scipy().tocsr()
            hierarchy = pyamg.ruge_stuben_solver(matrix)
            net = ConjugateDirectionNet.pretrained(len(shape))
            solvers: dict[str, tuple[Any, Any]] = {
                "CG": (grid, CG(RTOL)),
                "IC(0)-CG": (grid.to_sparse(), CG(RTOL, preconditioner=IncompleteCholesky())),
                "CG with Multigrid": (grid.to_stencil(), CG(RTOL, preconditioner=Multigrid())),
                "DeepConjugateDirection": (grid, DeepConjugateDirection(net, RTOL, max_steps=2000)),
            }
            calls, iterations, answers = {}, {}, {}
            for name, (operator, solver) in solvers.items():
                solve = jax.jit(lambda operator, b, solver=solver: _solved(operator, b, solver))
                right = jnp.asarray(b).reshape(operator.in_structure().shape)
                calls[name] = lambda solve=solve, operator=operator, right=right: solve(operator, right)
                answers[name], count = calls[name]()
                iterations[name] = int(count)
            seen: list[float] = []
            answers["PyAMG"] = hierarchy.solve(b, tol=RTOL, accel="cg", residuals=seen)
            iterations["PyAMG"] = len(seen) - 1
            calls["PyAMG"] = lambda hierarchy=hierarchy, b=b: hierarchy.solve(b, tol=RTOL, accel="cg")
            calls["PyAMG with its set-up"] = lambda matrix=matrix, b=b: pyamg.ruge_stuben_solver(matrix).solve(b, tol=RTOL, accel="cg")
            for answer in answers.values():
                worst = max(worst, float(np.linalg.norm(b - matrix @ np.asarray(answer).ravel()) / np.linalg.norm(b) / RTOL))
            times = {name: statistics.median(taken) for name, taken in interleaved(calls, seconds=2.0, least=3).items()}
            row: dict[str, Any] = {"cells": " x ".join(map(str, shape))}
            row |= {f"{name}, iterations": count for name, count in iterations.items()} | {f"{name}, ms": 1e3 * taken for name, taken in times.items()}
            rows.append(row)
            print(row, flush=True)
    record.write("conjugate_directions_vs_pyamg", "Directions of a network, beside multigrid", rows, [("the largest true residual over the tolerance", worst, 1.1)])


def _solved(operator: lx.AbstractLinearOperator, b: jax.Array, solver: Any) -> tuple[jax.Array, jax.Array]:
    answer = lx.linear_solve(operator, b, solver, throw=False)
    return answer.value, answer.stats["num_steps"]


if __name__ == "__main__":
    main()
