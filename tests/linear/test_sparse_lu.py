"""Sparse direct solves: answers, derivatives, and how often the matrix is factorised."""

from unittest import mock

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import optimand as om
from optimand.linear import SparseLU, SparseOperator, factors


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def factorised():
    """How often SuperLU is called, from an empty table on."""
    with (
        mock.patch.object(factors, "_TABLE", factors._Table(2**20)),
        mock.patch.object(scipy.sparse.linalg, "splu", wraps=scipy.sparse.linalg.splu) as calls,
    ):
        yield calls


def wind(n=30):
    """Not symmetric."""
    return SparseOperator.from_scipy(scipy.sparse.diags_array([-1.5, 2.2, -0.5], offsets=[-1, 0, 1], shape=(n, n)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex128])
@pytest.mark.parametrize("settings", [{}, {"ordering": "MMD_AT_PLUS_A"}, {"ordering": "NATURAL"}, {"library": "klu"}], ids=str)
def test_solutions_of_the_matrix_its_transpose_and_its_conjugate(dtype, settings):
    if "library" in settings:
        pytest.importorskip("kvxopt")
    matrix = wind().to_scipy().astype(dtype)
    matrix = matrix + 0.3j * scipy.sparse.eye_array(30) if dtype == jnp.complex128 else matrix
    operator, solver = SparseOperator.from_scipy(matrix), SparseLU(**settings)
    b = jnp.asarray(np.random.default_rng(0).normal(size=30), dtype)
    state = solver.init(operator, {})
    turned = {
        "plain": (operator, state),
        "transposed": (operator.T, solver.transpose(state, {})[0]),
        "conjugate": (lx.conj(operator), solver.conj(state, {})[0]),
        "adjoint": (lx.conj(operator.T), solver.conj(solver.transpose(state, {})[0], {})[0]),
    }
    for wanted, its_state in turned.values():
        answer = lx.linear_solve(wanted, b, solver, state=its_state)
        bound = 1e-5 if dtype == jnp.float32 else 1e-13
        assert answer.result == lx.RESULTS.successful and answer.stats["residual"] < bound and answer.stats["fill"] > 1
        np.testing.assert_allclose(wanted.mv(answer.value), b, atol=bound)


def test_derivatives_are_those_of_the_dense_solve():
    operator, b = wind(), jnp.sin(jnp.arange(30.0))
    sparse = lambda data, b: jnp.sum(lx.linear_solve(operator.with_data(data), b, SparseLU()).value ** 2)
    dense = lambda data, b: jnp.sum(jnp.linalg.solve(operator.with_data(data).as_matrix(), b) ** 2)
    for ours, theirs in zip(jax.jit(jax.grad(sparse, (0, 1)))(operator.data, b), jax.grad(dense, (0, 1))(operator.data, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    tangent = jax.jvp(lambda data: sparse(data, b), (operator.data,), (operator.data,))[1]
    np.testing.assert_allclose(tangent, jax.jvp(lambda data: dense(data, b), (operator.data,), (operator.data,))[1], rtol=1e-9)


def test_one_factorisation_serves_all_right_hand_sides_and_the_transposed_system_of_the_gradient(factorised):
    operator, solver = wind(), SparseLU()
    loss = lambda b: jnp.sum(lx.linear_solve(operator, b, solver, state=solver.init(operator, {})).value ** 2)
    jax.grad(loss)(jnp.ones(30))
    jax.vmap(jax.grad(loss))(jnp.eye(30)[:4])
    assert factorised.call_count == 1
    lx.linear_solve(operator.with_data(2 * operator.data), jnp.ones(30), solver)
    assert factorised.call_count == 2


def test_factors_that_the_table_has_dropped_are_made_again(factorised):
    solver, operators = SparseLU(), [wind().with_data(scale * wind().data) for scale in (1.0, 2.0)]
    factors._TABLE._most_bytes = 1  # it keeps the newest
    states = [solver.init(operator, {}) for operator in operators]
    for scale, operator, state in zip((1.0, 2.0), operators, states, strict=True):
        answer = lx.linear_solve(operator, jnp.ones(30), solver, state=state).value
        np.testing.assert_allclose(scale * wind().mv(answer), 1.0)
    assert factorised.call_count == 4


def test_klu_says_what_is_missing_or_singular_and_serves_derivatives():
    with mock.patch.dict("sys.modules", {"kvxopt": None}), pytest.raises(om.errors.MissingExtra, match="klu"):
        SparseLU(library="klu")
    pytest.importorskip("kvxopt")
    with pytest.raises(om.errors.ArgumentError, match="ordering"):
        SparseLU("COLAMD", library="klu")
    singular = SparseOperator.from_entries(jnp.array([1.0, 0.0]), [0, 1], [0, 1], (2, 2))
    assert lx.linear_solve(singular, jnp.ones(2), SparseLU(library="klu"), throw=False).result == lx.RESULTS.singular
    loss = lambda b, solver: jnp.sum(lx.linear_solve(wind(), b, solver).value ** 2)
    ours, theirs = (jax.jit(jax.grad(loss), static_argnums=1)(jnp.ones(30), solver) for solver in (SparseLU(library="klu"), SparseLU()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("entries", [[1.0, 0.0], [1.0, jnp.nan]], ids=["singular", "nan"])
def test_a_matrix_without_an_inverse_says_so(entries):
    operator = SparseOperator.from_entries(jnp.array(entries), [0, 1], [0, 1], (2, 2))
    answer = lx.linear_solve(operator, jnp.ones(2), SparseLU(), throw=False)
    assert answer.result == lx.RESULTS.singular
    empty_row = SparseOperator.from_entries(jnp.ones(1), [0], [0], (2, 2))
    assert lx.linear_solve(empty_row, jnp.ones(2), SparseLU(), throw=False).result == lx.RESULTS.singular


def test_zero_is_the_solution_for_zero():
    assert not jnp.any(lx.linear_solve(wind(), jnp.zeros(30), SparseLU()).value)


def test_a_method_of_the_core_solves_and_differentiates_by_it():
    operator = wind()
    solve = lambda b: om.solve(om.Linear(operator, b), om.smooth.LinearSolve(SparseLU())).value
    np.testing.assert_allclose(operator.mv(solve(jnp.ones(30))), 1.0)
    gradient = jax.grad(lambda b: jnp.sum(solve(b)))(jnp.ones(30))
    np.testing.assert_allclose(operator.T.mv(gradient), 1.0, atol=1e-9)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: SparseLU("RCM"), "ordering"),
        (lambda: SparseLU(refinements=-1), "refinements"),
        (lambda: SparseLU(library="pardiso"), "library"),
        (lambda: SparseLU().init(lx.MatrixLinearOperator(jnp.eye(2)), {}), "operator"),
        (lambda: SparseLU().init(SparseOperator.from_entries(jnp.ones(1), [0], [0], (2, 3)), {}), "square"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
