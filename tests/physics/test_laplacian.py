"""The five-point Laplacian, and the sequence of systems with its shifts."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

import optimand as om
from optimand.linear import CG, SOR, SSOR
from optimand.physics import ShiftedLaplacian, dirichlet_laplacian


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("side", [1, 2, 7])
def test_it_is_the_sum_of_two_second_differences(side):
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side)).toarray()
    operator = dirichlet_laplacian(side)
    np.testing.assert_array_equal(operator.as_matrix(), np.kron(line, np.eye(side)) + np.kron(np.eye(side), line))
    assert lx.is_positive_semidefinite(operator)


def test_systems_are_those_of_their_number_and_their_shift():
    sequence = ShiftedLaplacian(jax.random.key(0), 6)
    for step in (0, 5):
        operator, b, shift = sequence.system(step)
        np.testing.assert_allclose(operator.as_matrix(), dirichlet_laplacian(6).as_matrix() + shift * jnp.eye(36), rtol=1e-15)
        traced = jax.jit(lambda step: sequence.system(step))(jnp.int32(step))
        for ours, wanted in ((traced.b, b), (traced.context, shift), (traced.operator.data, operator.data)):
            np.testing.assert_allclose(ours, wanted, rtol=1e-13)
        assert jnp.linalg.norm(b) <= 6
    others = [sequence.system(step).context for step in range(4)]
    assert len(set(map(float, others))) == 4


@pytest.mark.parametrize("shape", [(0.5, 1.5), (2.0, 6.0)])
def test_shifts_are_drawn_from_the_distribution_that_was_asked_for(shape):
    sequence = ShiftedLaplacian(jax.random.key(1), 3, shape=shape)
    shifts = np.asarray(jax.jit(jax.vmap(lambda step: sequence.system(step).context))(jnp.arange(2000)))
    low, high = sequence.context_bounds
    assert low <= shifts.min() and shifts.max() <= high and (low, high) == (-0.15, -0.15 + 0.6)
    assert scipy.stats.kstest((shifts - low) / (high - low), scipy.stats.beta(*shape).cdf).pvalue > 0.01


def test_right_hand_sides_are_normal_within_the_ball():
    sequence = ShiftedLaplacian(jax.random.key(2), 3)
    b = np.asarray(jax.jit(jax.vmap(lambda step: sequence.system(step).b))(jnp.arange(2000)))
    squares = np.sum(b**2, axis=1)
    inside = scipy.stats.chi2(9)
    assert squares.max() <= 9
    assert scipy.stats.kstest(squares, lambda x: inside.cdf(x) / inside.cdf(9)).pvalue > 0.01
    assert np.abs(b.mean(axis=0)).max() < 0.1


def test_solvers_take_them_in_a_batch_over_parameters_and_steps():
    sequence = ShiftedLaplacian(jax.random.key(0), 6)

    def count(step, omega):
        operator, b, _ = sequence.system(step)
        answer = lx.linear_solve(operator, b, SOR(omega, 1e-8), throw=False)
        return answer.stats["num_steps"], answer.stats["residual"]

    grid = jax.vmap(jax.vmap(count, (None, 0)), (0, None))
    counts, residuals = jax.jit(grid)(jnp.arange(3), jnp.array([1.0, 1.4, 1.8]))
    assert counts.shape == (3, 3) and jnp.all(residuals <= 1e-8)
    operator, b, _ = sequence.system(2)
    assert counts[2, 1] == lx.linear_solve(operator, b, SOR(1.4)).stats["num_steps"]
    answer = lx.linear_solve(operator, b, CG(1e-8, preconditioner=SSOR(1.4)))
    np.testing.assert_allclose(operator.mv(answer.value), b, atol=1e-7)


BAD = {
    "side": lambda: dirichlet_laplacian(0),
    "lowest.*indefinite": lambda: ShiftedLaplacian(jax.random.key(0), lowest=-0.2),
    "width": lambda: ShiftedLaplacian(jax.random.key(0), width=0.0),
    "shape": lambda: ShiftedLaplacian(jax.random.key(0), shape=(0.5, -1.0)),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
