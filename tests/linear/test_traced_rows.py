"""Products with a matrix whose pattern is found inside of compiled code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.linear.traced_rows import WIDTH, TracedRows


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def matrix_of(lengths: list[int], columns: int) -> np.ndarray:
    """Rows with so many entries each, at random places."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((len(lengths), columns))
    for row, length in zip(matrix, lengths, strict=True):
        row[rng.choice(columns, length, replace=False)] = rng.normal(size=length)
    return matrix


@pytest.mark.parametrize(
    "lengths",
    [
        [0, 0, 1],
        [1, 0, WIDTH, WIDTH + 1],
        [0, 3 * WIDTH, 0, 2 * WIDTH + 1, 1],
        [40] + [0] * 30,
        [0] * 30 + [40],
        [WIDTH] * 5,
    ],
)
@pytest.mark.parametrize("padding", [0, 1, 3 * WIDTH])
def test_a_product_is_that_of_the_matrix_whatever_the_lengths_of_its_rows(lengths, padding):
    matrix = matrix_of(lengths, 50)
    rows, columns = np.nonzero(matrix)
    last = np.full(padding, len(lengths) - 1)  # zeros at the end, as where fewer entries are found than asked for
    entries, rows, columns = (
        np.append(matrix[rows, columns], 0 * last),
        np.append(rows, last),
        np.append(columns, 0 * last),
    )
    vector = np.random.default_rng(1).normal(size=50)

    @jax.jit
    def product(entries, rows, columns, vector):
        return TracedRows.of(entries, rows, columns, len(lengths)).mv(vector)

    found = product(
        jnp.asarray(entries), jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), jnp.asarray(vector)
    )
    np.testing.assert_allclose(found, matrix @ vector, rtol=1e-13, atol=1e-13)


def test_products_are_those_of_each_matrix_of_a_batch():
    matrices = np.stack([matrix_of([3, 20, 0, 7], 30), matrix_of([20, 0, 3, 7], 30)])
    places = [np.nonzero(matrix) for matrix in matrices]
    entries = jnp.asarray([matrix[place] for matrix, place in zip(matrices, places, strict=True)])
    rows, columns = (jnp.asarray([place[k] for place in places], jnp.int32) for k in range(2))
    vector = jnp.arange(30.0)
    found = jax.vmap(lambda *matrix: TracedRows.of(*matrix, 4).mv(vector))(entries, rows, columns)
    np.testing.assert_allclose(found, matrices @ np.asarray(vector), rtol=1e-13)
