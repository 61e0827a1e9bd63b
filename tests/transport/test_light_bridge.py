"""The bridge with a mixture as potential: its closed forms against quadrature, autodiff and simulation, and exact cases of the fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, Case
from optimand.transport import (
    EntropicBridge,
    LightSB,
    LightSBFit,
    MixtureBenchmark,
    bures_wasserstein,
    bw_uvp,
    cbw_uvp,
    energy_distance,
    gaussian_plan,
)
from optimand.transport.bures import moments
from optimand.transport.light_sb import Mixture


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bridge(d=3, components=4, full=True, epsilon=0.7, scale=1.3, seed=0):
    """A bridge with random parameters."""
    rng = np.random.default_rng(seed)
    mixture = Mixture(
        jnp.asarray(rng.normal(size=components)),
        jnp.asarray(rng.normal(size=(components, d))),
        jnp.asarray(0.5 * rng.normal(size=(components, d))),
        jnp.asarray(rng.normal(size=(components, d, d))) if full else None,
    )
    return LightSB(mixture, jnp.asarray(epsilon), jnp.asarray(rng.normal(size=d)), jnp.asarray(scale))


def matrices(model):
    """a_k, r_k and S_k as the paper has them, of a model with origin zero and scale one."""
    axes = model.mixture.axes()
    axes = jnp.broadcast_to(jnp.eye(model.dimension), (model.components, model.dimension, model.dimension)) if axes is None else axes
    s = jnp.einsum("kij,kj,klj->kil", axes, jnp.exp(model.mixture.log_spread), axes)
    return jnp.exp(model.mixture.heights / model.epsilon), model.mixture.centres, s


def plain(**options):
    model = bridge(scale=1.0, **options)
    return eqx.tree_at(lambda m: m.origin, model, jnp.zeros(model.dimension))


def line(points=20_001, width=40.0):
    y = jnp.linspace(-width, width, points)
    return y[:, None], y[1] - y[0]


def test_the_normaliser_is_the_integral_of_the_potential():
    model = plain(d=1)
    y, step = line()
    for x in (-1.3, 0.2, 2.0):
        integral = jnp.sum(jnp.exp(x * y[:, 0] / model.epsilon + model.log_potential(y))) * step
        np.testing.assert_allclose(model.log_normaliser(jnp.array([x])), jnp.log(integral), atol=1e-8)


def test_the_potential_is_the_mixture():
    model = plain()
    a, r, s = matrices(model)
    y = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
    density = jax.vmap(lambda y: jnp.sum(a * jax.vmap(lambda r, s: jax.scipy.stats.multivariate_normal.pdf(y, r, model.epsilon * s))(r, s)))(y)
    np.testing.assert_allclose(jnp.exp(model.log_potential(y)), density, rtol=1e-10)


def test_the_plan_is_a_density_with_the_moments_it_says():
    model = bridge(d=1)
    y, step = line()
    x = jnp.array([[0.4], [-2.0]])
    density = jnp.exp(model.log_plan(x[:, None, :], y[None]))
    np.testing.assert_allclose(jnp.sum(density, 1) * step, 1, atol=1e-9)
    mean, covariance = model.conditional_moments(x)
    integral = jnp.sum(density * y[:, 0], 1) * step
    np.testing.assert_allclose(mean[:, 0], integral, atol=1e-9)
    np.testing.assert_allclose(covariance[:, 0, 0], jnp.sum(density * (y[:, 0] - integral[:, None]) ** 2, 1) * step, atol=1e-9)


@pytest.mark.parametrize("full", [False, True])
def test_samples_have_the_moments_of_the_plan(full):
    model = bridge(full=full)
    x = jnp.array([0.5, -0.3, 0.8])
    mean, covariance = model.conditional_moments(x)
    drawn, spread = moments(model.sample(jnp.broadcast_to(x, (200_000, 3)), jax.random.key(0)))
    np.testing.assert_allclose(drawn, mean, atol=0.015)
    np.testing.assert_allclose(spread, covariance, atol=0.03)


def test_scale_and_origin_are_a_change_of_units():
    model = bridge()
    same = LightSB(model.mixture, model.epsilon / model.scale**2, jnp.zeros(3), jnp.asarray(1.0))
    x, y = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 3)))
    inner = lambda points: (points - model.origin) / model.scale
    np.testing.assert_allclose(model.log_plan(x, y), same.log_plan(inner(x), inner(y)) - 3 * jnp.log(model.scale), atol=1e-10)
    np.testing.assert_allclose(model.drift(x, 0.3), model.scale * same.drift(inner(x), 0.3), atol=1e-10)
    mean, covariance = same.conditional_moments(inner(x))
    np.testing.assert_allclose(model.conditional_moments(x)[0], model.origin + model.scale * mean, atol=1e-10)
    np.testing.assert_allclose(model.conditional_moments(x)[1], model.scale**2 * covariance, atol=1e-10)
    key = jax.random.key(0)
    np.testing.assert_allclose(model.sample(x, key), model.origin + model.scale * same.sample(inner(x), key), atol=1e-10)


def papers_drift(model, x, t):
    """-x / (1 - t) + epsilon grad log sum exp l_k, with A_k and c_k of the paper."""
    a, r, s = matrices(model)
    inverse, epsilon = jnp.linalg.inv(s), model.epsilon

    def log_sum(x):
        big = t / (epsilon * (1 - t)) * jnp.eye(x.size) + inverse / epsilon
        c = x / (epsilon * (1 - t)) + jnp.einsum("kij,kj->ki", inverse, r) / epsilon
        determinants = jnp.linalg.slogdet(s)[1] + jnp.linalg.slogdet(big)[1]
        squares = jnp.einsum("ki,ki->k", c, jnp.linalg.solve(big, c[..., None])[..., 0]) - jnp.einsum("ki,kij,kj->k", r, inverse, r) / epsilon
        return jax.nn.logsumexp(jnp.log(a) - determinants / 2 + squares / 2)

    return -x / (1 - t) + epsilon * jax.grad(log_sum)(x)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.999])
def test_the_drift_is_that_of_the_paper(full, t):
    model = plain(full=full)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)))
    np.testing.assert_allclose(model.drift(x, t), jax.vmap(lambda x: papers_drift(model, x, t))(x), atol=1e-6)


def test_the_drift_with_one_component_is_linear_and_takes_a_time_for_each_point():
    model = plain(components=1)
    x = jnp.asarray(np.random.default_rng(4).normal(size=(5, 3)))
    at = lambda x: model.drift(x, 0.4)
    np.testing.assert_allclose(at(x[0] + 2 * x[1]) + 2 * at(jnp.zeros(3)), at(x[0]) + 2 * at(x[1]), atol=1e-12)
    times = jnp.array([0.0, 0.1, 0.5, 0.8, 0.99])
    np.testing.assert_allclose(model.drift(x, times), jnp.stack([model.drift(one, t) for one, t in zip(x, times, strict=True)]), atol=1e-12)


@pytest.mark.thorough
def test_diagonal_and_full_are_the_same_without_turning():
    diagonal = bridge(full=False)
    full = eqx.tree_at(lambda m: m.mixture.turn, diagonal, jnp.zeros((4, 3, 3)), is_leaf=lambda leaf: leaf is None)
    x, y = jnp.asarray(np.random.default_rng(5).normal(size=(2, 6, 3)))
    key = jax.random.key(1)
    for of in (lambda m: m.log_plan(x, y), lambda m: m.drift(x, 0.7), lambda m: m.sample(x, key), lambda m: m.sample_at(x, 0.2, key)):
        np.testing.assert_allclose(of(full), of(diagonal), atol=1e-12)
    for one, other in zip(full.conditional_moments(x), diagonal.conditional_moments(x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    problem = EntropicBridge(x, y, 0.5)
    of_loss = jax.grad(lambda mixture: problem.relative_entropy(mixture, x, y)[0])
    for name in ("heights", "centres", "log_spread"):
        np.testing.assert_allclose(getattr(of_loss(full.mixture), name), getattr(of_loss(diagonal.mixture), name), atol=1e-12)


def test_axes_are_a_rotation():
    axes = bridge().mixture.axes()
    np.testing.assert_allclose(axes @ jnp.swapaxes(axes, -1, -2), jnp.broadcast_to(jnp.eye(3), (4, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(jnp.linalg.det(axes), 1, atol=1e-12)


def test_paths_have_the_marginals_that_are_drawn_directly():
    model = bridge(d=2)
    x = jax.random.normal(jax.random.key(0), (3000, 2))
    times, path = model.paths(x, jax.random.key(1), steps=100)
    assert path.shape == (101, 3000, 2) and times[-1] == 1
    np.testing.assert_array_equal(path[0], x)
    for at in (30, 80):
        assert abs(energy_distance(path[at], model.sample_at(x, times[at], jax.random.key(2)))) < 0.01
    assert abs(energy_distance(path[-1], model.sample(x, jax.random.key(3)))) < 0.01
    np.testing.assert_allclose(model.sample_at(x, 0.0, jax.random.key(4)), x, atol=1e-12)


# The fit, where the answer is known.


def gaussians(n=4000, turned=False):
    """Samples whose moments are what they should be, and the bridge between Gaussians with these."""
    rng = np.random.default_rng(6)
    white = [rng.normal(size=(n, 2)) for _ in range(2)]
    white = [(w - w.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(w.T))).T for w in white]
    axes = np.array([[0.8, -0.6], [0.6, 0.8]]) if turned else np.eye(2)
    x0, x1 = white[0] * [1.0, 1.5] @ axes.T, white[1] * [0.6, 2.0] @ axes.T + [1.0, -2.0]
    return x0, x1, gaussian_plan(*moments(x0), *moments(x1), 0.5)


@pytest.mark.parametrize("turned", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_one_component_between_gaussians_is_the_exact_bridge(turned):
    x0, x1, (matrix, vector, covariance) = gaussians(turned=turned)
    problem = EntropicBridge(x0, x1, 0.5)
    method = LightSBFit(components=1, covariance="full" if turned else "diag", learning_rate=3e-2, batch=512)
    found = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=300))
    assert found.result == om.Result.budget_spent
    finished = om.solve(problem, om.smooth.LBFGS(tolerance=1e-7), found.value, budget=om.Budget(steps=200))
    for solution, near in ((found, 0.15), (finished, 1e-2)):
        model = solution.value
        np.testing.assert_allclose(model.conditional_moments(jnp.zeros(2))[0], vector, atol=near)
        np.testing.assert_allclose(jax.jacobian(lambda x, model=model: model.conditional_moments(x)[0])(jnp.ones(2)), matrix, atol=near)
        np.testing.assert_allclose(model.conditional_moments(jnp.ones(2))[1], covariance, atol=near)
    least = gaussian_loss(problem, matrix, vector)
    np.testing.assert_allclose(problem.value(finished.value), least, atol=1e-6)
    assert problem.value(found.value) >= least


def gaussian_loss(problem, matrix, vector):
    """L of one Gaussian with S = matrix, about the origin of the problem: from the moments of the samples."""
    epsilon, o = problem.epsilon, problem.origin
    (m0, c0), (m1, c1) = ((mean - o, c * (len(x) - 1) / len(x)) for x in (problem.x0, problem.x1) for mean, c in (moments(x),))
    r = vector + matrix @ o - o
    log_c = (jnp.trace(matrix @ (c0 + jnp.outer(m0, m0))) + 2 * r @ m0) / (2 * epsilon)
    inverse = jnp.linalg.inv(matrix)
    gap = m1 - r
    log_v = -(jnp.trace(inverse @ c1) + gap @ inverse @ gap) / (2 * epsilon) - jnp.linalg.slogdet(2 * jnp.pi * epsilon * matrix)[1] / 2
    return log_c - log_v


def test_the_plan_of_gaussians_has_both_marginals():
    _, x1, (matrix, vector, covariance) = gaussians(turned=True)
    mean, spread = moments(x1)
    x0 = gaussians(turned=True)[0]
    np.testing.assert_allclose(matrix @ moments(x0)[0] + vector, mean, atol=1e-12)
    np.testing.assert_allclose(matrix @ moments(x0)[1] @ matrix.T + covariance, spread, atol=1e-12)
    np.testing.assert_allclose(covariance, 0.5 * matrix, atol=1e-12)  # epsilon S, where A = S


@pytest.mark.thorough
def test_turning_both_ends_turns_the_plan():
    """At the minimum: Adam, which treats coordinates apart, gets there on another way."""
    rng = np.random.default_rng(7)
    x0, x1 = rng.normal(size=(400, 2)), np.concatenate([rng.normal(size=(200, 2)) * [0.3, 0.9] + 2, rng.normal(size=(200, 2)) - 2])
    axes = np.array([[0.6, -0.8], [0.8, 0.6]])

    def fitted(x0, x1):
        problem, method = EntropicBridge(x0, x1, 1.0), LightSBFit(components=2, covariance="full", learning_rate=3e-2, batch=400)
        found = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=400))
        return om.solve(problem, om.smooth.LBFGS(tolerance=1e-7), found.value, budget=om.Budget(steps=500)).value

    mean, covariance = fitted(x0, x1).conditional_moments(x0[:20])
    turned_mean, turned_covariance = fitted(x0 @ axes.T, x1 @ axes.T).conditional_moments(x0[:20] @ axes.T)
    np.testing.assert_allclose(turned_mean, mean @ axes.T, atol=1e-4)
    np.testing.assert_allclose(turned_covariance, axes @ covariance @ axes.T, atol=1e-4)


def test_the_gradient_is_that_of_the_loss():
    problem = EntropicBridge(*np.random.default_rng(8).normal(size=(2, 30, 3)), 0.7)
    mixture = bridge().mixture
    loss = jax.jit(lambda mixture: problem.relative_entropy(mixture, problem.x0, problem.x1)[0])
    gradient = jax.jit(jax.grad(loss))(mixture)
    for seed in range(3):
        toward = jax.tree.map(lambda leaf, seed=seed: jnp.asarray(np.random.default_rng(seed).normal(size=leaf.shape)), mixture)
        moved = [loss(jax.tree.map(lambda leaf, to, h=h: leaf + h * to, mixture, toward)) for h in (1e-5, -1e-5)]
        along = sum(jnp.vdot(g, to) for g, to in zip(jax.tree.leaves(gradient), jax.tree.leaves(toward), strict=True))
        np.testing.assert_allclose(along, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)


def test_a_batch_estimates_the_loss_without_bias():
    rng = np.random.default_rng(9)
    problem, model = EntropicBridge(*rng.normal(size=(2, 200, 3)), 0.7), bridge()
    batches = jax.vmap(lambda key: problem.relative_entropy(model.mixture, *problem.batch(key, 50))[0])(jax.random.split(jax.random.key(0), 4000))
    error = jnp.std(batches) / 4000**0.5
    assert abs(jnp.mean(batches) - problem.value(model)) < 4 * error


def benchmark_pair(n=20_000, **options):
    truth = MixtureBenchmark.random(jax.random.key(3), **options)
    return truth, truth.sample_start(jax.random.key(4), n), truth.sample_end(jax.random.key(5), n)


@pytest.mark.parametrize("source", ["arrays", pytest.param("samplers", marks=pytest.mark.thorough)])
def test_the_exact_plan_is_found(source):
    truth, x0, x1 = benchmark_pair(dimension=2, epsilon=1.0)
    if source == "samplers":
        problem = EntropicBridge(lambda key: jax.random.normal(key, (2,)), lambda key: truth.sample_end(key, 1)[0], 1.0)
    else:
        problem = EntropicBridge(x0, x1, 1.0)
    solution = om.solve(problem, LightSBFit(components=12), key=jax.random.key(0), budget=om.Budget(steps=600))
    test, variance = x0[:200], jnp.trace(jnp.cov(x1.T))
    measured = cbw_uvp(solution.value.conditional_moments(test), truth.conditional_moments(test), variance)
    independent = jnp.broadcast_to(jnp.mean(x1, 0), test.shape), jnp.broadcast_to(jnp.cov(x1.T), (200, 2, 2))
    assert measured < 0.5 and cbw_uvp(independent, truth.conditional_moments(test), variance) > 50
    assert bw_uvp(solution.value.sample(x0, jax.random.key(1)), x1) < 0.3
    assert 1 < solution.history["components"][-1] <= 12 and 1 < solution.value.effective_components(test) <= 12


@pytest.mark.parametrize("epsilon", [0.002, pytest.param(0.1, marks=pytest.mark.thorough)])
def test_single_precision_at_small_epsilons(epsilon):
    x0, x1 = np.random.default_rng(10).normal(size=(2, 300, 2)).astype(np.float32)
    angle = 3 * np.pi / 2 * (1 + 2 * (x1[:, 0] > 0) * np.abs(np.tanh(x1[:, 0])))
    x1 = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1).astype(np.float32) / np.float32(7.5)
    problem = EntropicBridge(x0, x1, epsilon)
    solution = om.solve(problem, LightSBFit(components=40, learning_rate=1e-3), key=jax.random.key(0), budget=om.Budget(steps=100))
    model = solution.value
    assert model.log_potential(x1).dtype == jnp.float32
    for array in (*jax.tree.leaves(model), model.log_plan(x0, x1), model.drift(x0, 0.999), model.sample(x0, jax.random.key(0))):
        assert jnp.all(jnp.isfinite(array))


# The benchmark and the metrics.


def test_the_exact_plan_is_what_the_potential_says():
    truth = MixtureBenchmark([0.3, 0.7], [[1.0], [-2.0]], [[[0.5]], [[1.5]]], 0.4)
    y, step = line(width=20.0)
    x = jnp.array([[0.3], [-1.0]])
    potential = sum(w * jax.scipy.stats.norm.pdf(y[:, 0], m, s**0.5) for w, m, s in ((0.3, 1.0, 0.5), (0.7, -2.0, 1.5)))
    density = potential * jnp.exp(-((x - y[:, 0]) ** 2) / 0.8)
    density = density / (jnp.sum(density, 1, keepdims=True) * step)
    mean, covariance = truth.conditional_moments(x)
    wanted = jnp.sum(density * y[:, 0], 1) * step
    np.testing.assert_allclose(mean[:, 0], wanted, atol=1e-10)
    np.testing.assert_allclose(covariance[:, 0, 0], jnp.sum(density * (y[:, 0] - wanted[:, None]) ** 2, 1) * step, atol=1e-10)
    drawn = truth.sample(jnp.broadcast_to(x[:1], (100_000, 1)), jax.random.key(0))
    np.testing.assert_allclose(jnp.mean(drawn), mean[0, 0], atol=0.01)
    np.testing.assert_allclose(jnp.var(drawn), covariance[0, 0, 0], atol=0.02)


def test_the_random_benchmark_is_that_of_the_paper():
    flat, deep = (MixtureBenchmark.random(jax.random.key(0), d, 1.0) for d in (2, 7))
    np.testing.assert_allclose(jnp.linalg.norm(flat.means, axis=1), 5, atol=1e-12)
    assert deep.means.shape == (5, 7) and jnp.all(jnp.abs(deep.means) <= 5)
    values = jnp.linalg.eigvalsh(deep.covariances)
    assert jnp.all((values > 0.5) & (values < 1))


def test_distances_between_gaussians():
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=(2, 3, 3))
    a, b = a @ a.T, b @ b.T
    m, n = rng.normal(size=(2, 3))
    same = bures_wasserstein(m, a, m, a)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    np.testing.assert_allclose(bures_wasserstein(m, a, n, b), bures_wasserstein(n, b, m, a), atol=1e-10)
    apart = bures_wasserstein(m, np.diag([1.0, 4.0, 9.0]), n, np.diag([4.0, 4.0, 0.0]))
    np.testing.assert_allclose(apart, (np.sum((m - n) ** 2) + 1 + 0 + 9) / 2, atol=1e-12)
    points = rng.normal(size=(50, 3))
    np.testing.assert_allclose(bw_uvp(points, points), 0, atol=1e-12)
    np.testing.assert_allclose(bw_uvp(points + [1.0, 0, 0], points), 100 / np.trace(np.cov(points.T)), rtol=1e-10)


def test_the_energy_distance_is_the_sum_over_all_pairs():
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(23, 3)), rng.normal(size=(31, 3)) + 0.5
    mean = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
    wanted = mean(x, y).mean() - mean(x, x).sum() / (2 * 23 * 22) - mean(y, y).sum() / (2 * 31 * 30)
    np.testing.assert_allclose(energy_distance(x, y, block=8), wanted, atol=1e-12)


# How it is driven.


def moving(theta):
    rng = np.random.default_rng(13)
    x0 = jnp.asarray(rng.normal(size=(40, 2)), theta.dtype)
    return EntropicBridge(x0, 0.5 * x0[::-1] + theta[:2], 0.5)


@pytest.mark.thorough
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("covariance", [pytest.param("full", marks=pytest.mark.thorough), "diag"])
def test_conforms(check, covariance):
    method = LightSBFit(components=3, batch=16, covariance=covariance)
    check(Case(method, moving, jnp.array([0.5, -0.25]), None, key=jax.random.key(0), steps=20, converges=False))


def test_it_ends_when_the_loss_no_longer_falls():
    problem = EntropicBridge(*np.random.default_rng(14).normal(size=(2, 500, 2)), 1.0)
    method = LightSBFit(components=2, learning_rate=3e-2, patience=100, memory=50.0)
    solution = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=20_000))
    assert solution.result == om.Result.converged and 100 < solution.steps < 20_000


def test_an_interrupted_fit_keeps_its_last_parameters():
    problem = EntropicBridge(*np.random.default_rng(15).normal(size=(2, 100, 2)), 1.0)
    method = LightSBFit(components=3)
    stop = lambda event: event.step >= 40
    solution = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=100_000), callbacks=[stop])
    again = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=int(solution.steps)))
    assert solution.result == om.Result.stopped
    np.testing.assert_array_equal(solution.value.mixture.centres, again.value.mixture.centres)


def test_a_guess_brings_its_components_and_another_epsilon_is_fitted_anew():
    problem = EntropicBridge(*np.random.default_rng(16).normal(size=(2, 200, 2)), 1.0)
    coarse = om.solve(problem, LightSBFit(components=4), key=jax.random.key(0), budget=om.Budget(steps=200)).value
    sharper = EntropicBridge(problem.x0, problem.x1, 0.3)
    guess = coarse.with_epsilon(0.3)
    fitted = om.solve(sharper, LightSBFit(components=9), guess, key=jax.random.key(1), budget=om.Budget(steps=200)).value
    assert fitted.components == 4 and fitted.epsilon == 0.3
    assert sharper.value(fitted) < sharper.value(guess) - 1e-3


def test_components_that_would_collapse_stay_above_the_floor():
    x0 = np.random.default_rng(17).normal(size=(50, 2))
    with pytest.warns(UserWarning, match="column 1"):
        problem = EntropicBridge(x0, x0 * [1.0, 0.0], 0.1)
    flat = jnp.broadcast_to(-problem.origin / problem.scale, (2, 2))  # the best place there is in column 1
    guess = problem.model(Mixture(jnp.zeros(2), flat, jnp.array([[0.0, -11.99]] * 2), None))
    solution = om.solve(problem, LightSBFit(learning_rate=1e-3), guess, key=jax.random.key(0), budget=om.Budget(steps=100))
    spread = solution.value.mixture.log_spread
    assert jnp.all(spread >= -12) and jnp.any(spread == -12)
    assert jnp.all(jnp.isfinite(solution.value.sample(x0, jax.random.key(0))))


def test_more_components_than_samples():
    points = np.random.default_rng(17).normal(size=(2, 50, 2))
    with pytest.warns(UserWarning, match="60 components begin at 50 samples"):
        solution = om.solve(EntropicBridge(*points, 0.1), LightSBFit(components=60), key=jax.random.key(0), budget=om.Budget(steps=3))
    assert solution.value.components == 60 and jnp.all(jnp.isfinite(solution.value.mixture.centres))


@pytest.mark.parametrize("source", ["arrays", "samplers"])
def test_components_that_begin_apart_find_a_rare_mode(source):
    rng = np.random.default_rng(19)
    x1 = rng.normal(size=(1000, 2)) + np.where(np.arange(1000) < 3, 50.0, 0.0)[:, None]
    begin = (lambda key: jax.random.choice(key, jnp.asarray(x1))) if source == "samplers" else x1
    problem = EntropicBridge(rng.normal(size=(1000, 2)), begin, 1.0)
    for seed in range(5):
        model = om.solve(problem, LightSBFit(components=3, centres="apart"), key=jax.random.key(seed), budget=om.Budget(steps=0)).value
        centres = model.origin + model.scale * model.mixture.centres
        assert jnp.max(centres) > 40
        assert jnp.max(jnp.min(jnp.sum((centres[:, None] - x1) ** 2, -1), 1)) < 1e-12


def test_components_that_begin_apart_where_all_samples_are_the_same():
    points = np.ones((2, 5, 2))
    with pytest.warns(UserWarning, match="column 0"):
        problem = EntropicBridge(*points, 1.0)
    for components in (1, 4):
        method = LightSBFit(components=components, centres="apart")
        model = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=1)).value
        assert model.components == components and jnp.all(jnp.isfinite(model.sample(points[0], jax.random.key(0))))


@pytest.mark.thorough
def test_precision_is_kept():
    for dtype in (jnp.float32, jnp.float64):
        points = jnp.asarray(np.random.default_rng(18).normal(size=(2, 30, 2)), dtype)
        model = om.solve(EntropicBridge(*points, 1.0), LightSBFit(components=2), key=jax.random.key(0), budget=om.Budget(steps=2)).value
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}
        assert model.paths(points[0], jax.random.key(0), steps=3)[1].dtype == model.sample(points[0], jax.random.key(0)).dtype == dtype
