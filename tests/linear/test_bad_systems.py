"""Systems that have no solution, or not the properties that they are said to have: no solver passes one for solved, and each says how it ended."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.linear import CG, FGMRES, GCRODR, GMRES, MINRES, SOR, BiCGStab, Jacobi, SparseLU, SparseOperator

POSITIVE = lx.positive_semidefinite_tag
RTOL = 1e-8
KRYLOV = {
    "CG": CG(RTOL),
    "MINRES": MINRES(RTOL),
    "GMRES": GMRES(RTOL),
    "FGMRES": FGMRES(RTOL),
    "BiCGStab": BiCGStab(RTOL),
    "GCRODR": GCRODR(RTOL, restart=6, recycle=2),
}
ALL = {**KRYLOV, "SOR": SOR(1.0, RTOL, max_steps=1500)}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def line(n=12):
    return scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)).tolil()


def neumann(n=12):
    """Singular: constants are its kernel."""
    matrix = line(n)
    matrix[0, 0] = matrix[n - 1, n - 1] = 1.0
    return SparseOperator.from_scipy(matrix, POSITIVE)


def indefinite(tags=POSITIVE):
    return SparseOperator.from_scipy(line() - 1.3 * scipy.sparse.eye_array(12), tags)


def right_hand_side(n=12, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n))


def ended(operator, solver, b, **options):
    """How a solve ends. Its value is finite and no worse than zero, its residual is the true one, and it is successful exactly if that is small."""
    answer = lx.linear_solve(operator, b, solver, options=options, throw=False)
    assert jnp.all(jnp.isfinite(answer.value))
    matrix = np.nan_to_num(np.asarray(operator.as_matrix()))
    true = np.linalg.norm(b - matrix @ answer.value) / np.linalg.norm(b)
    if not jnp.any(jnp.isnan(operator.as_matrix())):
        np.testing.assert_allclose(answer.stats["residual"], true, rtol=1e-6, atol=1e-12)
        assert answer.stats["residual"] <= 1 + 1e-12
        assert (answer.result == lx.RESULTS.successful) == bool(answer.stats["residual"] <= RTOL)
    return answer


NAMED = [lx.RESULTS.breakdown, lx.RESULTS.stagnation, lx.RESULTS.max_steps_reached]


@pytest.mark.parametrize("name", ALL)
def test_an_inconsistent_system_is_not_solved_and_the_end_is_named(name):
    answer = ended(neumann(), ALL[name], right_hand_side() + 1)
    assert any(answer.result == result for result in NAMED)


@pytest.mark.parametrize("name", KRYLOV)
def test_a_consistent_singular_system_is_solved(name):
    b = right_hand_side()
    assert ended(neumann(), KRYLOV[name], b - b.mean()).result == lx.RESULTS.successful


def test_a_direct_solver_names_a_singular_matrix():
    answer = lx.linear_solve(SparseOperator.from_scipy(scipy.sparse.csr_array([[1.0, 2.0], [2.0, 4.0]])), jnp.ones(2), SparseLU(), throw=False)
    assert answer.result == lx.RESULTS.singular


@pytest.mark.parametrize("seed", range(3))
def test_an_indefinite_matrix_tagged_as_positive_does_not_pass_for_solved_by_conjugate_gradients(seed):
    answer = ended(indefinite(), CG(RTOL), right_hand_side(seed=seed))
    assert answer.result in [lx.RESULTS.breakdown, lx.RESULTS.successful]  # by luck the directions may not meet the curvature: then the residual says so
    assert ended(indefinite(lx.symmetric_tag), MINRES(RTOL), right_hand_side(seed=seed)).result == lx.RESULTS.successful


def test_a_direction_without_curvature_is_a_breakdown_with_the_best_iterate():
    swap = SparseOperator.from_scipy(scipy.sparse.csr_array([[0.0, 1.0], [1.0, 0.0]]), POSITIVE)
    assert ended(swap, CG(RTOL), jnp.array([1.0, 0.0])).result == lx.RESULTS.breakdown
    twist = SparseOperator.from_scipy(scipy.sparse.csr_array([[0.0, 1.0], [-1.0, 0.0]]))
    assert ended(twist, BiCGStab(RTOL), jnp.array([1.0, 0.0])).result in [lx.RESULTS.breakdown, lx.RESULTS.stagnation]


@pytest.mark.parametrize("tag", [lx.symmetric_tag, POSITIVE])
def test_a_tag_of_symmetry_is_refuted_where_the_entries_are_known(tag):
    with pytest.raises(om.errors.ArgumentError, match="symmetric, but entry"):
        SparseOperator.from_scipy(scipy.sparse.csr_array([[2.0, 1.0], [0.0, 2.0]]), tag)


@pytest.mark.parametrize("name", ["CG", "MINRES"])
def test_a_wrong_tag_that_is_not_refuted_is_judged_by_the_residual(name):
    matrix = jnp.asarray((line() + 0.9 * scipy.sparse.eye_array(12, k=1)).toarray())
    tag = POSITIVE if name == "CG" else lx.symmetric_tag
    ended(lx.MatrixLinearOperator(matrix, tag), KRYLOV[name], right_hand_side())


@pytest.mark.parametrize("name", ALL)
def test_zero_is_the_solution_for_zero_at_once(name):
    operator = SparseOperator.from_scipy(line(), POSITIVE)
    for options in ({}, {"y0": right_hand_side()}, {"preconditioner": Jacobi()} if name in KRYLOV else {}):
        answer = lx.linear_solve(operator, jnp.zeros(12), ALL[name], options=options)
        assert answer.result == lx.RESULTS.successful and not jnp.any(answer.value) and answer.stats["num_steps"] == 0
        assert answer.stats["residual"] == 0
    gradient = jax.grad(lambda b: jnp.sum(lx.linear_solve(operator, b, ALL[name]).value))(jnp.zeros(12))
    np.testing.assert_allclose(operator.mv(gradient), np.ones(12), atol=1e-6)


@pytest.mark.parametrize("name", KRYLOV)
@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
def test_a_matrix_with_a_number_that_is_none_is_named_as_that(name, number):
    operator = SparseOperator.from_scipy(line(), POSITIVE)
    broken = operator.with_data(operator.data.at[7].set(number))
    answer = lx.linear_solve(broken, right_hand_side(), KRYLOV[name], throw=False)
    assert answer.result == lx.RESULTS.nonfinite_input and jnp.all(jnp.isfinite(answer.value))


@pytest.mark.parametrize("name", KRYLOV)
def test_a_preconditioner_or_a_right_hand_side_with_a_number_that_is_none_is_named_as_that(name):
    operator = SparseOperator.from_scipy(line(), POSITIVE)
    wrong = lx.DiagonalLinearOperator(jnp.ones(12).at[3].set(jnp.nan))
    answer = lx.linear_solve(operator, right_hand_side(), KRYLOV[name], options={"preconditioner": wrong}, throw=False)
    assert answer.result == lx.RESULTS.nonfinite_input and jnp.all(jnp.isfinite(answer.value))
    answer = lx.linear_solve(operator, right_hand_side().at[2].set(jnp.nan), KRYLOV[name], throw=False)
    assert answer.result == lx.RESULTS.nonfinite_input


@pytest.mark.parametrize("name", ["CG", "MINRES"])
@pytest.mark.parametrize("kind", ["negative", "indefinite", "zero"])
def test_a_preconditioner_that_is_not_positive_definite_is_a_breakdown(name, kind):
    operator = SparseOperator.from_scipy(line(), POSITIVE)
    diagonal = {"negative": -jnp.ones(12), "indefinite": jnp.where(jnp.arange(12) < 6, 1.0, -1.0), "zero": jnp.zeros(12)}[kind]
    b = jnp.where(jnp.arange(12) < 5, 2.0, 1.0)
    assert ended(operator, KRYLOV[name], b, preconditioner=lx.DiagonalLinearOperator(diagonal)).result == lx.RESULTS.breakdown


@pytest.mark.parametrize("name", ["GMRES", "FGMRES", "BiCGStab", "GCRODR"])
def test_a_singular_preconditioner_leaves_what_it_cannot_reach(name):
    operator = SparseOperator.from_scipy(scipy.sparse.diags_array(np.arange(1.0, 13.0)), POSITIVE)
    flat = lx.DiagonalLinearOperator(jnp.ones(12).at[4].set(0.0))
    answer = ended(operator, KRYLOV[name], jnp.ones(12), preconditioner=flat)
    assert any(answer.result == result for result in NAMED)


@pytest.mark.parametrize("name", ["GMRES", "FGMRES", "GCRODR"])
def test_a_restart_that_is_too_short_is_stagnation(name):
    shift = SparseOperator.from_scipy(scipy.sparse.eye_array(40, k=1) + scipy.sparse.eye_array(40, k=-39))
    solver = {"GMRES": GMRES(RTOL, restart=5), "FGMRES": FGMRES(RTOL, restart=5), "GCRODR": GCRODR(RTOL, restart=5, recycle=1)}[name]
    assert ended(shift, solver, jnp.eye(40)[0]).result == lx.RESULTS.stagnation


@pytest.mark.parametrize("name", KRYLOV)
def test_by_default_the_end_is_raised_with_its_name(name):
    with pytest.raises(Exception, match=r"stagnation|breakdown|steps|finite"):
        lx.linear_solve(neumann(), right_hand_side() + 1, KRYLOV[name])
