"""A constrained problem as vectors, and how far a point is from its KKT conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth.flat_program import FlatProgram


@pytest.fixture
def program():
    """min sum(a) + b^2 in the disc |a|^2 <= 2, with a_0 = b and a bound below; solved by hand on the disc's rim."""
    return om.Constrained(
        lambda x: jnp.sum(x["a"]) + x["b"] ** 2,
        equalities=lambda x: {"tie": x["a"][0] - x["b"]},
        inequalities=lambda x: jnp.sum(x["a"] ** 2) - 2.0,
        bounds=(-5.0, None),
    )


def test_the_view_has_the_derivatives_of_the_problem(program):
    value = program.start({"a": jnp.array([0.5, -1.0]), "b": jnp.array(0.25)})
    view = FlatProgram(program, value)
    x, *_ = view.unpack(value)
    multipliers = jnp.array([2.0, 3.0])
    np.testing.assert_allclose(view.jacobian(x), [[1, 0, -1], [1, -2, 0]], atol=1e-6)
    np.testing.assert_allclose(view.lagrangian_hessian(x, multipliers), np.diag([6.0, 6.0, 2.0]), atol=1e-6)
    np.testing.assert_allclose(view.constraints(x), [0.25, -0.75], atol=1e-6)
    assert (view.size, view.equality_count, view.inequality_count) == (3, 1, 1)
    assert np.all(view.lower == -5) and np.all(np.isinf(view.upper))


def test_packing_and_unpacking_are_inverse(program):
    value = program.start({"a": jnp.array([0.5, -1.0]), "b": jnp.array(0.25)})
    view = FlatProgram(program, value)
    parts = (jnp.arange(3.0), jnp.array([7.0]), jnp.array([8.0]), jnp.array([4.0, 5.0, 6.0]), jnp.zeros(3))
    packed = view.pack(*parts)
    assert packed.upper is None and packed.equality["tie"] == 7 and packed.inequality == 8
    for part, again in zip(parts, view.unpack(packed), strict=True):
        np.testing.assert_array_equal(part, again)


def test_the_kkt_residual_is_zero_at_a_solution_only():
    disc = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.sum(x**2) - 2.0)
    solution = om.PrimalDual(-jnp.ones(2), inequality=jnp.array(0.5))
    assert disc.kkt_residual(solution).largest < 1e-6
    for wrong, part in (
        (om.PrimalDual(-jnp.ones(2)), "stationarity"),
        (om.PrimalDual(-2 * jnp.ones(2), inequality=jnp.array(0.25)), "violation"),
        (om.PrimalDual(-0.5 * jnp.ones(2), inequality=jnp.array(1.0)), "complementarity"),
        (om.PrimalDual(jnp.ones(2), inequality=jnp.array(-0.5)), "sign"),
    ):
        residual = disc.kkt_residual(wrong)
        assert getattr(residual, part) > 0.1, part
        assert residual.largest >= getattr(residual, part)


def test_a_problem_without_constraints_has_an_empty_view():
    bowl = om.Constrained(lambda x: jnp.sum(x**2))
    view = FlatProgram(bowl, bowl.start(jnp.ones(2)))
    assert view.jacobian(jnp.ones(2)).shape == (0, 2)
    assert jax.jit(bowl.kkt_residual)(jnp.zeros(2)).largest == 0
