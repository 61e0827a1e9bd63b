"""Smoke past obstacles: divergence, walls, what is exact, derivatives, and the systems that it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.linear import CG, Multigrid, SparseLU
from optimand.physics import Smoke, ball_mask, rollout, smoke_systems


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def puff(shape, strength=5.0):
    centre = np.full(len(shape), 0.5)
    centre[-1] = 0.2
    return strength * ball_mask(shape, 0.15, centre)


def solid_faces(solid):
    """For each axis, the faces that a solid cell has."""
    for axis in range(solid.ndim):
        padded = np.pad(solid, [(1, 1) if i == axis else (0, 0) for i in range(solid.ndim)])
        yield np.take(padded, range(padded.shape[axis] - 1), axis) | np.take(padded, range(1, padded.shape[axis]), axis)


@pytest.mark.parametrize("shape, boundary", [pytest.param((12, 16), "air", marks=pytest.mark.thorough), ((12, 16), "solid"), pytest.param((6, 6, 8), "solid", marks=pytest.mark.thorough)])
def test_the_flow_has_no_divergence_and_does_not_cross_walls(shape, boundary):
    solid = np.asarray(ball_mask(shape, 0.2))
    smoke = Smoke(shape, solid, source=puff(shape), boundary=boundary, solver=CG(1e-12))
    state = rollout(smoke, smoke.initial(), steps=6).final
    _, b = smoke.system(state)
    assert smoke.invariants(state)["divergence"] <= 1e-10 and jnp.linalg.norm(b) > 0.01
    for axis, (part, faces) in enumerate(zip(state.velocity, solid_faces(solid), strict=True)):
        assert not np.any(np.asarray(part)[faces]) and jnp.any(part != 0)
        ends = jnp.take(part, jnp.array([0, -1]), axis)
        assert bool(jnp.any(ends != 0)) == (boundary == "air")
    assert not jnp.any(state.density[solid]) and jnp.all(state.density >= 0)


def test_projection_is_to_the_tolerance_of_the_solver():
    left = []
    for rtol in (1e-2, 1e-6):
        smoke = Smoke((16, 16), source=puff((16, 16)), solver=CG(rtol))
        state = smoke.step(smoke.initial())
        _, b = smoke.system(smoke.initial())
        left.append(float(jnp.linalg.norm(smoke.divergence(state)) * smoke.h / jnp.linalg.norm(b)))
    assert 1e-4 < left[0] <= 1e-2 and left[1] <= 1e-6


def test_any_solver_gives_the_same_flow():
    shape, solid = (12, 12), ball_mask((12, 12), 0.2)
    states = []
    solvers = {"grid": CG(1e-12), "stencil": CG(1e-12, preconditioner=Multigrid()), "sparse": SparseLU()}
    for form, solver in solvers.items():
        smoke = Smoke(shape, solid, source=puff(shape), solver=solver, form=form)
        states.append(rollout(smoke, smoke.initial(), steps=3).final)
    for state in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), state, states[0])


# What is exact.


def test_smoke_that_fills_a_closed_box_stays_at_rest():
    smoke = Smoke((8, 10), boundary="solid", solver=CG(1e-13))
    state = rollout(smoke, smoke.initial(2.0), steps=3).final
    assert max(float(jnp.max(jnp.abs(part))) for part in state.velocity) < 1e-12
    np.testing.assert_allclose(state.density, 2.0)
    height = (jnp.arange(10) + 0.5) * smoke.h
    hydrostatic = smoke.h / smoke.dt * state.pressure - 2.0 * height  # p = g s z + constant
    np.testing.assert_allclose(hydrostatic, hydrostatic[0, 0], atol=1e-9)


def test_a_uniform_wind_carries_smoke_by_whole_cells_and_a_uniform_force_makes_one():
    smoke = Smoke((10, 10), buoyancy=0.0, dt=0.05)
    density = jnp.zeros((10, 10)).at[2:5, 3:6].set(jax.random.uniform(jax.random.key(0), (3, 3)))
    wind = (jnp.full((11, 10), 4.0), jnp.full((10, 11), -2.0))  # two cells a step, and minus one
    state = smoke.step(smoke.initial(density, wind))
    np.testing.assert_allclose(state.density, jnp.roll(density, (2, -1), (0, 1)), atol=1e-12)
    pushed = smoke.step(smoke.initial(), jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(pushed.velocity[0], 0.15, atol=1e-12)
    np.testing.assert_allclose(pushed.velocity[1], 0.05, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 12), (6, 6, 8)])
def test_a_mirror_image_stays_one(shape):
    smoke = Smoke(shape, ball_mask(shape, 0.15), source=puff(shape), solver=CG(1e-12))
    state = rollout(smoke, smoke.initial(), steps=5).final
    np.testing.assert_allclose(state.density, state.density[::-1], atol=1e-9)
    np.testing.assert_allclose(state.velocity[0], -state.velocity[0][::-1], atol=1e-9)
    assert float(jnp.sum(state.velocity[-1])) > 0  # upwards


@pytest.mark.thorough
def test_in_a_closed_box_mass_is_lost_at_first_order_only_and_no_density_is_made():
    """Interpolation at points moved by v dt is conservative up to the size of the cells; a finer grid keeps the mass better."""
    lost = []
    for n in (16, 32):
        x = (jnp.arange(n) + 0.5) / n
        bump = jnp.exp(-40 * ((x[:, None] - 0.5) ** 2 + (x - 0.4) ** 2))
        smoke = Smoke((n, n), boundary="solid", dt=0.5 / n)
        start = smoke.initial(bump)
        frames = rollout(smoke, start, steps=n).observations
        mass = jnp.sum(frames.density, (1, 2)) / n**2
        lost.append(float(jnp.max(jnp.abs(mass / smoke.invariants(start)["mass"] - 1))))
        assert jnp.all(frames.density >= 0) and jnp.max(frames.density) <= jnp.max(bump)
    assert lost[0] < 0.05 and lost[1] < 0.7 * lost[0]


def test_the_source_adds_its_mass():
    smoke = Smoke((12, 12), source=puff((12, 12)), boundary="solid", buoyancy=0.0)
    state = rollout(smoke, smoke.initial(), steps=4).final
    added = 4 * smoke.dt * jnp.sum(smoke.source) * smoke.h**2
    np.testing.assert_allclose(smoke.invariants(state)["mass"], added, rtol=1e-12)


# Obstacles that move.


def test_an_obstacle_that_moves_takes_its_velocity_to_its_faces():
    shape, speed = (12, 12), jnp.array([0.8, -0.4])
    solid = lambda time: ball_mask(shape, 0.2, jnp.array([0.4, 0.6]) + speed * time)
    smoke = Smoke(shape, solid, motion=lambda time, points: jnp.broadcast_to(speed, points.shape), solver=CG(1e-12))
    state = rollout(smoke, smoke.initial(), steps=4).final
    for axis, faces in enumerate(solid_faces(np.asarray(solid(state.time)))):
        np.testing.assert_allclose(np.asarray(state.velocity[axis])[faces], speed[axis])
    assert smoke.invariants(state)["divergence"] < 1e-10


# Derivatives.


def test_derivatives_are_those_of_differences():
    shape = (10, 10)

    def height(buoyancy, strength):
        smoke = Smoke(shape, ball_mask(shape, 0.15), source=strength * puff(shape, 1.0), buoyancy=buoyancy, solver=CG(1e-13))
        density = rollout(smoke, smoke.initial(), steps=3).final.density
        return jnp.sum(density * jnp.arange(10))

    at, step = (jnp.asarray(1.0), jnp.asarray(5.0)), 1e-5
    value = jax.jit(height)
    for number, gradient in enumerate(jax.jit(jax.grad(height, (0, 1)))(*at)):
        moved = [[x + sign * step * (i == number) for i, x in enumerate(at)] for sign in (1, -1)]
        np.testing.assert_allclose(gradient, (value(*moved[0]) - value(*moved[1])) / (2 * step), rtol=1e-6)


# Its systems.


def test_its_systems_are_those_that_its_steps_solve():
    shape, solid = (10, 12), ball_mask((10, 12), 0.2)
    systems = smoke_systems(shape, 6, 3, solid, source=puff(shape), solver=CG(1e-12))
    smoke = Smoke(shape, solid, source=puff(shape), solver=CG(1e-12))
    frames = rollout(smoke, smoke.initial(), steps=6, every=3).observations
    assert len(systems) == 2
    for (grid, b), pressure in zip(systems, frames.pressure, strict=True):
        grid.check(b)
        assert jnp.any(b != 0)
        np.testing.assert_allclose(grid.mv(pressure.ravel()), b, atol=1e-10)


def test_systems_of_moving_and_enclosed_flow_have_solutions_and_keys_draw_others():
    shape = (8, 8)
    turning = lambda time: om.physics.box_mask(shape, (0.5, 0.2), angle=8.0 * time)
    systems = smoke_systems(shape, 4, 2, turning, boundary="solid")
    assert jnp.any(systems[0][0].solid != systems[1][0].solid) and systems[0][0].enclosed_parts == 1
    for grid, b in systems:
        grid.check(b)
    drawn = [smoke_systems(shape, 2, 2, key=jax.random.key(seed))[0][1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert jnp.any(drawn[0] != drawn[2])


BAD = {
    "dt": lambda: Smoke((4, 4), dt=0.0),
    "form": lambda: Smoke((4, 4), form="dense"),
    "boundary": lambda: Smoke((4, 4), boundary="open"),
    "source": lambda: Smoke((4, 4), source=jnp.ones(4)),
    "solid": lambda: Smoke((4, 4), np.zeros((4, 5), bool)),
    "buoyancy": lambda: Smoke((4, 4), buoyancy=jnp.ones(2)),
    "density.*shape": lambda: Smoke((4, 4)).initial(jnp.ones(4)),
    r"density.*\(1, 2\)": lambda: Smoke((4, 4)).initial(jnp.zeros((4, 4)).at[1, 2].set(jnp.nan)),
    "2 components": lambda: Smoke((4, 4)).initial(velocity=(jnp.ones((5, 4)),)),
    r"velocity\[1\]": lambda: Smoke((4, 4)).initial(velocity=(jnp.ones((5, 4)), jnp.ones((4, 4)))),
    "every": lambda: smoke_systems((4, 4), every=0),
    "steps": lambda: smoke_systems((4, 4), 5, 10),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
