"""`solve`: two drivers with the same iterates, budgets, histories, callbacks, and what survives a failure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from toys import Descent, HostDescent, NoisyDescent, Picard, quadratic

TARGET = jnp.array([1.0, -2.0, 0.5])
PROBLEM = om.Minimize(quadratic, TARGET)
GUESS = jnp.zeros(3)


def test_the_answer_satisfies_the_optimality_condition():
    solution = om.solve(PROBLEM, Descent(), GUESS)
    assert solution.result == om.Result.converged
    assert jnp.linalg.norm(PROBLEM.optimality(solution.value)) <= 1e-6
    assert "converged" in repr(solution) and "value=" in repr(solution)


def test_eager_and_traced_solves_take_the_same_steps():
    eager = om.solve(PROBLEM, Descent(), GUESS)
    traced = jax.jit(lambda guess: om.solve(PROBLEM, Descent(), guess))(GUESS)
    assert eager.steps == traced.steps
    np.testing.assert_array_equal(eager.value, traced.value)
    np.testing.assert_array_equal(eager.history["value"], traced.history["value"][-eager.steps :])
    assert eager.counters.asdict() == traced.counters.asdict() == {"values": eager.steps + 1, "gradients": eager.steps + 1}


def test_the_traced_history_is_a_ring_of_the_last_steps():
    budget = om.Budget(steps=10)
    solve = lambda guess, record: om.solve(PROBLEM, Descent(tolerance=0.0), guess, budget=budget, record=record)
    short = jax.jit(lambda guess: solve(guess, 4))(GUESS)
    np.testing.assert_array_equal(short.history["step"], [7, 8, 9, 10])
    long = jax.jit(lambda guess: solve(guess, 16))(GUESS)
    np.testing.assert_array_equal(long.history["step"], [-1] * 6 + list(range(1, 11)))
    assert np.all(np.isnan(long.history["value"][:6]))
    np.testing.assert_array_equal(short.history["value"], long.history["value"][-4:])
    assert "value" in jax.jit(lambda guess: solve(guess, 0))(GUESS).history


def test_a_budget_ends_the_solve_and_says_so():
    solution = om.solve(PROBLEM, Descent(tolerance=0.0), GUESS, budget=om.Budget(steps=7))
    assert solution.result == om.Result.budget_spent and solution.steps == 7
    solution = om.solve(PROBLEM, Descent(tolerance=0.0), GUESS, budget=om.Budget(evaluations=11))
    assert solution.result == om.Result.budget_spent and 11 <= solution.counters.evaluations <= 13
    solution = om.solve(PROBLEM, Descent(tolerance=0.0), GUESS, budget=om.Budget(gradients=5, steps=100))
    assert solution.counters.gradients == 5
    solution = om.solve(PROBLEM, Descent(tolerance=0.0), GUESS, budget=om.Budget(steps=10**9, seconds=0.3))
    assert solution.result == om.Result.budget_spent and solution.steps < 10**9


def test_unknowns_may_be_any_pytree_and_other_leaves_stay():
    def loss(model, target):
        return jnp.sum((model["layer"](target) - 1.0) ** 2) + model["scale"] * model["offset"] ** 2

    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    guess = {"layer": layer, "offset": 0.5, "scale": "ignored"}
    problem = om.Minimize(lambda m, t: loss({**m, "scale": 2.0}, t), TARGET)
    value = om.solve(problem, Descent(step_size=0.05), guess).value
    assert value["scale"] == "ignored" and isinstance(value["layer"], eqx.nn.Linear)
    assert abs(float(value["offset"])) < 1e-5
    np.testing.assert_allclose(value["layer"](TARGET), 1.0, atol=1e-5)


def test_auxiliary_output_is_that_of_the_answer():
    problem = om.Minimize(lambda x, t: (quadratic(x, t), {"norm": jnp.linalg.norm(x)}), TARGET, has_aux=True)
    solution = om.solve(problem, Descent(), GUESS)
    np.testing.assert_allclose(solution.aux["norm"], jnp.linalg.norm(solution.value), rtol=1e-6)


@pytest.mark.parametrize("method", [Descent(), HostDescent()], ids=lambda m: type(m).__name__)
def test_nan_ends_the_solve_with_the_last_finite_value(method):
    def cliff(x):
        return jnp.where(x[0] > 0.5, jnp.nan, jnp.sum((x - 1.0) ** 2))

    with pytest.raises(om.errors.SolveError, match=r"step \d+.*not finite") as raised:
        om.solve(om.Minimize(cliff), method, GUESS)
    solution = raised.value.solution
    assert solution.result == om.Result.nonfinite
    assert np.all(np.isfinite(solution.value)) and 0 < float(solution.value[0]) <= 0.5
    assert np.all(np.isfinite(solution.history["value"])) and len(solution.history["value"]) == solution.steps
    assert om.solve(om.Minimize(cliff), method, GUESS, throw=False).result == om.Result.nonfinite


def test_a_failed_solve_has_no_gradient_that_could_be_taken_for_one():
    def cliff(x, a):
        return jnp.where(x > 0.5, jnp.nan, (x - a) ** 2)

    value = lambda a: om.solve(om.Minimize(cliff, a), Descent(), jnp.zeros(())).value
    with pytest.raises(om.errors.SolveError):
        jax.grad(value)(1.0)
    assert jnp.isnan(jax.jit(jax.grad(value))(1.0))
    with pytest.raises(Exception, match="without an answer"):
        jax.jit(lambda a: om.solve(om.Minimize(cliff, a), Descent(), jnp.zeros(()), throw=True).value)(1.0)


def test_one_failed_item_of_a_batch_leaves_the_others_alone():
    def cliff(x, a):
        return jnp.where(x > 2.0, jnp.nan, (x - a) ** 2)

    solve = lambda a: om.solve(om.Minimize(cliff, a), Descent(), jnp.zeros(()))
    batch = jax.vmap(solve)(jnp.array([1.0, 3.0, -1.0]))
    assert [str(om.Result(code)) for code in batch.result.code] == ["converged", "nonfinite", "converged"]
    np.testing.assert_allclose(batch.value[jnp.array([0, 2])], [1.0, -1.0], atol=1e-5)
    assert jnp.isfinite(batch.value[1])
    assert str(batch.result) == "[converged, nonfinite, converged]"


def test_callbacks_see_every_step_once_and_in_order():
    steps, finals = [], []

    def watch(event):
        steps.extend(row["step"] for row in event.rows)
        finals.append(event.final)
        assert event.step == (steps[-1] if steps else 0) and event.value.shape == (3,)

    solution = om.solve(PROBLEM, Descent(step_size=0.002), GUESS, callbacks=[watch], budget=om.Budget(steps=5000))
    assert steps == list(range(1, solution.steps + 1)) == solution.history["step"].tolist()
    assert finals[-1] and not any(finals[:-1])


@pytest.mark.parametrize("method", [Descent(tolerance=0.0), HostDescent(tolerance=0.0)], ids=lambda m: type(m).__name__)
def test_a_callback_can_stop_the_solve(method):
    solution = om.solve(PROBLEM, method, GUESS, callbacks=[lambda event: event.step >= 3], budget=om.Budget(steps=10**6))
    assert solution.result == om.Result.stopped and 3 <= solution.steps < 10**6


def test_an_error_in_a_callback_is_the_users_own():
    def fail(event):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        om.solve(PROBLEM, Descent(), GUESS, callbacks=[fail])


def test_randomness_is_a_function_of_the_key_and_the_step():
    run = lambda seed: om.solve(PROBLEM, NoisyDescent(), GUESS, key=jax.random.key(seed), budget=om.Budget(steps=5)).value
    np.testing.assert_array_equal(run(0), run(0))
    assert np.any(np.asarray(run(0)) != np.asarray(run(1)))
    traced = jax.jit(
        lambda key: om.solve(PROBLEM, NoisyDescent(), GUESS, key=key, budget=om.Budget(steps=5)).value
    )(jax.random.key(0))
    np.testing.assert_array_equal(run(0), traced)


def test_a_problem_already_solved_takes_no_step():
    solved = om.solve(PROBLEM, Descent(), GUESS).value
    again = om.solve(PROBLEM, Descent(tolerance=1e-5), solved)
    assert again.steps == 0 and again.result == om.Result.converged
    np.testing.assert_array_equal(again.value, solved)


def test_no_budget_is_no_step():
    solution = om.solve(PROBLEM, Descent(), GUESS, budget=om.Budget(steps=0))
    assert solution.steps == 0 and solution.result == om.Result.budget_spent
    np.testing.assert_array_equal(solution.value, GUESS)


def test_the_function_is_traced_once_however_often_it_is_solved():
    calls = []

    def counted(x, target):
        calls.append(1)
        return quadratic(x, target)

    for target in (TARGET, 2 * TARGET, 3 * TARGET):
        om.solve(om.Minimize(counted, target), Descent(), GUESS)
    assert len(calls) == 1
    jax.jit(jax.grad(lambda t: om.solve(om.Minimize(counted, t), Descent(), GUESS).value.sum()))(TARGET)
    assert len(calls) == 2


def test_solving_again_compiles_nothing(caplog):
    other = 2 * TARGET
    om.solve(om.Minimize(quadratic, TARGET), Descent(), GUESS)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        om.solve(om.Minimize(quadratic, other), Descent(step_size=0.2), GUESS)
        om.solve(om.Minimize(quadratic, other), Descent(step_size=0.2), GUESS, budget=om.Budget(steps=77, seconds=1e3))
    assert "Compiling" not in caplog.text, caplog.text


@pytest.mark.parametrize("x64", [False, True])
def test_the_precision_is_that_of_the_guess(x64):
    with jax.enable_x64(x64):
        dtype = np.float64 if x64 else np.float32
        solution = om.solve(om.Minimize(quadratic, np.ones(2, dtype)), Descent(), np.zeros(2, dtype))
        assert solution.value.dtype == dtype


def test_fixed_points_are_found():
    solution = om.solve(om.FixedPoint(lambda x: 0.5 * x + 1.0), Picard(), jnp.zeros(2))
    np.testing.assert_allclose(solution.value, 2.0, atol=1e-5)


def test_fit_draws_batches_as_a_function_of_the_key():
    data = (jnp.arange(8.0), 3.0 * jnp.arange(8.0))
    fit = om.Fit(lambda w, example: (w * example[0] - example[1]) ** 2, jnp.zeros(()), data, batch_size=3)
    assert fit.stochastic
    key = jax.random.key(1)
    chosen = fit.batch(key)[0]
    assert len(set(chosen.tolist())) == 3  # without replacement
    np.testing.assert_array_equal(chosen, fit.batch(key)[0])
    values = jnp.stack([fit.value(jnp.array(1.0), key=jax.random.key(seed)) for seed in range(400)])
    np.testing.assert_allclose(values.mean(), fit.value(jnp.array(1.0)), rtol=0.05)  # unbiased
    solution = om.solve(fit, Descent(step_size=0.01, tolerance=0.0), key=key, budget=om.Budget(steps=300))
    np.testing.assert_allclose(solution.value, 3.0, rtol=1e-3)


def test_fit_in_chunks_is_fit():
    data = (jnp.arange(7.0), jnp.sin(jnp.arange(7.0)))
    loss = lambda w, example: (jnp.tanh(w * example[0]) - example[1]) ** 2
    whole, chunked = (om.Fit(loss, jnp.array(0.3), data, chunk=chunk) for chunk in (None, 2))
    np.testing.assert_allclose(*(fit.gradient(jnp.array(0.3)) for fit in (whole, chunked)), rtol=1e-5)


def test_fit_trains_a_model_and_keeps_its_other_leaves():
    model = eqx.nn.MLP(1, 1, 8, 1, activation=jax.nn.tanh, key=jax.random.key(0))
    x = jnp.linspace(-1, 1, 16)[:, None]
    fit = om.Fit(lambda m, example: jnp.sum((m(example[0]) - example[1]) ** 2), model, (x, x**2))
    solution = om.solve(fit, Descent(step_size=0.1), budget=om.Budget(steps=500))
    assert fit.value(solution.value) < 0.05 * fit.value(model)
    assert solution.value.activation is model.activation


def test_a_recording_is_not_used_for_arguments_that_only_compare_equal():
    from optimand.core.tracing import trace_once

    flagged = lambda x, flag: jnp.sum(x) + (1.0 if flag is True else 0.0)
    for flag, expected in ((True, 4.0), (1, 3.0)):
        assert trace_once(flagged, jnp.ones(3), flag)(jnp.ones(3), flag) == expected
    scaled = lambda x, factor: x * factor
    with jax.enable_x64(True):
        x = jnp.ones(2, jnp.float32)
        for factor, dtype in ((jnp.asarray(np.float64(2)), np.float64), (jnp.asarray(2.0), np.float32)):
            assert trace_once(scaled, x, factor)(x, factor).dtype == dtype  # a Python number promotes nothing


def test_a_guess_where_the_problem_is_nan_fails_alone_inside_a_transformation():
    """Host methods behind their callback as well as traced ones, and their gradients."""
    problem = lambda a: om.Minimize(lambda x, a: (x - a) ** 2 + 0 * jnp.log(a), a)
    for method in (Descent(), HostDescent()):
        value = lambda a, method=method: om.solve(problem(a), method, jnp.zeros(())).value
        with jax.debug_nans(False):
            values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value)))(jnp.array([1.0, -1.0]))
        np.testing.assert_allclose([values[0], gradients[0]], 1.0, atol=1e-5)
        assert values[1] == 0.0 and jnp.isnan(gradients[1])


def test_random_keys_of_any_kind_may_stand_in_a_problem():
    noisy = lambda x, key: jnp.sum((x - jax.random.normal(key, (2,))) ** 2)
    for key in (jax.random.key(1), jax.random.key(1, impl="rbg")):
        for method in (Descent(), HostDescent()):
            solve = lambda x, key=key, method=method: om.solve(om.Minimize(noisy, key), method, x, key=key).value
            expected = jax.random.normal(key, (2,))
            np.testing.assert_allclose(solve(jnp.zeros(2)), expected, atol=1e-5)
            np.testing.assert_allclose(jax.jit(solve)(jnp.zeros(2)), expected, atol=1e-5)


def test_unrolling_no_step_is_constant():
    value = lambda a: om.solve(om.Minimize(quadratic, a), Descent(), GUESS, adjoint=om.Unrolled(), budget=om.Budget(steps=0))
    np.testing.assert_array_equal(jax.jacrev(lambda a: value(a).value)(TARGET), 0)
