"""The heat equation by Crank and Nicolson: exact modes, order in time, one pattern, derivatives."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import CG, SSOR
from optimand.physics import HeatCrankNicolson, HeatState, bump, rollout


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def mode(heat):
    """The lowest mode, and its eigenvalue for the discrete Laplacian."""
    x = heat.points
    value = 8 * heat.cells**2 * np.sin(np.pi / (2 * heat.cells)) ** 2
    return jnp.asarray(np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1])), value


def test_the_system_is_that_of_the_scheme():
    heat = HeatCrankNicolson(6, 1e-2)
    u = jnp.sin(jnp.arange(25.0))
    for step in (0, 30, 80):
        operator, b, context = heat.system(step, u)
        middle = (step + 0.5) * 1e-2
        laplacian = -36 * np.asarray(heat.laplacian.as_matrix())
        half = 0.5e-2 * float(max(0.1 * np.sin(2 * np.pi * middle), -10 * np.sin(2 * np.pi * middle)))
        np.testing.assert_allclose(operator.as_matrix(), np.eye(25) - half * laplacian, rtol=1e-12, atol=1e-12)
        centre = 0.5 + 0.25 * np.array([np.cos(16 * np.pi * middle), np.sin(16 * np.pi * middle)])
        square = np.sum((heat.points - centre) ** 2, axis=1) / 0.125**2
        source = np.array([32 * np.exp(1 - 1 / (1 - r)) if r < 1 else 0.0 for r in square])
        np.testing.assert_allclose(b, (np.eye(25) + half * laplacian) @ u + 1e-2 * source, rtol=1e-10, atol=1e-10)
        time = step * 1e-2
        np.testing.assert_allclose(context, max(0.1 * np.sin(2 * np.pi * time), -10 * np.sin(2 * np.pi * time)), atol=1e-12)
        assert heat.context_bounds[0] <= context <= heat.context_bounds[1] == 10.0


def test_a_mode_decays_as_the_scheme_says():
    heat = HeatCrankNicolson(8, 1e-2, source=0.0)
    u, value = mode(heat)
    after = heat.step(HeatState(u, jnp.int32(60)))
    half = 0.5e-2 * float(heat.diffusion(0.605)) * value
    np.testing.assert_allclose(after.u, u * (1 - half) / (1 + half), rtol=1e-8, atol=1e-9)
    assert after.steps == 61


def test_it_is_of_second_order_in_time():
    errors = []
    for count in (20, 40, 80):
        heat = HeatCrankNicolson(6, 0.25 / count, strong=0.5, weak=0.5, source=0.0)
        u, value = mode(heat)
        end = rollout(heat, HeatState(u, jnp.int32(0)), steps=count).final.u
        exact = np.exp(-value * 0.5 / (2 * np.pi))  # the integral of the diffusion over a quarter of a period
        errors.append(float(jnp.max(jnp.abs(end - exact * u))))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 2, atol=0.1)


def test_the_bump_is_one_at_its_centre_and_has_derivatives_at_its_edge():
    np.testing.assert_allclose(bump(jnp.array([0.0, 0.5, 1.0, 4.0])), [1.0, np.exp(-1.0), 0.0, 0.0])
    assert jnp.all(jnp.isfinite(jax.vmap(jax.grad(bump))(jnp.array([0.0, 0.999999, 1.0, 2.0]))))
    heat = HeatCrankNicolson(8)
    assert heat.initial().u.reshape(7, 7)[3, 3] == 1.0


def test_traced_steps_share_one_pattern_and_a_preconditioner_serves_them_all():
    heat = HeatCrankNicolson(10, 1e-2)

    def one(u, step):
        operator, b, _ = heat.system(step, u)
        answer = lx.linear_solve(operator, b, CG(1e-9, preconditioner=SSOR(1.4)), options={"y0": u})
        return answer.value, answer.stats["num_steps"]

    u, counts = jax.jit(lambda u: jax.lax.scan(one, u, jnp.arange(70, 76)))(heat.initial().u)
    plain = rollout(heat, HeatState(heat.initial().u, jnp.int32(70)), steps=6).final.u
    np.testing.assert_allclose(u, plain, atol=1e-7)
    assert jnp.all(counts > 0)


def test_derivatives_are_those_of_finite_differences():
    def size(strong, u):
        heat = HeatCrankNicolson(6, 1e-2, strong=strong)
        return jnp.sum(rollout(heat, HeatState(u, jnp.int32(60)), steps=3).final.u ** 2)

    u = HeatCrankNicolson(6).initial().u
    gradient, by_u = jax.grad(size, (0, 1))(jnp.asarray(5.0), u)
    np.testing.assert_allclose(gradient, (size(5.0 + 1e-5, u) - size(5.0 - 1e-5, u)) / 2e-5, rtol=1e-5)
    direction = jnp.cos(jnp.arange(25.0))
    difference = (size(5.0, u + 1e-5 * direction) - size(5.0, u - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(by_u @ direction, difference, rtol=1e-5)


BAD = {
    "cells": lambda: HeatCrankNicolson(1),
    "dt": lambda: HeatCrankNicolson(5, 0.0),
    "strong": lambda: HeatCrankNicolson(5, strong=-1.0),
    "weak": lambda: HeatCrankNicolson(5, weak=jnp.inf),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
