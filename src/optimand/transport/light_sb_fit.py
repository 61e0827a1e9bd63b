r"""The fit of LightSB: Adam on batches of the relative entropy.

Korotin, Gushchin and Burnaev, "Light Schrödinger bridge" (2024), section 3.2 and appendix D. The gradient of
\(L = \mathbb{E} \log c(x_0) - \mathbb{E} \log v(x_1)\) with respect to the parameters of the mixture is unbiased over batches drawn from both ends
independently: nothing is simulated, and there is no inner problem. The components begin at samples of the end, with equal weights and S = `spread` I. Where the
end has rare modes, random samples miss them, and the fit stays in a local minimum that merges them into their neighbours; the seeding of k-means++
(Arthur and Vassilvitskii 2007), which draws a sample with a probability proportional to its squared distance from those before, is there for that.

As in the authors' code log a is divided by epsilon and gradients are not clipped. Other than there, logarithms of the variances of S stay in
[-12, 6]: a step that is too large would otherwise let a component collapse onto a sample.
"""

import warnings
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..core.arguments import need_count, need_not_negative, need_positive
from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from .entropic_bridge import EntropicBridge, draw
from .light_sb import LightSB, Mixture

__all__ = ["LightSBFit"]

NARROWEST, WIDEST = -12.0, 6.0  # logarithms of variances of S


class LightSBState(eqx.Module):
    """`value` and `shares` are those of the last batch, before its step. `level` is a running mean of values, `lowest` the least of these so far,
    and `since` the steps since that."""

    mixture: Mixture
    inner: PyTree
    value: Array
    shares: Array
    level: Array
    lowest: Array
    since: Array
    counters: Counters


class LightSBFit(Method):
    """Fits a `LightSB` to the samples of an `EntropicBridge`, by Adam on batches. A budget of 5,000 to 10,000 steps is usual.

    **Arguments:**

    - `components`: K. Without a guess they begin at samples of the end (more than there are: some twice, with a warning). A guess brings its own.
    - `learning_rate`: a number, or an Optax schedule (step number -> number). The paper takes 1e-3 where epsilon is a tenth of the variance of the data,
      3e-3 where it is as large, 6e-2 where it is ten times as large, and 1e-2 for ten components.
    - `batch`: samples a step of each end, drawn with replacement.
    - `covariance`: "diag" for S along the axes of the space: a step costs batch K d; "full" lets them turn: K d^2 (batch + d).
    - `centres`: which samples components begin at: "random" ones, as in the paper, or "apart": far from each other, which finds rare modes.
    - `spread`: S at the beginning is this times the identity.
    - `patience`: the solve ends as converged when the running mean of the losses of batches, each taken before its step, has not fallen for so many steps;
      `None` goes on to the end of the budget.
    - `memory`: of that mean, in steps.

    The metrics are `value`, the loss of the last batch, and `components`, how many of them carried its mass. The answer, also that of an interrupted fit,
    has the last parameters. Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = EntropicBridge
    reference: ClassVar[str] = "korotin2024light"
    stochastic: ClassVar[bool] = True

    components: int = eqx.field(static=True, default=10)
    learning_rate: Any = 1e-2
    batch: int = eqx.field(static=True, default=128)
    covariance: Literal["diag", "full"] = eqx.field(static=True, default="diag")
    centres: Literal["random", "apart"] = eqx.field(static=True, default="random")
    spread: Any = 1.0
    patience: int | None = eqx.field(static=True, default=None)
    memory: Any = 200.0

    def __check_init__(self):
        need_count("components", self.components)
        need_count("batch", self.batch)
        need_positive("learning_rate", self.learning_rate)
        need_positive("spread", self.spread)
        if self.covariance not in ("diag", "full"):
            raise ArgumentError("covariance", f'must be "diag" or "full", not {self.covariance!r}.')
        if self.centres not in ("random", "apart"):
            raise ArgumentError("centres", f'must be "random" or "apart", not {self.centres!r}.')
        if self.patience is not None:
            need_count("patience", self.patience)
        need_not_negative("memory", self.memory)

    def check(self, problem: EntropicBridge, guess: LightSB) -> None:
        if guess.components == 0 and self._more_than_samples(problem):
            text = f"{self.components} components begin at {problem.x1.shape[0]} samples: some begin at the same"
            warnings.warn(text, stacklevel=3)

    def _more_than_samples(self, problem: EntropicBridge) -> bool:
        return not callable(problem.x1) and self.components > problem.x1.shape[0]

    def _transformation(self) -> Any:
        return optax.adam(self.learning_rate)

    def init(self, problem: EntropicBridge, guess: LightSB, *, key: Array) -> LightSBState:
        for_centres, for_batch = jax.random.split(key)
        mixture = guess.mixture if guess.components else self._placed(problem, for_centres)
        value, shares = problem.relative_entropy(mixture, *problem.batch(for_batch, self.batch))
        parameters: Any = mixture
        inner = jax.tree.map(jnp.asarray, self._transformation().init(parameters))
        none = jnp.zeros((), jnp.int32)
        counters = Counters.zero().add(values=1, samples=2 * self.batch)
        return LightSBState(mixture, inner, value, shares, value, value, none, counters)

    def _placed(self, problem: EntropicBridge, key: Array) -> Mixture:
        """Components at samples of the end, with equal weights."""
        count, d = self.components, problem.dimension
        if self.centres == "apart":
            for_pool, key = jax.random.split(key)
            points = _apart(draw(problem.x1, for_pool, 4096) if callable(problem.x1) else problem.x1, key, count)
        elif callable(problem.x1) or self._more_than_samples(problem):
            points = draw(problem.x1, key, count)
        else:
            points = problem.x1[jax.random.choice(key, problem.x1.shape[0], (count,), replace=False)]
        centres = (points.astype(problem.epsilon.dtype) - problem.origin) / problem.scale
        heights = jnp.full((count,), -jnp.log(count), centres.dtype) * problem.epsilon / problem.scale**2
        log_spread = jnp.full((count, d), jnp.clip(jnp.log(self.spread), NARROWEST, WIDEST), centres.dtype)
        turn = jnp.zeros((count, d, d), centres.dtype) if self.covariance == "full" else None
        return Mixture(heights, centres, log_spread, turn)

    def step(self, problem: EntropicBridge, state: LightSBState, *, key: Array) -> LightSBState:
        x0, x1 = problem.batch(key, self.batch)
        (value, shares), gradient = jax.value_and_grad(problem.relative_entropy, has_aux=True)(state.mixture, x0, x1)
        updates, inner = self._transformation().update(gradient, state.inner)
        inner = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner, state.inner)
        mixture = eqx.apply_updates(state.mixture, updates)
        mixture = eqx.tree_at(lambda m: m.log_spread, mixture, jnp.clip(mixture.log_spread, NARROWEST, WIDEST))
        level = state.level + ((value - state.level) / (1 + self.memory)).astype(value.dtype)
        lower = level < state.lowest
        since = jnp.where(lower, 0, state.since + 1).astype(jnp.int32)
        counters = state.counters.add(values=1, gradients=1, samples=2 * self.batch)
        return LightSBState(mixture, inner, value, shares, level, jnp.where(lower, level, state.lowest), since, counters)

    def done(self, problem: EntropicBridge, state: LightSBState):
        return jnp.array(False) if self.patience is None else state.since >= self.patience

    def answer(self, problem: EntropicBridge, state: LightSBState) -> LightSB:
        return problem.model(state.mixture)

    def metrics(self, problem: EntropicBridge, state: LightSBState) -> dict[str, Any]:
        return {"value": state.value, "components": 1 / jnp.sum(state.shares**2)}


def _apart(points: Array, key: Array, count: int) -> Array:
    """So many of these points by the seeding of k-means++."""
    first, *others = jax.random.split(key, count)
    start = points[jax.random.randint(first, (), 0, points.shape[0])]

    def add(carry, key):
        nearest, last = carry
        nearest = jnp.minimum(nearest, jnp.sum((points - last) ** 2, -1))
        logits = jnp.where(jnp.any(nearest > 0), jnp.log(nearest), 0)  # all are taken: any
        following = points[jax.random.categorical(key, logits)]
        return (nearest, following), following

    if not others:
        return start[None]
    far = jnp.full(points.shape[:1], jnp.inf, points.dtype)
    _, rest = jax.lax.scan(add, (far, start), jnp.stack(others))
    return jnp.concatenate([start[None], rest])
