"""FIRE as published: what the power is that of, and a packing relaxed at the usual time steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.physics import bidisperse
from optimand.smooth import FIRE


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def steps_of(method, problem, guess, count):
    step = lambda state, _: (method.step(problem, state, key=None),) * 2
    return jax.lax.scan(step, method.init(problem, guess, key=None), length=count)[1]


def valley(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_after_each_step_the_velocity_points_downhill_where_the_step_has_led_or_is_zero():
    states = steps_of(FIRE(time_step=0.01, max_time_step=0.05), om.Minimize(valley), jnp.zeros(4), 300)
    power = -np.sum(states.gradient * states.velocity, axis=1)
    at_rest = np.all(states.velocity == 0, axis=1)
    assert at_rest.any() and not at_rest.all()
    assert np.all(power[~at_rest] > 0)
    assert np.all(states.positive[at_rest] == 0)


def test_without_turning_it_is_velocity_verlet_which_is_exact_for_a_constant_force():
    method = FIRE(alpha=1e-300, time_step=0.1, max_time_step=0.1)
    states = steps_of(method, om.Minimize(lambda x: -jnp.sum(x)), jnp.zeros(2), 10)
    np.testing.assert_allclose(states.x[-1], 0.5 * (10 * 0.1) ** 2, rtol=1e-12)
    np.testing.assert_allclose(states.velocity[-1], 10 * 0.1, rtol=1e-12)


def test_a_packing_of_soft_discs_relaxes_at_the_usual_time_steps():
    discs = bidisperse(64, 0.6, packing_fraction=0.98)
    start = jax.random.uniform(jax.random.key(0), (64, 2)) * discs.side
    method = FIRE(time_step=0.1, max_time_step=0.4, tolerance=1e-10)
    assert om.solve(om.Minimize(discs.energy), method, start).result == om.Result.converged
