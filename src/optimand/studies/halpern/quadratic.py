r"""C. A quadratically constrained quadratic program as a saddle point.

$$\min_{\lVert x \rVert \le R} \max_{\mu \ge 0,\, \lVert \mu \rVert \le M} \tfrac12 x^\top Q_0 x + c_0^\top x +
  \sum_{i=1}^n \mu_i \big(\tfrac12 x^\top Q_i x + c_i^\top x - d_i\big)$$

with one component for each constraint.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import figures
from optimand.smooth import MonotoneInclusion
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import builders, spectral_norm, tune

RADIUS, MULTIPLIERS = 3.0, 5.0


def component(u, i, objective, constraints):
    x, mu = u
    (q0, c0), (q, c, d) = objective, constraints
    n = d.size
    slope = q[i] @ x
    value = 0.5 * x @ slope + c[i] @ x - d[i]
    return q0 @ x + c0 + n * mu[i] * (slope + c[i]), jnp.zeros_like(mu).at[i].set(-n * value)


def operator(u, objective, constraints):
    x, mu = u
    (q0, c0), (q, c, d) = objective, constraints
    slopes = q @ x
    return q0 @ x + c0 + mu @ (slopes + c), -(0.5 * slopes @ x + c @ x - d)


def project(v, step_size):
    x, mu = v
    return _ball(x, RADIUS), _ball(jnp.maximum(mu, 0), MULTIPLIERS)


def _ball(x, radius):
    return x * jnp.minimum(1.0, radius / jnp.maximum(jnp.linalg.norm(x), 1e-12))


def draw(key: Any, n: int, d: int) -> tuple[Any, Any]:
    """Constraints of low rank that x = 0 meets, and an objective whose own minimiser meets few of them."""
    keys = jax.random.split(key, 4)
    factors = jax.random.normal(keys[0], (n, d, 3)) / np.sqrt(d)
    root = jax.random.normal(keys[1], (d, d)) / np.sqrt(d)
    objective = (root @ root.T + 0.1 * jnp.eye(d), jax.random.normal(keys[2], (d,)))
    constraints = (
        factors @ jnp.swapaxes(factors, 1, 2),
        jax.random.normal(keys[3], (n, d)) / np.sqrt(d),
        jnp.full((n,), 0.5),
    )
    return objective, constraints


def run(settings: Settings, key: Any, out: Run) -> Findings:
    data, points, sample = jax.random.split(key, 3)
    n, d = settings.constraints, settings.quadratic_d
    arrays = draw(data, n, d)
    problem = MonotoneInclusion(component, n, project, *arrays, operator=operator, probes=0)
    start = (jnp.zeros(d), jnp.zeros(n))
    # F is not globally Lipschitz; on the sets it is, by the largest of its Jacobians at points drawn from them.
    near = [project((3 * jax.random.normal(k, (d,)), jax.random.normal(k, (n,))), 1.0) for k in jax.random.split(points, 4)]
    lipschitz = max(spectral_norm(problem.operator, u) for u in near)
    metrics: dict[str, float] = {"C Lipschitz constant": lipschitz}
    rows, curves = [], {}
    for name, build in builders(settings, lipschitz, np.sqrt(n) * lipschitz).items():
        if name not in settings.methods:
            continue
        best, runs = tune(
            problem, build, start, sample, multiples=settings.multiples, epochs=settings.quadratic_epochs,
            level=settings.quadratic_level,
        )  # fmt: skip
        x, _ = best.solution.value
        broken = float(jnp.max(-problem.operator((x, start[1]))[1]))
        metrics[f"C {name} epochs"] = best.reach(settings.quadratic_level)
        metrics[f"C {name} residual"] = float(best.residual[-1])
        failed = ", ".join(f"{one.multiple:g}" for one in runs if one.outcome == "diverged")
        rows.append([name, best.multiple, best.reach(settings.quadratic_level), best.residual[-1], broken, failed or "none"])
        curves[name] = (best.epochs, best.residual)
        out.progress(f"C: {name}")
    columns = ["method", "best multiple", f"epochs to {settings.quadratic_level:g}", "last residual",
               "largest constraint", "diverged"]  # fmt: skip
    figure = figures.curves(curves, xlabel="component calls / n", ylabel="residual", title=f"{n} constraints, d = {d}")
    return Findings(
        metrics,
        [Table("C. A quadratically constrained program", columns, rows, f"L_F = {lipschitz:.3g}; no claim is made here.")],
        {"C. Quadratic constraints: residual over epochs, each method with its best multiple": figure},
    )
