"""Transport of masses that need not be equal: closed forms, limits, the mass of the plan, derivatives, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.transport import Coupling, PointCloud, Potentials, SinkhornNewton, UnbalancedCoupling, UnbalancedSinkhorn


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def given(n=7, m=5, seed=0):
    """A cost, and weights whose sums differ."""
    rng = np.random.default_rng(seed)
    return {
        "cost": jnp.asarray(rng.uniform(size=(n, m))),
        "a": jnp.asarray(rng.uniform(0.5, 1.5, n)),
        "b": jnp.asarray(rng.uniform(0.2, 0.8, m)),
        "epsilon": jnp.asarray(0.05),
        "tau": (jnp.asarray(0.5), jnp.asarray(0.8)),
    }


def solved(problem, tolerance=1e-13):
    return om.solve(problem, UnbalancedSinkhorn(tolerance), budget=om.Budget(steps=20_000)).value


def one_point(cost, a, b, epsilon, tau_a, tau_b):
    """The mass that is moved between two points."""
    if np.isinf(tau_a) or np.isinf(tau_b):
        return a if np.isinf(tau_a) else b
    return np.exp((epsilon * np.log(a * b) + tau_a * np.log(a) + tau_b * np.log(b) - cost) / (epsilon + tau_a + tau_b))


@pytest.mark.parametrize("tau", [(0.5, 0.8), (1e-3, 1e3), (np.inf, 0.8), (0.5, np.inf)])
def test_between_two_points_the_mass_is_that_of_the_closed_form(tau):
    problem = UnbalancedCoupling(jnp.array([[0.7]]), jnp.array([2.0]), jnp.array([0.3]), epsilon=0.1, tau=tau)
    x = solved(problem)
    wanted = one_point(0.7, 2.0, 0.3, 0.1, *tau)
    np.testing.assert_allclose(problem.plan(x), [[wanted]], rtol=1e-10)
    np.testing.assert_allclose(problem.mass(x), wanted, rtol=1e-10)
    np.testing.assert_allclose(problem.gap(x), 0, atol=1e-10)


def test_at_the_solution_value_gap_and_mass_fit_together():
    parts = given()
    problem = UnbalancedCoupling(**parts)
    x = solved(problem)
    plan, mass = problem.plan(x), problem.mass(x)
    rows, columns = problem.asked(x)
    np.testing.assert_allclose(plan.sum(1), rows, rtol=1e-10)
    np.testing.assert_allclose(plan.sum(0), columns, rtol=1e-10)
    np.testing.assert_allclose(plan.sum(), mass, rtol=1e-12)
    np.testing.assert_allclose(problem.dual(x), problem.primal(plan), rtol=1e-10)
    np.testing.assert_allclose(problem.gap(x), 0, atol=1e-10)
    a, b = jnp.sum(parts["a"]), jnp.sum(parts["b"])
    value = 0.5 * (a - mass) + 0.8 * (b - mass) + 0.05 * (a * b - mass)
    np.testing.assert_allclose(problem.dual(x), value, rtol=1e-10)
    assert min(a, b) < mass < max(a, b)
    np.testing.assert_allclose(problem.translation(x), 0, atol=1e-12)
    for other in (0.9 * plan, 1.1 * plan, plan + 0.01):
        assert problem.primal(other) > problem.primal(plan)
    rough = om.solve(problem, UnbalancedSinkhorn(1e-2)).value
    assert problem.dual(rough) <= problem.dual(x) + 1e-14 and problem.gap(rough) >= problem.dual(x) - problem.dual(rough)


def test_infinite_tau_is_balanced_and_large_tau_comes_near():
    cost, a, b = (given()[name] for name in ("cost", "a", "b"))
    a, b = a / jnp.sum(a), b / jnp.sum(b)
    balanced = Coupling(cost, a, b, epsilon=0.05)
    plan = balanced.plan(om.solve(balanced, SinkhornNewton(1e-13)).value)
    exact = UnbalancedCoupling(cost, a, b, epsilon=0.05, tau=np.inf)
    x = solved(exact)
    np.testing.assert_allclose(exact.plan(x), plan, atol=1e-12)
    np.testing.assert_allclose(exact.dual(x), balanced.dual(x), atol=1e-12)
    np.testing.assert_allclose(exact.value(x), balanced.value(x), atol=1e-12)
    far = []
    for tau in (1e2, 1e4, 1e6):
        near = UnbalancedCoupling(cost, a, b, epsilon=0.05, tau=tau)
        solution = om.solve(near, UnbalancedSinkhorn(1e-11), budget=om.Budget(steps=2000))
        assert solution.result == om.Result.converged and solution.steps < 400  # the translation spares tau / epsilon of them
        far.append(jnp.sum(jnp.abs(near.plan(solution.value) - plan)))
    assert far[1] < 0.02 * far[0] and far[2] < 0.02 * far[1] < 1e-5


def test_one_marginal_is_exact_if_its_tau_is_infinite():
    parts = {**given(), "tau": (np.inf, 0.3)}
    problem = UnbalancedCoupling(**parts)
    x = solved(problem)
    np.testing.assert_allclose(problem.plan(x).sum(1), parts["a"], rtol=1e-10)
    np.testing.assert_allclose(problem.gap(x), 0, atol=1e-10)
    rough = om.solve(problem, UnbalancedSinkhorn(1e-2)).value
    np.testing.assert_allclose(problem.feasible_plan(rough).sum(1), parts["a"], rtol=1e-12)


def test_mass_is_destroyed_rather_than_moved_far():
    x, y = jnp.array([[0.0], [10.0]]), jnp.array([[0.1]])
    problem = UnbalancedCoupling(PointCloud(x, y), jnp.array([1.0, 1.0]), jnp.array([1.0]), epsilon=0.01, tau=1.0)
    plan = problem.plan(solved(problem))
    np.testing.assert_allclose(plan[0, 0], one_point(0.01, 1.0, 1.0, 0.01, 1.0, 1.0), rtol=1e-6)
    assert plan[1, 0] < 1e-15


def test_sweeps_raise_the_dual_and_newtons_method_ends_them():
    parts = {**given(20, 15), "epsilon": 0.01}
    problem = UnbalancedCoupling(**parts)
    rough = om.solve(problem, UnbalancedSinkhorn(1e-3), budget=om.Budget(steps=5000))
    assert np.all(np.diff(rough.history["value"]) <= 1e-14)
    exact = om.solve(problem, om.smooth.Newton(tolerance=1e-12), rough.value)
    assert exact.result == om.Result.converged and exact.steps <= 10
    by_sweeps = om.solve(problem, UnbalancedSinkhorn(1e-12), budget=om.Budget(steps=20_000))
    assert by_sweeps.steps > 10 * exact.steps
    np.testing.assert_allclose(exact.value.f, by_sweeps.value.f, atol=1e-9)


def test_the_gradient_is_that_of_the_value():
    for tau in ((0.5, 0.8), (np.inf, 0.3)):
        problem = UnbalancedCoupling(**{**given(), "tau": tau})
        x = Potentials(0.2 * jnp.sin(jnp.arange(7.0)), 0.2 * jnp.cos(jnp.arange(5.0)))
        slope = jax.grad(problem.value)(x)
        for got, wanted in zip(jax.tree.leaves(problem.gradient(x)), jax.tree.leaves(slope), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12)


def quantities(parts):
    problem = UnbalancedCoupling(**parts)
    x = om.solve(problem, UnbalancedSinkhorn(1e-13), budget=om.Budget(steps=3000)).value
    return jnp.stack([problem.envelope(x), problem.dual(x), problem.transport_cost(x), problem.mass(x)])


@functools.cache
def slopes():
    return jax.jit(jax.jacrev(quantities))(given())


@pytest.mark.parametrize("of", given())
def test_derivatives_by_the_envelope_theorem_the_implicit_function_theorem_and_differences(of):
    parts = given()
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape)), parts[of])
    at = lambda t: quantities({**parts, of: jax.tree.map(lambda leaf, move: leaf + t * move, parts[of], direction)})
    _, value, *others = (at(1e-5) - at(-1e-5)) / 2e-5
    along = jax.tree.map(lambda slope, move: jnp.tensordot(slope, move, move.ndim), slopes()[of], direction)
    envelope, implicit, *ours = sum(jax.tree.leaves(along))
    np.testing.assert_allclose(envelope, value, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(implicit, envelope, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(jnp.stack(ours), jnp.stack(others), rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_on_blocks_and_with_forbidden_pairs():
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=(20 + i, 2))) for i in (0, 1))
    problems = [UnbalancedCoupling(PointCloud(x, y, dense_below=below, block=6), epsilon=0.1, tau=0.5, relative=True) for below in (0, 1000)]
    values = [solved(problem, 1e-11) for problem in problems]
    np.testing.assert_allclose(values[0].f, values[1].f, atol=1e-10)
    parts = given()
    cost = parts["cost"].at[:4, 0].set(jnp.inf)
    problem = UnbalancedCoupling(**{**parts, "cost": cost})
    solution = om.solve(problem, UnbalancedSinkhorn(1e-10), budget=om.Budget(steps=3000))
    plan = problem.plan(solution.value)
    assert solution.result == om.Result.converged and jnp.all(plan[:4, 0] == 0) and jnp.all(plan[4:, 0] > 0)


BAD = {
    "`tau` must be positive": lambda: UnbalancedCoupling(**{**given(), "tau": 0.0}),
    "`tau` must be a number or a pair": lambda: UnbalancedCoupling(**{**given(), "tau": (1.0, 1.0, 1.0)}),
    "`tau` is infinite on both sides, and the sums differ": lambda: UnbalancedCoupling(**{**given(), "tau": np.inf}),
    "`a` must be positive and finite, which it is not at 2": lambda: UnbalancedCoupling(**{**given(), "a": jnp.ones(7).at[2].set(-1.0)}),
    "`cost` forbids all pairs of b at 1": lambda: UnbalancedCoupling(**{**given(), "cost": given()["cost"].at[:, 1].set(jnp.inf)}),
    "`epsilon` must be one positive": lambda: UnbalancedCoupling(**{**given(), "epsilon": 0.0}),
    "`UnbalancedCoupling` takes masses that differ": lambda: Coupling(given()["cost"], given()["a"], given()["b"], epsilon=0.05),
    "`tolerance`": lambda: UnbalancedSinkhorn(-1.0),
}  # fmt: skip


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()


def test_methods_for_equal_masses_refuse_it_by_name():
    with pytest.raises(om.errors.PairingError, match="UnbalancedSinkhorn"):
        om.solve(UnbalancedCoupling(**given()), om.transport.Sinkhorn())


COST = np.array([[0.1, 0.9, 0.5, 0.2], [0.6, 0.2, 0.8, 0.4], [0.7, 0.5, 0.3, 0.9]])


def moving(theta):
    a, b = jnp.array([0.5, 0.3, 0.2], theta.dtype), jnp.array([0.1, 0.2, 0.3, 0.7], theta.dtype)
    return UnbalancedCoupling(jnp.asarray(COST, theta.dtype) + 0.2 * theta[:, None] * jnp.arange(4.0), a, b, epsilon=0.2, tau=(1.0, 0.5))


@pytest.mark.thorough
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check):
    theta = jnp.array([0.5, -0.25, 1.0])
    check(Case(UnbalancedSinkhorn(1e-10), moving, theta, Potentials(jnp.zeros(3), jnp.zeros(4)), steps=300, tolerance=1e-5))
