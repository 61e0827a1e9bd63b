"""Finite differences: exact for the polynomials they must be exact for, and of the order they state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.physics import (
    backward_derivative,
    first_derivative,
    periodic_first_derivative,
    periodic_second_derivative,
    second_derivative,
)


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


UNEVEN = np.array([0.0, 0.1, 0.25, 0.3, 0.55, 0.7, 1.0])


@pytest.mark.parametrize("x", [UNEVEN, np.linspace(-1, 2, 7)], ids=["uneven", "even"])
def test_they_are_exact_for_low_polynomials(x):
    one, square, cube = jnp.ones(7), jnp.asarray(x**2), jnp.asarray(x**3)
    np.testing.assert_allclose(first_derivative(square, x), 2 * x, atol=1e-12)
    np.testing.assert_allclose(first_derivative(jnp.asarray(x), x, ends=1), one, atol=1e-12)
    np.testing.assert_allclose(backward_derivative(jnp.asarray(x), x), one, atol=1e-12)
    np.testing.assert_allclose(second_derivative(square, x), 2 * one, atol=1e-10)
    ends = [0, -1]  # four points are exact for cubics
    np.testing.assert_allclose(second_derivative(cube, x)[np.array(ends)], 6 * x[ends], atol=1e-10)


def error(derivative, n, true, **options):
    x = np.linspace(0, 1, n)
    if "periodic" in derivative.__name__:
        x = np.arange(n) / n
        return np.abs(derivative(jnp.sin(2 * jnp.pi * x), 1 / n) - true(x)).max()
    return np.abs(derivative(jnp.sin(2 * jnp.pi * x), x, **options) - true(x)).max()


@pytest.mark.parametrize(
    ("derivative", "order", "accuracy", "options"),
    [
        (first_derivative, 1, 2, {}),
        (first_derivative, 1, 1, {"ends": 1}),
        (backward_derivative, 1, 1, {}),
        (second_derivative, 2, 2, {}),
        (periodic_first_derivative, 1, 2, {}),
        (periodic_second_derivative, 2, 2, {}),
    ],
)
def test_they_have_the_order_they_state(derivative, order, accuracy, options):
    wave = [np.cos, lambda x: -np.sin(x)][order - 1]
    true = lambda x: (2 * np.pi) ** order * wave(2 * np.pi * x)
    measured = np.log2(error(derivative, 81, true, **options) / error(derivative, 161, true, **options))
    assert measured > accuracy - 0.15


def test_any_axis_and_one_spacing_for_all():
    u = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 7)))
    for derivative in (first_derivative, second_derivative, backward_derivative):
        along = derivative(u, 0.3, axis=1)
        np.testing.assert_allclose(along[2, :, 3], derivative(u[2, :, 3], 0.3 * np.arange(6)), atol=1e-12)
        assert derivative(u.astype(jnp.float32), 0.3, axis=-1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: first_derivative(jnp.ones(2), 0.1), "at least 3"),
        (lambda: second_derivative(jnp.ones(3), 0.1), "at least 4"),
        (lambda: first_derivative(jnp.ones((4, 5)), np.arange(4.0), axis=1), r"\(5,\)"),
        (lambda: first_derivative(jnp.ones(4), 0.1, axis=1), "axis"),
        (lambda: first_derivative(jnp.ones(4), 0.1, ends=3), "ends"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        call()
