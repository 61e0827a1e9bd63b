"""Line searches and Polyak steps on batches: their conditions hold, and their trajectories are those of the known programs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, SolveError
from optimand.smooth import SLS, PolyakSGD
from optimand.smooth.armijo import armijo

ROWS = np.random.default_rng(0).normal(size=(60, 4))
LABELS = np.sign(ROWS @ np.array([1.0, -2.0, 0.5, 1.0]))
START = np.array([0.5, 0.2, -0.4, 0.0])
KEYS = jax.random.split(jax.random.key(5), 20)


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def loss(x, example):
    return jax.nn.softplus(-example[1] * (example[0] @ x)) + 0.01 * x @ x


def batch_loss(x, batch):
    return jnp.mean(jax.vmap(lambda example: loss(x, example))(batch))


def fit(batch_size=15):
    return om.Fit(loss, jnp.asarray(START), (ROWS, LABELS), batch_size=batch_size)


def trajectory(method, problem):
    """All iterates and step states under `KEYS`, compiled whole."""

    def step(state, key):
        state = method.step(problem, state, key=key)
        return state, state

    first = method.init(problem, jnp.asarray(START), key=KEYS[0])
    return jax.jit(lambda first: jax.lax.scan(step, first, KEYS)[1])(first)


def test_every_step_satisfies_armijos_condition_on_its_own_batch():
    found = trajectory(SLS(max_step=100.0, decrease=0.3, max_trials=50), fit())
    x = jnp.asarray(START)
    for key, after, length in zip(KEYS, found.x, found.length, strict=True):
        batch = fit().batch(key)
        value, gradient = jax.value_and_grad(batch_loss)(x, batch)
        assert batch_loss(after, batch) <= value - 0.3 * length * gradient @ gradient + 1e-12
        np.testing.assert_allclose(after, x - length * gradient, atol=1e-12)
        x = after


def test_a_search_counts_what_it_evaluates_and_stops_at_the_first_that_will_do():
    value_at = lambda length: 0.5 * (1 - 4 * length) ** 2  # f = 2 x^2 from x = 1/2 along g = 2: f(x - t g) = 2 (1/2 - 2 t)^2
    found = jax.jit(lambda first: armijo(value_at, jnp.array(0.5), jnp.array(4.0), first, decrease=0.5, shrink=0.5, max_trials=20))(1.0)
    assert found.length == 0.25 and found.trials == 3 and found.accepted  # c = 1/2 accepts up to 1/L = 1/4
    found = armijo(value_at, jnp.array(0.5), jnp.array(4.0), 1.0, decrease=0.5, shrink=0.5, max_trials=2)
    assert not found.accepted and found.trials == 2


def test_goldstein_lengthens_what_is_too_short():
    value_at = lambda length: 0.5 * (1 - 4 * length) ** 2
    found = armijo(
        value_at, jnp.array(0.5), jnp.array(4.0), 1e-3, decrease=0.1, shrink=0.8, max_trials=40, grow=1.5, longest=1.0
    )
    gain = 0.5 - found.value
    assert 0.1 * found.length * 4 <= gain <= 0.9 * found.length * 4


def test_it_fits_data_that_can_be_fitted_without_a_step_size():
    problem = om.Fit(lambda x, e: (e[0] @ x - e[1]) ** 2, jnp.zeros(4), (ROWS, ROWS @ START), batch_size=10)
    for method in (SLS(), SLS(reset="goldstein"), PolyakSGD(variant="sps+")):
        solution = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=150))
        np.testing.assert_allclose(solution.value, START, atol=1e-5)
    assert solution.counters.gradients == 151


def test_batches_that_are_not_finite_are_left_out_and_too_many_end_the_solve():
    labels = np.where(np.arange(60) == 7, np.nan, LABELS)
    found = trajectory(SLS(), om.Fit(loss, jnp.asarray(START), (ROWS, labels), batch_size=15))
    assert 0 < found.skipped[-1] < len(KEYS)
    assert jnp.all(jnp.isfinite(found.x))

    def stream(x, key):  # sound without a key, and never again
        first = jnp.all(jax.random.key_data(key) == jax.random.key_data(jax.random.key(0)))
        return ROWS, jnp.where(first, LABELS, jnp.nan)

    problem = om.smooth.TargetProblem(lambda x, e: e[0] @ x, lambda z, e: (z - e[1]) ** 2, stream=stream)
    with pytest.raises(SolveError) as caught:
        om.solve(problem, SLS(skips_in_a_row=3), jnp.asarray(START), key=jax.random.key(1), budget=om.Budget(steps=20))
    assert caught.value.solution.steps == 2
    np.testing.assert_array_equal(caught.value.solution.value, START)


def test_a_polyak_step_is_that_of_optax():
    ours = trajectory(PolyakSGD(max_step=0.7), fit()).x
    solver = optax.polyak_sgd(max_learning_rate=0.7)

    def step(carry, keys):
        x, state = carry
        value, gradient = jax.value_and_grad(batch_loss)(x, fit().batch(keys))
        change, state = solver.update(gradient, state, x, value=value)
        x = optax.apply_updates(x, change)
        return (x, state), x

    start = jnp.asarray(START)
    keys = jnp.concatenate([KEYS[:1], KEYS[:-1]])  # its gradient is that of the step before
    theirs = jax.jit(lambda: jax.lax.scan(step, (start, solver.init(start)), keys)[1])()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("reset", ["increase", "conservative", "goldstein"])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_trajectory_is_that_of_jaxopt(reset, momentum):
    jaxopt = pytest.importorskip("jaxopt")
    ours = trajectory(SLS(max_step=50.0, reset=reset, momentum=momentum, decrease=0.1), fit()).x
    solver = jaxopt.ArmijoSGD(
        batch_loss, aggressiveness=0.9, decrease_factor=0.8, increase_factor=1.5, reset_option=reset, momentum=momentum,
        max_stepsize=50.0, maxls=15,
    )  # fmt: skip
    x = jnp.asarray(START)
    state = solver.init_state(x, fit().batch(KEYS[0]))
    for key, mine in zip(KEYS, ours, strict=True):
        x, state = solver.update(x, state, fit().batch(key))
        np.testing.assert_allclose(mine, x, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_polyak_steps_are_those_of_jaxopt(momentum):
    jaxopt = pytest.importorskip("jaxopt")
    ours = trajectory(PolyakSGD(max_step=2.0, momentum=momentum), fit()).x
    solver = jaxopt.PolyakSGD(batch_loss, max_stepsize=2.0, momentum=momentum)
    x = jnp.asarray(START)
    state = solver.init_state(x, fit().batch(KEYS[0]))
    for key, mine in zip([KEYS[0], *KEYS[:-1]], ours, strict=True):
        x, state = solver.update(x, state, fit().batch(key))
        np.testing.assert_allclose(mine, x, atol=1e-5)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: SLS(max_step=0.0), "max_step"),
        (lambda: SLS(growth=0.9), "growth"),
        (lambda: SLS(shrink=1.2), "shrink"),
        (lambda: SLS(decrease=0.0), "decrease"),
        (lambda: SLS(reset="sometimes"), "reset"),
        (lambda: SLS(momentum=-0.1), "momentum"),
        (lambda: SLS(max_trials=0), "max_trials"),
        (lambda: PolyakSGD(max_step=-1.0), "max_step"),
        (lambda: PolyakSGD(delta=-1.0), "delta"),
        (lambda: PolyakSGD(momentum=1.5), "momentum"),
        (lambda: PolyakSGD(variant="best"), "variant"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, match, as_a_user):
    with pytest.raises(ArgumentError, match=match):
        make()
