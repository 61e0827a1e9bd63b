"""C. The Lyapunov function along the flow, and Lion beside Frank-Wolfe and projected gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Composite, Minimize, solve
from optimand.report import figures
from optimand.smooth import L1Kernel, LionK, ProximalGradient, SmoothL1Kernel, lion_k_flow, projections
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .quadratic import Falling, bowl, draw, reference


def rugged(x, waves, phases, centre):
    """Not convex: a bowl with random waves on it."""
    return jnp.sum(jnp.cos(waves @ x + phases)) + jnp.sum((x - centre) ** 2) / 4


def run(settings: Settings, key, out: Run) -> Findings:
    metrics, drawn = flows(settings, jax.random.fold_in(key, 0))
    out.progress(f"C: largest increase of H {metrics['largest increase']:.1e}")
    found, table, curves = race(settings, jax.random.fold_in(key, 1))
    return Findings(metrics | found, [table], drawn | curves)


def flows(settings: Settings, key):
    """H at points of the flow of several problems, whole and with terms left out."""
    d, kernel, decay = settings.flow_dimension, SmoothL1Kernel(settings.e), settings.weight_decay
    times = jnp.linspace(0.0, settings.flow_time, settings.flow_points + 1)

    @jax.jit
    @jax.vmap
    def follow(key):
        keys = jax.random.split(key, 5)
        normal = lambda key, *shape: jax.random.normal(key, shape)
        waves, phases, centre = 2 * normal(keys[0], d, d), 3 * normal(keys[1], d), 2 * normal(keys[2], d) / decay
        start = jax.random.uniform(keys[3], (d,), minval=-0.9, maxval=0.9) / decay
        path = lion_k_flow(
            Minimize(rugged, waves, phases, centre), kernel, start, 2 * normal(keys[4], d), times=times,
            weight_decay=decay, epsilon=settings.epsilon, rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        weight = (1 - settings.epsilon) / (1 + settings.epsilon * decay)
        crossed = decay * jnp.sum(path.momentum * path.x, axis=1)  # lambda <m, x>
        without_cross = path.lyapunov + weight * crossed
        objective = path.value + jax.vmap(kernel.conjugate)(decay * path.x) / decay
        return path.lyapunov, without_cross, objective

    whole, without_cross, objective = map(np.asarray, follow(jax.random.split(key, settings.flows)))
    rise = lambda curves: np.max(np.diff(curves, axis=1), axis=1)
    metrics = {
        "largest increase": np.max(rise(whole)),
        "without cross term": np.sum(rise(without_cross) > 1e-7),
        "objective alone": np.sum(rise(objective) > 1e-7),
        "decrease of H, smallest of the problems": np.min(whole[:, 0] - whole[:, -1]),
    }
    above = lambda curves: curves - whole[:, -1:]
    drawn = {
        "C. H along the flow": figures.curves(
            {"H": above(whole), "without its cross term": above(without_cross), "f + K*(lambda x) / lambda": above(objective)},
            x=np.asarray(times), xlabel="time", ylabel="above the last H", title=f"{settings.flows} problems", log="",
        )
    }  # fmt: skip
    return metrics, drawn


LEVELS = (1e-2, 1e-4, 1e-6)


def race(settings: Settings, key):
    """The quadratic of A on the box, by gradients spent."""
    matrix, centre = draw(settings, key)
    decay, steps = settings.weight_decay, settings.race_steps
    problem = Minimize(bowl, matrix, centre)
    onto_box = lambda x, step_size: projections.box(x, -1 / decay, 1 / decay)
    composite = Composite(bowl, onto_box, matrix, centre)
    length = 1 / float(np.linalg.eigvalsh(np.asarray(matrix))[-1])
    constant = Falling(settings.race_rate, 0.0, steps, settings.schedule)
    falling = Falling(settings.race_rate, 1.0, steps, settings.schedule)
    lion = lambda rate, b1, b2: LionK(L1Kernel(), rate, decay, b1, b2, settings.decay, None, monitor=False)
    rivals = {
        "Lion, falling rate": (problem, lion(falling, settings.b1, settings.b2)),
        "Lion, constant rate": (problem, lion(constant, settings.b1, settings.b2)),
        # Lion without momentum is Frank and Wolfe's method; this is its classical step
        "Frank-Wolfe": (problem, lion(lambda step: 2 / (step + 3.0) / decay, 0.0, 0.0)),
        "projected gradient": (composite, ProximalGradient(step_size=length, acceleration=False, tolerance=0.0)),
    }
    best = reference("l1", settings, matrix, centre)
    metrics, rows, curves = {}, [], {}
    for name, (one, method) in rivals.items():
        history = solve(one, method, jnp.zeros_like(centre), budget=Budget(steps=steps)).history["value"]
        gap = np.maximum((np.asarray(history, float) - best) / abs(best), 1e-16)
        reached = [int(np.argmax(gap <= level)) + 1 if np.any(gap <= level) else None for level in LEVELS]
        metrics[f"{name}: gap after {steps} gradients"] = gap[-1]
        rows.append([name, gap[-1], *reached])
        curves[name] = gap
    table = Table(
        "C. The quadratic on the box by gradients spent",
        ["method", f"gap after {steps}", *(f"gradients to {level:g}" for level in LEVELS)],
        rows,
        f"Relative gaps. Lion's rate starts at {settings.race_rate:g}; projected gradient steps by 1 / L.",
    )
    drawn = {"C. Gap by gradients": figures.curves(curves, xlabel="gradients", ylabel="relative gap", title="L1, the box")}
    return metrics, table, drawn
