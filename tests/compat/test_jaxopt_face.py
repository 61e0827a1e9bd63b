"""The constructors of jaxopt solve what they solve there, whether or not jaxopt is installed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimand.compat import jaxopt as face
from optimand.core.errors import ArgumentError
from optimand.smooth import projections, proximal

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`

RNG = np.random.default_rng(0)
A = RNG.normal(size=(12, 4))
B = A @ np.array([1.0, -0.5, 0.0, 0.3]) + 0.1 * RNG.normal(size=12)
LEAST = np.linalg.lstsq(A, B)[0]
Q = np.array([[2.0, 0.4, 0.1], [0.4, 1.5, 0.3], [0.1, 0.3, 1.2]])
C = np.array([-0.9, 0.6, -0.3])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def squares(x, a, b):
    return 0.5 * jnp.sum((a @ x - b) ** 2)


MINIMISERS = {
    "GradientDescent": lambda: face.GradientDescent(squares, tol=1e-8, maxiter=3000),
    "BFGS": lambda: face.BFGS(squares, tol=1e-8, linesearch="zoom"),
    "NonlinearCG": lambda: face.NonlinearCG(squares, tol=1e-8, maxiter=500),
    "value_and_grad": lambda: face.LBFGS(jax.value_and_grad(squares), value_and_grad=True, tol=1e-8, history_size=5),
    "OptaxSolver": lambda: face.OptaxSolver(squares, optax.sgd(0.03), tol=1e-8, maxiter=5000),
    "ScipyMinimize": lambda: face.ScipyMinimize(method="BFGS", fun=squares, tol=1e-10),
}
DIFFERENTIATED = {
    "LBFGS": lambda: face.LBFGS(fun=squares, tol=1e-8),
    "ScipyMinimize": lambda: face.ScipyMinimize(method="BFGS", fun=squares, tol=1e-10),
}


@pytest.mark.parametrize("name", MINIMISERS)
def test_minimisers_solve_least_squares(name):
    solver = MINIMISERS[name]()
    params, state = solver.run(jnp.zeros(4), jnp.asarray(A), jnp.asarray(B))
    np.testing.assert_allclose(params, LEAST, atol=1e-6)
    assert state.iter_num > 0
    assert solver.l2_optimality_error(params, jnp.asarray(A), jnp.asarray(B)) < 1e-4


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_runs_are_differentiable(name):
    solver = DIFFERENTIATED[name]()
    jacobian = jax.jacobian(lambda b: solver.run(jnp.zeros(4), jnp.asarray(A), b).params)(jnp.asarray(B))
    np.testing.assert_allclose(jacobian, np.linalg.pinv(A), atol=1e-5)


def test_keyword_arguments_and_aux_arrive():
    solver = face.LBFGS(lambda x, target: (jnp.sum((x - target) ** 2), 3 * x), has_aux=True, tol=1e-8)
    params, state = solver.run(jnp.zeros(2), target=jnp.ones(2))
    np.testing.assert_allclose(params, 1.0, atol=1e-6)
    np.testing.assert_allclose(state.aux, 3.0, atol=1e-6)


def test_steps_by_hand_are_the_steps_of_run():
    solver = face.LBFGS(squares, tol=0.0, maxiter=5)
    data = jnp.asarray(A), jnp.asarray(B)
    params, state = jnp.zeros(4), solver.init_state(jnp.zeros(4), *data)
    update = jax.jit(solver.update)
    for _ in range(5):
        params, state = update(params, state, *data)
    np.testing.assert_allclose(params, solver.run(jnp.zeros(4), *data).params, atol=1e-12)
    assert state.iter_num == 5


def lasso_prox(x, hyperparams, scaling=1.0):
    """In the order of jaxopt."""
    return proximal.lasso(x, scaling, hyperparams)


def test_proximal_solvers_agree_on_the_lasso_and_projected_ones_on_the_simplex():
    data = jnp.asarray(A), jnp.asarray(B)
    first = face.ProximalGradient(squares, prox=lasso_prox, tol=1e-9, maxiter=2000).run(jnp.zeros(4), 2.0, *data).params
    second = face.BlockCoordinateDescent(squares, lasso_prox, tol=1e-9, maxiter=2000).run(jnp.zeros(4), 2.0, *data).params
    np.testing.assert_allclose(first, second, atol=1e-6)
    gradient = A.T @ (A @ np.asarray(first) - B)
    assert np.all(np.abs(gradient) <= 2.0 + 1e-6) and np.allclose(gradient[first != 0], -2 * np.sign(first[first != 0]), atol=1e-6)
    projected = face.ProjectedGradient(squares, projections.simplex, tol=1e-9, maxiter=1000)
    mirror = face.MirrorDescent(
        squares, face.MirrorDescent.make_projection_grad(lambda y, _: jax.nn.softmax(y), jnp.log), stepsize=0.05,
        tol=1e-8, maxiter=20_000,
    )  # fmt: skip
    start = jnp.full((4,), 0.25)
    on_simplex = projected.run(start, 1.0, *data).params
    np.testing.assert_allclose(jnp.sum(on_simplex), 1.0)
    np.testing.assert_allclose(projected.run(start, None, *data).params, on_simplex, atol=1e-8)
    np.testing.assert_allclose(mirror.run(start, None, *data).params, on_simplex, atol=1e-4)


def test_bounded_solvers_agree():
    bounds, data = (jnp.zeros(4), jnp.full((4,), 0.5)), (jnp.asarray(A), jnp.asarray(B))
    first = face.LBFGSB(squares, tol=1e-8, maxiter=200).run(jnp.full((4,), 0.2), bounds, *data).params
    second = face.ScipyBoundedMinimize(fun=squares, tol=1e-12).run(jnp.full((4,), 0.2), bounds, *data).params
    np.testing.assert_allclose(first, second, atol=1e-6)
    third = face.BoxCDQP(tol=1e-8).run(jnp.full((4,), 0.2), params_obj=(A.T @ A, -A.T @ B), params_ineq=bounds).params
    np.testing.assert_allclose(first, third, atol=1e-5)


def test_least_squares_solvers_take_residuals():
    residual = lambda x, a, b: a @ x - b
    for solver in (face.GaussNewton(residual), face.LevenbergMarquardt(residual_fun=residual, gtol=1e-9, maxiter=100)):
        np.testing.assert_allclose(solver.run(jnp.zeros(4), jnp.asarray(A), jnp.asarray(B)).params, LEAST, atol=1e-6)


def test_roots_and_fixed_points():
    halve = lambda x, theta: 0.5 * (x + theta / x)
    np.testing.assert_allclose(face.FixedPointIteration(halve).run(jnp.asarray(1.0), 2.0).params, np.sqrt(2), rtol=1e-4)
    for solver in (face.AndersonAcceleration(halve, history_size=3, tol=1e-9),):
        value, gradient = jax.value_and_grad(lambda theta, solver=solver: solver.run(jnp.asarray(1.0), theta).params)(2.0)
        np.testing.assert_allclose((value, gradient), (np.sqrt(2), 0.5 / np.sqrt(2)), rtol=1e-4)
    root = lambda x, theta: x**3 - theta
    broyden = jax.value_and_grad(lambda theta: face.Broyden(root, tol=1e-10).run(jnp.asarray(1.0), theta).params)(2.0)
    bisection = jax.value_and_grad(lambda theta: face.Bisection(root, 0.0, 3.0, maxiter=60, tol=1e-9).run(None, theta).params)
    np.testing.assert_allclose(broyden, (2 ** (1 / 3), 2 ** (-2 / 3) / 3), rtol=1e-6)
    np.testing.assert_allclose(bisection(2.0), (2 ** (1 / 3), 2 ** (-2 / 3) / 3), rtol=1e-6)


EQUALITY, LEVEL = np.ones((1, 3)), np.ones(1)
FACES, H = np.vstack([np.eye(3)[0], -np.eye(3)[1], [0.5, 0.0, 1.0]]), np.array([0.1, 5.0, 4.0])


def test_quadratic_programs_satisfy_their_kkt_conditions():
    program = face.OSQP(tol=1e-8)
    sol, _ = program.run(None, params_obj=(Q, C), params_eq=(EQUALITY, LEVEL), params_ineq=(FACES, H))
    stationarity = Q @ sol.primal + C + EQUALITY.T @ sol.dual_eq + FACES.T @ sol.dual_ineq
    np.testing.assert_allclose(stationarity, 0, atol=1e-5)
    np.testing.assert_allclose(sol.primal.sum(), 1.0, atol=1e-6)
    assert np.all(FACES @ sol.primal <= H + 1e-6) and np.all(sol.dual_ineq >= -1e-8)
    by_matvec = face.OSQP(matvec_Q=lambda q, v: q @ v, tol=1e-8).run(
        None, params_obj=(Q, C), params_eq=(EQUALITY, LEVEL), params_ineq=(FACES, H)
    )
    np.testing.assert_allclose(by_matvec.params.primal, sol.primal, atol=1e-6)
    box = face.BoxOSQP(tol=1e-8).run(
        None, params_obj=(Q, C), params_eq=np.vstack([EQUALITY, FACES]), params_ineq=(np.r_[1.0, [-np.inf] * 3], np.r_[1.0, H])
    )
    np.testing.assert_allclose(box.params.primal[0], sol.primal, atol=1e-5)
    assert np.all(np.asarray(box.params.dual_ineq) >= -1e-8)


def test_a_quadratic_program_with_equalities_is_a_linear_system_and_differentiable():
    solver = face.EqualityConstrainedQP()
    find = lambda c: solver.run(None, params_obj=(jnp.asarray(Q), c), params_eq=(EQUALITY, LEVEL)).params
    sol = find(jnp.asarray(C))
    np.testing.assert_allclose(Q @ sol.primal + C + EQUALITY.T @ sol.dual_eq, 0, atol=1e-10)
    np.testing.assert_allclose(sol.primal.sum(), 1.0)
    kkt = np.block([[Q, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
    jacobian = jax.jacobian(lambda c: find(c).primal)(jnp.asarray(C))
    np.testing.assert_allclose(jacobian, -np.linalg.inv(kkt)[:3, :3], atol=1e-8)


def test_stochastic_solvers_take_the_batch_of_each_update():
    def batches():
        rng = np.random.default_rng(1)
        while True:
            rows = rng.integers(0, 12, 6)
            yield A[rows], (A @ np.array([1.0, -0.5, 0.0, 0.3]))[rows]

    loss = lambda x, data: jnp.mean((data[0] @ x - data[1]) ** 2)
    for solver in (
        face.OptaxSolver(loss, optax.adam(0.05), maxiter=400),
        face.PolyakSGD(loss, max_stepsize=0.3, maxiter=400),
        face.ArmijoSGD(loss, maxiter=200),
    ):
        params, state = solver.run_iterator(jnp.zeros(4), batches())
        assert state.iter_num == solver.maxiter
        np.testing.assert_allclose(params, [1.0, -0.5, 0.0, 0.3], atol=0.05)


def test_decorators_of_implicit_diff_make_a_solver_differentiable():
    @face.implicit_diff.custom_root(lambda x, theta: x**2 - theta)
    def square_root(init, theta):
        return jnp.sqrt(theta)

    @face.implicit_diff.custom_fixed_point(lambda x, theta: 0.5 * (x + theta / x))
    def babylonian(init, theta):
        return jnp.sqrt(theta)

    for solver in (square_root, babylonian):
        np.testing.assert_allclose(jax.grad(solver, argnums=1)(1.0, 4.0), 0.25)
    condition = lambda x, theta: x**2 - theta
    np.testing.assert_allclose(face.implicit_diff.root_vjp(condition, 2.0, (4.0,), 1.0)[0], 0.25)
    np.testing.assert_allclose(face.implicit_diff.root_jvp(condition, 2.0, (4.0,), (1.0,)), 0.25)


def test_settings_without_a_counterpart_are_warned_of_and_unknown_ones_refused():
    with pytest.warns(UserWarning, match=r"condition.*passed over"):
        face.LBFGS(squares, condition="wolfe")
    with pytest.raises(ArgumentError, match="linesearch"):
        face.LBFGS(squares, linesearch="exact").run(jnp.zeros(4), A, B)
    with pytest.raises(TypeError, match="linsearch"):
        face.LBFGS(squares, linsearch="zoom")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face.LBFGS(squares, tol=1e-3, maxiter=10, jit=True, unroll=False)


def test_names_that_are_not_here_say_what_to_use():
    for name in ("CvxpyQP", "ScipyLeastSquares", "ZoomLineSearch"):
        with pytest.raises(ArgumentError, match=rf"`{name}` of jaxopt is not here\. +Use|`{name}` of jaxopt is not here"):
            getattr(face, name)(fun=squares)
    with pytest.raises(ArgumentError, match="make_projection_grad"):
        face.MirrorDescent(squares, lambda *_: None, 0.1)
    with pytest.raises(ArgumentError, match="params_obj"):
        face.OSQP().run(None, params_obj=Q)
