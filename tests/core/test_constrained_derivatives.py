"""Derivatives of constrained solutions: the active set decides, and is flagged by name where it is in doubt."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core import optimality


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def above(x, level):
    return level - x  # x >= level


def condition():
    """The nearest point to a target above a level: x = max(target, level), with multiplier max(level - target, 0)."""
    return optimality.kkt(
        lambda x, target, level: 0.5 * jnp.sum((x - target) ** 2), inequalities=lambda x, target, level: level - x
    )


TARGET, LEVEL = np.array([2.0, -1.0]), np.zeros(2)


def tangent_at(value, target=TARGET, level=LEVEL, **options):
    """The tangent of the solution x when the target moves by one and the level by ten."""
    point = om.PrimalDual(jnp.asarray(value[0]), None, jnp.asarray(value[1]))
    tangents = (jnp.ones(2), 10 * jnp.ones(2))
    out = om.root_jvp(condition(), point, (jnp.asarray(target), jnp.asarray(level)), tangents, **options)
    jax.effects_barrier()
    return out


def test_the_active_set_gives_the_derivative():
    tangent = tangent_at(([2.0, 0.0], [0.0, 1.0]))
    np.testing.assert_allclose(tangent.primal, [1.0, 10.0], rtol=1e-14)
    np.testing.assert_allclose(tangent.inequality, [0.0, 9.0], atol=1e-13)


@pytest.mark.parametrize("slack, multiplier", [(1e-9, 1.0), (1e-5, 1e-2), (-1e-9, 1.0)])
def test_what_an_interior_method_leaves_does_not_change_the_derivative(slack, multiplier, recwarn):
    """A slack that is not zero, or is passed by rounding, differentiates as the constraint that it stands for."""
    target = np.array([2.0, slack - multiplier])
    tangent = tangent_at(([2.0, slack], [slack, multiplier]), target)
    np.testing.assert_allclose(tangent.primal, [1.0, 10.0], rtol=1e-14)
    assert not recwarn.list


def test_a_weakly_active_constraint_is_named(recwarn):
    tangent_at(([2.0, 0.0], [0.0, 0.0]), np.array([2.0, 0.0]))
    (warning,) = recwarn.list
    assert "strict complementarity fails" in str(warning.message)
    assert "inequality[1]" in str(warning.message) and "inequality[0]" not in str(warning.message)


def test_a_weakly_active_constraint_is_named_at_an_interior_solution(recwarn):
    tangent_at(([2.0, 1e-5], [1e-10, 1e-5]), np.array([2.0, 0.0]))
    (warning,) = recwarn.list
    assert "inequality[1]" in str(warning.message)


def test_dependent_active_constraints_are_named():
    """x >= level said twice: the multipliers are not unique, and moving one level only has no derivative."""
    twice = optimality.kkt(
        lambda x, level: 0.5 * (x - 1) ** 2 + x**2, inequalities=lambda x, level: jnp.array([level[0] - x, 2 * (level[1] - x)])
    )
    value = om.PrimalDual(jnp.array(2.0), None, jnp.array([3.0, 1.0]))
    for call in (
        lambda: om.root_jvp(twice, value, (jnp.full(2, 2.0),), (jnp.array([1.0, 1.0]),)),
        lambda: om.root_vjp(twice, value, (jnp.full(2, 2.0),), om.PrimalDual(jnp.array(1.0), None, jnp.zeros(2))),
    ):
        with pytest.warns(RuntimeWarning, match=r"inequality\[0\], inequality\[1\].*linearly dependent"):
            call()
            jax.effects_barrier()
    tangent = om.root_jvp(twice, value, (jnp.full(2, 2.0),), (jnp.array([1.0, 1.0]),))
    np.testing.assert_allclose(tangent.primal, 1.0)  # which is determined all the same


def test_nearly_dependent_constraints_of_an_approximate_solution_are_named():
    nearly = optimality.kkt(
        lambda x, t: jnp.sum((x - t) ** 2), lambda x, t: jnp.array([x[0] ** 2 - 1, (1 + 1e-10) * x[0] - x[1] * 1e-10 - 1])
    )
    value = om.PrimalDual(jnp.array([1.0, 1.0]), jnp.array([0.5, 1.0]))
    with pytest.warns(RuntimeWarning, match=r"equality\[0\], equality\[1\]"):
        om.root_jvp(nearly, value, (jnp.array([2.0, 1.0]),), (jnp.ones(2),))
        jax.effects_barrier()


def test_a_solution_that_is_not_unique_is_named():
    valley = optimality.kkt(lambda x, t: (x[0] - t) ** 2, inequalities=lambda x, t: x - 5.0)
    value = om.PrimalDual(jnp.array([1.0, 0.3]), None, jnp.zeros(2))
    with pytest.warns(RuntimeWarning, match=r"primal\[1\]"):
        om.root_jvp(valley, value, (jnp.array(1.0),), (jnp.array(1.0),))
        jax.effects_barrier()


def test_fixed_variables_follow_their_bounds(recwarn):
    """Where lower = upper the unknown moves with them, whichever multiplier is positive, even if none is."""
    problem = lambda t: om.Constrained(lambda x: jnp.sum((x - 1) ** 2), bounds=(jnp.stack([t, -5 + 0 * t]), jnp.stack([t, t])))
    fixed = problem(jnp.array(1.0))
    for low, up in ((2.0, 0.0), (0.0, 2.0), (0.0, 0.0), (5.0, 3.0)):
        value = om.PrimalDual(jnp.array([1.0, 0.5]), None, None, jnp.array([low, 0.0]), jnp.array([up, 0.0]))
        F = lambda value, t: problem(t).optimality(value)
        jacobian = jax.jacfwd(F)(value, jnp.array(1.0))
        assert jacobian.lower.primal.shape == (2, 2)
        tangent = om.root_jvp(F, value, (jnp.array(1.0),), (jnp.array(1.0),), tolerance=None)
        np.testing.assert_allclose(tangent.primal[0], 1.0)
        assert not np.any(fixed.weakly_active(value).lower[0])


def test_a_batch_names_the_constraint_of_the_member_that_has_a_kink():
    targets = jnp.array([[2.0, -1.0], [2.0, 0.0]])

    def solver(guess, target, level):
        return om.PrimalDual(jnp.maximum(target, level), None, jnp.maximum(level - target, 0))

    solve = om.implicit(condition())(solver)
    guess = om.PrimalDual(jnp.zeros(2), None, jnp.zeros(2))
    with pytest.warns(RuntimeWarning, match=r"at inequality\[1\]\. "):
        gradients = jax.vmap(jax.grad(lambda t: jnp.sum(solve(guess, t, jnp.zeros(2)).primal)))(targets)
        jax.effects_barrier()
    np.testing.assert_allclose(gradients[0], [1.0, 0.0])


def test_a_batch_of_regular_systems_and_one_singular_is_solved_member_by_member():
    """The singular member gets its solution of least norm, and the others theirs."""
    solver = om.implicit(lambda x, m, b: m @ x - b)(lambda guess, m, b: jnp.linalg.lstsq(m, b)[0])
    matrices = jnp.stack([jnp.array([[2.0, 1.0], [1.0, 3.0]]), jnp.ones((2, 2)), jnp.eye(2)])
    sides = jnp.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0]])
    tangent = lambda m, b: jax.jvp(lambda b: solver(jnp.zeros(2), m, b), (b,), (jnp.ones(2),))[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = jax.vmap(tangent)(matrices, sides)
        jax.effects_barrier()
    np.testing.assert_allclose(together, [[0.4, 0.2], [0.5, 0.5], [1.0, 1.0]], atol=1e-12)
