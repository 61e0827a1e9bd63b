"""The deep conjugate direction method: what it is for networks that are known, that it converges for any, and how unfit systems are named."""

import itertools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import optimand as om
from optimand.linear import (
    CG,
    ConjugateDirectionNet,
    DeepConjugateDirection,
    FlexibleCG,
    NetworkPreconditioner,
    SparseOperator,
    StencilOperator,
)
from optimand.physics import PoissonGrid


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def disk(n=12):
    x = (np.arange(n) + 0.5) / n - 0.5
    return x[:, None] ** 2 + (x - 0.1) ** 2 < 0.04


def system(n=12, solid=True, seed=0):
    operator = PoissonGrid((n, n), solid=disk(n) if solid else None)
    b = np.random.default_rng(seed).normal(size=(n, n)) * (~disk(n) if solid else 1)
    return operator, jnp.asarray(b.ravel())


def inverse_of(operator):
    inverse = jnp.linalg.pinv(operator.as_matrix(), hermitian=True)
    return lambda r, mask: (inverse @ r.ravel()).reshape(r.shape)


def plain(r, mask):
    return r


def iterate(solver, operator, b, steps):
    return lx.linear_solve(operator, b, solver(max_steps=steps), throw=False).value


def norm(operator, v):
    return jnp.sqrt(jnp.vdot(v, operator.mv(v)))


def test_the_inverse_as_a_network_takes_one_iteration():
    operator, b = system()
    answer = lx.linear_solve(operator, b, DeepConjugateDirection(inverse_of(operator), 1e-10))
    assert answer.stats["num_steps"] == 1 and answer.stats["fallbacks"] == 0 and answer.stats["residual"] <= 1e-10


@pytest.mark.parametrize("q, most", [("all", 25), (1, 10)])
def test_with_the_residual_itself_the_iterates_are_those_of_conjugate_gradients(q, most):
    operator, b = system()
    for steps in (2, 10, 25):
        if steps <= most:
            ours = iterate(lambda max_steps: DeepConjugateDirection(plain, 1e-14, q=q, max_steps=max_steps), operator, b, steps)
            theirs = iterate(lambda max_steps: CG(1e-14, max_steps=max_steps), operator, b, steps)
            np.testing.assert_allclose(ours, theirs, atol=1e-8 * float(jnp.max(jnp.abs(theirs))))


def across(r, mask):
    """Orthogonal to the residual."""
    turned = jnp.roll(r.ravel(), 1)
    return (turned - jnp.vdot(turned, r.ravel()) * r.ravel()).reshape(r.shape)


BAD_NETWORKS = {
    "zero": lambda r, mask: 0 * r,
    "not a number": lambda r, mask: jnp.nan * r,
    "orthogonal": across,
}


@pytest.mark.parametrize("kind", BAD_NETWORKS)
@pytest.mark.parametrize("safeguard", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_with_a_useless_network_it_falls_back_and_the_error_never_grows(kind, safeguard):
    operator, b = system(solid=False)
    solver = lambda max_steps: DeepConjugateDirection(BAD_NETWORKS[kind], 1e-10, q=0 if kind == "orthogonal" else 2, max_steps=max_steps, safeguard=safeguard)
    answer = lx.linear_solve(operator, b, solver(2000))
    assert answer.stats["residual"] <= 1e-10 and answer.stats["fallbacks"] == answer.stats["num_steps"]
    assert answer.stats["nonfinite"] == (answer.stats["num_steps"] if kind == "not a number" else 0)
    exact = jnp.linalg.solve(operator.as_matrix(), b)
    errors = [norm(operator, iterate(solver, operator, b, steps) - exact) for steps in (1, 2, 7)]
    assert all(after <= before for before, after in itertools.pairwise(errors))
    if kind == "zero":  # then it is conjugate gradients
        theirs = iterate(lambda max_steps: CG(1e-14, max_steps=max_steps), operator, b, 7)
        np.testing.assert_allclose(iterate(solver, operator, b, 7), theirs, atol=1e-8)


@pytest.mark.parametrize("q", [0, 2, "all"])
def test_an_untrained_network_in_single_precision_serves_a_solve_in_double_precision(q):
    operator, b = system()
    net = ConjugateDirectionNet(2, width=4, levels=2, bottom_pairs=1, key=jax.random.key(3))
    assert net(b.reshape(12, 12).astype(jnp.float32)).dtype == jnp.float32
    answer = lx.linear_solve(operator, b, DeepConjugateDirection(net, 1e-9, q=q, max_steps=3000, history=7))
    assert jnp.linalg.norm(b - operator.mv(answer.value)) <= 1e-9 * jnp.linalg.norm(b)
    assert answer.stats["residuals"].shape == (7,) and jnp.all(jnp.isfinite(answer.stats["residuals"]))
    assert not jnp.any(answer.value.reshape(12, 12)[disk()])


def test_no_network_is_slower_than_steepest_descent():
    operator, b = system(solid=False)
    exact = jnp.linalg.solve(operator.as_matrix(), b)
    skewed = lambda r, mask: r + 30 * across(r, mask)
    solver = lambda safeguard: lambda max_steps: DeepConjugateDirection(skewed, 1e-12, q=0, max_steps=max_steps, safeguard=safeguard)
    error, values = norm(operator, exact), jnp.linalg.eigvalsh(operator.as_matrix())
    rate = (values[-1] - values[0]) / (values[-1] + values[0])
    with_it, without = (norm(operator, iterate(solver(safeguard), operator, b, 30) - exact) for safeguard in (True, False))
    assert with_it <= rate**30 * error and with_it < without


def test_the_history_is_that_of_the_true_residuals():
    operator, b = system()
    known = lx.linear_solve(operator, b, DeepConjugateDirection(plain, 1e-3, history=400)).stats
    steps = int(known["num_steps"])
    assert jnp.all(jnp.isnan(known["residuals"][steps:]))
    for step in (1, steps):
        x = iterate(lambda max_steps: DeepConjugateDirection(plain, 1e-3, max_steps=max_steps), operator, b, step)
        np.testing.assert_allclose(known["residuals"][step - 1], jnp.linalg.norm(b - operator.mv(x)) / jnp.linalg.norm(b), rtol=1e-6)


def test_with_one_direction_and_no_safeguard_it_is_flexible_conjugate_gradients():
    operator, b = system()
    net = ConjugateDirectionNet(2, width=4, levels=1, bottom_pairs=1, key=jax.random.key(5))
    ours = iterate(lambda max_steps: DeepConjugateDirection(net, 1e-14, q=1, max_steps=max_steps, safeguard=False), operator, b, 6)
    theirs = iterate(lambda max_steps: FlexibleCG(1e-14, preconditioner=NetworkPreconditioner(net), max_steps=max_steps), operator, b, 6)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.max(jnp.abs(ours))))  # the network rounds to single precision


@pytest.mark.parametrize("net", [plain, "inverse"])
def test_derivatives_through_lineax_are_those_of_the_dense_solve(net):
    operator, b = system()
    solver = DeepConjugateDirection(inverse_of(operator) if net == "inverse" else net, 1e-12)
    ours = lambda scale, b: jnp.sum(jnp.sin(lx.linear_solve(operator, scale * b, solver).value))
    pseudo = jnp.linalg.pinv(operator.as_matrix(), hermitian=True)
    dense = lambda scale, b: jnp.sum(jnp.sin(pseudo @ (scale * b)))
    for mine, theirs in zip(jax.jit(jax.grad(ours, (0, 1)))(1.5, b), jax.grad(dense, (0, 1))(1.5, b), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-9)
    tangent = jnp.asarray(np.random.default_rng(2).normal(size=b.size)) * (b != 0)
    along = jax.jvp(lambda b: ours(1.5, b), (b,), (tangent,))[1]
    np.testing.assert_allclose(along, jax.jvp(lambda b: dense(1.5, b), (b,), (tangent,))[1], rtol=1e-7)


def test_derivatives_with_respect_to_the_matrix():
    stencil = StencilOperator.laplacian((8, 8))
    b = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)))
    solver = DeepConjugateDirection(plain, 1e-12)

    def ours(coefficients):
        operator = StencilOperator(coefficients, stencil.offsets, stencil.grid, stencil.tags)
        return jnp.sum(lx.linear_solve(operator, b, solver).value ** 2)

    def dense(coefficients):
        operator = StencilOperator(coefficients, stencil.offsets, stencil.grid, stencil.tags)
        return jnp.sum(jnp.linalg.solve(operator.as_matrix(), b.ravel()) ** 2)

    np.testing.assert_allclose(jax.grad(ours)(stencil.coefficients), jax.grad(dense)(stencil.coefficients), rtol=1e-7)


def closed_box(n=10):
    """Two rooms behind walls: the left one closed, the right one with air."""
    solid = np.zeros((n, n), bool)
    solid[:, n // 2] = True
    air = np.zeros((n, n), bool)
    air[0, n // 2 + 1 :] = True
    operator = PoissonGrid((n, n), solid=solid, air=air, boundary="solid")
    b = np.random.default_rng(4).normal(size=(n, n)) * ~solid * ~air
    left = np.zeros((n, n), bool)
    left[:, : n // 2] = True
    return operator, b - left * b[left].mean(), left


def test_a_closed_part_of_the_fluid_is_solved_to_the_mean_zero():
    operator, b, left = closed_box()
    b = jnp.asarray(b.ravel())
    for net in (ConjugateDirectionNet(2, width=4, levels=1, bottom_pairs=1, key=jax.random.key(0)), plain):
        solver = DeepConjugateDirection(net, 1e-10, max_steps=2000)
        answer = lx.linear_solve(operator, b, solver)
        pseudo = jnp.linalg.pinv(operator.as_matrix(), hermitian=True)
        np.testing.assert_allclose(answer.value, pseudo @ b, atol=1e-8)
        assert abs(float(jnp.mean(answer.value.reshape(left.shape)[left]))) < 1e-12
    # The cotangent has a mean: the derivative is that of the pseudo-inverse.
    gradient = jax.grad(lambda b: jnp.sum(lx.linear_solve(operator, b, solver).value * jnp.arange(100.0)))(b)
    np.testing.assert_allclose(gradient, pseudo @ jnp.arange(100.0), rtol=1e-6, atol=1e-6)


def test_batches_and_single_precision():
    operator, b = system(solid=False)
    many = jnp.stack([b, 2 * b[::-1], b + 1])
    solver = DeepConjugateDirection(plain, 1e-8)
    values = jax.vmap(lambda b: lx.linear_solve(operator, b, solver).value)(many)
    np.testing.assert_allclose(jax.vmap(operator.mv)(values), many, atol=1e-6)
    with jax.enable_x64(False):
        single = PoissonGrid((12, 12), solid=disk())
        right = jnp.where(disk().ravel(), 0, jnp.sin(jnp.arange(144.0)))
        answer = lx.linear_solve(single, right, DeepConjugateDirection(plain, 1e-5))
        assert answer.value.dtype == jnp.float32 and answer.stats["residual"] <= 1e-5


# What does not fit.


def tagged(matrix):
    """A matrix on a grid of 3 by 3 that claims to be positive."""

    class OnGrid(lx.MatrixLinearOperator):
        grid = (3, 3)

    for question in (lx.is_symmetric, lx.is_positive_semidefinite, lx.is_negative_semidefinite):
        question.register(OnGrid)(lambda operator, question=question: question is not lx.is_negative_semidefinite)
    lx.linearise.register(OnGrid)(lambda operator: operator)
    lx.diagonal.register(OnGrid)(lambda operator: jnp.diag(operator.matrix))
    return OnGrid(jnp.asarray(matrix))


BAD = {
    "net": lambda: DeepConjugateDirection("network"),
    "q": lambda: DeepConjugateDirection(plain, q=-1),
    "history": lambda: DeepConjugateDirection(plain, history=-1),
    "least_cosine": lambda: DeepConjugateDirection(plain, least_cosine=1.0),
    "rtol": lambda: DeepConjugateDirection(plain, -1.0),
    "2 dimensions": lambda: DeepConjugateDirection(ConjugateDirectionNet(2, key=jax.random.key(0))).init(PoissonGrid((4, 4, 4)), {}),
    "must have a grid": lambda: DeepConjugateDirection(plain).init(SparseOperator.from_scipy(scipy.sparse.eye_array(4), lx.positive_semidefinite_tag), {}),
    "tagged": lambda: DeepConjugateDirection(plain).init(StencilOperator(jnp.ones(1), [(0, 0)], (3, 3)), {}),
    "options": lambda: DeepConjugateDirection(plain).init(PoissonGrid((4, 4)), {"preconditioner": om.linear.Jacobi()}),
    "not symmetric": lambda: DeepConjugateDirection(plain).init(tagged(np.diag(np.arange(1.0, 10.0)) + np.eye(9, k=1)), {}),
    "not positive definite": lambda: DeepConjugateDirection(plain).init(tagged(-np.eye(9)), {}),
    "not fluid": lambda: DeepConjugateDirection(plain).check(PoissonGrid((12, 12), solid=disk()), jnp.ones(144)),
    "the mean zero.*is 1": lambda: DeepConjugateDirection(plain).check(PoissonGrid((4, 4), boundary="solid"), jnp.ones(16)),
}


@pytest.mark.parametrize("match", BAD)
def test_what_does_not_fit_is_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()


def test_inside_of_a_linear_solve_what_does_not_fit_is_a_breakdown():
    solve = lambda operator, b: lx.linear_solve(operator, b, DeepConjugateDirection(plain), throw=False)
    for operator, b in (
        (PoissonGrid((12, 12), solid=disk()), jnp.ones(144)),
        (PoissonGrid((4, 4), boundary="solid"), jnp.ones(16)),
        (tagged(-np.eye(9)), jnp.ones(9)),
    ):
        answer = solve(operator, b)
        assert answer.result == lx.RESULTS.breakdown and jnp.all(jnp.isfinite(answer.value))


def test_zero_is_the_solution_for_zero_and_a_guess_is_taken():
    operator, b = system()
    solver = DeepConjugateDirection(plain, 1e-8)
    nothing = lx.linear_solve(operator, 0 * b, solver)
    assert not jnp.any(nothing.value) and nothing.stats["num_steps"] == 0
    solution = lx.linear_solve(operator, b, DeepConjugateDirection(plain, 1e-12)).value
    assert lx.linear_solve(operator, b, solver, options={"y0": solution}).stats["num_steps"] == 0


def test_a_network_that_is_asked_for_its_matrix_says_who_takes_it(as_a_user):
    operator = NetworkPreconditioner(plain).of(PoissonGrid((4, 4)))
    with pytest.raises(om.core.errors.ArgumentError, match="FlexibleCG"):
        operator.as_matrix()
