r"""Tsallis-INF: the best value of a grid, from the costs of those that were chosen.

In round t the values are drawn with the probabilities that minimise \(\sum_i p_i k_i / s - \tfrac{4}{\eta} \sum_i \sqrt{p_i}\), those of online mirror descent
with Tsallis' entropy (Zimmert and Seldin 2021):

$$p_i = \frac{4}{(\eta (k_i / s - x))^2}, \qquad \sum_i p_i = 1, \qquad \eta = \frac{2}{\sqrt{t}},$$

where \(k_i\) sums what value i cost beyond one, over the probability with which it was drawn, and the scale s is the mean of that cost in all rounds.
Its regret against the best fixed value grows as \(\sqrt{T}\) at most, and as \(\log T\) if costs are drawn independently. Khodak, Chow,
Balcan and Talwalkar (2024) choose relaxation parameters by it.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..core.errors import ArgumentError
from .learners import ParameterLearner, as_bounds, as_context, as_cost, as_grid

__all__ = ["TsallisINF", "TsallisINFContextual", "tsallis_probabilities"]


class TsallisState(NamedTuple):
    """What is known after `rounds`, and the draw that waits for its cost."""

    sums: Float[Array, " values"]  # k
    total: Float[Array, ""]  # of the costs
    rounds: Int[Array, ""]
    chosen: Int[Array, ""]
    probability: Float[Array, ""]  # of the value chosen, when it was
    refused: Int[Array, ""]


class TsallisINF(ParameterLearner):
    """The best fixed value of a grid, without a context.

    **Arguments:** `grid`: the values.

    Where the reference draws uniformly if its Newton iteration has failed, here it does not fail: it is kept between two bounds of the root.

    Raises `ArgumentError` for a grid that is not a vector of finite numbers.

    ```python
    learner = om.linear.TsallisINF(jnp.linspace(1.0, 1.95, 20))
    state = learner.init()
    for key in jax.random.split(jax.random.key(0), 5):
        index, state = learner.choose(state, None, key)
        state = learner.learn(state, 10 + 100 * (learner.grid[index] - 1.6) ** 2)
    ```
    """

    reference: ClassVar[str] = "zimmert2021tsallis"

    grid: Float[Array, " values"] = eqx.field(converter=as_grid)

    def init(self) -> TsallisState:
        zero, none = jnp.zeros((), self.grid.dtype), jnp.int32(0)
        return TsallisState(jnp.zeros_like(self.grid), zero, none, none, zero + 1, none)

    def probabilities(self, state: TsallisState) -> Float[Array, " values"]:
        """Those of the next draw."""
        beyond = state.total / jnp.maximum(state.rounds, 1) - 1
        scale = jnp.where(beyond > 0, beyond, 1)  # s; also while all costs are one
        rate = 2 / jnp.sqrt(state.rounds + 1.0).astype(state.sums.dtype)
        return tsallis_probabilities(rate * (state.sums - jnp.min(state.sums)) / scale)

    def choose(self, state: TsallisState, context: Any, key: PRNGKeyArray) -> tuple[Int[Array, ""], TsallisState]:
        p = self.probabilities(state)
        index = jax.random.categorical(key, jnp.log(p)).astype(jnp.int32)
        return index, state._replace(chosen=index, probability=p[index])

    def learn(self, state: TsallisState, cost: Any) -> TsallisState:
        cost, finite = as_cost(cost)
        sums = state.sums.at[state.chosen].add((cost - 1) / state.probability)
        new = state._replace(sums=sums, total=state.total + cost, rounds=state.rounds + 1)
        new = jtu.tree_map(lambda new, old: jnp.where(finite, new, old), new, state)
        return new._replace(refused=state.refused + (1 - finite.astype(jnp.int32)))


def tsallis_probabilities(losses: Float[Array, " values"]) -> Float[Array, " values"]:
    r"""\(p_i = 4 / (z_i + y)^2\), with the y for which they sum to one; \(z_i \ge 0\), of which one is 0, are the losses times the rate.

    The root lies between 2, where the best value alone has probability one, and \(2 \sqrt{d}\), where all d together have at most that.
    The sum falls and is convex in y, so Newton's method from the lower bound does not overshoot; a step that rounding takes out of the
    bounds is a bisection instead.
    """
    count = losses.size

    def newton(_, at):
        y, low, high = at
        p = 4 / (losses + y) ** 2
        excess = jnp.sum(p) - 1
        low, high = jnp.where(excess >= 0, y, low), jnp.where(excess <= 0, y, high)
        new = y + excess / jnp.sum(p**1.5)  # d p / d y = -p^(3/2)
        return jnp.where((new >= low) & (new <= high), new, (low + high) / 2), low, high

    low, high = jnp.asarray(2.0, losses.dtype), jnp.asarray(2 * count**0.5, losses.dtype)
    y, _, _ = jax.lax.fori_loop(0, 30, newton, (low, low, high))
    p = 4 / (losses + y) ** 2
    return p / jnp.sum(p)


class BinnedState(NamedTuple):
    """A `TsallisState` for each bin, stacked; the bin that waits for a cost; how many contexts lay outside."""

    bins: TsallisState
    bin: Int[Array, ""]
    clipped: Int[Array, ""]

    @property
    def refused(self) -> Int[Array, ""]:
        """Costs that were not finite."""
        return jnp.sum(self.bins.refused)


class TsallisINFContextual(ParameterLearner):
    """A `TsallisINF` for each of a few ranges of the context.

    **Arguments:** `grid`: the values; `context_bounds`: the range of the context; `bins`: ranges of equal width that it is cut into.

    Raises `ArgumentError` for a grid that is not a vector of finite numbers, bounds that are not two finite numbers, the lower one first, and
    a number of bins below one.
    """

    reference: ClassVar[str] = "khodak2024learning"

    grid: Float[Array, " values"] = eqx.field(converter=as_grid)
    context_bounds: tuple[float, float] = eqx.field(static=True, converter=as_bounds)
    bins: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        if not isinstance(self.bins, int) or self.bins < 1:
            raise ArgumentError("bins", f"must be a whole number above zero, not {self.bins!r}.")

    def init(self) -> BinnedState:
        one = TsallisINF(self.grid).init()
        stacked = jtu.tree_map(lambda leaf: jnp.broadcast_to(leaf, (self.bins, *leaf.shape)), one)
        return BinnedState(stacked, jnp.int32(0), jnp.int32(0))

    def choose(self, state: BinnedState, context: Any, key: PRNGKeyArray) -> tuple[Int[Array, ""], BinnedState]:
        context, moved = as_context(context, self.context_bounds)
        low, high = self.context_bounds
        number = jnp.floor((context - low) / (high - low) * self.bins).astype(jnp.int32)
        number = jnp.minimum(number, self.bins - 1)
        index, one = TsallisINF(self.grid).choose(_take(state.bins, number), None, key)
        return index, BinnedState(_put(state.bins, number, one), number, state.clipped + moved)

    def learn(self, state: BinnedState, cost: Any) -> BinnedState:
        one = TsallisINF(self.grid).learn(_take(state.bins, state.bin), cost)
        return state._replace(bins=_put(state.bins, state.bin, one))


def _take(bins: TsallisState, number: Array) -> TsallisState:
    return jtu.tree_map(lambda leaf: leaf[number], bins)


def _put(bins: TsallisState, number: Array, one: TsallisState) -> TsallisState:
    return jtu.tree_map(lambda leaf, new: leaf.at[number].set(new), bins, one)
