"""`optimand.minimize` keeps the conventions of `scipy.optimize.minimize`, and adds derivatives of solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.core.errors import ArgumentError

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`

START = [0.5, 0.2]


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def on_numpy(x):
    x = np.asarray(x, float)
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2))


def test_names_of_our_methods_need_no_capitals():
    found = om.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(2), method="gradientdescent")
    assert found.success and found.method == "GradientDescent"


def test_the_fields_are_those_of_scipy_in_double_precision():
    result = om.minimize(rosenbrock, START)
    assert isinstance(result, scipy.optimize.OptimizeResult)
    assert result.success and result.status == 0 and "Converged" in result.message
    assert isinstance(result.x, np.ndarray) and result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, 1.0, atol=1e-6)
    assert result.fun < 1e-12 and np.max(np.abs(result.jac)) < 1e-5
    assert min(result.nit, result.nfev, result.njev) > 0
    assert result.solution.result == om.Result.converged


def test_jax_arrays_keep_their_precision_and_their_kind():
    result = om.minimize(rosenbrock, jnp.asarray(START), method="BFGS")
    assert isinstance(result.x, jax.Array) and result.x.dtype == jnp.float32 and result.success


CONSTRAINED = {
    "a dictionary": [{"type": "ineq", "fun": lambda x: x[0] - 1.2}],
    "a dictionary with arguments, and an equality": [
        {"type": "eq", "fun": lambda x, c: x[0] + x[1] - c, "args": (1.0,)},
    ],
    "linear, on both sides, and nonlinear": [
        scipy.optimize.LinearConstraint([[1.0, 1.0], [1.0, -1.0]], [-np.inf, -1.0], [1.5, 0.1]),
        scipy.optimize.NonlinearConstraint(lambda x: x[0] * x[1], 0.1, 0.3),
    ],
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_and_bounds_give_the_points_of_scipy_and_multipliers_with_its_sign(name):
    constraints, bounds = CONSTRAINED[name], [(None, 2.0), (-1.0, None)]
    method = om.smooth.Scipy("SLSQP", tolerance=1e-12)  # one method for both: the translation is what is compared
    ours = om.minimize(rosenbrock, START, constraints=constraints, bounds=bounds, method=method)
    theirs = scipy.optimize.minimize(on_numpy, START, constraints=constraints, bounds=bounds, method="SLSQP", tol=1e-12)
    assert ours.maxcv < 1e-7
    np.testing.assert_allclose(ours.x, theirs.x, atol=2e-4)
    np.testing.assert_allclose(ours.fun, theirs.fun, rtol=1e-5)
    assert len(ours.v) == len(constraints) + 1
    with jax.enable_x64(True):
        stationary = np.asarray(ours.jac) + ours.v[-1]
        for constraint, v in zip(constraints, ours.v, strict=False):
            if isinstance(constraint, scipy.optimize.LinearConstraint):
                jacobian = constraint.A
            else:
                fun = constraint["fun"] if isinstance(constraint, dict) else constraint.fun
                extra = constraint.get("args", ()) if isinstance(constraint, dict) else ()
                jacobian = np.asarray(jax.jacobian(lambda x, fun=fun, extra=extra: jnp.atleast_1d(fun(x, *extra)))(ours.x))
            stationary = stationary + v @ jacobian
    np.testing.assert_allclose(stationary, 0, atol=1e-4)


@pytest.mark.parametrize(
    "bounds", [[(0.0, 0.8), (None, None)], scipy.optimize.Bounds([0.0, -np.inf], [0.8, np.inf])], ids=["pairs", "Bounds"]
)
def test_bounds_of_both_kinds_hold_and_their_multiplier_is_the_slope(bounds):
    result = om.minimize(rosenbrock, START, bounds=bounds)
    np.testing.assert_allclose(result.x, [0.8, 0.64], atol=1e-6)
    np.testing.assert_allclose(result.v[0], -result.jac, atol=1e-5)


def test_trees_have_bounds_as_trees_and_results_like_them():
    start = {"a": 0.0, "b": np.zeros(2)}
    result = om.minimize(lambda p: (p["a"] - 1) ** 2 + jnp.sum((p["b"] - 2) ** 2), start, bounds=(None, {"a": 5.0, "b": 1.5}))
    np.testing.assert_allclose(result.x["a"], 1.0, atol=1e-6)
    np.testing.assert_allclose(result.x["b"], [1.5, 1.5], atol=1e-6)


@pytest.mark.parametrize("method", ["CG", "L-BFGS-B", "TNC", "Nelder-Mead", "LBFGS"])
def test_names_of_methods_are_understood(method):
    result = om.minimize(rosenbrock, START, method=method, tol=1e-6)
    assert result.success
    np.testing.assert_allclose(result.x, 1.0, atol=2e-3)


@pytest.mark.parametrize("method", ["trust-constr", "cobyla"])
def test_names_of_methods_for_constraints_are_understood(method):
    constraints = {"type": "ineq", "fun": lambda x: 1.5 - jnp.sum(x)}
    result = om.minimize(rosenbrock, START, method=method, constraints=constraints, options={"maxiter": 2000})
    np.testing.assert_allclose(np.sum(result.x), 1.5, atol=1e-3)


def test_derivatives_that_are_given_are_used():
    """A gradient of another function leads to another point: it was used, and so is the Hessian in Newton's method."""
    bowl = lambda x: jnp.sum((x - 1.0) ** 2)
    assert np.allclose(om.minimize(bowl, START, method="trust-exact", jac=jax.grad(bowl), hess=jax.hessian(bowl)).x, 1.0)
    halved = lambda x, p: p  # half of the true one: steps are twice too long, and have to be shortened
    spent = [om.minimize(bowl, START, method="trust-exact", jac=jax.grad(bowl), hessp=h).nfev for h in (lambda x, p: 2 * p, halved)]
    assert spent[0] < spent[1]
    both = om.minimize(lambda x: (bowl(x), 2 * (x - 1.0)), START, jac=True, method="BFGS")
    np.testing.assert_allclose(both.x, 1.0, atol=1e-6)


def test_arguments_are_passed_and_the_solution_is_differentiable_in_them():
    fun = lambda x, a, b: jnp.sum((x - a) ** 2) + b * jnp.sum(x)
    solve = lambda a, b: om.minimize(fun, jnp.zeros(2), (a, b), method="BFGS", tol=1e-6).x
    x, jacobians = jax.jit(lambda a, b: (solve(a, b), jax.jacobian(solve, argnums=(0, 1))(a, b)))(2.0, 1.0)
    np.testing.assert_allclose(x, 1.5, atol=1e-5)
    np.testing.assert_allclose(jacobians[0], 1.0, atol=1e-4)
    np.testing.assert_allclose(jacobians[1], -0.5, atol=1e-4)


def test_what_the_function_closes_over_is_differentiated_too():
    gradient = jax.grad(lambda a: om.minimize(lambda x: jnp.sum((x - a) ** 2), [0.0, 0.0], method="BFGS").x.sum())(2.0)
    np.testing.assert_allclose(gradient, 2.0, rtol=1e-4)


def test_functions_that_jax_cannot_trace_go_to_scipy_as_they_are():
    result = om.minimize(on_numpy, START, method="L-BFGS-B", bounds=[(0.0, 0.8), (None, None)])
    np.testing.assert_allclose(result.x, [0.8, 0.64], atol=1e-4)
    assert "SciPy" in result.method and result.solution is None
    tree = om.minimize(lambda p: float(np.sum((np.asarray(p["a"]) - 1) ** 2)), {"a": np.zeros((2, 2))})
    np.testing.assert_allclose(tree.x["a"], 1.0, atol=1e-5)
    with pytest.raises(ArgumentError, match=r"`fun`.*cannot be traced by JAX, which LBFGS needs"):
        om.minimize(on_numpy, START, method=om.smooth.LBFGS())
    with pytest.raises(ArgumentError, match=r"`fun`.*inside jit"):
        jax.jit(lambda x: om.minimize(on_numpy, x).x)(jnp.zeros(2))


def test_options_reach_the_method_or_the_budget_or_are_warned_of():
    with pytest.warns(scipy.optimize.OptimizeWarning, match="ftol"):
        result = om.minimize(rosenbrock, START, method="BFGS", options={"maxiter": 3, "memory": 4, "ftol": 1e-9})
    assert not result.success and result.status == om.Result.budget_spent.code and result.nit == 3
    assert result.solution.state.yy.shape == (5, 5)


def test_callbacks_of_both_kinds_see_points_and_can_end_the_solve():
    seen = []
    om.minimize(rosenbrock, START, method="BFGS", callback=lambda xk: seen.append(xk))
    np.testing.assert_allclose(seen[-1], 1.0, atol=1e-5)

    def stop(intermediate_result):
        assert intermediate_result.x.shape == (2,) and np.isfinite(intermediate_result.fun)
        raise StopIteration

    result = om.minimize(rosenbrock, START, method="BFGS", callback=stop)
    assert not result.success and result.status == om.Result.stopped.code


BAD = {
    "a start without numbers": (dict(x0=[]), "x0"),
    "a start of text": (dict(x0="ab"), "x0"),
    "a method that does not exist": (dict(method="Newton-Raphson"), "method"),
    "a method of another kind": (dict(method=3), "method"),
    "a method that takes no bounds": (dict(method="BFGS", bounds=[(0, 1), (0, 1)]), "method"),
    "bounds for another number of unknowns": (dict(bounds=[(0, 1)]), "bounds"),
    "bounds that cross": (dict(bounds=[(1, 0), (0, 1)]), "bounds"),
    "a constraint of no type": (dict(constraints={"fun": lambda x: x}), r"constraints\[0\]"),
    "a constraint of another kind": (dict(constraints=[lambda x: x]), r"constraints\[0\]"),
    "a matrix for another number of unknowns": (
        dict(constraints=scipy.optimize.LinearConstraint(np.ones((1, 3)), 0, 1)), r"constraints\[0\]",
    ),
    "bounds of a constraint that cross": (
        dict(constraints=scipy.optimize.NonlinearConstraint(lambda x: x, [2.0, 0.0], 1.0)), r"constraints\[0\]",
    ),
    "bounds of a constraint of another length": (
        dict(constraints=scipy.optimize.NonlinearConstraint(lambda x: x, np.zeros(3), 1.0)), r"constraints\[0\]",
    ),
    "a gradient of the wrong size": (dict(jac=lambda x: jnp.ones(3)), "jac"),
    "no pair though jac is True": (dict(jac=True), "fun"),
    "two budgets": (dict(options={"maxiter": 3}, budget=om.Budget(steps=5)), "options"),
    "options that are no dictionary": (dict(options=3), "options"),
    "a callback that cannot be called": (dict(callback=3), "callback"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named_before_anything_is_compiled(name, as_a_user):
    arguments, match = BAD[name]
    with pytest.raises(ArgumentError, match=match):
        om.minimize(rosenbrock, **{"x0": START, **arguments})


def test_advice_follows_the_problem_its_size_and_its_precision(as_a_user):
    bowl = lambda x: jnp.sum(x**2)
    named = lambda problem, guess=None: type(om.advise(problem, guess).method).__name__
    assert named(om.Minimize(bowl), jnp.zeros(100_000)) == "LBFGS"
    assert named(om.Minimize(bowl), jnp.zeros(3)) == "TrustRegion"
    assert named(om.LeastSquares(lambda x: x), jnp.zeros(3)) == "LevenbergMarquardt"
    assert named(om.Root(lambda x: x)) == "Newton" and named(om.FixedPoint(lambda x: x)) == "Anderson"
    assert named(om.Composite(bowl, om.smooth.proximal.lasso)) == "ProximalGradient"
    general = om.Constrained(bowl, equalities=lambda x: x[:1])
    single = om.advise(general, jnp.zeros(3))
    assert not single.method.requires_x64 and "single" in single.reason
    assert str(single).startswith(type(single.method).__name__) and om.advise(general, jnp.zeros(3), tolerance=1e-3)
    for problem, guess in ((om.Minimize(bowl), jnp.ones(3)), (om.Constrained(bowl, bounds=(0.5, None)), jnp.ones(3))):
        advice = om.advise(problem, guess)
        assert om.solve(problem, advice.method, guess).result == om.Result.converged
    with pytest.raises(ArgumentError, match="problem"):
        om.advise(bowl)
