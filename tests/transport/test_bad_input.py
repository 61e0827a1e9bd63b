"""What users hand over that is not as in the books: duplicates, parts that do not touch, numbers that a precision cannot hold, sizes that need blocks."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import optimand as om
from optimand.transport import Coupling, Grid, PointCloud, Sinkhorn, SinkhornNewton, SinkhornNewtonSparse

METHODS = [Sinkhorn(1e-11), SinkhornNewton(1e-11), SinkhornNewtonSparse(1e-11, density=3)]
by_name = {"ids": lambda method: type(method).__name__}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS, **by_name)
def test_duplicated_points_share_the_plan_of_their_sum(method):
    rng = np.random.default_rng(0)
    x, y, a = rng.normal(size=(5, 2)), rng.normal(size=(6, 2)), rng.uniform(0.5, 1, 5)
    a, part = a / a.sum(), np.array([0.3, 0.7])
    once = Coupling(PointCloud(x, y), a, epsilon=0.1)
    twice = Coupling(PointCloud(np.vstack([x, x[:1]]), y), np.concatenate([a[:1] * 0.3, a[1:], a[:1] * 0.7]), epsilon=0.1)
    budget = om.Budget(steps=5000)
    plan = once.plan(om.solve(once, method, budget=budget).value)
    solution = om.solve(twice, method, budget=budget)
    assert solution.result == om.Result.converged
    doubled = twice.plan(solution.value)
    np.testing.assert_allclose(jnp.stack([doubled[0], doubled[5]]), part[:, None] * plan[0], atol=1e-10)
    np.testing.assert_allclose(doubled[1:5], plan[1:], atol=1e-10)


@pytest.mark.thorough
def test_equal_clouds_of_equal_points_have_finite_derivatives():
    x = jnp.ones((4, 2))
    for cost in ("sqeuclidean", "euclidean"):
        run = lambda x, c=cost: Coupling(PointCloud(x, jnp.ones((4, 2)), c), epsilon=0.1)
        slope = jax.grad(lambda x, run=run: run(x).envelope(om.solve(run(x), Sinkhorn(1e-9)).value))(x)
        np.testing.assert_allclose(slope, 0, atol=1e-15)


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS, **by_name)
def test_parts_that_do_not_touch_are_solved_each_as_if_alone(method):
    rng = np.random.default_rng(1)
    parts = [rng.uniform(size=(3, 4)), rng.uniform(size=(5, 2))]
    allowed = scipy.linalg.block_diag(*map(np.ones_like, parts)) > 0
    cost = np.where(allowed, scipy.linalg.block_diag(*parts), np.inf)
    a = np.repeat([0.4 / 3, 0.6 / 5], [3, 5])
    b = np.repeat([0.4 / 4, 0.6 / 2], [4, 2])
    problem = Coupling(cost, a, b, epsilon=0.05)
    solution = om.solve(problem, method, budget=om.Budget(steps=5000))
    assert solution.result == om.Result.converged
    plan = problem.plan(solution.value)
    rows, columns = [slice(0, 3), slice(3, 8)], [slice(0, 4), slice(4, 6)]
    for part, i, j in zip(parts, rows, columns, strict=True):
        alone = Coupling(part, a[i], b[j], epsilon=0.05)
        np.testing.assert_allclose(plan[i, j], alone.plan(om.solve(alone, SinkhornNewton(1e-12)).value), atol=1e-9)
    assert jnp.sum(jnp.where(allowed, 0, plan)) == 0


def test_derivatives_of_parts_that_do_not_touch_are_right_and_what_is_undetermined_is_said():
    rng = np.random.default_rng(2)
    allowed = scipy.linalg.block_diag(np.ones((3, 3)), np.ones((2, 2))) > 0
    cost, move = jnp.asarray(rng.uniform(size=(5, 5))), jnp.asarray(rng.normal(size=(5, 5)))

    def run(t):
        problem = Coupling(jnp.where(allowed, cost + t * move, jnp.inf), epsilon=0.1)
        return problem.transport_cost(om.solve(problem, SinkhornNewton(1e-12)).value)

    with pytest.warns(RuntimeWarning, match="singular"):  # the potentials of one part can be shifted against those of the other
        slope = jax.block_until_ready(jax.jit(jax.grad(run))(0.0))
    np.testing.assert_allclose(slope, (run(1e-5) - run(-1e-5)) / 2e-5, rtol=1e-6)


def test_parts_of_unequal_mass_are_refused():
    cost = np.where(scipy.linalg.block_diag(np.ones((2, 2)), np.ones((2, 2))) > 0, 1.0, np.inf)
    with pytest.raises(om.errors.ArgumentError, match=r"`cost` forbids too much: at most 0\.8"):
        Coupling(cost, np.array([0.3, 0.3, 0.2, 0.2]), np.array([0.2, 0.2, 0.3, 0.3]), epsilon=0.1)


def test_an_epsilon_that_single_precision_cannot_resolve_is_refused_for_every_cost(as_a_user):
    x = np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32) + 100
    far = np.concatenate([x, x + 1000])
    for cost in (PointCloud(far), PointCloud(far, dense_below=0), Grid([far[:, 0]]), PointCloud(far).matrix()):
        with pytest.raises(om.errors.ArgumentError, match=r"`epsilon` = 0\.1 is less than float32 resolves of costs up to"):
            Coupling(cost, epsilon=0.1)
    Coupling(PointCloud(far.astype(float)), epsilon=0.1)
    Coupling(PointCloud(far, cost="euclidean"), epsilon=0.1)


def test_a_problem_of_ott_with_penalised_marginals_is_not_taken_for_one_without(as_a_user):
    cloud = types.SimpleNamespace(x=np.ones((2, 1)), y=np.ones((3, 1)), cost_fn=lambda p, q: jnp.sum((p - q) ** 2), epsilon=0.1)
    Coupling.of(types.SimpleNamespace(geom=cloud, a=None, b=None, tau_a=1.0, tau_b=1.0))
    with pytest.raises(om.errors.ArgumentError, match="`source` has penalised marginals"):
        Coupling.of(types.SimpleNamespace(geom=cloud, a=None, b=None, tau_a=0.9, tau_b=1.0))


def test_a_thousand_points_in_blocks_are_those_of_the_matrix():
    rng = np.random.default_rng(4)
    x, y = jnp.asarray(rng.normal(size=(1100, 3))), jnp.asarray(rng.normal(size=(900, 3)))

    def run(x, below):
        problem = Coupling(PointCloud(x, y, dense_below=below), epsilon=1.0)
        value = om.solve(problem, Sinkhorn(1e-9)).value
        return problem.envelope(value), (value, problem.marginal_error(value))

    (ours, (value, error)), slope = jax.jit(lambda x: jax.value_and_grad(run, has_aux=True)(x, 0))(x)
    (dense, (wanted, _)), wanted_slope = jax.jit(lambda x: jax.value_and_grad(run, has_aux=True)(x, 10**7))(x)
    assert error <= 1e-9
    np.testing.assert_allclose(ours, dense, rtol=1e-12)
    np.testing.assert_allclose(value.f, wanted.f, atol=1e-9)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-12)
