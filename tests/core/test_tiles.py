"""Batches of solves in tiles are the solves one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand import smooth
from optimand.core import tiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 4)


def well(x, target, weight):
    return jnp.sum((x - target) ** 4) + weight * jnp.sum(x**2)


def solved(target, weight, guess=None):
    guess = jnp.zeros(target.shape) if guess is None else guess
    return om.solve(om.Minimize(well, target, weight), smooth.LBFGS(), guess, throw=False)


@pytest.mark.parametrize("size", [1, 4, 5, 8, 11])
def test_a_batch_is_its_instances(size):
    targets = jax.random.normal(jax.random.key(size), (size, 3))
    batch = jax.jit(jax.vmap(solved, (0, None)))(targets, 0.1)
    single = jax.jit(solved)
    alone = [single(target, 0.1) for target in targets]
    np.testing.assert_allclose(batch.value, np.stack([one.value for one in alone]), atol=1e-4)
    np.testing.assert_array_equal(batch.result.code, [one.result.code for one in alone])
    assert batch.steps.shape == (size,)
    assert batch.history["value"].shape == (size, 128)
    assert jnp.all(batch.steps > 0)


@pytest.mark.parametrize("order", [(9, 2), (2, 9)])
def test_batches_of_batches(order):
    targets = jax.random.normal(jax.random.key(0), (*order, 3))
    weights = jnp.linspace(0.1, 1, order[0])
    batch = jax.vmap(jax.vmap(solved, (0, None)))(targets, weights)
    single = jax.jit(lambda target, weight: solved(target, weight).value)
    rows = [[single(target, weight) for target in row] for row, weight in zip(targets, weights, strict=True)]
    np.testing.assert_allclose(batch.value, np.array(rows), atol=1e-4)


def test_an_outer_batch_of_short_ones_is_made_in_tiles():
    targets = jnp.zeros((9, 2, 3))
    loops = str(jax.make_jaxpr(jax.vmap(jax.vmap(solved, (0, None)), (0, None)))(targets, 0.1))
    assert "length=3" in loops


def test_batches_along_other_axes_and_with_constants():
    guesses = jax.random.normal(jax.random.key(1), (3, 7))
    target = jnp.array([1.0, 0.5, -1.0])
    found = jax.vmap(lambda guess: solved(target, 0.1, guess).value, in_axes=1, out_axes=1)(guesses)
    np.testing.assert_allclose(found, np.tile(found[:, :1], 7), atol=2e-3)


def test_gradients_of_a_batch():
    targets = 1.0 + jnp.arange(10.0)[:, None] / 10 * jnp.ones(2)
    total = lambda targets: jnp.sum(jnp.sin(jax.vmap(lambda target: solved(target, 0.3).value)(targets)))
    one = lambda target: jnp.sum(jnp.sin(solved(target, 0.3).value))
    gradient, single = jax.jit(jax.grad(total))(targets), jax.jit(jax.grad(one))
    np.testing.assert_allclose(gradient, [single(target) for target in targets], rtol=1e-3)
    forward = jax.jvp(total, (targets,), (jnp.ones_like(targets),))[1]
    np.testing.assert_allclose(forward, jnp.sum(gradient), rtol=1e-4)


def test_what_a_problem_closes_over_may_be_batched():
    def solve(scale):
        problem = om.Minimize(lambda x: jnp.sum((scale * x - 1) ** 2))
        return om.solve(problem, smooth.LBFGS(), jnp.zeros(2), throw=False).value

    scales = jnp.arange(1.0, 7.0)
    np.testing.assert_allclose(jax.vmap(solve)(scales), 1 / np.stack([scales, scales], 1), rtol=1e-4)


def test_random_methods_draw_the_same_numbers():
    rows = jax.random.normal(jax.random.key(4), (20, 3))
    problem = om.Fit(lambda x, row: (row @ x - 1) ** 2, jnp.zeros(3), rows, batch_size=5)

    def solve(key):
        return om.solve(problem, smooth.Adam(), key=key, budget=om.Budget(steps=20), throw=False).value

    keys, single = jax.random.split(jax.random.key(3), 6), jax.jit(solve)
    found = jax.vmap(solve)(keys)
    np.testing.assert_allclose(found, [single(key) for key in keys], rtol=1e-5)
    assert len(np.unique(found[:, 0])) == 6


def test_failures_stay_with_their_instance():
    def solve(target):
        problem = om.Minimize(lambda x: jnp.sum(jnp.where(target > 2, jnp.nan, 1.0) * (x - target) ** 2))
        return om.solve(problem, smooth.LBFGS(), jnp.zeros(1), throw=False)

    found = jax.vmap(solve)(jnp.arange(5.0))
    assert [str(om.Result(code)) for code in found.result.code] == ["converged"] * 3 + ["nonfinite"] * 2


def test_unrolled_solves_are_differentiated_as_before():
    def solve(target):
        problem, adjoint = om.Minimize(lambda x: (x - target) ** 2), om.Unrolled(forward=True)
        return om.solve(
            problem, smooth.GradientDescent(0.2), jnp.zeros(()), adjoint=adjoint, budget=om.Budget(steps=40), throw=False
        ).value

    slopes = jax.vmap(jax.jacfwd(solve))(jnp.arange(1.0, 7.0))
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-3)


def test_several_devices_share_a_whole_batch(monkeypatch):
    monkeypatch.setattr(jax, "device_count", functools.partial(int, 2))
    text = str(jax.make_jaxpr(jax.vmap(solved, (0, None)))(jnp.zeros((9, 3)), 0.1))
    assert "custom_vmap" not in text and "length=3" not in text


def test_instances_of_a_named_axis_can_speak_with_each_other():
    def solve(target):
        problem = om.Minimize(lambda x: jnp.sum((x - jax.lax.pmean(target, "crowd")) ** 2))
        return om.solve(problem, smooth.LBFGS(), jnp.zeros(()), throw=False).value

    np.testing.assert_allclose(jax.vmap(solve, axis_name="crowd")(jnp.arange(7.0)), 3.0, rtol=1e-5)


def test_objectives_may_print_and_call_back(capfd):
    def fn(x, target):
        jax.debug.print("looked at {}", target, ordered=False)
        return jnp.sum((x - target) ** 2)

    def solve(target):
        return om.solve(om.Minimize(fn, target), smooth.LBFGS(), jnp.zeros(()), throw=False).value

    targets = jnp.arange(6.0)
    np.testing.assert_allclose(jax.vmap(solve)(targets), targets, atol=1e-5)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert all(f"looked at {target}" in printed for target in targets)


@pytest.mark.parametrize("adjoint", [om.OneStep(), om.Detached(), om.Implicit()])
def test_a_guess_that_is_differentiated_has_no_influence(adjoint):
    def total(guess):
        return jnp.sum(om.solve(om.Minimize(lambda x: jnp.sum((x - 1.0) ** 2)), smooth.LBFGS(), guess, adjoint=adjoint).value)

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros(3)), 0)
