"""Each optimality condition of the catalogue gives the derivative of the solution it describes."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import optimand as om
from optimand.core import optimality
from optimand.core.errors import ArgumentError

HESSIAN = np.array([[2.0, 0.4, 0.1], [0.4, 1.5, 0.3], [0.1, 0.3, 1.2]])
THETA = np.array([0.9, -0.6, 0.3])
ROWS = np.array([[1.0, 0.2, -0.3], [0.5, -1.0, 0.4], [0.3, 0.8, 1.1], [-0.7, 0.1, 0.9]])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def iterate(condition, steps=2000):
    """The solver that follows a fixed-point condition: x <- x + F(x)."""

    def solver(guess, *params):
        step = lambda _, x: jtu.tree_map(lambda x, f: x + f, x, condition(x, *params))
        return jax.lax.fori_loop(0, steps, step, guess)

    return solver


def quadratic(x, theta):
    return 0.5 * x @ (HESSIAN @ x) - theta @ x


def shrink(y, step_size, strength):
    return jnp.sign(y) * jnp.maximum(jnp.abs(y) - step_size * strength, 0)


def simplex(y):
    return jnp.maximum(y - threshold(y), 0)


def threshold(y):
    """Where the sum of max(y - t, 0) is one."""
    ordered = jnp.sort(y)[::-1]
    candidates = (jnp.cumsum(ordered) - 1) / jnp.arange(1, y.size + 1)
    return candidates[jnp.sum(ordered > candidates) - 1]


def second_order_cone(z):
    head, tail = z[0], z[1:]
    norm = jnp.sqrt(jnp.sum(tail**2))
    boundary = 0.5 * (head + norm) * jnp.concatenate([jnp.ones(1), tail / norm])
    return jnp.where(norm <= head, z, jnp.where(norm <= -head, 0.0, boundary))


def ridge_gradient_of(x, strength, targets):
    return 0.5 * jnp.sum((ROWS @ x - targets) ** 2) + 0.5 * strength * jnp.sum(x**2)


def solve_ridge(guess, strength, targets):
    return jnp.linalg.solve(ROWS.T @ ROWS + strength * jnp.eye(3), ROWS.T @ targets)


def solve_quadratic_program(guess, theta, level):
    """sum x = 1 and x_0 <= level, which is active."""
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    matrix = jnp.block([[HESSIAN, rows.T], [rows, np.zeros((2, 2))]])
    solution = jnp.linalg.solve(matrix, jnp.concatenate([theta, jnp.ones(1), level[None]]))
    return om.PrimalDual(solution[:3], solution[3:4], jnp.stack([solution[4], 0.0]))


def solve_linear_program(guess, cost, rows, limits):
    """Both of two constraints in the plane are active."""
    return om.PrimalDual(jnp.linalg.solve(rows, limits), None, -jnp.linalg.solve(rows.T, cost))


def solve_cone_program(guess, matrix, centre, radius, cost):
    """min cost'x subject to |matrix x - centre| <= radius."""
    inverse = jnp.linalg.inv(matrix)
    direction = inverse.T @ cost
    norm = jnp.sqrt(direction @ direction)
    offset = -radius * direction / norm
    x = inverse @ (centre + offset)
    s = jnp.concatenate([radius[None], offset])
    y = jnp.concatenate([norm[None], direction])
    return optimality.conic_point(x, y, s)


def cone_condition():
    residual = optimality.conic_residual(second_order_cone)

    def condition(z, matrix, centre, radius, cost):
        a = jnp.concatenate([jnp.zeros((1, matrix.shape[1])), -matrix])
        return residual(z, a, jnp.concatenate([radius[None], -centre]), cost)

    return condition


def blocks_energy(x, theta, strength):
    return quadratic(jnp.concatenate([x["a"], x["b"]]), theta)


PROXIMAL = optimality.proximal_gradient(
    lambda x, theta, strength: quadratic(x, theta),
    lambda y, step, theta, strength: shrink(y, step, strength),
    step_size=0.3,
)
PROJECTED = optimality.projected_gradient(
    lambda x, theta, upper: quadratic(x, theta), lambda y, theta, upper: jnp.clip(y, -0.1, upper), step_size=0.3
)
MIRROR = optimality.mirror_descent(quadratic, step_size=0.4)
EUCLIDEAN_MIRROR = optimality.mirror_descent(
    quadratic, projection=lambda y, theta: simplex(y), mirror=lambda x: x, step_size=0.3
)
BLOCKS = optimality.block_proximal(
    blocks_energy,
    {"a": lambda y, step, theta, strength: shrink(y, step, strength), "b": lambda y, step, *_: jnp.maximum(y, 0)},
    step_sizes={"a": 0.3, "b": 0.2},
)
POLYTOPE = optimality.simplex_weights(
    lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), ROWS, lambda p: simplex(p), step_size=0.2
)
EQUILIBRIUM = optimality.fixed_point(lambda x, theta: jnp.tanh(0.3 * HESSIAN @ x + theta))


@dataclasses.dataclass(frozen=True)
class Case:
    condition: Callable
    solver: Callable
    guess: object
    params: tuple
    smooth: bool = True


UNIFORM = np.full(3, 1 / 3)
CASES = {
    "stationary": Case(
        optimality.stationary(ridge_gradient_of), solve_ridge, np.zeros(3), (0.7, np.array([1.0, -0.5, 0.2, 0.4]))
    ),
    "kkt": Case(
        optimality.kkt(
            lambda x, theta, level: quadratic(x, theta),
            lambda x, theta, level: jnp.sum(x, keepdims=True) - 1,
            lambda x, theta, level: jnp.stack([x[0] - level, -5.0 - x[1]]),
        ),
        solve_quadratic_program,
        om.PrimalDual(np.zeros(3), np.zeros(1), np.zeros(2)),
        (THETA, np.array(0.1)),
    ),
    "kkt of a linear program": Case(
        optimality.kkt(
            lambda x, cost, rows, limits: cost @ x, inequalities=lambda x, cost, rows, limits: rows @ x - limits
        ),
        solve_linear_program,
        om.PrimalDual(np.zeros(2), None, np.zeros(2)),
        (np.array([-1.0, -1.2]), np.array([[1.0, 0.3], [0.2, 1.0]]), np.array([1.0, 0.8])),
    ),
    "proximal gradient": Case(PROXIMAL, iterate(PROXIMAL), np.zeros(3), (THETA, np.array(0.35)), smooth=False),
    "projected gradient": Case(PROJECTED, iterate(PROJECTED), np.zeros(3), (THETA, np.array(0.35)), smooth=False),
    "mirror descent": Case(MIRROR, iterate(MIRROR), UNIFORM, (THETA * 0.3,)),
    "mirror descent, Euclidean": Case(EUCLIDEAN_MIRROR, iterate(EUCLIDEAN_MIRROR), UNIFORM, (THETA,), smooth=False),
    "newton": Case(
        optimality.newton(lambda x, theta: x**2 - theta), lambda x, theta: jnp.sqrt(theta), np.ones(2), (THETA[::2],)
    ),
    "block proximal": Case(
        BLOCKS,
        iterate(BLOCKS),
        {"a": np.zeros(2), "b": np.zeros(1)},
        (np.array([0.9, -0.6, 0.7]), np.array(0.2)),
        smooth=False,
    ),
    "conic": Case(
        cone_condition(),
        solve_cone_program,
        (np.zeros(3), np.zeros(4), np.ones(())),
        (HESSIAN, np.array([0.2, -0.4, 0.5]), np.array(0.8), THETA),
    ),
    "simplex weights": Case(POLYTOPE, iterate(POLYTOPE, 5000), np.full(4, 0.25), (THETA * 0.3,), smooth=False),
    "fixed point": Case(EQUILIBRIUM, iterate(EQUILIBRIUM), np.zeros(3), (THETA,)),
}


def flat_solver(case):
    """theta -> x as vectors, and theta."""
    theta, unravel = ravel_pytree(jtu.tree_map(jnp.asarray, case.params))
    solver = om.implicit(case.condition, tolerance=1e-6)(case.solver)
    return lambda theta: ravel_pytree(solver(jtu.tree_map(jnp.asarray, case.guess), *unravel(theta)))[0], theta


@pytest.mark.parametrize("name", CASES)
def test_the_derivative_is_that_of_the_solution(name, recwarn):
    case = CASES[name]
    solve, theta = flat_solver(case)

    @jax.jit
    def everything(theta):
        h = 1e-6
        steps = h * jnp.eye(theta.size)
        numeric = jax.lax.map(lambda d: (solve(theta + d) - solve(theta - d)) / (2 * h), steps).T
        return numeric, jax.jacfwd(solve)(theta), jax.jacrev(solve)(theta)

    numeric, forward, reverse = everything(theta)
    jax.effects_barrier()
    assert not recwarn.list  # the solver solves, and the system is regular
    np.testing.assert_allclose(forward, numeric, atol=2e-8)
    v, w = np.sin(1.0 + np.arange(theta.size)), np.cos(2.0 + np.arange(len(forward)))
    assert abs((forward @ v) @ w - v @ (reverse.T @ w)) <= 1e-10
    np.testing.assert_allclose(forward, reverse, atol=1e-10)


def test_ridge_regression_has_a_closed_form():
    """J = -(X'X + strength I)^-1 x in the strength, (X'X + strength I)^-1 X' in the targets."""
    case = CASES["stationary"]
    strength, targets = case.params
    inverse = np.linalg.inv(ROWS.T @ ROWS + strength * np.eye(3))
    solve = om.implicit(case.condition)(case.solver)
    by_strength, by_targets = jax.jacrev(lambda *params: solve(case.guess, *params), argnums=(0, 1))(strength, targets)
    np.testing.assert_allclose(by_strength, -inverse @ (inverse @ ROWS.T @ targets), atol=1e-12)
    np.testing.assert_allclose(by_targets, inverse @ ROWS.T, atol=1e-12)


def test_an_equality_constrained_quadratic_program_has_a_closed_form():
    """The blocks of the inverse of its KKT matrix, multipliers included."""
    row = np.ones((1, 3))
    matrix = np.block([[HESSIAN, row.T], [row, np.zeros((1, 1))]])
    condition = optimality.kkt(lambda x, theta, level: quadratic(x, theta), lambda x, theta, level: row @ x - level)

    def solver(guess, theta, level):
        solution = jnp.linalg.solve(matrix, jnp.concatenate([theta, level]))
        return om.PrimalDual(solution[:3], solution[3:], None)

    guess = om.PrimalDual(np.zeros(3), np.zeros(1), None)
    solve = lambda *params: om.implicit(condition)(solver)(guess, *params)
    jacobian = jax.jacrev(lambda *params: jnp.concatenate([solve(*params).primal, solve(*params).equality]), argnums=(0, 1))
    np.testing.assert_allclose(np.hstack(jacobian(jnp.asarray(THETA), jnp.ones(1))), np.linalg.inv(matrix), atol=1e-12)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth and "conic" not in name])
def test_second_derivatives_of_an_outer_loss(name):
    solve, theta = flat_solver(CASES[name])
    loss = lambda theta: jnp.sum(jnp.sin(solve(theta)))
    v = jnp.cos(1.0 + jnp.arange(theta.size))

    @jax.jit
    def both(theta):
        gradient, h = jax.grad(loss), 1e-5
        numeric = (gradient(theta + h * v) - gradient(theta - h * v)) / (2 * h)
        return numeric, jax.grad(lambda theta: gradient(theta) @ v)(theta)

    numeric, exact = both(theta)
    np.testing.assert_allclose(exact, numeric, atol=1e-7, rtol=1e-6)


def test_a_batch_is_differentiated_item_by_item():
    solve, theta = flat_solver(CASES["proximal gradient"])
    thetas = theta + 0.05 * jnp.arange(3.0)[:, None]
    gradient = jax.grad(lambda theta: jnp.sum(jnp.sin(solve(theta))))
    together, alone = jax.jit(lambda ts: (jax.vmap(gradient)(ts), jax.lax.map(gradient, ts)))(thetas)
    np.testing.assert_allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("kind", ["proximal gradient", "projected gradient", "mirror descent"])
def test_the_step_size_of_the_condition_does_not_matter(kind):
    case = CASES[kind]
    x = jax.jit(case.solver)(case.guess, *case.params)
    tangents = jtu.tree_map(jnp.ones_like, case.params)

    def tangent(step_size):
        parts = (*case.condition.parts[:-1], step_size)
        condition = type(case.condition)(case.condition.call, parts)
        return om.root_jvp(condition, x, case.params, tangents)

    reference = jax.jit(tangent)(0.3)
    for step_size in (0.01, 1.0, 2.5):
        np.testing.assert_allclose(jax.jit(tangent)(step_size), reference, atol=1e-7)


def test_newtons_condition_has_the_derivative_of_newtons_step():
    residual = lambda x, theta: jnp.stack([x[0] ** 2 + x[1] - theta[0], x[1] ** 3 - x[0] + theta[1]])
    step = lambda x, theta: x - jnp.linalg.solve(jax.jacfwd(residual)(x, theta), residual(x, theta))
    theta = jnp.array([2.0, 0.3])
    x = jax.lax.fori_loop(0, 30, lambda _, x: step(x, theta), jnp.ones(2))
    tangent = (jnp.array([1.0, -0.5]),)
    plain = om.root_jvp(optimality.newton(residual), x, (theta,), tangent)
    literal = om.root_jvp(optimality.fixed_point(step), x, (theta,), tangent)
    np.testing.assert_allclose(plain, literal, atol=1e-12)


def test_the_lasso_has_a_closed_form_on_its_support():
    case = CASES["proximal gradient"]
    theta, strength = case.params
    x = np.asarray(jax.jit(case.solver)(case.guess, theta, strength))
    support = x != 0
    assert 0 < support.sum() < 3
    expected = np.zeros((3, 3))
    expected[np.ix_(support, support)] = np.linalg.inv(HESSIAN[np.ix_(support, support)])
    jacobian = jax.jacfwd(lambda theta: om.implicit(PROXIMAL)(case.solver)(case.guess, theta, strength))(theta)
    np.testing.assert_allclose(jacobian, expected, atol=1e-10)


def test_a_point_on_the_edge_of_the_simplex_has_finite_derivatives():
    """A weight that mirror descent has brought to exactly zero."""
    x = jnp.array([0.0, 0.5, 0.5])
    gradient = jnp.array([5.0, 0.0, 0.0])
    condition = optimality.mirror_descent(lambda x, slope: slope @ x + 0.5 * jnp.sum((x - 0.5) ** 2))
    tangent = om.root_jvp(condition, x, (gradient,), (jnp.array([0.0, 1.0, 0.0]),))
    np.testing.assert_allclose(tangent, [0.0, -0.5, 0.5], atol=1e-12)


def test_unknowns_may_hold_integers_and_nothing():
    fn = lambda x, theta: jnp.sum((x["w"] - theta) ** 2) * x["n"] + x["b"] ** 2
    solver = om.implicit(optimality.stationary(fn))(
        lambda guess, theta: {"w": theta, "b": jnp.zeros(()), "n": guess["n"], "none": None}
    )
    guess = {"w": jnp.zeros(2), "b": jnp.ones(()), "n": 3, "none": None}
    jacobian = jax.jacrev(lambda theta: solver(guess, theta)["w"])(jnp.arange(2.0))
    np.testing.assert_allclose(jacobian, np.eye(2), atol=1e-12)


def test_a_condition_can_replace_that_of_the_problem():
    """Projected gradient descent on a problem without constraints in its own condition."""
    condition = optimality.projected_gradient(
        lambda x, problem: problem.smooth.value(x), lambda y, problem: problem.prox(y, jnp.ones(())), step_size=0.1
    )
    problem = lambda theta: om.Composite(quadratic, lambda y, step: jnp.maximum(y, 0), theta)
    own, replaced = (
        om.root_vjp(
            lambda x, theta, condition=condition: condition(x, problem(theta)),
            jnp.maximum(jnp.linalg.solve(HESSIAN, THETA), 0),
            (THETA,),
            jnp.ones(3),
            tolerance=None,
        )
        for condition in (lambda x, problem: problem.optimality(x), condition)
    )
    np.testing.assert_allclose(own[0], replaced[0], atol=1e-10)


def test_the_error_of_the_jacobian_is_proportional_to_that_of_the_point():
    """Theorem 1 of Blondel et al. 2022."""
    fn = lambda x, theta: jnp.sum(jnp.cosh(x)) + 0.5 * x @ (HESSIAN @ x) - theta @ x
    gradient = jax.grad(fn)
    x, iterates = jax.lax.scan(lambda x, _: (x - 0.2 * gradient(x, THETA), x), jnp.zeros(3), length=150)
    curve = optimality.jacobian_precision(optimality.stationary(fn), iterates[::5], x, (THETA,))
    assert 0.9 <= float(curve.slope) <= 1.1
    assert np.all(curve.jacobian_error <= 1.001 * curve.constant * curve.iterate_error)
    known = optimality.jacobian_precision(
        optimality.stationary(fn), iterates[::50], x, (THETA,),
        jacobian=np.linalg.inv(HESSIAN + np.diag(np.cosh(x))),
    )  # fmt: skip
    np.testing.assert_allclose(known.jacobian_error, curve.jacobian_error[::10], atol=1e-12)


def test_a_constraint_on_the_verge_is_named():
    multipliers, constraints = {"g": jnp.array([1.0, 0.0, 1e-9])}, {"g": jnp.array([0.0, -1.0, 1e-9])}
    with pytest.warns(RuntimeWarning, match=r"1 constraint.*\['g'\]\[2\]"):
        degenerate = optimality.active_set_degeneracy(multipliers, constraints)
        jax.effects_barrier()
    np.testing.assert_array_equal(degenerate["g"], [False, False, True])


def test_no_verge_no_warning(recwarn):
    optimality.active_set_degeneracy(jnp.array([1.0, 0.0]), jnp.array([0.0, -1.0]))
    jax.effects_barrier()
    assert not recwarn.list


BAD = {
    "no function": ("fn", lambda: optimality.stationary(3)),
    "a catch-all": ("fn", lambda: optimality.stationary(lambda x, **kw: x)),
    "a keyword-only argument": ("prox", lambda: optimality.proximal_gradient(quadratic, lambda y, *, step: y)),
    "a step of zero": ("step_size", lambda: optimality.projected_gradient(quadratic, simplex, step_size=0.0)),
    "half a mirror map": ("mirror", lambda: optimality.mirror_descent(quadratic, projection=simplex)),
    "a point without multipliers": ("value", lambda: optimality.kkt(quadratic)(jnp.ones(3), THETA)),
    "too few blocks": (
        "proxes",
        lambda: optimality.block_proximal(blocks_energy, [shrink])({"a": THETA[:2], "b": THETA[2:]}, THETA, 1.0),
    ),
    "a negative tolerance": ("tolerance", lambda: optimality.active_set_degeneracy(THETA, THETA, tolerance=-1.0)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_by_name(case, as_a_user):
    argument, call = BAD[case]
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.argument == argument
