"""The problems on which methods are compared, small (about 100 unknowns) and medium (10,000), in double precision.

Each is a function of the unknown and a parameter, with the start and the norm that says how well it is solved, computed
apart from any solver.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

__all__ = ["Case", "contraction", "curve", "lasso", "logistic", "peaks", "smoothing"]


class Case(NamedTuple):
    """`fn(x, theta)` is an objective, a residual, a map or the smooth part, as the method wants it; `defect` measures a
    solution: it must come down to `target`.
    """

    fn: Callable
    guess: Any
    theta: Any
    defect: Callable
    target: float
    step_size: float = 0.0


SIDE = 100


def _gradient_norm(fn):
    return lambda x, theta: jnp.linalg.norm(jnp.ravel(jax.grad(fn)(x, theta)))


def logistic() -> Case:
    """Regularised logistic regression: 200 samples, 100 weights."""
    rows = jax.random.normal(jax.random.key(0), (200, 100))
    labels = jnp.sign(rows @ jnp.ones(100) + jax.random.normal(jax.random.key(1), (200,)))

    def fn(x, theta):
        return jnp.mean(jax.nn.softplus(-labels * (rows @ x))) + 0.5 * theta * jnp.sum(x**2)

    return Case(fn, jnp.zeros(100), jnp.asarray(0.02), _gradient_norm(fn), 1e-6, 1.0)


def smoothing() -> Case:
    """Edge-preserving smoothing of a 100 x 100 picture: least squares and the pseudo-Huber norm of its differences."""
    i, j = jnp.meshgrid(jnp.arange(SIDE), jnp.arange(SIDE), indexing="ij")
    picture = jnp.where((i - 50) ** 2 + (j - 40) ** 2 < 900, 1.0, 0.0)
    noisy = picture + 0.2 * jax.random.normal(jax.random.key(2), (SIDE, SIDE))

    def fn(x, theta):
        down, right = jnp.diff(x, axis=0), jnp.diff(x, axis=1)
        edges = jnp.sum(jnp.sqrt(down**2 + 0.01)) + jnp.sum(jnp.sqrt(right**2 + 0.01))
        return 0.5 * jnp.sum((x - noisy) ** 2) + theta * edges

    return Case(fn, noisy, jnp.asarray(0.3), _gradient_norm(fn), 1e-6, 1 / 13.0)


def _normal_residual(fn):
    return lambda x, theta: jnp.linalg.norm(fn(x, theta) @ jax.jacfwd(fn)(x, theta))


def curve() -> Case:
    """A decay and an oscillation fitted to 60 points: 4 unknowns."""
    times = jnp.linspace(0, 4, 60)

    def fn(x, theta):
        model = x[0] * jnp.exp(-x[1] * times) + x[2] * jnp.cos(x[3] * times)
        truth = 2.0 * jnp.exp(-theta * times) + 0.5 * jnp.cos(1.5 * times)
        return model - truth - 0.01 * jnp.sin(17 * times)

    return Case(fn, jnp.ones(4), jnp.asarray(0.7), _normal_residual(fn), 1e-6)


def peaks() -> Case:
    """Heights, places and widths of 10 peaks fitted to 10,000 points: 30 unknowns."""
    points = jnp.linspace(0, 1, 10_000)
    places = jnp.linspace(0.05, 0.95, 10)

    def spectrum(heights, places, widths):
        return jnp.sum(heights[:, None] * jnp.exp(-(((points - places[:, None]) / widths[:, None]) ** 2)), 0)

    noise = 0.01 * jax.random.normal(jax.random.key(3), points.shape)
    heights = 1 + 0.5 * jnp.sin(jnp.arange(10.0))

    def fn(x, theta):
        truth = spectrum(heights, places + 0.01 * jnp.cos(3 * jnp.arange(10.0)), theta * jnp.ones(10))
        return spectrum(x[:10], x[10:20], x[20:]) - truth - noise

    guess = jnp.concatenate([jnp.ones(10), places, 0.04 * jnp.ones(10)])
    return Case(fn, guess, jnp.asarray(0.03), _normal_residual(fn), 1e-6)


def contraction(medium: bool) -> Case:
    """A layer whose fixed point is sought: dense with 100 units, or local on a grid of 10,000."""
    if medium:
        source = jax.random.normal(jax.random.key(4), (SIDE, SIDE))

        def fn(x, theta):
            beside = jnp.roll(x, 1, 0) + jnp.roll(x, -1, 0) + jnp.roll(x, 1, 1) + jnp.roll(x, -1, 1)
            return jnp.tanh(0.23 * beside + theta * source)

        guess = jnp.zeros((SIDE, SIDE))
    else:
        matrix = jax.random.normal(jax.random.key(5), (100, 100)) / 12

        def fn(x, theta):
            return jnp.tanh(matrix @ x + theta)

        guess = jnp.zeros(100)
    defect = lambda x, theta: jnp.linalg.norm(jnp.ravel(fn(x, theta) - x))
    return Case(fn, guess, jnp.asarray(0.3), defect, 1e-6)


PENALTY = 0.02


def shrink(x, step_size):
    """The proximal operator of PENALTY times the sum of absolute values."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - PENALTY * step_size, 0)


def lasso(medium: bool) -> Case:
    """Sparse regression on 200 samples and 100 weights, or sparse deblurring of 100 x 100 pixels."""
    if medium:
        sparse = jax.random.bernoulli(jax.random.key(6), 0.05, (SIDE, SIDE)) * 1.0
        noise = 0.02 * jax.random.normal(jax.random.key(7), (SIDE, SIDE))

        def blur(x):
            for axis in (0, 1):
                x = 0.5 * x + 0.25 * (jnp.roll(x, 1, axis) + jnp.roll(x, -1, axis)) * 0.9
            return x

        def fn(x, theta):
            return 0.5 * jnp.sum((blur(x) - theta * blur(sparse) - noise) ** 2)

        guess = jnp.zeros((SIDE, SIDE))
    else:
        rows = jax.random.normal(jax.random.key(8), (200, 100)) / 14

        def fn(x, theta):
            return 0.5 * jnp.sum((rows @ x - rows[:, :10].sum(1) * theta) ** 2)

        guess = jnp.zeros(100)

    def defect(x, theta):
        return jnp.linalg.norm(jnp.ravel(x - shrink(x - jax.grad(fn)(x, theta), 1.0)))

    return Case(fn, guess, jnp.asarray(1.0), defect, 1e-6)
