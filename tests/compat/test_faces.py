"""Our methods as Optax transformations and as Optimistix minimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import optimand as om
from optimand.compat.optax import as_transformation
from optimand.compat.optimistix import as_minimiser
from optimand.core.errors import ArgumentError
from optimand.smooth import FIRE, LBFGS, Adam, Anderson, GradientDescent, Scipy

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`

DATA = np.array([1.0, -2.0, 0.5])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def energy(x, data):
    return jnp.sum(jnp.cosh(x["a"] - data)) + 0.5 * jnp.sum((x["b"] - x["a"]) ** 2)


START = {"a": jnp.zeros(3), "b": jnp.ones(3)}


def loop(transformation, steps, start=START):
    """The loop that an Optax user writes."""

    def step(carry, _):
        x, state = carry
        fn = lambda x: energy(x, DATA)
        value, gradient = jax.value_and_grad(fn)(x)
        updates, state = transformation.update(gradient, state, x, value=value, grad=gradient, value_fn=fn)
        return (optax.apply_updates(x, updates), state), value

    return jax.jit(lambda x: jax.lax.scan(step, (x, transformation.init(x)), length=steps))(start)


def test_a_loop_of_optax_takes_the_steps_of_solve():
    method, start = LBFGS(tolerance=0.0), jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
    (x, _), _ = loop(as_transformation(method), 6, start)
    expected = om.solve(om.Minimize(energy, DATA), method, start, budget=om.Budget(steps=6)).value
    for name in x:
        np.testing.assert_allclose(x[name], expected[name], atol=1e-10)


def test_transformations_can_be_chained_and_clipped_and_still_descend():
    """The clipped update is not where the method went: it starts anew each time, and the value still falls."""
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)
    chained = optax.chain(as_transformation(LBFGS()), optax.scale(0.5))
    _, values = loop(chained, 15, start)
    assert np.all(np.diff(values) < 0)


def test_a_method_that_is_a_transformation_inside_needs_no_objective():
    transformation = as_transformation(Adam(0.1))
    x = jnp.zeros(3)
    updates, _ = transformation.update(jnp.ones(3), transformation.init(x), x)
    theirs = optax.adam(0.1)
    np.testing.assert_allclose(updates, theirs.update(jnp.ones(3), theirs.init(x), x)[0])


def test_what_optax_cannot_run_is_refused(as_a_user):
    for method, match in ((Anderson(), "objective"), (Scipy(), "host"), ("lbfgs", "Method")):
        with pytest.raises(ArgumentError, match=match):
            as_transformation(method)
    transformation = as_transformation(LBFGS())
    state = transformation.init(jnp.zeros(3))
    with pytest.raises(ArgumentError, match="value_fn"):
        transformation.update(jnp.ones(3), state, jnp.zeros(3))
    with pytest.raises(ArgumentError, match="params"):
        transformation.update(jnp.ones(3), state, value_fn=jnp.sum)


def test_optimistix_runs_a_method_and_differentiates_through_it():
    solver = as_minimiser(GradientDescent(tolerance=1e-6))
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), START)

    def solved(data):
        solution = optx.minimise(energy, solver, start, data, max_steps=500)
        return solution.value["a"], solution

    (value, solution), jacobian = jax.jit(lambda data: (solved(data), jax.jacobian(lambda d: solved(d)[0])(data)))(DATA)
    np.testing.assert_allclose(value, DATA, atol=1e-5)
    np.testing.assert_allclose(jacobian, np.eye(3), atol=1e-4)
    assert solution.result == optx.RESULTS.successful and solution.stats["num_steps"] > 1


def test_optimistix_gets_what_the_objective_returns_beside_its_value_and_batches():
    with_aux = lambda x, data: (jnp.sum((x - data) ** 2), 2 * x)
    solve = lambda data: optx.minimise(with_aux, as_minimiser(LBFGS()), jnp.zeros(3), data, has_aux=True)
    np.testing.assert_allclose(solve(2.0).value, 2.0, atol=1e-6)  # a Python number for an argument
    solution = jax.jit(jax.vmap(solve))(jnp.stack([DATA, -DATA]))
    np.testing.assert_allclose(solution.value, [DATA, -DATA], atol=1e-6)
    np.testing.assert_allclose(solution.aux, 2 * solution.value, atol=1e-12)


def test_optimistix_is_told_when_a_method_gets_no_further():
    island = lambda x, _: jnp.sum(x) + jnp.where(jnp.all(x == 1.0), 0.0, jnp.nan)  # every step leads into the sea
    stuck = optx.minimise(island, as_minimiser(LBFGS(max_trials=5)), jnp.ones(2), throw=False)
    assert stuck.result == optx.RESULTS.nonlinear_divergence
    assert np.all(np.isfinite(stuck.value))


def test_what_optimistix_cannot_run_is_refused(as_a_user):
    for method, match in ((Anderson(), "objective"), (Scipy(), "host"), (optx.BFGS(1e-3, 1e-3), "Method")):
        with pytest.raises(ArgumentError, match=match):
            as_minimiser(method)
    assert isinstance(as_minimiser(FIRE()), optx.AbstractMinimiser)
