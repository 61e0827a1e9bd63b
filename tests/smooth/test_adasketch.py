"""AdaSketch-Newton, its merit function, and the SQP methods it is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import (
    GMRESL1SQP,
    AdaptiveGMRESL1SQP,
    AdaSketchNewton,
    ExactAugmentedLagrangian,
    Scipy,
    hock_schittkowski,
)
from optimand.smooth.hock_schittkowski import HOCK_SCHITTKOWSKI

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def run(name, method, steps=200, key=KEY):
    test = hock_schittkowski(name)
    return test, om.solve(test.problem, method, test.guess, key=key, budget=om.Budget(steps=steps), throw=False)


def test_the_gradient_of_the_merit_is_its_derivative():
    test, merit = hock_schittkowski("HS79"), ExactAugmentedLagrangian(violation=3.0, stationarity=0.2)
    value = om.PrimalDual(test.guess, jnp.array([0.3, -1.0, 2.0]))
    wanted = jax.grad(lambda value: merit.value(test.problem, value))(value)
    found = merit.gradient(test.problem, value)
    np.testing.assert_allclose(found.primal, wanted.primal, rtol=1e-10)
    np.testing.assert_allclose(found.equality, wanted.equality, rtol=1e-10, atol=1e-10)


def test_without_a_sketch_a_step_is_a_damped_newton_step():
    test = hock_schittkowski("HS7")
    solution = om.solve(test.problem, AdaSketchNewton("exact"), test.guess, key=KEY, budget=om.Budget(steps=1))
    f, c = test.problem.value, test.problem.equalities
    x, gradient, jacobian = np.asarray(test.guess), jax.grad(f)(test.guess), jax.jacfwd(c)(test.guess)
    hessian = np.asarray(jax.hessian(f)(test.guess))
    null = np.array([-jacobian[0, 1], jacobian[0, 0]]) / np.linalg.norm(jacobian)
    if null @ hessian @ null < 1e-6:
        hessian = hessian + (0.1 + np.linalg.norm(hessian)) * np.eye(2)
    matrix = np.block([[hessian, jacobian.T], [jacobian, np.zeros((1, 1))]])
    d = np.linalg.solve(matrix, -np.concatenate([gradient, c(test.guess)]))
    length = float(solution.history["step_length"][0])
    assert 0 < length <= 1
    np.testing.assert_allclose(solution.value.primal, x + length * d[:2], rtol=1e-8)
    np.testing.assert_allclose(solution.value.equality, length * d[2:], rtol=1e-8)


def test_a_quadratic_program_takes_one_exact_step():
    _, solution = run("HS28", AdaSketchNewton("exact", tolerance=1e-10))
    assert int(solution.steps) == 1 and solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value.primal, [0.5, -0.5, 0.5], atol=1e-10)


def test_the_merit_never_rises_and_the_same_key_gives_the_same_run():
    method = AdaSketchNewton(tolerance=1e-7)
    test, first = run("HS7", method)
    _, second = run("HS7", method)
    assert first.result == om.Result.converged
    assert np.all(first.history["merit_change"] <= 1e-12)
    np.testing.assert_array_equal(first.value.primal, second.value.primal)
    _, other = run("HS7", method, key=jax.random.key(1))
    assert int(other.counters.linear_iterations) != int(first.counters.linear_iterations)
    peer = om.solve(test.problem, Scipy("SLSQP", tolerance=1e-12), test.guess).value
    np.testing.assert_allclose(first.value.primal, peer.primal, atol=1e-4)
    np.testing.assert_allclose(first.value.equality, peer.equality, atol=1e-4)


def test_the_strict_rule_takes_the_steps_of_exact_newton():
    _, exact = run("HS7", AdaSketchNewton("exact"))
    _, strict = run("HS7", AdaSketchNewton(accuracy="adaptive"))
    assert abs(int(exact.steps) - int(strict.steps)) <= 2
    assert int(strict.counters.linear_iterations) > 10_000


def test_spent_sketches_are_recorded_and_the_direction_must_descend():
    _, solution = run("HS7", AdaSketchNewton(most_sketches=2), steps=20)
    assert np.any(solution.history["capped"])
    assert np.all(solution.history["merit_change"] <= 1e-12)


def test_dependent_constraints_end_the_solve_and_say_why():
    twice = om.Constrained(lambda x: jnp.sum(x**2), equalities=lambda x: jnp.stack([x[0] - 1, 2 * x[0] - 2]))
    stopped = om.solve(twice, AdaSketchNewton(), jnp.zeros(2), key=KEY)
    assert stopped.result == om.Result.stopped
    assert stopped.history["smallest_singular_value"][-1] < 1e-10
    regular = om.solve(twice, AdaSketchNewton("exact", regularisation=1e-8), jnp.zeros(2), key=KEY)
    assert regular.result == om.Result.converged
    np.testing.assert_allclose(regular.value.primal, [1, 0], atol=1e-4)


def test_nan_beyond_the_domain_shortens_the_step():
    barrier = om.Constrained(lambda x: x[0] - 1e-3 * jnp.log(x[0]) + x[1] ** 2, equalities=lambda x: x[1:] - 1)
    solution = om.solve(barrier, AdaSketchNewton("exact", tolerance=1e-6), jnp.array([0.5, 0.0]), key=KEY)
    assert solution.result == om.Result.converged
    assert np.min(solution.history["step_length"]) < 1
    np.testing.assert_allclose(solution.value.primal, [1e-3, 1], atol=1e-5)


def test_without_the_matrix_the_answer_is_the_same():
    method = AdaSketchNewton("gaussian_block", block=3, matrix_free=True, equilibrate=True, tolerance=1e-6)
    _, solution = run("HS28", method)
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value.primal, [0.5, -0.5, 0.5], atol=1e-5)
    assert int(solution.counters.hessian_products) > 0 == int(solution.counters.jacobians)


@pytest.mark.parametrize("method", [GMRESL1SQP(restart=2), AdaptiveGMRESL1SQP()], ids=lambda m: type(m).__name__)
def test_the_sqp_baselines_solve(method):
    test, solution = run("HS7", method)
    assert solution.result == om.Result.converged
    assert abs(float(test.problem.value(solution.value.primal)) - test.optimum) <= 1e-3


def test_the_collection_has_the_published_optima():
    """At its solutions where they are known in closed form."""
    known = {"HS6": [1, 1], "HS26": [1, 1, 1], "HS28": [0.5, -0.5, 0.5], "HS39": [1, 1, 0, 0], "HS46": [1] * 5, "HS47": [1] * 5,
             "HS48": [1] * 5, "HS49": [1] * 5, "HS50": [1] * 5, "HS51": [1] * 5, "HS7": [0, 3**0.5], "HS27": [-1, 1, 0],
             "HS42": [2, 2, 0.6 * 2**0.5, 0.8 * 2**0.5]}  # fmt: skip
    for name, x in known.items():
        test, x = hock_schittkowski(name), jnp.array(x, float)
        np.testing.assert_allclose(test.problem.value(x), test.optimum, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(test.problem.equalities(x), 0, atol=1e-12, err_msg=name)
    assert len(HOCK_SCHITTKOWSKI) == 18
    with pytest.raises(om.errors.ArgumentError, match="HS28"):
        hock_schittkowski("HS999")


@pytest.mark.parametrize("method", [AdaSketchNewton(), GMRESL1SQP(), AdaptiveGMRESL1SQP()], ids=lambda m: type(m).__name__)
def test_problems_of_other_kinds_are_refused_and_pointed_elsewhere(method):
    two = lambda x: jnp.stack([x[0], 2 * x[0]])
    cases = {
        "inequalities": om.Constrained(jnp.sum, equalities=lambda x: x, inequalities=lambda x: x),
        "bounds": om.Constrained(jnp.sum, equalities=lambda x: x, bounds=(0.0, None)),
        "equalities": om.Constrained(jnp.sum, equalities=two),
    }
    for name, problem in cases.items():
        with pytest.raises(om.errors.ArgumentError, match=name):
            om.solve(problem, method, jnp.ones(1), key=KEY)
    with pytest.raises(om.errors.ArgumentError, match="LBFGS"):
        om.solve(om.Constrained(jnp.sum), method, jnp.ones(1), key=KEY)


def test_single_precision_with_a_small_tolerance_is_warned_of():
    with jax.enable_x64(False), pytest.warns(UserWarning, match="single precision"):
        circle = om.Constrained(jnp.sum, equalities=lambda x: jnp.sum(x**2, keepdims=True) - 2)
        guess = circle.start(jnp.array([-1.5, -0.5], jnp.float32))
        AdaSketchNewton(tolerance=1e-9).init(circle, guess, key=None)


@pytest.mark.parametrize(
    "method, argument, wrong",
    [
        (AdaSketchNewton, "sketch", "magic"),
        (AdaSketchNewton, "accuracy", "public"),
        (AdaSketchNewton, "growth", 1.0),
        (AdaSketchNewton, "relative", 1.0),
        (AdaSketchNewton, "most_sketches", 0),
        (ExactAugmentedLagrangian, "violation", 0.0),
        (GMRESL1SQP, "tau", 1.0),
        (GMRESL1SQP, "restart", 0),
        (AdaptiveGMRESL1SQP, "growth", 0.5),
    ],
)
def test_an_argument_out_of_its_range_is_named(method, argument, wrong):
    with pytest.raises(om.errors.ArgumentError, match=argument):
        method(**{argument: wrong})
    with pytest.raises(om.errors.ArgumentError, match="accuracy"):
        AdaSketchNewton(matrix_free=True, accuracy="adaptive")
