r"""Training a network to propose search directions, without solutions.

A sample is a unit vector b, and what is minimised is what one step along the network's direction d = f(b) leaves of it (Kaneda et al. 2023, section 4),

$$\Big\lVert b - \frac{d^\top b}{d^\top A d} A d \Big\rVert_2^2,$$

which is zero for \(d \propto A^{-1} b\) and does not depend on the scale of d. Samples are combinations of Ritz vectors of A, in which those of the lower half of the Ritz
values have 9 times the amplitude: what residuals of an iteration that has damped the rest are like.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError
from .grid_cells import GridCells, flat_product
from .lanczos import RitzPairs, ritz_pairs

__all__ = ["RitzSampler", "RitzVectors", "step_loss", "train_inverse"]


class RitzVectors(eqx.Module):
    """Ritz vectors of an operator with what their coefficients are multiplied by: a distribution of unit vectors."""

    values: Float[Array, " count"]
    vectors: Float[Array, "count n"]
    amplitudes: Float[Array, " count"]

    def draw(self, key: Key[Array, ""], count: int) -> Float[Array, "draws n"]:
        """So many unit vectors."""
        weights = self.amplitudes * jax.random.normal(key, (count, len(self.values)), self.vectors.dtype)
        samples = weights @ self.vectors
        return samples / jnp.linalg.norm(samples, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class RitzSampler:
    """Random right-hand sides made of Ritz vectors, most of them smooth.

    `sampler.of(operator)` makes the `RitzVectors` of an operator, by Lanczos' process with full re-orthogonalisation from the image of a random vector. It needs memory for
    `n_ritz` vectors; samples are drawn anew for each step.

    **Arguments:**

    - `n_ritz`: steps of Lanczos' process. Values below 1e-8 are left out.
    - `amplitude`: of the lower values, over that of the others.
    - `theta`: the lower values are the first half and so many more; the twentieth part of `n_ritz` if not given, as in the paper's code.
    - `key`: of the start.

    Raises `ArgumentError`, naming the argument, for a number out of its range, and for an operator without a Ritz value of 1e-8.
    """

    n_ritz: int = 400
    amplitude: float = 9.0
    theta: int | None = None
    key: Any = None

    def __post_init__(self):
        if not isinstance(self.n_ritz, int) or self.n_ritz < 2:
            raise ArgumentError("n_ritz", f"must be a whole number of at least 2, not {self.n_ritz!r}.")
        if not 0 < self.amplitude < float("inf"):
            raise ArgumentError("amplitude", f"must be a positive number, not {self.amplitude!r}.")
        if self.theta is not None and (not isinstance(self.theta, int) or self.theta < 0):
            raise ArgumentError("theta", f"must be a whole number that is not negative, or None, not {self.theta!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> RitzVectors:
        """The Ritz vectors of this operator, which must be known."""
        cells = GridCells.of(operator)
        key = jax.random.key(0) if self.key is None else self.key
        count = min(self.n_ritz, cells.size)
        start = jax.random.normal(key, (cells.size,), cells.dtype)
        pairs = _ritz_pairs(operator, start, count)
        kept = (jnp.arange(count) < pairs.there) & (pairs.values >= 1e-8)
        if not jnp.any(kept):
            raise ArgumentError("operator", "has no Ritz value of at least 1e-8: is it positive definite?")
        values, vectors = pairs.values[kept], pairs.vectors[kept]
        theta = self.n_ritz // 20 if self.theta is None else self.theta
        lower = jnp.arange(len(values)) < len(values) // 2 + theta
        return RitzVectors(values, vectors, jnp.where(lower, self.amplitude, 1.0).astype(values.dtype))


@eqx.filter_jit
def _ritz_pairs(operator: lx.AbstractLinearOperator, start: Float[Array, " n"], count: int) -> RitzPairs:
    product = flat_product(operator)
    return ritz_pairs(product, product(start), count)


def step_loss(net: Callable, operator: lx.AbstractLinearOperator, samples: Float[Array, "batch n"]) -> Float[Array, ""]:
    """The mean over unit vectors b of |b - alpha A f(b)|^2, for the best alpha."""
    cells, product = GridCells.of(operator), flat_product(operator)
    net = getattr(net, "in_training", net)

    def left(b: Float[Array, " n"]) -> Float[Array, ""]:
        direction = cells.propose(net, b)
        image = product(direction)
        curvature = jnp.vdot(direction, image)
        alpha = jnp.vdot(direction, b) / jnp.where(curvature > 0, curvature, 1)
        return jnp.sum((b - alpha * image) ** 2)

    return jnp.mean(jax.vmap(left)(samples))


def train_inverse(
    net: Any,
    operators: lx.AbstractLinearOperator | Sequence[lx.AbstractLinearOperator],
    sampler: RitzSampler | None = None,
    *,
    steps: int = 800,
    batch: int = 10,
    learning_rate: float = 1e-3,
    seconds: float | None = None,
    key: Key[Array, ""] | None = None,
    every: int = 50,
    report: Callable[[int, float], Any] | None = None,
) -> Any:
    """Train a network to propose search directions for systems with these operators, by Adam, without solutions.

    **Arguments:**

    - `net`: a `ConjugateDirectionNet`, or any module that is called as one.
    - `operators`: one, or several, which have their turns step by step.
    - `sampler`: of right-hand sides.
    - `steps`: of Adam at most, with a learning rate that falls from `learning_rate` to zero along a cosine; `seconds` to stop after.
    - `batch`: right-hand sides of a step.
    - `key`: of the right-hand sides.
    - `every`: steps after which the loss is measured on right-hand sides that are kept aside, and given to `report(step, loss)`.

    **Returns:** the network with the least such loss. Ctrl-C ends the training, and returns what is best so far.

    **Raises:** `ArgumentError`, naming the argument, for a number out of its range, no operators, and operators without a grid.

    ```python
    operator = om.linear.StencilOperator.laplacian((16, 16))
    net = om.linear.ConjugateDirectionNet(2, width=4, levels=1, bottom_pairs=1, key=jax.random.key(0))
    net = om.linear.train_inverse(net, operator, om.linear.RitzSampler(n_ritz=40), steps=2)
    ```
    """
    for name, value, least in (("steps", steps, 0), ("batch", batch, 1), ("every", every, 1)):
        if not isinstance(value, int) or value < least:
            raise ArgumentError(name, f"must be a whole number of at least {least}, not {value!r}.")
    if not 0 < learning_rate < float("inf"):
        raise ArgumentError("learning_rate", f"must be a positive number, not {learning_rate!r}.")
    operators = [operators] if isinstance(operators, lx.AbstractLinearOperator) else list(operators)
    if not operators:
        raise ArgumentError("operators", "must not be empty.")
    begun = time.perf_counter()
    sampler = RitzSampler() if sampler is None else sampler
    systems = [(operator, sampler.of(operator)) for operator in operators]
    draws, aside = jax.random.split(jax.random.key(0) if key is None else key)
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, max(1, steps)))

    @eqx.filter_jit
    def step(net, state, operator, ritz, key):
        gradient = eqx.filter_grad(step_loss)(net, operator, ritz.draw(key, batch))
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(net, updates), state

    @eqx.filter_jit
    def measure(net, operator, ritz, key):
        return step_loss(net, operator, ritz.draw(key, max(batch, 20)))

    def measured(net, number: int) -> float:
        losses = [float(measure(net, *system, jax.random.fold_in(aside, i))) for i, system in enumerate(systems)]
        loss = sum(losses) / len(losses)
        if report is not None:
            report(number, loss)
        return loss

    state = optimiser.init(eqx.filter(net, eqx.is_inexact_array))
    best, least = net, float("inf")
    number = 0
    try:
        while True:
            over = number == steps or (seconds is not None and time.perf_counter() - begun > seconds)
            if number % every == 0 or over:
                loss = measured(net, number)
                if loss < least:
                    best, least = net, loss
            if over:
                return best
            net, state = step(net, state, *systems[number % len(systems)], jax.random.fold_in(draws, number))
            number += 1
    except KeyboardInterrupt:
        return best
