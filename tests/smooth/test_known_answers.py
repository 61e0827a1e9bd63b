"""Methods against answers that are known in closed form, or that another library gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.smooth import (
    BlockCoordinateDescent,
    MirrorDescent,
    Newton,
    ProjectedGradient,
    ProximalGradient,
    Scipy,
    proximal,
)

RNG = np.random.default_rng(0)
A = RNG.standard_normal((12, 6))
B = A @ np.array([2.0, 0.0, -1.5, 0.0, 0.0, 1.0]) + 0.1 * RNG.standard_normal(12)
PENALTY = 2.0
HESSIAN = np.array([[2.0, 0.4, 0.1], [0.4, 1.5, 0.3], [0.1, 0.3, 1.2]])


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


# The lasso.


@pytest.mark.parametrize("method", [ProximalGradient(tolerance=1e-10), BlockCoordinateDescent(tolerance=1e-10)],
                         ids=lambda method: type(method).__name__)  # fmt: skip
def test_the_lasso_and_its_derivatives_are_those_of_the_closed_form_on_the_support(method):
    def lasso(penalty, targets):
        fn = lambda x, targets: 0.5 * jnp.sum((A @ x - targets) ** 2)
        problem = om.Composite(fn, proximal.lasso, targets, prox_args=(penalty,))
        return om.solve(problem, method, jnp.zeros(6), budget=om.Budget(steps=5000)).value

    x, (by_penalty, by_targets) = jax.jit(
        lambda *theta: (lasso(*theta), jax.jacrev(lasso, argnums=(0, 1))(*theta))
    )(PENALTY, B)
    support, signs = np.flatnonzero(x), np.sign(x)
    assert 0 < len(support) < 6
    columns = A[:, support]
    inverse = np.linalg.inv(columns.T @ columns)
    np.testing.assert_allclose(x[support], inverse @ (columns.T @ B - PENALTY * signs[support]), rtol=1e-8)
    correlation = A.T @ (B - A @ x)
    assert np.all(np.abs(np.delete(correlation, support)) < PENALTY)  # so that it is the solution, and the support stays
    np.testing.assert_allclose(by_penalty[support], -inverse @ signs[support], rtol=1e-8)
    np.testing.assert_allclose(by_targets[support], inverse @ columns.T, rtol=1e-7, atol=1e-10)
    for jacobian in (by_penalty, by_targets):
        np.testing.assert_array_equal(np.delete(jacobian, support, axis=0), 0)


# Newton's method where the Hessian is not positive definite.


def double_well(x):
    """Minima at (+-1, 0, ...), a saddle at 0."""
    return jnp.sum(x[0] ** 4 / 4 - x[0] ** 2 / 2) + 0.5 * jnp.sum(jnp.arange(1, x.size) * x[1:] ** 2)


@pytest.mark.parametrize("dense_below", [256, 0], ids=["dense", "by products"])
@pytest.mark.parametrize(
    "guess", [[0.1, 1.0, 1.0], [0.0, 1.0, -2.0], [0.0, 0.0, 0.0]], ids=["near", "led to the saddle", "on the saddle"]
)
def test_newton_does_not_end_at_a_saddle(guess, dense_below):
    solution = om.solve(om.Minimize(double_well), Newton(dense_below=dense_below), jnp.array(guess))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(np.abs(solution.value), [1.0, 0.0, 0.0], atol=1e-6)
    assert np.all(np.diff(solution.history["value"]) <= 1e-12)


@pytest.mark.parametrize("dense_below", [256, 0], ids=["dense", "by products"])
def test_newton_leaves_a_maximum(dense_below):
    bump = om.Minimize(lambda x: jnp.sum(jnp.cos(x) * jnp.array([1.0, 2.0])))
    solution = om.solve(bump, Newton(dense_below=dense_below), jnp.zeros(2))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(jnp.cos(solution.value), -1.0, atol=1e-8)


def test_newton_does_not_take_a_flat_minimum_for_a_saddle():
    valley = om.Minimize(lambda x: (x[0] + x[1] - 1.0) ** 2)  # singular Hessian everywhere
    for guess in ([0.3, 0.4], [0.5, 0.5]):
        solution = om.solve(valley, Newton(), jnp.array(guess))
        assert solution.result == om.Result.converged and solution.steps <= 3


def test_newton_without_a_minimum_does_not_say_converged():
    solution = om.solve(om.Minimize(lambda x: x[0] ** 2 - x[1] ** 2), Newton(), jnp.zeros(2), throw=False)
    assert solution.result != om.Result.converged


# Block coordinate descent on the leaves of a pytree.


def test_blocks_are_the_leaves_of_a_pytree_each_with_its_own_curvature():
    theta = jnp.array([0.9, -0.6, 0.7])
    vector = lambda x: jnp.concatenate([x["a"], x["b"]["c"][None] * 3])  # the second block is scaled otherwise
    fn = lambda x, theta: 0.5 * vector(x) @ (HESSIAN @ vector(x)) - theta @ vector(x)
    prox = lambda x, step: {"a": proximal.lasso(x["a"], step, 0.1), "b": {"c": jnp.maximum(x["b"]["c"], 0)}}
    guess = {"a": jnp.zeros(2), "b": {"c": jnp.ones(())}}
    solution = om.solve(om.Composite(fn, prox, theta), BlockCoordinateDescent(tolerance=1e-9), guess)
    assert solution.result == om.Result.converged and solution.state.step_sizes.shape == (2,)
    # both entries of a are at a kink's smooth side or at zero: stationarity block by block
    gradient = jax.grad(fn)(solution.value, theta)
    a, slope = solution.value["a"], gradient["a"]
    np.testing.assert_allclose(np.where(a != 0, slope + 0.1 * np.sign(a), 0), 0, atol=1e-8)
    assert np.all(np.abs(slope) <= 0.1 + 1e-8) and solution.value["b"]["c"] > 0
    np.testing.assert_allclose(gradient["b"]["c"], 0, atol=1e-8)
    other = om.solve(om.Composite(fn, prox, theta), ProximalGradient(tolerance=1e-10), guess, budget=om.Budget(steps=20000))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-8), solution.value, other.value)


def test_a_step_size_for_each_block_is_refused_if_there_are_other_blocks():
    problem = om.Composite(lambda x: jnp.sum(x["a"] ** 2) + x["b"] ** 2, lambda x, step: x)
    method = BlockCoordinateDescent(step_size=jnp.array([0.1, 0.2, 0.3]))
    with pytest.raises(om.errors.ArgumentError, match="step_size"):
        om.solve(problem, method, {"a": jnp.zeros(2), "b": jnp.zeros(())})


# Mirror maps of one's own.


def test_a_quadratic_mirror_map_is_preconditioned_gradient_descent():
    metric, theta = jnp.diag(jnp.array([4.0, 1.0, 2.0])), jnp.array([0.9, -0.6, 0.3])
    problem = om.Composite(lambda x, theta: 0.5 * x @ (HESSIAN @ x) - theta @ x, lambda x, step: x, theta)
    method = MirrorDescent(0.5, to_dual=lambda x: metric @ x, from_dual=lambda y: jnp.linalg.solve(metric, y))
    x = jnp.ones(3)
    for _ in range(5):
        x = x - 0.5 * jnp.linalg.solve(metric, HESSIAN @ x - theta)
    few = om.solve(problem, method, jnp.ones(3), budget=om.Budget(steps=5))
    np.testing.assert_allclose(few.value, x, rtol=1e-12)
    np.testing.assert_allclose(om.solve(problem, method, jnp.ones(3)).value, np.linalg.solve(HESSIAN, theta), atol=1e-5)


def test_the_entropy_of_positive_vectors_as_mirror_map_and_the_derivative_of_its_solution():
    rows, targets = jnp.asarray(np.abs(A[:4, :3])), jnp.array([1.0, 2.0, 1.5, 1.0])
    fn = lambda x, targets: jnp.sum(rows @ x - targets * jnp.log(rows @ x))  # Poisson likelihood
    method = MirrorDescent(0.2, to_dual=jnp.log, from_dual=jnp.exp, tolerance=1e-10)
    positive = lambda x, step: jnp.maximum(x, 1e-12)
    solve = lambda targets: om.solve(
        om.Composite(fn, positive, targets), method, jnp.ones(3), budget=om.Budget(steps=20000)
    ).value
    x, jacobian = jax.jit(lambda targets: (solve(targets), jax.jacrev(solve)(targets)))(targets)
    inside = np.asarray(x) > 1e-6
    assert inside.any()
    reference = scipy.optimize.minimize(
        lambda x: float(fn(jnp.asarray(x), targets)), np.ones(3), jac=lambda x: np.asarray(jax.grad(fn)(jnp.asarray(x), targets)),
        bounds=[(1e-12, None)] * 3, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12},
    )  # fmt: skip
    np.testing.assert_allclose(x, reference.x, atol=1e-5)
    rows_in = np.asarray(rows)[:, inside]
    intensity = np.asarray(rows @ x)
    expected = np.linalg.solve(rows_in.T @ (rows_in * (targets / intensity**2)[:, None]), rows_in.T / intensity)
    np.testing.assert_allclose(jacobian[inside], expected, rtol=1e-4)


# Multipliers.


def test_multipliers_are_those_of_trust_constr():
    cost = lambda x: jnp.sum((x - jnp.array([2.0, 1.5, -3.0, -0.5])) ** 2) + 0.3 * x[0] * x[1]
    equality = lambda x: jnp.array([jnp.sum(x) - 1.0])
    inequality = lambda x: jnp.array([x[0] ** 2 + x[1] ** 2 - 0.6, x[2] - 5.0])  # the second one is not active
    lower, upper = np.array([-1.0, -1.0, -0.25, -1.0]), np.full(4, 0.9)
    problem = om.Constrained(cost, equalities=equality, inequalities=inequality, bounds=(lower, upper))
    guess = jnp.array([0.5, 0.5, 0.0, 0.0])
    reference = scipy.optimize.minimize(
        lambda x: float(cost(x)), guess, jac=lambda x: np.asarray(jax.grad(cost)(jnp.asarray(x))), method="trust-constr",
        bounds=scipy.optimize.Bounds(lower, upper),
        constraints=[scipy.optimize.NonlinearConstraint(lambda x, fn=fn: np.asarray(fn(jnp.asarray(x))), low, 0.0,
                                                        jac=lambda x, fn=fn: np.asarray(jax.jacobian(fn)(jnp.asarray(x))))
                     for fn, low in ((equality, 0.0), (inequality, -np.inf))],
        options={"gtol": 1e-10, "xtol": 1e-12, "barrier_tol": 1e-12, "maxiter": 2000},
    )  # fmt: skip
    nu, mu, bounds = reference.v
    for method in (Scipy("SLSQP", tolerance=1e-12), Scipy("trust-constr", tolerance=1e-10)):
        value = om.solve(problem, method, guess).value
        np.testing.assert_allclose(value.primal, reference.x, atol=1e-6)
        np.testing.assert_allclose(value.equality, nu, atol=1e-4)
        np.testing.assert_allclose(value.inequality, mu, atol=1e-4)
        np.testing.assert_allclose(value.upper - value.lower, bounds, atol=1e-4)
    assert value.inequality[0] > 0.1 and value.inequality[1] == 0 and np.max(value.lower) > 0.1  # it is not all zero


def test_projected_gradient_on_a_box_has_the_multipliers_of_the_kkt_conditions():
    """The same solution and sensitivity as the KKT conditions give, though this method knows no multipliers."""
    theta, box = jnp.array([0.9, -0.6, 0.3]), lambda x, step: jnp.clip(x, -0.1, 0.35)
    fn = lambda x, theta: 0.5 * x @ (HESSIAN @ x) - theta @ x
    by_projection = lambda t: om.solve(om.Composite(fn, box, t), ProjectedGradient(tolerance=1e-10), jnp.zeros(3)).value
    by_multipliers = lambda t: om.solve(
        om.Constrained(fn, t, bounds=(-0.1, 0.35)), Scipy("SLSQP", tolerance=1e-12), jnp.zeros(3)
    ).value.primal
    for ours, theirs in ((by_projection, by_multipliers), (jax.jacrev(by_projection), jax.jacrev(by_multipliers))):
        np.testing.assert_allclose(ours(theta), theirs(theta), atol=1e-6)
