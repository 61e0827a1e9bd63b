"""Preconditioners by factors on the host: how close to the inverse they are, and that they serve in both directions."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.linear import CG, GMRES, AdditiveSchwarz, IncompleteLU, SparseOperator


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grid(side=12, wind=0.0, tags=()):
    line = scipy.sparse.diags_array([-1.0 - wind, 2.0, -1.0 + wind], offsets=[-1, 0, 1], shape=(side, side))
    one = scipy.sparse.eye_array(side)
    return SparseOperator.from_scipy(scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line), tags)


def right_hand_side(operator):
    return jnp.asarray(np.random.default_rng(0).normal(size=operator.shape[0]))


KINDS = [IncompleteLU(drop=0.01), AdditiveSchwarz(), AdditiveSchwarz(4, 2, restricted=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_iterations_and_the_derivative_of_the_dense_solve(kind):
    operator = grid(wind=0.4)
    b = right_hand_side(operator)
    solve = lambda data, b: lx.linear_solve(operator.with_data(data), b, GMRES(1e-11, preconditioner=kind))
    plain = lx.linear_solve(operator, b, GMRES(1e-11))
    answer = solve(operator.data, b)
    assert answer.stats["num_steps"] < 0.6 * plain.stats["num_steps"]
    np.testing.assert_allclose(operator.mv(answer.value), b, atol=1e-9)
    size = lambda data, b: jnp.sum(solve(data, b).value ** 2)
    dense = lambda data, b: jnp.sum(jnp.linalg.solve(operator.with_data(data).as_matrix(), b) ** 2)
    for ours, theirs in zip(jax.jit(jax.grad(size, (0, 1)))(operator.data, b), jax.grad(dense, (0, 1))(operator.data, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_transpose_and_conjugate_are_those_of_the_matrix(kind, dtype):
    operator = grid(5, wind=0.4)
    operator = operator.with_data(operator.data.astype(dtype) * (1 + 0.2j if dtype == jnp.complex128 else 1))
    made = kind.of(operator)
    matrix = made.as_matrix()
    np.testing.assert_allclose(made.T.as_matrix(), matrix.T, atol=1e-12)
    np.testing.assert_allclose(lx.conj(made).as_matrix(), matrix.conj(), atol=1e-12)
    np.testing.assert_allclose(lx.conj(made.T).as_matrix(), matrix.conj().T, atol=1e-12)


def test_without_dropping_the_factors_are_those_of_the_matrix():
    operator = grid(6)
    np.testing.assert_allclose(IncompleteLU(0.0, 1e3).of(operator).as_matrix() @ operator.as_matrix(), np.eye(36), atol=1e-10)
    np.testing.assert_allclose(AdditiveSchwarz(1).of(operator).as_matrix() @ operator.as_matrix(), np.eye(36), atol=1e-10)


def test_schwarz_without_overlap_inverts_its_blocks_and_with_it_adds_up_what_they_share():
    operator = grid(4)
    matrix = np.asarray(operator.as_matrix())
    blocks = np.zeros((16, 16))
    for part in (slice(0, 8), slice(8, 16)):
        blocks[part, part] = np.linalg.inv(matrix[part, part])
    np.testing.assert_allclose(AdditiveSchwarz(2, 0).of(operator).as_matrix(), blocks, atol=1e-12)
    sums, restricted = np.zeros((16, 16)), np.zeros((16, 16))
    for part, own in ((slice(0, 12), slice(0, 8)), (slice(4, 16), slice(8, 16))):  # one more row of the grid on each side
        inverse = np.zeros((16, 16))
        inverse[part, part] = np.linalg.inv(matrix[part, part])
        sums += inverse
        restricted[own] += inverse[own]
    np.testing.assert_allclose(AdditiveSchwarz(2, 1).of(operator).as_matrix(), sums, atol=1e-12)
    np.testing.assert_allclose(AdditiveSchwarz(2, 1, restricted=True).of(operator).as_matrix(), restricted, atol=1e-12)


def test_a_symmetric_one_serves_conjugate_gradients():
    operator = grid(16, tags=lx.positive_semidefinite_tag)
    b = right_hand_side(operator)
    plain, helped = (lx.linear_solve(operator, b, CG(1e-10, preconditioner=kind)) for kind in (None, AdditiveSchwarz(4, 1)))
    assert helped.stats["num_steps"] < 0.7 * plain.stats["num_steps"]
    assert lx.is_positive_semidefinite(AdditiveSchwarz(4, 1).of(operator))
    assert not lx.is_symmetric(AdditiveSchwarz(4, 1, restricted=True).of(operator))


def test_traced_entries_without_factors_end_as_a_failure():
    operator = SparseOperator.from_entries(jnp.ones(2), [0, 1], [0, 1], (2, 2))
    solve = jax.jit(lambda data: lx.linear_solve(operator.with_data(data), jnp.ones(2), GMRES(1e-6, preconditioner=IncompleteLU()), throw=False))
    assert solve(jnp.array([1.0, jnp.nan])).result != lx.RESULTS.successful
    assert solve(jnp.array([1.0, 2.0])).result == lx.RESULTS.successful


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: IncompleteLU(drop=1.5), "drop"),
        (lambda: IncompleteLU(fill=0.5), "fill"),
        (lambda: AdditiveSchwarz(0), "blocks"),
        (lambda: AdditiveSchwarz(2, -1), "overlap"),
        (lambda: AdditiveSchwarz(50).of(grid(3)), "blocks"),
        (lambda: IncompleteLU().of(lx.MatrixLinearOperator(jnp.eye(2))), "operator"),
        (lambda: IncompleteLU().of(SparseOperator.from_entries(jnp.array([1.0, jnp.nan]), [0, 1], [0, 1], (2, 2))), "operator"),
        (lambda: AdditiveSchwarz(2).of(SparseOperator.from_entries(jnp.array([1.0, 0.0]), [0, 1], [0, 1], (2, 2))), "operator"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
