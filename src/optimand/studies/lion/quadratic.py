"""A. A quadratic on the set of every kernel: end points, constant learning rates, and the entry from outside."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from optimand import Budget, Detached, Minimize, solve
from optimand.report import figures
from optimand.smooth import (
    GroupKernel,
    HuberKernel,
    L1Kernel,
    LionK,
    LpKernel,
    ThresholdKernel,
    TopKKernel,
    kkt_score,
)
from optimand.studies.base import Findings, Run, Table

from . import Settings


class Falling(eqx.Module):
    """A learning rate that goes from `start` to zero in `steps`; that stays, with `share` zero."""

    start: Any
    share: Any
    steps: int = eqx.field(static=True)
    shape: str = eqx.field(static=True)

    def __call__(self, step):
        done = step / self.steps
        fallen = done if self.shape == "linear" else (1 - jnp.cos(jnp.pi * done)) / 2
        return self.start * (1 - self.share * fallen)


def kernels(settings: Settings) -> dict[str, Any]:
    every = {
        "l1": L1Kernel(),
        "lp2": LpKernel(2.0),
        "lp4": LpKernel(4.0),
        "topk": TopKKernel(settings.topk),
        "group": GroupKernel(settings.group),
        "huber": HuberKernel(settings.e),
        "threshold": ThresholdKernel(settings.e),
    }
    return {name: every[name] for name in settings.kernels}


def draw(settings: Settings, key):
    """H = B B' / d + 0.1 I and the unconstrained optimum x* ~ 2 N(0, I)."""
    d = settings.dimension
    matrix_key, centre_key = jax.random.split(key)
    root = jax.random.normal(matrix_key, (d, d))
    return root @ root.T / d + 0.1 * jnp.eye(d), 2 * jax.random.normal(centre_key, (d,))


def _away_from_zero(x):
    return x + jnp.sign(x)


def bowl(x, matrix, centre):
    return (x - centre) @ (matrix @ (x - centre)) / 2


def reference(name: str, settings: Settings, matrix, centre) -> float:
    """The optimum of f + K*(lambda x) / lambda by SciPy: L-BFGS-B where the set is a box, SLSQP where it is not."""
    matrix, centre = np.asarray(matrix), np.asarray(centre)
    d, decay, e = len(centre), settings.weight_decay, settings.e

    def bowl(x):
        return (x - centre) @ matrix @ (x - centre) / 2, matrix @ (x - centre)

    def parts(split):  # x = p - n, with p and n not negative: |x| is then linear
        value, gradient = bowl(split[:d] - split[d:])
        weight = e if name == "threshold" else 0.0
        return value + weight * split.sum(), np.concatenate([gradient, -gradient]) + weight

    def rounded(x):
        value, gradient = bowl(x)
        return value + e * decay / 2 * x @ x, gradient + e * decay * x

    box, half_box = [(-1 / decay, 1 / decay)] * d, [(0, 1 / decay)] * (2 * d)
    minimise = functools.partial(scipy.optimize.minimize, jac=True)
    tight = {"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-13}
    slsqp = {"method": "SLSQP", "options": {"maxiter": 2000, "ftol": 1e-15}}
    if name in ("l1", "huber"):
        found = minimise(bowl if name == "l1" else rounded, np.zeros(d), bounds=box, method="L-BFGS-B", options=tight)
    elif name == "threshold":
        found = minimise(parts, np.zeros(2 * d), bounds=half_box, method="L-BFGS-B", options=tight)
    elif name == "topk":
        cap = {"type": "ineq", "fun": lambda s: settings.topk / decay - s.sum(), "jac": lambda s: -np.ones(2 * d)}
        found = minimise(parts, np.zeros(2 * d), bounds=half_box, constraints=[cap], **slsqp)
    elif name == "group":
        rows = np.kron(np.eye(d // settings.group), np.ones(settings.group))
        ball = {"type": "ineq", "fun": lambda x: 1 - decay**2 * rows @ x**2, "jac": lambda x: -2 * decay**2 * rows * x}
        found = minimise(bowl, np.zeros(d), constraints=[ball], **slsqp)
    else:
        p = float(name.removeprefix("lp"))
        q = p / (p - 1)
        ball = {
            "type": "ineq",
            "fun": lambda x: 1 - np.sum(np.abs(decay * x) ** q),
            "jac": lambda x: -q * decay * np.sign(x) * np.abs(decay * x) ** (q - 1),
        }
        found = minimise(bowl, np.zeros(d), constraints=[ball], **slsqp)
    return float(found.fun)


def ends(kernel, settings: Settings, matrix, centre):
    """F, violation and score at the end with the falling, the constant and the smaller constant learning rate."""

    def one(start, share, matrix, centre):
        schedule = Falling(start, share, settings.steps, settings.schedule)
        method = LionK(
            kernel, schedule, settings.weight_decay, settings.b1, settings.b2, settings.decay, None, monitor=False
        )
        problem = Minimize(bowl, matrix, centre)
        budget = Budget(steps=settings.steps)
        x = solve(problem, method, jnp.zeros_like(centre), budget=budget, record=0, adjoint=Detached()).value
        gradient, y = problem.gradient(x), settings.weight_decay * x
        penalty = kernel.penalty(y) / settings.weight_decay
        outside = jnp.maximum(kernel.gauge(y) - 1, 0) / settings.weight_decay
        return problem.value(x) + penalty, outside, kkt_score(kernel, gradient, x, settings.weight_decay)

    rates = jnp.array([settings.rate, settings.rate, settings.small_rate])
    shares = jnp.array([1.0, 0.0, 0.0])
    every = jax.jit(jax.vmap(one, (0, 0, None, None)))(rates, shares, matrix, centre)
    return [np.asarray(column) for column in every]


def violations(kernel, settings: Settings, problem, start, steps: int):
    """The violation after every step with the constant learning rate."""
    method = LionK(
        kernel, settings.rate, settings.weight_decay, settings.b1, settings.b2, settings.decay, None, monitor=True
    )
    run = lambda start: solve(problem, method, start, budget=Budget(steps=steps), record=steps, adjoint=Detached()).history
    return np.asarray(jax.jit(run)(start)["violation"])


def run(settings: Settings, key, out: Run) -> Findings:
    matrix, centre = draw(settings, key)
    shrink = settings.rate * settings.weight_decay
    expected = np.log1p(-shrink) if settings.decay == "explicit" else -np.log1p(shrink)  # log of the distance, a step
    metrics, rows, entries = {}, [], {}
    for name, kernel in kernels(settings).items():
        best = reference(name, settings, matrix, centre)
        values, outside, scores = ends(kernel, settings, matrix, centre)
        gaps = np.abs(values - best) / abs(best)
        for case, gap, violation, score in zip(("falling", "constant", "small"), gaps, outside, scores, strict=True):
            metrics |= {f"{name}: gap, {case}": gap, f"{name}: violation, {case}": violation, f"{name}: score, {case}": score}

        # From five times as far out, with the optimum so far beyond that every step is held at the side of the boundary
        pull = 1e4 * _away_from_zero(jax.random.normal(jax.random.fold_in(key, 7), centre.shape))
        corner = kernel.subgradient(pull)
        start = 5 * corner / (kernel.gauge(corner) * settings.weight_decay)
        beyond = Minimize(bowl, matrix, start + jnp.linalg.solve(matrix, pull))
        held = violations(kernel, settings, beyond, start, max(2, int(4 / shrink)))
        slope = np.polyfit(np.arange(len(held)), np.log(held), 1)[0]
        metrics[f"{name}: entry"] = abs(slope / expected - 1)
        entries[name] = held
        rows.append([name, best, *gaps, outside[0], scores[0], slope / expected])
        out.progress(f"A: {name}: gap {gaps[0]:.1e}, constant {gaps[1]:.1e} and {gaps[2]:.1e}, entry {slope / expected:.4f}")

    if "l1" in settings.kernels:
        entries["l1, quadratic"], found = entry_of_quadratic(settings, matrix, centre, shrink, expected)
        metrics |= found
    table = Table(
        "A. A quadratic on the set of every kernel",
        ["kernel", "optimum (SciPy)", "gap, falling", f"gap, {settings.rate:g}", f"gap, {settings.small_rate:g}",
         "violation", "score", "entry rate / predicted"],
        rows,
        f"Gaps are relative, after {settings.steps} steps from 0. The entry rate is the slope of log violation by steps "
        "from outside, with the optimum moved so far beyond the boundary that it holds every step at that side. "
        "SLSQP is good to about 1e-8 here, L-BFGS-B to 1e-13.",
    )  # fmt: skip
    drawn = {
        "A. Entering the set": figures.curves(
            entries, ylabel="violation", title=f"From outside, eps lambda = {shrink:g}"
        )
    }
    return Findings(metrics, [table], drawn)


def entry_of_quadratic(settings: Settings, matrix, centre, shrink: float, expected: float):
    """The quadratic itself from 5 / lambda in every coordinate, on the box."""
    steps = int(25 / shrink)
    start = jnp.full_like(centre, 5 / settings.weight_decay)
    path = violations(L1Kernel(), settings, Minimize(bowl, matrix, centre), start, steps)
    above = path > 1e-8
    ratios = path[1:][above[1:]] / path[:-1][above[1:]]
    metrics = {
        "quadratic: slowest entry": np.max(ratios) / np.exp(expected),
        "quadratic: steps to a violation of 1e-3": np.argmax(path <= 1e-3) + 1,
        "quadratic: steps that the exponential law predicts": np.log(1e-3 / (4 / settings.weight_decay)) / expected,
    }
    return np.maximum(path, 1e-16), metrics
