r"""Anderson acceleration of a fixed-point iteration.

With the residual \(r_k = T(x_k) - x_k\) and the differences \(\Delta X, \Delta R\) of the last m points and residuals,

$$\gamma_k = \arg\min_\gamma \lVert r_k - \Delta R\, \gamma \rVert, \qquad
  x_{k+1} = x_k + \beta r_k - (\Delta X + \beta \Delta R)\, \gamma_k$$

(Walker and Ni 2011, section 2, the unconstrained form; Anderson 1965). The least-squares problem is solved by its normal
equations with a ridge relative to their trace: m is small, and the Gram matrix costs one product with the memory a step.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.dense import in_turn
from ..core.method import Method
from ..core.problem import FixedPoint
from .arguments import need_count, need_not_negative, need_positive
from .vectors import norm

__all__ = ["Anderson"]


class AndersonState(eqx.Module):
    """The differences stand in rings, in any order, zero where there is none yet; `gram` is dR dR'."""

    value: PyTree
    residual: Float[Array, "unknowns"]
    dx: Float[Array, "memory unknowns"]
    dr: Float[Array, "memory unknowns"]
    gram: Float[Array, "memory memory"]
    counters: Counters


class Anderson(Method):
    """Anderson acceleration: one application of the map a step, and GMRES-like convergence near the solution.

    The first choice for `FixedPoint`. For an expansive map try a smaller `damping`; where the map is cheap to
    differentiate and high accuracy is wanted, `Newton` on the corresponding `Root`.

    **Arguments:**

    - `memory`: m, differences to remember.
    - `damping`: beta.
    - `ridge`: regularisation of the least-squares problem, relative to the mean diagonal of its Gram matrix; at least
      the rounding error of the dtype is used.
    - `tolerance`: converged when the norm of T(x) - x is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = FixedPoint
    reference: ClassVar[str] = "walker2011anderson"

    memory: int = eqx.field(static=True, default=5)
    damping: Any = 1.0
    ridge: Any = 1e-12
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("memory", self.memory)
        need_positive("damping", self.damping)
        need_not_negative("ridge", self.ridge)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: FixedPoint, guess: PyTree, *, key: Array | None) -> AndersonState:
        x, _ = ravel_pytree(guess)
        image, _ = ravel_pytree(problem.apply(guess))
        differences = jnp.zeros((self.memory, x.size), x.dtype)
        gram = jnp.zeros((self.memory, self.memory), x.dtype)
        counters = Counters.zero().add(residuals=1)
        return AndersonState(guess, image - x, differences, differences, gram, counters)

    def step(self, problem: FixedPoint, state: AndersonState, *, key: Array | None) -> AndersonState:
        before, unravel = ravel_pytree(state.value)
        r = state.residual
        eps = jnp.finfo(r.dtype).eps
        scale = jnp.trace(state.gram) / self.memory
        missing = jnp.diagonal(state.gram) == 0
        ridge = jnp.maximum(self.ridge, 10 * eps).astype(r.dtype) * scale + jnp.where(missing, 1, 0)
        gamma = _by_cholesky(state.gram + jnp.diag(ridge), state.dr @ r)
        gamma = jnp.where(jnp.isfinite(gamma), gamma, 0)  # not positive definite in spite of the ridge: do without
        x = before + self.damping * r - gamma @ (state.dx + self.damping * state.dr)
        x = x.astype(r.dtype)
        value = unravel(x)
        image, _ = ravel_pytree(problem.apply(value))
        new_r = image - x
        slot = (state.counters.residuals - 1) % self.memory
        new_dr = new_r - r
        put = lambda row, rows, axis=0: jax.lax.dynamic_update_index_in_dim(
            rows, row, slot, axis, allow_negative_indices=False
        )
        dx, dr = put(x - before, state.dx), put(new_dr, state.dr)
        newest = dr @ new_dr
        gram = put(newest, put(newest, state.gram), axis=1)
        return AndersonState(value, new_r, dx, dr, gram, state.counters.add(residuals=1))

    def done(self, problem: FixedPoint, state: AndersonState):
        return norm(state.residual) <= self.tolerance

    def answer(self, problem: FixedPoint, state: AndersonState) -> PyTree:
        return state.value

    def metrics(self, problem: FixedPoint, state: AndersonState) -> dict[str, Any]:
        return {"residual": norm(state.residual)}


@in_turn
def _by_cholesky(matrix, rhs):
    factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), rhs)
