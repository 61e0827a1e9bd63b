"""Sequences of systems: order, what is carried on, failures, resume, and derivatives."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.linear import CG, GCRODR, GMRES, LinearSequence, RecycledSequence, SolveEach, SparseLU, greedy_order
from optimand.physics import Darcy, Helmholtz


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def solve(sequence, method, **options):
    return om.solve(sequence, method, budget=om.Budget(steps=sequence.count), **options)


def darcy(count=6, side=10, order=None):
    family = Darcy(side)
    return LinearSequence(family.system, family.sample(jax.random.key(0), count), order)


METHODS = [SolveEach(CG(1e-10)), SolveEach(SparseLU()), SolveEach(CG(1e-10), warm=True), RecycledSequence(GCRODR(1e-10, restart=20, recycle=5))]


@pytest.mark.parametrize("method", METHODS)
def test_every_system_is_solved_and_solutions_stand_in_the_order_of_the_parameters(method):
    sequence = darcy(order=lambda parameters: np.array([3, 1, 5, 0, 2, 4]))
    solution = solve(sequence, method)
    assert solution.result == om.Result.converged and solution.steps == 6 and solution.counters.linear_solves == 6
    for i in range(6):
        operator, b = sequence.one(i)
        x = jnp.linalg.solve(operator.as_matrix(), b)
        np.testing.assert_allclose(solution.value[i], x, rtol=1e-7, atol=1e-9)
        left = jnp.linalg.norm(b - operator.mv(solution.value[i])) / jnp.linalg.norm(b)
        np.testing.assert_allclose(solution.state.residuals[i], left, rtol=1e-3, atol=1e-15)
        assert left <= 1.0001e-10
    np.testing.assert_array_equal(solution.history["iterations"], solution.state.iterations[np.array([3, 1, 5, 0, 2, 4])])


def test_the_space_that_is_carried_saves_products_and_an_order_saves_more():
    family = Helmholtz(20)
    parameters = family.sample(jax.random.key(1), 24)
    products = {}
    for name, order in (("given", None), ("sorted", greedy_order)):
        sequence = LinearSequence(family.system, parameters, order)
        products[name] = int(jnp.sum(solve(sequence, RecycledSequence(GCRODR(1e-8))).state.products))
    alone = int(jnp.sum(solve(LinearSequence(family.system, parameters), SolveEach(GCRODR(1e-8))).state.products))
    assert products["given"] < 0.95 * alone and products["sorted"] < 0.95 * products["given"]


def test_the_same_matrix_again_takes_fewer_products_and_the_same_system_none_but_those_that_fit_the_space():
    family, rng = Darcy(16), np.random.default_rng(0)
    operator, _ = family.system(jnp.array([0.5, -1.0, 0.3]))
    rhs = np.repeat(rng.normal(size=(2, 256)), 2, axis=0)
    sequence = LinearSequence.of_matrices([operator.to_scipy()] * 4, rhs)
    solver = GCRODR(1e-8, restart=24, recycle=8)
    products = solve(sequence, RecycledSequence(solver)).state.products
    assert products[2] < 0.8 * products[0]
    warm = solve(sequence, RecycledSequence(solver, warm=True)).state
    assert warm.iterations[1] == 0 and warm.products[1] <= 8 + 2


def test_a_system_that_cannot_be_solved_is_marked_and_the_others_are_solved():
    family = Darcy(8)
    parameters = family.sample(jax.random.key(2), 4).at[1].set(jnp.nan)
    for method in (SolveEach(CG(1e-8)), RecycledSequence(GCRODR(1e-8, restart=20, recycle=5))):
        solution = solve(LinearSequence(family.system, parameters), method, throw=False)
        np.testing.assert_array_equal(solution.state.failed, [False, True, False, False])
        good = jnp.array([0, 2, 3])
        assert solution.result == om.Result.stopped and jnp.all(solution.state.residuals[good] <= 1.0001e-8)
    short = solve(LinearSequence(family.system, family.sample(jax.random.key(2), 2)), SolveEach(GMRES(1e-8, max_steps=3)), throw=False)
    assert jnp.all(short.state.failed) and jnp.all(short.state.residuals < 1) and jnp.all(jnp.isfinite(short.value))


def test_a_zero_right_hand_side_takes_no_iterations_and_leaves_the_space():
    matrix = scipy.sparse.diags_array([-1.0, 2.1, -1.0], offsets=[-1, 0, 1], shape=(40, 40))
    rhs = np.random.default_rng(0).normal(size=(3, 40))
    rhs[1] = 0
    state = solve(LinearSequence.of_matrices([matrix] * 3, rhs), RecycledSequence(GCRODR(1e-8, restart=12, recycle=4))).state
    assert state.iterations[1] == 0 and not jnp.any(state.values[1]) and not jnp.any(state.failed)
    alone = solve(LinearSequence.of_matrices([matrix] * 2, rhs[[0, 2]]), RecycledSequence(GCRODR(1e-8, restart=12, recycle=4))).state
    assert abs(int(state.iterations[2]) - int(alone.iterations[1])) <= 1


def test_matrices_with_entries_at_different_places():
    rng = np.random.default_rng(0)
    matrices = [scipy.sparse.random_array((9, 9), density=0.2, rng=rng) + 3 * scipy.sparse.eye_array(9) for _ in range(3)]
    rhs = rng.normal(size=(3, 9))
    solution = solve(LinearSequence.of_matrices(matrices, rhs), SolveEach(GMRES(1e-10)))
    for x, matrix, b in zip(solution.value, matrices, rhs, strict=True):
        np.testing.assert_allclose(matrix @ x, b, atol=1e-8)


def test_in_a_loop_of_ones_own_it_is_the_same():
    sequence, method = darcy(), METHODS[3]
    memory, values = method.begin(sequence.one(0)[0]), []
    for i in range(6):
        operator, b = sequence.one(i)
        answer, memory = method.solve_next(memory, operator, b)
        values.append(answer.value)
    np.testing.assert_allclose(jnp.stack(values), solve(sequence, method).value, atol=1e-9)


def test_derivatives_are_those_of_the_dense_solves():
    family = Darcy(4)
    parameters = family.sample(jax.random.key(0), 3)

    def ours(parameters):
        return jnp.sum(solve(LinearSequence(family.system, parameters), RecycledSequence(GCRODR(1e-12, restart=14, recycle=3))).value ** 2)

    def dense(parameters):
        pairs = [family.system(parameter) for parameter in parameters]
        return sum(jnp.sum(jnp.linalg.solve(operator.as_matrix(), b) ** 2) for operator, b in pairs)

    np.testing.assert_allclose(jax.grad(ours)(parameters), jax.grad(dense)(parameters), rtol=1e-6)


def diagonal_sequence(theta):
    matrix = lambda p: jnp.diag(jnp.array([1.0, 2.0, 3.0], p.dtype) + p**2)
    system = lambda p: (lx.MatrixLinearOperator(matrix(p), lx.positive_semidefinite_tag), jnp.ones(3, p.dtype))
    return LinearSequence(system, theta)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(SolveEach(CG(1e-8)), id="each", marks=pytest.mark.thorough),
        pytest.param(RecycledSequence(GCRODR(1e-8, restart=3, recycle=1)), id="recycled"),
    ],
)
def test_methods_conform(check, method):
    theta = jnp.array([0.5, -0.25, 1.0])
    check(Case(method, diagonal_sequence, theta, jnp.zeros((3, 3)), steps=3, tolerance=1e-5))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LinearSequence(3, jnp.ones(2)), "system"),
        (lambda: LinearSequence(lambda p: p, {"a": jnp.ones(2), "b": jnp.ones(3)}), "parameters"),
        (lambda: LinearSequence(lambda p: p, jnp.ones(())), "parameters"),
        (lambda: darcy(order=np.array([0, 1])), "order"),
        (lambda: darcy(order=np.array([0, 1, 2, 3, 4, 4])), "order"),
        (lambda: solve(LinearSequence(lambda p: p, jnp.ones(2)), SolveEach(CG(1e-8))), "system"),
        (lambda: solve(LinearSequence(lambda p: (lx.DiagonalLinearOperator(p), jnp.ones(2)), jnp.ones((2, 3))), SolveEach(CG(1e-8))), "system"),
        (lambda: LinearSequence.of_matrices([], jnp.ones(2)), "matrices"),
        (lambda: LinearSequence.of_matrices([np.eye(2)], jnp.ones(2)), r"matrices\[0\]"),
        (lambda: LinearSequence.of_matrices([scipy.sparse.eye_array(2), scipy.sparse.eye_array(3)], jnp.ones(2)), r"matrices\[1\]"),
        (lambda: LinearSequence.of_matrices([scipy.sparse.eye_array(2)], jnp.ones(3)), "rhs"),
        (lambda: SolveEach(3), "solver"),
        (lambda: RecycledSequence(CG(1e-8)), "solver"),
    ],
)
def test_bad_arguments_are_named(make, name, as_a_user):
    with pytest.raises(om.errors.OptimandError, match=name):
        make()
