"""Sketch and project: Kaczmarz' method, its rate, and systems of every kind."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.smooth import SketchProject
from optimand.smooth.sketch_project import SKETCHES, Rows, draw, project


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def projected(matrix, rhs, key, most, sketch, equilibrate=False):
    """x after `most` sketches from zero."""
    rows = Rows.dense(matrix, equilibrate)
    start = jnp.zeros_like(rhs)
    return project(rows, rhs, start, key, tolerance=0.0, most=most, sketch=sketch, block=3)[0]


def test_with_random_rows_it_is_the_method_of_kaczmarz():
    matrix = np.array([[2.0, 1.0, 0.0], [1.0, -1.0, 3.0], [0.0, 4.0, 1.0]])
    rhs = matrix @ np.array([1.0, -2.0, 0.5])
    key = jax.random.key(3)
    rows = np.argmax(np.asarray(draw(jax.random.fold_in(key, 0), 100, 3, "kaczmarz", float)), axis=1)[:40]
    x = np.zeros(3)
    for i in rows:
        x = x - (matrix[i] @ x - rhs[i]) / (matrix[i] @ matrix[i]) * matrix[i]
    ours = projected(jnp.asarray(matrix), jnp.asarray(rhs), key, 40, "kaczmarz")
    np.testing.assert_allclose(ours, x, rtol=1e-10)
    assert len(set(rows)) == 3


@pytest.mark.parametrize("sketch", ["gaussian_vector", "kaczmarz"])
def test_the_error_contracts_as_the_theory_says(sketch):
    """For a matrix with orthogonal rows of one length: by 1 - sigma_min^2 / |K|_F^2 = 1 - 1/n on average."""
    n, steps = 5, 4
    orthogonal = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (n, n)))[0]
    truth = orthogonal.T @ jnp.ones(n)  # as far from each of the hyperplanes
    keys = jax.random.split(jax.random.key(1), 200)
    x = jax.jit(jax.vmap(lambda key: projected(orthogonal, orthogonal @ truth, key, steps, sketch)))(keys)
    contraction = jnp.mean(jnp.sum((x - truth) ** 2, axis=1)) / jnp.sum(truth**2)
    np.testing.assert_allclose(contraction, (1 - 1 / n) ** steps, rtol=0.1)


@pytest.mark.parametrize("sketch", SKETCHES)
def test_definite_and_indefinite_systems_are_solved(sketch):
    indefinite = jnp.array([[2.0, 0.3, 1.0], [0.3, 1.0, -0.5], [1.0, -0.5, 0.0]])  # as a KKT matrix
    truth = jnp.array([1.0, -1.0, 2.0])
    for matrix in (indefinite, indefinite @ indefinite + jnp.eye(3), indefinite * jnp.array([[1.0], [100.0], [1.0]])):
        for key in range(2):
            x = projected(matrix, matrix @ truth, jax.random.key(key), 5000, sketch, equilibrate=True)
            np.testing.assert_allclose(x, truth, atol=1e-6)


def test_products_alone_give_the_same_as_the_matrix():
    matrix = jnp.array([[2.0, 1.0, 0.0], [1.0, -1.0, 3.0], [0.0, 4.0, 1.0]])
    system = om.Linear(lx.MatrixLinearOperator(matrix), matrix @ jnp.ones(3))
    dense, free = (
        om.solve(system, SketchProject("gaussian_block", block=2, dense_below=below), key=jax.random.key(5))
        for below in (10, 0)
    )
    assert dense.result == free.result == om.Result.converged
    np.testing.assert_allclose(dense.value, free.value, rtol=1e-6)
    assert int(dense.counters.linear_iterations) == int(free.counters.linear_iterations) > 0


@pytest.mark.parametrize("argument, wrong", [("sketch", "hadamard"), ("block", 0), ("sketches", 0), ("tolerance", -1.0)])
def test_an_argument_out_of_its_range_is_named(argument, wrong):
    with pytest.raises(om.errors.ArgumentError, match=argument):
        SketchProject(**{argument: wrong})
