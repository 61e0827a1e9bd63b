"""Dense factorisations under `vmap`: what they give, their derivatives, and that they end."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core import dense

N, SIZE = 7, 4


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def system():
    keys = jax.random.split(jax.random.key(3), 2)
    factor = jax.random.normal(keys[0], (N, SIZE, SIZE), jnp.float64)
    return factor @ factor.mT + jnp.eye(SIZE), jax.random.normal(keys[1], (N, SIZE), jnp.float64)


def by_factor(matrix, rhs):
    return dense.cholesky_solve(dense.cholesky(matrix), rhs)


@pytest.mark.parametrize("method", [by_factor, dense.solve])
def test_a_batch_gives_what_its_members_give(system, method):
    matrix, rhs = system
    expected = np.linalg.solve(matrix, np.asarray(rhs)[..., None])[..., 0]
    one = jnp.stack([method(*member) for member in zip(matrix, rhs, strict=True)])
    np.testing.assert_allclose(one, expected, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.vmap(method))(matrix, rhs), expected, rtol=1e-10)
    twice = jax.vmap(jax.vmap(method))(matrix.reshape(1, N, SIZE, SIZE), rhs.reshape(1, N, SIZE))
    np.testing.assert_allclose(twice[0], expected, rtol=1e-10)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 32, 33])
def test_a_batch_by_entries_or_rows_is_that_by_calls(size):
    keys = jax.random.split(jax.random.key(size), 2)
    wide = jax.random.normal(keys[0], (N, size, size + 1))
    matrix, rhs = wide @ wide.mT + 0.01 * jnp.eye(size), jax.random.normal(keys[1], (N, size, 2))
    factor = jax.vmap(dense.cholesky)(matrix)
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(dense.cholesky_solve)(factor, rhs), np.linalg.solve(matrix, rhs), rtol=1e-7)


@pytest.mark.parametrize("size", [3, 9, 33])
def test_a_factor_or_a_right_hand_side_may_be_shared(size):
    keys = jax.random.split(jax.random.key(size), 2)
    wide = jax.random.normal(keys[0], (N, size, size + 3))
    matrix, rhs = wide @ wide.mT + jnp.eye(size), jax.random.normal(keys[1], (N, size))
    factor = jnp.linalg.cholesky(matrix)
    found = jax.vmap(dense.cholesky_solve, (None, 0))(factor[0], rhs)
    np.testing.assert_allclose(found, np.linalg.solve(matrix[0], rhs.T).T, rtol=1e-8)
    found = jax.vmap(dense.cholesky_solve, (0, None))(factor, rhs[0])
    np.testing.assert_allclose(found, np.linalg.solve(matrix, np.tile(rhs[0], (N, 1))[..., None])[..., 0], rtol=1e-8)


def test_the_factor_of_an_indefinite_member_is_nan_and_the_others_are_not():
    matrix = jnp.stack([jnp.eye(3), jnp.diag(jnp.array([1.0, 2.0, -1.0])), jnp.diag(jnp.array([4.0, 0.0, 1.0]))])
    found = jax.vmap(dense.cholesky)(matrix)
    assert jnp.all(jnp.isnan(found[1])) and jnp.all(jnp.isnan(found[2])) and jnp.all(found[0] == jnp.eye(3))


def test_what_is_not_batched_is_shared(system):
    matrix, rhs = system
    found = jax.vmap(dense.solve, (None, 0))(matrix[0], rhs)
    np.testing.assert_allclose(found, np.linalg.solve(matrix[0], rhs.T).T, rtol=1e-10)


@pytest.mark.parametrize("method", [by_factor, dense.solve])
def test_derivatives_are_those_of_the_solution(system, method):
    matrix, rhs = system
    size = lambda call: lambda matrix, rhs: jnp.sum(call(matrix + jnp.diag(rhs**2), rhs) ** 2)
    ours, plain = size(method), size(jnp.linalg.solve)
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        take = lambda fn, derivative=derivative: jax.vmap(derivative(fn, argnums=1))(matrix, rhs)
        np.testing.assert_allclose(take(ours), take(plain), rtol=1e-8, atol=1e-12)
    whole = lambda fn: jax.grad(lambda rhs: jnp.sum(jax.vmap(fn)(matrix, rhs)))(rhs)
    np.testing.assert_allclose(whole(ours), whole(plain), rtol=1e-8, atol=1e-12)


def test_eigenvectors_of_a_batch(system):
    values, vectors = jax.vmap(dense.eigh)(system[0])
    np.testing.assert_allclose((vectors * values[:, None]) @ vectors.mT, system[0], rtol=1e-10, atol=1e-12)


def test_a_branch_of_a_batch_is_taken_where_it_is_asked_for():
    seen = []

    @dense.in_turn
    def root(x):
        def note(x):
            jax.debug.callback(lambda x: seen.append(float(x)), x)
            return jnp.zeros_like(x)

        return jax.lax.cond(x > 0, jnp.sqrt, note, x)

    found = jax.vmap(root)(jnp.array([4.0, -1.0, 9.0]))
    jax.effects_barrier()
    assert found.tolist() == [2.0, 0.0, 3.0]
    assert seen == [-1.0]


ENDLESS = """
import jax, jax.numpy as jnp
from optimand.core import dense

def three(matrix):
    return [jnp.sum(dense.cholesky(matrix + i)) for i in range(3)]

matrix = jnp.tile(jnp.eye(20), (1000, 1, 1))
for _ in range(20):
    jax.block_until_ready(jax.jit(jax.vmap(three))(matrix))
print("done")
"""


def test_a_large_batch_of_independent_factorisations_ends():
    """jaxlib 0.10 waits for ever for three independent calls of LAPACK with a thousand matrices on two cores."""
    ended = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "done"
