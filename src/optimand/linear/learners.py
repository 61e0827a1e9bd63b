"""Learning a parameter of a solver from what its solves cost.

A learner has a grid of values. Before each solve it draws one, of which afterwards it is told the cost, for instance the number of
iterations, and no more: what the other values would have cost it never sees. It may know a number before it draws, the context. Its
state is a pytree of arrays of fixed shapes, and both halves of a round can be traced:

    index, state = learner.choose(state, context, key)
    ...                                                     # solve with learner.grid[index]
    state = learner.learn(state, cost)

Costs of at least one are what the methods are made for; others are taken as they are.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer

__all__ = ["ParameterLearner", "as_bounds", "as_context", "as_cost", "as_grid"]


class ParameterLearner(eqx.Module):
    """A method that chooses among the values of a grid, from the costs of those that it chose before: abstract."""

    grid: eqx.AbstractVar[Float[Array, " values"]]

    @abc.abstractmethod
    def init(self) -> PyTree:
        """The state before the first round."""

    @abc.abstractmethod
    def choose(self, state: PyTree, context: Any, key: PRNGKeyArray) -> tuple[Int[Array, ""], PyTree]:
        """The index of the value to solve with, and the state that waits for its cost. The key should be another one in each round.

        Learners without a context pass it over. For the others one that lies outside of `context_bounds`, or is not a number, is moved
        inside, and counted as `clipped` in the state. Raises `ArgumentError` where it is missing, and where it is known not to be a number.
        """

    @abc.abstractmethod
    def learn(self, state: PyTree, cost: Any) -> PyTree:
        """The state after the cost of the value chosen last.

        A cost that is not finite changes nothing, and is counted as `refused` in the state; where it is known it raises `ArgumentError`.
        """


def as_grid(grid: Any) -> Array:
    """Values to choose among. Raises `ArgumentError` unless they are a vector of finite numbers."""
    if not is_tracer(grid) and not isinstance(grid, jnp.ndarray):
        grid = np.asarray(grid)
    if grid.ndim != 1 or grid.size < 1:
        raise ArgumentError("grid", f"must be a vector with at least one value, not of shape {grid.shape}.")
    if not is_tracer(grid) and not np.isfinite(np.asarray(grid)).all():
        raise ArgumentError("grid", f"must hold finite numbers; number {int(np.argmin(np.isfinite(np.asarray(grid))))} is none.")
    return jnp.asarray(grid, jnp.result_type(float))


def as_bounds(bounds: Any) -> tuple[float, float]:
    """The range of a context. Raises `ArgumentError` unless these are two finite numbers, the lower one first."""
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low, high = np.nan, np.nan
    if not -np.inf < low < high < np.inf:
        raise ArgumentError("context_bounds", f"must be two finite numbers, the lower one first, not {bounds}.")
    return low, high


def as_context(context: Any, bounds: tuple[float, float]) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The context moved into its bounds, and one if that changed it, else zero."""
    if context is None:
        raise ArgumentError("context", "is missing, but this learner needs one.", "TsallisINF does without.")
    if np.shape(context) != ():
        raise ArgumentError("context", f"must be one number, not of shape {np.shape(context)}.")
    if not is_tracer(context) and np.isnan(np.asarray(context)):
        raise ArgumentError("context", "is not a number.")
    context = jnp.asarray(context, jnp.result_type(float))
    inside = jnp.where(jnp.isnan(context), bounds[0], jnp.clip(context, *bounds))
    return inside, (inside != context).astype(jnp.int32)


def as_cost(cost: Any) -> tuple[Float[Array, ""], Array]:
    """The cost, one if it is not finite, and whether it is finite."""
    if np.shape(cost) != ():
        raise ArgumentError("cost", f"must be one number, not of shape {np.shape(cost)}.")
    if not is_tracer(cost) and not np.isfinite(np.asarray(cost)):
        raise ArgumentError("cost", f"must be finite, not {cost}; the state is as it was.", "A solve that failed costs the steps that it took.")
    cost = jnp.asarray(cost, jnp.result_type(float))
    finite = jnp.isfinite(cost)
    return jnp.where(finite, cost, 1), finite
