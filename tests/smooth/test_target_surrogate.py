"""Surrogates in target space: they bound the loss, follow projected gradient steps, and ask the oracle once a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, ObjectiveError, PairingError, SolveError
from optimand.smooth import (
    LBFGS,
    SLS,
    SSO,
    AdaGradTargetStep,
    Adam,
    ArmijoGD,
    ArmijoTargetStep,
    ConstantTargetStep,
    DecreasingTargetStep,
    ExponentialTargetStep,
    NewtonTargetStep,
    Optax,
    TargetProblem,
)

pytestmark = pytest.mark.thorough  # minutes of compilation: run with `pytest -m thorough`

ROWS = np.random.default_rng(0).normal(size=(40, 3))
LABELS = np.sign(ROWS @ np.array([1.0, -2.0, 0.5]) + 0.8 * np.random.default_rng(1).normal(size=40))
START = np.array([0.5, 0.2, -0.4])


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def linear(weights, example):
    return example[0] @ weights


def logistic(target, example):
    return jax.nn.softplus(-example[1] * target)


def squared(target, example):
    return (target - example[1]) ** 2


def logistic_problem(**options):
    return TargetProblem(linear, logistic, (ROWS, LABELS), **options)


def one_step(problem, method, start=START, key=None):
    """The state after the first step, compiled whole."""

    def first(start):
        return method.step(problem, method.init(problem, start, key=key), key=key)

    return jax.jit(first)(jnp.asarray(start))


def states_of(problem, method, steps, start=START, key=None):
    """The states after each of some steps, compiled whole: what `solve` goes through, in one program."""

    def step(state, number):
        state = method.step(problem, state, key=None if key is None else jax.random.fold_in(key, number))
        return state, state

    def run(start):
        return jax.lax.scan(step, method.init(problem, start, key=key), jnp.arange(steps))[1]

    return jax.jit(run)(jnp.asarray(start))


LEAST = 0.23325919888134028  # the least loss of `logistic_problem`, which a test below finds


# The surrogate.


def test_the_surrogate_bounds_the_loss_from_above_and_touches_it_with_its_gradient():
    problem = logistic_problem()
    x = jnp.asarray(START)
    surrogate = problem.surrogate(problem.query(x), 4.0)
    value, gradient = jax.value_and_grad(surrogate.value)(x)
    np.testing.assert_allclose(value, problem.value(x), rtol=1e-12)
    np.testing.assert_allclose(gradient, jax.grad(problem.value)(x), atol=1e-7)
    others = x + 3 * jax.random.normal(jax.random.key(0), (100, 3))
    above = jax.vmap(lambda y: surrogate.value(y) - problem.value(y))(others)
    assert jnp.all(above >= 0)
    sharp = problem.surrogate(problem.query(x), 40.0)  # ten times the theoretical step: no bound any more
    assert jnp.any(jax.vmap(lambda y: sharp.value(y) - problem.value(y))(others) < 0)


def test_on_a_full_batch_with_the_theoretical_step_the_loss_never_rises():
    method = SSO(ConstantTargetStep(4.0), inner_steps=30, tolerance=0.0, inner=ArmijoGD(tolerance=1e-9))
    values = np.asarray(states_of(logistic_problem(), method, 200).value)
    assert np.all(np.diff(values) <= 1e-14)
    optimum = om.solve(logistic_problem(), LBFGS(tolerance=1e-10), jnp.asarray(START))  # no surrogates here
    np.testing.assert_allclose(optimum.history["value"][-1], LEAST, atol=1e-10)
    assert 0 <= values[-1] - LEAST < 1e-3 * (values[0] - LEAST)


def test_an_exact_inner_solve_is_a_projected_gradient_step_in_target_space():
    eta = 0.7
    problem = logistic_problem()
    query = problem.query(jnp.asarray(START))
    after = one_step(problem, SSO(ConstantTargetStep(eta), inner_steps=40, inner=LBFGS(tolerance=1e-12)))
    project = ROWS @ np.linalg.pinv(ROWS)
    expected = project @ (np.asarray(query.targets) - eta * np.asarray(query.gradients))
    np.testing.assert_allclose(ROWS @ np.asarray(after.x), expected, atol=1e-8)


def test_for_the_identity_model_an_exact_inner_solve_is_gradient_descent_with_the_target_step():
    labels = jnp.array([1.0, -1.0, 1.0, 1.0])
    problem = TargetProblem(lambda x, e: x[e[0]], logistic, (jnp.arange(4), labels))
    start = jnp.array([0.3, 0.1, -2.0, 0.0])
    after = one_step(problem, SSO(ConstantTargetStep(0.9), inner_steps=20, inner=LBFGS(tolerance=1e-13)), start)
    slopes = jax.grad(lambda x: jnp.sum(jax.nn.softplus(-labels * x)))(start)
    np.testing.assert_allclose(after.x, start - 0.9 * slopes, atol=1e-8)


@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_one_inner_gradient_step_is_a_step_of_sgd_whatever_the_target_step(eta):
    problem = logistic_problem()
    after = one_step(problem, SSO(ConstantTargetStep(eta), inner_steps=1, inner=optax.sgd(0.05)))
    np.testing.assert_allclose(after.x, START - 0.05 * jax.grad(problem.value)(jnp.asarray(START)), atol=1e-12)


def test_the_kl_surrogate_with_step_one_is_the_cross_entropy():
    classes = jax.random.randint(jax.random.key(3), (40,), 0, 3)
    loss = lambda logits, example: jax.nn.logsumexp(logits) - logits[example[1]]
    problem = TargetProblem(lambda w, e: e[0] @ w, loss, (ROWS, classes))
    x = jax.random.normal(jax.random.key(4), (3, 3))
    surrogate = problem.surrogate(problem.query(x), 1.0, divergence="kl")
    others = jax.random.normal(jax.random.key(5), (20, 3, 3))
    np.testing.assert_allclose(jax.vmap(surrogate.value)(others), jax.vmap(problem.value)(others), rtol=1e-10)
    method = SSO(ConstantTargetStep(1.0), inner_steps=5, divergence="kl")
    assert np.all(np.diff(states_of(problem, method, 15, x).value) <= 1e-12)


def test_the_size_of_the_batch_does_not_change_what_a_step_size_means():
    twice = TargetProblem(linear, logistic, (np.tile(ROWS, (2, 1)), np.tile(LABELS, 2)))
    method = SSO(ConstantTargetStep(2.0), inner_steps=3)
    np.testing.assert_allclose(one_step(twice, method).x, one_step(logistic_problem(), method).x, atol=1e-10)


# Target steps.


def chosen_by(rule, problem, start=START, number=1):
    query = problem.query(jnp.asarray(start))
    state = rule.init(jax.eval_shape(lambda: query.targets))
    return rule.choose(state, query, problem.mean_loss, jnp.int32(number)), query


def test_schedules_have_their_values():
    problem = logistic_problem()
    assert chosen_by(ConstantTargetStep(4.0), problem, number=9)[0].step_size == 4.0
    np.testing.assert_allclose(chosen_by(DecreasingTargetStep(4.0), problem, number=9)[0].step_size, 4 / 3, rtol=1e-12)
    exponential = chosen_by(ExponentialTargetStep(4.0, steps=100), problem, number=50)[0]
    np.testing.assert_allclose(exponential.step_size, 4 * 0.1, rtol=1e-12)
    np.testing.assert_allclose(exponential.metric, 1 / 0.4, rtol=1e-12)


def test_the_armijo_target_step_finds_the_theoretical_one():
    rule = ArmijoTargetStep()
    found, _ = chosen_by(rule, TargetProblem(linear, squared, (ROWS, LABELS)))
    assert 0.9 * 0.5 <= found.step_size <= 0.5 * (1 + 1e-12)  # 1/L = 1/2, within one backtrack
    curved, _ = chosen_by(rule, logistic_problem())
    assert curved.step_size >= 0.9 * 4.0
    again = rule.choose(found.state, _, TargetProblem(linear, squared, (ROWS, LABELS)).mean_loss, jnp.int32(2))
    assert again.trials < found.trials  # it starts from the last one


def test_adagrad_and_newton_steps_gather_what_they_have_seen():
    problem = logistic_problem()
    first, query = chosen_by(AdaGradTargetStep(3.0), problem)
    squares = np.asarray(query.gradients) ** 2
    np.testing.assert_allclose(first.step_size, 3 / np.sqrt(squares.mean() + 1e-8), rtol=1e-10)
    second = AdaGradTargetStep(3.0).choose(first.state, query, problem.mean_loss, jnp.int32(2))
    np.testing.assert_allclose(second.step_size, 3 / np.sqrt(2 * squares.mean() + 1e-8), rtol=1e-10)
    diagonal, _ = chosen_by(AdaGradTargetStep(3.0, diagonal=True), problem)
    np.testing.assert_allclose(diagonal.metric, np.sqrt(squares + 1e-8) / 3, rtol=1e-10)
    newton, _ = chosen_by(NewtonTargetStep(2.0, ridge=0.1), problem)
    np.testing.assert_allclose(newton.metric, [[(squares.mean() + 0.1) / 2]], rtol=1e-10)


@pytest.mark.parametrize(
    "rule",
    [ArmijoTargetStep(), AdaGradTargetStep(4.0), AdaGradTargetStep(1.0, diagonal=True), NewtonTargetStep(4.0, ridge=0.5)],
    ids=lambda rule: type(rule).__name__ + str(getattr(rule, "diagonal", "")),
)
def test_every_rule_trains(rule):
    problem = logistic_problem()
    values = states_of(problem, SSO(rule, inner_steps=5), 40).value
    assert values[-1] - LEAST < 0.1 * (values[0] - LEAST)


# The oracle.


@pytest.mark.parametrize("inner_steps", [1, 5])
def test_the_oracle_is_called_once_a_step_also_on_the_host_under_jit(inner_steps):
    calls = []

    def on_host(targets, labels):
        calls.append(len(targets))
        return np.asarray(-labels / (1 + np.exp(labels * targets)), targets.dtype)

    def oracle(targets, batch):
        shape = jax.ShapeDtypeStruct(targets.shape, targets.dtype)
        return jax.pure_callback(on_host, shape, targets, batch[1], vmap_method="sequential")

    with jax.enable_x64(False):  # a callback may run in a thread where double precision is not switched on
        method = SSO(ConstantTargetStep(4.0), inner_steps=inner_steps, tolerance=0.0)
        key, budget = jax.random.key(0), om.Budget(steps=7)
        problem = logistic_problem(batch_size=10, oracle=oracle)
        run = jax.jit(lambda x: om.solve(problem, method, x, key=key, budget=budget, adjoint=om.Detached()))
        solution = jax.block_until_ready(run(jnp.asarray(START)))
        assert calls == [10] * 7
        assert solution.counters.calls == 7 and solution.counters.samples == 70
        assert solution.counters.gradients <= 7 * inner_steps
        plain = states_of(logistic_problem(batch_size=10), method, 7, key=key)
        assert plain.counters.calls[-1] == 7


def test_a_budget_may_be_stated_in_calls_and_a_call_may_have_its_price():
    problem = logistic_problem(cost={"environment_steps": 100})
    solution = om.solve(problem, SSO(ConstantTargetStep(4.0), 2), jnp.asarray(START), budget=om.Budget(calls=5))
    assert solution.counters.calls == 5 and solution.counters.environment_steps == 500


def test_an_oracle_may_return_losses_and_gradients_of_the_mean():
    def oracle(targets, batch):
        return jax.value_and_grad(lambda z: jnp.mean(jax.vmap(logistic)(z, batch)))(targets)

    averaged = logistic_problem(oracle=oracle, reduction="mean")
    method = SSO(ConstantTargetStep(4.0), inner_steps=3)
    np.testing.assert_allclose(one_step(averaged, method).x, one_step(logistic_problem(), method).x, atol=1e-10)


def test_an_oracle_that_averages_or_errs_is_found_out():
    mean = lambda z, batch: jax.grad(lambda z: jnp.mean(jax.vmap(logistic)(z, batch)))(z)
    x = jnp.asarray(START)
    with pytest.raises(ArgumentError, match=r"size of the batch, 40.*reduction='mean'"):
        logistic_problem(oracle=mean).check_oracle(x)
    logistic_problem(oracle=mean, reduction="mean").check_oracle(x)
    with pytest.raises(ArgumentError, match="differs from the derivative"):
        logistic_problem(oracle=lambda z, batch: z).check_oracle(x)


def test_an_oracle_that_is_not_finite_makes_a_step_left_out():
    def broken(targets, batch):  # for the batches that hold the first example, one in four or so
        gradients = jax.vmap(jax.grad(logistic))(targets, batch)
        return jnp.where(jnp.any(batch[0][:, 0] == ROWS[0, 0]), jnp.nan, gradients)

    problem = logistic_problem(batch_size=10, oracle=broken)
    solution = om.solve(
        problem, SSO(ConstantTargetStep(4.0), 3), jnp.asarray(START), key=jax.random.key(0), budget=om.Budget(steps=20)
    )
    assert 0 < solution.history["skipped"][-1] < 20
    assert not np.any(np.isnan(solution.history["value"])) and np.all(np.isfinite(solution.value))
    assert solution.counters.calls == 20
    with pytest.raises(SolveError):  # all data: every step
        whole = logistic_problem(oracle=lambda z, batch: jnp.full_like(z, jnp.nan))
        om.solve(whole, SSO(ConstantTargetStep(4.0), 3, skips_in_a_row=4), jnp.asarray(START))


def test_parameters_stay_where_the_surrogate_could_not_be_lowered():
    method = SSO(ConstantTargetStep(4.0), inner_steps=2, inner=optax.sgd(1e3))
    after = one_step(logistic_problem(), method)
    np.testing.assert_array_equal(after.x, START)
    assert after.kept == 1


def test_a_query_made_elsewhere_can_be_absorbed():
    problem, method = logistic_problem(), SSO(ConstantTargetStep(4.0), inner_steps=4)
    x = jnp.asarray(START)
    state = method.init(problem, x, key=None)
    absorbed = method.absorb(problem, state, problem.query(x))
    np.testing.assert_allclose(absorbed.x, one_step(problem, method).x, atol=1e-12)
    assert absorbed.counters.calls == 0
    late = method.absorb(problem, absorbed, problem.query(x))  # of the parameters before
    assert problem.surrogate(problem.query(x), 4.0).value(late.x) < problem.surrogate(problem.query(x), 4.0).value(absorbed.x)


# Streams and random models.


def test_a_stream_may_depend_on_the_model_and_carries_no_derivative():
    def stream(weights, key):
        inputs = jax.random.normal(key, (12, 3)) + weights
        return inputs, inputs @ jnp.array([1.0, -1.0, 0.5])  # the expert's answers

    problem = TargetProblem(linear, squared, stream=stream)
    key = jax.random.key(2)
    x = jnp.asarray(START)
    inputs, answers = stream(x, key)
    expected = 2 * inputs.T @ (inputs @ x - answers) / 12
    np.testing.assert_allclose(problem.gradient(x, key=key), expected, atol=1e-10)
    np.testing.assert_allclose(jax.grad(lambda x: problem.value(x, key=key))(x), expected, atol=1e-10)
    for method in (SSO(ConstantTargetStep(0.5), 5), SLS(), Adam(0.1)):
        assert states_of(problem, method, 30, key=key).value[-1] < 0.1 * problem.value(x)


def test_a_line_search_compares_on_the_batch_that_the_model_made():
    drifting = lambda weights, key: (ROWS[:5] + 100 * weights.sum(), LABELS[:5])
    problem = TargetProblem(linear, squared, stream=drifting)
    x = jnp.asarray(START)
    held = problem.at(x, jax.random.key(0))
    assert not held.stochastic
    np.testing.assert_allclose(held.value(x), problem.value(x, key=jax.random.key(0)))
    np.testing.assert_allclose(held.batch(2 * x)[0], held.batch(x)[0])


def test_a_random_model_needs_a_key_and_draws_the_same_in_all_inner_steps():
    def dropout(weights, example, key):
        return (example[0] * jax.random.bernoulli(key, 0.5, (3,))) @ weights

    problem = TargetProblem(dropout, logistic, (ROWS, LABELS))
    x, key = jnp.asarray(START), jax.random.key(1)
    with pytest.raises(ArgumentError, match="key"):
        om.solve(problem, SSO(ConstantTargetStep(4.0)), x)
    surrogate = problem.surrogate(problem.query(x, key=key), 4.0)
    np.testing.assert_allclose(
        jax.grad(surrogate.value)(x), jax.grad(lambda x: problem.value(x, key=key))(x), atol=1e-10
    )
    np.testing.assert_array_equal(surrogate.value(2 * x), surrogate.value(2 * x))


def test_models_may_be_modules():
    import equinox as eqx

    net = eqx.nn.MLP(3, "scalar", 8, 1, key=jax.random.key(0), activation=jax.nn.tanh)
    problem = TargetProblem(lambda net, example: net(example[0]), logistic, (ROWS, LABELS), batch_size=20)
    before = float(problem.value(net))
    method = SSO(ConstantTargetStep(4.0), inner_steps=10, inner=optax.adam(0.03))
    solution = om.solve(problem, method, net, key=jax.random.key(0), budget=om.Budget(steps=20))
    assert problem.value(solution.value) < 0.7 * before


def test_step_sizes_can_be_swept_in_one_program():
    problem = logistic_problem()
    method = lambda eta: SSO(ConstantTargetStep(eta), 3)
    run = lambda eta: om.solve(
        problem, method(eta), jnp.asarray(START), budget=om.Budget(steps=5), adjoint=om.Detached(), record=0
    ).value
    swept = jax.jit(jax.vmap(run))(jnp.array([0.1, 4.0]))
    np.testing.assert_allclose(swept[1], states_of(problem, method(4.0), 5).x[-1], atol=1e-10)
    assert problem.value(swept[1]) < problem.value(swept[0])


# Bad input.


def test_an_oracle_of_the_wrong_shape_is_refused_with_both_shapes():
    problem = logistic_problem(oracle=lambda z, batch: z[:, None])
    with pytest.raises(ObjectiveError, match=r"\(40, 1\).*\(40,\)"):
        om.solve(problem, SSO(ConstantTargetStep(4.0)), jnp.asarray(START))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: ConstantTargetStep(0.0), "step_size"),
        (lambda: DecreasingTargetStep(-1.0), "step_size"),
        (lambda: ExponentialTargetStep(1.0, 0), "steps"),
        (lambda: ArmijoTargetStep(shrink=1.0), "shrink"),
        (lambda: ArmijoTargetStep(growth=0.5), "growth"),
        (lambda: NewtonTargetStep(1.0, ridge=0.0), "ridge"),
        (lambda: SSO(ConstantTargetStep(1.0), inner_steps=0), "inner_steps"),
        (lambda: SSO(4.0), "target_step"),
        (lambda: SSO(ConstantTargetStep(1.0), inner="adam"), "inner"),
        (lambda: SSO(ConstantTargetStep(1.0), inner=om.smooth.Scipy("BFGS")), "inner"),
        (lambda: SSO(ConstantTargetStep(1.0), divergence="hellinger"), "divergence"),
        (lambda: SSO(NewtonTargetStep(1.0), divergence="kl"), "divergence"),
        (lambda: ArmijoGD(decrease=1.5), "decrease"),
        (lambda: TargetProblem(linear, logistic), "data"),
        (lambda: TargetProblem(linear, logistic, (ROWS, LABELS[:3])), "data"),
        (lambda: logistic_problem(batch_size=41), "batch_size"),
        (lambda: logistic_problem(reduction="sum"), "reduction"),
        (lambda: logistic_problem(cost={"lunches": 1}), "lunches"),
        (lambda: TargetProblem(linear, logistic, stream=lambda x, key: ROWS, batch_size=3), "batch_size"),
        (lambda: TargetProblem("net", logistic, (ROWS, LABELS)), "model"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, match, as_a_user):
    with pytest.raises(ArgumentError, match=match):
        make()


def test_what_does_not_go_together_is_refused_when_it_meets():
    x = jnp.asarray(START)
    with pytest.raises(ArgumentError, match="target_step"):
        method = SSO(AdaGradTargetStep(1.0, diagonal=True))
        om.solve(logistic_problem(batch_size=5), method, x, key=jax.random.key(0))
    with pytest.raises(ArgumentError, match="divergence"):
        om.solve(logistic_problem(), SSO(ConstantTargetStep(1.0), divergence="kl"), x)
    with pytest.raises(ArgumentError, match="SLS"):
        om.solve(logistic_problem(batch_size=5), ArmijoGD(), x, key=jax.random.key(0))
    with pytest.raises(ObjectiveError, match="scalar"):
        om.solve(TargetProblem(linear, lambda z, e: e[0] * z, (ROWS, LABELS)), SSO(ConstantTargetStep(1.0)), x)
    with pytest.raises(ArgumentError, match="stream"):
        om.solve(TargetProblem(linear, squared, stream=lambda x, key: (ROWS, 1.0)), Adam(), x, key=jax.random.key(0))
    with pytest.raises(PairingError, match="TargetProblem"):
        om.solve(om.Minimize(jnp.sum), SSO(ConstantTargetStep(1.0)), x)
    assert isinstance(SSO(ConstantTargetStep(1.0), inner=optax.adam(0.1))._inner_method(), Optax)
