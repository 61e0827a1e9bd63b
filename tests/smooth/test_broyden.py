"""Broyden's method, and mirror descent that searches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import Broyden, MirrorDescent


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tridiagonal(x):
    """The function of Broyden (1965) with a tridiagonal Jacobian."""
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


@pytest.mark.parametrize("memory", [3, 20])
def test_the_tridiagonal_function_of_broyden(memory):
    solution = om.solve(om.Root(tridiagonal), Broyden(memory=memory, tolerance=1e-10), -jnp.ones(40))
    assert solution.result == om.Result.converged
    assert jnp.linalg.norm(tridiagonal(solution.value)) <= 1e-10
    assert solution.counters.residuals <= 60


def test_the_inverse_satisfies_the_secant_equation_when_the_memory_is_full_and_when_it_is_not():
    for steps in (3, 9):
        before, after = (
            om.solve(om.Root(tridiagonal), Broyden(memory=4, tolerance=0.0), -jnp.ones(8), budget=om.Budget(steps=k)).state
            for k in (steps - 1, steps)
        )
        s, y = after.x - before.x, after.f - before.f
        np.testing.assert_allclose(after.gamma * y + (after.right @ y) @ after.left, s, rtol=1e-8, atol=1e-14)


def test_an_expansive_fixed_point_is_found():
    problem = om.FixedPoint(lambda x: 2 - 3 * x + 0.1 * jnp.sin(x))  # the plain iteration diverges
    solution = om.solve(problem, Broyden(tolerance=1e-10), jnp.array([3.0, -1.0]))
    np.testing.assert_allclose(problem.apply(solution.value), solution.value, atol=1e-9)


def test_a_root_that_is_not_there_ends_as_stopped():
    solution = om.solve(om.Root(lambda x: x**2 + 1), Broyden(), jnp.array([2.0]), throw=False)
    assert solution.result != om.Result.converged


def test_nan_off_the_domain_shortens_the_step():
    solution = om.solve(om.Root(lambda x: jnp.log(x) * 10), Broyden(tolerance=1e-10), jnp.array([0.01, 4.0]))
    np.testing.assert_allclose(solution.value, 1.0, atol=1e-9)


def test_mirror_descent_finds_its_step_size():
    matrix = jnp.array([[30.0, 4.0, 1.0], [4.0, 10.0, 2.0], [1.0, 2.0, 60.0]])
    problem = om.Composite(lambda x: 0.5 * x @ matrix @ x, lambda x, step: om.smooth.projections.simplex(x))
    solution = om.solve(problem, MirrorDescent(None, tolerance=1e-8), jnp.full(3, 1 / 3))
    assert solution.result == om.Result.converged
    expected = jnp.linalg.solve(matrix, jnp.ones(3))
    np.testing.assert_allclose(solution.value, expected / jnp.sum(expected), atol=1e-6)
    assert np.all(np.diff(solution.history["value"]) <= 1e-10)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Broyden(memory=0), "memory"),
        (lambda: Broyden(decrease=1.0), "decrease"),
        (lambda: Broyden(slack=-1.0), "slack"),
        (lambda: MirrorDescent(None, decrease=0.0), "decrease"),
        (lambda: MirrorDescent(None, first_step=0.0), "first_step"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
