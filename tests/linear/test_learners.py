"""Learners of parameters: their probabilities and fits, what they learn, and that their state is all that there is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.linear import ChebCB, TsallisINF, TsallisINFContextual
from optimand.linear.cheb_cb import bounded_least_squares
from optimand.linear.tsallis_inf import tsallis_probabilities

GRID = jnp.linspace(1.0, 1.95, 20)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def learners():
    return {
        "Tsallis-INF": TsallisINF(GRID),
        "Tsallis-INF, binned": TsallisINFContextual(GRID, (0.0, 1.0), 4),
        "ChebCB": ChebCB(GRID, (0.0, 1.0), 4),
    }


def play(learner, state, contexts, cost_of, key, start=0):
    """Rounds in one scan: the indices that were chosen, their costs, and the last state."""

    def one(state, at):
        number, context = at
        index, state = learner.choose(state, context, jax.random.fold_in(key, number))
        cost = cost_of(learner.grid[index], context)
        return learner.learn(state, cost), (index, cost)

    state, (indices, costs) = jax.lax.scan(one, state, (jnp.arange(start, start + len(contexts)), contexts))
    return indices, costs, state


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True))


# Tsallis-INF.


@pytest.mark.parametrize("count", [1, 2, 20, 1000])
def test_probabilities_solve_their_equation(count):
    rng = np.random.default_rng(count)
    for size in (0.0, 1e-8, 1.0, 30.0, 1e6, 1e12):
        losses = size * rng.uniform(size=count)
        losses = jnp.asarray(losses - losses.min())
        p = tsallis_probabilities(losses)
        assert abs(float(jnp.sum(p)) - 1) < 1e-9 and jnp.all(p > 0)
        shifts = 2 / jnp.sqrt(p) - losses  # one y for all
        np.testing.assert_allclose(shifts, shifts[jnp.argmin(losses)], rtol=1e-8, atol=1e-8 * max(1, size))


def test_probabilities_are_those_of_the_entropy():
    """The least of sum p k - 4 sum sqrt(p) over the simplex."""
    losses = jnp.array([0.0, 0.7, 3.0])
    simplex = lambda free: np.append(free, 1 - np.sum(free))
    value = lambda free: float(simplex(free) @ losses - 4 * np.sum(np.sqrt(np.maximum(simplex(free), 0))))
    found = scipy.optimize.minimize(value, [0.3, 0.3], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    np.testing.assert_allclose(tsallis_probabilities(losses), simplex(found.x), atol=1e-6)


def test_the_sums_are_those_of_the_paper():
    learner, state = TsallisINF(jnp.array([1.0, 1.5])), None
    state = learner.init()
    sums, costs = np.zeros(2), []
    for number, cost in enumerate([5.0, 9.0, 3.0, 1.0]):
        scale = np.mean(costs) - 1 if costs else 1.0
        eta = 2 / np.sqrt(number + 1)
        least = (sums / scale).min()
        excess = lambda x, z=sums / scale, eta=eta: np.sum(4 / (eta * (z - x)) ** 2) - 1
        x = scipy.optimize.brentq(excess, least - 10 / eta, least - 1e-9)
        expected = 4 / (eta * (sums / scale - x)) ** 2
        np.testing.assert_allclose(learner.probabilities(state), expected, atol=1e-8)
        index, state = learner.choose(state, None, jax.random.key(number))
        state = learner.learn(state, cost)
        sums[int(index)] += (cost - 1) / expected[int(index)]
        costs.append(cost)
        np.testing.assert_allclose(state.sums, sums, rtol=1e-7)


def test_costs_that_are_all_one_leave_the_draw_uniform():
    learner = TsallisINF(GRID)
    _, _, state = play(learner, learner.init(), jnp.zeros(50), lambda value, context: 1.0, jax.random.key(0))
    np.testing.assert_allclose(learner.probabilities(state), 1 / 20, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_two_values_the_better_one_is_chosen(seed):
    learner = TsallisINF(jnp.array([1.0, 1.5]))
    cost_of = lambda value, context: jnp.where(value > 1.2, 12.0, 20.0)
    indices, _, _ = play(learner, learner.init(), jnp.zeros(5000), cost_of, jax.random.key(seed))
    assert jnp.mean(indices[-1000:] == 1) > 0.9


def test_bins_learn_each_for_itself():
    learner = TsallisINFContextual(jnp.array([1.0, 1.5]), (0.0, 1.0), 2)
    contexts = jax.random.uniform(jax.random.key(3), (6000,))
    better = lambda value, context: jnp.where((value > 1.2) == (context > 0.5), 10.0, 20.0)
    _, costs, state = play(learner, learner.init(), contexts, better, jax.random.key(0))
    assert jnp.mean(costs[-1000:] == 10) > 0.85
    assert state.bins.rounds.tolist() == [int(jnp.sum(contexts < 0.5)), int(jnp.sum(contexts >= 0.5))]


def test_contexts_fall_into_the_bin_with_the_nearest_centre():
    learner = TsallisINFContextual(GRID, (-1.0, 2.0), 6)
    centres = -1 + 3 * (np.arange(6) + 0.5) / 6
    contexts = np.array([-1.0, -0.9, 0.1, 1.2, 1.99, 2.0])
    bins = jax.vmap(lambda context: learner.choose(learner.init(), context, jax.random.key(0))[1].bin)(jnp.asarray(contexts))
    np.testing.assert_array_equal(bins, np.argmin(np.abs(centres[:, None] - contexts), axis=0))


# ChebCB.


def bounds_of(costs, degree):
    most, spread = max(costs), max(costs) - min(costs)
    n = 2 + 4 * spread / most * (1 + np.log(degree))
    return most * n, np.concatenate([[1 / n], 2 * spread / (most * n) / np.arange(1, degree)])


def batch_fit(features, costs, scale, bounds):
    """The least squares of the spec, from all rows at once."""
    shortest = np.linalg.lstsq(features, (costs - 1) / scale, rcond=1e-12)[0]
    if np.all(np.abs(shortest) <= bounds):
        return shortest
    return scipy.optimize.lsq_linear(features, (costs - 1) / scale, (-bounds, bounds), method="bvls", tol=1e-15).x


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_refit_is_the_fit_to_all_rounds_and_respects_the_bounds(noise):
    learner = ChebCB(jnp.array([1.0, 1.4, 1.8]), (0.0, 2.0), 4)
    rng, state = np.random.default_rng(1), learner.init()
    choose, learn = eqx.filter_jit(learner.choose), eqx.filter_jit(learner.learn)
    seen = []
    at_bound = 0
    for number in range(60):
        context = rng.uniform(0, 2)
        index, state = choose(state, jnp.asarray(context), jax.random.key(number))
        cost = 8 + 30 * (float(learner.grid[index]) - 1 - 0.4 * context) ** 2 + noise * rng.uniform()
        state = learn(state, jnp.asarray(cost))
        seen.append((int(index), np.polynomial.chebyshev.chebvander(context - 1, 3)[0], cost))
        scale, bounds = bounds_of([cost for *_, cost in seen], 4)
        np.testing.assert_allclose(state.scale, scale)
        for value in range(3):
            rows = [(features, cost) for chosen, features, cost in seen if chosen == value]
            theta = np.asarray(state.theta[value])
            assert np.all(np.abs(theta) <= bounds * (1 + 1e-12))
            at_bound += np.any(np.isclose(np.abs(theta), bounds, rtol=1e-12) & (bounds > 0))
            if len(rows) >= 4:
                features, costs = np.stack([row for row, _ in rows]), np.array([cost for _, cost in rows])
                np.testing.assert_allclose(theta, batch_fit(features, costs, scale, bounds), atol=1e-8)
            elif not rows:
                assert not theta.any()
    assert at_bound > 0


def test_fewer_rounds_than_polynomials_are_fitted_as_well_as_the_bounds_allow():
    learner = ChebCB(jnp.array([1.0]), (-1.0, 1.0), 5)
    state, contexts, costs = learner.init(), [0.3, -0.2], [10.0, 14.0]
    for context, cost in zip(contexts, costs, strict=True):
        _, state = learner.choose(state, context, jax.random.key(0))
        state = learner.learn(state, cost)
    scale, bounds = bounds_of(costs, 5)
    features, targets = np.polynomial.chebyshev.chebvander(contexts, 4), (np.array(costs) - 1) / scale
    best = scipy.optimize.lsq_linear(features, targets, (-bounds, bounds), tol=1e-14)
    misfit = np.sum((features @ state.theta[0] - targets) ** 2) / 2
    np.testing.assert_allclose(misfit, best.cost, atol=1e-12)
    assert np.all(np.abs(state.theta[0]) <= bounds * (1 + 1e-12))


def test_bounded_least_squares_are_those_of_scipy():
    fit = jax.jit(bounded_least_squares)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        matrix, b = rng.normal(size=(9, 6)) @ np.diag(np.logspace(0, -2, 6)), rng.normal(size=9)
        bounds = rng.uniform(0.05, 3.0, size=6)
        ours = fit(jnp.asarray(matrix), jnp.asarray(b), jnp.asarray(bounds))
        theirs = scipy.optimize.lsq_linear(matrix, b, (-bounds, bounds), method="bvls", tol=1e-15)
        np.testing.assert_allclose(ours, theirs.x, atol=1e-8)
    loose = bounded_least_squares(jnp.asarray(matrix), jnp.asarray(b), jnp.full(6, 1e6))
    np.testing.assert_allclose(loose, np.linalg.lstsq(matrix, b)[0], rtol=1e-9)
    shortest = bounded_least_squares(jnp.asarray(matrix[:3]), jnp.asarray(b[:3]), jnp.full(6, 1e6))
    np.testing.assert_allclose(shortest, np.linalg.pinv(matrix[:3]) @ b[:3], rtol=1e-9)


def test_bounds_of_zero_hold():
    ours = bounded_least_squares(jnp.eye(3), jnp.array([1.0, -2.0, 0.1]), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(ours, [0.0, -0.5, 0.1], atol=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_the_best_value_for_each_context(seed):
    """Costs 1 + 100 (omega - omega0(c))^2, without noise; counts of iterations start at one."""
    learner = ChebCB(jnp.linspace(1.0, 1.95, 10), (0.0, 1.0))
    contexts = jax.random.uniform(jax.random.fold_in(jax.random.key(7), seed), (3000,))
    cost_of = lambda value, context: 1 + 100 * (value - 1.1 - 0.7 * context) ** 2
    _, costs, _ = jax.jit(lambda contexts: play(learner, learner.init(), contexts, cost_of, jax.random.key(seed)))(contexts)
    every = cost_of(learner.grid[:, None], contexts)
    excess = costs - every.min(axis=0)
    assert jnp.mean(excess[-500:]) < 0.05 * (every.max() - every.min())
    assert jnp.mean(costs[-500:]) < 0.5 * every[:, -500:].mean(axis=1).min()  # and beats every fixed value


# The state is all that there is.


@pytest.mark.parametrize("name", learners())
def test_a_run_that_is_resumed_is_the_run_that_was_not_cut(name):
    learner, key = learners()[name], jax.random.key(5)
    contexts = jax.random.uniform(jax.random.key(6), (60,))
    cost_of = lambda value, context: 5 + 40 * (value - 1.2 - 0.5 * context) ** 2
    whole = play(learner, learner.init(), contexts, cost_of, key)
    first = play(learner, learner.init(), contexts[:23], cost_of, key)
    leaves, structure = jtu.tree_flatten(first[2])
    restored = jtu.tree_unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    rest = play(learner, restored, contexts[23:], cost_of, key, start=23)
    assert jnp.array_equal(whole[0], jnp.concatenate([first[0], rest[0]])) and same(whole[2], rest[2])


@pytest.mark.parametrize("name", learners())
def test_shapes_of_the_state_do_not_change(name):
    learner = learners()[name]
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jtu.tree_leaves(tree)]
    state = learner.init()
    _, chosen = learner.choose(state, 0.5, jax.random.key(0))
    assert shapes(state) == shapes(chosen) == shapes(learner.learn(chosen, 3.0))


@pytest.mark.parametrize("name", learners())
def test_a_cost_that_is_not_finite_changes_nothing_and_is_counted(name):
    learner = learners()[name]
    state = play(learner, learner.init(), jnp.linspace(0, 1, 9), lambda value, context: 2 + value, jax.random.key(0))[2]
    _, state = learner.choose(state, 0.5, jax.random.key(1))
    for cost in (jnp.nan, jnp.inf):
        with pytest.raises(om.errors.ArgumentError, match="cost"):
            learner.learn(state, cost)
        after = jax.jit(lambda state, cost: learner.learn(state, cost))(state, cost)
        assert after.refused == state.refused + 1
        others = [(name, a, b) for (name, a), b in zip(jtu.tree_leaves_with_path(after), jtu.tree_leaves(state), strict=True)]
        assert all(np.array_equal(a, b) for name, a, b in others if "refused" not in jtu.keystr(name))


@pytest.mark.parametrize("name", ["Tsallis-INF, binned", "ChebCB"])
def test_contexts_outside_are_clipped_and_counted(name):
    learner = learners()[name]
    for outside, edge in ((-3.0, 0.0), (7.0, 1.0), (jnp.inf, 1.0)):
        index, state = learner.choose(learner.init(), outside, jax.random.key(0))
        at_edge = learner.choose(learner.init(), edge, jax.random.key(0))
        assert state.clipped == 1 and index == at_edge[0] and same(state._replace(clipped=jnp.int32(0)), at_edge[1])
    unknown = jax.jit(lambda context: learner.choose(learner.init(), context, jax.random.key(0))[1])(jnp.nan)
    assert unknown.clipped == 1


BAD = {
    "grid.*vector": lambda: TsallisINF(jnp.ones((2, 2))),
    "grid.*at least one": lambda: ChebCB(jnp.ones(0), (0.0, 1.0)),
    "grid.*number 1": lambda: TsallisINF(jnp.array([1.0, jnp.nan])),
    "context_bounds": lambda: ChebCB(GRID, (1.0, 1.0)),
    "context_bounds.*finite": lambda: TsallisINFContextual(GRID, (0.0, jnp.inf)),
    "bins": lambda: TsallisINFContextual(GRID, (0.0, 1.0), 0),
    "degree": lambda: ChebCB(GRID, (0.0, 1.0), 0),
    "context.*missing": lambda: learners()["ChebCB"].choose(learners()["ChebCB"].init(), None, jax.random.key(0)),
    "context.*not a number": lambda: learners()["ChebCB"].choose(learners()["ChebCB"].init(), float("nan"), jax.random.key(0)),
    "context.*shape": lambda: learners()["ChebCB"].choose(learners()["ChebCB"].init(), jnp.ones(2), jax.random.key(0)),
    "cost.*shape": lambda: learners()["Tsallis-INF"].learn(learners()["Tsallis-INF"].init(), jnp.ones(2)),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
