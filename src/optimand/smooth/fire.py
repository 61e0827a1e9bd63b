r"""FIRE: the fast inertial relaxation engine.

Molecular dynamics with force \(F = -\nabla f\) and unit masses, integrated by velocity Verlet, after each step of which the
velocity is turned towards the force,

$$v \leftarrow (1 - \alpha) v + \alpha \lVert v \rVert F / \lVert F \rVert ,$$

and set to zero if the power \(P = F \cdot v\), of the force and the velocity at the new point, is negative: the step went
uphill. While it has been positive for more than N_min steps the time step grows and \(\alpha\) decays (Bitzek et al. 2006).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_between, need_count, need_not_negative, need_positive
from .vectors import add, dot, norm, scale, zeros_like

__all__ = ["FIRE"]


class FIREState(eqx.Module):
    """`positive` counts the steps since the power was last negative."""

    x: PyTree
    velocity: PyTree
    value: Array
    gradient: PyTree
    time_step: Array
    alpha: Array
    positive: Array
    counters: Counters


class FIRE(Method):
    """The minimiser of molecular relaxation: one gradient a step, no line search, robust on rough energies.

    Pick it for particle systems, whose energies have kinks where contacts open and close: there it needs no value of
    the energy and is not confused by its noise. On a smooth landscape `LBFGS` is faster.

    **Arguments:** the published parameters.

    - `time_step`, `max_time_step`: the first and the longest; in units in which the stiffest vibration has a period of
      a few tens of `time_step`.
    - `delay` (N_min), `grow`, `shrink`, `alpha`, `alpha_decay`.
    - `tolerance`: converged when the norm of the gradient is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = Objective
    reference: ClassVar[str] = "bitzek2006structural"

    time_step: Any = 0.1
    max_time_step: Any = 1.0
    delay: int = eqx.field(static=True, default=5)
    grow: Any = 1.1
    shrink: Any = 0.5
    alpha: Any = 0.1
    alpha_decay: Any = 0.99
    tolerance: Any = 1e-6

    def __check_init__(self):
        for name in ("time_step", "max_time_step", "grow"):
            need_positive(name, getattr(self, name))
        for name in ("shrink", "alpha", "alpha_decay"):
            need_between(name, getattr(self, name), 0, 1)
        need_count("delay", self.delay, least=0)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> FIREState:
        value, gradient = problem.value_and_gradient(guess, key=key)
        number = lambda x: jnp.asarray(x, value.dtype)
        counters = Counters.zero().add(values=1, gradients=1)
        return FIREState(
            guess,
            zeros_like(guess),
            value,
            gradient,
            number(self.time_step),
            number(self.alpha),
            jnp.int32(0),
            counters,
        )

    def step(self, problem: Objective, state: FIREState, *, key: Array | None) -> FIREState:
        half = add(state.velocity, state.gradient, -0.5 * state.time_step)
        x = add(state.x, half, state.time_step)
        value, gradient = problem.value_and_gradient(x, key=key)
        velocity = add(half, gradient, -0.5 * state.time_step)
        power = -dot(gradient, velocity)
        force = norm(gradient)
        turned = state.alpha * norm(velocity) / jnp.where(force > 0, force, 1)
        velocity = add(scale(1 - state.alpha, velocity), gradient, -turned)
        forward = power > 0
        velocity = scale(jnp.where(forward, 1, 0), velocity)
        settled = forward & (state.positive > self.delay)
        longer = jnp.minimum(self.grow * state.time_step, self.max_time_step)
        time_step = jnp.where(settled, longer, jnp.where(forward, state.time_step, self.shrink * state.time_step))
        alpha = jnp.where(settled, self.alpha_decay * state.alpha, jnp.where(forward, state.alpha, self.alpha))
        return FIREState(
            x, velocity, value, gradient, time_step.astype(value.dtype), alpha.astype(value.dtype),
            jnp.where(forward, state.positive + 1, 0).astype(jnp.int32),
            state.counters.add(values=1, gradients=1),
        )  # fmt: skip

    def done(self, problem: Objective, state: FIREState):
        return jnp.array(False) if problem.stochastic else norm(state.gradient) <= self.tolerance

    def answer(self, problem: Objective, state: FIREState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: FIREState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
