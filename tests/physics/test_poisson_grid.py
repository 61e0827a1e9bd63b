"""The Laplacian with obstacles: its rows, its spectrum, its range, and that solvers and derivatives take it."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import CG, IncompleteLU, Multigrid, SparseLU
from optimand.physics import PoissonGrid, ball_mask, bars_mask, box_mask, dirichlet_laplacian


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def random_masks(shape, seed=0):
    draw = np.random.default_rng(seed)
    return draw.random(shape) < 0.25, draw.random(shape) < 0.15


def by_cells(solid, air, boundary):
    """The matrix, cell by cell."""
    shape = solid.shape
    matrix = np.zeros((solid.size, solid.size))
    for cell in np.ndindex(shape):
        if solid[cell] or air[cell]:
            continue
        row = np.ravel_multi_index(cell, shape)
        for axis in range(len(shape)):
            for side in (-1, 1):
                there = tuple(i + side * (a == axis) for a, i in enumerate(cell))
                inside = all(0 <= i < n for i, n in zip(there, shape, strict=True))
                if not inside:
                    matrix[row, row] += boundary == "air"
                elif not solid[there]:
                    matrix[row, row] += 1
                    if not air[there]:
                        matrix[row, np.ravel_multi_index(there, shape)] -= 1
    return matrix


@pytest.mark.parametrize("boundary", ["air", "solid"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_rows_are_those_of_the_cells_one_by_one(shape, boundary):
    solid, air = random_masks(shape)
    grid = PoissonGrid(shape, solid, air, boundary)
    wanted = by_cells(solid, air & ~solid, boundary)
    np.testing.assert_array_equal(jax.vmap(grid.mv, out_axes=1)(jnp.eye(solid.size)), wanted)
    np.testing.assert_array_equal(grid.as_matrix(), wanted)
    np.testing.assert_array_equal(lx.diagonal(grid), np.diagonal(wanted))
    others = np.asarray(~grid.fluid).ravel()
    np.testing.assert_array_equal(grid.to_sparse().as_matrix(), wanted + np.diag(others))
    v = jnp.asarray(np.random.default_rng(1).normal(size=shape))
    np.testing.assert_allclose(grid.to_stencil(0.0).mv(v).ravel(), wanted @ v.ravel(), atol=1e-14)


def test_rows_of_solid_and_air_cells_are_zero_and_those_of_fluid_sum_up_to_their_dirichlet_neighbours():
    shape = (6, 6)
    solid, air = np.zeros(shape, bool), np.zeros(shape, bool)
    solid[2, 2:4], air[4, 1] = True, True
    grid = PoissonGrid(shape, solid, air)
    matrix = np.asarray(grid.as_matrix())
    assert not matrix[~np.asarray(grid.fluid).ravel()].any() and not grid.mv(jnp.where(grid.fluid, 0.0, 1.0).ravel()).any()
    to_air = np.pad(air, 1, constant_values=True).astype(int)
    beside = to_air[:-2, 1:-1] + to_air[2:, 1:-1] + to_air[1:-1, :-2] + to_air[1:-1, 2:]
    np.testing.assert_array_equal(matrix.sum(1).reshape(shape), np.where(grid.fluid, beside, 0))


@pytest.mark.parametrize("shape", [(6, 9), (4, 5, 3)])
def test_the_spectrum_without_obstacles_is_that_of_products_of_sines_or_cosines(shape):
    for boundary, waves in (("air", lambda n: np.arange(1, n + 1) / (n + 1)), ("solid", lambda n: np.arange(n) / n)):
        lines = np.meshgrid(*[2 - 2 * np.cos(np.pi * waves(n)) for n in shape], indexing="ij")
        found = np.linalg.eigvalsh(PoissonGrid(shape, boundary=boundary).as_matrix())
        np.testing.assert_allclose(found, np.sort(sum(lines).ravel()), atol=1e-12)


def test_a_square_without_obstacles_is_the_laplacian_that_was_there_before():
    np.testing.assert_array_equal(PoissonGrid((7, 7)).as_matrix(), dirichlet_laplacian(7).as_matrix())


@pytest.mark.parametrize("solid", [bars_mask((14, 14)), ball_mask((6, 6, 6), 0.2)], ids=["bars", "ball"])
def test_solvers_by_products_factors_and_multigrid_agree(solid):
    grid = PoissonGrid(solid.shape, solid)
    b = jnp.where(grid.fluid, jax.random.normal(jax.random.key(0), grid.shape), 0).ravel()
    by_products = lx.linear_solve(grid, b, CG(1e-12)).value
    np.testing.assert_allclose(grid.mv(by_products), b, atol=1e-10)
    assert not by_products[~grid.fluid.ravel()].any()
    sparse, stencil = grid.to_sparse(), grid.to_stencil()
    by_factors = lx.linear_solve(sparse, b, SparseLU()).value
    incomplete = lx.linear_solve(sparse, b, CG(1e-12, preconditioner=IncompleteLU())).value
    by_cycles = lx.linear_solve(stencil, grid.field(b), CG(1e-12, preconditioner=Multigrid())).value.ravel()
    for other in (by_factors, incomplete, by_cycles):
        np.testing.assert_allclose(other, by_products, atol=1e-10)


def test_it_can_be_compiled_mapped_over_obstacles_and_differentiated():
    shape = (8, 8)
    b = jnp.ones(64)

    @jax.jit
    def size(radius, b):
        grid = PoissonGrid(shape, ball_mask(shape, radius))
        return jnp.sum(lx.linear_solve(grid, jnp.where(grid.fluid.ravel(), b, 0), CG(1e-12)).value ** 2)

    radii = jnp.array([0.15, 0.3])
    values, gradients = jax.vmap(jax.value_and_grad(size, 1), (0, None))(radii, b)
    for radius, value, gradient in zip(radii, values, gradients, strict=True):
        grid = PoissonGrid(shape, ball_mask(shape, radius))
        inverse = np.linalg.pinv(grid.as_matrix())
        np.testing.assert_allclose(value, np.sum((inverse @ b) ** 2), rtol=1e-9)
        np.testing.assert_allclose(gradient, 2 * inverse @ inverse @ b, atol=1e-9)


# Fluid that no air touches.


def two_chambers():
    """A box with walls, cut in two by a wall, the right half with one air cell."""
    solid, air = np.zeros((6, 7), bool), np.zeros((6, 7), bool)
    solid[:, 3], air[2, 5] = True, True
    return PoissonGrid((6, 7), solid, air, "solid")


def test_enclosed_parts_are_found_and_their_mean_is_taken_out():
    grid = two_chambers()
    assert grid.enclosed_parts == 1
    left = np.arange(7) < 3
    np.testing.assert_array_equal(grid.enclosed, np.broadcast_to(left, (6, 7)))
    b = jnp.where(grid.fluid, jax.random.normal(jax.random.key(1), (6, 7)), 0).ravel()
    fitting = jax.jit(PoissonGrid.without_mean)(grid, b)
    np.testing.assert_allclose(grid.field(fitting)[:, :3].mean(), 0, atol=1e-15)
    np.testing.assert_array_equal(grid.field(fitting)[:, 3:], grid.field(b)[:, 3:])
    grid.check(fitting)
    x = grid.without_mean(lx.linear_solve(grid, fitting, CG(1e-12)).value)
    np.testing.assert_allclose(grid.mv(x), fitting, atol=1e-10)
    np.testing.assert_allclose(x, np.linalg.pinv(grid.as_matrix()) @ fitting, atol=1e-9)


def test_a_pocket_between_obstacles_is_enclosed_under_air_as_well_and_corners_do_not_touch():
    solid = np.zeros((5, 5), bool)
    solid[[1, 3, 2, 2], [2, 2, 1, 3]] = True
    grid = PoissonGrid((5, 5), solid)
    assert grid.enclosed_parts == 1 and grid.enclosed[2, 2] == 1 and grid.degree[2, 2] == 0
    assert PoissonGrid((5, 5)).enclosed_parts == 0 and PoissonGrid((5, 5), boundary="solid").enclosed_parts == 1


def test_right_hand_sides_without_a_solution_are_named():
    grid = two_chambers()
    good = grid.without_mean(jnp.where(grid.fluid, 1.0 * jnp.arange(7), 0).ravel())
    grid.check(good)
    with pytest.raises(om.errors.ArgumentError, match=r"b.*mean 0\.5 over the 18 fluid cells around \(0, 0\)"):
        grid.check(good + 0.5 * (grid.enclosed == 1).ravel())
    with pytest.raises(om.errors.ArgumentError, match=r"b.*is 2 in cell \(0, 3\), a solid cell"):
        grid.check(good.at[3].set(2.0))
    with pytest.raises(om.errors.ArgumentError, match=r"b.*in cell \(2, 5\), an air cell"):
        grid.check(good.at[2 * 7 + 5].set(1.0))
    with pytest.raises(om.errors.ArgumentError, match="42 entries"):
        grid.check(jnp.ones(41))


def test_masks_have_the_area_that_they_should():
    assert abs(float(ball_mask((200, 200), 0.2).mean()) - np.pi * 0.04) < 1e-3
    assert abs(float(ball_mask((60, 60, 60), 0.3).mean()) - 4 / 3 * np.pi * 0.027) < 1e-3
    turned = box_mask((200, 200), (0.5, 0.2), angle=0.7)
    assert abs(float(turned.mean()) - 0.1) < 1e-3
    upright = box_mask((100, 100), (0.5, 0.2))
    np.testing.assert_array_equal(box_mask((100, 100), (0.5, 0.2), angle=jnp.pi / 2), upright.T)
    assert abs(float(bars_mask((200, 200)).mean()) - 2 * 0.5 * 0.08) < 2e-3
    np.testing.assert_array_equal(ball_mask((10, 10), 0.2, (0.25, 0.5)), np.roll(ball_mask((10, 10), 0.2, (0.55, 0.5)), -3, 0))


BAD = {
    "shape": lambda: PoissonGrid((4,)),
    "solid.*boolean": lambda: PoissonGrid((4, 4), np.zeros((4, 4))),
    "air.*shape of the grid": lambda: PoissonGrid((4, 4), air=np.zeros((4, 5), bool)),
    "boundary": lambda: PoissonGrid((4, 4), boundary="open"),
    "dtype": lambda: PoissonGrid((4, 4), dtype=int),
    "traced": lambda: jax.jit(lambda mask: PoissonGrid((4, 4), mask).without_mean(jnp.ones(16)))(np.zeros((4, 4), bool)),
    "sides": lambda: box_mask((4, 4), (1.0, 1.0, 1.0)),
    "centre": lambda: ball_mask((4, 4), 0.1, (0.5,)),
    "count": lambda: bars_mask((4, 4), 0),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
