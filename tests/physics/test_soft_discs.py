"""Soft discs repel where they overlap, obey the symmetries of a periodic box, and have a safe gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core.errors import ArgumentError
from optimand.physics import SoftDiscs
from optimand.physics.soft_discs import bidisperse


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def some(count=12, **options):
    discs = bidisperse(count, 0.6, **options)
    positions = np.random.default_rng(0).uniform(0, float(discs.side), (count, 2))
    return discs, jnp.asarray(positions)


def test_two_discs_have_the_energy_of_their_overlap_and_opposite_forces():
    discs = SoftDiscs(jnp.array([1.0, 0.6]), 10.0, stiffness=3.0)
    x = jnp.array([[0.1, 0.0], [9.7, 0.0]])  # 0.4 apart, through the boundary
    np.testing.assert_allclose(discs.energy(x), 3.0 / 2 * (1 - 0.4 / 0.8) ** 2)
    np.testing.assert_allclose(discs.forces(x), [[3.0 * 0.5 / 0.8, 0], [-3.0 * 0.5 / 0.8, 0]], atol=1e-12)


def test_discs_apart_do_not_feel_each_other():
    discs = SoftDiscs(jnp.array([1.0, 0.6]), 10.0)
    x = jnp.array([[0.0, 0.0], [0.81, 0.0]])
    assert discs.energy(x) == 0
    np.testing.assert_array_equal(discs.forces(x), np.zeros((2, 2)))


def test_the_energy_knows_no_origin_no_order_and_no_image():
    discs, x = some()
    energy = jax.jit(SoftDiscs.energy)
    np.testing.assert_allclose(energy(discs, x + jnp.array([0.3, -0.7])), energy(discs, x), rtol=1e-10)
    images = jnp.asarray(np.random.default_rng(1).integers(-2, 3, x.shape)) * discs.side
    np.testing.assert_allclose(energy(discs, x + images), energy(discs, x), rtol=1e-10)
    swapped = x.at[jnp.array([0, 1])].set(x[jnp.array([1, 0])])
    np.testing.assert_allclose(energy(discs, swapped), energy(discs, x), rtol=1e-10)


def test_forces_are_minus_the_slope_and_sum_to_zero():
    discs, x = some()
    direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
    numeric = (discs.energy(x + 1e-6 * direction) - discs.energy(x - 1e-6 * direction)) / 2e-6
    forces = discs.forces(x)
    np.testing.assert_allclose(-jnp.sum(forces * direction), numeric, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(forces, axis=0), 0, atol=1e-12)


def test_the_anchored_gradient_is_regular_along_translations_and_symmetric():
    discs, x = some()
    jacobian = jax.jacfwd(discs.anchored_gradient)(x).reshape(24, 24)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)
    shift = np.tile([1.0, 0.0], 12)
    np.testing.assert_allclose(jacobian @ shift, shift, atol=1e-10)


def test_discs_on_top_of_each_other_have_a_finite_gradient():
    discs, x = some()
    gradient = discs.forces(jnp.zeros_like(x))
    assert np.all(np.isfinite(gradient))


def test_the_box_has_the_packing_fraction_asked_for_and_stays_when_diameters_move():
    discs, x = some(packing_fraction=0.9)
    np.testing.assert_allclose(discs.packing_fraction(), 0.9)
    assert int(jnp.sum(discs.contacts(x))) % 2 == 0
    assert jax.grad(lambda small: bidisperse(12, small).side)(0.6) == 0


def test_bad_arguments_are_refused_by_name(as_a_user):
    for argument, call in {
        "diameters": lambda: SoftDiscs(jnp.array([1.0, -1.0]), 2.0),
        "side": lambda: SoftDiscs(jnp.ones(2), 0.0),
        "exponent": lambda: SoftDiscs(jnp.ones(2), 2.0, exponent=0.5),
        "count": lambda: bidisperse(1, 0.6),
        "packing_fraction": lambda: bidisperse(4, 0.6, packing_fraction=0.0),
    }.items():
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.argument == argument
