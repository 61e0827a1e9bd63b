"""Distances without entropy, between bounds: against linear programs and sorting; and Sinkhorn divergences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import optimand as om
from optimand.transport import (
    Coupling,
    PointCloud,
    Sinkhorn,
    SinkhornNewton,
    UnbalancedSinkhorn,
    sinkhorn_divergence,
    transport_bounds,
    wasserstein,
)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def clouds(n=30, m=30, dimension=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, dimension)), rng.normal(size=(m, dimension)) + 0.5


def linear_program(cost, a, b):
    n, m = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return scipy.optimize.linprog(np.ravel(cost), A_eq=sums, b_eq=np.concatenate([a, b]), method="highs").fun


@pytest.mark.parametrize("p", [1, 2])
def test_the_bounds_hold_an_assignment_and_are_as_near_as_asked_for(p):
    x, y = clouds()
    cost = np.linalg.norm(x[:, None] - y[None], axis=-1) ** p
    exact = np.mean(cost[scipy.optimize.linear_sum_assignment(cost)]) ** (1 / p)
    found = wasserstein(x, y, p=p, gap=1e-6)
    assert found.met and found.gap <= 1e-6 * found.upper
    assert found.lower - 1e-12 <= exact <= found.upper + 1e-12
    plan = found.problem.rounded_plan(found.potentials)
    np.testing.assert_allclose(plan.sum(1), 1 / 30, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(plan * cost) ** (1 / p), found.upper, rtol=1e-6)
    rough = wasserstein(x, y, p=p, gap=0.1)
    assert rough.met and rough.solves < found.solves and rough.lower <= exact <= rough.upper


def test_the_bounds_hold_a_linear_program_of_uneven_weights():
    rng = np.random.default_rng(1)
    cost, a, b = rng.uniform(-1, 1, size=(9, 12)), rng.uniform(0.1, 1, 9), rng.uniform(0.1, 1, 12)
    a, b = 3 * a / a.sum(), 3 * b / b.sum()
    exact, found = linear_program(cost, a, b), transport_bounds(cost, a, b, gap=1e-5)
    assert found.met and exact < 0 and found.lower - 1e-12 <= exact <= found.upper + 1e-12


def test_on_a_line_it_is_what_sorting_says():
    rng = np.random.default_rng(2)
    x, y, a, b = rng.normal(size=20), rng.normal(size=25), rng.uniform(size=20), rng.uniform(size=25)
    a, b = a / a.sum(), b / b.sum()
    exact = scipy.stats.wasserstein_distance(x, y, a, b)
    found = wasserstein(x, y, a, b, p=1, gap=1e-4)
    assert found.met and found.lower - 1e-12 <= exact <= found.upper + 1e-12


def test_the_bracket_needs_no_matrix_and_is_that_of_the_matrix():
    x, y = clouds(20, 15)
    blocks = Coupling(PointCloud(x, y, dense_below=0, block=6), epsilon=0.1)
    z = om.solve(blocks, Sinkhorn(1e-2)).value
    low, high = blocks.bracket(z)
    cost = blocks.cost.matrix()
    np.testing.assert_allclose(high, jnp.sum(cost * blocks.rounded_plan(z)), rtol=1e-10)
    f = jnp.min(cost - z.g[None, :], 1)
    hard = jnp.sum(blocks.a * f) + jnp.sum(blocks.b * jnp.min(cost - f[:, None], 0))
    assert hard - 1e-5 * 0.1 <= low <= hard
    forbidding = Coupling(cost.at[0, 0].set(jnp.inf), epsilon=0.1)
    low, high = forbidding.bracket(om.solve(forbidding, Sinkhorn(1e-2)).value)
    assert jnp.isfinite(low) and jnp.isinf(high)
    low, high = forbidding.bracket(om.solve(forbidding, SinkhornNewton(1e-14)).value)
    assert low <= high < jnp.inf


def test_equal_measures_and_a_gap_out_of_reach():
    x, y = clouds()
    same = wasserstein(x, x, gap=1e-3)
    assert same.met and same.lower == 0 and same.upper < 1e-6
    few = wasserstein(x, y, gap=1e-9, solves=2)
    assert not few.met and few.solves == 2 and few.lower <= wasserstein(x, y, gap=1e-4).upper <= few.upper + 1e-3


def test_single_precision_and_a_method_of_ones_own():
    x, y = (cloud.astype(np.float32) for cloud in clouds(15, 15))
    found = wasserstein(x, y, gap=0.02, method=Sinkhorn(1e-3))
    assert found.met and found.lower.dtype == jnp.float32
    exact = wasserstein(x.astype(float), y.astype(float), gap=1e-6)
    assert found.lower <= exact.upper * (1 + 1e-5) and exact.lower <= found.upper * (1 + 1e-5)


BAD = {
    "`p` must be 1 or 2": lambda: wasserstein(*clouds(), p=3),
    "`gap`": lambda: wasserstein(*clouds(), gap=0.0),
    "`solves`": lambda: wasserstein(*clouds(), solves=0),
    "`cost` must be known": lambda: jax.jit(lambda x: wasserstein(x, x + 1.0).lower)(clouds()[0]),
    "`y` holds points of dimension": lambda: wasserstein(clouds()[0], np.ones((3, 3))),
    "`b` has the sum": lambda: wasserstein(*clouds(), np.ones(30), np.ones(30) / 30),
}  # fmt: skip


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()


# Divergences.


def test_a_divergence_is_zero_for_equal_measures_and_positive_for_others():
    x, y = clouds(12, 12)
    rng = np.random.default_rng(3)
    divergence = functools.partial(sinkhorn_divergence, epsilon=0.3, method=Sinkhorn(1e-12))
    assert abs(divergence(x, x)) < 1e-12 and abs(divergence(x, rng.permutation(x))) < 1e-10
    np.testing.assert_allclose(jax.grad(divergence)(x, x), 0, atol=1e-10)
    apart = divergence(x, y)
    np.testing.assert_allclose(apart, divergence(y, x), rtol=1e-10)
    assert apart > 0.1
    np.testing.assert_allclose(divergence(x, x + jnp.array([3.0, 4.0])), 25, rtol=1e-9)  # a translation, for every epsilon


def test_a_divergence_goes_from_transport_to_the_distance_of_means():
    x, y = clouds(12, 12)
    cost = np.sum((x[:, None] - y[None]) ** 2, -1)
    exact = np.mean(cost[scipy.optimize.linear_sum_assignment(cost)])
    np.testing.assert_allclose(sinkhorn_divergence(x, y, epsilon=5e-3, budget=om.Budget(steps=20_000)), exact, rtol=0.02)
    np.testing.assert_allclose(sinkhorn_divergence(x, y, epsilon=1e4), np.sum((x.mean(0) - y.mean(0)) ** 2), rtol=1e-3)


@pytest.mark.parametrize("tau", [None, 0.7])
def test_derivatives_of_a_divergence_against_differences(tau):
    x, y = map(jnp.asarray, clouds(6, 5))
    a, b = jnp.arange(1.0, 7.0) / 21, jnp.full(5, 0.2)
    method = Sinkhorn(1e-13) if tau is None else UnbalancedSinkhorn(1e-13)
    run = lambda x, y, a, epsilon: sinkhorn_divergence(x, y, a, b, epsilon=epsilon, tau=tau, method=method, budget=om.Budget(steps=10_000))
    slopes = jax.jit(jax.grad(run, (0, 1, 2, 3)))(x, y, a, 0.3)
    rng = np.random.default_rng(4)
    moves = [jnp.asarray(rng.normal(size=np.shape(part))) for part in (x, y, a, 0.3)]
    moves[2] = 0.01 * (moves[2] - jnp.mean(moves[2]))
    at = jax.jit(lambda t: run(*(part + t * move for part, move in zip((x, y, a, 0.3), moves, strict=True))))
    along = sum(jnp.vdot(slope, move) for slope, move in zip(slopes, moves, strict=True))
    np.testing.assert_allclose(along, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-7)


def test_a_divergence_of_unequal_masses():
    x, y = clouds(6, 5)
    divergence = functools.partial(sinkhorn_divergence, epsilon=0.3, tau=0.7, method=UnbalancedSinkhorn(1e-12))
    a, b = np.full(6, 0.3), np.full(5, 0.1)
    assert abs(divergence(x, x, a, a)) < 1e-12 and divergence(x, y, a, b) > 0.05 and divergence(x, x, a, a / 2) > 0.01
    with pytest.raises(om.errors.ArgumentError, match="`b` has the sum"):
        sinkhorn_divergence(x, y, a, b, epsilon=0.3)
