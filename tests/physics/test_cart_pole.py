"""The cart-pole keeps its energy, agrees with its Lagrangian, and is balanced by its regulator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.physics import CartPole, CartPoleState, lqr, rollout

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def test_energy_is_kept_to_fourth_order_where_no_force_acts():
    def drift(dt):
        pole = CartPole(dt=dt)
        start = pole.initial(angle=0.5, velocity=0.3)
        end = rollout(pole, start, steps=round(2.0 / dt)).final
        return abs(float(pole.invariants(end)["energy"] - pole.invariants(start)["energy"]))

    coarse, fine = drift(0.04), drift(0.02)
    assert coarse < 1e-4
    assert coarse / fine > 12


def test_accelerations_are_those_of_the_lagrangian():
    pole = CartPole(cart_mass=1.3, pole_mass=0.4, half_length=0.7)
    force = 2.5

    def lagrangian(q, v):  # q = (x, angle); the pole is a rod, whose energy is integrated along its length
        along = (np.arange(200) + 0.5) / 200 * 2 * pole.half_length
        vx = v[0] + along * v[1] * jnp.cos(q[1])
        vy = -along * v[1] * jnp.sin(q[1])
        kinetic = 0.5 * pole.cart_mass * v[0] ** 2 + 0.5 * pole.pole_mass * jnp.mean(vx**2 + vy**2)
        return kinetic - pole.pole_mass * pole.gravity * jnp.mean(along * jnp.cos(q[1]))

    q, v = jnp.array([0.2, 0.9]), jnp.array([-0.5, 1.7])
    mass = jax.hessian(lagrangian, 1)(q, v)
    coriolis = jax.jacobian(jax.grad(lagrangian, 1), 0)(q, v) @ v
    expected = jnp.linalg.solve(mass, jnp.array([force, 0.0]) + jax.grad(lagrangian, 0)(q, v) - coriolis)
    found = pole.acceleration(CartPoleState(q[0], v[0], q[1], v[1]), force)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_regulator_balances_and_nothing_else_does():
    pole, gain = CartPole(), lqr(CartPole())

    def simulate(gain):
        step = lambda state, _: (pole.step(state, -gain @ state.vector()), state.angle)
        return jax.lax.scan(step, pole.initial(position=0.5, angle=0.2), length=300)

    end, angles = jax.jit(simulate)(gain)
    assert jnp.max(jnp.abs(end.vector())) < 0.1
    assert jnp.max(jnp.abs(angles)) < 0.5
    assert jnp.max(jnp.abs(jax.jit(simulate)(0 * gain)[1])) > 1.5


def test_bad_numbers_are_refused_by_name():
    for name in ("cart_mass", "pole_mass", "half_length", "gravity", "dt"):
        with pytest.raises(ArgumentError, match=name):
            CartPole(**{name: 0.0})
    with pytest.raises(ArgumentError, match="state_cost"):
        lqr(CartPole(), np.eye(3))
    with pytest.raises(ArgumentError, match="control_cost"):
        lqr(CartPole(), control_cost=-1.0)
