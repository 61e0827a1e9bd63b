r"""Limited-memory BFGS.

The direction is \(-H \nabla f(x)\), where \(H\) is what BFGS makes of \(\gamma I\) with the last m pairs
\(s_i = x_{i+1} - x_i\), \(y_i = \nabla f(x_{i+1}) - \nabla f(x_i)\) (Liu and Nocedal 1989). Written with
\(S = [s_1 \dots s_m]\), \(Y = [y_1 \dots y_m]\), \(R = \mathrm{triu}(S^\top Y)\), \(D = \mathrm{diag}(S^\top Y)\) and
\(\gamma = s_m^\top y_m / y_m^\top y_m\) it is (Byrd, Nocedal and Schnabel 1994, eq. 3.13)

$$H g = \gamma g + S R^{-\top} \big((D + \gamma Y^\top Y) R^{-1} S^\top g - \gamma Y^\top g\big) - \gamma Y R^{-1} S^\top g .$$

This is used instead of the two-loop recursion: it is the same direction in two passes over the memory and not in 4 m
operations that wait for one another. \(R^{-1}\) is kept itself: without its first row and column it is the inverse of R
without the oldest pair, and a new pair adds one column. The pairs themselves stay where they are, the newest in the place
of the oldest, since to move them would take longer than all the rest; only the small matrices are in order.
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
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative
from .line_search import backtrack, stay
from .vectors import norm

__all__ = ["LBFGS"]


class LBFGSState(eqx.Module):
    """The pairs, what the formula needs of them, and the next `direction`.

    `s` and `y` are rings, in which the next pair goes to `slot`; `inverse` (R^-1), `diagonal` and `yy` are oldest first,
    and zero where there is no pair, so that what is left in the rings from before has no weight.
    """

    x: PyTree
    value: Array
    gradient: PyTree
    direction: Float[Array, "unknowns"]
    s: Float[Array, "memory unknowns"]
    y: Float[Array, "memory unknowns"]
    inverse: Float[Array, "memory memory"]
    diagonal: Float[Array, "memory"]
    yy: Float[Array, "memory memory"]
    pairs: Array
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

    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a problem with random batches.
    """

    problem = Objective
    reference: ClassVar[str] = "liu1989limited"

    memory: int = eqx.field(static=True, default=10)
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=20)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("memory", self.memory)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> LBFGSState:
        if problem.stochastic:
            raise ArgumentError("problem", "has random batches, between which LBFGS cannot compare.", "Try Adam.")
        value, gradient = problem.value_and_gradient(guess)
        flat, _ = ravel_pytree(gradient)
        pairs = jnp.zeros((self.memory, flat.size), flat.dtype)
        products = jnp.zeros((self.memory, self.memory), flat.dtype)
        return LBFGSState(
            guess, value, gradient, _steepest(flat), pairs, pairs, products, products[0], products,
            jnp.int32(0), jnp.int32(0), jnp.array(False), Counters.zero().add(values=1, gradients=1),
        )  # fmt: skip

    def step(self, problem: Objective, state: LBFGSState, *, key: Array | None) -> LBFGSState:
        g, _ = ravel_pytree(state.gradient)
        _, unravel = ravel_pytree(state.x)
        slope = g @ state.direction
        found = backtrack(
            problem, state.x, state.value, slope.astype(state.value.dtype), unravel(state.direction), 1.0,
            decrease=self.decrease, max_trials=self.max_trials,
        )  # fmt: skip
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        g_new, _ = ravel_pytree(gradient)
        s, y = found.length.astype(g.dtype) * state.direction, g_new - g
        curvature, yy_last = s @ y, y @ y
        useful = found.accepted & (curvature > 1e-10 * jnp.sqrt(yy_last) * jnp.sqrt(s @ s))

        keep = lambda new, old: jnp.where(useful, new, jnp.where(found.accepted, old, 0))
        big_s, big_y = (_put(rows, state.slot, row, useful) for rows, row in ((state.s, s), (state.y, y)))
        slot = jnp.where(useful, state.slot + 1, state.slot) % self.memory
        against = jnp.stack([g_new, y], axis=1)
        s_products, y_products = (_from(slot, rows @ against) for rows in (big_s, big_y))
        older = state.inverse[1:, 1:]
        last = jnp.concatenate([-older @ s_products[:-1, 1], jnp.ones(1, g.dtype)]) / jnp.where(useful, curvature, 1)
        inverse = keep(jnp.pad(older, ((0, 1), (0, 1))).at[:, -1].set(last), state.inverse)
        diagonal = keep(jnp.append(state.diagonal[1:], curvature), state.diagonal)
        newest = y_products[:, 1]
        yy = keep(jnp.pad(state.yy[1:, 1:], ((0, 1), (0, 1))).at[:, -1].set(newest).at[-1].set(newest), state.yy)
        pairs = keep(jnp.minimum(state.pairs + 1, self.memory), state.pairs)

        gamma = diagonal[-1] / jnp.where(pairs > 0, yy[-1, -1], 1)
        u = inverse @ s_products[:, 0]
        v = (diagonal * u + gamma * (yy @ u - y_products[:, 0])) @ inverse
        in_place = _from(self.memory - slot, jnp.stack([v, -gamma * u], axis=1))
        direction = -(gamma * g_new + in_place[:, 0] @ big_s + in_place[:, 1] @ big_y)
        sensible = (pairs > 0) & (g_new @ direction < 0)
        direction = jnp.where(sensible, direction, _steepest(g_new))
        return LBFGSState(
            x, value, gradient, direction, big_s, big_y, inverse, diagonal, yy, pairs, slot,
            ~found.accepted & (state.pairs == 0),
            state.counters.add(values=found.trials, gradients=found.trials),
        )  # fmt: skip

    def done(self, problem: Objective, state: LBFGSState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.gradient) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Objective, state: LBFGSState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: LBFGSState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}


def _put(rows: Array, slot: Array, row: Array, useful: Array) -> Array:
    """`row` in the place of `rows[slot]`, if it is useful."""
    return jax.lax.dynamic_update_index_in_dim(rows, jnp.where(useful, row, rows[slot]), slot, 0)


def _from(start: Array, rows: Array) -> Array:
    """The rows from number `start` on, and then those before it."""
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([rows, rows]), start, len(rows))


def _steepest(g: Array) -> Array:
    """The first direction: down the gradient, by at most a unit."""
    return -g / jnp.maximum(1.0, norm(g))
