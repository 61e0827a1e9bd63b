r"""Gradient descent.

$$x_{k+1} = x_k - \eta_k \nabla f(x_k)$$

with a fixed \(\eta\), or the longest that satisfies Armijo's condition among those tried (Nocedal and Wright 2006, section
3.1): the first trial is twice the step before, if that was taken at once, and the step before otherwise.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_between, need_count, need_not_negative, need_positive
from .ending import status
from .line_search import Backtracking, need_line_search, stay
from .vectors import add, dot, norm, scale

__all__ = ["GradientDescent"]


class GradientDescentState(eqx.Module):
    """`length` is the first step size that the next search tries; `stuck`, that the last one found nothing."""

    x: PyTree
    value: Array
    gradient: PyTree
    length: Array
    stuck: Array
    counters: Counters


class GradientDescent(Method):
    """Steepest descent, with a line search or a fixed step size.

    The baseline. It is the right choice when iterations have to be simple (to be unrolled, analysed, or compared with);
    `LBFGS` costs hardly more an iteration and takes far fewer.

    **Arguments:**

    - `step_size`: a fixed one; `None` searches.
    - `first_step`: the first step size the first search tries, as the length of the first move: at least
      `first_step / |gradient|`, at most `first_step`.
    - `decrease`: the fraction of the predicted decrease that a step must achieve.
    - `max_trials`: evaluations that a search may spend. If it finds nothing the solve ends as `stopped`.
    - `line_search`: another `LineSearch`; `None` backtracks with the two numbers above.
    - `tolerance`: converged when the norm of the gradient is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = Objective
    reference: ClassVar[str] = "nocedal2006numerical"

    step_size: Any = None
    first_step: Any = 1.0
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=30)
    tolerance: Any = 1e-6
    line_search: Any = None

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_positive("first_step", self.first_step)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)
        need_line_search(self.line_search)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> GradientDescentState:
        value, gradient = problem.value_and_gradient(guess, key=key)
        size = norm(gradient)
        length = self.first_step / jnp.maximum(1.0, size) if self.step_size is None else self.step_size
        counters = Counters.zero().add(values=1, gradients=1)
        stuck = jnp.array(False)
        return GradientDescentState(guess, value, gradient, jnp.asarray(length, value.dtype), stuck, counters)

    def step(self, problem: Objective, state: GradientDescentState, *, key: Array | None) -> GradientDescentState:
        if self.step_size is not None:
            x = add(state.x, state.gradient, -state.length)
            value, gradient = problem.value_and_gradient(x, key=key)
            counters = state.counters.add(values=1, gradients=1)
            return GradientDescentState(x, value, gradient, state.length, state.stuck, counters)
        slope = -dot(state.gradient, state.gradient)
        line = Backtracking(self.decrease, self.max_trials) if self.line_search is None else self.line_search
        found = line.search(problem, state.x, state.value, slope, scale(-1, state.gradient), state.length)
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        length = jnp.where(found.trials == 1, 2 * found.length, found.length)
        length = jnp.where(found.accepted, length, state.length)
        counters = state.counters.add(values=found.trials, gradients=found.trials)
        return GradientDescentState(x, value, gradient, length, ~found.accepted, counters)

    def done(self, problem: Objective, state: GradientDescentState):
        if problem.stochastic:
            return jnp.array(False)
        return status(norm(state.gradient) <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective, state: GradientDescentState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: GradientDescentState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
