"""Elliptic families: orders of accuracy against known solutions, and the properties their matrices must have."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import SparseLU
from optimand.physics import ConvectionDiffusion, Darcy, Helmholtz, Poisson, Thermal, cosine_field


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def solved(family, operator, b):
    return family.field(lx.linear_solve(operator, b, SparseLU()).value)


def orders(error):
    """The orders of convergence from 15 to 31 to 63 points."""
    errors = [error(side) for side in (15, 31, 63)]
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


def test_poisson_is_of_second_order():
    def error(side):
        family = Poisson(side)
        x, y = family.points()
        exact = jnp.sin(jnp.pi * x) * jnp.sin(2 * jnp.pi * y)
        return float(jnp.max(jnp.abs(solved(family, *family.system(5 * jnp.pi**2 * exact)) - exact)))

    np.testing.assert_allclose(orders(error), 2, atol=0.1)


@pytest.mark.parametrize("family, order", [(Darcy, 2), pytest.param(Helmholtz, 2, marks=pytest.mark.thorough), (ConvectionDiffusion, 1)])
def test_the_operators_are_consistent(family, order):
    """On u = sin(pi x) sin(2 pi y), against the differential operators, written out by automatic differentiation."""
    parameter = {Darcy: [0.4, -0.7, 0.3], Helmholtz: [0.5, -0.2, 0.8], ConvectionDiffusion: [20.0, 1.0]}[family]
    parameter = jnp.array(parameter)
    u = lambda p: jnp.sin(jnp.pi * p[0]) * jnp.sin(2 * jnp.pi * p[1])
    waves = lambda p: jnp.stack([jnp.sin(jnp.pi * p[0]) * jnp.sin(jnp.pi * p[1]), jnp.cos(jnp.pi * p[0]), jnp.cos(jnp.pi * p[1]) * jnp.sin(jnp.pi * p[0])])
    laplace = lambda p: jnp.trace(jax.hessian(u)(p))

    def exact(p):
        if family is Darcy:
            return -jnp.trace(jax.jacobian(lambda p: jnp.exp(parameter @ waves(p)) * jax.grad(u)(p))(p))
        if family is Helmholtz:
            return laplace(p) + (12 * (1 + 0.1 * parameter @ waves(p))) ** 2 * u(p)
        return -laplace(p) + parameter[0] * jax.grad(u)(p) @ jnp.array([jnp.cos(parameter[1]), jnp.sin(parameter[1])])

    def error(side):
        one = family(side)
        points = jnp.stack(one.points(), -1).reshape(-1, 2)
        operator, _ = one.system(parameter)
        return float(jnp.max(jnp.abs(operator.mv(jax.vmap(u)(points)) - jax.vmap(exact)(points))))

    np.testing.assert_allclose(orders(error), order, atol=0.15)


def test_thermal_reproduces_a_harmonic_function():
    family = Thermal(15)
    x, y = family.points()
    parameter = jnp.zeros((4, 4)).at[1, 1].set(1.0)  # sin(pi y) at x = 1
    exact = jnp.sinh(jnp.pi * x) / jnp.sinh(jnp.pi) * jnp.sin(jnp.pi * y)
    np.testing.assert_allclose(solved(family, *family.system(parameter)), exact, atol=4e-3)
    constant = solved(family, *family.system(jnp.zeros((4, 4)).at[:, 0].set(2.0)))
    np.testing.assert_allclose(constant, 2.0, rtol=1e-12)


@pytest.mark.parametrize(
    "family", [Darcy(6), Darcy(6, rough=True), Poisson(6), Helmholtz(6), Thermal(6), ConvectionDiffusion(6)], ids=lambda f: type(f).__name__
)
def test_the_tags_are_true_and_the_data_may_be_traced(family):
    parameters = family.sample(jax.random.key(0), 3)
    operator, b = family.system(parameters[0])
    matrix = np.asarray(operator.as_matrix())
    assert lx.is_symmetric(operator) == np.array_equal(matrix, matrix.T)
    if lx.is_positive_semidefinite(operator):
        assert np.linalg.eigvalsh(matrix).min() > 0
    traced = jax.jit(lambda p: family.system(p)[0].mv(b))(parameters[0])
    np.testing.assert_allclose(traced, operator.mv(b), rtol=1e-12, atol=1e-12 * np.abs(matrix).max())
    assert not np.array_equal(*[np.asarray(part) for part in parameters[:2]])
    again = family.sample(jax.random.key(0), 3)
    np.testing.assert_array_equal(again, parameters)


def test_upwind_matrices_are_m_matrices():
    for angle in (0.3, 2.0, 4.0):
        operator, _ = ConvectionDiffusion(6).system(jnp.array([150.0, angle]))
        matrix = np.asarray(operator.as_matrix())
        off = matrix - np.diag(np.diag(matrix))
        assert np.all(off <= 0) and np.all(np.diag(matrix) >= -off.sum(axis=1) - 1e-9) and np.linalg.inv(matrix).min() >= 0


def test_random_fields_have_the_deviation_and_the_spectrum_that_was_asked_for():
    fields = jax.vmap(lambda key: cosine_field(key, 33, deviation=0.8))(jax.random.split(jax.random.key(0), 2000))
    weights = np.ones(33)
    weights[[0, -1]] = 0.5
    weights /= weights.sum()
    square = np.einsum("nij,i,j->n", np.asarray(fields) ** 2, weights, weights)
    np.testing.assert_allclose(square.mean(), 0.64, rtol=0.05)
    amplitudes = [np.einsum("nij,i,j->n", np.asarray(fields), weights * 2 * np.cos(k * np.pi * np.linspace(0, 1, 33)), weights) for k in (1, 3)]
    ratio = np.var(amplitudes[0]) / np.var(amplitudes[1])
    np.testing.assert_allclose(ratio, (9 * np.pi**2 + 9) / (np.pi**2 + 9), rtol=0.2)


@pytest.mark.parametrize("family", [Darcy, Poisson, Helmholtz, Thermal, ConvectionDiffusion])
def test_a_bad_side_is_named(family):
    with pytest.raises(om.errors.ArgumentError, match="side"):
        family(1)
