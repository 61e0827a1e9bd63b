"""The spectral convolution: both ways of computing it agree with NumPy, and its linear algebra holds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import optimand as om
from optimand.nn import Pointwise, PointwiseMLP, SpectralConv, gelu


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def by_numpy(layer, x):
    """Multiply every kept mode by its matrix, one wave number at a time."""
    grid, modes = x.shape[1:], layer.modes
    weight = np.asarray(layer.real) + 1j * np.asarray(layer.imag)
    spectrum = np.fft.rfftn(x, axes=range(1, x.ndim))
    out = np.zeros((weight.shape[-1], *spectrum.shape[1:]), complex)
    ranges = [range(-m, m) for m in modes[:-1]] + [range(modes[-1])]
    for k in np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, len(modes)):
        out[(slice(None), *k)] = weight[tuple(k)].T @ spectrum[(slice(None), *k)]
    return np.fft.irfftn(out, s=grid, axes=range(1, x.ndim))


CASES = [  # the first of each dimension takes matrices, the others the fast Fourier transform
    ((3,), (16,)),
    ((5,), (9,)),
    ((2, 3), (8, 12)),
    ((4, 5), (9, 8)),
    ((2, 2, 3), (8, 9, 12)),
    ((3, 2, 4), (6, 8, 7)),
]


@pytest.mark.parametrize(("modes", "grid"), CASES)
def test_it_multiplies_each_kept_mode_and_drops_the_others(modes, grid):
    layer = SpectralConv(2, 3, modes, key=jr.key(0))
    x = np.random.default_rng(0).normal(size=(2, *grid))
    np.testing.assert_allclose(eqx.filter_jit(layer)(x), by_numpy(layer, x), atol=1e-12)


@pytest.mark.parametrize(("modes", "grid"), [CASES[2], CASES[3]])
def test_it_commutes_with_translations(modes, grid):
    layer = eqx.filter_jit(SpectralConv(2, 2, modes, bias=True, key=jr.key(1)))
    x = jr.normal(jr.key(2), (2, *grid))
    if 2 * modes[0] < grid[0]:  # the mode -n/2 alone would not
        np.testing.assert_allclose(layer(jnp.roll(x, (2, 3), (1, 2))), jnp.roll(layer(x), (2, 3), (1, 2)), atol=1e-12)


def test_a_smooth_field_is_mapped_alike_on_every_grid():
    layer = SpectralConv(1, 1, (2, 3), key=jr.key(0))
    field = lambda n, m: jnp.sin(2 * jnp.pi * (jnp.arange(n)[:, None] / n + 2 * jnp.arange(m) / m))[None]
    coarse, fine = layer(field(8, 6)), layer(field(32, 24))  # one by the fast transform, one by matrices
    np.testing.assert_allclose(fine[:, ::4, ::4], coarse, atol=1e-12)


def test_parameters_are_real_and_single_precision_when_asked():
    layer = SpectralConv(2, 2, (2, 2), bias=True, dtype=jnp.float32, key=jr.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(layer)} == {jnp.dtype("float32")}
    assert layer(jnp.ones((2, 8, 8), jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("x", [0.0, 0.3, -4.0, 8.0])
def test_gelu_is_exact(x):
    from scipy.stats import norm

    np.testing.assert_allclose(gelu(jnp.asarray(x)), x * norm.cdf(x), atol=1e-15)


def test_a_pointwise_network_is_the_same_network_at_each_point():
    network = PointwiseMLP((2, 5, 3), activate_last=True, key=jr.key(0))
    x = jr.normal(jr.key(1), (2, 3, 4))
    y = network(x)
    np.testing.assert_allclose(y[:, 1, 2], network(x[:, 1:2, 2])[:, 0], atol=1e-14)
    assert y.shape == (3, 3, 4)
    assert Pointwise(2, 3, bias=False, key=jr.key(0)).bias is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SpectralConv(2, 2, (2, 2, 2, 2), key=jr.key(0)), "1, 2 or 3 axes"),
        (lambda: SpectralConv(2, 2, (2, 0), key=jr.key(0)), r"modes\[1\]"),
        (lambda: SpectralConv(0, 2, (2, 2), key=jr.key(0)), "in_channels"),
        (lambda: SpectralConv(2, 2, (2, 2), key=jr.key(0))(jnp.ones((2, 3, 8))), "3 points on axis 1"),
        (lambda: SpectralConv(2, 2, (2, 5), key=jr.key(0))(jnp.ones((2, 8, 7))), "7 points on axis 2"),
        (lambda: SpectralConv(2, 2, (2, 2), key=jr.key(0))(jnp.ones((5, 2, 8, 8))), "vmap"),
        (lambda: SpectralConv(2, 2, (2, 2), key=jr.key(0))(jnp.ones((3, 8, 8))), "2 channels"),
        (lambda: PointwiseMLP((2,), key=jr.key(0)), "sizes"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        call()
