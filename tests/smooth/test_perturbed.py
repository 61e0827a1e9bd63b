"""Perturbed optimisers are the smooth functions that theory says, with unbiased derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimand.core.errors import ArgumentError
from optimand.smooth import perturbed

THETA = np.array([0.2, 0.5, -0.3])
KEY = jax.random.key(0)
SCALE = 0.8


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def one_hot(scores):
    return jax.nn.one_hot(jnp.argmax(scores), scores.size, dtype=scores.dtype)


SOFT = np.asarray(jax.nn.softmax(jnp.asarray(THETA) / SCALE))
JACOBIAN = (np.diag(SOFT) - np.outer(SOFT, SOFT)) / SCALE
OPTIONS = dict(samples=200_000, scale=SCALE)


def test_with_gumbel_noise_the_argmax_is_the_softmax_and_so_is_its_jacobian():
    soft = perturbed.argmax(one_hot, **OPTIONS)
    value, jacobian = jax.jit(lambda t: (soft(t, KEY), jax.jacobian(soft)(t, KEY)))(jnp.asarray(THETA))
    np.testing.assert_allclose(value, SOFT, atol=5e-3)
    np.testing.assert_allclose(jacobian, JACOBIAN, atol=1e-2)


def test_with_gumbel_noise_the_maximum_is_the_log_sum_exp_up_to_second_derivatives():
    smooth = perturbed.maximum(one_hot, **OPTIONS)

    @jax.jit
    def derivatives(theta):
        return smooth(theta, KEY), jax.grad(smooth)(theta, KEY), jax.hessian(smooth)(theta, KEY)

    value, gradient, hessian = derivatives(jnp.asarray(THETA))
    euler = 0.5772156649015329
    exact = SCALE * (np.log(np.sum(np.exp(THETA / SCALE))) + euler)
    np.testing.assert_allclose(value, exact, atol=1e-2)
    np.testing.assert_allclose(gradient, SOFT, atol=5e-3)
    np.testing.assert_allclose(hessian, JACOBIAN, atol=2e-2)


def test_the_gradient_of_the_maximum_is_the_argmax_of_the_same_samples():
    options = dict(samples=50, scale=0.3, noise=perturbed.Gaussian())
    both = lambda t: (jax.grad(perturbed.maximum(one_hot, **options))(t, KEY), perturbed.argmax(one_hot, **options)(t, KEY))
    np.testing.assert_allclose(*jax.jit(both)(jnp.asarray(THETA)), atol=1e-12)


def test_an_expectation_under_gaussian_noise_has_both_derivatives_right():
    """E (x + s Z)^2 = x^2 + s^2, with derivatives 2 x and 2 s."""
    scores = jnp.asarray(0.7)
    for derivative, tolerance in (("score", 3e-2), ("pathwise", 1e-2)):

        def smooth(x, scale, derivative=derivative):
            options = dict(samples=200_000, scale=scale, noise=perturbed.Gaussian(), derivative=derivative)
            return perturbed.expectation(jnp.square, **options)(x, KEY)

        value, gradients = jax.jit(jax.value_and_grad(smooth, argnums=(0, 1)))(scores, jnp.asarray(0.5))
        np.testing.assert_allclose(value, 0.74, atol=1e-2)
        np.testing.assert_allclose(gradients, (1.4, 1.0), atol=tolerance)


def test_the_control_variate_changes_no_value_and_lowers_the_variance_of_the_derivative():
    keys = jax.random.split(KEY, 50)
    spread = {}
    for control in (True, False):
        soft = perturbed.argmax(one_hot, samples=50, scale=0.1, noise=perturbed.Gaussian(), control_variate=control)
        values, jacobians = jax.jit(jax.vmap(lambda k, soft=soft: (soft(THETA, k), jax.jacobian(soft)(THETA, k))))(keys)
        spread[control] = values, float(jnp.sum(jnp.var(jacobians, axis=0)))
    np.testing.assert_array_equal(spread[True][0], spread[False][0])
    assert spread[True][1] < 0.5 * spread[False][1]


def test_minima_mirror_maxima():
    least = lambda costs: one_hot(-costs)
    options = dict(samples=20, scale=0.3)

    @jax.jit
    def pairs(costs):
        lowest, highest = perturbed.minimum(least, **options)(costs, KEY), perturbed.maximum(one_hot, **options)(-costs, KEY)
        minimiser, maximiser = perturbed.argmin(least, **options)(costs, KEY), perturbed.argmax(one_hot, **options)(-costs, KEY)
        return (lowest, minimiser), (-highest, maximiser)

    for ours, mirrored in zip(*pairs(jnp.asarray(THETA)), strict=True):
        np.testing.assert_allclose(ours, mirrored, atol=1e-12)


def test_scores_may_be_trees_batched_and_closed_over():
    """A shortest-path-like choice of one edge in each of two stages, its scores scaled by a number differentiated outside."""
    choose = lambda scores: jax.tree.map(one_hot, scores)
    scores = {"a": jnp.asarray(THETA), "b": jnp.asarray(THETA[::-1])}

    def loss(factor):
        soft = perturbed.argmax(lambda s: choose(jax.tree.map(lambda leaf: factor * leaf, s)), samples=100)
        out = jax.vmap(soft, in_axes=(None, 0))(scores, jax.random.split(KEY, 3))
        return sum(jnp.sum(jnp.arange(3.0) * leaf) for leaf in jax.tree.leaves(out))

    value, gradient = jax.jit(jax.value_and_grad(loss))(1.0)
    assert value.shape == () and np.isfinite(gradient)


def test_a_fenchel_young_loss_of_a_perturbed_maximum_has_the_residual_for_gradient():
    options = dict(samples=100, scale=0.5)
    smooth = perturbed.maximum(one_hot, **options)
    loss = optax.losses.make_fenchel_young_loss(lambda scores: smooth(scores, KEY))
    target = jnp.asarray([0.0, 1.0, 0.0])
    both = lambda s: (jax.grad(loss)(s, target), perturbed.argmax(one_hot, **options)(s, KEY) - target)
    np.testing.assert_allclose(*jax.jit(both)(jnp.asarray(THETA)), atol=1e-12)


def test_bad_arguments_are_named(as_a_user):
    for arguments, match in (
        (dict(samples=0), "samples"),
        (dict(scale=0.0), "scale"),
        (dict(noise="gumbel"), "noise"),
    ):
        with pytest.raises(ArgumentError, match=match):
            perturbed.argmax(one_hot, **arguments)
    with pytest.raises(ArgumentError, match="derivative"):
        perturbed.expectation(one_hot, derivative="finite")
    with pytest.raises(ArgumentError, match="structure and shapes"):
        perturbed.maximum(jnp.argmax)(jnp.asarray(THETA), KEY)
