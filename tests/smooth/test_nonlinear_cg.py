"""Nonlinear conjugate gradients: all variants."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import NonlinearCG, StrongWolfe
from optimand.smooth.nonlinear_cg import Variant


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_solves_rosenbrock(variant):
    solution = om.solve(om.Minimize(rosenbrock), NonlinearCG(variant), jnp.zeros(6))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value, 1.0, atol=1e-5)


def test_on_a_quadratic_it_ends_in_as_many_steps_as_there_are_eigenvalues():
    eigenvalues = jnp.array([1.0, 1.0, 1.0, 4.0, 4.0, 9.0, 9.0, 9.0])
    problem = om.Minimize(lambda x: 0.5 * x @ (eigenvalues * x) - jnp.sum(x))
    exact = StrongWolfe(curvature=1e-8, decrease=1e-9, max_trials=60)
    for variant in get_args(Variant):
        method = NonlinearCG(variant, line_search=exact, powell=1e9)
        solution = om.solve(problem, method, jnp.zeros(8))
        assert solution.result == om.Result.converged
        assert solution.steps <= 4  # three, and one for what the search is off


def test_an_objective_without_a_minimum_diverges():
    with pytest.raises(om.errors.SolveError, match="diverged"):
        om.solve(om.Minimize(lambda x: -jnp.sum(x**2) - x[0]), NonlinearCG(), jnp.ones(3))


def test_random_batches_are_refused():
    problem = om.Fit(lambda w, row: jnp.sum((w - row) ** 2), jnp.zeros(2), jnp.ones((8, 2)), batch_size=2)
    with pytest.raises(om.errors.ArgumentError, match="batches"):
        om.solve(problem, NonlinearCG(), key=jax.random.key(0))
