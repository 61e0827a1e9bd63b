"""What the parts share: a fit, and the plan of discrete transport with its extension."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optimand as om
from optimand.transport import Coupling, EntropicBridge, LightSB, LightSBFit, PointCloud, Potentials, Sinkhorn

from ..base import Run
from . import Settings


@dataclasses.dataclass
class Fitted:
    """A bridge, and what it took."""

    bridge: LightSB
    seconds: float
    compile_seconds: float
    history: dict[str, np.ndarray]


def fit(problem: EntropicBridge, components: int, rate: float, steps: int, settings: Settings, key: Any, label: str, out: Run) -> Fitted:
    """LightSB with a learning rate that falls to zero."""
    out.progress(label)
    falling = optax.cosine_decay_schedule(rate, steps)
    method = LightSBFit(components, falling, settings.batch, settings.covariance, settings.centres)
    solution = om.solve(
        problem, method, key=key, budget=om.Budget(steps=steps), callbacks=out.callbacks(label, keep=50), resume=out.resume(label)
    )
    compiling = solution.stats["compile_seconds"]
    return Fitted(solution.value, solution.stats["seconds"] - compiling, compiling, solution.history)


@dataclasses.dataclass
class DiscretePlan:
    """Sinkhorn's plan between samples. `error` is that of its marginals."""

    problem: Coupling
    potentials: Potentials
    x1: Any
    error: float
    sweeps: int

    def pairs(self, key: Any, count: int) -> tuple[Any, Any]:
        """Numbers of sources and targets, drawn from the plan."""
        for_rows, for_columns = jax.random.split(key)
        plan = self.problem.plan(self.potentials)
        rows = jax.random.categorical(for_rows, jnp.log(jnp.sum(plan, 1)), shape=(count,))
        return rows, jax.random.categorical(for_columns, jnp.log(plan[rows]), -1)

    def conditional_moments(self, x: Any) -> tuple[Any, Any]:
        """Of y given a new x: targets weighted by b exp((g - |x - y|^2) / 2 epsilon)."""
        squares = jnp.sum(x**2, -1)[:, None] + jnp.sum(self.x1**2, -1) - 2 * x @ self.x1.T
        weights = jax.nn.softmax((self.potentials.g - squares) / self.problem.epsilon, -1)
        mean = weights @ self.x1
        d = self.x1.shape[1]
        second = weights @ (self.x1[:, :, None] * self.x1[:, None, :]).reshape(-1, d * d)
        return mean, second.reshape(-1, d, d) - mean[:, :, None] * mean[:, None, :]


def discrete_plan(x0: Any, x1: Any, epsilon: float, sweeps: int) -> DiscretePlan:
    """The cost is |x - y|^2 with twice the epsilon. That is lowered to its value, and sweeps end when 1e-3 of the mass is in the wrong place."""
    problem = Coupling(PointCloud(x0, x1, dense_below=len(x0) * len(x1) + 1), epsilon=2 * epsilon)
    first = float(jnp.mean(jnp.sum((x0 - x1) ** 2, -1)))
    solution = om.solve(problem, Sinkhorn(1e-3, first_epsilon=first, decay=0.9), budget=om.Budget(steps=sweeps))
    return DiscretePlan(problem, solution.value, x1, float(problem.marginal_error(solution.value)), int(solution.steps))
