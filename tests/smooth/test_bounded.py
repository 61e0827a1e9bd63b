"""L-BFGS-B and the trust-region method: bounds, multipliers, saddles, and the model that they minimise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.smooth import LBFGSB, TrustRegion
from optimand.smooth.bounded import BoundedProgram
from optimand.smooth.lbfgsb import _LONG, _cauchy, _gram, _minimise_model, _Model, _Products
from optimand.smooth.quadratic_model import factorise, minimise_in_ball, steihaug


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


METHODS = {"lbfgsb": LBFGSB(), "dense": TrustRegion(), "by products": TrustRegion(dense_below=0)}
RNG = np.random.default_rng(3)
FACTOR = RNG.standard_normal((12, 12))
HESSIAN, LINEAR = FACTOR @ FACTOR.T + 0.1 * np.eye(12), 5 * RNG.standard_normal(12)


def quadratic(x):
    return 0.5 * x @ (HESSIAN @ x) - LINEAR @ x


@pytest.mark.parametrize("name", METHODS)
def test_bounded_problems_have_the_solutions_of_scipy_and_their_multipliers(name):
    lower = np.where(np.arange(12) % 3 == 0, -np.inf, -0.2)  # both kinds of sides, and none
    upper = np.where(np.arange(12) % 4 == 1, np.inf, 0.9)
    for fn in (rosenbrock, quadratic):
        both = jax.jit(jax.value_and_grad(fn))
        theirs = scipy.optimize.minimize(
            lambda x, both=both: tuple(np.asarray(part) for part in both(x)), np.full(12, 0.3), jac=True,
            method="L-BFGS-B", bounds=list(zip(lower, upper, strict=True)), options={"ftol": 1e-15, "gtol": 1e-9},
        )  # fmt: skip
        problem = om.Constrained(fn, bounds=(lower, upper))
        solution = om.solve(problem, METHODS[name], jnp.full(12, 0.3))
        value = solution.value
        assert solution.result == om.Result.converged
        np.testing.assert_allclose(value.primal, theirs.x, atol=1e-5)
        assert problem.kkt_residual(value).largest <= 1e-6
        assert np.max(value.lower) + np.max(value.upper) > 0.1  # bounds are active
        np.testing.assert_array_equal(value.lower[np.isinf(lower)], 0)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_minimum_the_solve_diverges(name):
    problem = om.Constrained(lambda x: -jnp.sum(x**2) + x[0], bounds=(None, 5.0))
    assert om.solve(problem, METHODS[name], -jnp.ones(3), throw=False).result == om.Result.diverged


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", METHODS)
def test_a_linear_objective_diverges_soon(name, dtype):
    """It has no curvature to learn from."""
    found = om.solve(om.Minimize(lambda x: x[0] - 2 * x[1]), METHODS[name], jnp.full(2, 0.1, dtype), throw=False)
    assert found.result == om.Result.diverged and found.steps < 50


@pytest.mark.parametrize("name", ["dense", "by products"])
@pytest.mark.parametrize("bounds", [None, (-2.0, 0.5)], ids=["free", "bounded"])
def test_the_trust_region_leaves_a_saddle(name, bounds):
    double_well = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + 0.5 * jnp.sum(jnp.arange(1, x.size) * x[1:] ** 2)
    problem = om.Minimize(double_well) if bounds is None else om.Constrained(double_well, bounds=bounds)
    guess = [0.0, 0.3, -0.2] if name == "dense" else [1e-3, 0.3, -0.2]
    solution = om.solve(problem, METHODS[name], jnp.array(guess))
    x = solution.value if bounds is None else solution.value.primal
    np.testing.assert_allclose(jnp.abs(x[0]), 1.0 if bounds is None or x[0] < 0 else 0.5, atol=1e-6)


def test_units_that_hide_the_least_eigenvalue_do_not_slow_the_trust_region():
    """An amplitude of 1e4 and a rate of 1e-4: unscaled, rounding takes the smaller eigenvalue away, and it creeps (71 steps, not 19)."""
    times = jnp.linspace(0, 2e4, 20)
    data = 1e4 * jnp.exp(-1e-4 * times) + 30 * jnp.sin(jnp.arange(20.0))
    fit = om.Minimize(lambda b: jnp.sum((b[0] * jnp.exp(-b[1] * times) - data) ** 2))
    solution = om.solve(fit, TrustRegion(), jnp.array([5e3, 3e-4]), throw=False)
    assert solution.steps <= 40
    gradient = jax.grad(fit.fn)(solution.value) * solution.value
    assert jnp.max(jnp.abs(gradient)) <= 1e-10 * jnp.sum(data**2)


def test_gains_below_the_rounding_of_the_objective_do_not_end_the_trust_region():
    solution = om.solve(om.Minimize(lambda x: 1e9 + jnp.sum((x - 1) ** 4)), TrustRegion(), jnp.array([3.0, -1.0, 2.0]))
    assert solution.result == om.Result.converged


def test_nan_in_the_domain_is_stepped_back_from():
    problem = om.Constrained(lambda x: jnp.sum(x - jnp.log(x)) + x[0] ** 2, bounds=(-1.0, 4.0))  # NaN below zero
    for method in METHODS.values():
        solution = om.solve(problem, method, jnp.array([3.9, 0.01, 2.0]))
        assert solution.result == om.Result.converged
        np.testing.assert_allclose(solution.value.primal, [0.5, 1.0, 1.0], atol=1e-6)


@pytest.mark.thorough
def test_the_cauchy_point_is_a_minimiser_of_the_model_on_the_projected_path_and_then_the_face_is_minimised():
    solution = om.solve(om.Minimize(quadratic), LBFGSB(memory=4), jnp.zeros(12), budget=om.Budget(steps=9))
    state = solution.state
    age = (state.slot - 1 - jnp.arange(4)) % 4
    model = _Model.of(state.pairs, state.theta, _Products(state.ss, state.sy, state.yy), age, state.pairs_kept)
    wide = jnp.concatenate([state.pairs[4:], state.theta * state.pairs[:4]])
    hessian = state.theta * np.eye(12) - wide.T @ model.middle @ wide
    newest = (state.slot - 1) % 4
    np.testing.assert_allclose(hessian @ state.pairs[newest], state.pairs[4 + newest], rtol=1e-6)  # its secant equation
    assert np.linalg.eigvalsh(hessian)[0] > 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, g = jnp.asarray(rng.uniform(0, 1, 12)), jnp.asarray(rng.standard_normal(12) * 10.0 ** rng.uniform(-2, 2))
        program = BoundedProgram(om.Minimize(quadratic), x, jnp.zeros(12), jnp.ones(12))
        t, _, _ = _cauchy(program.room(x, -g), g, model)
        moves = np.clip(x - t * np.array([0.999, 1.0, 1.001])[:, None] * g, 0, 1) - x
        values = moves @ g + 0.5 * np.einsum("ti,ij,tj->t", moves, hessian, moves)
        assert values[1] <= 0.01 * moves[1] @ g < 0
        before, beyond = np.diff(values) / (1e-3 * t)
        assert before <= 1e-3 * np.sum(g**2) and beyond >= -0.03 * np.sum(g**2)
        target, free, _ = _minimise_model(program, x, g, model)
        face = np.flatnonzero(free)
        cauchy = np.clip(x - t * g, 0, 1)
        reduced = g + hessian @ (cauchy - x)
        newton = cauchy[face] - np.linalg.solve(hessian[np.ix_(face, face)], reduced[face])
        if (target - x)[face] @ g[face] < 0 and len(face):
            np.testing.assert_allclose(target[face], np.clip(newton, 0, 1), atol=1e-7)


@pytest.mark.parametrize("kind", ["definite", "indefinite", "hard"])
def test_the_step_minimises_the_model_in_the_ball(kind):
    values = np.array([1.0, 2.0, 5.0, 7.0]) if kind == "definite" else np.array([-2.0, -0.5, 1.0, 3.0])
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    hessian = jnp.asarray(basis @ np.diag(values) @ basis.T)
    residual = jnp.asarray(basis @ np.array([0.0 if kind == "hard" else 0.7, 1.0, -0.3, 0.2]))
    model = lambda w: w @ residual + 0.5 * np.einsum("...i,ij,...j->...", w, hessian, w)
    points = np.random.default_rng(1).standard_normal((200_000, 4))
    points /= np.maximum(1, np.linalg.norm(points, axis=1))[:, None]
    for radius in (0.05, 1.0, 20.0):
        w, positive = minimise_in_ball(factorise(hessian, residual, jnp.ones(4), jnp.asarray(radius)), jnp.asarray(radius))
        assert jnp.linalg.norm(w) <= 1.02 * radius
        assert model(w) <= np.min(model(radius * points)) * 0.99
        assert positive == (kind == "definite")
        w, _, products = steihaug(lambda v: hessian @ v, residual, jnp.ones(4), jnp.asarray(radius), 4)
        assert jnp.linalg.norm(w) <= 1.001 * radius and products <= 4
        assert model(w) <= model(-residual * min(radius / jnp.linalg.norm(residual), 0.1))


def test_a_pytree_with_bounds_on_one_side_keeps_its_structure():
    problem = om.Constrained(
        lambda x: jnp.sum((x["a"] - 1) ** 2) + jnp.sum((x["b"] + 1) ** 2), bounds=({"a": -jnp.inf, "b": 0.0}, None)
    )
    for method in (LBFGSB(), TrustRegion()):
        value = om.solve(problem, method, {"a": jnp.zeros((2, 2)), "b": jnp.ones(3)}).value
        np.testing.assert_allclose(value.primal["a"], 1.0, atol=1e-6)
        np.testing.assert_allclose(value.lower["b"], 2.0, atol=1e-6)
        assert value.upper is None


def test_a_guess_outside_the_bounds_is_moved_to_them_and_fixed_entries_stay():
    problem = om.Constrained(quadratic, bounds=(np.r_[0.3, np.zeros(11)], np.r_[0.3, np.ones(11)]))
    for method in (LBFGSB(), TrustRegion()):
        solution = om.solve(problem, method, jnp.full(12, 7.0))
        assert solution.result == om.Result.converged and solution.value.primal[0] == 0.3
        assert problem.kkt_residual(solution.value).largest <= 1e-6


@pytest.mark.parametrize("method", [LBFGSB, TrustRegion])
def test_bad_input_is_named(method):
    for argument in ("equalities", "inequalities"):
        with pytest.raises(om.errors.ArgumentError, match=argument):
            om.solve(om.Constrained(jnp.sum, **{argument: lambda x: x[:1]}), method(), jnp.ones(2))
    with pytest.raises(om.errors.ArgumentError, match="cross"):
        om.solve(om.Constrained(jnp.sum, bounds=(1.0, 0.0)), method(), jnp.ones(2))
    with pytest.raises(om.errors.ArgumentError, match="batches"):
        batches = om.Fit(lambda w, row: jnp.sum((w - row) ** 2), jnp.zeros(2), jnp.ones((8, 2)), batch_size=2)
        om.solve(batches, method(), key=jax.random.key(0))
    with pytest.raises(om.errors.ArgumentError, match="tolerance"):
        method(tolerance=-1.0)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LBFGSB(memory=0), "memory"),
        (lambda: LBFGSB(line_search="wolfe"), "line_search"),
        (lambda: TrustRegion(radius=0.0), "radius"),
        (lambda: TrustRegion(acceptance=0.5), "acceptance"),
        (lambda: TrustRegion(max_products=0), "max_products"),
    ],
)
def test_an_argument_out_of_its_range_is_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()


def test_units_that_are_far_apart_do_not_blur_the_model_of_lbfgsb():
    """Two parameters whose curvatures are 1e10 apart (the exponential fit of NIST's Misra1a): it crept, and spent three thousand steps."""
    at = jnp.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0])
    data = jnp.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78])
    fit = lambda b: jnp.sum((b[0] * (1 - jnp.exp(-b[1] * at)) - data) ** 2)
    solution = om.solve(om.Minimize(fit), LBFGSB(tolerance=1e-3), jnp.array([500.0, 1e-4]))
    assert solution.result == om.Result.converged and solution.steps <= 120
    np.testing.assert_allclose(solution.value, [238.94212918, 5.5015643181e-4], rtol=1e-6)
    bounded = om.Constrained(fit, bounds=(jnp.array([0.0, 0.0]), jnp.array([230.0, 1.0])))
    value = om.solve(bounded, LBFGSB(tolerance=1e-3), jnp.array([200.0, 1e-4])).value
    np.testing.assert_allclose(value.primal[0], 230.0)
    assert bounded.kkt_residual(value).largest <= 1e-3


def test_products_of_very_long_pairs_are_summed_in_blocks():
    rows = jax.random.normal(jax.random.key(0), (4, _LONG + 3))
    weights = (jnp.arange(rows.shape[1]) % 3).astype(rows.dtype)
    np.testing.assert_allclose(_gram(rows, weights), (rows * weights) @ rows.T, rtol=1e-10, atol=1e-8)
