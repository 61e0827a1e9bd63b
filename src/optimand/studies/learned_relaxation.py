"""Learning to relax: parameters of solvers picked before each solve of a sequence, from the iterations of the solves before.

Khodak, Chow, Balcan and Talwalkar (ICLR 2024). A learner sees the iterations that its own choice took, and perhaps a context that is known before the
solve; never the spectrum, never what another choice would have cost.

A. **Shifted systems**: the five-point Laplacian plus a random multiple of the identity, solved by successive over-relaxation. The costs of all values of the
   grid are computed for each system first, so that policies can be compared on the same costs; learners see of them what they would have seen.
B. **Heat equation**: Crank-Nicolson steps with a diffusion that changes in time, solved by conjugate gradients with SSOR, from the field before. Learners solve
   as they go. The best fixed value, and the best value of the grid for each step, are known with hindsight only. Multigrid, which suits these systems better than any
   relaxation does, stands beside them.
"""

import dataclasses
import functools
import time
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError

from .base import Claim, Findings, Run, Table

SLUG = "learned-relaxation"
TITLE = "Learning relaxation parameters over sequences of linear systems"
REFERENCE = "khodak2024learning"

Part = Literal["A", "B"]
SHAPES = {"high variance": (0.5, 1.5), "low variance": (2.0, 6.0)}
LEARNERS = ("TsallisINF", "TsallisINFContextual", "ChebCB")


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: tuple[Part, ...] = _setting(("A", "B"), "parts to run")
    values: int = _setting(20, "values of the grid of omega", least=2)
    lowest: float = _setting(1.0, "smallest omega", least=0.01, most=1.99)
    highest: float = _setting(1.95, "largest omega", least=0.01, most=1.99)
    degree: int = _setting(6, "Chebyshev polynomials of ChebCB", least=1)
    rtol: float = _setting(1e-8, "residual of a solve, relative to the one it begins with", least=1e-14)
    ordering: Literal["natural", "redblack"] = _setting("natural", "order of the unknowns in a sweep")

    shifted_steps: int = _setting(5000, "A: systems", least=10)
    shifted_side: int = _setting(10, "A: points in each direction", least=2)
    trials: int = _setting(5, "A: sequences", least=1)
    shifted_bins: int = _setting(5, "A: bins of TsallisINFContextual", least=1)

    cells: int = _setting(50, "B: cells in each direction", least=3)
    steps: int = _setting(2000, "B: time steps", least=10)
    dt: float = _setting(1e-3, "B: length of a step", least=1e-9)
    heat_bins: int = _setting(6, "B: bins of TsallisINFContextual", least=1)
    draws: int = _setting(3, "B: runs of each learner", least=1)

    def __post_init__(self):
        if not self.parts:
            raise ArgumentError("parts", "must not be empty.")
        if self.lowest >= self.highest:
            raise ArgumentError("highest", f"must be above `lowest`, {self.lowest}, not {self.highest}.")


QUICK = {"values": 5, "shifted_steps": 60, "shifted_side": 5, "trials": 2, "cells": 10, "steps": 40, "draws": 1}


def learner_of(settings: Settings, name: str, bounds: tuple[float, float], bins: int) -> Any:
    """The learner of this name, on the grid of the settings."""
    from optimand.linear import ChebCB, TsallisINF, TsallisINFContextual

    grid = np.linspace(settings.lowest, settings.highest, settings.values)
    return {
        "TsallisINF": lambda: TsallisINF(grid),
        "TsallisINFContextual": lambda: TsallisINFContextual(grid, bounds, bins),
        "ChebCB": lambda: ChebCB(grid, bounds, settings.degree),
    }[name]()


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed, in double precision."""
    import jax

    metrics: dict[str, float] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    with jax.enable_x64(True):
        for number, (letter, part) in enumerate({"A": _shifted, "B": _heat}.items()):
            if letter in settings.parts:
                found = part(settings, jax.random.fold_in(key, number), out)
                metrics |= dict(found.metrics)
                tables += found.tables
                drawn |= found.figures
    return Findings(metrics, tables, drawn)


# A. Shifted systems.


def _costs(settings: Settings, stream: Any, lanes: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """The sweeps that each omega of the grid takes for each system, (steps, values), and the shifts.

    Some fifty million sweeps over tiny grids: the systems of a batch lie side by side in memory and are swept over together. A batch takes as long as its slowest
    solve, so it holds systems of similar shifts, with one omega. That the counts are those of `SOR` is checked on a sample.
    """
    import jax
    import jax.numpy as jnp

    from optimand.linear import SOR

    side, steps = settings.shifted_side, settings.shifted_steps
    row, column = np.indices((side, side)).reshape(2, -1) + 1  # in a frame of zeros
    front = (row + column) % 2 if settings.ordering == "redblack" else row + column  # unknowns of a front wait for those before only
    fronts = [(row[front == number], column[front == number]) for number in np.unique(front)]
    grid = jnp.linspace(settings.lowest, settings.highest, settings.values)
    systems = jax.jit(jax.vmap(stream.system))(jnp.arange(steps))
    order = jnp.argsort(systems.context)
    lanes = min(lanes, steps)
    batches = jnp.pad(order, (0, -steps % lanes), mode="edge").reshape(-1, lanes)

    def of_batch(at):
        omega, batch = at
        b, diagonal = systems.b[batch].T.reshape(side, side, lanes), 4 + systems.context[batch]
        size = lambda field: jnp.sqrt(jnp.ones(side**2) @ (field * field).reshape(side**2, lanes))
        limit = settings.rtol * size(b)

        def sweep(at):
            x, going, counts, number = at
            for i, j in fronts:
                around = x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1]
                x = x.at[i, j].add(omega * ((b[i - 1, j - 1] + around) / diagonal - x[i, j]), unique_indices=True)
            around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
            left = size(b + around - diagonal * x[1:-1, 1:-1])
            return x, going & (left > limit), counts + going, number + 1

        begin = (jnp.zeros((side + 2, side + 2, lanes)), jnp.ones(lanes, bool), jnp.zeros(lanes, int), 0)
        return jax.lax.while_loop(lambda at: jnp.any(at[1]) & (at[3] < SOR().max_steps), sweep, begin)[2]

    pairs = jnp.repeat(grid, len(batches)), jnp.tile(batches, (len(grid), 1))
    counts = jax.jit(lambda: jax.lax.map(of_batch, pairs))().reshape(len(grid), -1)[:, :steps]
    return np.asarray(counts, float).T[np.argsort(order)], np.asarray(systems.context)


def _furthest_count(settings: Settings, stream: Any, costs: np.ndarray, sample: int = 5) -> int:
    """By how many sweeps the counts differ from those of `SOR` itself, for every omega and some systems over all shifts."""
    import jax
    import jax.numpy as jnp
    import lineax as lx

    from optimand.linear import SOR

    def of_system(step):
        operator, b, _ = stream.system(step)
        sweeps_of = lambda omega: lx.linear_solve(operator, b, SOR(omega, settings.rtol, ordering=settings.ordering), throw=False).stats["num_steps"]
        return jax.lax.map(sweeps_of, jnp.linspace(settings.lowest, settings.highest, settings.values))

    steps = jnp.arange(0, settings.shifted_steps, -(-settings.shifted_steps // sample))
    return int(np.max(np.abs(np.asarray(jax.jit(lambda: jax.lax.map(of_system, steps))()) - costs[np.asarray(steps)])))


def _by_table(learner: Any, costs: Any, contexts: Any, key: Any) -> np.ndarray:
    """What a learner's choices cost, where it is told the costs of its own choices only."""
    import jax
    import jax.numpy as jnp

    def one(state, step):
        index, state = learner.choose(state, contexts[step], jax.random.fold_in(key, step))
        cost = costs[step, index]
        return learner.learn(state, cost), cost

    costs, contexts = jnp.asarray(costs), jnp.asarray(contexts)
    return np.asarray(jax.jit(lambda: jax.lax.scan(one, learner.init(), jnp.arange(len(costs)))[1])())


def _shifted(settings: Settings, key: Any, out: Run) -> Findings:
    import jax

    from optimand.physics import ShiftedLaplacian
    from optimand.report import figures

    metrics: dict[str, float] = {}
    rows, drawn = [], {}
    last, furthest = max(1, settings.shifted_steps // 5), 0
    for number, (name, shape) in enumerate(SHAPES.items()):
        spent: dict[str, list[np.ndarray]] = {policy: [] for policy in (*LEARNERS, "best fixed", "best for each", "omega = 1")}
        for trial in range(settings.trials):
            stream_key, draw_key = jax.random.split(jax.random.fold_in(key, 100 * number + trial))
            stream = ShiftedLaplacian(stream_key, settings.shifted_side, shape=shape, lowest=_lowest(settings.shifted_side))
            costs, shifts = _costs(settings, stream)
            if trial == 0:
                furthest = max(furthest, _furthest_count(settings, stream, costs))
            spent["best fixed"].append(costs[:, np.argmin(costs.sum(axis=0))])
            spent["best for each"].append(costs.min(axis=1))
            spent["omega = 1"].append(costs[:, 0])
            for learner_number, policy in enumerate(LEARNERS):
                learner = learner_of(settings, policy, stream.context_bounds, settings.shifted_bins)
                spent[policy].append(_by_table(learner, costs, shifts, jax.random.fold_in(draw_key, learner_number)))
            out.progress(f"A: {name}, sequence {trial + 1} of {settings.trials}")
        for policy, sequences in spent.items():
            all_, end = np.mean(sequences), np.mean([one[-last:] for one in sequences])
            metrics[f"A {name}: {policy} mean sweeps"] = float(all_)
            metrics[f"A {name}: {policy} mean sweeps at the end"] = float(end)
            rows.append([name, policy, all_, end])
        curves = {policy: np.stack([np.cumsum(one) / np.arange(1, len(one) + 1) for one in sequences]) for policy, sequences in spent.items() if policy != "omega = 1"}
        drawn[f"A. Mean sweeps so far, shifts of {name}"] = figures.curves(curves, xlabel="systems", ylabel="mean sweeps", log="x", title=f"Shifted systems, {name}")
    metrics["A: counts of the table beside SOR's own, furthest"] = float(furthest)
    columns = ["shifts", "policy", "mean sweeps", f"over the last {last}"]
    note = f"{settings.trials} sequences of {settings.shifted_steps} systems of {settings.shifted_side**2} unknowns, to {settings.rtol:g}."
    return Findings(metrics, [Table("A. Shifted systems, successive over-relaxation", columns, rows, note)], drawn)


def _lowest(side: int) -> float:
    """The paper's least shift, -0.15, which is for 10 points; on other grids the same part of the least eigenvalue."""
    smallest = lambda n: 8 * np.sin(np.pi / (2 * n + 2)) ** 2
    return float(-0.15 * smallest(side) / smallest(10))


# B. The heat equation.


def _heat(settings: Settings, key: Any, out: Run) -> Findings:
    import jax
    import jax.numpy as jnp
    import lineax as lx

    from optimand.linear import CG, SSOR, Multigrid, SolveEach, StencilOperator, TunedSequence
    from optimand.physics import HeatCrankNicolson
    from optimand.report import figures

    heat = HeatCrankNicolson(settings.cells, settings.dt)
    grid = jnp.linspace(settings.lowest, settings.highest, settings.values)
    solver = lambda omega: CG(settings.rtol, preconditioner=SSOR(omega, settings.ordering))

    def rollout(method, key):
        """The iterations of each step, the omegas, and the largest relative residual, by a method that sees one system at a time."""

        def step(carry, number):
            u, memory = carry
            operator, b, context = heat.system(number, u)
            r = b - operator.mv(u)  # from the field before: the residual it leaves is what is relative
            answer, memory = method.solve_next(memory, operator, r, parameter=context, key=jax.random.fold_in(key, number))
            left = jnp.linalg.norm(r - operator.mv(answer.value)) / jnp.linalg.norm(r)
            return (u + answer.value, memory), (answer.iterations, answer.chosen, left)

        u = heat.initial().u
        memory = method.begin(heat.system(0, u)[0])
        return jax.lax.scan(step, (u, memory), jnp.arange(settings.steps))[1]

    def every_omega():
        """The iterations of each step with each omega, along a path that is solved accurately."""

        def step(u, number):
            operator, b, _ = heat.system(number, u)
            r = b - operator.mv(u)
            count = lambda omega: lx.linear_solve(operator, r, solver(omega), throw=False).stats["num_steps"]
            exact = lx.linear_solve(operator, r, CG(1e-12, preconditioner=SSOR(1.5, settings.ordering)), throw=False).value
            return u + exact, jax.lax.map(count, grid)

        return jax.lax.scan(step, heat.initial().u, jnp.arange(settings.steps))[1]

    def by_multigrid(key):
        """The same by conjugate gradients with multigrid, which is told that the systems are stencils, and sets up its levels for each."""
        laplacian = StencilOperator.laplacian((settings.cells - 1,) * 2)

        def step(u, number):
            operator, b, _ = heat.system(number, u)
            r = b - operator.mv(u)
            half = (lx.diagonal(operator)[0] - 1) / 4
            stencil = StencilOperator(half * laplacian.coefficients + jnp.eye(5)[0], laplacian.offsets, laplacian.grid, laplacian.tags)
            answer = lx.linear_solve(stencil, r.reshape(stencil.grid), CG(settings.rtol, preconditioner=Multigrid()), throw=False)
            left = jnp.linalg.norm(r - operator.mv(answer.value.ravel())) / jnp.linalg.norm(r)
            return u + answer.value.ravel(), (answer.stats["num_steps"], jnp.nan, left)

        return jax.lax.scan(step, heat.initial().u, jnp.arange(settings.steps))[1]

    metrics: dict[str, float] = {}
    rows: list[list[Any]] = []
    worst = 0.0

    def measured(run, run_key):
        nonlocal worst
        go = jax.jit(run).lower(run_key).compile()
        begun = time.perf_counter()
        iterations, chosen, left = jax.block_until_ready(go(run_key))
        seconds = time.perf_counter() - begun
        worst = max(worst, float(jnp.max(left)))
        return np.asarray(iterations), np.asarray(chosen), seconds

    table = np.asarray(jax.jit(every_omega)())
    out.progress("B: all omegas")
    totals = {f"omega = {omega:.3g}": table[:, i].sum() for i, omega in enumerate(np.asarray(grid))}
    best = int(np.argmin(table.sum(axis=0)))
    metrics["B: best fixed iterations"] = table[:, best].sum()
    metrics["B: best for each iterations"] = table.min(axis=1).sum()
    metrics["B: omega of the best fixed"] = float(grid[best])
    metrics["B: omega = 1 iterations"] = table[:, int(np.argmin(np.abs(np.asarray(grid) - 1)))].sum()
    for name, title, way in (
        ("CG", "CG without preconditioner", functools.partial(rollout, SolveEach(CG(settings.rtol)))),
        ("multigrid", "CG with multigrid, which knows the stencil", by_multigrid),
    ):
        iterations, _, seconds = measured(way, key)
        metrics[f"B: {name} iterations"], metrics[f"B: {name} seconds"] = iterations.sum(), seconds
        rows.append([title, iterations.sum(), seconds])
    rows += [[f"fixed, {name}", total, None] for name, total in totals.items()]
    rows += [["best omega for each step (hindsight)", metrics["B: best for each iterations"], None]]
    traces = {"best for each": np.asarray(grid)[np.argmin(table, axis=1)]}
    solve_seconds = float("nan")
    for number, policy in enumerate(LEARNERS):
        learner = learner_of(settings, policy, heat.context_bounds, settings.heat_bins)
        method: Any = TunedSequence(solver, learner=learner, context=lambda context: context)
        runs = [measured(functools.partial(rollout, method), jax.random.fold_in(key, 10 * number + draw)) for draw in range(settings.draws)]
        totals_of = [iterations.sum() for iterations, _, _ in runs]
        seconds = float(np.median([seconds for _, _, seconds in runs]))
        metrics[f"B: {policy} iterations"], metrics[f"B: {policy} seconds"] = float(np.mean(totals_of)), seconds
        rows.append([policy, float(np.mean(totals_of)), seconds])
        traces[policy] = runs[0][1]
        solve_seconds = seconds / settings.steps
        metrics[f"B: {policy} seconds of the learner / of a step"] = _overhead(learner, heat.context_bounds) / solve_seconds
        out.progress(f"B: {policy}")
    metrics["B: largest residual / rtol"] = worst / settings.rtol
    times = (np.arange(settings.steps) + 1) * settings.dt
    lines = {policy: (times, _smoothed(trace)) for policy, trace in traces.items()}
    figure = figures.curves(lines, xlabel="time", ylabel="omega", log="", title="The omega that is chosen, mean over 20 steps")
    note = f"{(settings.cells - 1) ** 2} unknowns, {settings.steps} steps, to {settings.rtol:g} of the residual that a step begins with; learners: mean of {settings.draws} runs."
    return Findings(metrics, [Table("B. Heat equation, conjugate gradients with SSOR", ["policy", "iterations", "seconds"], rows, note)], {"B. The omega that is chosen, in time": figure})


def _smoothed(trace: np.ndarray, width: int = 20) -> np.ndarray:
    return np.convolve(np.pad(trace, (width // 2, width - 1 - width // 2), mode="edge"), np.ones(width) / width, mode="valid")


def _overhead(learner: Any, bounds: tuple[float, float], rounds: int = 200) -> float:
    """Seconds of a round of the learner, compiled in a loop as it is used."""
    import jax
    import jax.numpy as jnp

    def one(state, number):
        key = jax.random.fold_in(jax.random.key(0), number)
        index, state = learner.choose(state, bounds[0] + (bounds[1] - bounds[0]) * jax.random.uniform(key), key)
        return learner.learn(state, 10.0 + index), None

    go = jax.jit(lambda state: jax.lax.scan(one, state, jnp.arange(rounds))[0]).lower(learner.init()).compile()
    jax.block_until_ready(go(learner.init()))
    begun = time.perf_counter()
    jax.block_until_ready(go(learner.init()))
    return (time.perf_counter() - begun) / rounds


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars, on means over seeds as the plan has them."""
    mean = lambda name: float(np.mean([seed.get(name, np.nan) for seed in seeds]))
    said: list[Claim] = []
    if "B" in settings.parts:
        note = f"{(settings.cells - 1) ** 2} unknowns, {settings.steps} steps, mean over seeds"
        ratio = lambda ours, theirs: mean(f"B: {ours} iterations") / mean(f"B: {theirs} iterations")
        for theirs, bar in (("best fixed", 1.10), ("omega = 1", 0.80), ("CG", 0.40)):
            said.append(Claim.at_most(f"B: iterations, TsallisINF / {theirs}", ratio("TsallisINF", theirs), bar, note=note))
        for theirs, bar in (("best fixed", 0.95), ("best for each", 1.25)):
            said.append(Claim.at_most(f"B: iterations, ChebCB / {theirs}", ratio("ChebCB", theirs), bar, note=note))
        said.append(Claim.at_most("B: true residual / rtol, of every solve", max(seed.get("B: largest residual / rtol", np.nan) for seed in seeds), 1.0001))
        for policy in ("TsallisINF", "ChebCB"):
            said.append(Claim.at_most(f"B: seconds of {policy} / of a step", mean(f"B: {policy} seconds of the learner / of a step"), 0.1, note=note))
    if "A" in settings.parts:
        name = "high variance"
        note = f"{settings.trials} sequences of {settings.shifted_steps} systems, the last fifth of them"
        end = lambda policy: mean(f"A {name}: {policy} mean sweeps at the end")
        said.append(Claim.at_most(f"A {name}: regret of TsallisINF to the best fixed omega / its sweeps", end("TsallisINF") / end("best fixed") - 1, 0.08, note=note))
        furthest = max(seed.get("A: counts of the table beside SOR's own, furthest", np.nan) for seed in seeds)
        said.append(Claim.at_most("A: sweeps by which the table of costs differs from SOR itself", furthest, 1.0, note="every omega, five systems of two sequences"))
        said.append(Claim.at_most(f"A {name}: sweeps, ChebCB / best fixed omega", end("ChebCB") / end("best fixed"), 1.0, note=note))
    return said
