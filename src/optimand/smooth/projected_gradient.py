r"""Spectral projected gradient.

$$d_k = P\big(x_k - \lambda_k \nabla f(x_k)\big) - x_k, \qquad x_{k+1} = x_k + t_k d_k, \qquad
  \lambda_{k+1} = \frac{s_k^\top s_k}{s_k^\top y_k},$$

with \(s_k = x_{k+1} - x_k\), \(y_k = \nabla f(x_{k+1}) - \nabla f(x_k)\) and \(t_k\) backtracked from 1 against the
largest of the last M values (Birgin, Martínez and Raydan 2000, algorithm SPG2).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import Composite
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative
from .line_search import backtrack, stay
from .vectors import add, dot, norm, subtract

__all__ = ["ProjectedGradient"]


class ProjectedGradientState(eqx.Module):
    """`recent` are the last M values, `step_size` the spectral one, with which `direction` is made."""

    x: PyTree
    value: Array
    gradient: PyTree
    direction: PyTree
    step_size: Array
    recent: Array
    stuck: Array
    counters: Counters


class ProjectedGradient(Method):
    """Projected gradient with spectral step sizes: for a smooth function on a set with a cheap projection.

    The problem is a `Composite` whose `prox` is a projection. One projection and close to one evaluation a step, and no
    step size to choose. It takes the straight line between the point and its image, so the set must be convex.

    **Arguments:**

    - `memory`: M; 1 makes it monotone.
    - `decrease`, `max_trials`: of the search. If it finds nothing the solve ends as `stopped`.
    - `tolerance`: converged when the norm of P(x - gradient) - x is (bounded by) at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = Composite
    reference: ClassVar[str] = "birgin2000nonmonotone"

    memory: int = eqx.field(static=True, default=10)
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=30)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("memory", self.memory)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Composite, guess: PyTree, *, key: Array | None) -> ProjectedGradientState:
        x = problem.prox(guess, 1.0)
        value, gradient = problem.smooth.value_and_gradient(x)
        step_size = (1 / jnp.maximum(norm(gradient), 1e-3)).astype(value.dtype)
        recent = jnp.full((self.memory,), value)
        counters = Counters.zero().add(values=1, gradients=1, proximal=2)
        direction = _direction(problem, x, gradient, step_size)
        return ProjectedGradientState(x, value, gradient, direction, step_size, recent, jnp.array(False), counters)

    def step(self, problem: Composite, state: ProjectedGradientState, *, key: Array | None) -> ProjectedGradientState:
        slope = dot(state.gradient, state.direction)
        found = backtrack(
            problem.smooth, state.x, state.value, slope, state.direction, 1.0,
            decrease=self.decrease, max_trials=self.max_trials, reference=jnp.max(state.recent),
        )  # fmt: skip
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        s, y = subtract(x, state.x), subtract(gradient, state.gradient)
        ss, sy = dot(s, s), dot(s, y)
        spectral = ss / jnp.where(sy > 0, sy, 1)
        step_size = jnp.where(found.accepted, jnp.where(sy > 0, jnp.clip(spectral, 1e-8, 1e8), 1e8), state.step_size)
        recent = jnp.concatenate([state.recent[1:], value[None]])
        counters = state.counters.add(values=found.trials, gradients=found.trials, proximal=1)
        step_size = jnp.minimum(step_size, 1e3 / jnp.maximum(norm(gradient), 1e-6)).astype(value.dtype)
        direction = _direction(problem, x, gradient, step_size)
        return ProjectedGradientState(x, value, gradient, direction, step_size, recent, ~found.accepted, counters)

    def _residual(self, state) -> Array:
        return norm(state.direction) / jnp.minimum(1, state.step_size)

    def done(self, problem: Composite, state: ProjectedGradientState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(self._residual(state) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Composite, state: ProjectedGradientState) -> PyTree:
        return state.x

    def metrics(self, problem: Composite, state: ProjectedGradientState) -> dict[str, Any]:
        return {"value": state.value, "residual": self._residual(state)}


def _direction(problem, x, gradient, step_size):
    return subtract(problem.prox(add(x, gradient, -step_size), step_size), x)
