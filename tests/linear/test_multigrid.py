"""Stencils and geometric multigrid: against matrices, and that the number of steps does not grow."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import CG, GMRES, Multigrid, SparseLU, StencilOperator, multigrid

POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def varied(grid, seed=0):
    """-div(K grad u) with K that varies by a factor of a hundred."""
    rng = np.random.default_rng(seed)
    k = np.exp(rng.uniform(-2.3, 2.3, size=[n + 1 for n in grid]))
    offsets, coefficients, centre = [], [], 0
    for axis in range(len(grid)):
        for side in (-1, 1):
            offsets.append(tuple(side if i == axis else 0 for i in range(len(grid))))
            face = tuple(slice(1 if side > 0 else 0, None if side > 0 else -1) if i == axis else slice(0, -1) for i in range(len(grid)))
            coefficients.append(-k[face])
            centre = centre + k[face]
    return StencilOperator(np.stack([centre, *coefficients]), [(0,) * len(grid), *offsets], grid, POSITIVE)


def vector(grid, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=grid))


@pytest.mark.parametrize("grid", [(7,), (5, 4), (3, 4, 2)])
def test_a_stencil_multiplies_like_its_matrix_and_so_does_its_transpose(grid):
    rng, offsets = np.random.default_rng(0), [(0,) * len(grid), (1,) * len(grid), (-2,) + (0,) * (len(grid) - 1)]
    for coefficients in (rng.normal(size=(3, *grid)), rng.normal(size=3)):
        operator = StencilOperator(coefficients, offsets, grid)
        matrix, u = operator.as_matrix(), vector(grid)
        np.testing.assert_allclose(operator.mv(u).ravel(), matrix @ u.ravel(), atol=1e-12)
        np.testing.assert_allclose(operator.T.mv(u).ravel(), matrix.T @ u.ravel(), atol=1e-12)
        np.testing.assert_allclose(operator.T.as_matrix(), matrix.T, atol=1e-12)
        np.testing.assert_allclose(lx.diagonal(operator), jnp.diagonal(matrix), atol=1e-12)


def test_the_laplacian_is_of_second_order_and_its_spectrum_is_known():
    operator = StencilOperator.laplacian((9, 6), (0.1, 1 / 7))
    values = [[(2 - 2 * np.cos(np.pi * i / 10)) * 100 + (2 - 2 * np.cos(np.pi * j / 7)) * 49 for j in range(1, 7)] for i in range(1, 10)]
    np.testing.assert_allclose(np.linalg.eigvalsh(operator.as_matrix()), np.sort(np.ravel(values)), rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_restriction_is_the_transpose_of_interpolation(n):
    m = n // 2 if n > 2 else n
    up = jax.vmap(lambda u: multigrid.interpolated(u, (n,)))(jnp.eye(m))
    down = jax.vmap(multigrid.restricted)(jnp.eye(n))
    np.testing.assert_allclose(up, down.T)
    if n == 5:
        np.testing.assert_allclose(up, [[0.5, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 0.5]])


@pytest.mark.parametrize("grid", [(9,), (7, 6), (5, 4, 3), (2, 9)])
def test_the_coarser_operator_is_the_triple_product(grid):
    operator = varied(grid)
    coarse = multigrid._coarser(operator)
    units = jnp.eye(int(np.prod(coarse.grid))).reshape(-1, *coarse.grid)
    p = jax.vmap(lambda u: multigrid.interpolated(u, grid).ravel())(units).T
    np.testing.assert_allclose(coarse.as_matrix(), p.T @ operator.as_matrix() @ p, atol=1e-10)


@pytest.mark.parametrize("grid", [(40,), (17, 12), (7, 6, 5), (3, 3)])
def test_a_cycle_is_symmetric_and_positive_definite(grid):
    matrix = np.asarray(Multigrid(coarsest=4).of(varied(grid)).as_matrix())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * np.abs(matrix).max())
    assert np.linalg.eigvalsh(matrix).min() > 0


def steps(operator, preconditioner, rtol=1e-8):
    b = vector(operator.grid)
    answer = lx.linear_solve(operator, b, CG(rtol, preconditioner=preconditioner))
    assert jnp.linalg.norm(b - operator.mv(answer.value)) <= 1.0001 * rtol * jnp.linalg.norm(b)
    return int(answer.stats["num_steps"])


@pytest.mark.parametrize("grid", [(31,), (255,), (31, 31), (127, 127), (100, 90), (15, 15, 15), (31, 31, 31)])
def test_the_steps_do_not_grow_with_the_grid(grid):
    assert steps(StencilOperator.laplacian(grid), Multigrid()) <= 12


def test_it_serves_coefficients_that_vary_by_a_hundred():
    assert steps(varied((64, 64)), Multigrid()) < 0.25 * steps(varied((64, 64)), None)
    assert steps(varied((64, 64)), Multigrid(smoothing=4)) < steps(varied((64, 64)), Multigrid())


def test_derivatives_are_those_of_a_direct_solve():
    operator, b = varied((9, 8)), vector((9, 8))

    def ours(coefficients, b):
        changed = StencilOperator(coefficients, operator.offsets, operator.grid, POSITIVE)
        return jnp.sum(lx.linear_solve(changed, b, CG(1e-12, preconditioner=Multigrid())).value ** 2)

    def direct(coefficients, b):
        changed = StencilOperator(coefficients, operator.offsets, operator.grid).to_sparse()
        return jnp.sum(lx.linear_solve(changed, b.ravel(), SparseLU()).value ** 2)

    for one, other in zip(jax.grad(ours, (0, 1))(operator.coefficients, b), jax.grad(direct, (0, 1))(operator.coefficients, b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_other_solvers_take_stencils_too():
    wind = StencilOperator([2.0, -1.3, -0.7], [(0,), (-1,), (1,)], (30,))
    answer = lx.linear_solve(wind, vector((30,)), GMRES(1e-10)).value
    np.testing.assert_allclose(wind.mv(answer), vector((30,)), atol=1e-8)
    spd = StencilOperator.laplacian((8, 8))
    answer = lx.linear_solve(spd, vector((8, 8)), lx.CG(1e-10, 1e-10)).value
    np.testing.assert_allclose(spd.mv(answer), vector((8, 8)), atol=1e-8)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: StencilOperator([1.0, 2.0], [(0,), (1,)], (0,)), "grid"),
        (lambda: StencilOperator([1.0, 2.0], [(0, 0), (1,)], (3, 3)), "offsets"),
        (lambda: StencilOperator([1.0, 2.0], [(1,), (1,)], (3,)), "offsets"),
        (lambda: StencilOperator([1.0], [(0,), (1,)], (3,)), "coefficients"),
        (lambda: Multigrid(smoothing=0), "smoothing"),
        (lambda: Multigrid(lowest=1.0), "lowest"),
        (lambda: Multigrid().of(lx.MatrixLinearOperator(jnp.eye(3))), "StencilOperator"),
        (lambda: Multigrid().of(StencilOperator([1.0, 2.0], [(0,), (2,)], (9,), POSITIVE)), "reaches"),
        (lambda: Multigrid().of(StencilOperator([1.0, 2.0], [(0,), (1,)], (9,))), "tagged"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
