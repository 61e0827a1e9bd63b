"""The augmented Lagrangian method: solutions with multipliers, and honest ends where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import AugmentedLagrangian, Scipy
from optimand.smooth.projected_newton import truncated_cg


def objective(x, w):
    return w["pull"] * jnp.sum((x["a"] - w["target"]) ** 2) + w["tilt"] * x["a"][0] + (x["b"] - 1) ** 2


def equalities(x, w):
    return {"h": w["disc"] * jnp.sum(x["a"] ** 2) + w["line"] * x["b"] - w["level"]}


def inequalities(x, w):
    return x["a"][:1] - x["a"][1:] - w["gap"]


GUESS = {"a": jnp.array([0.5, 0.25]), "b": jnp.array(0.5)}
DATA = {"pull": 1.0, "target": 2.0, "tilt": 0.0, "disc": 1.0, "line": 0.0, "level": 1.0, "gap": -0.5}


def program(lower=-5.0, upper=5.0, **changes):
    """One problem whose data make it regular, infeasible, degenerate or unbounded: so it is compiled once."""
    data = jax.tree.map(lambda number: jnp.asarray(number, float), {**DATA, **changes})
    bound = lambda side: jax.tree.map(lambda leaf: jnp.full(leaf.shape, side, float), GUESS)
    return om.Constrained(
        objective, data, equalities=equalities, inequalities=inequalities, bounds=(bound(lower), bound(upper))
    )


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def start():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), GUESS)


def solve(problem, guess=None, **options):
    return om.solve(problem, AugmentedLagrangian(), start() if guess is None else guess, throw=False, **options)


def test_the_solution_and_its_multipliers_are_those_of_slsqp():
    for problem in (program(), program(upper=0.92)):  # without and with an active bound
        found = solve(problem)
        assert found.result == om.Result.converged
        assert problem.kkt_residual(found.value).largest <= 1e-6
        near = {"a": jnp.array([0.4, 0.9]), "b": jnp.array(0.9)}  # from our start SLSQP ends infeasible where the bound is active
        peer = om.solve(problem, Scipy("SLSQP", tolerance=1e-12), near).value
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), found.value, peer)


def test_a_warm_start_is_recognised():
    problem = program()
    solution = solve(problem)
    again = solve(problem, solution.value)
    assert again.result == om.Result.converged and int(again.steps) <= 1 < int(solution.steps)


def test_an_infeasible_problem_ends_with_the_least_violation():
    found = solve(program(level=-1.0))
    assert found.result == om.Result.infeasible
    least = min(float(a**2 + (a + 0.5) ** 2 + 1) for a in [-0.25])  # the nearest point to the origin with a_0 - a_1 <= -0.5
    violation = float(program(level=-1.0).violation(found.value.primal))
    assert violation <= least + 1e-3
    with pytest.raises(om.errors.SolveError, match="feasible"):
        om.solve(program(level=-1.0), AugmentedLagrangian(), start())


def test_contradictory_inequality_and_bounds_are_infeasible():
    found = solve(program(lower=-0.2, upper=0.2))  # a_0 - a_1 <= -0.5 does not fit into the box
    assert found.result == om.Result.infeasible
    np.testing.assert_allclose(found.value.primal["a"], [-0.2, 0.2], atol=0.1)


def test_an_objective_without_bound_is_said_to_diverge():
    found = solve(program(lower=-np.inf, upper=np.inf, pull=0.0, tilt=1.0, disc=0.0, line=1.0))
    assert found.result == om.Result.diverged


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_linear_objective_without_bound_diverges_soon(dtype):
    problem = om.Constrained(lambda x: x[0] + x[1], inequalities=lambda x: x[:1] - 1.0)
    found = solve(problem, jnp.full(2, 0.1, dtype))
    assert found.result == om.Result.diverged and found.steps < 50


def test_without_multipliers_it_never_claims_more_than_it_has():
    problem = program(level=0.0, gap=0.0)  # only the origin is feasible, where the equality has no gradient
    found = solve(problem)
    residual = problem.kkt_residual(found.value)
    assert float(residual.violation) <= 1e-3
    assert found.result != om.Result.converged or residual.largest <= 1e-6


def test_a_budget_ends_it_between_inner_steps():
    assert int(solve(program(), budget=om.Budget(steps=3)).steps) == 3
    assert int(solve(program(), budget=om.Budget(evaluations=5)).counters.evaluations) <= 5 + 31


def test_truncated_conjugate_gradients_stop_at_negative_curvature():
    matrix, rhs = jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.array([1.0, 1.0, 1.0])
    exact, products = truncated_cg(lambda v: matrix @ v, rhs, 1e-12, 10)
    np.testing.assert_allclose(exact, 1 / jnp.diagonal(matrix), atol=1e-10)
    assert int(products) == 3
    indefinite = matrix.at[2, 2].set(-1.0)
    direction, _ = truncated_cg(lambda v: indefinite @ v, rhs, 1e-12, 10)
    assert float(direction @ rhs) > 0 and bool(jnp.all(jnp.isfinite(direction)))


@pytest.mark.parametrize("solver", ["cg", "gmres"])
def test_without_a_hessian_it_finds_the_same(solver):
    problem = program(upper=0.92)
    found = om.solve(problem, AugmentedLagrangian(inner_solver=solver), start())
    assert problem.kkt_residual(found.value).largest <= 1e-6


@pytest.mark.parametrize(
    "argument, wrong",
    [("penalty", 0.0), ("growth", 1.0), ("fall", 1.5), ("inner_solver", "lu"), ("inner_steps", 0), ("tolerance", -1.0)],
)
def test_an_argument_out_of_its_range_is_named(argument, wrong):
    with pytest.raises(om.errors.ArgumentError, match=argument):
        AugmentedLagrangian(**{argument: wrong})
