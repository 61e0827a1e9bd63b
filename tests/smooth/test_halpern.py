"""Halpern's iteration, its variance-reduced forms and their rivals: bounds, recursions, known answers, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.core.errors import ArgumentError
from optimand.smooth import (
    GDA,
    ExtraAnchoredGradient,
    Extragradient,
    Halpern,
    InexactHalpern,
    MonotoneInclusion,
    PopovReflected,
    VRForwardReflectedBackward,
    VRHalpern,
    matrix_game,
    operator_residual,
)

RNG = np.random.default_rng(1)
KEY = jax.random.key(5)
PAYOFF = RNG.standard_normal((6, 4))
PAYOFF /= np.linalg.norm(PAYOFF, 2)
FROBENIUS = np.linalg.norm(PAYOFF)
UNIFORM = (np.full(6, 1 / 6), np.full(4, 1 / 4))
MATRICES = np.eye(3) + 0.3 * RNG.standard_normal((5, 3, 3))
SHIFTS = RNG.standard_normal((5, 3))


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


def affine(u, i, matrices, shifts):
    return matrices[i] @ u - shifts[i]


def affine_problem(**options):
    """Strongly monotone on average: the mean matrix is near the identity."""
    return MonotoneInclusion(affine, 5, None, MATRICES, SHIFTS, **options)


def solve(problem, method, guess, steps, **options):
    return om.solve(problem, method, guess, key=KEY, budget=om.Budget(steps=steps, **options), throw=False)


TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


def test_the_residual_of_halpern_on_a_rotation_stays_below_its_tight_bound():
    start = jnp.array([3.0, 4.0])
    turning = MonotoneInclusion(lambda u, i, turn: u - turn @ u, 1, None, TURN)
    solution = solve(turning, Halpern(lipschitz=2.0, tolerance=0.0), start, 1000)
    k = np.asarray(solution.history["step"])
    assert len(k) == 1000
    assert np.all(solution.history["residual"] <= 2 * 5.0 / (k + 1) * (1 + 1e-12))
    assert solution.history["residual"][-1] >= 0.2 * 2 * 5.0 / 1001  # and the bound is no wild one


def recursion(problem, step_size, steps):
    """`VRHalpern` with every draw a full one, as the paper writes it."""
    u0 = jnp.zeros(3)
    u = problem.resolvent(u0 - step_size * problem.operator(u0), step_size)
    iterates = [u0, u]
    for k in range(1, steps):
        weight = 2 / (k + 4)
        eta = (1 - weight) * step_size
        u = problem.resolvent(weight * u0 + (1 - weight) * u - eta * problem.operator(u), eta)
        iterates.append(u)
    return iterates


@pytest.mark.parametrize("case", ["always full", "one component"])
def test_variance_reduction_without_variance_is_the_deterministic_recursion(case):
    if case == "always full":
        problem, method = affine_problem(probes=0), VRHalpern(lipschitz=0.5, probability=1.0, tolerance=0.0)
    else:
        mean = MATRICES.mean(axis=0)[None], SHIFTS.mean(axis=0)[None]
        problem, method = MonotoneInclusion(affine, 1, None, *mean, probes=0), VRHalpern(lipschitz=0.5, tolerance=0.0)
    state = solve(problem, method, jnp.zeros(3), 20).state
    iterates = recursion(problem, 0.5, 21)
    np.testing.assert_allclose(state.x, iterates[-1], rtol=1e-12)
    np.testing.assert_allclose(state.estimate, problem.operator(iterates[-2]), rtol=1e-10)


SOLVERS = {
    "extragradient": (Extragradient(lipschitz=1.3, tolerance=1e-9), 400),
    "popov": (PopovReflected(lipschitz=1.3, tolerance=1e-9), 400),
    "descent ascent": (GDA(lipschitz=1.5, tolerance=1e-9), 400),
    "forward-reflected-backward": (VRForwardReflectedBackward(lipschitz=1.5, tolerance=1e-9), 2000),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_strongly_monotone_affine_inclusions_are_solved_to_what_a_linear_solve_gives(name):
    method, steps = SOLVERS[name]
    solution = solve(affine_problem(), method, jnp.zeros(3), steps)
    assert solution.result == om.Result.converged
    exact = np.linalg.solve(MATRICES.mean(axis=0), SHIFTS.mean(axis=0))
    np.testing.assert_allclose(solution.value, exact, atol=1e-8)


@pytest.fixture(scope="module")
def value_of_the_game():
    """min over x of the largest entry of A'x, by linear programming."""
    cost = np.append(np.zeros(6), 1.0)
    found = scipy.optimize.linprog(
        cost, A_ub=np.column_stack([PAYOFF.T, -np.ones(4)]), b_ub=np.zeros(4),
        A_eq=np.append(np.ones(6), 0.0)[None], b_eq=[1.0], bounds=[(0, None)] * 6 + [(None, None)],
    )  # fmt: skip
    return found.fun


GAMERS = {
    "inexact halpern": (InexactHalpern(lipschitz=FROBENIUS, tolerance=3e-3), 20_000),
    "inexact halpern, residual": (InexactHalpern(lipschitz=FROBENIUS, inner="residual", tolerance=3e-3), 20_000),
    "extra anchored gradient": (ExtraAnchoredGradient(lipschitz=1.0, tolerance=3e-3), 3000),
}


@pytest.mark.parametrize("name", GAMERS)
def test_a_game_ends_with_the_residual_it_reports_and_near_its_value(name, value_of_the_game):
    method, steps = GAMERS[name]
    game = matrix_game(PAYOFF)
    solution = solve(game, method, UNIFORM, steps)
    assert solution.result == om.Result.converged
    reported = solution.history["residual"][-1]
    assert reported == pytest.approx(float(operator_residual(game, solution.value)), abs=1e-10)
    x, y = solution.value
    worst, best = np.max(x @ PAYOFF), np.min(PAYOFF @ y)  # each side's guarantee
    assert best - 1e-9 <= value_of_the_game <= worst + 1e-9
    assert worst - best <= 10 * reported
    spent, draws = solution.counters, solution.counters.residuals
    assert solution.history["component_calls"][-1] == spent.calls
    if name.startswith("inexact"):
        assert spent.calls == 10 * draws + 2 * solution.steps  # a column and a row in each
    else:
        assert (draws, spent.calls) == (1 + 2 * solution.steps, 10 * (1 + 2 * solution.steps))


def test_the_same_key_gives_the_same_run_and_another_key_another():
    game, method = matrix_game(PAYOFF), VRHalpern(lipschitz=1.0, tolerance=0.0)
    runs = [om.solve(game, method, UNIFORM, key=jax.random.key(seed), budget=om.Budget(steps=40)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].value[0], runs[1].value[0])
    assert runs[0].counters == runs[1].counters
    assert np.any(runs[0].state.x[0] != runs[2].state.x[0])


def test_the_derivative_of_a_regularised_equilibrium_by_payoffs_is_that_of_differences():
    weights = jnp.arange(4.0)

    def second_player(payoff):
        game = matrix_game(payoff, sampling="uniform", regularization=0.5)
        solution = om.solve(game, Extragradient(lipschitz=1.0, tolerance=1e-12), UNIFORM, budget=om.Budget(steps=500))
        return weights @ solution.value[1]

    payoff = jnp.asarray(PAYOFF)
    value, gradient = jax.jit(jax.value_and_grad(second_player))(payoff)
    again = jax.jit(second_player)
    for i, j in ((0, 1), (3, 2), (5, 3)):
        up, down = (again(payoff.at[i, j].add(step)) for step in (1e-5, -1e-5))
        assert float(gradient[i, j]) == pytest.approx(float(up - down) / 2e-5, abs=1e-7)
    assert np.isfinite(value) and np.abs(gradient).max() > 1e-3


def test_a_lipschitz_constant_that_is_too_small_ends_as_diverged():
    for method in (GDA(lipschitz=0.2), VRHalpern(lipschitz=0.02)):
        solution = solve(affine_problem(), method, jnp.zeros(3), 2000)
        assert solution.result == om.Result.diverged
        assert all(np.isfinite(solution.value))


def squares(u, i, rows):
    return rows[i] * (rows[i] @ u - 1.0)


def test_variance_reduction_counts_its_calls_and_reports_the_residual_of_its_answer():
    rows = RNG.standard_normal((9, 3))
    problem = MonotoneInclusion(squares, 9, None, rows)
    lipschitz = np.linalg.norm(rows, 2) ** 2 / 9
    adaptive = VRHalpern(lipschitz=lipschitz / 64, adaptive=True, tolerance=1e-2)  # far too small at first
    solution = solve(problem, adaptive, jnp.zeros(3), 3000)
    assert solution.result == om.Result.converged
    residual = float(operator_residual(problem, solution.value))
    assert solution.history["residual"][-1] == pytest.approx(residual, abs=1e-10)
    draws = solution.counters.residuals
    assert 1 < draws < solution.steps
    assert solution.counters.calls == 9 * draws + 2 * 3 * (solution.steps - (draws - 1))
    doublings = np.log2(float(solution.state.lipschitz) / (lipschitz / 64))
    assert doublings == round(doublings) and 3 <= doublings <= 7


@pytest.mark.parametrize(
    "build, name",
    [
        (lambda: Halpern(lipschitz=0.0), "lipschitz"),
        (lambda: Extragradient(lipschitz=1.0, step_scale=-1.0), "step_scale"),
        (lambda: GDA(lipschitz=1.0, tolerance=-1.0), "tolerance"),
        (lambda: VRHalpern(lipschitz=1.0, batch=0), "batch"),
        (lambda: VRHalpern(lipschitz=1.0, probability=1.5), "probability"),
        (lambda: VRHalpern(lipschitz=1.0, anchoring=0.5), "anchoring"),
        (lambda: VRForwardReflectedBackward(lipschitz=1.0, batch=0), "batch"),
        (lambda: VRForwardReflectedBackward(lipschitz=1.0, probability=0.0), "probability"),
        (lambda: InexactHalpern(lipschitz=1.0, inner="soon"), "inner"),
        (lambda: InexactHalpern(lipschitz=1.0, inner_factor=0.0), "inner_factor"),
    ],
)
def test_bad_hyperparameters_are_named(build, name, as_a_user):
    with pytest.raises(ArgumentError) as caught:
        build()
    assert caught.value.argument == name
