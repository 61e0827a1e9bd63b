"""Triangular sweeps: the triangles of a matrix in an order, solved with in both directions and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.linear import SparseOperator, sweeps
from optimand.linear.sweeps import Sweeps


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def poisson(side=6):
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    one = scipy.sparse.eye_array(side)
    return scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line)


def matrices():
    rng = np.random.default_rng(0)
    arrow = scipy.sparse.lil_array((50, 50))
    arrow[0, :], arrow[:, 0], arrow[49, :] = 1.0, 2.0, 3.0
    arrow.setdiag(9.0)
    twice = scipy.sparse.coo_array((np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), ([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2])), shape=(3, 3))
    return {
        "five points": poisson(),
        "random": scipy.sparse.random_array((30, 30), density=0.2, rng=rng) + 3 * scipy.sparse.eye_array(30),
        "rows much longer than the others": arrow.tocsr(),
        "entries at one place": twice,
        "tridiagonal": scipy.sparse.diags_array([-1.5, 4.0, 0.5], offsets=[-1, 0, 1], shape=(12, 12)),
        "diagonal": 2 * scipy.sparse.eye_array(5),
        "complex": scipy.sparse.random_array((9, 9), density=0.4, rng=rng) * (1 + 2j) + 3 * scipy.sparse.eye_array(9),
    }


def dense_triangles(operator, made, omega):
    """D + omega L and D + omega U, from which side of the diagonal each entry is said to lie on."""
    matrix, sides = operator.as_matrix(), jnp.zeros(operator.shape).at[operator.pattern.rows, operator.pattern.columns].set(made.side)
    diagonal = jnp.diag(jnp.diagonal(matrix))
    return [diagonal + omega * jnp.where(sides == side, matrix, 0) for side in (-1, 1)]


CASES = [(name, "natural") for name in matrices()] + [(name, "redblack") for name in ("five points", "random", "rows much longer than the others")]


@pytest.mark.parametrize("name, ordering", CASES)
def test_they_solve_with_both_triangles_and_their_transposes(name, ordering):
    operator = SparseOperator.from_scipy(matrices()[name])
    made, omega = Sweeps.of(operator.pattern, ordering), jnp.asarray(0.7)
    b = jnp.asarray(np.random.default_rng(1).normal(size=operator.shape[0]), operator.data.dtype)
    ours = (made.lower_triangle(operator, omega), made.upper_triangle(operator, omega))
    both_ways = jax.jit(lambda triangle, b: (triangle.mv(b), triangle.solve(b), triangle.transpose().solve(b), triangle.conj().solve(b)))
    for triangle, dense in zip(ours, dense_triangles(operator, made, omega), strict=True):
        product, solution, transposed, conjugate = both_ways(triangle, b)
        np.testing.assert_allclose(product, dense @ b, rtol=1e-12, atol=1e-12)
        for matrix, x in ((dense, solution), (dense.T, transposed), (dense.conj(), conjugate)):
            np.testing.assert_allclose(matrix @ x, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", matrices())
def test_the_natural_order_is_that_of_the_numbers_and_no_entry_couples_two_of_a_colour(name):
    operator = SparseOperator.from_scipy(matrices()[name])
    rows, columns = np.asarray(operator.pattern.rows), np.asarray(operator.pattern.columns)
    np.testing.assert_array_equal(Sweeps.of(operator.pattern, "natural").side, np.sign(columns - rows))
    colours = sweeps._colours(rows, columns, operator.shape[0])
    off = rows != columns
    assert np.all(colours[rows[off]] != colours[columns[off]])
    order = np.lexsort((np.arange(operator.shape[0]), colours))  # by colour, then by number
    rank = np.argsort(order)
    np.testing.assert_array_equal(Sweeps.of(operator.pattern, "redblack").side, np.sign(rank[columns] - rank[rows]))


def test_colours_are_those_of_the_greedy_rule():
    operator = SparseOperator.from_scipy(matrices()["random"])
    rows, columns = np.asarray(operator.pattern.rows), np.asarray(operator.pattern.columns)
    greedy = []
    for i in range(30):
        neighbours = {int(j) for j in np.concatenate([columns[rows == i], rows[columns == i]]) if j < i}
        greedy.append(next(colour for colour in range(30) if colour not in {greedy[j] for j in neighbours}))
    np.testing.assert_array_equal(sweeps._colours(rows, columns, 30), greedy)


def test_five_point_grids_have_two_colours_and_as_many_levels_as_two_sides():
    operator = SparseOperator.from_scipy(poisson(8))
    natural, redblack = (Sweeps.of(operator.pattern, ordering) for ordering in ("natural", "redblack"))
    assert natural.lower.unknown.shape == (15, 8) and redblack.lower.unknown.shape == (2, 32)
    i, j = np.divmod(np.arange(64), 8)
    rows, columns = np.asarray(operator.pattern.rows), np.asarray(operator.pattern.columns)
    parity = (i + j) % 2
    np.testing.assert_array_equal(redblack.side, parity[columns] - parity[rows])


@pytest.mark.parametrize("name", matrices())
def test_storage_is_in_proportion_to_the_entries(name):
    operator = SparseOperator.from_scipy(matrices()[name])
    for ordering in ("natural", "redblack"):
        made = Sweeps.of(operator.pattern, ordering)
        for sweep in (made.lower, made.upper, made.lower_transposed, made.upper_transposed):
            rows_and_entries = operator.shape[0] + operator.data.size
            assert sweep.unknown.size <= 2 * rows_and_entries and sweep.entry.size <= 4 * rows_and_entries


def test_derivatives_are_those_of_the_dense_solve_and_batches_are_solves():
    operator = SparseOperator.from_scipy(matrices()["random"])
    made, b = Sweeps.of(operator.pattern, "redblack"), jnp.sin(jnp.arange(30.0))
    weights = jnp.cos(jnp.arange(30.0))

    def sparse(data, omega, b):
        return weights @ made.lower_triangle(operator.with_data(data), omega).solve(b)

    def dense(data, omega, b):
        return weights @ jnp.linalg.solve(dense_triangles(operator.with_data(data), made, omega)[0], b)

    at = (operator.data, jnp.asarray(0.6), b)
    for ours, theirs in zip(jax.jit(jax.grad(sparse, (0, 1, 2)))(*at), jax.grad(dense, (0, 1, 2))(*at), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    tangents = (jnp.ones_like(operator.data), jnp.asarray(1.0), b)
    np.testing.assert_allclose(jax.jvp(sparse, at, tangents)[1], jax.jvp(dense, at, tangents)[1], rtol=1e-9)
    omegas, many = jnp.array([0.2, 0.5, 1.1]), jnp.stack([b, 2 * b, -b])
    ours = jax.jit(jax.vmap(sparse, (None, 0, 0)))(operator.data, omegas, many)
    np.testing.assert_allclose(ours, [dense(operator.data, *pair) for pair in zip(omegas, many, strict=True)], rtol=1e-10)
    gradients = jax.vmap(jax.grad(sparse, 1), (None, 0, 0))(operator.data, omegas, many)
    np.testing.assert_allclose(gradients, [jax.grad(dense, 1)(operator.data, *pair) for pair in zip(omegas, many, strict=True)], rtol=1e-8)


def test_single_precision_stays_single():
    operator = SparseOperator.from_scipy(poisson().astype(np.float32))
    triangle = Sweeps.of(operator.pattern).lower_triangle(operator, jnp.asarray(1.5, jnp.float32))
    x = triangle.solve(jnp.ones(36, jnp.float32))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(triangle.mv(x), 1, rtol=1e-5)


BAD = {
    "ordering": lambda: Sweeps.of(SparseOperator.from_scipy(poisson()).pattern, "rcm"),
    "pattern.*square": lambda: Sweeps.of(SparseOperator.from_entries(jnp.ones(1), [0], [0], (2, 3)).pattern),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
