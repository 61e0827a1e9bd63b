"""Diffusion and sorption: against SciPy, against the mass balance, and its derivatives against differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import optimand as om
from optimand.physics import DiffusionSorption, rollout


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def reference(times, u0, cells):
    """The same finite volumes, written again in NumPy, with SciPy's implicit Runge-Kutta method."""
    diffusion, porosity, density, sorption, exponent = 5e-4, 0.29, 2880.0, 3.5e-4, 0.874
    h = 1 / cells

    def rate(t, u):
        factor = 1 + (1 - porosity) / porosity * density * sorption * exponent * (u + 1e-6) ** (exponent - 1)
        wall = u[-1] * (2 * diffusion / h) / (1 + 2 * diffusion / h)
        slopes = np.concatenate([[2 * (u[0] - 1) / h], np.diff(u) / h, [2 * (wall - u[-1]) / h]])
        return diffusion / factor * np.diff(slopes) / h

    band = np.abs(np.subtract.outer(np.arange(cells), np.arange(cells))) <= 1
    start = np.full(cells, u0)
    return solve_ivp(rate, (0, times[-1]), start, "Radau", times, rtol=1e-9, atol=1e-11, jac_sparsity=band).y.T


@pytest.mark.parametrize("u0", [0.01, 0.2])
def test_it_agrees_with_scipy(u0):
    soil = DiffusionSorption(cells=64)
    u = eqx.filter_jit(lambda soil, u0: rollout(soil, soil.initial(u0), steps=30).observations.u)(soil, jnp.asarray(u0))
    np.testing.assert_allclose(u, reference(5.0 * np.arange(1, 31), u0, 64), atol=1e-6)


def test_the_mass_grows_by_what_flows_in():
    soil = DiffusionSorption(cells=32, dt=1.0)

    @jax.jit
    def run():
        observe = lambda state: (soil.invariants(state)["mass"], soil.inflow(state.u))
        later = rollout(soil, soil.initial(0.1), steps=20).final
        return rollout(soil, later, steps=40, observe=observe).observations

    mass, inflow = run()
    gained = (inflow[:-1] + inflow[1:])[1:-1] / 2  # the trapezoidal rule
    np.testing.assert_allclose(np.diff(mass)[1:-1], gained, rtol=1e-3)
    assert inflow.min() > 0


def test_derivatives_with_respect_to_parameters_and_initial_value():
    soil = DiffusionSorption(cells=16, early_substeps=4, first_substeps=20)

    @jax.jit
    def loss(theta):
        changed = eqx.tree_at(
            lambda s: (s.diffusion, s.exponent, s.left, s.porosity),
            soil,
            (5e-4 * theta[0], 0.874 * theta[1], theta[2], 0.29 * theta[3]),
        )
        return jnp.sum(rollout(changed, changed.initial(0.1 * theta[4]), steps=10).final.u ** 2)

    theta = jnp.ones(5)
    gradient = jax.jit(jax.grad(loss))(theta)
    step = 1e-5
    differences = [(loss(theta.at[i].add(step)) - loss(theta.at[i].add(-step))) / (2 * step) for i in range(5)]
    np.testing.assert_allclose(gradient, differences, rtol=1e-5)
    forward = jax.jit(lambda: jax.jvp(loss, (theta,), (jnp.eye(5)[0],))[1])()
    np.testing.assert_allclose(forward, gradient[0], rtol=1e-9)


@pytest.mark.thorough
def test_second_derivatives_with_respect_to_parameters():
    soil = DiffusionSorption(cells=8, early_substeps=2, first_substeps=8)

    def loss(theta):
        changed = eqx.tree_at(lambda s: (s.sorption, s.exponent), soil, (3.5e-4 * theta[0], 0.874 * theta[1]))
        return jnp.sum(rollout(changed, changed.initial(0.0), steps=6).final.u ** 2)

    gradient = jax.jit(jax.grad(loss))
    theta, step = jnp.ones(2), 1e-5
    hessian = jax.jit(jax.jacfwd(jax.grad(loss)))(theta)
    shifts = step * jnp.eye(2)
    differences = [(gradient(theta + shift) - gradient(theta - shift)) / (2 * step) for shift in shifts]
    np.testing.assert_allclose(hessian, differences, rtol=1e-5)


def test_batches_single_precision_and_zero_concentration():
    with jax.enable_x64(False):
        soil = DiffusionSorption(cells=16, early_substeps=4, first_substeps=20)
        start = jnp.asarray([0.0, 0.1], jnp.float32)
        u = jax.jit(jax.vmap(lambda u0: rollout(soil, soil.initial(u0), steps=8).final.u))(start)
        slope = jax.jit(jax.grad(lambda u0: rollout(soil, soil.initial(u0), steps=2).final.u[0]))(start[0])
    soil = DiffusionSorption(cells=16, early_substeps=4, first_substeps=20)
    alone = jax.jit(lambda: rollout(soil, soil.initial(0.1), steps=8).final.u)()
    assert u.dtype == jnp.float32 and np.isfinite(slope)
    np.testing.assert_allclose(u[1], alone, atol=2e-5)
    assert (u[0] <= u[1] + 1e-6).all() and (u >= -1e-6).all()  # the problem is monotone in what it begins with


def test_the_profile_meets_the_conditions_at_both_ends():
    soil = DiffusionSorption(cells=8)
    u = jnp.linspace(0.9, 0.3, 8)
    ends = soil.profile(u, np.array([0.0, 1.0, soil.x[3]]))
    slope = (ends[1] - u[-1]) * 16
    np.testing.assert_allclose(ends, [1.0, -5e-4 * slope, u[3]], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DiffusionSorption(cells=2), "cells"),
        (lambda: DiffusionSorption(dt=0.0), "dt"),
        (lambda: DiffusionSorption(cells=8).initial(np.ones(7)), r"\(8,\)"),
        (lambda: DiffusionSorption(cells=4).initial(np.array([0.1, np.nan, 0.1, 0.1])), "index 1"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        call()
