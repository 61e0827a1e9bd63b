"""Baselines of the learned directions: deflated and flexible conjugate gradients, and incomplete Cholesky factors."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.linear import CG, DeflatedCG, FlexibleCG, IncompleteCholesky, Jacobi, SparseOperator, StencilOperator
from optimand.linear.incomplete_cholesky import incomplete_cholesky

POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def system(n=14):
    operator = StencilOperator.laplacian((n, n)).to_sparse()
    return operator, jnp.asarray(np.random.default_rng(1).normal(size=n * n))


@pytest.mark.parametrize(
    "solver", [DeflatedCG(1e-12, count=6, lanczos=60), FlexibleCG(1e-12), DeflatedCG(1e-12, preconditioner=Jacobi()), CG(1e-12, preconditioner=IncompleteCholesky())]
)
def test_the_solution_and_its_derivatives_are_those_of_the_dense_solve(solver):
    operator, b = system()
    answer = lx.linear_solve(operator, b, solver)
    assert jnp.linalg.norm(b - operator.mv(answer.value)) <= 1e-12 * jnp.linalg.norm(b)
    ours = jax.jit(jax.grad(lambda data, b: jnp.sum(lx.linear_solve(operator.with_data(data), b, solver).value ** 2), (0, 1)))(operator.data, b)
    dense = jax.grad(lambda data, b: jnp.sum(jnp.linalg.solve(operator.with_data(data).as_matrix(), b) ** 2), (0, 1))(operator.data, b)
    for mine, theirs in zip(ours, dense, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_with_eigenvectors_in_its_space_it_converges_as_without_their_eigenvalues():
    slow, fast = jnp.array([1e-4, 2e-3, 1e-2]), jnp.linspace(1, 3, 40)
    operator, b = lx.DiagonalLinearOperator(jnp.concatenate([slow, fast])), jnp.ones(43)
    operator = SparseOperator.from_scipy(scipy.sparse.diags_array(np.asarray(operator.diagonal)), POSITIVE)
    solver = DeflatedCG(1e-8)
    known = lx.linear_solve(operator, b, solver, state=solver.init(operator, {"space": jnp.eye(43)[:3]}))
    rest = SparseOperator.from_scipy(scipy.sparse.diags_array(np.asarray(fast)), POSITIVE)
    deflated = lx.linear_solve(rest, b[3:], CG(1e-8 * np.sqrt(43 / 40)))
    assert abs(known.stats["num_steps"] - deflated.stats["num_steps"]) <= 1


def test_the_space_it_finds_saves_steps_and_serves_other_right_hand_sides():
    operator, b = system()
    solver = DeflatedCG(1e-8, count=12)
    plain = lx.linear_solve(operator, b, CG(1e-8)).stats
    first = lx.linear_solve(operator, b, solver)
    again = lx.linear_solve(operator, jnp.cos(b), solver, state=solver.init(operator, {"space": first.stats["space"]}))
    assert first.stats["num_steps"] < 0.6 * plain["num_steps"] and again.stats["num_steps"] < 0.6 * plain["num_steps"]
    assert first.stats["products"] >= 113 and again.stats["products"] == again.stats["num_steps"] + 13


def test_rows_of_a_space_may_be_missing_or_dependent():
    operator, b = system(6)
    rows = jnp.stack([b, 2 * b, 0 * b])
    solver = DeflatedCG(1e-10)
    answer = lx.linear_solve(operator, b, solver, state=solver.init(operator, {"space": rows}))
    assert answer.stats["residual"] <= 1e-10


def test_flexible_conjugate_gradients_are_the_plain_ones_for_a_fixed_preconditioner():
    operator, b = system()
    for most in (1, 4, 9):
        for preconditioner in (None, Jacobi(), IncompleteCholesky()):
            ours, theirs = (
                lx.linear_solve(operator, b, kind(1e-13, preconditioner=preconditioner, max_steps=most), throw=False).value for kind in (FlexibleCG, CG)
            )
            np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_flexible_conjugate_gradients_take_an_inner_iteration():
    operator, b = system()
    inexact = lx.FunctionLinearOperator(lambda v: lx.linear_solve(operator, v, CG(0.1), throw=False).value, operator.in_structure())
    state = FlexibleCG(1e-10).init(operator, {})._replace(preconditioner=inexact)
    answer = lx.linear_solve(operator, b, FlexibleCG(1e-10), state=state)
    assert answer.stats["residual"] <= 1e-10 and answer.stats["num_steps"] <= 14


def test_incomplete_factors_agree_with_the_matrix_on_its_pattern():
    operator, _ = system(7)
    matrix = operator.to_scipy().tocsc()
    factor = incomplete_cholesky(matrix)
    assert factor.nnz == scipy.sparse.tril(matrix).nnz
    product, there = (factor @ factor.T).toarray(), matrix.toarray() != 0
    np.testing.assert_allclose(product[there], matrix.toarray()[there], atol=1e-12)
    assert np.abs(product[~there]).max() > 0.01


def test_without_fill_to_leave_out_the_factors_are_those_of_the_matrix():
    line = scipy.sparse.diags_array([-1.0, 2.5, -1.0], offsets=[-1, 0, 1], shape=(30, 30))
    operator = SparseOperator.from_scipy(line, POSITIVE)
    answer = lx.linear_solve(operator, jnp.ones(30), CG(1e-10, preconditioner=IncompleteCholesky()))
    assert answer.stats["num_steps"] == 1
    dense = SparseOperator.from_scipy(scipy.sparse.csr_array(np.eye(5) + np.ones((5, 5))), POSITIVE)
    np.testing.assert_allclose(IncompleteCholesky().of(dense).as_matrix(), np.linalg.inv(np.eye(5) + 1), atol=1e-12)


def test_a_pivot_that_is_not_positive_enlarges_the_diagonal():
    """Positive definite, but no M-matrix (Kershaw's)."""
    matrix = scipy.sparse.csc_array(np.array([[3.0, -2, 0, 2], [-2, 3, -2, 0], [0, -2, 3, -2], [2, 0, -2, 3]]))
    assert incomplete_cholesky(matrix) is None and incomplete_cholesky(matrix, 1.0) is not None
    made = IncompleteCholesky().of(SparseOperator.from_scipy(matrix, POSITIVE)).as_matrix()
    assert np.linalg.eigvalsh(made).min() > 0


def test_an_empty_row_is_one_of_the_identity_and_steps_are_saved():
    side = 20
    matrix = StencilOperator.laplacian((side, side)).to_sparse().to_scipy().tolil()
    for cell in (105, 106, 125):
        matrix[cell, :], matrix[:, cell] = 0, 0
    operator = SparseOperator.from_scipy(scipy.sparse.csr_array(matrix), POSITIVE)
    b = jnp.ones(side**2).at[jnp.array([105, 106, 125])].set(0)
    steps = [int(lx.linear_solve(operator, b, CG(1e-8, preconditioner=kind)).stats["num_steps"]) for kind in (None, IncompleteCholesky())]
    assert steps[1] < 0.6 * steps[0]


BAD = {
    "count": lambda: DeflatedCG(count=0),
    "lanczos": lambda: DeflatedCG(count=10, lanczos=9),
    "space": lambda: DeflatedCG().init(system(4)[0], {"space": jnp.ones((2, 5))}),
    "tagged as positive semidefinite for DeflatedCG": lambda: DeflatedCG().init(lx.MatrixLinearOperator(jnp.eye(4)), {}),
    "tagged as positive semidefinite for FlexibleCG": lambda: FlexibleCG().init(lx.MatrixLinearOperator(jnp.eye(4)), {}),
    "real for DeflatedCG": lambda: DeflatedCG().init(lx.MatrixLinearOperator(jnp.eye(4) + 0j, POSITIVE), {}),
    "real for FlexibleCG": lambda: FlexibleCG().init(lx.MatrixLinearOperator(jnp.eye(4) + 0j, POSITIVE), {}),
    "shift": lambda: IncompleteCholesky(-1.0),
    "SparseOperator": lambda: IncompleteCholesky().of(lx.MatrixLinearOperator(jnp.eye(4), POSITIVE)),
    "tagged as positive semidefinite for IncompleteCholesky": lambda: IncompleteCholesky().of(SparseOperator.from_scipy(scipy.sparse.eye_array(3))),
    "no such factors": lambda: IncompleteCholesky().of(SparseOperator.from_scipy(-scipy.sparse.eye_array(3), POSITIVE)),
    "net": lambda: om.linear.NetworkPreconditioner(None),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
