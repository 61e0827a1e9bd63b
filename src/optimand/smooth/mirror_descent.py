r"""Mirror descent.

$$x_{k+1} = \nabla \phi^{*}\big(\nabla \phi(x_k) - \eta \nabla f(x_k)\big)$$

(Beck and Teboulle 2003, eq. 3.7). With the negative entropy on the probability simplex this is the exponentiated gradient

$$x_{k+1} = \mathrm{softmax}\big(\log x_k - \eta \nabla f(x_k)\big) .$$

The step size is given, or halved until \(f(x_{k+1}) \le f(x_k) + c \langle \nabla f(x_k), x_{k+1} - x_k \rangle\): Armijo's condition along
the path of the mirror map.
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
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative, need_positive
from .line_search import constant
from .vectors import add, dot, norm, select, subtract

__all__ = ["MirrorDescent"]


class MirrorDescentState(eqx.Module):
    """`dual` is the mirror image of `x`; `residual` the last move divided by the step size, `length`, which is what a search starts from."""

    x: PyTree
    dual: PyTree
    value: Array
    residual: Array
    length: Array
    stuck: Array
    counters: Counters


class MirrorDescent(Method):
    """Gradient descent in the geometry of a mirror map; by default that of the entropy, on the probability simplex.

    The problem is a `Composite` whose `prox` is the Euclidean projection on the set, which says what a solution is (and
    how it is differentiated); the method itself never calls it. Pick it over projected gradient when there are many
    simplices: no sorting, and the bound grows with log(d) instead of d. It approaches a face but never reaches it.

    **Arguments:**

    - `step_size`: a number, or a function of the step number (starting at 0); `None` backtracks.
    - `first_step`: what backtracking starts from; a step that is taken at once is followed by one twice as long.
    - `decrease`, `max_trials`: c above, and the evaluations of a search. If it finds nothing the solve ends as `stopped`.
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
    first_step: Any = 1.0
    decrease: Any = 0.1
    max_trials: int = eqx.field(static=True, default=40)

    def __check_init__(self):
        if not callable(self.step_size):
            need_positive("step_size", self.step_size)
        need_not_negative("tolerance", self.tolerance)
        need_positive("first_step", self.first_step)
        need_between("decrease", self.decrease, 0, 1)
        need_count("max_trials", self.max_trials)
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
        first = jnp.asarray(self.first_step, value.dtype)
        return MirrorDescentState(x, dual, value, residual, first, jnp.array(False), Counters.zero().add(values=1))

    def step(self, problem: Composite, state: MirrorDescentState, *, key: Array | None) -> MirrorDescentState:
        value, gradient = problem.smooth.value_and_gradient(state.x)
        if self.step_size is None:
            return self._search(problem, state, value, gradient)
        number = state.counters.gradients
        step_size: Any = self.step_size(number) if callable(self.step_size) else self.step_size
        length = jnp.asarray(step_size, value.dtype)
        x, dual = self._move(state, gradient, length)
        residual = (norm(subtract(x, state.x)) / length).astype(value.dtype)
        counters = state.counters.add(values=1, gradients=1)
        return MirrorDescentState(x, dual, value, residual, state.length, state.stuck, counters)

    def _move(self, state: MirrorDescentState, gradient: PyTree, length: Array) -> tuple[PyTree, PyTree]:
        """The point that a step of this length leads to, and its mirror image."""
        _, from_dual = self._maps()
        dual = add(state.dual, gradient, -length)
        x = from_dual(dual)
        if self.to_dual is None:  # the dual is known up to a constant: keep it from growing
            dual = jtu.tree_map(lambda leaf: leaf - jnp.max(leaf, axis=-1, keepdims=True), dual)
        return x, dual

    def _search(self, problem: Composite, state: MirrorDescentState, value: Array, gradient: PyTree) -> MirrorDescentState:
        """The first of `length`, `length` / 2, ... with enough decrease, found with everything held constant."""
        still, before, slope, value0 = constant((problem.smooth, state, gradient, value))
        allowance = 2 * jnp.finfo(value.dtype).eps * jnp.abs(value0)

        def trial(carry):
            length, trials, _ = carry
            length = jnp.where(trials == 0, length, length / 2)
            x, _ = self._move(before, slope, length)
            bound = value0 + self.decrease * dot(slope, subtract(x, before.x)) + allowance
            return length, trials + 1, still.value(x) <= bound

        searching = lambda carry: ~carry[2] & (carry[1] < self.max_trials)
        length, trials, accepted = jax.lax.while_loop(searching, trial, (before.length, jnp.int32(0), jnp.array(False)))
        x, dual = select(accepted, self._move(state, gradient, length), (state.x, state.dual))
        residual = jnp.where(accepted, norm(subtract(x, state.x)) / length, state.residual).astype(value.dtype)
        following = jnp.where(trials == 1, 2 * length, length)
        counters = state.counters.add(values=1 + trials, gradients=1)
        return MirrorDescentState(x, dual, value, residual, following, ~accepted, counters)

    def done(self, problem: Composite, state: MirrorDescentState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(state.residual <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Composite, state: MirrorDescentState) -> PyTree:
        return state.x

    def metrics(self, problem: Composite, state: MirrorDescentState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}
