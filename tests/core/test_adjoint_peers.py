"""Derivatives of solutions against those of other libraries: Optimistix, and where they are installed qpax and diffcp."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

import optimand as om
from optimand.core import optimality
from optimand.smooth import LBFGS, Newton, Scipy


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


THETA = np.array([0.9, -0.6, 0.3])
W = np.array([1.0, -2.0, 0.5])


def test_root_derivatives_are_those_of_optimistix():
    residual = lambda x, theta: x**3 + 2 * x + 0.3 * jnp.roll(x, 1) - theta

    def ours(theta):
        return om.solve(om.Root(residual, theta), Newton(tolerance=1e-12), jnp.zeros(3)).value @ W

    def theirs(theta):
        adjoint = optx.ImplicitAdjoint(linear_solver=lx.AutoLinearSolver(well_posed=None))
        return optx.root_find(residual, optx.Newton(1e-12, 1e-12), jnp.zeros(3), theta, adjoint=adjoint).value @ W

    for transform in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(transform(ours)(THETA), transform(theirs)(THETA), rtol=1e-9)


def test_minimiser_derivatives_are_those_of_optimistix():
    energy = lambda x, theta: jnp.sum(jnp.cosh(x)) + 0.5 * (jnp.sum(x) - 1) ** 2 - theta @ x

    def ours(theta):
        return om.solve(om.Minimize(energy, theta), LBFGS(tolerance=1e-11), jnp.zeros(3)).value @ W

    def theirs(theta):
        return optx.minimise(energy, optx.BFGS(1e-12, 1e-12), jnp.zeros(3), theta, adjoint=optx.ImplicitAdjoint()).value @ W

    np.testing.assert_allclose(jax.grad(ours)(THETA), jax.grad(theirs)(THETA), rtol=1e-6)


# A quadratic program: min 1/2 x'Qx + q'x, sum x = 1, G x <= h, with one active inequality of three.

Q = np.array([[2.0, 0.4, 0.1], [0.4, 1.5, 0.3], [0.1, 0.3, 1.2]])
EQUALITY, LEVEL = np.ones((1, 3)), np.ones(1)
G, H = np.vstack([np.eye(3)[0], -np.eye(3)[1], [0.5, 0.0, 1.0]]), np.array([0.1, 5.0, 4.0])


def by_kkt(q_matrix, q, level, h):
    """Our derivative of the program: SciPy finds the solution, the KKT conditions differentiate it."""
    problem = om.Constrained(
        lambda x, m, q, *_: 0.5 * x @ (m @ x) + q @ x, q_matrix, q, level, h,
        equalities=lambda x, m, q, level, h: EQUALITY @ x - level, inequalities=lambda x, m, q, level, h: G @ x - h,
    )  # fmt: skip
    return om.solve(problem, Scipy("SLSQP", tolerance=1e-13), jnp.zeros(3)).value.primal @ W


def our_gradients():
    return jax.grad(by_kkt, argnums=(0, 1, 2, 3))(jnp.asarray(Q), -jnp.asarray(THETA), jnp.asarray(LEVEL), jnp.asarray(H))


def test_derivatives_of_a_quadratic_program_are_those_of_its_active_constraints():
    """What the two peers below are compared with, so that something is when neither is installed."""
    rows = np.vstack([EQUALITY, G[:1]])
    matrix = np.block([[Q, rows.T], [rows, np.zeros((2, 2))]])
    adjoint = np.linalg.solve(matrix, np.concatenate([W, np.zeros(2)]))
    x = np.linalg.solve(matrix, np.concatenate([THETA, LEVEL, H[:1]]))[:3]
    by_matrix, by_q, by_level, by_h = our_gradients()
    outer = np.outer(adjoint[:3], x)
    np.testing.assert_allclose(by_matrix, -(outer + outer.T) / 2, atol=1e-6)  # x'Qx knows the symmetric part only
    np.testing.assert_allclose(by_q, -adjoint[:3], atol=1e-6)
    np.testing.assert_allclose(by_level, adjoint[3:4], atol=1e-6)
    np.testing.assert_allclose(by_h, [adjoint[4], 0, 0], atol=1e-6)


def test_derivatives_of_a_quadratic_program_are_those_of_qpax():
    qpax = pytest.importorskip("qpax", reason="qpax, a peer, is not installed: pip install 'optimand[peers]'")

    def theirs(q_matrix, q, level, h):
        return qpax.solve_qp_primal(q_matrix, q, EQUALITY, level, G, h, solver_tol=1e-10, target_kappa=1e-9) @ W

    arguments = (jnp.asarray(Q), -jnp.asarray(THETA), jnp.asarray(LEVEL), jnp.asarray(H))
    for ours, other in zip(our_gradients(), jax.grad(theirs, argnums=(0, 1, 2, 3))(*arguments), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def second_order_cone(z):
    head, tail = z[0], z[1:]
    norm = jnp.sqrt(jnp.sum(tail**2))
    boundary = 0.5 * (head + norm) * jnp.concatenate([jnp.ones(1), tail / norm])
    return jnp.where(norm <= head, z, jnp.where(norm <= -head, 0.0, boundary))


def test_derivatives_of_a_cone_program_are_those_of_diffcp():
    """min c'x subject to |M x - p| <= r, by the solution and the derivative of diffcp, and by our conic residual."""
    diffcp = pytest.importorskip("diffcp", reason="diffcp, a peer, is not installed: pip install 'optimand[peers]'")
    import scipy.sparse

    a = np.vstack([np.zeros((1, 3)), -Q])
    b = np.concatenate([[0.8], -np.array([0.2, -0.4, 0.5])])
    x, y, s, _, adjoint = diffcp.solve_and_derivative(
        scipy.sparse.csc_matrix(a), b, THETA, {"q": [4]}, solve_method="SCS", eps=1e-12, max_iters=100_000
    )
    by_a, by_b, by_c = adjoint(W, np.zeros(4), np.zeros(4))
    z = optimality.conic_point(jnp.asarray(x), jnp.asarray(y), jnp.asarray(s))
    cotangent = (jnp.asarray(W) , jnp.zeros(4), -(jnp.asarray(W) @ x))  # of u / w at w = 1
    ours = om.root_vjp(
        optimality.conic_residual(second_order_cone), z, (jnp.asarray(a), jnp.asarray(b), jnp.asarray(THETA)), cotangent
    )
    for mine, other in zip(ours, (by_a.toarray(), by_b, by_c), strict=True):
        nonzero = other != 0  # diffcp keeps the sparsity of A
        np.testing.assert_allclose(np.asarray(mine)[nonzero], other[nonzero], atol=1e-5)
