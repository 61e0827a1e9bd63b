"""Methods for quadratic programs: known answers, certificates, batches, and derivatives with respect to every array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import ADMM, QuadraticInteriorPoint, QuadraticProgram

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`

METHODS = {"admm": ADMM(tolerance=1e-10), "interior": QuadraticInteriorPoint(tolerance=1e-9)}
N, M, K = 6, 2, 5


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def draw(key):
    """A strongly convex program that has a feasible point by construction."""
    keys = jax.random.split(key, 6)
    factor = jax.random.normal(keys[0], (N, N))
    A, G = jax.random.normal(keys[1], (M, N)), jax.random.normal(keys[2], (K, N))
    inside = jax.random.uniform(keys[3], (N,), minval=-0.5, maxval=0.5)
    h = G @ inside + 0.3 * jax.random.uniform(keys[4], (K,))
    P = factor @ factor.T + 0.1 * jnp.eye(N)
    return P, 2 * jax.random.normal(keys[5], (N,)), A, A @ inside, G, h, -jnp.ones(N), jnp.ones(N)


def program(P, q, A, b, G, h, lower, upper):
    return QuadraticProgram(P, q, A, b, G, h, bounds=(lower, upper))


def run(method, *data, **options):
    return om.solve(program(*data), method, jnp.zeros(data[1].shape[-1]), throw=False, **options)


def batch(count=12):
    return jax.vmap(draw)(jax.random.split(jax.random.key(5), count))


@pytest.mark.parametrize("name", METHODS)
def test_random_programs_are_solved_and_differentiated_in_a_batch(name):
    """KKT residuals of every member, and derivatives in every array along a random direction against differences."""
    data = batch()
    keys = jax.random.split(jax.random.key(6), len(data))
    direction = tuple(jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, data, strict=True))
    direction = (direction[0] + jnp.swapaxes(direction[0], 1, 2), *direction[1:])
    weights = jnp.cos(1.0 + jnp.arange(N))

    @jax.jit
    def everything(data, direction):
        h = 1e-5

        def one(data, direction):
            solution = run(METHODS[name], *data)
            x, pull = jax.vjp(lambda *data: run(METHODS[name], *data).value.primal, *data)
            gradient = pull(weights)
            return solution, x, sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))

        def moved(sign):
            there = [leaf + sign * h * d for leaf, d in zip(data, direction, strict=True)]
            return jax.vmap(lambda *data: run(METHODS[name], *data).value.primal @ weights)(*there)

        numeric = jax.lax.map(moved, jnp.array([1.0, -1.0]))
        return *jax.vmap(one)(data, direction), (numeric[0] - numeric[1]) / (2 * h)

    solution, _, along, numeric = everything(data, direction)
    assert np.all(np.asarray(solution.result.code) == om.Result.converged.code)
    residual = jax.vmap(lambda value, *data: program(*data).kkt_residual(value).largest)(solution.value, *data)
    assert np.max(residual) <= 1e-7
    np.testing.assert_allclose(along, numeric, rtol=1e-4, atol=1e-5)


EYE = np.eye(2)
HARD = {
    "bounds and rows contradict each other": (
        lambda: QuadraticProgram(EYE, np.ones(2), G=np.ones((1, 2)), h=-np.ones(1), bounds=(0.0, 1.0)), "infeasible",
    ),
    "equalities contradict each other": (
        lambda: QuadraticProgram(EYE, np.ones(2), A=np.ones((2, 2)), b=np.array([0.0, 1.0])), "infeasible",
    ),
    "a linear program without an end": (
        lambda: QuadraticProgram(None, -np.ones(2), G=np.array([[1.0, -1.0]]), h=np.ones(1), bounds=(0.0, None)), "diverged",
    ),
    "flat in one direction": (lambda: QuadraticProgram(np.diag([1.0, 0.0]), np.array([0.0, 1.0]), G=np.eye(2)[:1], h=np.ones(1)), "diverged"),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", HARD)
def test_infeasible_and_unbounded_programs_end_with_a_certificate(case, name):
    make, ending = HARD[case]
    hard = make()
    solution = om.solve(hard, METHODS[name], jnp.zeros(2), throw=False)
    assert str(solution.result) == ending
    proof = solution.state.certificate
    zero = jnp.zeros(2)
    if ending == "diverged":
        ray = proof.primal
        assert np.max(np.abs(hard.P @ ray)) < 1e-5 and hard.q @ ray < -1e-3
        for level in (1.0, 1e3):  # along it, no constraint is ever violated by more than rounding
            assert hard.violation(zero + level * ray) <= 1e-5 * level
    else:
        # The multipliers combine the constraints into 0 <= something negative.
        pull, side = zero, 0.0
        if hard.A is not None:
            pull, side = pull + proof.equality @ hard.A, side + proof.equality @ hard.b
        if hard.G is not None:
            assert np.min(proof.inequality) >= 0
            pull, side = pull + proof.inequality @ hard.G, side + proof.inequality @ hard.h
        if proof.lower is not None:
            pull, side = pull - proof.lower + proof.upper, side - proof.lower @ hard.lower(zero) + proof.upper @ hard.upper(zero)
        assert np.max(np.abs(pull)) < 1e-5 and side < -1e-3
        assert np.all(np.isfinite(solution.value.primal))


@pytest.mark.parametrize("name", METHODS)
def test_an_indefinite_program_that_could_not_be_checked_ends_as_diverged(name):
    solve = lambda P: om.solve(QuadraticProgram(P, jnp.ones(2), bounds=(-1.0, 1.0)), METHODS[name], jnp.zeros(2), throw=False)
    solution = jax.jit(solve)(jnp.diag(jnp.array([1.0, -1.0])))
    assert solution.result == om.Result.diverged and not solution.state.convex


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_program_ends_in_its_vertex(name):
    """max x + 1.2 y, x + 0.3 y <= 1, 0.2 x + y <= 0.8, x, y >= 0."""
    rows, sides = np.array([[1.0, 0.3], [0.2, 1.0]]), np.array([1.0, 0.8])
    linear = QuadraticProgram(None, np.array([-1.0, -1.2]), G=rows, h=sides, bounds=(0.0, None))
    solution = om.solve(linear, METHODS[name], jnp.zeros(2))
    np.testing.assert_allclose(solution.value.primal, np.linalg.solve(rows, sides), atol=1e-6)
    assert linear.kkt_residual(solution.value).largest < 1e-6


def test_a_warm_start_at_the_solution_needs_one_step():
    data = [leaf[0] for leaf in batch(1)]
    slow = ADMM(polish=0, tolerance=1e-7)
    cold = om.solve(program(*data), slow, jnp.zeros(N))
    warm = om.solve(program(*data), slow, cold.value)
    assert int(warm.steps) <= 1 < int(cold.steps)


def test_fixed_variables_and_redundant_equalities_are_no_obstacle():
    fixed = QuadraticProgram(
        EYE, np.ones(2), A=np.ones((2, 2)), b=np.ones(2), bounds=(np.array([0.25, -9.0]), np.array([0.25, 9.0]))
    )
    for method in METHODS.values():
        solution = om.solve(fixed, method, jnp.zeros(2))
        np.testing.assert_allclose(solution.value.primal, [0.25, 0.75], atol=1e-7)
        assert fixed.kkt_residual(solution.value).stationarity < 1e-6


def test_in_single_precision_a_tolerance_out_of_reach_ends_as_stopped():
    with jax.enable_x64(False):
        data = [jnp.asarray(np.asarray(leaf[0], np.float32)) for leaf in jax.vmap(draw)(jax.random.split(jax.random.key(5), 1))]
        solution = om.solve(program(*data), QuadraticInteriorPoint(tolerance=1e-12), jnp.zeros(N))
        assert solution.result == om.Result.stopped
        assert program(*data).kkt_residual(solution.value).largest < 1e-3
