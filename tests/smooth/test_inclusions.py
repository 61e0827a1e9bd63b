"""Monotone inclusions as problems: components, resolvents, sampling, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, GuessError, ObjectiveError
from optimand.smooth import Halpern, MonotoneInclusion, inclusions, matrix_game, operator_residual, projections

RNG = np.random.default_rng(0)
ROWS, TARGETS = RNG.standard_normal((6, 3)), RNG.standard_normal(6)
UNIFORM = np.full(5, 0.2)
BUDGET = om.Budget(steps=0)


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def regression(u, i, rows, targets):
    return rows[i] * (rows[i] @ u - targets[i])


def whole_regression(u, rows, targets):
    return rows.T @ (rows @ u - targets) / len(targets)


def least_squares(**options):
    return MonotoneInclusion(regression, 6, None, ROWS, TARGETS, **options)


@pytest.fixture(scope="module")
def game():
    with jax.enable_x64(True):
        return matrix_game("policeman-burglar", 5, key=jax.random.key(3))


@pytest.mark.parametrize("kind", ["policeman-burglar", "symmetric-1", "symmetric-2"])
def test_games_have_spectral_norm_one_and_components_whose_mean_is_the_operator(kind):
    game = matrix_game(kind, 7, key=jax.random.key(0))
    assert np.linalg.norm(game.args[0], 2) == pytest.approx(1.0)
    u = tuple(jnp.asarray(RNG.dirichlet(np.ones(7))) for _ in range(2))
    for direct, mean in zip(game.operator(u), game.mean_of_components(u), strict=True):
        np.testing.assert_allclose(direct, mean, atol=1e-14)
    np.testing.assert_allclose(game.operator(u)[1], -u[0] @ game.args[0])


def test_a_sum_in_chunks_is_the_sum(monkeypatch):
    plain = least_squares().operator(jnp.ones(3))
    monkeypatch.setattr(inclusions, "_CHUNK", 12)  # four components at a time, and two are left
    np.testing.assert_allclose(least_squares().operator(jnp.ones(3)), plain, rtol=1e-12)
    np.testing.assert_allclose(plain, whole_regression(jnp.ones(3), ROWS, TARGETS), rtol=1e-12)


@pytest.mark.parametrize("sampling", ["importance", "uniform"])
def test_sampled_differences_have_no_bias_and_vanish_between_equal_points(game, sampling):
    game = matrix_game(game.args[0], sampling=sampling)
    u, v = ((jnp.asarray(RNG.dirichlet(np.ones(5))), jnp.asarray(RNG.dirichlet(np.ones(5)))) for _ in range(2))
    keys = jax.random.split(jax.random.key(1), 20_000)
    sample = lambda key, v: jnp.concatenate(game.difference(u, v, game.draw(key, 2)))
    many = np.asarray(jax.jit(jax.vmap(sample, in_axes=(0, None)))(keys, v))
    exact = np.concatenate(game.operator(u)) - np.concatenate(game.operator(v))
    error = np.abs(many.mean(axis=0) - exact)
    assert np.all(error <= 4 * many.std(axis=0) / np.sqrt(len(many)) + 1e-12)
    assert many.std() > 0.01
    np.testing.assert_array_equal(sample(keys[0], u), 0)


def test_differences_of_components_that_are_not_linear_call_them_at_both_points():
    problem = least_squares()
    u, v = jnp.ones(3), jnp.zeros(3)
    every = (inclusions.Draw(jnp.arange(6, dtype=jnp.int32), jnp.ones(6)),)
    np.testing.assert_allclose(problem.difference(u, v, every), problem.operator(u) - problem.operator(v), rtol=1e-12)
    assert (problem.difference_calls(4), problem.total) == (8, 6)
    linear = matrix_game(jnp.eye(3))
    assert (linear.difference_calls(4), linear.total) == (8, 6)  # columns and rows, one call each


def test_resolvents_of_games_invert_and_are_firmly_nonexpansive(game):
    damped = matrix_game(game.args[0], regularization=0.3)
    u = (jnp.asarray(UNIFORM), jnp.asarray(UNIFORM))
    image = tuple(part + 0.7 * (0.3 * part + 2.0) for part in u)  # u + eta g, with g = mu u + constant in G(u)
    for part, again in zip(u, damped.resolvent(image, 0.7), strict=True):
        np.testing.assert_allclose(part, again, atol=1e-14)
    a, b = (jnp.asarray(RNG.standard_normal((50, 2, 5))) for _ in range(2))
    resolve = jax.jit(jax.vmap(lambda v: jnp.stack(damped.resolvent((v[0], v[1]), 0.7))))
    moved, gap = resolve(a) - resolve(b), a - b
    assert np.all(np.sum(moved**2, axis=(1, 2)) <= np.sum(moved * gap, axis=(1, 2)) + 1e-12)


def test_a_saddle_point_problem_has_the_gradients_of_its_function():
    phi = lambda x, y, i, a: a[i] * x["p"] @ y - 0.5 * y @ y
    weights = jnp.array([1.0, 2.0, 6.0])
    problem = MonotoneInclusion.saddle(phi, None, projections.simplex, weights, n=3)
    x, y = {"p": jnp.array([1.0, -1.0])}, jnp.array([0.5, 0.5])
    by_x, by_y = problem.operator((x, y))
    np.testing.assert_allclose(by_x["p"], 3.0 * y)
    np.testing.assert_allclose(by_y, y - 3.0 * x["p"])
    np.testing.assert_allclose(problem.resolvent((x, 3 * y), 1.0)[1], y)


def test_the_residual_of_a_free_problem_is_its_operator_and_falls_with_the_step_on_a_set(game):
    u = jnp.ones(3)
    assert operator_residual(least_squares(), u, 0.1) == pytest.approx(np.linalg.norm(least_squares().operator(u)))
    at = (jnp.asarray(UNIFORM), jnp.eye(5)[0])
    residuals = [float(operator_residual(game, at, eta)) for eta in (0.1, 1.0, 10.0)]
    assert residuals[0] * (1 + 1e-12) >= residuals[1] > residuals[2] > 0


def test_a_guess_outside_the_domain_is_projected_and_one_inside_stays_as_it_is(game):
    method = Halpern(lipschitz=1.0)
    with pytest.warns(UserWarning, match="projection"):
        solution = om.solve(game, method, (jnp.ones(5), jnp.asarray(UNIFORM)), budget=BUDGET)
    np.testing.assert_allclose(solution.value[0], UNIFORM)
    inside = tuple(jnp.asarray(RNG.dirichlet(np.ones(5))) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = om.solve(game, method, inside, budget=BUDGET)
    for part, given in zip(solution.value, inside, strict=True):
        np.testing.assert_array_equal(part, given)


def test_an_operator_that_is_not_monotone_is_warned_of_with_the_pair():
    concave = MonotoneInclusion(lambda u, i: -u, 2)
    with pytest.warns(UserWarning, match=r"not monotone.*\n.*u = .*\n.*v = "):
        om.solve(concave, Halpern(lipschitz=1.0), jnp.ones(2), budget=BUDGET)


def doubling(v, step_size):
    return 2 * v


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: MonotoneInclusion(lambda u, i: u, 2, doubling), "resolvent"),
        (lambda: least_squares(operator=lambda u, rows, targets: rows.T @ (rows @ u - targets)), "n"),
        (lambda: least_squares(linear=True), "linear"),
    ],
)
def test_promises_that_are_not_kept_are_found_before_the_solve(build, name):
    with pytest.raises(ArgumentError) as caught:
        om.solve(build(), Halpern(lipschitz=1.0), jnp.ones(3), budget=BUDGET)
    assert caught.value.argument == name


def test_outputs_of_another_shape_are_refused_by_name():
    guess = jnp.ones(3)
    for problem, name in (
        (MonotoneInclusion(lambda u, i: u[:2], 2), "components"),
        (MonotoneInclusion(lambda u, i: u, 2, lambda v, step_size: v[:2]), "resolvent"),
        (MonotoneInclusion(lambda u, i: u, 2, operator=lambda u: jnp.sum(u)), "operator"),
    ):
        with pytest.raises(ObjectiveError) as caught:
            om.solve(problem, Halpern(lipschitz=1.0), guess, budget=BUDGET)
        assert caught.value.argument == name
    with pytest.raises(ObjectiveError, match="resolvent"):  # a vector, where the game wants a pair
        om.solve(matrix_game(jnp.eye(3)), Halpern(lipschitz=1.0), jnp.ones(3), budget=BUDGET)
    with pytest.raises(GuessError, match="guess"):
        om.solve(matrix_game(jnp.eye(3)), Halpern(lipschitz=1.0), None, budget=BUDGET)


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: MonotoneInclusion(regression, 0), "n"),
        (lambda: MonotoneInclusion((regression, regression), (1, 2, 3)), "n"),
        (lambda: MonotoneInclusion("F", 3), "components"),
        (lambda: MonotoneInclusion(regression, 3, "J"), "resolvent"),
        (lambda: MonotoneInclusion(regression, 3, operator=3), "operator"),
        (lambda: least_squares(probabilities=jnp.ones(5) / 5), "probabilities"),
        (lambda: least_squares(probabilities=jnp.ones(6)), "probabilities"),
        (lambda: least_squares(probabilities=jnp.array([0.0, 0.2, 0.2, 0.2, 0.2, 0.2])), "probabilities"),
        (lambda: least_squares(probes=-1), "probes"),
        (lambda: MonotoneInclusion.saddle(3), "phi"),
        (lambda: MonotoneInclusion.saddle(lambda x, y: x * y, 3), "project_x"),
        (lambda: matrix_game("poker"), "game"),
        (lambda: matrix_game("policeman-burglar"), "key"),
        (lambda: matrix_game(jnp.ones(3)), "game"),
        (lambda: matrix_game(jnp.eye(3), sampling="best"), "sampling"),
        (lambda: matrix_game(jnp.eye(3), regularization=-1.0), "regularization"),
    ],
)
def test_bad_arguments_are_named(build, name, as_a_user):
    with pytest.raises(ArgumentError) as caught:
        build()
    assert caught.value.argument == name
