r"""Proximal gradient, accelerated (FISTA).

$$x_{k+1} = \mathrm{prox}_{\eta g}\big(y_k - \eta \nabla f(y_k)\big), \quad
  t_{k+1} = \tfrac12\big(1 + \sqrt{1 + 4 t_k^2}\big), \quad
  y_{k+1} = x_{k+1} + \frac{t_k - 1}{t_{k+1}} (x_{k+1} - x_k)$$

(Beck and Teboulle 2009, eq. 4.1-4.3). The step size is halved until

$$f(x_{k+1}) \le f(y_k) + \langle \nabla f(y_k), x_{k+1} - y_k \rangle + \tfrac{1}{2\eta} \lVert x_{k+1} - y_k \rVert^2 ,$$

and the momentum is dropped when it points uphill, \(\langle y_k - x_{k+1}, x_{k+1} - x_k \rangle > 0\) (O'Donoghue and
Candès 2015, section 3.2), which restores linear convergence on strongly convex problems.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import Composite
from .arguments import need_between, need_count, need_not_negative, need_positive
from .line_search import constant, evaluated
from .vectors import add, dot, norm, subtract

__all__ = ["ProximalGradient"]


class ProximalGradientState(eqx.Module):
    """`y` is the extrapolated point, `residual` the size of the gradient mapping at the last one."""

    x: PyTree
    y: PyTree
    value: Array
    residual: Array
    step_size: Array
    momentum: Array
    counters: Counters


class ProximalGradient(Method):
    r"""Proximal gradient with acceleration, restart and backtracking: for a smooth function plus a simple one.

    The first choice for `Composite`: the lasso, group penalties, constraint sets with a cheap projection. Where the set
    is simple and the function badly conditioned, `ProjectedGradient` with its spectral steps is often faster.

    **Arguments:**

    - `step_size`: a fixed one, at most 1 / L with L the Lipschitz constant of the gradient; `None` backtracks.
    - `first_step`: what backtracking starts from; `growth`: what the step size is multiplied by between steps.
    - `acceleration`, `restart`: momentum, and dropping it when it points uphill.
    - `max_trials`: evaluations that backtracking may spend in a step.
    - `tolerance`: converged when the gradient mapping \(\lVert y_k - x_{k+1} \rVert / \eta\) is at most this; that at
      \(x_{k+1}\) is no larger.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = Composite
    reference: ClassVar[str] = "beck2009fast"

    step_size: Any = None
    first_step: Any = 1.0
    growth: Any = 1.1
    acceleration: bool = eqx.field(static=True, default=True)
    restart: bool = eqx.field(static=True, default=True)
    max_trials: int = eqx.field(static=True, default=30)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_positive("first_step", self.first_step)
        need_between("growth", self.growth, 0.999999, 1e6)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Composite, guess: PyTree, *, key: Array | None) -> ProximalGradientState:
        value = problem.value(guess)
        start = self.first_step if self.step_size is None else self.step_size
        number = lambda x: jnp.asarray(x, value.dtype)
        counters = Counters.zero().add(values=1)
        return ProximalGradientState(guess, guess, value, number(jnp.inf), number(start), number(1.0), counters)

    def step(self, problem: Composite, state: ProximalGradientState, *, key: Array | None) -> ProximalGradientState:
        value, gradient = problem.smooth.value_and_gradient(state.y)
        if self.step_size is not None:
            length = next_step = state.step_size
            x, new_value = _forward_backward(problem, state.y, gradient, length), value  # of y: one evaluation a step
            counters = state.counters.add(values=1, gradients=1, proximal=1)
        else:
            x, new_value, length, trials = self._search(problem, state.y, value, gradient, state.step_size)
            next_step = self.growth * length
            counters = state.counters.add(values=1 + trials, gradients=1, proximal=trials)
        moved = subtract(state.y, x)
        y, momentum = x, state.momentum
        if self.acceleration:
            forward = subtract(x, state.x)
            if self.restart:
                momentum = jnp.where(dot(moved, forward) > 0, 1.0, momentum)
            grown = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
            y, momentum = add(x, forward, (momentum - 1) / grown), grown
        if problem.penalty_fn is not None:
            new_value = new_value + problem.penalty_fn(x, *problem.prox_args)
        number = lambda a: jnp.asarray(a, state.value.dtype)
        return ProximalGradientState(
            x, y, number(new_value), number(norm(moved) / length), number(next_step), number(momentum), counters
        )

    def _search(self, problem, y, value, gradient, first):
        """The first of `first`, `first` / 2, ... at which the quadratic model is an upper bound."""
        still, y_still, slope, value = constant((problem, y, gradient, value))
        allowance = 2 * jnp.finfo(value.dtype).eps * jnp.abs(value)

        def trial(carry):
            previous, _, _, trials, _ = carry
            length = jnp.where(trials == 0, previous, previous / 2)
            x = _forward_backward(still, y_still, slope, length)
            move = subtract(x, y_still)
            new_value = still.smooth.value(x)
            bound = value + dot(slope, move) + dot(move, move) / (2 * length) + allowance
            return length, x, new_value, trials + 1, new_value <= bound

        searching = lambda carry: ~carry[4] & (carry[3] < self.max_trials)
        begin = (jax.lax.stop_gradient(first), y_still, value, jnp.int32(0), jnp.array(False))
        length, x, new_value, trials, _ = jax.lax.while_loop(searching, trial, begin)
        x = evaluated(_forward_backward, (problem, y, gradient, length), x)
        new_value = evaluated(_smooth_value, (problem, x), new_value)
        return x, new_value, length, trials

    def done(self, problem: Composite, state: ProximalGradientState):
        return state.residual <= self.tolerance

    def answer(self, problem: Composite, state: ProximalGradientState) -> PyTree:
        return state.x

    def metrics(self, problem: Composite, state: ProximalGradientState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}


def _forward_backward(problem: Composite, y: PyTree, gradient: PyTree, length: Any) -> PyTree:
    """prox(y - length * gradient)."""
    moved = problem.prox(add(y, gradient, -length), length)
    return jtu.tree_map(lambda new, old: new.astype(old.dtype), moved, y)


def _smooth_value(problem, x):
    return problem.smooth.value(x)
