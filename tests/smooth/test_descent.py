"""Gradient descent, BFGS and L-BFGS on problems with known answers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import BFGS, LBFGS, GradientDescent, StrongWolfe
from optimand.smooth.pairs import CompactPairs, LoopedPairs


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_lbfgs_solves_rosenbrock_with_little_more_than_one_evaluation_a_step():
    solution = om.solve(om.Minimize(rosenbrock), LBFGS(), jnp.zeros(20))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value, 1.0, atol=1e-6)
    assert solution.counters.gradients <= 1.3 * solution.steps


def test_lbfgs_ends_on_a_quadratic_with_the_newton_direction_in_a_few_steps():
    matrix = jnp.diag(jnp.array([1.0, 10.0, 100.0, 1000.0]))
    problem = om.Minimize(lambda x: 0.5 * x @ matrix @ x - jnp.sum(x))
    solution = om.solve(problem, LBFGS(tolerance=1e-9), jnp.zeros(4))
    np.testing.assert_allclose(solution.value, 1 / jnp.diagonal(matrix), rtol=1e-8)
    assert solution.steps < 40


@pytest.mark.parametrize("kind", [CompactPairs, LoopedPairs])
def test_pairs_multiply_by_the_inverse_that_the_last_of_them_make(kind):
    """Against the product form of the BFGS update (Nocedal and Wright 2006, eq. 6.17), formed as a matrix."""
    rng = np.random.default_rng(0)
    steps = [(s, s * np.linspace(1, 5, 6) + 0.1 * rng.standard_normal(6)) for s in rng.standard_normal((9, 6))]
    g, memory = jnp.asarray(rng.standard_normal(6)), kind.none(4, jnp.zeros(6))
    np.testing.assert_array_equal(memory.times(g), 0)
    for count, (s, y) in enumerate(steps, start=1):
        memory, useful = memory.followed_by(jnp.asarray(s), jnp.asarray(y), jnp.array(True))
        assert bool(useful)
        memory, useful = memory.followed_by(jnp.asarray(s), jnp.asarray(-y), jnp.array(True))  # no curvature: not taken
        assert not bool(useful)
        last = steps[max(0, count - 4) : count]
        inverse = np.eye(6) * (s @ y) / (y @ y)
        for s_i, y_i in last:
            flip = np.eye(6) - np.outer(s_i, y_i) / (s_i @ y_i)
            inverse = flip @ inverse @ flip.T + np.outer(s_i, s_i) / (s_i @ y_i)
        np.testing.assert_allclose(memory.times(g), inverse @ g, rtol=1e-9)
    forgotten, _ = memory.followed_by(jnp.zeros(6), jnp.zeros(6), jnp.array(False))
    np.testing.assert_array_equal(forgotten.times(g), 0)
    again, useful = forgotten.followed_by(*map(jnp.asarray, steps[0]), jnp.array(True))
    fresh, _ = kind.none(4, jnp.zeros(6)).followed_by(*map(jnp.asarray, steps[0]), jnp.array(True))
    assert bool(useful)
    np.testing.assert_allclose(again.times(g), fresh.times(g), rtol=1e-12)


@pytest.mark.parametrize("unknowns", [2, 30])  # of which the pairs are kept in different forms
def test_lbfgs_steps_along_minus_the_inverse_times_the_gradient(unknowns):
    problem, method = om.Minimize(rosenbrock), LBFGS(memory=4)
    step = jax.jit(lambda state: method.step(problem, state, key=None))
    states = [method.init(problem, jnp.full(unknowns, 0.3), key=None)]
    for _ in range(6):
        states.append(step(states[-1]))
    steps = [(new.x - old.x, new.gradient - old.gradient) for old, new in itertools.pairwise(states)]
    last = [(s, y) for s, y in steps if s @ y > 0][-4:]
    s, y = last[-1]
    inverse = jnp.eye(unknowns) * (s @ y) / (y @ y)
    for s, y in last:
        flip = jnp.eye(unknowns) - jnp.outer(s, y) / (s @ y)
        inverse = flip @ inverse @ flip.T + jnp.outer(s, s) / (s @ y)
    direction = -inverse @ states[-1].gradient
    np.testing.assert_allclose(states[-1].direction, direction, rtol=1e-8)


def test_bfgs_keeps_the_inverse_that_its_formula_gives():
    """H after twelve steps, from the pairs of the steps, by the product form (Nocedal and Wright 2006, eq. 6.17)."""
    problem, method, steps = om.Minimize(rosenbrock), BFGS(), 12
    step = jax.jit(lambda state: method.step(problem, state, key=None))
    states = [method.init(problem, jnp.full(6, 0.3), key=None)]
    for _ in range(steps):
        states.append(step(states[-1]))
    inverse = None
    for old, new in itertools.pairwise(states):
        s, y = new.x - old.x, new.gradient - old.gradient
        if s @ y <= 0:
            continue
        inverse = jnp.eye(6) * (s @ y) / (y @ y) if inverse is None else inverse
        flip = jnp.eye(6) - jnp.outer(s, y) / (s @ y)
        inverse = flip @ inverse @ flip.T + jnp.outer(s, s) / (s @ y)
    np.testing.assert_allclose(states[-1].inverse, inverse, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(states[-1].direction, -inverse @ states[-1].gradient, rtol=1e-7, atol=1e-9)


def test_bfgs_ends_on_a_quadratic_in_as_many_steps_as_there_are_unknowns_if_the_search_is_exact():
    matrix = jnp.diag(jnp.array([1.0, 10.0, 100.0, 1000.0])) + 0.1
    exact = StrongWolfe(decrease=1e-9, curvature=1e-8, max_trials=60)
    solution = om.solve(om.Minimize(lambda x: 0.5 * x @ matrix @ x - jnp.sum(x)), BFGS(exact, tolerance=1e-5), jnp.zeros(4))
    assert solution.result == om.Result.converged and solution.steps <= 5  # one for what the search is off
    np.testing.assert_allclose(solution.state.inverse, jnp.linalg.inv(matrix), rtol=1e-3, atol=1e-6)


def test_bfgs_solves_rosenbrock_in_both_precisions_and_in_fewer_steps_than_lbfgs():
    wide = om.solve(om.Minimize(rosenbrock), BFGS(), jnp.zeros(20))
    np.testing.assert_allclose(wide.value, 1.0, atol=1e-6)
    assert wide.steps <= om.solve(om.Minimize(rosenbrock), LBFGS(memory=5), jnp.zeros(20)).steps
    narrow = om.solve(om.Minimize(rosenbrock), BFGS(tolerance=1e-3), jnp.zeros(4, jnp.float32))
    assert narrow.result == om.Result.converged and narrow.value.dtype == jnp.float32


def test_the_line_search_never_goes_up():
    solution = om.solve(om.Minimize(rosenbrock), GradientDescent(tolerance=1e-3), jnp.zeros(3))
    assert np.all(np.diff(solution.history["value"]) <= 1e-12)


def test_a_pytree_with_leaves_of_two_dtypes_keeps_them():
    target = {"a": jnp.ones(2, jnp.float32), "b": jnp.full(3, 2.0)}
    problem = om.Minimize(lambda x: jnp.sum((x["a"] - target["a"]) ** 2) + jnp.sum((x["b"] - target["b"]) ** 4))
    for method in (BFGS(tolerance=1e-5), LBFGS(tolerance=1e-5), GradientDescent(tolerance=1e-5)):
        value = om.solve(problem, method, {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(3)}).value
        assert value["a"].dtype == jnp.float32
        np.testing.assert_allclose(value["a"], 1.0, atol=1e-3)
        np.testing.assert_allclose(value["b"], 2.0, atol=3e-2)


@pytest.mark.parametrize("method", [BFGS(), LBFGS()], ids=["bfgs", "lbfgs"])
@pytest.mark.parametrize("falls", [lambda x: -jnp.sum(x**2), jnp.sum], ids=["quadratic", "linear"])
def test_quasi_newton_goes_further_and_further_where_nothing_curves_up(falls, method):
    solution = om.solve(om.Minimize(falls), method, jnp.ones(3), throw=False)
    assert solution.result == om.Result.diverged and solution.steps < 100


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("method", [pytest.param(BFGS, marks=pytest.mark.thorough), LBFGS])
def test_unrolled_from_a_stationary_start_the_derivative_is_finite(method, dtype):
    start = jnp.ones(2, dtype)
    find = lambda t: jnp.sum(om.solve(om.Minimize(lambda x, t: jnp.sum((x - t) ** 2), t), method(tolerance=0.0), start,
                                      budget=om.Budget(steps=2), adjoint=om.Unrolled(), throw=False).value)  # fmt: skip
    assert jnp.all(jnp.isfinite(jax.grad(find)(start)))


@pytest.mark.parametrize("method", [BFGS, LBFGS])
def test_standing_still_is_not_taken_for_a_step(method):
    edge = om.Minimize(lambda x: jnp.where(x[0] >= 1.0, 0.5 * jnp.sum(x**2), jnp.nan))
    solution = om.solve(edge, method(), jnp.ones(3), throw=False)
    assert solution.result == om.Result.stopped and solution.steps < 5


def test_a_search_that_finds_nothing_ends_the_solve_as_stopped():
    problem = om.Minimize(lambda x: jnp.sum(jnp.where(x > 0.5, x, jnp.nan)))
    for method in (LBFGS(max_trials=5), GradientDescent(max_trials=5)):
        solution = om.solve(problem, method, jnp.array([0.5 + 1e-12]))
        assert solution.result == om.Result.stopped
        assert solution.steps <= 2


@pytest.mark.parametrize("method", [BFGS, LBFGS])
def test_random_batches_are_refused(method):
    problem = om.Fit(lambda w, row: jnp.sum((w - row) ** 2), jnp.zeros(2), jnp.ones((8, 2)), batch_size=2)
    with pytest.raises(om.errors.ArgumentError, match="batches"):
        om.solve(problem, method(), key=jax.random.key(0))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LBFGS(tolerance=-1.0), "tolerance"),
        (lambda: LBFGS(memory=0), "memory"),
        (lambda: LBFGS(decrease=0.7), "decrease"),
        (lambda: LBFGS(max_trials=0), "max_trials"),
        (lambda: GradientDescent(-0.1), "step_size"),
        (lambda: GradientDescent(first_step=0.0), "first_step"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
