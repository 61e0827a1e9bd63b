"""Quadratic programs as arrays: what they refuse, what they are as problems, and how they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, OptimandError
from optimand.smooth import ADMM, SQP, QuadraticInteriorPoint, QuadraticProgram

P, Q = np.array([[4.0, 1.0], [1.0, 2.0]]), np.array([1.0, 1.0])
ROW = np.ones((1, 2))

REFUSED = {
    "P not symmetric": ("P", "not symmetric", lambda: QuadraticProgram(np.array([[1.0, 2.0], [0.0, 1.0]]), Q)),
    "P indefinite": ("P", "least eigenvalue is -1", lambda: QuadraticProgram(np.diag([1.0, -1.0]), Q)),
    "P of another size": ("P", "(2, 2)", lambda: QuadraticProgram(np.eye(3), Q)),
    "q no vector": ("q", "vector", lambda: QuadraticProgram(P, ROW)),
    "A without b": ("b", "missing", lambda: QuadraticProgram(P, Q, A=ROW)),
    "h without G": ("G", "missing", lambda: QuadraticProgram(P, Q, h=np.ones(1))),
    "A of another width": ("A", "(rows, 2)", lambda: QuadraticProgram(P, Q, A=np.ones((1, 3)), b=np.ones(1))),
    "b of another length": ("b", "(1,)", lambda: QuadraticProgram(P, Q, A=ROW, b=np.ones(2))),
    "h of minus infinity": ("h", "no solution", lambda: QuadraticProgram(P, Q, G=ROW, h=np.array([-np.inf]))),
    "q NaN": ("q", "not finite", lambda: QuadraticProgram(P, np.array([np.nan, 0.0]))),
    "bounds that cross": ("bounds", "x[1]", lambda: QuadraticProgram(P, Q, bounds=(np.array([0.0, 2.0]), np.ones(2)))),
    "a lower bound of infinity": ("bounds", "no x", lambda: QuadraticProgram(P, Q, bounds=(np.inf, None))),
    "complex": ("P", "complex", lambda: QuadraticProgram(P * 1j, Q)),
    "sides that cross": ("lower", "row 0", lambda: QuadraticProgram.two_sided(P, Q, ROW, np.ones(1), np.zeros(1))),
    "a guess of another length": (
        "guess", "", lambda: om.solve(QuadraticProgram(P, Q, ROW, np.ones(1)), ADMM(), jnp.zeros(3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case, as_a_user):
    name, words, make = REFUSED[case]
    with pytest.raises(OptimandError) as caught:
        make()
    assert caught.value.argument == name and words in str(caught.value)


@pytest.mark.parametrize("method", [ADMM, QuadraticInteriorPoint])
def test_a_program_declared_not_convex_is_refused_by_convex_solvers(method):
    with pytest.raises(ArgumentError, match="Try SQP"):
        om.solve(QuadraticProgram(np.diag([1.0, -1.0]), Q, bounds=(-1.0, 1.0), convex=False), method(), jnp.zeros(2))


HYPERPARAMETERS = [
    (ADMM, "penalty", 0.0), (ADMM, "over_relaxation", 2.0), (ADMM, "tolerance", -1.0), (ADMM, "iterations", 0),
    (ADMM, "adapt", 1.0), (ADMM, "infeasibility_tolerance", 0.0), (ADMM, "polish", -1),
    (QuadraticInteriorPoint, "tolerance", -1.0), (QuadraticInteriorPoint, "patience", 0),
    (SQP, "hessian", "newton"), (SQP, "penalty", -1.0), (SQP, "decrease", 0.7), (SQP, "max_trials", 0),
]  # fmt: skip


@pytest.mark.parametrize("method, name, value", HYPERPARAMETERS)
def test_hyperparameters_out_of_range_are_refused(method, name, value):
    with pytest.raises(ArgumentError) as caught:
        method(**{name: value})
    assert caught.value.argument == name


def test_it_is_the_constrained_problem_of_its_formula():
    program = QuadraticProgram(P, Q, ROW, np.ones(1), np.eye(2), np.full(2, 0.7), bounds=(0.0, None))
    x = jnp.array([0.25, 0.5])
    assert isinstance(program, om.Constrained)
    np.testing.assert_allclose(program.value(x), 0.5 * x @ P @ x + Q @ x)
    np.testing.assert_allclose(program.equalities(x), [-0.25])
    np.testing.assert_allclose(program.inequalities(x), [-0.45, -0.2], atol=1e-6)
    residual = program.kkt_residual(om.PrimalDual(jnp.array([0.25, 0.75]), -jnp.array([2.75])))
    assert residual.violation == pytest.approx(0.05, abs=1e-6) and residual.stationarity < 1e-6


def test_the_unknown_may_be_a_pytree():
    program = QuadraticProgram(P, Q, ROW, np.ones(1))
    x = {"a": jnp.array(0.25), "b": jnp.array([0.75])}
    np.testing.assert_allclose(program.value(x), program.value(jnp.array([0.25, 0.75])))
    assert program.kkt_residual(om.PrimalDual(x, -jnp.array([2.75]))).largest < 1e-6


def test_two_sided_rows_become_equalities_and_inequalities():
    C = np.arange(8.0).reshape(4, 2)
    program = QuadraticProgram.two_sided(P, Q, C, [1.0, -np.inf, 0.0, -np.inf], [1.0, 2.0, 3.0, np.inf])
    np.testing.assert_array_equal(program.A, C[:1])
    np.testing.assert_array_equal(program.G, np.vstack([C[1], C[2], -C[2]]))
    np.testing.assert_array_equal(program.h, [2.0, 3.0, 0.0])


def test_a_quadratic_program_written_as_functions_is_its_own_model():
    written = om.Constrained(
        lambda x: 0.5 * x @ (jnp.asarray(P, x.dtype) @ x) + jnp.sum(x),
        equalities=lambda x: jnp.sum(x) - 1, inequalities=lambda x: x - 0.7, bounds=(0.0, None),
    )  # fmt: skip
    program = QuadraticProgram.model(written, jnp.array([3.0, -2.0]))
    for found, wanted in zip(program.args, (P, Q, ROW, [1.0], np.eye(2), [0.7, 0.7]), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_least_squares_and_projections_are_programs():
    matrix, target = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 2.0, 3.0])
    program = QuadraticProgram.least_squares(matrix, target, bounds=(0.0, None))
    np.testing.assert_allclose(jax.grad(program.value)(jnp.ones(2)), matrix.T @ (matrix @ np.ones(2) - target), atol=1e-5)
    np.testing.assert_allclose(QuadraticProgram.projection(target).q, -target)
