"""Sequences whose solver's parameter is learned: from its own solves only, and none of them lost."""

import warnings

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.linear import CG, SOR, SSOR, ChebCB, LinearSequence, TsallisINF, TsallisINFContextual, TunedSequence
from optimand.physics import ShiftedLaplacian


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


GRID = np.array([0.3, 1.5])  # of which the first takes many times as many sweeps


def stream():
    return ShiftedLaplacian(jax.random.key(0), 6, lowest=0.1)


def sequence(count):
    return LinearSequence(lambda step: stream().system(step)[:2], jnp.arange(count))


def sor(omega):
    return SOR(omega, 1e-6, max_steps=400)


LEARNERS = {
    "TsallisINF": lambda bounds: TsallisINF(GRID),
    "TsallisINFContextual": lambda bounds: TsallisINFContextual(GRID, bounds, 2),
    "ChebCB": lambda bounds: ChebCB(GRID, bounds, 2),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_system_is_solved_and_the_better_value_is_found(name):
    learner = LEARNERS[name](stream().context_bounds)
    method = TunedSequence(sor, learner, context=lambda step: stream().system(step)[2])
    solution = om.solve(sequence(120), method, key=jax.random.key(1), budget=om.Budget(steps=120))
    assert solution.result == om.Result.converged and jnp.all(solution.state.residuals <= 1.0001e-6)
    chosen = np.asarray(solution.state.chosen)
    assert set(np.unique(chosen)) == set(GRID) and np.mean(chosen[-40:] == 1.5) > 0.6
    for step in (0, 119):  # the iterations are those of the value that was chosen
        operator, b, _ = stream().system(step)
        assert lx.linear_solve(operator, b, sor(chosen[step])).stats["num_steps"] == solution.state.iterations[step]


def test_the_learner_is_told_what_its_choice_cost_and_no_more():
    told = []

    class Spy(TsallisINF):
        def learn(self, state, cost):
            jax.debug.callback(lambda cost, chosen: told.append((float(cost), int(chosen))), cost, state.chosen)
            return super().learn(state, cost)

    solution = om.solve(sequence(9), TunedSequence(sor, Spy(GRID)), key=jax.random.key(2), budget=om.Budget(steps=9))
    jax.effects_barrier()
    assert sorted(told) == sorted(zip(map(float, solution.state.iterations), [int(c == 1.5) for c in solution.state.chosen], strict=True))


def test_a_solver_that_fails_costs_its_limit_and_is_marked():
    method = TunedSequence(lambda omega: SOR(omega, 1e-6, max_steps=20), TsallisINF(np.array([0.05, 0.06])))
    solution = om.solve(sequence(4), method, key=jax.random.key(0), budget=om.Budget(steps=4), throw=False)
    assert solution.result == om.Result.stopped and jnp.all(solution.state.failed)
    np.testing.assert_array_equal(solution.state.iterations, 20)
    assert solution.state.memory.rounds == 4 and solution.state.memory.total == 80


def test_a_cost_of_ones_own_and_a_loop_of_ones_own():
    method = TunedSequence(
        lambda omega: CG(1e-8, preconditioner=SSOR(omega)), TsallisINF(GRID), cost=lambda answer: 2.0 * answer.stats["num_steps"]
    )
    operator, b, _ = stream().system(0)
    memory = method.begin(operator)
    answer, memory = method.solve_next(memory, operator, b, key=jax.random.key(0))
    np.testing.assert_allclose(operator.mv(answer.value), b, atol=1e-6)
    assert memory.total == 2 * answer.iterations


@pytest.mark.parametrize("name", ["TsallisINFContextual", "ChebCB"])
def test_a_context_outside_of_its_bounds_warns_once_is_clipped_and_counted(name):
    bounds = (0.2, 0.3)
    inside = lambda step: jnp.clip(0.1 + 0.045 * step, *bounds)
    run = lambda context: om.solve(sequence(6), TunedSequence(sor, LEARNERS[name](bounds), context=context), key=jax.random.key(3), budget=om.Budget(steps=6))
    with pytest.warns(RuntimeWarning, match="context 0.1 lies outside of context_bounds .0.2, 0.3.") as seen:
        solution = run(lambda step: 0.1 + 0.045 * step)  # 0.1, 0.145, 0.19, 0.235, 0.28, 0.325
        jax.effects_barrier()
    assert len([one for one in seen if one.category is RuntimeWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        clipped = run(inside)
        jax.effects_barrier()
    assert solution.state.memory.clipped == 4 and clipped.state.memory.clipped == 0
    np.testing.assert_array_equal(solution.state.chosen, clipped.state.chosen)
    np.testing.assert_array_equal(solution.state.iterations, clipped.state.iterations)


def shifted(theta):
    matrix = lambda p: jnp.diag(jnp.array([1.0, 2.0, 3.0], p.dtype) + p**2)
    return LinearSequence(lambda p: (lx.MatrixLinearOperator(matrix(p), lx.positive_semidefinite_tag), jnp.ones(3, p.dtype)), theta)


@pytest.mark.thorough
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(check):
    method = TunedSequence(lambda scale: CG(1e-9 * scale), TsallisINF(np.array([0.5, 1.0])))
    theta = jnp.array([0.5, -0.25, 1.0])
    check(Case(method, shifted, theta, jnp.zeros((3, 3)), key=jax.random.key(7), steps=3, tolerance=1e-5))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: TunedSequence(CG(1e-8), TsallisINF(GRID)), "solver"),
        (lambda: TunedSequence(sor, 3), "learner"),
        (lambda: TunedSequence(sor, TsallisINF(np.array([1.5, 2.0]))), "omega.*2.0"),
        (lambda: TunedSequence(sor, TsallisINF(GRID), context=3), "context"),
        (lambda: TunedSequence(sor, TsallisINF(GRID), cost=3), "cost"),
        (lambda: om.solve(sequence(2), TunedSequence(sor, TsallisINF(GRID))), "key"),
        (lambda: om.solve(sequence(2), TunedSequence(lambda omega: omega, TsallisINF(GRID)), key=jax.random.key(0)), "solver"),
    ],
)
def test_bad_arguments_are_named(make, name, as_a_user):
    with pytest.raises(om.errors.OptimandError, match=name):
        make()
