"""Any Optax transformation, and Adam, as methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimand as om
from optimand.smooth import Adam, Optax


@pytest.mark.parametrize(
    "tx",
    [optax.polyak_sgd(max_learning_rate=0.5), optax.lbfgs(memory_size=3)],
    ids=["polyak", "lbfgs"],
)
def test_transformations_that_ask_for_the_value_get_it(tx):
    problem = om.Minimize(lambda x: jnp.sum((x - 1) ** 2 * jnp.array([1.0, 2.0])))
    solution = om.solve(problem, Optax(tx, tolerance=1e-3), jnp.zeros(2), budget=om.Budget(steps=300))
    np.testing.assert_allclose(solution.value, 1.0, atol=2e-2)
    assert solution.counters.gradients >= solution.steps


def regression(batch_size=None, poison=False):
    rows = jax.random.normal(jax.random.key(1), (64, 3))
    truth = jnp.array([1.0, -2.0, 0.5])
    poisoned = jnp.zeros(64, bool).at[5].set(poison)

    def loss(model, example):
        row, target, poisoned = example
        return jnp.where(poisoned & jnp.any(model["w"] != 0), jnp.nan, (row @ model["w"] - target) ** 2)

    return om.Fit(loss, {"w": jnp.zeros(3)}, (rows, rows @ truth, poisoned), batch_size=batch_size), truth


def test_adam_fits_a_model_on_batches():
    problem, truth = regression(batch_size=8)
    solution = om.solve(problem, Adam(0.1), key=jax.random.key(0), budget=om.Budget(steps=400))
    np.testing.assert_allclose(solution.value["w"], truth, atol=1e-2)
    assert solution.counters.samples == 8 * 401
    assert solution.counters.gradients == 401


def test_steps_with_nonfinite_gradients_are_skipped_and_counted():
    problem, truth = regression(batch_size=8, poison=True)
    solve = lambda method: om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=400), throw=False)
    assert solve(Adam(0.1)).result == om.Result.nonfinite
    solution = solve(Adam(0.1, skip_nonfinite=True))
    np.testing.assert_allclose(solution.value["w"], truth, atol=1e-2)
    assert 10 < solution.history["skipped"][-1] < 120  # one batch in eight holds the poisoned example


def test_a_gradient_that_stays_nonfinite_ends_the_solve():
    problem = om.Minimize(lambda x: jnp.sum(jnp.where(x < 0.5, x**2 - 3 * x, jnp.nan)))
    solution = om.solve(
        problem, Optax(optax.sgd(0.1), skip_nonfinite=True, skips_in_a_row=3), jnp.zeros(2), throw=False
    )
    assert solution.result == om.Result.nonfinite
    assert solution.steps < 20


def test_an_eager_solve_compiles_adam_once():
    problem = om.Minimize(lambda x: jnp.sum((x - 1) ** 2))
    first = om.solve(problem, Adam(0.1), jnp.zeros(2), budget=om.Budget(steps=20))
    again = om.solve(problem, Adam(0.1), jnp.zeros(2), budget=om.Budget(steps=20))
    assert again.stats["compile_seconds"] < 0.1 * first.stats["compile_seconds"]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Optax(optax.sgd(1.0), tolerance=-1.0), "tolerance"),
        (lambda: Optax(3.0), "tx"),
        (lambda: Adam(-1.0), "learning_rate"),
        (lambda: Adam(b1=1.0), "b1"),
        (lambda: Adam(clip=0.0), "clip"),
        (lambda: Adam(skips_in_a_row=0), "skips_in_a_row"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
