r"""Pairs of distributions whose Schrödinger bridge is known.

Of a start distribution and a potential the bridge is explicit, and so is the end that belongs to it (Gushchin et al. 2023): with
\(\varphi(y) = \sum_k \alpha_k \mathcal{N}(y | \mu_k, \Sigma_k)\),

$$\pi(y | x) \propto \varphi(y)\, e^{-|x - y|^2 / 2 \varepsilon} = \sum_k w_k(x)\, \mathcal{N}(y \,|\, C_k (x / \varepsilon + \Sigma_k^{-1} \mu_k), C_k), \qquad
  w_k(x) \propto \alpha_k \mathcal{N}(x | \mu_k, \Sigma_k + \varepsilon I), \quad C_k = (I / \varepsilon + \Sigma_k^{-1})^{-1}.$$

The end is sampled by sampling x and then y.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.arguments import need_count
from ..core.errors import ArgumentError
from .costs import as_floats

__all__ = ["MixtureBenchmark"]


class MixtureBenchmark(eqx.Module):
    """A standard normal start, and a mixture of Gaussians as potential: the exact plan, and samples of both ends.

    **Arguments:** `weights` (K,), `means` (K, d) and `covariances` (K, d, d) of the potential, and `epsilon`. `random` draws those of the
    benchmark of Gushchin et al. (2023), whose parameters are a download.

    ```python
    truth = om.transport.MixtureBenchmark.random(jax.random.key(0), dimension=2, epsilon=1.0)
    x0, x1 = truth.sample_start(jax.random.key(1), 100), truth.sample_end(jax.random.key(2), 100)
    mean, covariance = truth.conditional_moments(x0)
    ```
    """

    weights: Float[Array, " components"]
    means: Float[Array, "components d"]
    covariances: Float[Array, "components d d"]
    epsilon: Float[Array, ""]

    def __init__(self, weights: Any, means: Any, covariances: Any, epsilon: Any):
        self.weights, self.means, self.covariances, self.epsilon = (
            as_floats(name, array)
            for name, array in (("weights", weights), ("means", means), ("covariances", covariances), ("epsilon", epsilon))
        )
        count, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if count == 0 or self.weights.shape != (count,) or self.covariances.shape != (count, d, d):
            shapes = [array.shape for array in (self.weights, self.means, self.covariances)]
            raise ArgumentError("means", f"must have shape (K, d), with weights (K,) and covariances (K, d, d); shapes: {shapes}.")

    @staticmethod
    def random(key: Array, dimension: int, epsilon: Any, components: int = 5) -> "MixtureBenchmark":
        """Equal weights; means on a circle of radius 5 in the plane, and else uniform in [-5, 5]^d; covariances with random axes and eigenvalues in [0.5, 1]."""
        need_count("dimension", dimension)
        need_count("components", components)
        for_means, for_values, for_axes = jax.random.split(key, 3)
        if dimension == 2:
            angles = 2 * jnp.pi * jnp.arange(components) / components
            means = 5 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
        else:
            means = jax.random.uniform(for_means, (components, dimension), minval=-5.0, maxval=5.0)
        values = jax.random.uniform(for_values, (components, dimension), minval=0.5, maxval=1.0)
        axes = jax.random.orthogonal(for_axes, dimension, (components,))
        covariances = jnp.einsum("kij,kj,klj->kil", axes, values, axes)
        return MixtureBenchmark(jnp.full((components,), 1 / components), means, covariances, epsilon)

    def log_weights(self, x: Float[Array, "n d"]) -> Float[Array, "n components"]:
        """log w_k(x), up to what does not depend on k."""
        wider = self.covariances + self.epsilon * jnp.eye(self.means.shape[1], dtype=self.means.dtype)
        factors = jnp.linalg.cholesky(wider)
        gap = jax.vmap(lambda factor, mean: jax.scipy.linalg.solve_triangular(factor, (x - mean).T, lower=True))(factors, self.means)
        log_determinants = jnp.sum(jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)), -1)
        return (jnp.log(self.weights) - log_determinants) - jnp.sum(gap**2, 1).T / 2

    def _components(self, x: Float[Array, "n d"]) -> tuple[Float[Array, "n components d"], Float[Array, "components d d"]]:
        """The means and the covariances C_k of the terms of pi(. | x)."""
        identity = jnp.eye(self.means.shape[1], dtype=self.means.dtype)
        narrower = self.epsilon * jnp.linalg.solve(self.covariances + self.epsilon * identity, self.covariances)
        narrower = (narrower + jnp.swapaxes(narrower, -1, -2)) / 2
        # C (x / epsilon + Sigma^-1 mu), where C Sigma^-1 = epsilon (Sigma + epsilon I)^-1
        pulled = self.epsilon * jnp.linalg.solve(self.covariances + self.epsilon * identity, self.means[..., None])[..., 0]
        return jnp.einsum("kij,nj->nki", narrower, x) / self.epsilon + pulled, narrower

    def conditional_moments(self, x: Any) -> tuple[Float[Array, "n d"], Float[Array, "n d d"]]:
        """The mean and the covariance of pi(. | x), for points in rows."""
        x = as_floats("x", x)
        weights = jax.nn.softmax(self.log_weights(x), -1)
        means, covariances = self._components(x)
        mean = jnp.einsum("nk,nki->ni", weights, means)
        gap = means - mean[:, None, :]
        return mean, jnp.einsum("nk,nki,nkj->nij", weights, gap, gap) + jnp.einsum("nk,kij->nij", weights, covariances)

    def sample(self, x: Any, key: Array) -> Float[Array, "n d"]:
        """A draw of y from pi(. | x) for each of the points in rows."""
        x = as_floats("x", x)
        for_component, for_noise = jax.random.split(key)
        chosen = jax.random.categorical(for_component, self.log_weights(x), -1)
        means, covariances = self._components(x)
        mean = jnp.take_along_axis(means, chosen[:, None, None], 1)[:, 0]
        noise = jax.random.normal(for_noise, x.shape, x.dtype)
        return mean + jnp.einsum("nij,nj->ni", jnp.linalg.cholesky(covariances)[chosen], noise)

    def sample_start(self, key: Array, count: int) -> Float[Array, "count d"]:
        """Points of the start, in rows."""
        return jax.random.normal(key, (count, self.means.shape[1]), self.means.dtype)

    def sample_end(self, key: Array, count: int) -> Float[Array, "count d"]:
        """Points of the end, in rows, with starts of their own."""
        for_start, for_end = jax.random.split(key)
        return self.sample(self.sample_start(for_start, count), for_end)
