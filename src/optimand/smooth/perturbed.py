r"""Perturbed optimisers: maxima and maximisers made smooth by noise.

$$F(\theta) = \mathbb{E} \max_{y \in C} \langle \theta + \sigma Z, y \rangle, \qquad
  y(\theta) = \nabla F(\theta) = \mathbb{E} \operatorname{argmax}_{y \in C} \langle \theta + \sigma Z, y \rangle$$

for noise with density \(e^{-\nu(z)}\). The maximiser is piecewise constant, its expectation is smooth, and

$$\partial y(\theta) = \tfrac{1}{\sigma}\, \mathbb{E}\big[ y^\star(\theta + \sigma Z)\, \nu'(Z)^\top \big]$$

(Berthet et al. 2020, proposition 3.1). A discrete solver (an argmax, a shortest path, an assignment) thus becomes a layer,
with nothing known about it but its answers. Expectations are means over samples of a key.

| | value | derivative |
|---|---|---|
| `argmax`, `argmin` | mean maximiser | by the score, as above |
| `maximum`, `minimum` | mean of the extreme value | the mean maximiser: pathwise, little variance |
| `expectation` | mean of any function | by the score; or pathwise, the mean of its own derivatives |

The score enters as weights that are one, \(w_k = p_\theta(u_k) / p_{\bar\theta}(u_k)\) at the points
\(u_k = \theta + \sigma z_k\) held fixed (Foerster et al. 2018), so that derivatives of every order, and in \(\sigma\), are
unbiased, in forward and in reverse mode.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import need_callable
from .arguments import need_count, need_positive

__all__ = ["Gaussian", "Gumbel", "Noise", "argmax", "argmin", "expectation", "maximum", "minimum"]


class Noise(eqx.Module):
    """Independent noise with a density: abstract."""

    @abc.abstractmethod
    def sample(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """Standard samples."""

    @abc.abstractmethod
    def log_density(self, z: Array) -> Array:
        """Of each number, up to a constant."""


class Gaussian(Noise):
    """Standard normal noise."""

    def sample(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.normal(key, shape, dtype)

    def log_density(self, z: Array) -> Array:
        return -0.5 * z**2


class Gumbel(Noise):
    """Gumbel noise: over one-hot vectors, the perturbed argmax is the softmax and the perturbed maximum the log-sum-exp."""

    def sample(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.gumbel(key, shape, dtype)

    def log_density(self, z: Array) -> Array:
        return -z - jnp.exp(-z)


def argmax(
    fn: Callable, *, samples: int = 1000, scale: Any = 0.1, noise: Noise | None = None, control_variate: bool = True
) -> Callable[[PyTree, Array], PyTree]:
    """A maximiser, made differentiable.

    **Arguments:**

    - `fn`: maps scores to a maximiser y of <scores, y> over some set: a pytree like the scores.
    - `samples`: how many perturbed problems are solved, by `vmap`.
    - `scale`: sigma. Small is close to the maximiser and has noisy derivatives.
    - `noise`: `Gumbel()` by default.
    - `control_variate`: subtract the answer without noise in the derivative: the same mean, less variance.

    **Returns:** a function of `(scores, key)`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    one_hot = lambda scores: jax.nn.one_hot(jnp.argmax(scores), scores.size)
    soft = om.smooth.perturbed.argmax(one_hot, samples=200, scale=0.5)
    jax.jacobian(soft)(jnp.array([1.0, 2.0, 1.5]), jax.random.key(0))
    ```
    """
    return expectation(fn, samples=samples, scale=scale, noise=noise, control_variate=control_variate)


def argmin(fn: Callable, **options: Any) -> Callable[[PyTree, Array], PyTree]:
    """`argmax` for a minimiser: `fn` maps costs to a minimiser y of <costs, y>. The noise is subtracted from the costs."""
    maximiser = argmax(lambda scores: fn(_negative(scores)), **options)
    return lambda costs, key: maximiser(_negative(costs), key)


def maximum(
    fn: Callable, *, samples: int = 1000, scale: Any = 0.1, noise: Noise | None = None
) -> Callable[[PyTree, Array], Array]:
    """The largest value of <scores, y>, smoothed: convex, with the perturbed maximiser for gradient.

    The arguments are those of `argmax`, `fn` maps to a maximiser, and so does the function returned to a number. With
    `optax.losses.make_fenchel_young_loss` it makes the loss of Berthet et al. 2020, section 4.
    """
    noise = _checked(fn, samples, scale, noise)

    def smoothed(scores: PyTree, key: Array) -> Array:
        theta, unravel = ravel_pytree(scores)
        z = noise.sample(key, (samples, theta.size), theta.dtype)
        sigma = jnp.asarray(scale, theta.dtype)
        y = jax.lax.stop_gradient(_answers(fn, unravel, theta + sigma * z))
        # Pathwise: the derivative of a maximum is the maximiser. What v multiplies has the value of that, and its own
        # derivative by the score; half of v makes the second derivative come out once.
        v = theta - jax.lax.stop_gradient(theta)
        weights = _score_weights(noise, jax.lax.stop_gradient(theta) + v / 2, jax.lax.stop_gradient(sigma), z)
        fixed = jax.lax.stop_gradient(theta) + sigma * z
        return jnp.mean(jnp.sum(fixed * y, axis=1)) + jnp.mean(weights[:, None] * y, axis=0) @ v

    return smoothed


def minimum(fn: Callable, **options: Any) -> Callable[[PyTree, Array], Array]:
    """The least value of <costs, y>, smoothed: concave. `fn` maps costs to a minimiser."""
    largest = maximum(lambda scores: fn(_negative(scores)), **options)
    return lambda costs, key: -largest(_negative(costs), key)


def expectation(
    fn: Callable,
    *,
    samples: int = 1000,
    scale: Any = 0.1,
    noise: Noise | None = None,
    derivative: str = "score",
    control_variate: bool = True,
) -> Callable[[PyTree, Array], PyTree]:
    """E fn(x + scale Z), of a function with any pytree of floating-point arrays as output.

    The arguments are those of `argmax`, and `derivative`: "score" asks nothing of `fn`; "pathwise" averages its own
    derivatives, which is right where it is continuous, and has less variance.
    """
    noise = _checked(fn, samples, scale, noise)
    if derivative not in ("score", "pathwise"):
        raise ArgumentError("derivative", f"must be 'score' or 'pathwise', not {derivative!r}.")

    def smoothed(x: PyTree, key: Array) -> PyTree:
        flat, unravel = ravel_pytree(x)
        z = noise.sample(key, (samples, flat.size), flat.dtype)
        sigma = jnp.asarray(scale, flat.dtype)
        points = flat + sigma * z
        if derivative == "pathwise":
            return jtu.tree_map(lambda out: jnp.mean(out, axis=0), jax.vmap(lambda u: fn(unravel(u)))(points))
        outputs = jax.lax.stop_gradient(jax.vmap(lambda u: fn(unravel(u)))(points))
        weights = _score_weights(noise, flat, sigma, z)
        base = jtu.tree_map(jnp.zeros_like, jtu.tree_map(lambda out: out[0], outputs))
        if control_variate:
            base = jax.lax.stop_gradient(fn(x))

        def mean(out, base):
            excess = (out - base) * weights.reshape(-1, *[1] * (out.ndim - 1)).astype(out.dtype)
            # the value is the plain mean, without the rounding of taking the base away and back
            excess = jnp.mean(excess, axis=0)
            return jnp.mean(out, axis=0) + (excess - jax.lax.stop_gradient(excess))

        return jtu.tree_map(mean, outputs, base)

    return smoothed


def _score_weights(noise: Noise, theta: Array, sigma: Array, z: Array) -> Array:
    """Ratios of densities at fixed points, equal to one, whose derivatives are those of the logarithm of the density."""
    points = jax.lax.stop_gradient(theta + sigma * z)
    logarithm = jnp.sum(noise.log_density((points - theta) / sigma) - jnp.log(sigma), axis=1)
    return jnp.exp(logarithm - jax.lax.stop_gradient(logarithm))


def _answers(fn, unravel, points):
    def answer(point):
        scores = unravel(point)
        y = fn(scores)
        if jtu.tree_structure(y) != jtu.tree_structure(scores) or jnp.shape(ravel_pytree(y)[0]) != jnp.shape(point):
            raise ArgumentError("fn", "must return a maximiser with the structure and shapes of the scores.")
        return ravel_pytree(y)[0].astype(point.dtype)

    return jax.vmap(answer)(points)


def _checked(fn, samples, scale, noise) -> Noise:
    need_callable(fn, "fn")
    need_count("samples", samples)
    need_positive("scale", scale)
    noise = Gumbel() if noise is None else noise
    if not isinstance(noise, Noise):
        raise ArgumentError("noise", f"must be a Noise, not {type(noise).__name__}.", "Gumbel() or Gaussian().")
    return noise


def _negative(tree: PyTree) -> PyTree:
    return jtu.tree_map(lambda leaf: -leaf, tree)
