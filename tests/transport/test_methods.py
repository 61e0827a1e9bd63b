"""Methods for couplings: that they agree, that the dual rises, what Newton's method adds, and how each ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.transport import (
    Coupling,
    PointCloud,
    Potentials,
    Sinkhorn,
    SinkhornNewton,
    SinkhornNewtonSparse,
    sparsify_coupling,
)
from optimand.transport.newton_iteration import cholesky, conjugate_gradients, newton_system
from optimand.transport.rounding import largest
from optimand.transport.thinned_plan import ThinnedPlan


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def assignment(n=40, eta=400.0, seed=0):
    """Random costs and equal weights."""
    return Coupling(jnp.asarray(np.random.default_rng(seed).uniform(size=(n, n))), epsilon=1 / eta)


def uneven(n=12, m=9):
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.1, 1, n), rng.uniform(0.1, 1, m)
    return Coupling(rng.uniform(size=(n, m)), a / a.sum(), b / b.sum(), epsilon=0.02)


METHODS = {
    "sinkhorn": Sinkhorn(1e-12),
    "sinkhorn, in logarithms": Sinkhorn(1e-12, domain="log"),
    "sinkhorn, relaxed": Sinkhorn(1e-12, relaxation=1.5),
    "sinkhorn, epsilon lowered": Sinkhorn(1e-12, first_epsilon=1.0),
    "newton, dense": SinkhornNewton(1e-12, hessian="dense"),
    "newton, products": SinkhornNewton(1e-12, hessian="products"),
    "sparse newton": SinkhornNewtonSparse(1e-12, density=3, direct=0),
    "sparse newton, few points": SinkhornNewtonSparse(1e-12),
    "sparse newton, warm-up that ends by itself": SinkhornNewtonSparse(1e-12, density=4, warmup="auto", direct=0),
}


@functools.cache
def reference():
    with jax.enable_x64(True):
        return om.solve(uneven(), SinkhornNewton(1e-13, hessian="dense")).value


@pytest.mark.parametrize("name", METHODS)
def test_they_agree_and_the_dual_rises(name):
    problem = uneven()
    solution = om.solve(problem, METHODS[name], budget=om.Budget(steps=20_000))
    assert solution.result == om.Result.converged and problem.marginal_error(solution.value) <= 2e-12
    np.testing.assert_allclose(solution.value.f, reference().f, atol=1e-9)
    np.testing.assert_allclose(solution.value.g, reference().g, atol=1e-9)
    if name != "sinkhorn, epsilon lowered":
        assert np.all(np.diff(solution.history["value"]) <= 1e-14)
    np.testing.assert_allclose(jnp.mean(solution.value.f), jnp.mean(solution.value.g), atol=1e-12)


def test_a_sweep_maximises_over_each_potential():
    problem = uneven()
    solution = om.solve(problem, Sinkhorn(0.0), budget=om.Budget(steps=1))
    _, log_columns = problem.log_errors(solution.value)
    np.testing.assert_allclose(log_columns, 0, atol=1e-13)
    f = -problem.epsilon * problem.soft_rows(jnp.zeros(9))
    np.testing.assert_allclose(solution.value.f - solution.value.f[0], f - f[0], atol=1e-14)
    np.testing.assert_allclose(jax.grad(lambda f: problem.dual(Potentials(f, jnp.zeros(9))))(f), 0, atol=1e-15)


@pytest.mark.parametrize("settings", [{}, {"relaxation": 1.4}, {"first_epsilon": 0.1}], ids=["plain", "relaxed", "epsilon lowered"])
def test_sweeps_by_products_are_those_in_logarithms(settings):
    problem = assignment(n=30, eta=5000.0)  # potentials move by hundreds of epsilon
    forbidden = jnp.eye(30, dtype=bool)[::-1]
    problem = Coupling(jnp.where(forbidden, jnp.inf, problem.cost.matrix()), epsilon=problem.epsilon)
    guess = (jnp.sin(jnp.arange(30.0)), jnp.cos(jnp.arange(30.0)))
    for steps in (1, 2, 7, 60):
        budget = om.Budget(steps=steps)
        logs, products = (om.solve(problem, Sinkhorn(1e-13, domain=domain, **settings), guess, budget=budget) for domain in ("log", "scaling"))
        assert logs.steps == products.steps
        for got, wanted in zip(jax.tree.leaves(products.value), jax.tree.leaves(logs.value), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-13)
        np.testing.assert_allclose(products.history["residual"], logs.history["residual"], rtol=1e-6, atol=1e-12)
    assert jnp.all(jnp.isfinite(products.state.kernel.centre.f)) and logs.state.kernel is None


def test_the_kernel_is_that_of_the_guess_if_it_can_be_else_it_is_made_when_it_is_needed_and_then_kept():
    problem = assignment(n=30, eta=400.0)
    after = lambda problem, steps: om.solve(problem, Sinkhorn(0.0), budget=om.Budget(steps=steps)).state
    for steps in (1, 40):
        np.testing.assert_array_equal(after(problem, steps).kernel.centre.f, 0.0)
    dear = Coupling(problem.cost.matrix() + 1.0, epsilon=problem.epsilon)  # where the plan at zero has no mass
    first = after(dear, 1)
    assert not jnp.any(jnp.isfinite(first.kernel.centre.f))
    for steps in (2, 40):
        np.testing.assert_array_equal(after(dear, steps).kernel.centre.f, first.x.f)


@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0])
def test_what_a_solve_begins_with_is_the_same_by_products_and_in_logarithms(shift):
    problem = assignment(n=30, eta=400.0)
    problem = Coupling(problem.cost.matrix() + shift, epsilon=problem.epsilon)
    guess = problem.start((0.01 * jnp.sin(jnp.arange(30.0)), 0.01 * jnp.cos(jnp.arange(30.0))))
    begun = SinkhornNewtonSparse().init(problem, guess, key=None)
    np.testing.assert_allclose(begun.soft_rows, problem.soft_rows(guess.g), rtol=1e-12)
    np.testing.assert_allclose(begun.soft_columns, problem.soft_columns(guess.f), rtol=1e-12)
    assert jnp.all(jnp.isfinite(begun.kernel.centre.f)) == (shift == 0.0)


def test_the_derivative_of_sweeps_by_products_is_that_in_logarithms():
    def cost_of(theta, domain):
        problem = moving(theta)
        return problem.transport_cost(om.solve(problem, Sinkhorn(1e-10, domain=domain), budget=om.Budget(steps=30), adjoint=om.Unrolled()).value)

    theta = jnp.array([0.5, -0.25, 1.0])
    logs, products = (jax.jit(jax.grad(lambda theta, domain=domain: cost_of(theta, domain)))(theta) for domain in ("log", "scaling"))
    np.testing.assert_allclose(products, logs, rtol=1e-9)
    assert jnp.all(jnp.abs(logs) > 1e-4)


def test_relaxation_saves_sweeps_and_is_safe_where_it_does_not():
    problem = assignment(eta=100.0)
    few, many = (om.solve(problem, Sinkhorn(1e-8, relaxation=w), budget=om.Budget(steps=20_000)) for w in (1.6, 1.0))
    assert few.result == many.result == om.Result.converged and few.steps < 0.7 * many.steps
    wild = om.solve(problem, Sinkhorn(1e-8, relaxation=1.99), budget=om.Budget(steps=50))
    assert np.all(np.diff(wild.history["value"]) <= 1e-14)


def test_newton_steps_to_machine_precision_where_sweeps_are_thousands():
    problem = assignment(eta=400.0)
    sweeps = om.solve(problem, Sinkhorn(1e-9), budget=om.Budget(steps=1500))
    assert sweeps.result == om.Result.budget_spent and sweeps.state.error > 1e-9
    solution = om.solve(problem, SinkhornNewtonSparse(1e-12, density=5, direct=0))
    assert solution.result == om.Result.converged and problem.marginal_error(solution.value) <= 2e-12
    assert solution.state.sweeps <= 30 and solution.state.newton_steps <= 30


@pytest.mark.parametrize("n, density, direct", [(40, 5, 0), (100, 5, 0), (100, 15, 256)])
def test_parts_that_hardly_exchange_mass_do_not_stop_it(n, density, direct):
    problem = assignment(n=n, eta=1200.0)
    solution = om.solve(problem, SinkhornNewtonSparse(1e-12, density=density, direct=direct), budget=om.Budget(steps=200))
    assert solution.result == om.Result.converged and problem.marginal_error(solution.value) <= 2e-12
    assert solution.state.newton_steps <= 45


def test_a_link_far_below_the_mass_of_its_points_is_not_lost_in_the_factorisation():
    link = 1e-9
    block = jnp.array([[1.0, 0.5], [0.4, 2.0]])
    plan = jnp.block([[block, jnp.full((2, 2), link)], [jnp.zeros((2, 2)), 3 * block]])
    rows, columns = plan.sum(1), plan.sum(0)
    lack = Potentials(jnp.array([1e-9, 0.0, -1e-9, 0.0]), jnp.zeros(4))
    found = newton_system(plan.__matmul__, plan.T.__matmul__, rows, columns, lack, cholesky(plan, rows, columns)).move
    left = (rows * found.f + plan @ found.g - lack.f, plan.T @ found.f + columns * found.g - lack.g)
    np.testing.assert_allclose(jnp.concatenate(left), 0, atol=1e-14)
    across = found.f[:2, None] + found.g[None, 2:]  # what is lacking on one side is moved over its four links
    np.testing.assert_allclose(jnp.sum(link * across), 1e-9, rtol=1e-5)


def test_with_all_entries_it_takes_the_steps_of_dense_newton():
    problem = uneven()
    budget = om.Budget(steps=22)
    dense = om.solve(problem, SinkhornNewton(1e-13, hessian="dense"), budget=budget)
    whole = om.solve(problem, SinkhornNewtonSparse(1e-13, density=12, inner_tolerance=1e-13), budget=budget)
    assert whole.state.newton_steps == dense.state.newton_steps == 2
    np.testing.assert_allclose(whole.value.f, dense.value.f, atol=1e-8)
    np.testing.assert_allclose(whole.value.g, dense.value.g, atol=1e-8)


def thinned(problem, x, count):
    plan = problem.plan(x)
    return plan, jnp.where(largest(plan, count), plan, 0)


@pytest.mark.parametrize("count", [5, 40, 108])
def test_the_thinned_hessian_stays_semidefinite_and_newtons_system_is_solved(count):
    problem = uneven()
    x = om.solve(problem, Sinkhorn(0.0), budget=om.Budget(steps=5)).value
    plan, s = thinned(problem, x, count)
    rows, columns = plan.sum(1), plan.sum(0)
    matrix = jnp.block([[jnp.diag(rows), s], [s.T, jnp.diag(columns)]])
    assert jnp.linalg.eigvalsh(matrix)[0] >= -1e-15
    lack = Potentials(problem.a - rows, problem.b - columns)
    found = newton_system(lambda v: s @ v, lambda u: s.T @ u, rows, columns, lack, conjugate_gradients(rows, jnp.asarray(1e-13), 500))
    move = jnp.concatenate([found.move.f, found.move.g])
    wanted = jnp.linalg.lstsq(matrix, jnp.concatenate([lack.f, lack.g]))[0]
    shift = jnp.concatenate([jnp.ones(12), -jnp.ones(9)])
    left = matrix @ move - jnp.concatenate([lack.f, lack.g])
    kernel = jnp.linalg.norm(matrix @ shift) < 1e-12
    np.testing.assert_allclose(left, 0 if kernel else matrix @ (move - wanted), atol=1e-12)
    np.testing.assert_allclose(found.move.f[:, None] + found.move.g[None, :], wanted[:12, None] + wanted[None, 12:], atol=1e-8)


def test_the_largest_entries_and_products_with_them():
    plan = jnp.asarray(np.random.default_rng(3).exponential(size=(8, 11)) ** 8)
    for count in (1, 13, 40, 88):
        chosen = largest(plan, count)
        wanted = np.asarray(plan) >= np.sort(np.ravel(plan))[-count]
        np.testing.assert_array_equal(chosen, wanted)
        kept = np.where(wanted, plan, 0)
        thinned = ThinnedPlan.of(plan, count)
        np.testing.assert_allclose(thinned.times(jnp.arange(11.0)), kept @ np.arange(11.0), rtol=1e-12)
        np.testing.assert_allclose(thinned.times_transposed(jnp.arange(8.0)), kept.T @ np.arange(8.0), rtol=1e-12)
    assert sparsify_coupling(jnp.ones((4, 5)), 1.4).nse == 7
    few = largest(plan, 40, slack=0.2)
    assert 32 <= jnp.sum(few) <= 40 and jnp.min(plan[few]) > jnp.max(plan[~few])
    assert int(jnp.sum(largest(jnp.eye(4), 7))) == 4  # there is nothing else
    np.testing.assert_array_equal(ThinnedPlan.of(jnp.eye(4), 7).times(jnp.arange(4.0)), jnp.arange(4.0))


def test_a_sparse_coupling_keeps_the_largest():
    problem = assignment()
    plan = problem.plan(om.solve(problem, SinkhornNewtonSparse(1e-10)).value)
    sparse = sparsify_coupling(plan, 2)
    assert sparse.nse == 80 and jnp.sum(sparse.data) > 0.99
    kept = sparse.todense()
    np.testing.assert_array_equal(kept, jnp.where(plan >= jnp.min(sparse.data), plan, 0))


def test_too_sparse_a_hessian_is_made_denser():
    problem = uneven()
    solution = om.solve(problem, SinkhornNewtonSparse(1e-12, density=0.2, warmup=0, direct=0))
    assert solution.result == om.Result.converged and solution.state.level > 0


def test_it_starts_from_nothing_and_from_a_guess():
    problem = uneven()
    cold = om.solve(problem, SinkhornNewtonSparse(1e-12, warmup=0))
    assert cold.result == om.Result.converged
    again = om.solve(problem, SinkhornNewtonSparse(1e-11, warmup=0), cold.value)
    assert again.steps == 0
    far = om.solve(problem, SinkhornNewtonSparse(1e-12, warmup=0), (30 * jnp.sin(jnp.arange(12.0)), jnp.zeros(9)))
    assert far.result == om.Result.converged and jnp.all(jnp.isfinite(far.value.f))


@pytest.mark.parametrize("method", [Sinkhorn(0.0), SinkhornNewton(0.0), SinkhornNewtonSparse(0.0)], ids=lambda m: type(m).__name__)
def test_what_rounding_forbids_ends_as_stopped(method):
    problem = uneven()
    solution = om.solve(problem, method, budget=om.Budget(steps=20_000))
    assert solution.result == om.Result.stopped and problem.marginal_error(solution.value) <= 1e-12


@pytest.mark.parametrize("method", [Sinkhorn(1e-4), SinkhornNewton(1e-4), SinkhornNewtonSparse(1e-4)], ids=lambda m: type(m).__name__)
def test_single_precision(method):
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), uneven())
    solution = om.solve(single, method, budget=om.Budget(steps=5000))
    assert solution.result == om.Result.converged and solution.value.f.dtype == jnp.float32
    np.testing.assert_allclose(solution.value.f, reference().f, atol=1e-3)


@pytest.mark.parametrize("name", ["sinkhorn, epsilon lowered", "sparse newton"])
def test_a_batch_of_epsilons(name):
    problem = uneven()
    epsilons = jnp.array([0.02, 0.05, 0.2])

    def run(epsilon):
        return om.solve(Coupling(problem.cost, problem.a, problem.b, epsilon=epsilon), METHODS[name], budget=om.Budget(steps=5000)).value

    together = jax.jit(jax.vmap(run))(epsilons)
    for i, epsilon in enumerate(epsilons):
        np.testing.assert_allclose(together.f[i], run(epsilon).f, atol=1e-10)


def test_methods_of_other_rooms_solve_it_too():
    problem = uneven()
    value = om.solve(problem, om.smooth.LBFGS(tolerance=1e-9), budget=om.Budget(steps=3000)).value
    np.testing.assert_allclose(value.f, reference().f, atol=1e-6)


# The conformance suite of the core, on a coupling whose cost moves with theta.

COST = np.array([[0.1, 0.9, 0.5, 0.2], [0.6, 0.2, 0.8, 0.4], [0.7, 0.5, 0.3, 0.9]])
TURN = np.array([[0.3, -0.2, 0.1, 0.4], [-0.1, 0.3, 0.2, 0.1], [0.2, 0.1, -0.3, 0.2]])


def moving(theta):
    a, b = jnp.array([0.5, 0.3, 0.2], theta.dtype), jnp.array([0.1, 0.2, 0.3, 0.4], theta.dtype)
    return Coupling(jnp.asarray(COST, theta.dtype) + theta[:, None] * jnp.asarray(TURN, theta.dtype), a, b, epsilon=0.2)


def case(method, **changes):
    theta = jnp.array([0.5, -0.25, 1.0])
    return Case(method, moving, theta, Potentials(jnp.zeros(3), jnp.zeros(4)), steps=300, tolerance=1e-5, **changes)


CONFORMING = {
    "sinkhorn": Sinkhorn(1e-10),
    "sinkhorn, relaxed, epsilon lowered": Sinkhorn(1e-10, relaxation=1.2, first_epsilon=1.0),
    "newton": SinkhornNewton(1e-10, warmup=3),
    "sparse newton": SinkhornNewtonSparse(1e-10, warmup=3, density=1.5, direct=0),
}


SLOWLY = {"sinkhorn, relaxed, epsilon lowered", "newton"}  # what they share with the others is tried by default


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.thorough] if name in SLOWLY else []) for name in CONFORMING])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(name, check):
    check(case(CONFORMING[name]))


def test_a_point_cloud_that_is_evaluated_in_blocks():
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=(30, 3))) for i in (0, 1))
    problems = [Coupling(PointCloud(x, y, dense_below=below, block=8), epsilon=0.1, relative=True) for below in (0, 1000)]
    values = [om.solve(problem, SinkhornNewtonSparse(1e-11)).value for problem in problems]
    np.testing.assert_allclose(values[0].f, values[1].f, atol=1e-9)
