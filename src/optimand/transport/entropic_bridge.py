r"""The Schrödinger bridge between two distributions that are known by samples.

Among the processes with the given distributions of X_0 and X_1 it is the one nearest, in relative entropy, to the Brownian motion
\(dX = \sqrt{\varepsilon}\, dW\). Its joint distribution of both ends solves

$$\min_{\pi} \; \mathbb{E}_\pi \tfrac12 |x - y|^2 - \varepsilon H(\pi) \quad\text{s.t.}\quad \pi_0 = p_0,\; \pi_1 = p_1,$$

and is \(\pi(y | x) = e^{\langle x, y \rangle / \varepsilon} v(y) / c(x)\) with one function v, the adjusted potential, and
\(c(x) = \int e^{\langle x, y \rangle / \varepsilon} v(y)\, dy\). For every v, whatever its scale, this is the bridge to some end distribution; the
relative entropy of the wanted one to it is, up to a constant (Korotin, Gushchin and Burnaev 2024, proposition 3.1),

$$L(v) = \mathbb{E}_{p_0} \log c(x) - \mathbb{E}_{p_1} \log v(y).$$
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.errors import ArgumentError, GuessError
from ..core.problem import Objective
from ..core.tracing import is_tracer, show, trace_once
from .costs import as_floats
from .light_sb import LightSB, Mixture

__all__ = ["EntropicBridge"]

Samples = Any  # points in rows, or a function of a key that returns one


class EntropicBridge(Objective):
    """The Schrödinger bridge from the distribution of `x0` to that of `x1`, a problem whose solution is a `LightSB`.

    As an objective it is L over all samples, so that any method for smooth objectives can finish, from a guess, what `LightSBFit` has found from
    batches. Between samplers it is a mean over 1024 draws with the key of the step.

    **Arguments:**

    - `x0`, `x1`: samples of the start and of the end: points in rows, (n, d) and (m, d), of which n and m may differ; or a function of a key that
      returns one point (d,). Vectors are points on a line.
    - `epsilon`: the variance that the Brownian motion gains in a unit of time, in the units of the points squared.
    - `scale`: the length in which parameters are measured; by default the standard deviation of all samples, in the mean over columns. It changes
      what a learning rate means, and not the solution. Points are measured from the mean of `x0`. Of samplers both are taken from 1024 draws.

    Raises `ArgumentError` for points that differ in dimension, for an epsilon that is not positive, and, with their number and the first of them,
    for rows that are not finite. Warns of a column in which all of `x1` is the same: no Gaussian is as narrow as that. Inside `jit` and `vmap`
    only shapes can be looked at.

    ```python
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 500, 2))
    problem = om.transport.EntropicBridge(x0, 2 * x1 + 1, epsilon=0.5)
    bridge = om.solve(problem, om.transport.LightSBFit(components=3), key=jax.random.key(1), budget=om.Budget(steps=50)).value
    bridge.sample(x0, jax.random.key(2)), bridge.drift(x0, 0.5)
    ```
    """

    x0: Samples
    x1: Samples
    epsilon: Float[Array, ""]
    origin: Float[Array, " d"]
    scale: Float[Array, ""]

    def __init__(self, x0: Samples, x1: Samples, epsilon: Any, *, scale: Any = None):
        self.x0, first = _samples("x0", x0)
        self.x1, last = _samples("x1", x1)
        if first.shape[1] != last.shape[1]:
            raise ArgumentError("x1", f"has points of dimension {last.shape[1]}; those of x0 have {first.shape[1]}.")
        dtype = jnp.result_type(first, last)
        first, last = first.astype(dtype), last.astype(dtype)
        if not callable(x0):
            self.x0 = first
        if not callable(x1):
            self.x1 = last
        self.epsilon = _positive("epsilon", epsilon, "It is the variance of the Brownian motion at time one.").astype(dtype)
        self.origin = jax.lax.stop_gradient(jnp.mean(first, 0))
        spread = jnp.mean(jnp.std(jnp.concatenate([first, last]), 0))
        scale = jnp.where(spread > 0, spread, 1) if scale is None else _positive("scale", scale)
        self.scale = jax.lax.stop_gradient(jnp.asarray(scale, dtype))
        if not is_tracer(last):
            _warn_of_constant(np.asarray(last))

    @property
    def dimension(self) -> int:
        """d."""
        return self.origin.size

    @property
    def stochastic(self) -> bool:
        return callable(self.x0) or callable(self.x1)

    def batch(self, key: Array, count: int) -> tuple[Float[Array, "count d"], Float[Array, "count d"]]:
        """So many points of the start and of the end, drawn independently and, from arrays, with replacement."""
        keys = jax.random.split(key)
        return draw(self.x0, keys[0], count).astype(self.epsilon.dtype), draw(self.x1, keys[1], count).astype(self.epsilon.dtype)

    def model(self, mixture: Mixture) -> LightSB:
        """The bridge with this mixture, and the epsilon, origin and scale of this problem."""
        return LightSB(mixture, self.epsilon, self.origin, self.scale)

    def relative_entropy(self, mixture: Mixture, x0: Float[Array, "n d"], x1: Float[Array, "m d"]) -> tuple[Float[Array, ""], Float[Array, " components"]]:
        """L over these points, and how much of the mass that leaves x0 goes to each component."""
        model = self.model(mixture)
        logits = model.logits(x0)
        value = jnp.mean(jax.nn.logsumexp(logits, -1)) - jnp.mean(model.log_potential(x1))
        return value, jax.lax.stop_gradient(jnp.mean(jax.nn.softmax(logits, -1), 0))

    def value(self, x: LightSB, *, key: Array | None = None) -> Float[Array, ""]:
        if x.components == 0:
            raise GuessError("guess", "is missing: only LightSBFit places the components itself.", "Start from what it finds.")
        if self.stochastic:
            x0, x1 = self.batch(jax.random.key(0) if key is None else key, 1024)
        else:
            x0, x1 = self.x0, self.x1
        model = self.model(x.mixture)
        return jnp.mean(in_blocks(model.log_normaliser, x0)) - jnp.mean(in_blocks(model.log_potential, x1))

    def start(self, guess: Any) -> LightSB:
        if guess is None:
            return self.model(Mixture.empty(self.dimension, self.epsilon.dtype))
        if not isinstance(guess, LightSB) or guess.dimension != self.dimension:
            raise GuessError("guess", f"must be a LightSB in {self.dimension} dimensions, not {show(guess)}.")
        return self.model(jax.tree.map(lambda leaf: leaf.astype(self.epsilon.dtype), guess.mixture))

    def at_guess(self, value: LightSB) -> Any:
        return self.value(value) if value.components else ()

    def traced(self, guess: Any) -> "EntropicBridge":
        key = jax.eval_shape(lambda: jax.random.key(0))
        trace = lambda source: trace_once(source, key) if callable(source) else source
        return eqx.tree_at(lambda problem: (problem.x0, problem.x1), self, (trace(self.x0), trace(self.x1)))


def draw(source: Samples, key: Array, count: int) -> Float[Array, "count d"]:
    """So many points: of a sampler, or of rows with replacement."""
    if callable(source):
        points: Any = jax.vmap(source)(jax.random.split(key, count))
        return points[:, None] if points.ndim == 1 else points
    rows: Array = source
    return rows[jax.random.randint(key, (count,), 0, source.shape[0])]


def in_blocks(function: Callable, points: Float[Array, "n d"], block: int = 4096) -> Array:
    """`function` of all rows, of so many at once: its intermediate arrays have a row for every component."""
    if points.shape[0] <= block:
        return function(points)
    return jax.lax.map(function, points, batch_size=block)


def _samples(name: str, source: Samples) -> tuple[Samples, Float[Array, "n d"]]:
    """The source, and points of it: all, or 1024 draws."""
    if callable(source):
        points = as_floats(name, draw(source, jax.random.key(0), 1024))
    else:
        source = points = as_floats(name, source)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or 0 in points.shape:
        raise ArgumentError(name, f"must be points in rows (n, d), not an array of shape {points.shape}.", "Or a function of a key that returns a point.")
    if not is_tracer(points):
        bad = np.flatnonzero(~np.all(np.isfinite(points), 1))
        if len(bad):
            raise ArgumentError(name, f"has {len(bad)} of {len(points)} rows that are not finite; the first is row {bad[0]}.", "Leave them out.")
    return source, points


def _positive(name: str, number: Any, hint: str = "") -> Array:
    number = as_floats(name, number)
    if number.shape != () or (not is_tracer(number) and not 0 < float(number) < np.inf):
        raise ArgumentError(name, f"must be one positive number, not {number}.", hint)
    return number


def _warn_of_constant(points: np.ndarray) -> None:
    import warnings

    constant = np.flatnonzero(np.ptp(points, axis=0) == 0)
    if len(points) > 1 and len(constant):
        text = f"all of x1 is the same in column {constant[0]} ({len(constant)} such columns): components become as narrow there as they may"
        warnings.warn(text, stacklevel=4)
