"""Each mistake a user can make has its own error, which names the argument."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import (
    ArgumentError,
    CheckpointError,
    GradientError,
    GuessError,
    ObjectiveError,
    PairingError,
)
from toys import Descent, NoisyDescent, Picard, quadratic

pytestmark = pytest.mark.usefixtures("as_a_user")

TARGET = jnp.array([1.0, -1.0])
GUESS = jnp.zeros(2)
PROBLEM = om.Minimize(quadratic, TARGET)


def refused(error, argument, call, *words):
    with pytest.raises(error) as raised:
        call()
    assert raised.value.argument.startswith(argument), raised.value
    for word in words:
        assert word in str(raised.value), raised.value


def solving(problem=PROBLEM, method=None, guess=GUESS, **options):
    return lambda: om.solve(problem, Descent() if method is None else method, guess, **options)


@pytest.mark.parametrize(
    "guess, words",
    [
        (jnp.zeros(3), ["fn", "f32[3]"]),
        ({"x": jnp.zeros(2)}, ["fn"]),
        (jnp.zeros(2, jnp.int32), ["int32"]),
        (jnp.zeros(2, bool), ["bool"]),
        (jnp.zeros(2, jnp.complex64), ["complex"]),
        (None, ["missing"]),
        ({}, ["no floating-point array"]),
        (3, ["int"]),
        ("zero", ["no floating-point array"]),
        ([0.0, 0.0], ["fn", "TypeError"]),
    ],
    ids=["shape", "structure", "integers", "booleans", "complex", "missing", "empty", "a Python int", "text", "a list"],
)
def test_a_guess_that_cannot_start_is_refused(guess, words):
    refused(GuessError, "guess", solving(guess=guess), *words)


@pytest.mark.parametrize(
    "fn, words",
    [
        (lambda x: x, ["scalar", "(2,)"]),
        (lambda x: jnp.int32(3), ["int32"]),
        (lambda x: jnp.sum(x) * 1j, ["complex64"]),
        (lambda x: (jnp.sum(x), x), ["has_aux"]),
        (lambda x: None, ["scalar"]),
    ],
    ids=["vector", "integer", "complex", "pair", "nothing"],
)
def test_an_objective_that_is_no_number_is_refused(fn, words):
    refused(ObjectiveError, "fn", solving(om.Minimize(fn)), *words)


def test_an_objective_that_is_nan_at_the_guess_is_refused():
    refused(ObjectiveError, "guess", solving(om.Minimize(lambda x: jnp.sum(jnp.log(x - 1)))), "not finite")


def test_a_missing_auxiliary_output_is_refused():
    refused(ObjectiveError, "fn", solving(om.Minimize(lambda x: jnp.sum(x), has_aux=True)), "(value, aux)")


def test_residuals_must_be_floating():
    refused(ObjectiveError, "fn", solving(om.LeastSquares(lambda x: jnp.arange(3))), "i32[3]")


@pytest.mark.parametrize("kind", [om.Root, om.FixedPoint])
def test_a_map_that_changes_shape_is_refused(kind):
    class Solver(Picard):
        problem = kind

    refused(ObjectiveError, "fn", lambda: om.solve(kind(lambda x: x[:1]), Solver(), GUESS), "f32[2]", "f32[1]")


def test_a_prox_that_changes_shape_is_refused():
    class Solver(Descent):
        problem = om.Composite

    problem = om.Composite(lambda x: jnp.sum(x**2), lambda x, step: x[:1])
    refused(ObjectiveError, "prox", lambda: om.solve(problem, Solver(), GUESS))


def test_a_method_that_does_not_fit_names_those_that_do():
    refused(PairingError, "method", solving(method=Picard()), "Picard", "FixedPoint", "Minimize", "Descent")


def test_things_of_the_wrong_kind_are_refused():
    refused(ArgumentError, "problem", lambda: om.solve(quadratic, Descent(), GUESS), "Minimize")
    refused(ArgumentError, "method", lambda: om.solve(PROBLEM, "adam", GUESS), "str")
    refused(ArgumentError, "budget", solving(budget=10), "Budget")
    refused(ArgumentError, "adjoint", solving(adjoint="implicit"), "Implicit")
    refused(ArgumentError, "callbacks", solving(callbacks=[3]), "3")
    refused(ArgumentError, "record", solving(record=-1))
    refused(ArgumentError, "fn", lambda: om.Minimize(3), "callable")
    refused(ArgumentError, "prox", lambda: om.Composite(jnp.sum, 3), "callable")
    refused(ArgumentError, "penalty", lambda: om.Composite(jnp.sum, lambda x, step: x, penalty=3), "callable")
    refused(ArgumentError, "operator", lambda: om.Linear(jnp.eye(2), GUESS), "lineax")
    refused(ArgumentError, "rhs", lambda: om.Linear(lx.MatrixLinearOperator(jnp.eye(2)), jnp.zeros(3)))
    refused(ArgumentError, "operator", lambda: om.Linear(lx.MatrixLinearOperator(jnp.ones((2, 3))), GUESS), "square")


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"steps": -1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "ten"}, "steps"),
        ({"steps": float("inf")}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 10**12}, "steps"),
        ({"evaluations": float("nan")}, "evaluations"),
        ({"seconds": "long"}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": -1.0}, "seconds"),
        ({"evaluations": -3}, "evaluations"),
        ({"samples": -1}, "samples"),
        ({"wishes": 3}, "wishes"),
    ],
)
def test_a_budget_is_not_negative_and_limits_things_that_are_counted(arguments, name):
    refused(ArgumentError, name, lambda: om.Budget(**arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"ridge": -1.0},
        {"ridge": "a little"},
        {"rtol": -1e-3},
        {"tolerance": -1.0},
        {"max_steps": 0},
        {"dense_below": -1},
        {"linear_solver": "cg"},
        {"preconditioner": 3},
        {"condition": 3},
        {"monitor": 3},
    ],
)
def test_an_implicit_adjoint_refuses_bad_numbers(arguments):
    refused(ArgumentError, next(iter(arguments)), lambda: om.Implicit(**arguments))


def test_unrolling_refuses_to_keep_nothing():
    refused(ArgumentError, "checkpoints", lambda: om.Unrolled(checkpoints=0))
    refused(ArgumentError, "checkpoints", lambda: om.Unrolled(checkpoints=2.5))


def test_a_stochastic_method_or_problem_needs_a_key():
    refused(ArgumentError, "key", solving(method=NoisyDescent()), "NoisyDescent", "jax.random.key")
    fit = om.Fit(lambda w, x: (w - x) ** 2, jnp.zeros(()), jnp.arange(4.0), batch_size=2)
    refused(ArgumentError, "key", lambda: om.solve(fit, Descent()), "Fit")
    refused(ArgumentError, "key", solving(method=NoisyDescent(), key=jax.random.PRNGKey(0)), "new-style")
    refused(ArgumentError, "key", solving(method=NoisyDescent(), key=7))


def test_double_precision_is_asked_for_where_it_is_needed():
    class Precise(Descent):
        requires_x64 = True

    refused(ArgumentError, "method", solving(method=Precise()), "enable_x64")
    with jax.enable_x64(True):
        assert om.solve(om.Minimize(quadratic, np.ones(2)), Precise(), np.zeros(2)).result == om.Result.converged


def test_callbacks_and_clocks_are_refused_inside_a_transformation():
    for name, options in {"callbacks": {"callbacks": [print]}, "seconds": {"budget": om.Budget(seconds=1.0)}}.items():
        refused(ArgumentError, name, lambda options=options: jax.jit(lambda x: solving(guess=x, **options)().value)(GUESS))


def test_integers_have_no_gradient():
    solver = om.implicit(lambda x, theta: x**2 - theta)(lambda guess, theta: jnp.sqrt(theta * 1.0))
    with pytest.raises(TypeError, match="int"):
        jax.grad(lambda n: solver(1.0, n))(4)
    with pytest.raises((TypeError, GradientError), match="int"):
        jax.grad(lambda n: om.solve(om.Minimize(quadratic, n), Descent(), GUESS).value.sum())(jnp.arange(2))


def test_the_optimality_condition_must_look_like_the_solution():
    solver = om.implicit(lambda x, theta: {"a": x})(lambda guess, theta: theta)
    refused(ObjectiveError, "optimality", lambda: jax.grad(lambda t: solver(1.0, t))(4.0),
            "solution:   weak_f32[]", "optimality: {'a': weak_f32[]}")  # fmt: skip


def test_a_condition_with_catch_all_or_keyword_only_arguments_is_refused():
    refused(ArgumentError, "optimality", lambda: om.implicit(lambda x, **kw: x), "**kw")
    refused(ArgumentError, "optimality", lambda: om.implicit(lambda x, *, theta: x), "keyword-only", "theta")


def test_complex_unknowns_are_refused():
    solver = om.implicit(lambda x, theta: x - theta)(lambda guess, theta: theta)
    refused(GradientError, "guess", lambda: solver(1j, 2.0), "complex")


def test_fit_refuses_data_without_a_common_axis():
    loss = lambda w, example: jnp.sum(example[0] * w)
    model = jnp.zeros(())
    refused(ArgumentError, "data", lambda: om.Fit(loss, model, (jnp.ones(3), jnp.ones(4))), "(3,)", "(4,)")
    refused(ArgumentError, "data", lambda: om.Fit(loss, model, (jnp.ones(()),)))
    refused(ArgumentError, "data", lambda: om.Fit(loss, model, ["a", "b"]), "numeric")
    refused(ArgumentError, "batch_size", lambda: om.Fit(loss, model, (jnp.ones(3),), batch_size=4))
    refused(ArgumentError, "batch_size", lambda: om.Fit(loss, model, (jnp.ones(3),), batch_size=2.5))
    refused(ArgumentError, "chunk", lambda: om.Fit(loss, model, (jnp.ones(3),), chunk=0))
    refused(ObjectiveError, "loss", lambda: om.solve(om.Fit(lambda w, e: e, GUESS, (jnp.ones((3, 2)),)), Descent()))


def test_fit_refuses_a_guess_that_is_not_like_its_model():
    fit = om.Fit(lambda w, x: jnp.sum((w["a"] - x) ** 2), {"a": jnp.zeros(2)}, jnp.ones((4, 2)))
    refused(GuessError, "guess", lambda: om.solve(fit, Descent(), {"b": jnp.zeros(2)}), "structure")
    refused(GuessError, "guess['a']", lambda: om.solve(fit, Descent(), {"a": jnp.zeros(())}), "()", "(2,)")
    fit = om.Fit(lambda w, x: jnp.abs(w - x) ** 2, jnp.zeros((), jnp.complex64), jnp.ones(4))
    refused(GuessError, "guess", lambda: om.solve(fit, Descent()), "complex")


class Feasible(om.Method):
    """Stays where it is."""

    problem = om.Constrained

    def init(self, problem, guess, *, key):
        return guess

    def step(self, problem, state, *, key):
        return state

    def done(self, problem, state):
        return True

    def answer(self, problem, state):
        return state


def test_bounds_that_cross_or_do_not_fit_are_refused():
    constrained = lambda bounds: om.Constrained(lambda x: jnp.sum(x**2), bounds=bounds)
    solving = lambda bounds: lambda: om.solve(constrained(bounds), Feasible(), GUESS)
    refused(ArgumentError, "bounds", solving((1.0, -1.0)), "lower > upper")
    refused(ArgumentError, "bounds", solving((jnp.array([0.0, 2.0]), jnp.ones(2))), "[1]")
    refused(ArgumentError, "bounds", solving((jnp.zeros(3), None)), "lower")
    refused(ArgumentError, "bounds", lambda: constrained(3.0), "pair")


def test_bounds_that_are_known_are_checked_inside_a_compiled_function():
    constrained = lambda bounds: om.Constrained(lambda x: jnp.sum(x**2), bounds=bounds)
    inside = lambda problem: jax.jit(lambda guess: om.solve(problem, Feasible(), guess, throw=False).value.primal)(GUESS)
    np.testing.assert_allclose(inside(constrained((np.zeros(2), np.ones(2)))), GUESS)
    refused(ArgumentError, "bounds", lambda: inside(constrained((np.ones(2), np.zeros(2)))), "lower > upper")


def test_constraints_that_do_not_suit_the_guess_are_refused():
    problem = om.Constrained(lambda x: jnp.sum(x**2), equalities=lambda x: x["a"])
    refused(GuessError, "guess", lambda: om.solve(problem, Feasible(), GUESS))
    problem = om.Constrained(lambda x: jnp.sum(x**2), inequalities=lambda x: jnp.arange(2))
    refused(ObjectiveError, "inequalities", lambda: om.solve(problem, Feasible(), GUESS), "i32")


def test_multipliers_that_do_not_suit_the_constraints_are_refused_and_missing_ones_start_from_zero():
    problem = om.Constrained(lambda x: jnp.sum(x**2), equalities=lambda x: x[:1] - 1, bounds=(-1.0, None))
    too_many = om.PrimalDual(GUESS, jnp.zeros(3))
    refused(GuessError, "guess.equality", lambda: om.solve(problem, Feasible(), too_many), "f32[3]", "f32[1]")
    uncalled_for = om.PrimalDual(GUESS, inequality=jnp.zeros(1))
    refused(GuessError, "guess.inequality", lambda: om.solve(problem, Feasible(), uncalled_for))
    value = om.solve(problem, Feasible(), om.PrimalDual(GUESS, jnp.ones(1))).value
    assert value.equality == 1 and value.lower.shape == GUESS.shape and value.upper is None


def test_a_constraint_that_is_nan_at_the_guess_is_refused():
    problem = om.Constrained(lambda x: jnp.sum(x**2), inequalities=lambda x: jnp.log(x - 5))
    refused(ObjectiveError, "guess", lambda: om.solve(problem, Feasible(), GUESS), "not finite")
    absent = om.Constrained(lambda x: jnp.sum(x**2), inequalities=lambda x: jnp.full(2, -jnp.inf))
    assert om.solve(absent, Feasible(), GUESS).result == om.Result.converged


def test_constraints_that_change_shape_are_refused():
    calls = []

    def growing(x):
        calls.append(1)
        return jnp.zeros(len(calls)) + jnp.sum(x)

    problem = om.Constrained(lambda x: jnp.sum(x**2), equalities=growing)
    refused(ArgumentError, "equalities", lambda: om.solve(problem, Feasible(), GUESS), "shape")


def test_a_state_that_changes_is_refused_by_name():
    class Growing(Descent):
        def step(self, problem, state, *, key):
            return eqx.tree_at(lambda s: s.x, super().step(problem, state, key=key), jnp.zeros(5))

    refused(ArgumentError, "method", solving(method=Growing()), "float32[2]", "float32[5]")


def test_every_error_survives_a_process_boundary():
    import pickle

    for error in (GuessError("guess", "is wrong.", "Do this."), CheckpointError("resume", "is damaged.")):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and type(again) is type(error)
    missing = om.errors.MissingExtra("data", "h5py")
    assert str(pickle.loads(pickle.dumps(missing))) == str(missing)
