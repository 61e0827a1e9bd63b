"""Orders: permutations that put like beside like."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.linear import greedy_order, hilbert_order, projected_order, sorting, spectral_order

ORDERS = [greedy_order, projected_order, hilbert_order, spectral_order]


def scattered(count=60, numbers=3, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, numbers))


def length(points, order):
    return np.sum(np.linalg.norm(np.diff(points[order], axis=0), axis=1))


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_a_permutation_along_which_neighbours_are_closer(order):
    points = scattered()
    found = order(points)
    np.testing.assert_array_equal(np.sort(found), np.arange(60))
    assert length(points, found) < 0.75 * length(points, np.arange(60))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_parameters_have_an_order_too(order, count):
    np.testing.assert_array_equal(np.sort(order(scattered(count))), np.arange(count))


@pytest.mark.parametrize("order", ORDERS)
def test_equal_parameters_have_an_order_too(order):
    np.testing.assert_array_equal(np.sort(order(np.ones((12, 2)))), np.arange(12))


def test_greedy_goes_to_the_nearest_that_is_left():
    points = scattered(8, seed=1)
    order = greedy_order(points)
    assert order[0] == 0
    for place in range(7):
        left = [i for i in range(8) if i not in order[: place + 1]]
        distances = [np.linalg.norm(points[i] - points[order[place]]) for i in left]
        assert order[place + 1] == left[int(np.argmin(distances))]


def test_a_line_that_was_shuffled_is_put_in_order():
    line = np.random.default_rng(0).permutation(500)[:, None] / 500
    for order in (hilbert_order, spectral_order):
        steps = np.diff(line[order(line), 0])
        assert np.all(steps > 0) or np.all(steps < 0)


@pytest.mark.parametrize("dimensions, bits", [(2, 1), (2, 4), (3, 1), (3, 3)])
def test_cells_that_follow_each_other_on_hilberts_curve_share_a_face(dimensions, bits):
    cells = np.array(list(itertools.product(range(2**bits), repeat=dimensions)))
    positions = sorting.hilbert_positions(cells, bits)
    np.testing.assert_array_equal(np.sort(positions), np.arange(len(cells)))
    path = cells[np.argsort(positions)]
    np.testing.assert_array_equal(np.sum(np.abs(np.diff(path, axis=0)), axis=1), 1)


def test_fields_are_reduced_to_their_lowest_frequencies_and_vectors_to_principal_components():
    x = (np.arange(16) + 0.5) / 16
    weights = scattered(20, 3)
    waves = np.stack([np.ones((16, 16)), np.cos(np.pi * x)[:, None] * np.ones(16), np.cos(np.pi * x) * np.ones((16, 1))])
    fields = np.tensordot(weights, waves, 1)
    kept = sorting.reduced(fields, 3)
    assert kept.shape == (20, 3)
    distances = lambda points: np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(distances(kept), distances(fields.reshape(20, -1)), atol=1e-10)
    np.testing.assert_allclose(distances(sorting.reduced(fields.reshape(20, -1), 3)), distances(kept), atol=1e-10)


def test_a_parameter_of_several_arrays_is_compared_by_all_its_numbers():
    points = scattered(10)
    np.testing.assert_array_equal(greedy_order({"a": points[:, 0], "b": points[:, 1:]}), greedy_order(points))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: greedy_order(np.array([[0.0], [np.nan]])), "index 1"),
        (lambda: greedy_order({"a": np.ones(2), "b": np.ones(3)}), "parameters"),
        (lambda: jax.jit(greedy_order)(jnp.ones((3, 1))), "traced"),
        (lambda: projected_order(np.ones((3, 1)), most=0), "most"),
        (lambda: hilbert_order(np.ones((3, 1)), most=4), "most"),
        (lambda: hilbert_order(np.ones((3, 1)), bits=0), "bits"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
