"""Routers: boxes tile the grid, and know which part is theirs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.informed import ExpertGrid, RandomExperts


@pytest.mark.parametrize("shape", [(6, 8), (4, 4, 6)])
def test_splitting_and_joining_is_the_identity_for_every_division(shape):
    values = np.arange(np.prod(shape) * 3.0).reshape(*shape, 3)
    divisors = [[n for n in range(1, size + 1) if size % n == 0] for size in shape]
    for parts in itertools.product(*divisors):
        router = ExpertGrid(parts)
        boxes = router.split(values, len(shape))
        assert boxes.shape == (router.count, np.prod(shape) // router.count, 3)
        np.testing.assert_array_equal(router.join(boxes, shape), values)


@pytest.mark.parametrize("shape, parts", [((4, 6), (2, 3)), ((4, 4, 6), (2, 1, 3))])
def test_a_box_holds_its_own_coordinates(shape, parts):
    boxes = ExpertGrid(parts).split(np.stack(np.indices(shape), -1), len(shape))
    sides = [size // n for size, n in zip(shape, parts, strict=True)]
    for k, box in enumerate(boxes):
        corner = [side * at for side, at in zip(sides, np.unravel_index(k, parts), strict=True)]
        expected = itertools.product(*(range(first, first + side) for first, side in zip(corner, sides, strict=True)))
        assert {tuple(point) for point in box.tolist()} == set(expected)


def test_the_field_is_chosen_piecewise_not_averaged():
    router = ExpertGrid((1, 2))
    basis = jnp.ones((3, 4, 2))
    field = router.combine(basis, jnp.array([[1.0, 2.0], [10.0, 20.0]]))
    np.testing.assert_array_equal(field[:, :2], 3.0)
    np.testing.assert_array_equal(field[:, 2:], 30.0)


def test_random_experts_deal_every_point_once_and_predict_with_the_mean():
    router = RandomExperts(4, seed=3)
    dealt = router.split(jnp.arange(24).reshape(4, 6), 2)
    assert sorted(np.ravel(dealt).tolist()) == list(range(24))
    assert not np.array_equal(np.ravel(dealt), np.arange(24))
    field = router.combine(jnp.ones((4, 6, 1)), jnp.array([[1.0], [2.0], [3.0], [6.0]]))
    np.testing.assert_allclose(field, 3.0)


def test_parts_that_do_not_divide_are_refused_with_the_nearest_that_do():
    with pytest.raises(om.core.errors.ArgumentError, match=r"axis 1 \(x\).*10 points.*2 and 5") as refused:
        ExpertGrid((1, 4)).check((6, 10))
    assert isinstance(refused.value, ValueError)
    with pytest.raises(om.core.errors.ArgumentError, match="divides 2 axes"):
        ExpertGrid((1, 4)).check((6, 10, 10))
    with pytest.raises(om.core.errors.ArgumentError, match=r"6 and 8|8 and 6"):
        RandomExperts(7).check((4, 6))


@pytest.mark.parametrize("parts", [(), (0, 1), (1.5, 2), (True, 1)])
def test_counts_that_are_not_positive_whole_numbers_are_refused(parts, as_a_user):
    with pytest.raises(om.core.errors.ArgumentError, match="experts"):
        ExpertGrid(parts)


def test_a_number_of_random_experts_that_is_not_positive_is_refused(as_a_user):
    with pytest.raises(om.core.errors.ArgumentError, match="number"):
        RandomExperts(0)
