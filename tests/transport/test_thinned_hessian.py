"""The preconditioner of derivatives: it is what it says, it saves products where epsilon is small, and derivatives are the same with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.krylov import conjugate_gradients
from optimand.transport import Coupling, PointCloud, Potentials, SinkhornNewton
from optimand.transport.rounding import largest
from optimand.transport.thinned_hessian import thinned_inverse
from optimand.transport.thinned_plan import ThinnedPlan


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def assignment(n=60, eta=2000.0):
    problem = Coupling(jnp.asarray(np.random.default_rng(0).uniform(size=(n, n))), epsilon=1 / eta)
    return problem, om.solve(problem, SinkhornNewton(1e-9), budget=om.Budget(steps=2000)).value


def hessian(problem, x):
    _, product = jax.linearize(problem.gradient, x)
    return product


@pytest.mark.thorough
def test_with_all_entries_it_is_the_inverse_and_it_is_symmetric():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.5, 1, 9), rng.uniform(0.5, 1, 7)
    problem = Coupling(rng.uniform(size=(9, 7)), a / a.sum(), b / b.sum(), epsilon=0.05)
    x = om.solve(problem, SinkhornNewton(1e-13)).value
    plan, product = problem.plan(x), hessian(problem, x)
    draw = lambda: Potentials(jnp.asarray(rng.normal(size=9)), jnp.asarray(rng.normal(size=7)))
    inner = lambda u, v: u.f @ v.f + u.g @ v.g
    for density, exact in ((7, True), (2, False)):
        solve = thinned_inverse(plan, plan.sum(1), plan.sum(0), problem.epsilon, problem._stiffness, density)
        u, v = draw(), draw()
        np.testing.assert_allclose(inner(u, solve(v)), inner(v, solve(u)), rtol=1e-5)
        assert inner(u, solve(u)) > 0
        if exact:
            back = solve(product(u))
            np.testing.assert_allclose(back.f, u.f, atol=1e-5)
            np.testing.assert_allclose(back.g, u.g, atol=1e-5)


@pytest.mark.thorough
def test_products_with_the_whole_plan_are_few_where_they_were_many():
    problem, x = assignment()
    product, rhs = hessian(problem, x), jax.grad(problem.transport_cost)(x)
    size = jnp.sqrt(jnp.sum(rhs.f**2) + jnp.sum(rhs.g**2))
    left = {
        (name, steps): float(conjugate_gradients(product, rhs, None, preconditioner, 1e-8, steps)[1] / size)
        for name, preconditioner in (("diagonal", problem.precondition), ("thinned", problem.preconditioner(x)()))
        for steps in (4, 60)
    }
    assert left["thinned", 4] <= 1e-8 < left["diagonal", 60]


def test_derivatives_are_those_without_it_and_those_of_differences():
    problem, x = assignment(40, 400.0)
    move = jnp.asarray(np.random.default_rng(2).normal(size=(40, 40)))

    def run(t, preconditioner=None):
        moved = Coupling(problem.cost.entries + t * move, epsilon=problem.epsilon)
        adjoint = om.Implicit(preconditioner=preconditioner)
        solution = om.solve(moved, SinkhornNewton(1e-12, warmup=0), x, adjoint=adjoint)
        return moved.transport_cost(solution.value)

    slopes = [jax.jit(jax.grad(lambda t, p=p: run(t, p)))(0.0) for p in (None, problem.preconditioner(x)())]
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)
    np.testing.assert_allclose(slopes[0], (run(1e-6) - run(-1e-6)) / 2e-6, rtol=1e-4)


def test_a_cost_without_a_matrix_has_none():
    problem = Coupling(PointCloud(np.ones((3, 2)), dense_below=0), epsilon=1.0)
    assert problem.preconditioner(problem.start(None)) is None


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("slack", [0.0, 0.2])
def test_products_with_the_largest_entries_are_those_of_the_masked_plan(shape, slack):
    plan = jax.random.uniform(jax.random.key(0), shape) ** 4
    kept = ThinnedPlan.of(plan, 200, slack)
    thin = jnp.where(largest(plan, 200, slack), plan, 0)
    u, v = (jax.random.normal(jax.random.key(k + 1), (shape[k],)) for k in range(2))
    np.testing.assert_allclose(kept.times(v), thin @ v, rtol=1e-12)
    np.testing.assert_allclose(kept.times_transposed(u), u @ thin, rtol=1e-12)


def test_the_last_entry_of_a_plan_is_kept_beside_places_that_hold_none():
    plan = jnp.zeros((4, 5)).at[3, 4].set(1.0).at[0, 1].set(0.5)
    kept = ThinnedPlan.of(plan, 6)
    np.testing.assert_allclose(kept.times(jnp.arange(5.0)), plan @ jnp.arange(5.0))
    np.testing.assert_allclose(kept.times_transposed(jnp.arange(4.0)), jnp.arange(4.0) @ plan)
