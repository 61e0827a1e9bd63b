r"""Any Optax gradient transformation as a method.

$$u_k, s_{k+1} = \mathrm{tx}(\nabla f(x_k), s_k, x_k), \qquad x_{k+1} = x_k + u_k .$$

The gradient that the state holds is the one at the current iterate, so that convergence is judged where the answer is;
a step costs one evaluation of value and gradient, plus what a line search inside the transformation spends.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.fit import Fit
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_count, need_not_negative
from .vectors import all_finite, norm

__all__ = ["Optax", "samples_of"]


class OptaxState(eqx.Module):
    """`value` and `gradient` belong to `x`, `sound` if both are finite; `skipped` counts steps not taken, `in_a_row` the
    last of them."""

    x: PyTree
    value: Array
    gradient: PyTree
    inner: PyTree
    sound: Array
    skipped: Array
    in_a_row: Array
    counters: Counters


class OptaxIteration(Method):
    """What `Optax` and the methods made of one particular transformation share: abstract in `transformation`."""

    problem = Objective

    tolerance: eqx.AbstractVar[Any]
    skip_nonfinite: eqx.AbstractVar[bool]
    skips_in_a_row: eqx.AbstractVar[int]

    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation."""

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> OptaxState:
        value, gradient = problem.value_and_gradient(guess, key=key)
        inner = jtu.tree_map(jnp.asarray, self.transformation().init(guess))
        zero = jnp.zeros((), jnp.int32)
        counters = Counters.zero().add(values=1, gradients=1, samples=samples_of(problem))
        return OptaxState(guess, value, gradient, inner, all_finite((value, gradient)), zero, zero, counters)

    def step(self, problem: Objective, state: OptaxState, *, key: Array | None) -> OptaxState:
        value_fn = lambda x: problem.value(x, key=key)
        updates, inner = self.transformation().update(
            state.gradient, state.inner, state.x, value=state.value, grad=state.gradient, value_fn=value_fn
        )
        inner = jtu.tree_map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), inner, state.inner)
        x = optax.apply_updates(state.x, updates)
        skipped, in_a_row = state.skipped, state.in_a_row
        if self.skip_nonfinite:
            keep = lambda new, old: jnp.where(state.sound, new, old)
            x, inner = jtu.tree_map(keep, (x, inner), (state.x, state.inner))
            skipped = skipped + ~state.sound
            in_a_row = jnp.where(state.sound, 0, in_a_row + 1)
        value, gradient, evaluations = self._evaluate(problem, x, inner, key)
        sound = all_finite((value, gradient))
        if self.skip_nonfinite:  # until too many were skipped, what is reported is the last finite value
            value = jnp.where(sound, value, jnp.where(in_a_row < self.skips_in_a_row, state.value, jnp.nan))
        counters = state.counters.add(
            values=evaluations, gradients=evaluations, samples=evaluations * samples_of(problem)
        )
        return OptaxState(x, value, gradient, inner, sound, skipped, in_a_row.astype(jnp.int32), counters)

    def _evaluate(self, problem, x, inner, key):
        """Value and gradient at the new point, taken from a line search that has been there; and the number of calls."""
        value, gradient = optax.tree.get(inner, "value"), optax.tree.get(inner, "grad")
        if value is None or gradient is None or problem.stochastic:
            return *problem.value_and_gradient(x, key=key), 1 + _searched(inner)
        known = jnp.isfinite(value)
        value, gradient = jax.lax.cond(known, lambda: (value, gradient), lambda: problem.value_and_gradient(x, key=key))
        return value, gradient, _searched(inner) + jnp.where(known, 0, 1)

    def done(self, problem: Objective, state: OptaxState):
        if problem.stochastic:
            return jnp.array(False)
        return state.sound & (norm(state.gradient) <= self.tolerance)

    def answer(self, problem: Objective, state: OptaxState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: OptaxState) -> dict[str, Any]:
        metrics = {"value": state.value, "residual": norm(state.gradient)}
        return {**metrics, "skipped": state.skipped} if self.skip_nonfinite else metrics


class Optax(OptaxIteration):
    """Any Optax transformation, with the learning rate in it: `Optax(optax.lion(1e-4))`.

    Solves every problem with an objective; a `Fit` with a batch size is given a fresh batch each step. Transformations
    that ask for `value`, `grad` or `value_fn` (`optax.lbfgs()`, `optax.polyak_sgd()`, the line searches) get them, from
    the batch of the step. Pick it to train models, and where an optimiser that exists in Optax is wanted; on small
    deterministic problems `LBFGS` needs far fewer evaluations.

    **Arguments:**

    - `tx`: the `optax.GradientTransformation`. What is compiled for an eager solve is kept as long as the same object is used.
    - `tolerance`: converged when the norm of the gradient is at most this. A problem with random batches never says so.
    - `skip_nonfinite`: leave out a step whose gradient has NaN or Inf, and count it in the metric `skipped`;
    - `skips_in_a_row`: after so many in a row the solve ends as `nonfinite` all the same.

    Raises `ArgumentError` for a negative tolerance or if `tx` is not a transformation.

    ```python
    schedule = optax.cosine_decay_schedule(1e-2, 500)
    problem = om.Minimize(lambda x: jnp.sum((x - 1.0) ** 2))
    om.solve(problem, om.smooth.Optax(optax.adamw(schedule)), jnp.zeros(3), budget=om.Budget(steps=500))
    ```
    """

    reference: ClassVar[str] = "deepmind2020jax"

    tx: Any
    tolerance: Any = 1e-6
    skip_nonfinite: bool = eqx.field(static=True, default=False)
    skips_in_a_row: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not (hasattr(self.tx, "init") and hasattr(self.tx, "update")):
            raise ArgumentError("tx", f"must be an optax.GradientTransformation, not {type(self.tx).__name__}.")
        check_skips(self)

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.tx)


def check_skips(method: OptaxIteration) -> None:
    """The arguments that every `OptaxIteration` has."""
    need_not_negative("tolerance", method.tolerance)
    need_count("skips_in_a_row", method.skips_in_a_row)


def _searched(inner: PyTree):
    """How often a line search inside the transformation evaluated the function in its last step."""
    steps = optax.tree.get(inner, "num_linesearch_steps")
    return 0 if steps is None else jnp.asarray(steps, jnp.int32)


def samples_of(problem: Objective) -> int:
    """How many examples one evaluation of the problem looks at: none if it is not a finite sum."""
    if not isinstance(problem, Fit):
        return 0
    return problem.batch_size if problem.stochastic and problem.batch_size is not None else problem.count
