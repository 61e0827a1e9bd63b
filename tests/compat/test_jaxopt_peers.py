"""Numbers of jaxopt, where it is installed: its functions against ours, and its solvers against the face."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimand.compat import jaxopt as face
from optimand.smooth import isotonic, objectives, perturbed, projections, proximal

jaxopt = pytest.importorskip("jaxopt", reason="jaxopt, a peer, is not installed: pip install 'optimand[peers]'")
perturbations = pytest.importorskip("jaxopt.perturbations")

Y = np.array([0.9, -0.7, 0.35, 1.6, -0.2, 0.05])
NORMAL = np.array([1.0, 0.5, 0.3, 0.8, 1.2, 0.4])
with jax.enable_x64(True):  # constants are made before the tests begin
    ROWS = jnp.array([np.array([1.0, -0.5, 0.3, 0.8, -1.2, 0.4]), np.arange(6.0) / 5])
    FACES = jnp.array([np.eye(6)[0], -np.eye(6)[1], np.ones(6)])
    MARGINALS = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.1, 0.25, 0.25, 0.4])
MATRIX = np.sin(np.arange(12.0)).reshape(3, 4)
SQUARE = np.sin(1 + np.arange(9.0)).reshape(3, 3)


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def transport(name, **options):
    """jaxopt's transport functions stop at a tolerance of 1e-3 unless they are given another solver."""
    make = lambda fun: jaxopt.LBFGS(fun=fun, tol=1e-10, maxiter=2000)
    return lambda x, *hyper: getattr(jaxopt.projection, name)(x, *hyper, make_solver=make, **options)


# name: (ours, theirs, point, tolerance)
FUNCTIONS = {
    "non_negative": (projections.non_negative, jaxopt.projection.projection_non_negative, Y, 1e-12),
    "box": (lambda y: projections.box(y, -0.3, 0.8), lambda y: jaxopt.projection.projection_box(y, (-0.3, 0.8)), Y, 1e-12),
    "hypercube": (lambda y: projections.box(y, 0.0, 0.7), lambda y: jaxopt.projection.projection_hypercube(y, 0.7), Y, 1e-12),
    "simplex": (lambda y: projections.simplex(y, 1.3), lambda y: jaxopt.projection.projection_simplex(y, 1.3), Y, 1e-12),
    "sparse_simplex": (
        lambda y: projections.sparse_simplex(y, 2), lambda y: jaxopt.projection.projection_sparse_simplex(y, 2), Y, 1e-12,
    ),
    "l1_ball": (lambda y: projections.l1_ball(y, 1.3), lambda y: jaxopt.projection.projection_l1_ball(y, 1.3), Y, 1e-12),
    "l1_sphere": (lambda y: projections.l1_sphere(y, 1.3), lambda y: jaxopt.projection.projection_l1_sphere(y, 1.3), Y, 1e-12),
    "l2_ball": (lambda y: projections.l2_ball(y, 1.3), lambda y: jaxopt.projection.projection_l2_ball(y, 1.3), Y, 1e-12),
    "l2_sphere": (lambda y: projections.l2_sphere(y, 1.3), lambda y: jaxopt.projection.projection_l2_sphere(y, 1.3), Y, 1e-12),
    "linf_ball": (lambda y: projections.linf_ball(y, 0.6), lambda y: jaxopt.projection.projection_linf_ball(y, 0.6), Y, 1e-12),
    "hyperplane": (
        lambda y: projections.hyperplane(y, NORMAL, 0.4), lambda y: jaxopt.projection.projection_hyperplane(y, (NORMAL, 0.4)), Y, 1e-12,
    ),
    "half_space": (
        lambda y: projections.half_space(y, NORMAL, 0.4), lambda y: jaxopt.projection.projection_halfspace(y, (NORMAL, 0.4)), Y, 1e-12,
    ),
    "affine_set": (
        lambda y: projections.affine_set(y, ROWS, jnp.array([0.4, 0.1])),
        lambda y: jaxopt.projection.projection_affine_set(y, (ROWS, jnp.array([0.4, 0.1]))), Y, 1e-8,
    ),
    "polyhedron": (
        lambda y: projections.polyhedron(y, ROWS[:1], jnp.array([0.3]), FACES, jnp.array([0.5, 0.2, 1.0])),
        lambda y: jaxopt.projection.projection_polyhedron(
            y, (ROWS[:1], jnp.array([0.3]), FACES, jnp.array([0.5, 0.2, 1.0])), check_feasible=False
        ), Y, 5e-3,
    ),
    "box_section": (
        lambda y: projections.box_section(y, -0.3, 0.9, NORMAL, 0.4),
        lambda y: jaxopt.projection.projection_box_section(y, (-0.3 * jnp.ones(6), 0.9 * jnp.ones(6), jnp.asarray(NORMAL), 0.4)),
        Y, 1e-4,
    ),
    "transport": (
        lambda s: projections.euclidean_transport_polytope(s, *MARGINALS),
        lambda s: transport("projection_transport")(s, MARGINALS), MATRIX, 1e-6,
    ),
    "birkhoff": (projections.birkhoff, transport("projection_birkhoff"), SQUARE, 1e-6),
    "kl_transport": (
        lambda s: projections.transport_polytope(s, *MARGINALS), lambda s: transport("kl_projection_transport")(s, MARGINALS), MATRIX, 1e-6,
    ),
    "kl_birkhoff": (
        lambda s: projections.transport_polytope(s, jnp.ones(3), jnp.ones(3)), transport("kl_projection_birkhoff"), SQUARE, 1e-6,
    ),
    "nothing": (lambda y: proximal.nothing(y, 0.5), lambda y: jaxopt.prox.prox_none(y, None, 0.5), Y, 1e-12),
    "lasso": (lambda y: proximal.lasso(y, 0.5, 0.6), lambda y: jaxopt.prox.prox_lasso(y, 0.6, 0.5), Y, 1e-12),
    "non_negative_lasso": (
        lambda y: proximal.non_negative_lasso(y, 0.5, 0.6), lambda y: jaxopt.prox.prox_non_negative_lasso(y, 0.6, 0.5), Y, 1e-12,
    ),
    "elastic_net": (
        lambda y: proximal.elastic_net(y, 0.5, 0.6, 0.6 * 0.3), lambda y: jaxopt.prox.prox_elastic_net(y, (0.6, 0.3), 0.5), Y, 1e-12,
    ),
    "group_lasso": (lambda y: proximal.group_lasso(y, 0.5, 0.6), lambda y: jaxopt.prox.prox_group_lasso(y, 0.6, 0.5), Y, 1e-12),
    "ridge": (lambda y: proximal.ridge(y, 0.5, 0.6), lambda y: jaxopt.prox.prox_ridge(y, 0.6, 0.5), Y, 1e-12),
    "non_negative_ridge": (
        lambda y: proximal.non_negative_ridge(y, 0.5, 0.6), lambda y: jaxopt.prox.prox_non_negative_ridge(y, 0.6, 0.5), Y, 1e-12,
    ),
    "indicator": (
        lambda y: proximal.indicator(projections.simplex)(y, 0.5, 1.0),
        lambda y: jaxopt.prox.make_prox_from_projection(jaxopt.projection.projection_simplex)(y, 1.0, 0.5), Y, 1e-12,
    ),
    "isotonic": (
        lambda y: isotonic.isotonic_regression(y, lower=-0.1, upper=0.5), lambda y: jaxopt.isotonic.isotonic_l2_pav(y, -0.1, 0.5), Y, 1e-12,
    ),
    "isotonic falling": (
        lambda y: isotonic.isotonic_regression(y, increasing=False), lambda y: jaxopt.isotonic.isotonic_l2_pav(y, increasing=False),
        Y, 1e-7,
    ),
}  # fmt: skip


# jaxopt's derivatives of these are zero: the one of the simplex projection inside is stopped, for the sake of its
# dual, and so is that of the plan. Ours are held to finite differences with the other projections.
VALUES_ONLY = ("transport", "birkhoff")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_those_of_jaxopt(name):
    ours, theirs, y, tolerance = FUNCTIONS[name]

    def value_and_gradient(function):
        value, pullback = jax.vjp(function, jnp.asarray(y))
        return value, *pullback(jnp.cos(jnp.arange(float(y.size))).reshape(y.shape))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = list(zip(jax.jit(lambda: value_and_gradient(ours))(), value_and_gradient(theirs), strict=True))
        for mine, other in pairs[:1] if name in VALUES_ONLY else pairs:
            np.testing.assert_allclose(mine, other, atol=max(tolerance, 1e-7))


def test_perturbed_functions_of_the_same_samples_are_those_of_jaxopt():
    one_hot = lambda scores: jax.nn.one_hot(jnp.argmax(scores), scores.size)
    theta, key = jnp.asarray(Y), jax.random.key(3)
    for noise, theirs in ((perturbed.Gumbel(), perturbations.Gumbel()), (perturbed.Gaussian(), perturbations.Normal())):
        for control in (True, False):
            options = dict(control_variate=control, noise=noise)
            ours = perturbed.argmax(one_hot, samples=100, scale=0.3, **options)
            other = perturbations.make_perturbed_argmax(one_hot, 100, 0.3, theirs, control)
            np.testing.assert_allclose(ours(theta, key), other(theta, key), atol=1e-12)
            np.testing.assert_allclose(jax.jacobian(ours)(theta, key), jax.jacfwd(other)(theta, key), atol=1e-10)
        largest = perturbed.maximum(one_hot, samples=100, scale=0.3, noise=noise)
        other = perturbations.make_perturbed_max(one_hot, 100, 0.3, theirs)
        for mine, value in zip(jax.value_and_grad(largest)(theta, key), jax.value_and_grad(other)(theta, key), strict=True):
            np.testing.assert_allclose(mine, value, atol=1e-12)
    smooth = perturbed.expectation(jnp.sum, samples=100, scale=0.3, control_variate=False)
    other = perturbations.make_perturbed_fun(jnp.sum, 100, 0.3)
    np.testing.assert_allclose(smooth(theta, key), other(theta, key), atol=1e-12)


X = np.random.default_rng(0).normal(size=(8, 3))
LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0])
WEIGHTS = np.random.default_rng(1).normal(size=(3, 3))


def test_losses_of_the_table_are_those_of_jaxopt():
    scores, loss = jnp.asarray(WEIGHTS), jaxopt.loss
    for label in (0, 1):
        s = jnp.asarray(0.4)
        np.testing.assert_allclose(optax.losses.sigmoid_binary_cross_entropy(s, label), loss.binary_logistic_loss(label, s))
        np.testing.assert_allclose(optax.losses.hinge_loss(s, 2 * label - 1), loss.binary_hinge_loss(label, s))
        np.testing.assert_allclose(optax.losses.perceptron_loss(s, 2 * label - 1), loss.binary_perceptron_loss(label, s))
        np.testing.assert_allclose(optax.losses.sparsemax_loss(s, jnp.asarray(label)), loss.binary_sparsemax_loss(label, s))
    np.testing.assert_allclose(optax.losses.huber_loss(0.3, 2.0, delta=0.5), loss.huber_loss(2.0, 0.3, 0.5))
    labels = jnp.array([0, 1, 2])
    for ours, theirs in (
        (optax.losses.softmax_cross_entropy_with_integer_labels, loss.multiclass_logistic_loss),
        (optax.losses.multiclass_hinge_loss, loss.multiclass_hinge_loss),
        (optax.losses.multiclass_perceptron_loss, loss.multiclass_perceptron_loss),
        (optax.losses.multiclass_sparsemax_loss, loss.multiclass_sparsemax_loss),
    ):
        np.testing.assert_allclose(ours(scores, labels), jax.vmap(theirs)(labels, scores), atol=1e-12)
    np.testing.assert_allclose(jax.nn.sparse_plus(0.3), loss.sparse_plus(0.3))
    np.testing.assert_allclose(jax.nn.sparse_sigmoid(0.3), loss.sparse_sigmoid(0.3))


def test_objectives_are_those_of_jaxopt():
    data, theirs = (jnp.asarray(X), jnp.asarray(LABELS)), jaxopt.objective
    real = data[0], jnp.asarray(X @ WEIGHTS[:, 0])
    w, matrix, pair = jnp.asarray(WEIGHTS[0]), jnp.asarray(WEIGHTS), (jnp.asarray(WEIGHTS), jnp.arange(3.0))
    one_hot = data[0], jax.nn.one_hot(LABELS, 3)
    binary = data[0], jnp.asarray(LABELS > 0, int)
    beta = jax.nn.softmax(jnp.asarray(X), axis=1)
    for ours, other in (
        (objectives.least_squares(w, real), theirs.least_squares(w, real)),
        (objectives.ridge_regression(w, 0.3, real), theirs.ridge_regression(w, 0.3, real)),
        (objectives.binary_logistic_regression(w, binary), theirs.binary_logreg(w, binary)),
        (objectives.multiclass_logistic_regression(matrix, data), theirs.multiclass_logreg(matrix, data)),
        (objectives.multiclass_logistic_regression(pair, data), theirs.multiclass_logreg_with_intercept(pair, data)),
        (objectives.ridge_multiclass_logistic_regression(matrix, 0.3, data), theirs.l2_multiclass_logreg(matrix, 0.3, data)),
        (
            objectives.ridge_multiclass_logistic_regression(pair, 0.3, data),
            theirs.l2_multiclass_logreg_with_intercept(pair, 0.3, data),
        ),
        (objectives.multiclass_svm_dual(beta, 0.3, one_hot), theirs.multiclass_linear_svm_dual(beta, 0.3, one_hot)),
    ):
        np.testing.assert_allclose(ours, other, rtol=1e-12)


A = np.random.default_rng(2).normal(size=(12, 4))
B = A @ np.array([1.0, -0.5, 0.0, 0.3]) + 0.1


def squares(x, a, b):
    return 0.5 * jnp.sum((a @ x - b) ** 2)


residual = lambda x, a, b: a @ x - b
with jax.enable_x64(True):
    Q, C = jnp.asarray(A.T @ A), jnp.asarray(-A.T @ B)
    BOUNDS = jnp.zeros(4), jnp.full((4,), 0.5)
    EQUALITY, INEQUALITY = (jnp.ones((1, 4)), jnp.ones(1)), (jnp.eye(4)[:2], jnp.array([0.6, 0.1]))
    START, DATA = jnp.full((4,), 0.25), (jnp.asarray(A), jnp.asarray(B))
PROGRAM = dict(params_obj=(Q, C), params_eq=EQUALITY, params_ineq=INEQUALITY)
projection = lambda x, scale: jaxopt.projection.projection_simplex(x, scale)

# name: how a module's solver is made and run
SOLVERS = {
    "GradientDescent": lambda m: m.GradientDescent(squares, tol=1e-9, maxiter=5000).run(START, *DATA),
    "LBFGS": lambda m: m.LBFGS(squares, tol=1e-9).run(START, *DATA),
    "BFGS": lambda m: m.BFGS(squares, tol=1e-9).run(START, *DATA),
    "NonlinearCG": lambda m: m.NonlinearCG(squares, tol=1e-9, maxiter=1000).run(START, *DATA),
    "LBFGSB": lambda m: m.LBFGSB(squares, tol=1e-9, maxiter=500).run(START, BOUNDS, *DATA),
    "ProximalGradient": lambda m: m.ProximalGradient(squares, prox=jaxopt.prox.prox_lasso, tol=1e-9, maxiter=5000).run(
        START, 0.5, *DATA
    ),
    "ProjectedGradient": lambda m: m.ProjectedGradient(squares, projection=projection, tol=1e-9, maxiter=5000).run(START, 1.0, *DATA),
    "GaussNewton": lambda m: m.GaussNewton(residual_fun=residual, tol=1e-9).run(START, *DATA),
    "LevenbergMarquardt": lambda m: m.LevenbergMarquardt(residual_fun=residual, tol=1e-9, gtol=1e-9, maxiter=100).run(START, *DATA),
    "AndersonAcceleration": lambda m: m.AndersonAcceleration(lambda x, a: jnp.cos(x) * a, tol=1e-10).run(START, 0.9),
    "FixedPointIteration": lambda m: m.FixedPointIteration(lambda x, a: jnp.cos(x) * a, tol=1e-10, maxiter=1000).run(START, 0.9),
    "Broyden": lambda m: m.Broyden(lambda x, a: x**3 + x - a, tol=1e-10).run(START, 0.9),
    "Bisection": lambda m: m.Bisection(lambda x, a: x**3 + x - a, 0.0, 2.0, tol=1e-10, maxiter=100).run(None, 0.9),
    "OptaxSolver": lambda m: m.OptaxSolver(squares, optax.sgd(0.02), tol=1e-9, maxiter=5000).run(START, *DATA),
    "EqualityConstrainedQP": lambda m: m.EqualityConstrainedQP(tol=1e-9).run(params_obj=(Q, C), params_eq=EQUALITY),
    "OSQP": lambda m: m.OSQP(tol=1e-9, maxiter=20_000).run(**PROGRAM),
    "BoxCDQP": lambda m: m.BoxCDQP(tol=1e-9, maxiter=5000).run(START, params_obj=(Q, C), params_ineq=BOUNDS),
    "ScipyMinimize": lambda m: m.ScipyMinimize(method="BFGS", fun=squares, tol=1e-10).run(START, *DATA),
    "ScipyBoundedMinimize": lambda m: m.ScipyBoundedMinimize(method="L-BFGS-B", fun=squares, tol=1e-12).run(START, BOUNDS, *DATA),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_face_finds_the_solution_that_jaxopt_finds(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (jax.tree.leaves(SOLVERS[name](module).params) for module in (face, jaxopt))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6)
