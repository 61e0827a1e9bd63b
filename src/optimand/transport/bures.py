r"""The Bures-Wasserstein distance between Gaussians, and the entropic plan between them.

For the cost \(\tfrac12 |x - y|^2\) the optimal transport cost between \(\mathcal{N}(m_0, \Sigma_0)\) and \(\mathcal{N}(m_1, \Sigma_1)\) is

$$\tfrac12 |m_0 - m_1|^2 + \tfrac12 \mathrm{tr}\, \Sigma_0 + \tfrac12 \mathrm{tr}\, \Sigma_1 - \mathrm{tr} (\Sigma_0^{1/2} \Sigma_1 \Sigma_0^{1/2})^{1/2},$$

and with the entropy the two ends are jointly Gaussian with the cross-covariance (Janati, Muzellec, Peyré and Cuturi 2020)

$$C = \tfrac12 (\Sigma_0^{1/2} D \Sigma_0^{-1/2} - \varepsilon I), \qquad D = (4 \Sigma_0^{1/2} \Sigma_1 \Sigma_0^{1/2} + \varepsilon^2 I)^{1/2}.$$
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .costs import as_floats

__all__ = ["bures_wasserstein", "bw_uvp", "cbw_uvp", "gaussian_plan", "moments"]


def bures_wasserstein(mean0: Any, covariance0: Any, mean1: Any, covariance1: Any) -> Float[Array, "*n"]:
    """The squared distance, with the factor 1/2 of the cost above, of means (..., d) and covariances (..., d, d), which may be singular."""
    mean0, mean1 = as_floats("mean0", mean0), as_floats("mean1", mean1)
    covariance0, covariance1 = as_floats("covariance0", covariance0), as_floats("covariance1", covariance1)
    root = matrix_power(covariance0, 0.5)
    between = jnp.linalg.eigvalsh(root @ covariance1 @ root)
    traces = jnp.trace(covariance0, axis1=-2, axis2=-1) + jnp.trace(covariance1, axis1=-2, axis2=-1)
    return (jnp.sum((mean0 - mean1) ** 2, -1) + traces) / 2 - jnp.sum(jnp.sqrt(jnp.maximum(between, 0)), -1)


def matrix_power(matrix: Float[Array, "*n d d"], power: float) -> Float[Array, "*n d d"]:
    """A power of a symmetric matrix; of a negative eigenvalue, which is a rounding error, that of zero."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)[..., None, :] ** power) @ jnp.swapaxes(vectors, -1, -2)


def moments(points: Any) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """The mean and the covariance of points in rows."""
    points = as_floats("points", points)
    mean = jnp.mean(points, 0)
    gap = points - mean
    return mean, gap.T @ gap / (points.shape[0] - 1)


def bw_uvp(points: Any, target: Any) -> Float[Array, ""]:
    """The distance between Gaussians with the moments of two sets of points, in percent of half the variance of the second."""
    ours, theirs = moments(points), moments(target)
    return 100 * bures_wasserstein(*ours, *theirs) / (jnp.trace(theirs[1]) / 2)


def cbw_uvp(conditional: tuple[Any, Any], exact: tuple[Any, Any], variance: Any) -> Float[Array, ""]:
    """The same of conditional distributions, in the mean over x: how far a plan is from the exact one, where its end marginal does not tell.

    **Arguments:** the means and the covariances of pi(. | x) for n points x, of both plans; and `variance`, the trace of the covariance of the end.
    Source: Gushchin, Kolesov, Mokrov, Karpikova, Spiridonov, Burnaev and Korotin (2023), section 5.
    """
    return 100 * jnp.mean(bures_wasserstein(*conditional, *exact)) / (as_floats("variance", variance) / 2)


def gaussian_plan(
    mean0: Any, covariance0: Any, mean1: Any, covariance1: Any, epsilon: Any
) -> tuple[Float[Array, "d d"], Float[Array, " d"], Float[Array, "d d"]]:
    """The Schrödinger bridge between Gaussians, of means (d,) and covariances (d, d), y given x: a matrix A, a vector b and a covariance, with
    y ~ N(A x + b, covariance)."""
    mean0, covariance0 = as_floats("mean0", mean0), as_floats("covariance0", covariance0)
    mean1, covariance1 = as_floats("mean1", mean1), as_floats("covariance1", covariance1)
    root, inverse = matrix_power(covariance0, 0.5), matrix_power(covariance0, -0.5)
    identity = jnp.eye(mean0.size, dtype=mean0.dtype)
    d = matrix_power(4 * root @ covariance1 @ root + epsilon**2 * identity, 0.5)
    cross = (root @ d @ inverse - epsilon * identity) / 2
    matrix = jnp.linalg.solve(covariance0, cross).T
    return matrix, mean1 - matrix @ mean0, covariance1 - matrix @ cross
