"""Sparse operators: the matrix that they stand for, in both directions, for lineax, and under every transformation."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

import optimand as om
from optimand.linear import SparseOperator


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def matrices():
    rng = np.random.default_rng(0)
    arrow = scipy.sparse.lil_array((50, 50))
    arrow[0, :], arrow[:, 0] = 1.0, 1.0
    arrow.setdiag(60.0)
    twice = scipy.sparse.coo_array((np.array([1.0, 2.0, 3.0, 4.0]), ([0, 0, 1, 2], [1, 1, 0, 2])), shape=(3, 3))
    return {
        "random": scipy.sparse.random_array((30, 20), density=0.2, rng=rng),
        "one row much longer than the others": arrow.tocsr(),
        "entries at one place": twice,
        "no entries": scipy.sparse.csr_array((4, 3)),
        "complex": scipy.sparse.random_array((9, 9), density=0.4, rng=rng) * (1 + 2j),
    }


@pytest.mark.parametrize("name", matrices())
def test_products_in_both_directions_are_those_of_the_matrix(name):
    matrix = matrices()[name]
    operator, dense = SparseOperator.from_scipy(matrix), matrix.toarray()
    x, y = np.random.default_rng(1).normal(size=(2, 60))
    x, y = jnp.asarray(x[: dense.shape[1]], operator.data.dtype), jnp.asarray(y[: dense.shape[0]], operator.data.dtype)
    for form in (operator, lx.linearise(operator)):
        np.testing.assert_allclose(form.mv(x), dense @ x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(form.transpose().mv(y), dense.T @ y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(form.T.T.as_matrix(), dense)
        np.testing.assert_allclose(lx.conj(form).mv(x), dense.conj() @ x, rtol=1e-12, atol=1e-12)
    assert (abs(operator.to_scipy() - matrix)).max() == 0 if matrix.nnz else operator.to_scipy().nnz == 0


def test_a_long_row_does_not_make_all_rows_long():
    operator = SparseOperator.from_scipy(matrices()["one row much longer than the others"])
    assert operator.pattern.by_row.entry.size <= 2 * operator.data.size
    assert operator.pattern.by_row.tail.size > 0


def test_formats_of_jax_and_scipy_agree():
    matrix = matrices()["random"]
    for form in (matrix.tocsc(), matrix.tocsr(), matrix.todok(), scipy.sparse.csr_matrix(matrix)):
        np.testing.assert_array_equal(SparseOperator.from_scipy(form).as_matrix(), matrix.toarray())
    np.testing.assert_array_equal(SparseOperator.from_bcoo(BCOO.from_scipy_sparse(matrix)).as_matrix(), matrix.toarray())


def laplacian(n=40):
    return scipy.sparse.diags_array([-1.0, 2.1, -1.0], offsets=[-1, 0, 1], shape=(n, n))


SOLVERS = {
    "CG": (lx.CG(1e-12, 1e-12), lx.positive_semidefinite_tag),
    "GMRES": (lx.GMRES(1e-12, 1e-12, restart=40, stagnation_iters=40), ()),
    "BiCGStab": (lx.BiCGStab(1e-12, 1e-12), ()),
    "LU": (lx.LU(), ()),
    "Cholesky": (lx.Cholesky(), lx.positive_semidefinite_tag),
    "Tridiagonal": (lx.Tridiagonal(), lx.tridiagonal_tag),
    "NormalCG": (lx.Normal(lx.CG(1e-12, 1e-12)), ()),
    "Auto": (lx.AutoLinearSolver(well_posed=None), ()),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_of_lineax_takes_it_and_is_differentiated(name):
    solver, tags = SOLVERS[name]
    operator = SparseOperator.from_scipy(laplacian(), tags)
    b = jnp.sin(jnp.arange(40.0))

    def energy(scale, b):
        solution = lx.linear_solve(operator.with_data(scale * operator.data), b, solver).value
        return solution @ jnp.cos(jnp.arange(40.0))

    exact = lambda scale, b: jnp.linalg.solve(scale * operator.as_matrix(), b) @ jnp.cos(jnp.arange(40.0))
    np.testing.assert_allclose(jax.jit(energy)(1.5, b), exact(1.5, b), rtol=1e-8)
    for ours, theirs in zip(jax.grad(energy, (0, 1))(1.5, b), jax.grad(exact, (0, 1))(1.5, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_the_derivative_by_the_entries_is_that_of_the_matrix_and_batches_are_products():
    operator = SparseOperator.from_scipy(matrices()["random"])
    x = jnp.arange(20.0)
    gradient = jax.grad(lambda data: jnp.sum(operator.with_data(data).mv(x) ** 2))(operator.data)
    dense = jax.grad(lambda matrix: jnp.sum((matrix @ x) ** 2))(operator.as_matrix())
    np.testing.assert_allclose(gradient, dense[operator.pattern.rows, operator.pattern.columns], rtol=1e-12)
    many = jnp.stack([x, 2 * x, -x])
    np.testing.assert_allclose(jax.vmap(operator.mv)(many), many @ operator.as_matrix().T, rtol=1e-12)


def test_the_core_solves_it_as_a_linear_problem():
    operator = SparseOperator.from_scipy(laplacian())
    solution = om.solve(om.Linear(operator, jnp.ones(40)), om.smooth.LinearSolve())
    np.testing.assert_allclose(operator.mv(solution.value), 1.0, atol=1e-9)


def test_diagonals():
    operator = SparseOperator.from_scipy(laplacian(5) + scipy.sparse.diags_array([5.0], offsets=[3], shape=(5, 5)))
    np.testing.assert_allclose(lx.diagonal(operator), 2.1)
    for ours, offset in zip(lx.tridiagonal(operator), (0, -1, 1), strict=True):
        np.testing.assert_allclose(ours, np.diagonal(operator.as_matrix(), offset))


BAD = {
    "data": lambda: SparseOperator.from_entries(jnp.ones(3), [0, 1], [0, 1], (2, 2)),
    "rows": lambda: SparseOperator.from_entries(jnp.ones(2), [0, 2], [0, 1], (2, 2)),
    "columns.*whole": lambda: SparseOperator.from_entries(jnp.ones(2), [0, 1], [0.0, 1.0], (2, 2)),
    "columns.*as long": lambda: SparseOperator.from_entries(jnp.ones(2), [0, 1], [0], (2, 2)),
    "matrix": lambda: SparseOperator.from_scipy(np.eye(2)),
    "symmetric, but its shape": lambda: SparseOperator.from_entries(jnp.ones(1), [0], [0], (2, 3), lx.symmetric_tag),
    "entry .0, 1. is 1": lambda: SparseOperator.from_entries(jnp.ones(1), [0], [1], (2, 2), lx.positive_semidefinite_tag),
    "traced": lambda: jax.jit(lambda rows: SparseOperator.from_entries(jnp.ones(1), rows, [0], (2, 2)).data)(jnp.array([0])),
}


@pytest.mark.parametrize("match", BAD)
def test_what_is_no_matrix_is_refused_by_name(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
