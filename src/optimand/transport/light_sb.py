r"""LightSB: a Schrödinger bridge whose potential is a mixture of Gaussians.

$$v(y) = \sum_k a_k\, \mathcal{N}(y \,|\, r_k, \varepsilon S_k)$$

makes all there is to know about the bridge explicit (Korotin, Gushchin and Burnaev 2024, propositions 3.2 and 3.3):

$$c(x) = \sum_k a_k\, e^{(x^\top S_k x + 2 r_k^\top x) / 2 \varepsilon}, \qquad
  \pi(y | x) = \sum_k w_k(x)\, \mathcal{N}(y \,|\, r_k + S_k x, \varepsilon S_k), \qquad w_k(x) \propto a_k\, e^{(x^\top S_k x + 2 r_k^\top x) / 2 \varepsilon}.$$

The drift. The paper has \(g = -x / (1 - t) + \varepsilon \nabla \log \sum_k e^{l_k(x, t)}\), whose terms cancel as t goes to one. With
\(Q_k = t S_k + (1 - t) I\) the terms of l that do not depend on k can be split off, and what is left is regular for all t in [0, 1]:

$$l_k = \log a_k - \tfrac12 \log |Q_k| + \tfrac{1}{2 \varepsilon} \left( x^\top Q_k^{-1} (S_k - I) x + 2 r_k^\top Q_k^{-1} x - t\, r_k^\top Q_k^{-1} r_k \right), \qquad
  g = \sum_k \mathrm{softmax}(l)_k\, Q_k^{-1} \left( (S_k - I) x + r_k \right).$$

S_k is diagonal, or R_k diag R_k' with a rotation R_k = (I - A)^-1 (I + A), A skew-symmetric (Cayley). Then S_k and Q_k are diagonal in the axes of R_k.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.arguments import need_count
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .costs import as_floats

__all__ = ["LightSB", "Mixture"]


class Mixture(eqx.Module):
    """The parameters of K components in d dimensions, about an origin and in units of a scale.

    - `heights`: epsilon log a_k. That they are divided by epsilon multiplies their learning rate.
    - `centres`: r_k. `log_spread`: the logarithms of the variances of S_k.
    - `turn`: the entries of A_k, of which those below the diagonal count; None for axes that are those of the space.
    """

    heights: Float[Array, " components"]
    centres: Float[Array, "components d"]
    log_spread: Float[Array, "components d"]
    turn: Float[Array, "components d d"] | None

    @staticmethod
    def empty(dimension: int, dtype: Any) -> "Mixture":
        """No component: what stands for "place them yourself"."""
        nothing = jnp.zeros((0, dimension), dtype)
        return Mixture(jnp.zeros((0,), dtype), nothing, nothing, None)

    def axes(self) -> Float[Array, "components d d"] | None:
        """R_k, whose columns are the axes of S_k."""
        if self.turn is None:
            return None
        lower = jnp.tril(self.turn, -1)
        skew = lower - jnp.swapaxes(lower, -1, -2)
        identity = jnp.eye(skew.shape[-1], dtype=skew.dtype)
        return jnp.linalg.solve(identity - skew, identity + skew)


class LightSB(eqx.Module):
    """A Schrödinger bridge from x at time 0 to y at time 1, with samplers, drift and densities in closed form.

    A solution of an `EntropicBridge`; `LightSBFit` finds it. Good in up to some hundreds of dimensions and where a few hundred Gaussians describe what
    happens to the mass; where the end distribution is as thin as a manifold, components have to become narrow, and many.

    **Arguments:** `mixture`: the parameters; `epsilon`: the variance of the Brownian motion at time one; `origin` (d,) and `scale`: where points are
    measured from, and in which unit.

    Points are arrays (..., d), and all functions take any number of leading axes, also none. With x and y measured from the origin,
    log v, log c and pi are related as in the paper: pi(y | x) = exp(<x, y> / epsilon) v(y) / c(x).
    """

    mixture: Mixture
    epsilon: Float[Array, ""]
    origin: Float[Array, " d"]
    scale: Float[Array, ""]

    @property
    def components(self) -> int:
        """K."""
        return self.mixture.heights.size

    @property
    def dimension(self) -> int:
        """d."""
        return self.origin.size

    def with_epsilon(self, epsilon: Any) -> "LightSB":
        """The same parameters at another epsilon. That is not the solution there: it is a guess to fit from."""
        return eqx.tree_at(lambda model: model.epsilon, self, jnp.asarray(epsilon, self.epsilon.dtype))

    # In units of the scale, from the origin, and along the axes of each component.

    @property
    def _epsilon(self) -> Array:
        return self.epsilon / self.scale**2

    def _local(self, x: Any) -> Array:
        x = as_floats("x", x)
        if x.ndim == 0 or x.shape[-1] != self.dimension:
            raise ArgumentError("x", f"must hold points of dimension {self.dimension} along its last axis, not have the shape {x.shape}.")
        return (x - self.origin) / self.scale

    def _along(self, x: Float[Array, "*n d"]) -> Float[Array, "*n components d"]:
        axes = self.mixture.axes()
        return x[..., None, :] if axes is None else jnp.einsum("...i,kij->...kj", x, axes)

    def _centres(self) -> Float[Array, "components d"]:
        axes = self.mixture.axes()
        return self.mixture.centres if axes is None else jnp.einsum("ki,kij->kj", self.mixture.centres, axes)

    def _back(self, z: Float[Array, "*n components d"]) -> Float[Array, "*n components d"]:
        axes = self.mixture.axes()
        return z if axes is None else jnp.einsum("...kj,kij->...ki", z, axes)

    def logits(self, x: Any) -> Float[Array, "*n components"]:
        """The logarithms of the terms of c(x)."""
        x, s, r = self._local(x), jnp.exp(self.mixture.log_spread), self.mixture.centres
        if self.mixture.turn is None:  # products of matrices take a tenth of the time, and nothing cancels in them
            exponent = x**2 @ s.T / 2 + x @ r.T
        else:
            exponent = jnp.sum(s * self._along(x) ** 2, -1) / 2 + x @ r.T
        return (self.mixture.heights + exponent) / self._epsilon

    # Densities.

    def log_normaliser(self, x: Any) -> Float[Array, "*n"]:
        """log c(x)."""
        return jax.nn.logsumexp(self.logits(x), -1)

    def log_potential(self, y: Any) -> Float[Array, "*n"]:
        """log v(y)."""
        gap = (self._along(self._local(y)) - self._centres()) * jnp.exp(-self.mixture.log_spread / 2)
        variance = 2 * jnp.pi * self._epsilon * self.scale**2
        log_determinant = jnp.sum(self.mixture.log_spread, -1) + self.dimension * jnp.log(variance)
        return jax.nn.logsumexp((self.mixture.heights - jnp.sum(gap**2, -1) / 2) / self._epsilon - log_determinant / 2, -1)

    def log_plan(self, x: Any, y: Any) -> Float[Array, "*n"]:
        """log pi(y | x)."""
        product = jnp.sum(self._local(x) * self._local(y), -1) / self._epsilon
        return product + self.log_potential(y) - self.log_normaliser(x)

    # The plan.

    def weights(self, x: Any) -> Float[Array, "*n components"]:
        """w_k(x): how much of the mass that leaves x goes to each component."""
        return jax.nn.softmax(self.logits(x), -1)

    def effective_components(self, x: Float[Array, "n d"]) -> Float[Array, ""]:
        """How many components carry the mass that leaves these points: 1 / sum of squares of their shares."""
        return 1 / jnp.sum(jnp.mean(self.weights(x), 0) ** 2)

    def conditional_moments(self, x: Any) -> tuple[Float[Array, "*n d"], Float[Array, "*n d d"]]:
        """The mean and the covariance of pi(. | x)."""
        weights, s = self.weights(x), jnp.exp(self.mixture.log_spread)
        means = self._back(s * self._along(self._local(x)) + self._centres())
        mean = jnp.sum(weights[..., None] * means, -2)
        gap = means - mean[..., None, :]
        between = jnp.einsum("...k,...ki,...kj->...ij", weights, gap, gap)
        axes = self.mixture.axes()
        if axes is None:
            within = (weights @ s)[..., None] * jnp.eye(self.dimension, dtype=s.dtype)
        else:
            within = jnp.einsum("...k,kij->...ij", weights, jnp.einsum("kij,kj,klj->kil", axes, s, axes))
        return self.origin + self.scale * mean, self.scale**2 * between + self.epsilon * within

    def sample(self, x: Any, key: Array) -> Float[Array, "*n d"]:
        """A draw of y from pi(. | x), exact, for each x."""
        local = self._local(x)
        for_component, for_noise = jax.random.split(key)
        chosen = jax.random.categorical(for_component, self.logits(x), -1)
        s, r, axes = jnp.exp(self.mixture.log_spread)[chosen], self._centres()[chosen], self.mixture.axes()
        z = local if axes is None else jnp.einsum("...i,...ij->...j", local, axes[chosen])
        z = s * z + r + jnp.sqrt(self._epsilon * s) * jax.random.normal(for_noise, local.shape, local.dtype)
        return self.origin + self.scale * (z if axes is None else jnp.einsum("...j,...ij->...i", z, axes[chosen]))

    # The process.

    def sample_at(self, x: Any, t: Any, key: Array) -> Float[Array, "*n d"]:
        """A draw of X_t given X_0 = x, exact: (1 - t) x + t y + sqrt(epsilon t (1 - t)) z. `t` is a number, or one for each x."""
        t = _times(t, closed=True)
        for_end, for_noise = jax.random.split(key)
        y = self.sample(x, for_end)
        t = t[..., None].astype(y.dtype)
        noise = jnp.sqrt(self.epsilon * t * (1 - t)) * jax.random.normal(for_noise, y.shape, y.dtype)
        return (1 - t) * as_floats("x", x) + t * y + noise

    def drift(self, x: Any, t: Any) -> Float[Array, "*n d"]:
        """g(x, t) of the bridge dX = g dt + sqrt(epsilon) dW, for t in [0, 1): a number, or one for each x."""
        t = _times(t, closed=False)[..., None, None]
        z, s, r = self._along(self._local(x)), jnp.exp(self.mixture.log_spread), self._centres()
        t = t.astype(z.dtype)
        q = t * s + (1 - t)
        pull = (s - 1) * z + r
        exponent = jnp.sum((z * (pull + r) - t * r**2) / q, -1) / 2
        logits = (self.mixture.heights + exponent) / self._epsilon - jnp.sum(jnp.log(q), -1) / 2
        return self.scale * jnp.sum(self._back(jax.nn.softmax(logits, -1)[..., None] * pull / q), -2)

    def paths(self, x: Any, key: Array, steps: int = 100) -> tuple[Float[Array, " times"], Float[Array, "times *n d"]]:
        """Times, and X at them, from X_0 = x by as many equal steps of Euler and Maruyama."""
        need_count("steps", steps)
        x = as_floats("x", x)
        x = x.astype(jnp.result_type(x, self.epsilon))
        times = jnp.arange(steps + 1, dtype=x.dtype) / steps

        def step(x, numbered):
            t, key = numbered
            noise = jnp.sqrt(self.epsilon / steps) * jax.random.normal(key, x.shape, x.dtype)
            following = x + self.drift(x, t) / steps + noise
            return following, following

        _, path = jax.lax.scan(step, x, (times[:-1], jax.random.split(key, steps)))
        return times, jnp.concatenate([x[None], path])


def _times(t: Any, closed: bool) -> Array:
    t = as_floats("t", t)
    if not is_tracer(t):
        known = np.asarray(t)
        if not np.all((known >= 0) & (known <= 1)):
            raise ArgumentError("t", f"must lie between 0 and 1, not {t}.")
        if not closed and np.any(known == 1):
            raise ArgumentError("t", "is 1, where the process has ended.", "`sample` draws its end.")
    return t
