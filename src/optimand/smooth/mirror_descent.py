r"""Mirror descent.

$$x_{k+1} = \nabla \phi^{*}\big(\nabla \phi(x_k) - \eta \nabla f(x_k)\big)$$

(Beck and Teboulle 2003, eq. 3.7). With the negative entropy on the probability simplex this is the exponentiated gradient

$$x_{k+1} = \mathrm{softmax}\big(\log x_k - \eta \nabla f(x_k)\big) .$$
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Composite
from .arguments import need_not_negative, need_positive
from .vectors import add, norm, subtract

__all__ = ["MirrorDescent"]


class MirrorDescentState(eqx.Module):
    """`dual` is the mirror image of `x`; `residual` the last move divided by the step size."""

    x: PyTree
    dual: PyTree
    value: Array
    residual: Array
    counters: Counters


class MirrorDescent(Method):
    """Gradient descent in the geometry of a mirror map; by default that of the entropy, on the probability simplex.

    The problem is a `Composite` whose `prox` is the Euclidean projection on the set, which says what a solution is (and
    how it is differentiated); the method itself never calls it. Pick it over projected gradient when there are many
    simplices: no sorting, and the bound grows with log(d) instead of d. It approaches a face but never reaches it.

    **Arguments:**

    - `step_size`: a number, or a function of the step number (starting at 0).
    - `to_dual`, `from_dual`: a mirror map and its inverse on the set, from and to the structure of the unknown. By
      default logarithm and softmax over the last axis of each array, whose entries then sum to one.
    - `tolerance`: converged when |x_{k+1} - x_k| / step_size is at most this.

    Raises `ArgumentError` for a number out of its range, and for half a mirror map.
    """

    problem = Composite
    reference: ClassVar[str] = "beck2003mirror"

    step_size: Any = 1.0
    to_dual: Callable | None = None
    from_dual: Callable | None = None
    tolerance: Any = 1e-6

    def __check_init__(self):
        if not callable(self.step_size):
            need_positive("step_size", self.step_size)
        need_not_negative("tolerance", self.tolerance)
        if (self.to_dual is None) != (self.from_dual is None):
            missing = "to_dual" if self.to_dual is None else "from_dual"
            raise ArgumentError(missing, "is missing: a mirror map needs both directions.")

    def _maps(self):
        if self.to_dual is not None and self.from_dual is not None:
            return self.to_dual, self.from_dual
        tiny = lambda leaf: jnp.finfo(leaf.dtype).tiny
        logarithm = lambda leaf: jnp.log(jnp.maximum(leaf, tiny(leaf)))
        return (
            lambda x: jtu.tree_map(logarithm, x),
            lambda y: jtu.tree_map(lambda leaf: jax.nn.softmax(leaf, axis=-1), y),
        )

    def init(self, problem: Composite, guess: PyTree, *, key: Array | None) -> MirrorDescentState:
        to_dual, from_dual = self._maps()
        dual = to_dual(guess)
        x = from_dual(dual)
        value = problem.smooth.value(x)
        residual = jnp.asarray(jnp.inf, value.dtype)
        return MirrorDescentState(x, dual, value, residual, Counters.zero().add(values=1))

    def step(self, problem: Composite, state: MirrorDescentState, *, key: Array | None) -> MirrorDescentState:
        _, from_dual = self._maps()
        value, gradient = problem.smooth.value_and_gradient(state.x)
        number = state.counters.gradients
        step_size: Any = self.step_size(number) if callable(self.step_size) else self.step_size
        dual = add(state.dual, gradient, -jnp.asarray(step_size, value.dtype))
        x = from_dual(dual)
        if self.to_dual is None:  # the dual is known up to a constant: keep it from growing
            dual = jtu.tree_map(lambda leaf: leaf - jnp.max(leaf, axis=-1, keepdims=True), dual)
        residual = (norm(subtract(x, state.x)) / step_size).astype(value.dtype)
        return MirrorDescentState(x, dual, value, residual, state.counters.add(values=1, gradients=1))

    def done(self, problem: Composite, state: MirrorDescentState):
        return state.residual <= self.tolerance

    def answer(self, problem: Composite, state: MirrorDescentState) -> PyTree:
        return state.x

    def metrics(self, problem: Composite, state: MirrorDescentState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}
