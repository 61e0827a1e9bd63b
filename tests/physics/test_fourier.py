"""Periodic fields: derivatives, the law of Biot and Savart, and the spectrum of random fields."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import optimand as om
from optimand import physics


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def waves(n, m, length=1.0):
    x, y = np.meshgrid(2 * np.pi * np.arange(n) / n, 2 * np.pi * np.arange(m) / m, indexing="ij")
    return jnp.asarray(np.sin(2 * x) * np.cos(y)), jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize(("n", "m"), [(8, 6), (7, 9)])
def test_derivatives_of_waves_are_exact(n, m):
    u, x, y = waves(n, m)
    k = 2 * np.pi / 3.0
    along_x = physics.spectral_derivative(u, axis=0, length=3.0)
    np.testing.assert_allclose(along_x, 2 * k * jnp.cos(2 * x) * jnp.cos(y), atol=1e-12)
    third = physics.spectral_derivative(u, axis=1, order=3, length=3.0)
    np.testing.assert_allclose(third, k**3 * jnp.sin(2 * x) * jnp.sin(y), atol=1e-10)
    np.testing.assert_allclose(physics.spectral_laplacian(u, length=3.0), -5 * k**2 * u, atol=1e-10)


@pytest.mark.parametrize("axes", [(-2, -1), (1, 0)])
@pytest.mark.parametrize("shape", [(8, 12), (7, 5)])
def test_the_velocity_of_a_vorticity_has_that_vorticity_and_no_divergence(shape, axes):
    vorticity = jax.jit(lambda key: physics.gaussian_field(key, shape, length=2.0))(jr.key(0))
    if shape == (8, 12):  # what only the derivative's dropped waves carry cannot come back
        spectrum = np.fft.rfft2(vorticity)
        spectrum[4], spectrum[:, 6] = 0, 0
        vorticity = jnp.asarray(np.fft.irfft2(spectrum, s=shape))
    u, v = physics.velocity_from_vorticity(vorticity + 1.0, axes=axes, length=2.0)
    np.testing.assert_allclose(physics.divergence(u, v, axes=axes, length=2.0), 0, atol=1e-12)
    np.testing.assert_allclose(physics.vorticity_from_velocity(u, v, axes=axes, length=2.0), vorticity, atol=1e-12)
    np.testing.assert_allclose([u.mean(), v.mean()], 0, atol=1e-14)


def test_leading_axes_are_batches():
    fields = jr.normal(jr.key(0), (3, 6, 6))
    u, v = physics.velocity_from_vorticity(fields)
    alone = physics.velocity_from_vorticity(fields[1])
    np.testing.assert_allclose(jnp.stack([u[1], v[1]]), jnp.stack(alone), atol=1e-14)


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_random_fields_have_the_covariance_asked_for(length):
    n, count = 8, 4000
    keys = jr.split(jr.key(0), count)
    fields = jax.jit(jax.vmap(lambda key: physics.gaussian_field(key, (n, n), scale=3.0, tau=5.0, length=length)))(keys)
    # The coefficients in the orthonormal basis exp(2 pi i k x / L) / L have the eigenvalues of the operator as variances.
    coefficients = np.fft.fft2(fields) / n**2 * length
    k = 2 * np.pi * np.fft.fftfreq(n, 1 / n) / length
    expected = 3.0 * (k[:, None] ** 2 + k[None] ** 2 + 25.0) ** -2.5
    expected[0, 0] = 0
    np.testing.assert_allclose((np.abs(coefficients) ** 2).mean(0), expected, rtol=8 / np.sqrt(count), atol=1e-20)
    np.testing.assert_allclose(fields.mean((1, 2)), 0, atol=1e-14)


def test_the_stated_deviations_hold():
    keys = jr.split(jr.key(1), 500)
    for scale, deviation in ((7**1.5, 0.043), (7**3, 0.185)):
        fields = jax.jit(jax.vmap(lambda key, scale=scale: physics.gaussian_field(key, (16, 16), scale=scale)))(keys)
        np.testing.assert_allclose(fields.std(), deviation, rtol=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: physics.spectral_derivative(jnp.ones((4, 4)), axis=2), "axis 2"),
        (lambda: physics.spectral_derivative(jnp.ones((4, 4)), axis=0, order=0), "order"),
        (lambda: physics.spectral_laplacian(jnp.ones((4, 4)), axes=(0, -2)), "different"),
        (lambda: physics.gaussian_field(jr.key(0), (4, 0)), "shape"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        call()
