r"""Limited-memory BFGS.

The direction is \(-H \nabla f(x)\), where \(H\) is what BFGS makes of \(\gamma I\) with the last m pairs
\(s_i = x_{i+1} - x_i\), \(y_i = \nabla f(x_{i+1}) - \nabla f(x_i)\) (Liu and Nocedal 1989). Written with
\(S = [s_1 \dots s_m]\), \(Y = [y_1 \dots y_m]\), \(R = \mathrm{triu}(S^\top Y)\), \(D = \mathrm{diag}(S^\top Y)\) and
\(\gamma = s_m^\top y_m / y_m^\top y_m\) it is (Byrd, Nocedal and Schnabel 1994, eq. 3.13)

$$H g = \gamma g + S R^{-\top} \big((D + \gamma Y^\top Y) R^{-1} S^\top g - \gamma Y^\top g\big) - \gamma Y R^{-1} S^\top g .$$

This is used instead of the two-loop recursion: it is the same direction in two passes over the memory and not in 4 m
operations that wait for one another. \(R^{-1}\) is kept itself: without the row and column of the oldest pair it is the
inverse of R without that pair, and a new pair adds a column. All of it holds in any order of the pairs, so nothing is
ever moved: the next pair is written to a place that has no weight yet, and gets one if its curvature is good.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
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
from .vectors import curved, norm, steepest

__all__ = ["LBFGS"]


class LBFGSState(eqx.Module):
    """The pairs, what the formula needs of them, and the next `direction` with the `slope` along it.

    The next pair goes to number `slot` of `pairs` (all s, then all y), which has no weight: there `inverse` (R^-1), `diagonal`
    and `yy` are zero. `gamma` is zero while there is no pair.
    """

    x: PyTree
    value: Array
    gradient: PyTree
    direction: Float[Array, "unknowns"]
    slope: Array
    pairs: Float[Array, "twice_places unknowns"]
    inverse: Float[Array, "places places"]
    diagonal: Float[Array, "places"]
    yy: Float[Array, "places places"]
    gamma: Array
    slot: Array
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
        places = self.memory + 1
        pairs = jnp.zeros((2 * places, g.size), g.dtype)
        products = jnp.zeros((places, places), g.dtype)
        direction, slope = steepest(g)
        return LBFGSState(
            guess, value, gradient, direction, slope, pairs, products, products[0], products, products[0, 0],
            jnp.int32(0), jnp.array(False), Counters.zero().add(values=1, gradients=1),
        )  # fmt: skip

    def step(self, problem: Objective, state: LBFGSState, *, key: Array | None) -> LBFGSState:
        g, _ = ravel_pytree(state.gradient)
        _, unravel = ravel_pytree(state.x)
        line = Backtracking(self.decrease, self.max_trials) if self.line_search is None else self.line_search
        slope = state.slope.astype(state.value.dtype)
        found = line.search(problem, state.x, state.value, slope, unravel(state.direction), 1.0)
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        g_new, _ = ravel_pytree(gradient)
        s, y = found.length.astype(g.dtype) * state.direction, g_new - g

        slot, places = state.slot, self.memory + 1
        put = lambda row, rows, at: jax.lax.dynamic_update_index_in_dim(rows, row, at, 0, allow_negative_indices=False)
        pairs = put(y, put(s, state.pairs, slot), places + slot)
        (sg, yg), (sy, yy_new) = (jnp.reshape(pairs @ vector, (2, places)) for vector in (g_new, y))  # faster than at once
        curvature, yy_last = sy[slot], yy_new[slot]
        useful = found.accepted & curved(curvature, s @ s, yy_last)
        lost = found.accepted & ~useful  # no curvature says how far to go: twice as far as before

        place = jnp.arange(places)
        slot = jnp.where(useful, (slot + 1) % places, slot)  # that of the oldest pair, which is dropped
        new, dropped = place == state.slot, place == slot
        curvature = jnp.where(useful, curvature, 1)
        column = (jnp.where(new, 1, 0) - state.inverse @ sy) / curvature
        drop = lambda matrix: jnp.where(dropped | dropped[:, None], 0, matrix)
        keep = lambda changed, old: jnp.where(useful, changed, jnp.where(found.accepted, old, 0))
        inverse = keep(drop(jnp.where(new, column[:, None], state.inverse)), state.inverse)
        diagonal = keep(jnp.where(dropped, 0, jnp.where(new, curvature, state.diagonal)), state.diagonal)
        yy = jnp.where(new, yy_new[:, None], jnp.where(new[:, None], yy_new, state.yy))
        yy = keep(drop(yy), state.yy)
        gamma = keep(curvature / jnp.where(useful, yy_last, 1), state.gamma)

        u = inverse @ sg
        v = (diagonal * u + gamma * (yy @ u - yg)) @ inverse
        direction = -(gamma * g_new + jnp.concatenate([v, -gamma * u]) @ pairs)
        slope = g_new @ direction
        sensible = (gamma > 0) & (slope < 0)
        down, down_slope = steepest(g_new, jnp.where(lost, 2 * norm(s), 0))
        direction, slope = jnp.where(sensible, direction, down), jnp.where(sensible, slope, down_slope)
        return LBFGSState(
            x, value, gradient, direction, slope, pairs, inverse, diagonal, yy, gamma, slot,
            ~found.accepted & (state.gamma == 0),
            state.counters.add(values=found.trials, gradients=found.trials),
        )  # fmt: skip

    def done(self, problem: Objective, state: LBFGSState):
        return status(norm(state.gradient) <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective, state: LBFGSState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: LBFGSState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
