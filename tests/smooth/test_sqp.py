"""Sequential quadratic programming: known answers, and how it ends where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import SQP, QuadraticProgram


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def hock_schittkowski_71():
    return om.Constrained(
        lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equalities=lambda x: x @ x - 40.0, inequalities=lambda x: 25.0 - jnp.prod(x), bounds=(1.0, 5.0),
    )  # fmt: skip


KNOWN = {
    "hs71": (hock_schittkowski_71, [1.0, 5.0, 5.0, 1.0], [1.0, 4.7429996, 3.8211499, 1.3794083]),
    # A local Maratos example: full steps violate the circle and raise the objective.
    "maratos": (
        lambda: om.Constrained(lambda x: 2 * (x @ x - 1) - x[0], equalities=lambda x: x @ x - 1),
        [np.cos(0.8), np.sin(0.8)], [1.0, 0.0],
    ),
    # The Hessian is indefinite, its restriction to the constraint is not.
    "indefinite but for the constraint": (
        lambda: om.Constrained(lambda x: -x[0] * x[1] + 0.01 * x[0] ** 4, equalities=lambda x: x[0] - x[1] ** 2 / 4 - 1),
        [2.0, 2.5], None,
    ),
    # Linearised at the start, the two inequalities contradict each other.
    "elastic at the start": (
        lambda: om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.stack([x[0] ** 2 + 1 - x[1], x[1] - 4.0])),
        [-10.0, 20.0], [-0.5, 1.25],
    ),
    "rows that depend on each other": (
        lambda: om.Constrained(lambda x: jnp.sum((x - 2) ** 2), equalities=lambda x: jnp.array([1.0, 2.0]) * (x @ x - 2)),
        [2.0, 0.5], [1.0, 1.0],
    ),
    "no constraints": (
        lambda: om.Constrained(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2), [-1.2, 1.0], [1.0, 1.0],
    ),
    "a guess outside its bounds, one of them fixed": (
        lambda: om.Constrained(lambda x: jnp.sum((x - 3) ** 2) + x[0] * x[1], bounds=(jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0]))),
        [9.0, -9.0], [2.0, 1.0],
    ),
    # At the start the linearised equalities contradict each other, which takes a large penalty; it would be in the way later on.
    "contradicting equalities at the start": (
        lambda: om.Constrained(
            lambda x: 4 * x[0] ** 2 + 2 * x[1] ** 2 + 2 * x[2] ** 2 - 33 * x[0] + 16 * x[1] - 24 * x[2],
            equalities=lambda x: jnp.stack([3 * x[0] - 2 * x[1] ** 2 - 7, 4 * x[0] - x[2] ** 2 - 11]),
        ),
        [0.0, 0.0, 0.0], None,
    ),
    # Multiplier and slack vanish together, so the point is known to the root of the tolerance only.
    "bounds that hold with no force": (
        lambda: om.Constrained(lambda x: jnp.sum((x - 1) ** 4 + (x - 1) ** 2), bounds=(jnp.array([1.0, -1.0]), jnp.array([4.0, 1.0]))),
        [3.0, -0.5], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_known_answers(case):
    make, guess, answer = KNOWN[case]
    problem = make()
    solution = om.solve(problem, SQP(), jnp.array(guess), budget=om.Budget(steps=100))
    assert solution.result == om.Result.converged
    assert problem.kkt_residual(solution.value).largest < 1e-5
    if answer is not None:
        np.testing.assert_allclose(solution.value.primal, answer, atol=1e-5)


def test_an_approximation_by_exponentials_converges_though_multipliers_and_slacks_vanish_together():
    """The largest error of a sum of two exponentials at 201 points, of which few have a multiplier (OET6 of CUTEst)."""
    t = jnp.linspace(-0.5, 0.5, 201)

    def errors(x):
        gap = 1 / (1 + t) - x[0] * jnp.exp(x[2] * t) - x[1] * jnp.exp(x[3] * t)
        return jnp.concatenate([gap - x[4], -gap - x[4]])

    problem = om.Constrained(lambda x: x[4], inequalities=errors)
    solution = om.solve(problem, SQP(), jnp.array([1.0, 1.0, 1.0, -1.0, 0.0]), budget=om.Budget(steps=60), throw=False)
    assert solution.result == om.Result.converged and problem.kkt_residual(solution.value).largest < 1e-5


def test_the_search_bends_back_to_a_sphere_and_inactive_rows_keep_no_multiplier():
    """Soft maxima of affine functions and wells in a ball: steps along it were cut to a fortieth, and a row with slack kept a multiplier."""
    keys = [jax.random.split(jax.random.split(jax.random.key(2026), 1000)[i], 3) for i in (263, 306, 342, 350)]
    slopes, offsets, tilt = (jnp.stack([jax.random.normal(key[i], shape) for key in keys]) for i, shape in enumerate([(8, 6), (8,), (6,)]))

    def run(slopes, offsets, tilt):
        problem = om.Constrained(
            lambda x: jax.nn.logsumexp(slopes @ x + offsets) + 0.25 * jnp.sum((x**2 - 0.5) ** 2) + 0.5 * tilt @ x,
            equalities=lambda x: jnp.sum(x) - 0.5, inequalities=lambda x: jnp.stack([x @ x - 2, x[0] * x[1] - x[2] - 0.3]), bounds=(-0.8, 1.0),
        )  # fmt: skip
        return om.solve(problem, SQP(tolerance=1e-9), jnp.full(6, 1 / 12), budget=om.Budget(steps=60), throw=False)

    solution = jax.jit(jax.vmap(run))(slopes, offsets, tilt)
    assert np.all(np.asarray(solution.result.code) == om.Result.converged.code)


def test_multipliers_of_the_wrong_size_and_a_far_first_step_are_recovered_from():
    """A truss of areas and displacements with stiffness and load as bilinear equalities: the elastic first step leaves by thousands."""
    stiffness = lambda a: jnp.array([[a[0] + 0.4 * a[2], 0.4 * a[2]], [0.4 * a[2], a[1] + 0.4 * a[2]]])
    problem = om.Constrained(
        lambda x: x[2] + x[3] + 1.4 * x[4],
        equalities=lambda x: 1e-3 * stiffness(x[2:]) @ x[:2] * 500 - jnp.array([0.0, 600.0]),
        bounds=(jnp.array([-200.0, -200.0, 0.6, 0.6, 0.6]), jnp.array([200.0, 200.0, jnp.inf, jnp.inf, jnp.inf])),
    )
    solution = om.solve(problem, SQP(), jnp.array([0.0, 0.0, 0.6, 0.6, 0.6]), budget=om.Budget(steps=200), throw=False)
    assert solution.result == om.Result.converged and problem.kkt_residual(solution.value).largest < 1e-5


def test_a_derivative_that_is_nan_is_called_so():
    problem = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.sqrt(x[0] ** 2) - 1.0 + x[1] ** 2)
    assert om.solve(problem, SQP(), jnp.zeros(2), throw=False).result == om.Result.nonfinite


def test_bfgs_needs_no_second_derivative():
    solution = om.solve(hock_schittkowski_71(), SQP("bfgs"), jnp.array([1.0, 5.0, 5.0, 1.0]), budget=om.Budget(steps=100))
    np.testing.assert_allclose(solution.value.primal, KNOWN["hs71"][2], atol=1e-5)
    assert solution.counters.asdict().get("hessian_products", 0) == 0


def test_an_infeasible_problem_ends_with_the_least_violation():
    """x^2 + 1 <= 0: violated least at zero, by one."""
    problem = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: x @ x + 1.0)
    solution = om.solve(problem, SQP(), jnp.array([1.0, 2.0]), throw=False)
    assert solution.result == om.Result.infeasible
    assert problem.violation(solution.value.primal) == pytest.approx(1.0, abs=1e-3)


def test_an_unbounded_problem_diverges():
    problem = om.Constrained(lambda x: -x[0] - x[1] ** 2, inequalities=lambda x: x[0] - x[1], bounds=(0.0, None))
    assert om.solve(problem, SQP(), jnp.ones(2), throw=False).result == om.Result.diverged


def test_an_objective_that_falls_to_infinity_before_the_point_does_diverges():
    problem = om.Constrained(lambda x: -jnp.sum(jnp.exp(x)), inequalities=lambda x: x[0] - 1.0)
    found = om.solve(problem, SQP(), jnp.full(2, 0.1), throw=False)
    assert found.result == om.Result.diverged and found.steps < 200


def test_nan_outside_the_domain_shortens_the_step():
    problem = om.Constrained(lambda x: x[0] - jnp.log(x[0]) + x[1] ** 2, equalities=lambda x: jnp.sqrt(x[0]) - x[1] - 0.5)
    solution = om.solve(problem, SQP(), jnp.array([3.0, 1.0]), budget=om.Budget(steps=100))
    assert solution.result == om.Result.converged and problem.kkt_residual(solution.value).largest < 1e-5


def test_a_quadratic_program_that_is_not_convex_gets_a_local_solution():
    saddle = QuadraticProgram(np.diag([1.0, -1.0]), np.array([-1.0, 0.1]), bounds=(-2.0, 2.0), convex=False)
    solution = om.solve(saddle, SQP(), jnp.array([0.3, 0.2]))
    assert saddle.kkt_residual(solution.value).largest < 1e-5 and abs(solution.value.primal[1]) == 2


@pytest.mark.thorough
def test_a_batch_is_solved_and_differentiated_member_by_member():
    """min |x - t|^2 + x_0^4 on the unit disc and above a line, in t: derivatives against differences."""
    problem = lambda t: om.Constrained(
        lambda x, t: jnp.sum((x - t) ** 2) + x[0] ** 4, t,
        equalities=lambda x, t: x[2] - x[0] * x[1], inequalities=lambda x, t: jnp.stack([x @ x - 1.0, 0.2 * t[0] - x[1]]),
    )  # fmt: skip
    run = lambda t: om.solve(problem(t), SQP(tolerance=1e-9), jnp.full(3, 0.3), throw=False)
    outer = lambda t: run(t).value.primal @ jnp.array([1.0, -2.0, 0.5])
    targets = jax.random.normal(jax.random.key(1), (8, 3))
    h = 1e-6
    moves = jnp.concatenate([h * jnp.eye(3), -h * jnp.eye(3)])

    @jax.jit
    def everything(targets):
        around = jax.vmap(jax.vmap(outer))(targets[:, None] + moves)
        return jax.vmap(run)(targets), jax.vmap(jax.grad(outer))(targets), (around[:, :3] - around[:, 3:]) / (2 * h)

    solution, gradient, numeric = everything(targets)
    assert np.all(np.asarray(solution.result.code) == om.Result.converged.code)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)


def test_steps_keep_to_a_box_that_grows_where_the_model_is_right():
    corner = lambda x: jnp.stack([-1e4 - x[0], -2e4 - x[1]])
    far = om.Constrained(lambda x: jnp.sum(x), inequalities=corner, bounds=(-1e6, 1e6))
    first = om.solve(far, SQP(), jnp.zeros(2), budget=om.Budget(steps=1))
    np.testing.assert_allclose(first.value.primal, -10.0, rtol=1e-6)
    np.testing.assert_array_equal(first.value.lower, 0)  # the box is no bound, and has no multiplier
    last = om.solve(far, SQP(), jnp.zeros(2))
    assert last.result == om.Result.converged
    assert int(last.steps) <= 8
    np.testing.assert_allclose(last.value.primal, [-1e4, -2e4], rtol=1e-6)
    np.testing.assert_allclose(last.value.inequality, 1, rtol=1e-5)
