r"""Levenberg-Marquardt.

$$(J^\top J + \mu I)\, \delta = -J^\top r, \qquad
  \varrho = \frac{F(x) - F(x + \delta)}{\tfrac12 \delta^\top (\mu \delta - J^\top r)}, \qquad F = \tfrac12 \lVert r \rVert^2 .$$

The step is taken if it decreases F; then \(\mu \leftarrow \mu \max(1/\gamma, 1 - (2\varrho - 1)^3)\), else
\(\mu \leftarrow \nu \mu, \nu \leftarrow 2\nu\) (Madsen, Nielsen and Tingleff 2004, algorithm 3.16, where \(\gamma = 3\)).
Here \(\gamma = 10\), Marquardt's own factor: where the model is good the last steps are then nearly those of Gauss-Newton,
and most problems with small residuals take one step less.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.method import Method
from ..core.problem import LeastSquares
from ..core.solution import Result
from .arguments import need_not_negative, need_positive
from .vectors import norm

__all__ = ["LevenbergMarquardt"]


class LevenbergMarquardtState(eqx.Module):
    """`hessian` is J'J and `gradient` J'r at `x`; `damping` is mu and `growth` nu."""

    x: PyTree
    value: Array
    gradient: Float[Array, "unknowns"]
    hessian: Float[Array, "unknowns unknowns"]
    damping: Array
    growth: Array
    counters: Counters


class LevenbergMarquardt(Method):
    """Damped Gauss-Newton: for nonlinear least squares with up to some hundreds of unknowns.

    Quadratically convergent where residuals end small, and safe far away. A step costs the residuals once, their Jacobian
    if the step is taken, and a Cholesky factorisation. It forms J'J, which squares the condition number: that costs
    iterations, not accuracy, except in single precision with very bad scaling. For many unknowns use `LBFGS`.

    **Arguments:**

    - `damping`: the first mu, relative to the largest diagonal entry of J'J at the guess.
    - `tolerance`: converged when the norm of J'r is at most this.

    Ends as `stopped` when no damping finds a decrease. Raises `ArgumentError`, naming the argument, for a number out of
    its range.
    """

    problem = LeastSquares
    reference: ClassVar[str] = "madsen2004methods"

    damping: Any = 1e-3
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("damping", self.damping)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: LeastSquares, guess: PyTree, *, key: Array | None) -> LevenbergMarquardtState:
        value, gradient, hessian = normal_equations(problem, guess)
        largest = jnp.max(jnp.diagonal(hessian))
        damping = self.damping * jnp.where(largest > 0, largest, 1)
        counters = Counters.zero().add(residuals=1, jacobians=1)
        growth = jnp.asarray(2.0, value.dtype)
        return LevenbergMarquardtState(guess, value, gradient, hessian, damping.astype(value.dtype), growth, counters)

    def step(
        self, problem: LeastSquares, state: LevenbergMarquardtState, *, key: Array | None
    ) -> LevenbergMarquardtState:
        flat, unravel = ravel_pytree(state.x)
        damped = state.hessian + state.damping * jnp.eye(flat.size, dtype=flat.dtype)
        delta = -jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), state.gradient)
        x = unravel(flat + delta)
        value = problem.value(x)
        predicted = 0.5 * delta @ (state.damping * delta - state.gradient)
        actual = state.value - value
        noise = 4 * jnp.finfo(value.dtype).eps * state.value
        accepted = (actual > 0) | ((jnp.abs(actual) <= noise) & (predicted <= noise))
        gain = actual / jnp.where(predicted > 0, predicted, 1)
        shrink = jnp.maximum(1 / 10, 1 - (2 * jnp.clip(gain, 0, 1) - 1) ** 3)
        damping = state.damping * jnp.where(accepted, shrink, state.growth).astype(value.dtype)
        growth = jnp.where(accepted, 2.0, jnp.minimum(2 * state.growth, 1e10)).astype(value.dtype)
        x = jax.tree_util.tree_map(lambda new, old: jnp.where(accepted, new, old), x, state.x)
        _, gradient, hessian = jax.lax.cond(
            accepted,
            lambda: normal_equations(problem, x),
            lambda: (state.value, state.gradient, state.hessian),
        )
        value = jnp.where(accepted, value, state.value)
        counters = state.counters.add(residuals=1, jacobians=accepted.astype(jnp.int32))
        return LevenbergMarquardtState(x, value, gradient, hessian, damping, growth, counters)

    def done(self, problem: LeastSquares, state: LevenbergMarquardtState):
        hopeless = state.damping > jnp.max(jnp.diagonal(state.hessian)) / jnp.finfo(state.value.dtype).eps ** 1.5
        code = jnp.where(hopeless, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.gradient) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: LeastSquares, state: LevenbergMarquardtState) -> PyTree:
        return state.x

    def metrics(self, problem: LeastSquares, state: LevenbergMarquardtState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}


def linearised(problem: LeastSquares, x: PyTree) -> tuple[Array, Array]:
    """The residuals as a vector, and the transpose of their Jacobian, in whichever mode takes fewer passes."""
    flat, unravel = ravel_pytree(x)

    def residual(flat):
        return ravel_pytree(problem.residual(unravel(flat)))[0].astype(flat.dtype)

    if flat.size > jax.eval_shape(residual, flat).size:
        jacobian, r = jax.jacrev(lambda flat: (residual(flat), residual(flat)), has_aux=True)(flat)
        return r, jacobian.T
    along = lambda e: jax.jvp(residual, (flat,), (e,))
    return jax.vmap(along, out_axes=(None, 0))(jnp.eye(flat.size, dtype=flat.dtype))


def normal_equations(problem: LeastSquares, x: PyTree) -> tuple[Array, Array, Array]:
    """F, J'r and J'J."""
    r, transposed = linearised(problem, x)
    return 0.5 * (r @ r), transposed @ r, transposed @ transposed.T
