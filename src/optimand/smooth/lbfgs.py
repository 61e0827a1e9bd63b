r"""Limited-memory BFGS.

The direction is \(-H \nabla f(x)\), where \(H\) is what BFGS makes of a multiple of the identity with the last pairs of steps and differences
of gradients (Liu and Nocedal 1989): see `pairs`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_between, need_count, need_not_negative
from .ending import status
from .line_search import Backtracking, need_line_search, stay
from .pairs import CompactPairs, LoopedPairs, no_pairs
from .vectors import norm, steepest

__all__ = ["LBFGS"]


class LBFGSState(eqx.Module):
    """The pairs, and the next `direction` with the `slope` along it."""

    x: PyTree
    value: Array
    gradient: PyTree
    direction: Float[Array, "unknowns"]
    slope: Array
    pairs: CompactPairs | LoopedPairs
    stuck: Array
    counters: Counters


class LBFGS(Method):
    """Limited-memory BFGS with a backtracking line search: close to one evaluation of value and gradient a step.

    The first choice for a smooth deterministic objective of any size. Give up on it when the objective is not smooth
    (`ProximalGradient`), noisy (`Adam`), or a sum of squares with few unknowns (`LevenbergMarquardt`).

    **Arguments:**

    - `memory`: pairs to remember.
    - `decrease`: the fraction of the predicted decrease that a step must achieve.
    - `max_trials`: evaluations a line search may spend. When one finds nothing the memory is dropped, and if the
      steepest descent direction finds nothing either the solve ends as `stopped`: it can get no nearer at this precision.
    - `tolerance`: converged when the norm of the gradient is at most this.
    - `line_search`: another `LineSearch`; `None` backtracks with the two numbers above.

    An objective that falls without bound ends the solve as `diverged`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a problem with random batches.
    """

    problem = Objective
    reference: ClassVar[str] = "liu1989limited"

    memory: int = eqx.field(static=True, default=10)
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=20)
    tolerance: Any = 1e-6
    line_search: Any = None

    def __check_init__(self):
        need_count("memory", self.memory)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)
        need_line_search(self.line_search)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> LBFGSState:
        if problem.stochastic:
            raise ArgumentError("problem", "has random batches, between which LBFGS cannot compare.", "Try Adam.")
        value, gradient = problem.value_and_gradient(guess)
        g, _ = ravel_pytree(gradient)
        direction, slope = steepest(g)
        counters = Counters.zero().add(values=1, gradients=1)
        return LBFGSState(guess, value, gradient, direction, slope, no_pairs(self.memory, g), jnp.array(False), counters)

    def step(self, problem: Objective, state: LBFGSState, *, key: Array | None) -> LBFGSState:
        g, _ = ravel_pytree(state.gradient)
        _, unravel = ravel_pytree(state.x)
        line = Backtracking(self.decrease, self.max_trials) if self.line_search is None else self.line_search
        slope = state.slope.astype(state.value.dtype)
        found = line.search(problem, state.x, state.value, slope, unravel(state.direction), 1.0)
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        g_new, _ = ravel_pytree(gradient)
        s, y = found.length.astype(g.dtype) * state.direction, g_new - g

        pairs, useful = state.pairs.followed_by(s, y, found.accepted)
        lost = found.accepted & ~useful  # no curvature says how far to go: twice as far as before
        direction = -pairs.times(g_new)
        slope = g_new @ direction
        sensible = (pairs.gamma > 0) & (slope < 0)
        down, down_slope = steepest(g_new, jnp.where(lost, 2 * norm(s), 0))
        direction, slope = jnp.where(sensible, direction, down), jnp.where(sensible, slope, down_slope)
        stuck = ~found.accepted & (state.pairs.gamma == 0)
        counters = state.counters.add(values=found.trials, gradients=found.trials)
        return LBFGSState(x, value, gradient, direction, slope, pairs, stuck, counters)

    def done(self, problem: Objective, state: LBFGSState):
        return status(norm(state.gradient) <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective, state: LBFGSState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: LBFGSState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
