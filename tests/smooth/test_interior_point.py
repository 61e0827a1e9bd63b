"""The interior point method on problems with known answers, and on those that have none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError
from optimand.smooth import InteriorPoint
from optimand.smooth.barrier import Barrier, Iterate, Layout
from optimand.smooth.filter_search import Filter
from optimand.smooth.kkt_system import KKTSystem, regularised


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def hs71():
    return om.Constrained(
        lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equalities=lambda x: jnp.sum(x**2, keepdims=True) - 40,
        inequalities=lambda x: 25 - jnp.prod(x, keepdims=True),
        bounds=(1.0, 5.0),
    )


@pytest.fixture(scope="module")
def solve_hs71():
    """A compiled solve, of guess and warm multipliers: Hock and Schittkowski 1981, problem 71."""
    return eqx.filter_jit(lambda guess: om.solve(hs71(), InteriorPoint(), guess, throw=False, budget=om.Budget(steps=60)))


def test_hs71_with_its_multipliers(solve_hs71):
    problem = hs71()
    solution = solve_hs71(problem.start(jnp.array([1.0, 5.0, 5.0, 1.0])))
    assert solution.result == om.Result.converged and solution.steps <= 15
    value = solution.value
    np.testing.assert_allclose(value.primal, [1.0, 4.742999, 3.821150, 1.379408], atol=2e-6)
    np.testing.assert_allclose(value.equality, [0.161469], atol=1e-5)
    np.testing.assert_allclose(value.inequality, [0.552294], atol=1e-5)
    np.testing.assert_allclose(value.lower, [1.087871, 0, 0, 0], atol=1e-5)
    assert problem.kkt_residual(value).largest <= 1e-6


def test_a_warm_start_takes_fewer_steps(solve_hs71):
    cold = solve_hs71(hs71().start(jnp.array([1.0, 5.0, 5.0, 1.0])))
    warm = solve_hs71(cold.value)
    assert warm.result == om.Result.converged and warm.steps < cold.steps - 2


def quick(problem, guess, steps=120, **options):
    """Solved under jit."""
    method = InteriorPoint(**options)
    run = lambda guess: om.solve(problem, method, guess, throw=False, budget=om.Budget(steps=steps))
    return eqx.filter_jit(run)(guess)


def test_contradictory_equalities_end_as_infeasible_with_the_least_violation():
    problem = om.Constrained(lambda x: jnp.sum(x**2), equalities=lambda x: jnp.stack([x[0] ** 2 + 1.0, x[1] - 2.0]))
    solution = quick(problem, jnp.array([3.0, 0.5]))
    assert solution.result == om.Result.infeasible
    np.testing.assert_allclose(solution.value.primal, [0.0, 2.0], atol=1e-3)
    np.testing.assert_allclose(problem.violation(solution.value.primal), 1.0, atol=1e-5)


def test_an_objective_without_a_minimum_ends_as_diverged():
    problem = om.Constrained(lambda x: -x[0] + x[1] ** 2, inequalities=lambda x: x[:1] * 0 + x[1:] - 1.0, bounds=(0.0, None))
    assert quick(problem, jnp.array([1.0, 0.5]), steps=300).result == om.Result.diverged


def test_multipliers_too_large_for_the_tolerance_end_the_solve_as_converged_where_rounding_does():
    problem = om.Constrained(lambda x: 1e12 * jnp.sum(x), inequalities=lambda x: 1 - x[:1] * x[1:], bounds=(0.0, None))
    solution = quick(problem, jnp.array([3.0, 0.5]), steps=300)
    assert solution.result == om.Result.converged
    assert 1e-6 < problem.kkt_residual(solution.value).largest <= 1e-6 * 1e12
    np.testing.assert_allclose(solution.value.primal, 1.0, atol=1e-6)


def test_constraints_that_repeat_each_other_are_solved():
    """The Jacobian has rank one of three, so multipliers are not unique; the point is."""
    repeated = lambda x: jnp.stack([x[0] + x[1] - 1.0, 2 * x[0] + 2 * x[1] - 2.0, x[0] + x[1] - 1.0])
    problem = om.Constrained(lambda x: jnp.sum((x - jnp.array([2.0, 1.0])) ** 2), equalities=repeated)
    solution = quick(problem, jnp.array([5.0, -3.0]))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value.primal, [1.0, 0.0], atol=1e-6)


def test_fixed_variables_are_constants_with_multipliers_and_empty_constraints_are_none():
    problem = om.Constrained(
        lambda x: jnp.sum((x["a"] - 1.0) ** 2) + (x["b"] + x["a"][0]) ** 2,
        equalities=lambda x: jnp.zeros((0,)),
        inequalities=lambda x: {"none": x["a"][:0]},
        bounds=({"a": jnp.array([-1.0, 0.5]), "b": -3.0}, {"a": jnp.array([4.0, 0.5]), "b": 3.0}),
    )
    guess = {"a": jnp.array([3.0, 3.0]), "b": jnp.array(2.0)}
    solution = om.solve(problem, InteriorPoint(), guess, budget=om.Budget(steps=60))
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value.primal["a"], [1.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(solution.value.primal["b"], -1.0, atol=1e-6)
    np.testing.assert_allclose(solution.value.upper["a"][1], 1.0, atol=1e-5)
    assert problem.kkt_residual(solution.value).largest <= 1e-6


def test_without_constraints_it_is_newtons_method_that_avoids_maxima():
    """From where the Hessian is indefinite it still ends at a minimum: cos + a bowl."""
    problem = om.Constrained(lambda x: jnp.sum(jnp.cos(2 * x)) + 0.1 * jnp.sum(x**2))
    solution = quick(problem, jnp.array([0.1, -0.2]))
    assert solution.result == om.Result.converged
    curvature = jnp.diagonal(jax.hessian(problem.value)(solution.value.primal))
    assert jnp.all(curvature > 0)


def test_nan_in_a_trial_point_is_backed_away_from():
    problem = om.Constrained(lambda x: jnp.sum(x - jnp.log(x)) + 1e-3 * jnp.sum(jnp.sqrt(4.0 - x)))
    solution = quick(problem, jnp.array([0.01, 3.9]))
    assert solution.result == om.Result.converged
    assert jnp.all(jnp.abs(solution.value.primal - 1.0) < 1e-2)


def test_crossed_bounds_and_bad_numbers_are_refused_by_name():
    problem = om.Constrained(lambda x: jnp.sum(x), bounds=(1.0, 0.0))
    with pytest.raises(ArgumentError, match="bounds"):
        om.solve(problem, InteriorPoint(), jnp.zeros(2))
    for name, wrong in (("tolerance", 0.0), ("barrier", -1.0), ("push", 0.7), ("relaxation", -1e-8)):
        with pytest.raises(ArgumentError, match=name):
            InteriorPoint(**{name: wrong})


@pytest.mark.thorough
def test_a_batch_of_programs_is_solved_as_each_alone_and_differentiated():
    """Random small nonconvex programs under vmap; gradients of their solutions against central differences.

    The tolerance is small because some come near to a change of the active set, which a barrier rounds off.
    """

    def loss(theta):
        problem = om.Constrained(
            lambda x, theta: jnp.sum((x - theta) ** 2) + 0.1 * jnp.prod(x),
            theta,
            equalities=lambda x, theta: x[:1] * x[1:2] - 0.5,
            inequalities=lambda x, theta: jnp.sum(x**2, keepdims=True) - 2.0,
            bounds=(0.1, 3.0),
        )
        solution = om.solve(problem, InteriorPoint(tolerance=1e-10), jnp.ones(3), throw=False, budget=om.Budget(steps=60))
        return solution.value.primal @ jnp.array([1.0, 2.0, 3.0]), solution.result.code

    thetas = jax.random.uniform(jax.random.key(1), (40, 3), minval=0.2, maxval=2.0)
    h = 1e-5
    shifts = jnp.concatenate([h * jnp.eye(3), -h * jnp.eye(3)])
    batch = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
    (_, codes), gradients = batch(thetas)
    assert jnp.all(codes == om.Result.converged.code)
    moved = jax.jit(jax.vmap(jax.vmap(loss)))(thetas[:, None] + shifts)[0]
    numeric = (moved[:, :3] - moved[:, 3:]) / (2 * h)
    np.testing.assert_allclose(gradients, numeric, atol=1e-4)


def test_the_inertia_is_corrected_just_as_far_as_needed():
    layout = Layout(3, 1, 0)
    system = lambda curvature: KKTSystem(
        layout, jnp.diag(jnp.array(curvature)), jnp.array([[1.0, 0.0, 0.0]]), jnp.zeros(5), jnp.arange(5) < 3, jnp.full(1, 1e-9)
    )
    zero = jnp.zeros(())
    assert regularised(system([-5.0, 1.0, 2.0]), zero)[0] == 0  # negative only where the constraint holds it
    delta, last, _ = regularised(system([1.0, -5.0, 2.0]), zero)
    assert delta > 5 and last == delta
    assert regularised(system([1.0, -5.0, 2.0]), last)[0] < 8 * 5


def test_the_linear_system_is_solved_with_all_its_eliminated_parts():
    """Against the full matrix, put together by hand, in the elastic phase."""
    layout = Layout(3, 1, 2)
    keys = jax.random.split(jax.random.key(0), 5)
    half = jax.random.normal(keys[0], (3, 3))
    jacobian = jax.random.normal(keys[1], (3, 3))
    sigma = jax.random.uniform(keys[2], (layout.length,), minval=0.5, maxval=2.0)
    system = KKTSystem(layout, half + half.T, jacobian, sigma, jnp.ones(layout.length, bool), jnp.full(3, 1e-3))
    r, q = jax.random.normal(keys[3], (layout.length,)), jax.random.normal(keys[4], (3,))
    step, dual = system.factorised(jnp.array(0.1)).solve(r, q)
    a = jnp.concatenate([jacobian, jnp.eye(3)[:, 1:], -jnp.eye(3), jnp.eye(3)], axis=1)
    w = jnp.diag(sigma + 0.1).at[:3, :3].add(half + half.T)
    full = jnp.block([[w, a.T], [a, -1e-3 * jnp.eye(3)]])
    np.testing.assert_allclose(jnp.concatenate([step, dual]), jnp.linalg.solve(full, jnp.concatenate([r, q])), rtol=1e-8)


def test_the_barrier_has_the_gradient_it_says_and_keeps_inside():
    layout = Layout(3, 0, 1)
    barrier = Barrier.of(layout, jnp.array([0.0, -jnp.inf, 2.0]), jnp.array([1.0, 5.0, 2.0]), jnp.array(1e-8))
    barrier = barrier.when(jnp.array(False))
    v = barrier.inside(jnp.array([3.0, 9.0, 2.0, 0.5, 0.0, 0.0]), jnp.array(1e-2))
    assert v[0] < 1 and v[1] < 5 and v[2] == 2
    mu = jnp.array(0.3)
    np.testing.assert_allclose(barrier.gradient(v, mu), jax.grad(barrier.value)(v, mu), rtol=1e-8)
    step = jnp.array([1.0, 1.0, 0.0, -1.0, 0.0, 0.0])
    length = barrier.longest(v, step, jnp.array(0.99))
    assert jnp.min(barrier.gaps(v + length * step)) > 0
    far = Iterate(v, jnp.zeros(1), jnp.full((2, 6), 1e30))
    assert jnp.all(barrier.safeguarded(far, mu).bounds * barrier.gaps(v) <= 1.001e10 * mu)


def test_the_filter_refuses_what_it_has_seen():
    pairs = Filter.at(jnp.array(1.0)).extended(jnp.array(1.0), jnp.array(5.0), jnp.array(True))
    accepts = lambda theta, phi: bool(pairs.accepts(jnp.array(theta), jnp.array(phi)))
    assert accepts(0.5, 9.0) and accepts(2.0, 4.0)
    assert not accepts(1.0, 5.0) and not accepts(2.0, 6.0) and not accepts(1e5, -1.0) and not accepts(0.1, jnp.nan)
    assert pairs.emptied(jnp.array(True)).accepts(jnp.array(2.0), jnp.array(6.0))
