"""Barycentres: closed forms for Gaussians, symmetry, shares at a vertex, the blur of entropy and its removal, derivatives, points that move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.transport import (
    Barycentre,
    BarycentrePotentials,
    BregmanProjections,
    Coupling,
    Grid,
    PointCloud,
    Sinkhorn,
    SinkhornNewton,
    barycentric_projection,
    free_support_barycentre,
)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


LINE = np.linspace(-5, 5, 161)


def gaussian(mean, deviation):
    return jax.nn.softmax(-((jnp.asarray(LINE) - mean) ** 2) / (2 * deviation**2)) + 1e-300


def moments(weights):
    mean = jnp.sum(weights * LINE)
    return mean, jnp.sqrt(jnp.sum(weights * (LINE - mean) ** 2))


def solved(problem, tolerance=1e-11, steps=5000):
    solution = om.solve(problem, BregmanProjections(tolerance), budget=om.Budget(steps=steps))
    assert solution.result == om.Result.converged
    return solution.value


def measures(seed=0, n=6, sizes=(5, 4, 7)):
    rng = np.random.default_rng(seed)
    costs = [jnp.asarray(rng.uniform(size=(n, m))) for m in sizes]
    weights = [rng.uniform(0.5, 1.5, m) for m in sizes]
    return costs, [jnp.asarray(w / w.sum()) for w in weights]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75)])
def test_gaussians_of_equal_width_have_the_barycentre_of_the_closed_form(shares):
    epsilon, deviation = 0.1, 0.6
    b = [gaussian(-1.5, deviation), gaussian(1.0, deviation)]
    mean = -1.5 * shares[0] + 1.0 * shares[1]
    blurred = Barycentre(Grid([LINE]), b, jnp.array(shares), epsilon=epsilon)
    found = moments(blurred.weights(solved(blurred, 1e-8)))
    np.testing.assert_allclose(found[0], mean, atol=1e-4)
    # The kernel is a Gaussian of variance epsilon / 2, with which the barycentre is convolved.
    np.testing.assert_allclose(found[1], np.sqrt(deviation**2 + epsilon / 2), rtol=1e-4)
    sharp = Barycentre(Grid([LINE]), b, jnp.array(shares), epsilon=epsilon, within=Grid([LINE]))
    found = moments(sharp.weights(solved(sharp, 1e-8)))
    np.testing.assert_allclose(found, (mean, deviation), atol=1e-4)


def test_gaussians_of_different_width_come_near_the_unregularised_closed_form():
    b, shares = [gaussian(-1.0, 0.4), gaussian(1.0, 0.8)], jnp.array([0.3, 0.7])
    problem = Barycentre(Grid([LINE]), b, shares, epsilon=0.05, within=Grid([LINE]))
    found = moments(problem.weights(solved(problem, 1e-7)))
    np.testing.assert_allclose(found, (0.4, 0.3 * 0.4 + 0.7 * 0.8), atol=5e-3)


@pytest.mark.thorough
def test_all_plans_have_the_barycentre_as_their_marginal():
    costs, b = measures()
    problem = Barycentre(costs, b, jnp.array([0.5, 0.3, 0.2]), epsilon=0.05)
    x = solved(problem)
    weights, s = problem.weights(x), problem.soft_rows(x)
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-10)
    f = problem.epsilon * (problem.log_density(x, s) - s)
    np.testing.assert_allclose(problem.shares @ f, 0, atol=1e-13)
    value = 0
    for k, (cost, measure) in enumerate(zip(costs, b, strict=True)):
        plan = jnp.exp((f[k][:, None] + x.g[k][None, :] - cost) / 0.05) * measure / 6
        np.testing.assert_allclose(plan.sum(1), weights, rtol=1e-9)
        np.testing.assert_allclose(plan.sum(0), measure, rtol=1e-9)
        value += problem.shares[k] * jnp.sum(cost * plan + 0.05 * plan * jnp.log(plan / (measure / 6)))
        alone = Coupling(cost, weights, measure, epsilon=0.05)
        np.testing.assert_allclose(plan, alone.plan(om.solve(alone, SinkhornNewton(1e-12)).value), atol=1e-9)
    np.testing.assert_allclose(problem.dual(x), value, rtol=1e-10)


def total(weights, costs, b, shares, epsilon, within):
    """The objective that the barycentre minimises, from couplings alone; entropies relative to equal weights."""

    def of(cost, right):
        problem = Coupling(cost, weights, right, epsilon=epsilon)
        entropy = epsilon * jnp.sum(weights * jnp.log(weights * len(weights)))
        return problem.dual(om.solve(problem, SinkhornNewton(1e-13)).value) + entropy

    value = sum(share * of(cost, one) for share, cost, one in zip(shares, costs, b, strict=True))
    own = Coupling(within, weights, weights, epsilon=epsilon)
    entropy = 2 * epsilon * jnp.sum(weights * jnp.log(weights * len(weights)))
    return value - (own.dual(om.solve(own, SinkhornNewton(1e-13)).value) + entropy) / 2


def test_without_bias_it_minimises_the_sum_of_divergences():
    points = jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)))
    cost = PointCloud(points).matrix()
    b = [jnp.asarray(w / w.sum()) for w in np.random.default_rng(3).uniform(0.8, 1, (2, 6))]
    shares = jnp.array([0.4, 0.6])
    problem = Barycentre(cost, b, shares, epsilon=0.5, within=cost)
    x = solved(problem, 1e-10)
    weights = problem.weights(x)
    assert jnp.min(weights) > 0.05
    best = total(weights, [cost, cost], b, shares, 0.5, cost)
    np.testing.assert_allclose(problem.dual(x), best, rtol=1e-8)
    for seed in range(4):
        move = np.random.default_rng(seed).normal(size=6)
        move = jnp.asarray(move - move.mean())
        assert total(weights + 3e-3 * move / jnp.max(jnp.abs(move)), [cost, cost], b, shares, 0.5, cost) > best


@pytest.mark.thorough
def test_equal_measures_symmetry_and_shares_at_a_vertex():
    b = gaussian(0.5, 0.5)
    same = Barycentre(Grid([LINE]), [b, b, b], epsilon=0.1, within=Grid([LINE]))
    np.testing.assert_allclose(same.weights(solved(same, 1e-9)), b, atol=1e-6)
    mirrored = Barycentre(Grid([LINE]), [gaussian(1, 0.5), gaussian(-1, 0.5)], epsilon=0.1)
    weights = mirrored.weights(solved(mirrored, 1e-9))
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-12)
    costs, b = measures()
    vertex = Barycentre(costs, b, jnp.array([0.0, 1.0, 0.0]), epsilon=0.05)
    alone = Barycentre(costs[1], [b[1]], epsilon=0.05)
    np.testing.assert_allclose(vertex.weights(solved(vertex)), alone.weights(solved(alone)), atol=1e-10)
    order = Barycentre(costs[::-1], b[::-1], jnp.array([0.2, 0.3, 0.5]), epsilon=0.05)
    straight = Barycentre(costs, b, jnp.array([0.5, 0.3, 0.2]), epsilon=0.05)
    np.testing.assert_allclose(order.weights(solved(order)), straight.weights(solved(straight)), atol=1e-10)


def test_one_cost_for_all_is_that_cost_for_each():
    b = [gaussian(-1, 0.5), gaussian(1, 0.7)]
    one = Barycentre(Grid([LINE]), b, epsilon=0.2)
    each = Barycentre([Grid([LINE]), PointCloud(LINE, dense_below=0, block=40)], b, epsilon=0.2)
    np.testing.assert_allclose(one.weights(solved(one, 1e-8)), each.weights(solved(each, 1e-8)), atol=1e-9)


# Derivatives.


def given():
    line = np.arange(6.0) / 4
    costs = [PointCloud(line, line[: 6 - k] + 0.1 * k).matrix() for k in range(3)]
    b = [jax.nn.softmax(-jnp.square(line[: 6 - k] - 0.7)) for k in range(3)]  # near to each other: without bias there is mass at all points
    return {"cost": costs, "b": b, "shares": jnp.array([0.5, 0.3, 0.2]), "epsilon": jnp.asarray(0.1)}


def quantities(parts, within=False):
    problem = Barycentre(**parts, within=PointCloud(np.arange(6.0) / 4) if within else None)
    x = om.solve(problem, BregmanProjections(1e-13), budget=om.Budget(steps=3000), throw=False).value
    return jnp.concatenate([jnp.stack([problem.envelope(x), problem.dual(x)]), problem.weights(x)])


@functools.cache
def slopes(within):
    return jax.jit(jax.jacrev(lambda parts: quantities(parts, within)))(given())


@pytest.mark.parametrize("within", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["blurred", "without bias"])
@pytest.mark.parametrize("of", given())
def test_derivatives_by_the_envelope_and_the_implicit_function_theorem_and_differences(of, within):
    parts = given()
    rng = np.random.default_rng(5)
    draw = lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape))
    direction = jax.tree.map(draw, parts[of])
    if of in ("b", "shares"):
        direction = jax.tree.map(lambda leaf: leaf - jnp.mean(leaf), direction)  # sums stay
    at = jax.jit(lambda t: quantities({**parts, of: jax.tree.map(lambda leaf, move: leaf + t * move, parts[of], direction)}, within))
    _, value, *weights = (at(1e-5) - at(-1e-5)) / 2e-5
    along = jax.tree.map(lambda slope, move: jnp.tensordot(slope, move, move.ndim), slopes(within)[of], direction)
    envelope, implicit, *ours = sum(jax.tree.leaves(along))
    np.testing.assert_allclose(envelope, value, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(implicit, envelope, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(jnp.stack(ours), jnp.stack(weights), rtol=1e-5, atol=1e-7)


def test_the_derivative_with_respect_to_shares_at_a_vertex():
    parts = given()
    weights = jax.jit(lambda shares: quantities({**parts, "shares": shares})[2:])
    vertex, inward = jnp.array([1.0, 0.0, 0.0]), jnp.array([-1.0, 0.4, 0.6])
    slope = jax.jit(lambda: jax.jvp(weights, (vertex,), (inward,))[1])()
    assert jnp.max(jnp.abs(slope)) > 1e-2
    one_sided = (4 * weights(vertex + 1e-4 * inward) - 3 * weights(vertex) - weights(vertex + 2e-4 * inward)) / 2e-4
    np.testing.assert_allclose(slope, one_sided, atol=1e-6)


# Points that move.


@pytest.mark.thorough
def test_moving_points_find_the_mean_of_translates():
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(12, 2)))
    shift = jnp.array([3.0, -1.0])
    problem = free_support_barycentre([y, y + shift], shares=jnp.array([0.25, 0.75]), epsilon=0.5)
    solution = om.solve(problem, om.smooth.FixedPointIteration(tolerance=1e-6), y + 0.1)
    assert solution.result == om.Result.converged
    np.testing.assert_allclose(solution.value.mean(0), y.mean(0) + 0.75 * shift, atol=1e-5)
    plan = Coupling(PointCloud(solution.value, y), epsilon=0.5)
    projected = barycentric_projection(plan, om.solve(plan, Sinkhorn(1e-9), budget=om.Budget(steps=5000)).value, y)
    np.testing.assert_allclose(projected, solution.value - 0.75 * shift, atol=1e-4)


@pytest.mark.thorough
def test_moving_points_do_not_raise_the_objective_and_can_be_differentiated():
    rng = np.random.default_rng(1)
    clouds = [jnp.asarray(rng.normal(size=(m, 1))) for m in (4, 5)]
    shares, start = jnp.array([0.4, 0.6]), jnp.asarray(rng.normal(size=(3, 1)))
    make = lambda clouds, shares: free_support_barycentre(clouds, shares=shares, epsilon=0.5, method=Sinkhorn(1e-12))

    @jax.jit
    def objective(x):
        values = []
        for y in clouds:
            plan = Coupling(PointCloud(x, y), epsilon=0.5)
            values.append(plan.envelope(om.solve(plan, Sinkhorn(1e-12)).value))
        return shares @ jnp.stack(values)

    apply, x, values = jax.jit(lambda x: make(clouds, shares).apply(x)), start, []
    for _ in range(4):
        values.append(float(objective(x)))
        x = apply(x)
    assert np.all(np.diff(values) <= 1e-12) and values[-1] < values[0]
    np.testing.assert_allclose(jax.grad(objective)(x), 2 / 3 * (x - apply(x)), atol=1e-9)
    run = jax.jit(lambda shares: om.solve(make(clouds, shares), om.smooth.FixedPointIteration(tolerance=1e-10), start).value)
    move = jnp.array([1.0, -1.0])
    slope = jax.jvp(run, (shares,), (move,))[1]
    np.testing.assert_allclose(slope, (run(shares + 1e-5 * move) - run(shares - 1e-5 * move)) / 2e-5, atol=1e-6)


# What is wrong is named, and the conformance suite.

GOOD = np.full((2, 3), 1 / 3)
BAD = {
    r"`b` \[1\] has the sum": lambda: Barycentre(np.ones((2, 3)), [GOOD[0], 2 * GOOD[0]], epsilon=1.0),
    r"`b\[0\]` must be positive": lambda: Barycentre(np.ones((2, 3)), np.array([[0.0, 0.5, 0.5]]), epsilon=1.0),
    r"`b` \[0\] has 3 entries": lambda: Barycentre(np.ones((2, 4)), GOOD, epsilon=1.0),
    "`b` must be a matrix": lambda: Barycentre(np.ones((2, 3)), np.ones(3), epsilon=1.0),
    "`cost` has 1 entries for 2 measures": lambda: Barycentre([np.ones((2, 3))], GOOD, epsilon=1.0),
    "`cost` forbids pairs": lambda: Barycentre(np.array([[1, 2, np.inf]]), GOOD, epsilon=1.0),
    "`shares` must have shape": lambda: Barycentre(np.ones((2, 3)), GOOD, np.ones(3), epsilon=1.0),
    "`shares` must not be negative": lambda: Barycentre(np.ones((2, 3)), GOOD, np.array([1.5, -0.5]), epsilon=1.0),
    "`within` must have shape": lambda: Barycentre(np.ones((2, 3)), GOOD, epsilon=1.0, within=np.ones((3, 3))),
    "`epsilon` = 1e-20": lambda: Barycentre(np.ones((2, 3)), GOOD, epsilon=1e-20),
    "`guess` must be": lambda: om.solve(Barycentre(np.ones((2, 3)), GOOD, epsilon=1.0), BregmanProjections(), jnp.ones(3)),
    "`tolerance`": lambda: BregmanProjections(-1.0),
    "`points` must be": lambda: free_support_barycentre([np.ones((2, 2)), np.ones((2, 3))], epsilon=1.0),
    "`b` has 1 entries": lambda: free_support_barycentre([np.ones((2, 2))] * 2, [np.ones(2) / 2], epsilon=1.0),
    "`shares`": lambda: free_support_barycentre([np.ones((2, 2))] * 2, shares=np.ones(2), epsilon=1.0),
}  # fmt: skip


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()


def moving(theta):
    costs, b = measures(n=3, sizes=(2, 3))
    costs = [cost.astype(theta.dtype) + 0.3 * theta[:, None] * jnp.arange(cost.shape[1]) for cost in costs]
    return Barycentre(costs, [one.astype(theta.dtype) for one in b], epsilon=0.3)


SHORTLY = {"check_state_is_arrays", "check_solves", "check_resume_is_bit_equal", "check_implicit_gradient", "check_wrong_problem_is_refused"}


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=[] if c.__name__ in SHORTLY else [pytest.mark.thorough]) for c in CHECKS], ids=lambda check: check.__name__
)
def test_conforms(check):
    guess = BarycentrePotentials((jnp.zeros(2), jnp.zeros(3)), jnp.zeros(3))
    check(Case(BregmanProjections(1e-10), moving, jnp.array([0.5, -0.25, 1.0]), guess, steps=300, tolerance=1e-5))
