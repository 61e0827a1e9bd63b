"""The flow of Lion-K and its Lyapunov function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError
from optimand.smooth import HuberKernel, L1Kernel, L2SquaredKernel, SmoothL1Kernel, kkt_score, lion_k_flow, lyapunov


def rugged(x):
    """Not convex."""
    return jnp.sum(jnp.cos(3 * x) + 0.5 * (x - jnp.array([0.5, -1.0, 2.0])) ** 2) + x[0] * x[1]


CONSTANTS = {"weight_decay": 0.7, "alpha": 1.3, "gamma": 0.8, "epsilon": 0.6}
KERNEL = SmoothL1Kernel(0.2)


@pytest.fixture(scope="module")
def flow():
    with jax.enable_x64(True):
        x = jnp.array([0.9, -0.7, 0.2]) / CONSTANTS["weight_decay"]
        momentum = jnp.array([2.0, -1.0, 3.0])
        go = lambda x, m: lion_k_flow(
            om.Minimize(rugged), KERNEL, x, m, times=jnp.linspace(0.0, 60.0, 3001), rtol=1e-10, **CONSTANTS
        )
        return jax.jit(go)(x, momentum)


def test_the_lyapunov_function_never_rises_and_without_its_coupling_does(flow):
    with jax.enable_x64(True):
        rises = np.diff(flow.lyapunov)
        assert np.max(rises) <= 1e-7 and flow.lyapunov[-1] < flow.lyapunov[0] - 0.1
        # epsilon gamma = 1 takes the coupling out of H
        alone = lambda f, x, m: lyapunov(KERNEL, f, x, m, 0.7, alpha=1.3, gamma=0.8, epsilon=1 / 0.8)
        assert np.max(np.diff(jax.jit(jax.vmap(alone))(flow.value, flow.x, flow.momentum))) > 1e-4


def test_it_ends_at_a_stationary_point(flow):
    with jax.enable_x64(True):
        x = flow.x[-1]
        gradient = jax.grad(rugged)(x)
        score = kkt_score(KERNEL, gradient, x, 0.7, alpha=1.3, gamma=0.8)
        assert score + 1e-12 >= 0 and score < 1e-8
        slope = jax.grad(lambda x: KERNEL.penalty(0.7 * x) / 0.7)(x)
        np.testing.assert_allclose(1.3 * gradient + 0.8 * slope, 0, atol=1e-5)
        np.testing.assert_allclose(flow.momentum[-1], -1.3 / 0.8 * gradient, atol=1e-5)


def test_with_the_squared_norm_it_is_a_linear_system_with_a_known_solution():
    with jax.enable_x64(True):
        path = lion_k_flow(
            om.Minimize(lambda x: 0.5 * jnp.sum(x**2)), L2SquaredKernel(), jnp.ones(1), times=jnp.array([0.0, 1.5]),
            epsilon=0.25, weight_decay=0.5,
        )  # fmt: skip
        matrix = np.array([[-0.25 - 0.5, 0.75], [-1.0, -1.0]])  # of (x, m)
        end = np.asarray(jax.scipy.linalg.expm(1.5 * matrix)) @ [1.0, 0.0]
        np.testing.assert_allclose([path.x[-1, 0], path.momentum[-1, 0]], end, atol=1e-7)


def test_outside_the_set_the_distance_falls_exponentially():
    with jax.enable_x64(True):
        times = jnp.linspace(0.0, 3.0, 7)
        held = om.Minimize(lambda x: -50 * jnp.sum(x))
        path = lion_k_flow(
            held, L1Kernel(), jnp.full(2, 5.0), jnp.ones(2), times=times, weight_decay=2.0, step_size=1e-3
        )
        np.testing.assert_allclose(path.x[:, 0] - 0.5, 4.5 * np.exp(-2 * np.asarray(times)), rtol=1e-4)
        assert np.all(np.isinf(path.lyapunov[:-1]))


PROBLEM = om.Minimize(lambda x: jnp.sum(x**2))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"alpha": -1.0}, "alpha"),
        ({"gamma": 0.0}, "gamma"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": 2.0, "gamma": 0.6}, "epsilon"),
        ({"step_size": 0.0}, "step_size"),
        ({"times": jnp.array([1.0, 0.0])}, "times"),
        ({"times": jnp.array([1.0])}, "times"),
        ({"x": jnp.arange(2)}, "guess"),
        ({"kernel": None}, "kernel"),
        ({"problem": om.Root(lambda x: x)}, "problem"),
    ],
)
def test_bad_input_is_refused_by_name(change, name, as_a_user):
    arguments = {"problem": PROBLEM, "kernel": HuberKernel(0.1), "x": jnp.ones(2), "times": jnp.array([0.0, 1.0])}
    with pytest.raises(ArgumentError) as caught:
        lion_k_flow(**{**arguments, **change})
    assert caught.value.argument == name
