"""Rollouts: the same states and derivatives however they are checkpointed, and failures that keep what was finite."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import optimand as om
from optimand.physics import SimulationError, Simulator, SteadySimulator, rollout


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


class Pendulum(Simulator):
    """An angle and its velocity, pushed by a control; the state is a pair."""

    gravity: Float[Array, ""]

    def initial(self, angle):
        return jnp.asarray(angle), jnp.zeros(())

    def step(self, state, control=None):
        angle, velocity = state
        push = 0.0 if control is None else control
        velocity = velocity + 0.1 * (push - self.gravity * jnp.sin(angle))
        return angle + 0.1 * velocity, velocity


class Growth(Simulator):
    def initial(self):
        return jnp.ones(2)

    def step(self, state, control=None):
        return state * jnp.array([1.0, 1e60])


class Kepler(SteadySimulator):
    """E - e sin E = M, with the eccentricity a parameter and the mean anomaly a control."""

    eccentricity: Float[Array, ""]

    def residual(self, state, control=None):
        return state - self.eccentricity * jnp.sin(state) - control

    def guess(self, control=None):
        return control


PENDULUM = lambda: Pendulum(jnp.asarray(9.81))


@pytest.mark.parametrize("checkpoint", ["none", "step", "sqrt"])
@pytest.mark.parametrize(("steps", "every"), [(11, 1), (12, 3)])
def test_all_ways_of_checkpointing_give_the_same(checkpoint, steps, every):
    push = jnp.sin(jnp.arange(float(steps)))

    def by_hand(simulator, push):
        state, seen = simulator.initial(0.5), []
        for index in range(steps):
            state = simulator.step(state, push[index])
            if (index + 1) % every == 0:
                seen.append(state[0])
        return jnp.sum(jnp.stack(seen) ** 2) + state[1], jnp.stack(seen)

    def rolled(simulator, push):
        run = rollout(
            simulator, simulator.initial(0.5), push, every=every, checkpoint=checkpoint, observe=lambda s: s[0]
        )
        return jnp.sum(run.observations**2) + run.final[1], run.observations

    expected, slopes = jax.jit(jax.value_and_grad(by_hand, argnums=(0, 1), has_aux=True))(PENDULUM(), push)
    got, got_slopes = jax.jit(jax.value_and_grad(rolled, argnums=(0, 1), has_aux=True))(PENDULUM(), push)
    for a, b in zip(jax.tree.leaves((got, got_slopes)), jax.tree.leaves((expected, slopes)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_rollout_can_be_cut_and_gone_on_with():
    run = jax.jit(lambda state, steps: rollout(PENDULUM(), state, steps=steps).final, static_argnums=1)
    start = PENDULUM().initial(0.3)
    np.testing.assert_array_equal(run(run(start, 5), 5), run(start, 10))


def test_a_window_cuts_the_derivative_and_not_the_value():
    def final(angle, window):
        return rollout(PENDULUM(), PENDULUM().initial(angle), steps=6, window=window).final[0]

    value, slope = jax.value_and_grad(final)(0.3, None)
    cut_value, cut_slope = jax.value_and_grad(final)(0.3, 4)
    assert value == cut_value and slope != 0 and cut_slope == 0


def test_what_checkpointing_keeps_is_less():
    def kept(checkpoint):
        def final(state):
            return jnp.sum(rollout(Wide(), state, steps=64, checkpoint=checkpoint).final)

        _, backward = jax.eval_shape(lambda s: jax.vjp(final, s), jnp.ones(100))
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    class Wide(Simulator):
        def initial(self):
            return jnp.ones(100)

        def step(self, state, control=None):
            for _ in range(5):
                state = jnp.sin(jnp.exp(-(state**2)))
            return state

    # States are 100 numbers; some more for flags. "none" keeps several such arrays a step.
    none, step, root = kept("none"), kept("step"), kept("sqrt")
    assert step < 1.5 * 64 * 100 < none / 2
    assert root < 1.5 * 2 * 8 * 100


def test_a_state_that_is_not_finite_is_not_returned():
    run = rollout(Growth(), Growth().initial(), steps=8, every=2)
    np.testing.assert_array_equal(run.finite, [True, True, False, False])
    np.testing.assert_allclose(run.final, [1, 1e300])
    with pytest.raises(SimulationError, match="after step 6") as caught:
        run.require_finite()
    assert caught.value.trajectory is run
    assert rollout(Growth(), Growth().initial(), steps=2).require_finite().finite.all()


def test_a_steady_state_and_its_implicit_derivative():
    solve = jax.jit(lambda e, m: Kepler(e).solve(m))
    e, m = jnp.asarray(0.4), jnp.asarray(1.1)
    angle = solve(e, m)
    np.testing.assert_allclose(angle - 0.4 * jnp.sin(angle), 1.1, atol=1e-9)
    slopes = jax.jit(jax.grad(solve, argnums=(0, 1)))(e, m)
    below = 1 - 0.4 * jnp.cos(angle)
    np.testing.assert_allclose(slopes, [jnp.sin(angle) / below, 1 / below], rtol=1e-7)
    with jax.enable_x64(False):
        np.testing.assert_allclose(Kepler(jnp.float32(0.4)).solve(jnp.float32(1.1)), angle, rtol=1e-5)


def test_defaults_of_the_contract():
    pendulum = PENDULUM()
    state = pendulum.initial(0.1)
    assert pendulum.observe(state) is state and pendulum.controls() is None and pendulum.invariants(state) == {}
    assert pendulum.safe_dt(state) == np.inf
    assert eqx.tree_equal(
        jax.vmap(lambda a: pendulum.step(pendulum.initial(a)))(jnp.ones(3))[0][1],
        pendulum.step(pendulum.initial(1.0))[0],
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 10, "every": 3}, "divide"),
        ({"steps": 2, "checkpoint": "log"}, "checkpoint"),
        ({"steps": 2, "window": 0}, "window"),
        ({"steps": 2, "controls": np.ones(3)}, "controls for 3"),
        ({"controls": (np.ones(3), np.ones(2))}, "first axis"),
        ({"controls": 1.0}, "first axis"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        rollout(PENDULUM(), PENDULUM().initial(0.1), **options)
