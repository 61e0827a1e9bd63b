"""Times and residuals of the constraint: one expert alone, at inference, and experts against one solve for all."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import ExpertGrid, NLLSConstraint, local_problems, solve_experts


def seconds_of(run: Any, repeats: int) -> float:
    """Median wall time of a compiled call, without its compilation."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - clock)
    return float(np.median(times))


# Compiled once for all samples and models of one make: to compile takes longer than what is measured.


@eqx.filter_jit
def _solve(constraint: Any, problem: Any, start: Any) -> Any:
    return constraint(problem, start)


@eqx.filter_jit
def basis_of(model: Any, data: Any) -> Any:
    """The prepared basis fields of a model, in float64."""
    out = model.net(model.pde.inputs(data).astype(model.dtype))
    return model.pde.prepare(jnp.moveaxis(out, 0, -1).astype(float), data)


@eqx.filter_jit
def _problems(model: Any, basis: Any, data: Any) -> Any:
    return local_problems(
        model.pde, model.experts, basis, data, points=model.constraint.points, key=jax.random.key(model.seed)
    )


def expert_seconds(problems: Any, constraint: Any, start: Any, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and iterations of each expert's solve, alone."""
    seconds, iterations = [], []
    for k in range(problems.terms.shape[0]):
        one = dataclasses.replace(
            problems, terms=problems.terms[k], offsets=problems.offsets[k], points=problems.points[k]
        )
        one = jax.tree.map(lambda leaf: jax.device_put(leaf) if eqx.is_array(leaf) else leaf, one)
        seconds.append(seconds_of(lambda one=one: _solve(constraint, one, start), repeats))
        iterations.append(int(_solve(constraint, one, start)[1].iterations))
    return np.array(seconds), np.array(iterations)


def solve_seconds(model: Any, inputs: Any, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the slowest expert's solve at inference, and iterations, in the mean over samples."""
    slowest, iterations = [], []
    for data in inputs:
        basis = basis_of(model, data)
        start = jnp.full((basis.shape[-1],), model.pde.start)
        seconds, counts = expert_seconds(_problems(model, basis, data), model.constraint, start, repeats)
        slowest.append(seconds.max())
        iterations.append(counts.mean())
    return float(np.mean(slowest)), float(np.mean(iterations))


def local_against_global(model: Any, inputs: Any) -> float:
    """What the experts' squared residuals, summed, exceed that of one solve for all by, over that of the start.

    The same basis, and rows of the equation only. At most zero if each solve finds its minimum.
    """
    constraint = NLLSConstraint(solver="normal", ridge=0.0, rtol=1e-10, atol=1e-12, max_steps=100, polish=2)

    @eqx.filter_jit
    def squared_residual(model, basis, data, experts):
        problems = local_problems(model.pde, experts, basis, data, use_rows=False)
        weights, info = solve_experts(problems, constraint, jnp.full((basis.shape[-1],), model.pde.start))
        del weights
        first = jax.vmap(
            lambda t, o, p: (
                2
                * dataclasses.replace(problems, terms=t, offsets=o, points=p).value(
                    jnp.full((basis.shape[-1],), model.pde.start)
                )
            )
        )(problems.terms, problems.offsets, problems.points)
        return jnp.sum(info.residual**2), jnp.sum(first)

    ratios = []
    for data in jax.tree.map(lambda leaf: leaf[:2], inputs):
        basis = basis_of(model, data)
        single = ExpertGrid((1,) * len(model.pde.grid.shape))
        (whole, first), (parts, _) = (
            squared_residual(model, basis, data, experts) for experts in (single, model.experts)
        )
        ratios.append((float(parts) - float(whole)) / max(float(first), float(whole)))
    return max(ratios)
