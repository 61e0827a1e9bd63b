"""Proximal operators minimise what they say, and have its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from optimand.core.errors import ArgumentError
from optimand.smooth import proximal

Y = np.array([0.9, -0.7, 0.15, 1.6, -0.2, 0.05])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def on_positive(value):
    return lambda x, *w: value(x, *w) if np.all(np.asarray(x) >= -1e-12) else np.inf


OPERATORS = {
    "lasso": (proximal.lasso, proximal.lasso_value, (0.5,)),
    "elastic_net": (proximal.elastic_net, proximal.elastic_net_value, (0.5, 0.3)),
    "ridge": (proximal.ridge, proximal.ridge_value, (0.6,)),
    "group_lasso": (proximal.group_lasso, proximal.group_lasso_value, (0.5,)),
    "log_barrier": (proximal.log_barrier, proximal.log_barrier_value, (0.4,)),
    "non_negative_lasso": (proximal.non_negative_lasso, on_positive(proximal.lasso_value), (0.5,)),
    "non_negative_elastic_net": (
        proximal.non_negative_elastic_net,
        on_positive(proximal.elastic_net_value),
        (0.5, 0.3),
    ),
    "non_negative_ridge": (proximal.non_negative_ridge, on_positive(proximal.ridge_value), (0.6,)),
}
STEP = 0.7


@pytest.mark.parametrize("name", OPERATORS)
def test_a_proximal_operator_minimises_its_function(name):
    """No small or large move away from it is better."""
    prox, value, weights = OPERATORS[name]
    x = np.asarray(prox(jnp.asarray(Y), STEP, *weights))
    total = lambda x: float(value(jnp.asarray(x), *weights)) + np.sum((x - Y) ** 2) / (2 * STEP)
    best = total(x)
    rng = np.random.default_rng(0)
    for scale in (1e-4, 1e-2, 0.3):
        for _ in range(6):
            assert total(x + scale * rng.normal(size=6)) >= best
            assert total(x * (1 + scale * rng.normal(size=6))) >= best - 1e-14
    polished = scipy.optimize.minimize(total, x, method="Nelder-Mead", options={"maxiter": 300})
    assert polished.fun >= best - 1e-9


@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_in_the_point_the_step_and_the_weights(name):
    prox, _, weights = OPERATORS[name]
    args = (jnp.asarray(Y), *(jnp.asarray(w) for w in (STEP, *weights)))
    direction = (jnp.cos(args[0]), *(jnp.asarray(0.3 * (i + 1)) for i in range(len(args) - 1)))

    @jax.jit
    def both(*args):
        moved = lambda h: prox(*(arg + h * d for arg, d in zip(args, direction, strict=True)))
        return (moved(1e-6) - moved(-1e-6)) / 2e-6, jax.jvp(prox, args, direction)[1]

    numeric, exact = both(*args)
    np.testing.assert_allclose(exact, numeric, atol=1e-8)


@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_are_finite_at_kinks_and_without_a_penalty(name):
    prox, _, weights = OPERATORS[name]
    gradient = jax.jit(
        jax.grad(lambda y, *w: jnp.sum(jnp.sin(prox(y, STEP, *w))), argnums=tuple(range(1 + len(weights))))
    )
    for y in (np.zeros(6), STEP * 0.5 * np.ones(6), -STEP * 0.5 * np.ones(6), 1e8 * np.ones(6), -1e8 * np.ones(6)):
        for w in (weights, tuple(0.0 for _ in weights)):
            for leaf in gradient(jnp.asarray(y), *map(jnp.asarray, w)):
                assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", ["lasso", "elastic_net", "ridge", "group_lasso"])
def test_without_a_penalty_it_is_the_identity_with_its_derivative(name):
    prox, _, weights = OPERATORS[name]
    for y in (np.zeros(3), np.array([1.0, -2.0, 0.0])):
        free = lambda y, prox=prox, weights=weights: prox(y, STEP, *(0.0 for _ in weights))
        np.testing.assert_array_equal(free(jnp.asarray(y)), y)
        np.testing.assert_allclose(jax.jacfwd(free)(jnp.asarray(y)), np.eye(3), atol=1e-12)


def test_the_log_barrier_loses_no_digits_far_from_it():
    """x (x - y) = step w; for y = -1e8 the difference of the two roots' terms would be round-off."""
    for y in (-1e8, -1.0, 0.0, 1.0, 1e8):
        x = float(proximal.log_barrier(jnp.asarray(y), 0.5, 0.4))
        assert x > 0
        assert abs(x * (x - y) - 0.2) <= 1e-12 + 1e-15 * max(1.0, y) ** 2


def test_trees_and_their_weights():
    y = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.3])}
    out = proximal.lasso(y, 1.0, {"a": 0.5, "b": 1.0})
    np.testing.assert_allclose(out["a"], [0.5, -1.5])
    np.testing.assert_allclose(out["b"], [0.0])
    np.testing.assert_allclose(proximal.lasso_value(y, {"a": 0.5, "b": 1.0}), 1.8)


def test_groups_along_an_axis():
    y = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    out = proximal.group_lasso(y, 1.0, jnp.array([1.0, 1.0]), axis=1)
    np.testing.assert_allclose(out, [[3 * 0.8, 4 * 0.8], [0.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(proximal.group_lasso_value(y, jnp.array([1.0, 2.0]), axis=1), 6.0)


def test_a_set_as_a_proximal_operator():
    prox = proximal.indicator(lambda y, upper: jnp.minimum(y, upper))
    np.testing.assert_array_equal(prox(jnp.array([1.0, 3.0]), 0.1, 2.0), [1.0, 2.0])
    np.testing.assert_array_equal(proximal.nothing(jnp.ones(2), 0.1), np.ones(2))


def test_a_set_that_is_no_function_is_refused(as_a_user):
    with pytest.raises(ArgumentError, match="projection"):
        proximal.indicator(3)  # pyright: ignore[reportArgumentType]


def test_single_precision_stays_single():
    for prox, _, weights in OPERATORS.values():
        assert prox(jnp.asarray(Y, jnp.float32), STEP, *weights).dtype == jnp.float32
