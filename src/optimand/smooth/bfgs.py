r"""BFGS, with the inverse of the Hessian in full.

The direction is \(-H g\), and with \(s = x_{k+1} - x_k\), \(y = g_{k+1} - g_k\)

$$H_{k+1} = (I - \rho s y^\top) H_k (I - \rho y s^\top) + \rho s s^\top
  = H_k - \rho\, (s\, (H_k y)^\top + H_k y\, s^\top) + \rho\, (1 + \rho\, y^\top H_k y)\, s s^\top, \qquad \rho = \frac{1}{s^\top y}$$

(Nocedal and Wright 2006, eq. 6.14 and 6.17). Before the first pair counts, H is \(s^\top y / y^\top y\) times the identity (eq. 6.20). A pair without
curvature, \(s^\top y \le 0\) up to rounding, is left out. Both products that a step needs, with y and with the new gradient, are taken in one pass over H.
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
from .arguments import need_not_negative
from .ending import status
from .line_search import Backtracking, need_line_search, stay
from .vectors import curved, norm, steepest

__all__ = ["BFGS"]


class BFGSState(eqx.Module):
    """`inverse` is H, `warm` whether a pair has made it; `direction` the next one, with the `slope` along it."""

    x: PyTree
    value: Array
    gradient: PyTree
    direction: Float[Array, "unknowns"]
    slope: Array
    inverse: Float[Array, "unknowns unknowns"]
    warm: Array
    stuck: Array
    counters: Counters


class BFGS(Method):
    """BFGS: quasi-Newton with a dense inverse Hessian, for up to some hundred unknowns.

    The first choice where a function is cheap, has few unknowns, and no second derivatives are wanted. With them `TrustRegion` solves more
    problems in fewer steps; with many unknowns `LBFGS` needs less memory.

    **Arguments:**

    - `line_search`: a `LineSearch`; by default `Backtracking()`. When a search finds nothing H is dropped, and if the steepest descent
      direction finds nothing either the solve ends as `stopped`: it can get no nearer at this precision.
    - `tolerance`: converged when the norm of the gradient is at most this.

    An objective that falls without bound ends the solve as `diverged`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a problem with random batches.

    ```python
    om.solve(om.Minimize(lambda x: jnp.sum((x - 1) ** 4 + x**2)), om.smooth.BFGS(), jnp.zeros(5)).value
    ```
    """

    problem = Objective
    reference: ClassVar[str] = "nocedal2006numerical"

    line_search: Any = None
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_line_search(self.line_search)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> BFGSState:
        if problem.stochastic:
            raise ArgumentError("problem", "has random batches, between which BFGS cannot compare.", "Try Adam.")
        value, gradient = problem.value_and_gradient(guess)
        g, _ = ravel_pytree(gradient)
        direction, slope = steepest(g)
        no = jnp.array(False)
        counters = Counters.zero().add(values=1, gradients=1)
        return BFGSState(guess, value, gradient, direction, slope, jnp.eye(g.size, dtype=g.dtype), no, no, counters)

    def step(self, problem: Objective, state: BFGSState, *, key: Array | None) -> BFGSState:
        g, _ = ravel_pytree(state.gradient)
        _, unravel = ravel_pytree(state.x)
        line = Backtracking() if self.line_search is None else self.line_search
        slope = state.slope.astype(state.value.dtype)
        found = line.search(problem, state.x, state.value, slope, unravel(state.direction), 1.0)
        x, value, gradient = stay(found.accepted, found, state.x, state.value, state.gradient)
        g_new, _ = ravel_pytree(gradient)
        s, y = found.length.astype(g.dtype) * state.direction, g_new - g

        # All inner products from two small matrices: on few unknowns a step costs what its number of operations costs.
        rows = jnp.stack([s, y, g_new])
        (ss, sy, sg), (_, yy, _) = rows[:2] @ rows.T
        images = rows[1:] @ state.inverse  # H is symmetric
        (yhy, ghy), (_, ghg) = images @ rows[1:].T
        useful = found.accepted & curved(sy, ss, yy)
        lost = found.accepted & ~useful  # no curvature says how far to go: twice as far as before
        scale = jnp.where(state.warm, 1, jnp.where(useful, sy / jnp.where(useful, yy, 1), 1))
        rho = jnp.where(useful, 1 / jnp.where(useful, sy, 1), 0)
        weight = rho * (1 + rho * scale * yhy)
        hy, hg = scale * images[0], scale * images[1]
        across = jnp.outer(s, hy)
        inverse = scale * state.inverse - rho * (across + across.T) + weight * jnp.outer(s, s)
        direction = -(hg - rho * (scale * ghy * s + sg * hy) + weight * sg * s)
        slope = -(scale * ghg - 2 * rho * scale * ghy * sg + weight * sg**2)
        sensible = found.accepted & (state.warm | useful) & (slope < 0)
        down, down_slope = steepest(g_new, jnp.where(lost, 2 * jnp.sqrt(ss), 0))
        direction, slope = jnp.where(sensible, direction, down), jnp.where(sensible, slope, down_slope)
        return BFGSState(
            x, value, gradient, direction, slope, jnp.where(sensible, inverse, jnp.eye(g.size, dtype=g.dtype)), sensible,
            ~found.accepted & ~state.warm,
            state.counters.add(values=found.trials, gradients=found.trials),
        )  # fmt: skip

    def done(self, problem: Objective, state: BFGSState):
        return status(norm(state.gradient) <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective, state: BFGSState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: BFGSState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
