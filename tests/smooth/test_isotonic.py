"""Isotonic regression is what SciPy finds, has the derivatives of block averages, and sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from optimand.core.errors import ArgumentError
from optimand.smooth import isotonic

Y = np.array([0.3, 1.2, -0.4, 0.9, 0.8, 2.0, 1.1, 3.0])
WEIGHTS = np.array([1.03, 0.52, 1.87, 1.44, 0.71, 1.23, 2.91, 0.26])  # with no tie in what is sorted or pooled


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("increasing", [True, False])
def test_a_batch_is_that_of_scipy_one_by_one(increasing):
    rng = np.random.default_rng(0)
    y, weights = rng.normal(size=(20, 13)) + np.linspace(0, 2, 13), rng.uniform(0.1, 2, size=(20, 13))
    fit = jax.jit(jax.vmap(lambda y, w: isotonic.isotonic_regression(y, w, increasing=increasing)))
    expected = [
        scipy.optimize.isotonic_regression(row, weights=w, increasing=increasing).x for row, w in zip(y, weights, strict=True)
    ]
    np.testing.assert_allclose(fit(y, weights), expected, atol=1e-12)


def test_sorted_numbers_stay_and_reversed_ones_become_their_mean():
    y = jnp.arange(5.0)
    np.testing.assert_array_equal(isotonic.isotonic_regression(y), y)
    np.testing.assert_allclose(isotonic.isotonic_regression(y[::-1]), 2.0)
    np.testing.assert_array_equal(isotonic.isotonic_regression(jnp.zeros((0,))), [])
    np.testing.assert_array_equal(isotonic.isotonic_regression(jnp.ones((1,))), [1.0])


def test_bounds_hold_in_both_directions():
    for increasing in (True, False):
        free = isotonic.isotonic_regression(jnp.asarray(Y), increasing=increasing)
        bounded = isotonic.isotonic_regression(jnp.asarray(Y), increasing=increasing, lower=0.5, upper=1.0)
        np.testing.assert_allclose(bounded, jnp.clip(free, 0.5, 1.0))


FUNCTIONS = {
    "regression": lambda y, w: isotonic.isotonic_regression(y, w),
    "falling": lambda y, w: isotonic.isotonic_regression(y, w, increasing=False, lower=0.0),
    "kl": lambda y, w: isotonic.isotonic_kl(y, w),
    "permutahedron": lambda y, w: isotonic.permutahedron(y, w),
    "permutahedron kl": lambda y, w: isotonic.permutahedron(y, w, loss="kl"),
    "soft sort": lambda y, w: isotonic.soft_sort(y * w, 0.7),
    "soft rank": lambda y, w: isotonic.soft_rank(y * w, 0.7, increasing=False),
    "soft rank kl": lambda y, w: isotonic.soft_rank(y * w, 0.7, loss="kl"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_finite_differences(name):
    function = FUNCTIONS[name]
    direction = np.cos(np.arange(8.0)), np.sin(np.arange(8.0))

    @jax.jit
    def derivatives(y, w):
        moved = lambda h: function(y + h * direction[0], w + h * direction[1])
        _, forward = jax.jvp(function, (y, w), direction)
        cotangent = jnp.cos(2.0 + jnp.arange(8.0))
        pulled = jax.vjp(function, y, w)[1](cotangent)
        gap = forward @ cotangent - sum(a @ b for a, b in zip(pulled, direction, strict=True))
        return (moved(1e-6) - moved(-1e-6)) / 2e-6, forward, gap

    numeric, forward, gap = derivatives(jnp.asarray(Y), jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(forward, numeric, atol=1e-8)
    assert abs(gap) < 1e-12


def test_the_entropic_problem_is_solved():
    """Its value is the least that SLSQP finds with the same constraints."""
    s, w = Y, np.linspace(0.5, -0.5, 8)
    value = lambda v: np.sum(np.exp(s - v)) + np.exp(w) @ v
    order = scipy.optimize.LinearConstraint(np.diff(np.eye(8), axis=0), 0, np.inf)
    found = scipy.optimize.minimize(value, np.zeros(8), constraints=order, method="SLSQP", tol=1e-14)
    ours = np.asarray(isotonic.isotonic_kl(jnp.asarray(s), jnp.asarray(w)))
    assert np.all(np.diff(ours) >= -1e-12)
    np.testing.assert_allclose(ours, found.x, atol=1e-5)
    assert value(ours) <= found.fun + 1e-10


@pytest.mark.parametrize("loss", ["l2", "kl"])
def test_little_regularization_sorts_and_ranks_exactly(loss):
    x = jnp.asarray(Y)
    for increasing in (True, False):
        sign = 1 if increasing else -1
        np.testing.assert_allclose(
            isotonic.soft_sort(x, 1e-3, increasing=increasing, loss=loss), sign * np.sort(sign * Y), atol=1e-9
        )
        ranks = 1 + np.argsort(np.argsort(sign * Y))
        np.testing.assert_allclose(isotonic.soft_rank(x, 1e-3, increasing=increasing, loss=loss), ranks, atol=1e-9)


def test_much_regularization_makes_all_entries_the_mean_and_none_changes_the_sum():
    x = jnp.asarray(Y)
    np.testing.assert_allclose(isotonic.soft_sort(x, 1e4), Y.mean(), atol=1e-3)
    np.testing.assert_allclose(isotonic.soft_rank(x, 1e4), 4.5, atol=1e-3)
    np.testing.assert_allclose(isotonic.soft_sort(x, 0.5).sum(), Y.sum(), atol=1e-12)
    np.testing.assert_allclose(isotonic.soft_rank(x, 0.5, loss="kl").sum(), 36.0, atol=1e-9)


def test_single_precision_stays_single():
    y = jnp.asarray(Y, jnp.float32)
    assert isotonic.isotonic_regression(y).dtype == isotonic.soft_rank(y, loss="kl").dtype == jnp.float32


def test_bad_arguments_are_named(as_a_user):
    y = jnp.asarray(Y)
    with pytest.raises(ArgumentError, match="weights"):
        isotonic.isotonic_regression(y, -y)
    with pytest.raises(ArgumentError, match="weights"):
        isotonic.isotonic_regression(y, jnp.ones(3))
    with pytest.raises(ArgumentError, match="lower"):
        isotonic.isotonic_regression(y, lower=1.0, upper=0.0)
    with pytest.raises(ArgumentError, match="loss"):
        isotonic.permutahedron(y, y, loss="l1")
    with pytest.raises(ArgumentError, match="regularization"):
        isotonic.soft_sort(y, 0.0)
