"""Lion-K as a method and as an Optax transformation: what the paper says of it holds."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import scipy.optimize

import optimand as om
from lion_cases import KERNELS, draw
from optimand.core.errors import ArgumentError
from optimand.core.problem import Objective
from optimand.smooth import HuberKernel, L1Kernel, L2SquaredKernel, LionK, SpectralKernel, TopKKernel, kkt_score, lion_k


def path(method, problem, guess, steps, see=lambda method, problem, state: state.point):
    """The points on the way, or what `see` makes of the states."""

    @jax.jit
    def go(guess):
        def step(state, _):
            state = method.step(problem, state, key=None)
            return state, see(method, problem, state)

        return jax.lax.scan(step, method.init(problem, guess, key=None), length=steps)[1]

    return go(guess)


def quadratic(seed=0, size=6):
    root = jax.random.normal(jax.random.key(seed), (size, size))
    matrix = root @ root.T / size + 0.1 * jnp.eye(size)
    centre = 2 * jax.random.normal(jax.random.key(seed + 1), (size,))
    return om.Minimize(lambda x: (x - centre) @ (matrix @ (x - centre)) / 2), matrix, centre


def net(x):
    return jnp.sum(jnp.sin(x["a"]) @ x["b"]) + 0.1 * jnp.sum(x["a"] ** 2)


def trained_by(tx, steps=100):
    def go(x):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(net)(x), state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(step, (x, tx.init(x)), length=steps)[1]

    return jax.jit(go)(draw(3))


def same_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True))


def last(tree):
    return jtu.tree_map(lambda leaf: leaf[-1], tree)


RATES = (1e-2, optax.linear_schedule(1e-2, 0.0, 100))


def check_bit_for_bit():
    for rate in RATES:
        reference = trained_by(optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.3))
        assert same_bits(trained_by(lion_k(L1Kernel(), rate, 0.3)), reference)
        method = LionK(L1Kernel(), rate, 0.3, tolerance=None)
        assert same_bits(om.solve(om.Minimize(net), method, draw(3), budget=om.Budget(steps=100)).value, last(reference))


def test_with_the_l1_kernel_it_is_lion_bit_for_bit():
    """Where programs are compiled as users' are: without optimisation, as tests are, two of them round differently."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(Path(om.__file__).parents[1])]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", "import test_lion; test_lion.check_bit_for_bit()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_lion_k_is_the_method_for_other_kernels_and_for_implicit_decay():
    kernel, rate = HuberKernel(0.1), optax.linear_schedule(1e-1, 1e-3, 40)
    ours = trained_by(lion_k(kernel, rate, 2.0, decay="implicit"), 40)
    points = path(LionK(kernel, rate, 2.0, decay="implicit"), om.Minimize(net), draw(3), 40)
    for a, b in zip(jtu.tree_leaves(ours), jtu.tree_leaves(points), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_lion_k_keeps_its_momentum_in_another_precision_and_masks_the_decay():
    mask = {"a": True, "b": False}
    options = {"weight_decay": 0.3, "mu_dtype": jnp.bfloat16, "mask": mask}
    assert same_bits(trained_by(lion_k(L1Kernel(), 1e-2, **options)), trained_by(optax.lion(1e-2, **options)))


def test_the_spectral_kernel_takes_the_first_step_of_muon():
    gradient = jax.random.normal(jax.random.key(0), (6, 4))
    cubic = optax.contrib.scale_by_muon(ns_coeffs=(1.5, -0.5, 0.0), ns_steps=20, nesterov=False)
    first = lambda tx: jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(gradient)
    muon = first(cubic)
    with pytest.warns(UserWarning, match="no constraint"):
        ours = lion_k(SpectralKernel(newton_schulz=20), 1.0, 0.0)
    step = first(ours)
    # Muon scales by the shape afterwards
    np.testing.assert_allclose(step / jnp.linalg.norm(step), -muon / jnp.linalg.norm(muon), atol=1e-5)


class Pull(Objective):
    """Has this gradient everywhere."""

    direction: dict

    def value(self, x, *, key=None):
        return jnp.zeros(())

    def value_and_gradient(self, x, *, key=None):
        return jnp.zeros(()), self.direction

    def traced(self, guess):
        return self


@pytest.mark.parametrize("name", [name for name in KERNELS if KERNELS[name].constrains])
def test_outside_the_set_shrinks_the_distance_and_inside_the_iterates_never_leave(name):
    """Outside by 1 - rate * decay a step, exactly if the steps are held at the side of the boundary."""
    kernel, direction = KERNELS[name], draw(5)
    implicit = name == "lp 4"
    method = LionK(kernel, 0.1, 0.5, decay="implicit" if implicit else "explicit")
    share = 1 / 1.05 if implicit else 0.95

    @jax.jit
    def violations(pulls, start):
        def step(state, pull):
            state = method.step(Pull(pull), state, key=None)
            return state, kernel.gauge(jtu.tree_map(lambda leaf: 0.5 * leaf, state.point)) - 1

        return jax.lax.scan(step, method.init(Pull(start), start, key=None), pulls)[1]

    outwards = kernel.subgradient(direction)
    start = jtu.tree_map(lambda leaf: 2 * leaf / kernel.gauge(outwards), outwards)  # on the boundary
    outside = jtu.tree_map(lambda leaf: 5 * leaf, start)
    sizes = np.exp(3 * np.random.default_rng(0).normal(size=1000))
    noise = jtu.tree_map(lambda leaf: leaf * sizes.reshape(-1, *[1] * (leaf.ndim - 1)), draw(6, 1000))
    held = jtu.tree_map(lambda leaf: -100.0 * jnp.broadcast_to(leaf, (1000, *leaf.shape)), direction)
    within = violations(noise, start)
    assert np.max(within) <= 1e-6 and np.min(within) < -1e-3
    shrinking = np.asarray(violations(held, outside), np.float64)[1:60]  # the first step is made from the gradient at the start
    assert shrinking[0] > 3 and np.all(shrinking > 0)
    np.testing.assert_allclose(shrinking[1:] / shrinking[:-1], share, rtol=1e-4)
    assert np.all(np.diff(violations(noise, outside)[:30]) < 0)


def test_a_start_outside_is_reported_and_repaired():
    problem, _, _ = quadratic()
    method = LionK(learning_rate=0.05, weight_decay=1.0)
    solution = om.solve(problem, method, jnp.full(6, 5.0), budget=om.Budget(steps=400))
    violation = solution.history["violation"]
    assert violation[0] > 3.5 and violation[-1] < 1e-5
    assert np.isinf(solution.history["kkt_score"][0]) and np.isfinite(solution.history["kkt_score"][-1])


def test_the_score_is_the_frank_wolfe_gap_times_the_decay_and_zero_at_the_solution():
    with jax.enable_x64(True):
        problem, matrix, centre = quadratic()
        decay = 0.8
        x = np.random.default_rng(0).uniform(-1 / decay, 1 / decay, (100, 6))
        gradient = (x - np.asarray(centre)) @ np.asarray(matrix)
        score = jax.jit(jax.vmap(lambda g, x: kkt_score(L1Kernel(), g, x, decay)))(gradient, x)
        corner = -np.sign(gradient) / decay
        assert np.all(np.asarray(score) >= 0)
        np.testing.assert_allclose(score, decay * np.sum(gradient * (x - corner), axis=1), rtol=1e-10)
        both = jax.jit(problem.value_and_gradient)
        bounded = scipy.optimize.minimize(
            lambda x: tuple(map(np.asarray, both(x))), np.zeros(6), jac=True, bounds=[(-1 / decay, 1 / decay)] * 6,
            method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-12},
        ).x  # fmt: skip
        free = np.abs(bounded) < 1 / decay  # what SciPy leaves of the gradient there is removed by one linear system
        curvature, gradient = np.asarray(matrix), np.asarray(problem.gradient(jnp.asarray(bounded)))
        bounded[free] -= np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        assert kkt_score(L1Kernel(), problem.gradient(jnp.asarray(bounded)), jnp.asarray(bounded), decay) < 1e-10


def test_with_the_squared_norm_it_is_the_heavy_ball_with_weight_decay():
    problem, matrix, centre = quadratic()
    rate, decay, beta = 0.1, 0.5, 0.9
    points = path(LionK(L2SquaredKernel(), rate, decay, b1=beta, b2=beta), problem, jnp.ones(6), 50)
    matrix, centre = np.asarray(matrix, np.float64), np.asarray(centre, np.float64)
    before = x = np.ones(6)
    for _ in range(50):  # x+ = x + beta (x - x-) - rate (1 - beta) g, and the decay of x and of what moved it
        g = matrix @ (x - centre)
        after = (1 - rate * decay) * x + beta * (x - (1 - rate * decay) * before) - rate * (1 - beta) * g
        if before is x:
            after = (1 - rate * decay) * x - rate * (1 - beta) * g
        before, x = x, after
    np.testing.assert_allclose(points[-1], x, atol=1e-5)


def test_implicit_and_explicit_decay_agree_to_second_order():
    with jax.enable_x64(True):
        problem, _, _ = quadratic()

        def gap(rate):
            ends = [
                LionK(L1Kernel(), rate, 1.0, decay=decay).step(problem, state, key=None).point
                for decay in ("explicit", "implicit")
                for state in [LionK().init(problem, jnp.ones(6), key=None)]
            ]
            return float(jnp.max(jnp.abs(ends[0] - ends[1])))

        assert 3.5 < gap(1e-2) / gap(5e-3) < 4.5


@pytest.mark.parametrize("name", ["l1", "top-k"])
def test_unknowns_can_be_permuted_and_change_their_signs(name):
    problem, _, _ = quadratic()
    order, signs = jnp.array([3, 1, 5, 0, 2, 4]), jnp.array([1.0, -1, -1, 1, -1, 1])
    there = lambda x: signs * x[order]
    back = lambda y: (signs * y)[jnp.argsort(order)]
    method = LionK(KERNELS[name], 0.01, 1.0)
    plain = path(method, problem, jnp.linspace(-0.5, 0.7, 6), 60)
    turned = path(method, om.Minimize(lambda y: problem.value(back(y))), there(jnp.linspace(-0.5, 0.7, 6)), 60)
    np.testing.assert_allclose(turned, jax.vmap(there)(plain), atol=1e-5)


def test_without_momentum_it_is_frank_wolfe():
    problem, matrix, centre = quadratic()
    method = LionK(L1Kernel(), lambda step: 2 / (step + 3.0), 1.0, b1=0.0, b2=0.0)
    points = path(method, problem, jnp.zeros(6), 30)
    x, matrix, centre = np.zeros(6), np.asarray(matrix), np.asarray(centre)
    for step in range(30):
        corner = -np.sign(matrix @ (x - centre))
        x = x + 2 / (step + 3.0) * (corner - x)
    np.testing.assert_allclose(points[-1], x, atol=1e-5)


def test_the_lyapunov_function_falls_inside_the_set_but_for_the_order_of_the_step():
    with jax.enable_x64(True):
        problem, _, _ = quadratic()
        rises = []
        for rate in (1e-2, 1e-3):
            energy = lambda method, problem, state: method.metrics(problem, state)["lyapunov"]
            method = LionK(KERNELS["smooth l1"], rate, 1.0)
            energies = np.asarray(path(method, problem, jnp.full(6, 0.9), int(10 / rate), energy))
            assert energies[-1] < energies[0]
            rises.append(np.sum(np.maximum(np.diff(energies), 0)) / (energies[0] - energies[-1]))
        assert rises[1] < 0.2 * rises[0] + 1e-12 and rises[1] < 1e-2


# Bounds.

BOX = (np.array([-1.0, 0.0, -3.0, 0.2]), np.array([0.5, 2.0, 4.0, 0.2]))  # the last is fixed
CENTRE = np.array([2.0, 1.0, -0.5, 3.0])


def bowl(x, theta):
    return jnp.sum(jnp.array([1.0, 2.0, 0.5, 1.0]) * (x - theta) ** 2) + 0.3 * x[0] * x[1]


def bounded(theta, bounds=BOX):
    return om.Constrained(bowl, theta, bounds=bounds)


RATE = optax.exponential_decay(0.5, 1, 0.995)


def test_bounds_are_met_with_their_multipliers():
    with jax.enable_x64(True):
        method = LionK.for_bounds(BOX, learning_rate=RATE, b2=0.9, tolerance=1e-8)
        solution = om.solve(bounded(CENTRE), method, jnp.full(4, 9.0), budget=om.Budget(steps=6000))
        assert solution.result == om.Result.converged
        value = solution.value
        assert bounded(CENTRE).violation(value.primal) < 1e-8
        assert bounded(CENTRE).kkt_residual(value).largest < 1e-6
        reference = scipy.optimize.minimize(
            lambda x: float(bowl(jnp.asarray(x), CENTRE)), np.zeros(4), bounds=np.array(BOX).T, options={"ftol": 1e-14}
        ).x
        np.testing.assert_allclose(value.primal, reference, atol=1e-5)
        assert value.upper[0] > 0 and np.all(value.lower[:3] == 0) and value.upper[3] > 0
        assert solution.history["violation"][0] > 4


def test_a_symmetric_box_is_the_decay_of_the_plain_objective():
    problem, _, _ = quadratic()
    method = LionK.for_bounds(0.5, learning_rate=0.01)
    assert method.weight_decay == 2.0
    plain = path(method, problem, jnp.zeros(6), 100)
    boxed = om.Constrained(problem.fn, bounds=(-0.5, 0.5))
    mapped = path(method, boxed, boxed.start(jnp.zeros(6)), 100)
    np.testing.assert_allclose(mapped / 2, plain, atol=2e-5)


def test_a_bounded_solution_is_differentiated_with_its_active_set():
    with jax.enable_x64(True):
        method = LionK.for_bounds(BOX, learning_rate=RATE, b2=0.9, tolerance=1e-11)

        @jax.jit
        @jax.jacobian
        def jacobian(theta):
            return om.solve(bounded(theta), method, jnp.full(4, 0.3), budget=om.Budget(steps=6000)).value.primal

        both = jax.jit(jax.value_and_grad(bowl))

        def by_scipy(theta):
            found = scipy.optimize.minimize(
                lambda x: tuple(map(np.asarray, both(x, theta))), np.full(4, 0.3), jac=True, bounds=np.array(BOX).T, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-13},
            )  # fmt: skip
            return found.x

        found = jacobian(jnp.array(CENTRE))
        for i in range(4):
            step = 1e-4 * np.eye(4)[i]
            difference = (by_scipy(CENTRE + step) - by_scipy(CENTRE - step)) / 2e-4
            np.testing.assert_allclose(found[:, i], difference, atol=1e-5)


def test_bounds_may_be_a_pytree_and_vary_under_vmap():
    fn = lambda x: (x["a"] - 3.0) ** 2 + jnp.sum((x["b"] + 3.0) ** 2)
    guess = {"a": jnp.zeros(()), "b": jnp.zeros(2)}

    @jax.jit
    @jax.vmap
    def best(high):
        problem = om.Constrained(fn, bounds=({"a": -1.0, "b": -2.0 * jnp.ones(2)}, {"a": high, "b": jnp.ones(2)}))
        return om.solve(problem, LionK(learning_rate=0.1, weight_decay=1.0), guess, budget=om.Budget(steps=200)).value

    value = best(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(value.primal["a"], [0.5, 2.0], atol=1e-5)
    np.testing.assert_allclose(value.primal["b"], -2.0, atol=1e-5)
    np.testing.assert_allclose(value.upper["a"], [5.0, 2.0], atol=1e-4)


# Training, and what goes wrong.


def test_it_trains_on_batches_and_counts_the_samples():
    rows = jax.random.normal(jax.random.key(1), (64, 3))
    truth = jnp.array([1.0, -2.0, 0.5])
    loss = lambda w, example: (example[0] @ w - example[1]) ** 2
    problem = om.Fit(loss, jnp.zeros(3), (rows, rows @ truth), batch_size=8)
    method = LionK(learning_rate=optax.linear_schedule(0.1, 0.0, 400), weight_decay=2 / 3)
    solution = om.solve(problem, method, key=jax.random.key(0), budget=om.Budget(steps=400))
    assert solution.counters.samples == 8 * 401 and solution.counters.gradients == 401
    assert jnp.max(jnp.abs(solution.value)) <= 1.5 and abs(solution.value[1] + 1.5) < 1e-2


@pytest.mark.parametrize("kernel", [L1Kernel(), TopKKernel(1), KERNELS["threshold"], KERNELS["lp 4"]])
def test_a_gradient_that_is_not_a_number_ends_the_solve_before_the_step(kernel):
    @jax.custom_jvp
    def fn(x):
        return jnp.sum(x**2)

    @fn.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return fn(x), jnp.sum(jnp.where(jnp.max(x) < 0.5, jnp.nan, 2 * x) * t)

    solution = om.solve(om.Minimize(fn), LionK(kernel, 0.1, 0.5), jnp.array([1.0, -1.0]), throw=False)
    assert solution.result == om.Result.nonfinite
    assert np.all(np.isfinite(solution.value))


def test_a_single_matrix_is_held_in_the_spectral_ball():
    target = jax.random.normal(jax.random.key(2), (4, 3))
    problem = om.Minimize(lambda x: jnp.sum((x - target) ** 2))
    method = LionK(SpectralKernel(), optax.linear_schedule(0.1, 0.0, 300), 2.0, tolerance=None, monitor=True)
    solution = om.solve(problem, method, jnp.zeros((4, 3)), budget=om.Budget(steps=300))
    left, values, right = np.linalg.svd(target, full_matrices=False)
    np.testing.assert_allclose(solution.value, left @ np.diag(np.minimum(values, 0.5)) @ right, atol=2e-3)
    assert solution.history["violation"][-1] <= 1e-6
    assert "kkt_score" not in om.solve(problem, LionK(SpectralKernel(), tolerance=None), target, budget=om.Budget(steps=1)).history


def minimise(method, **options):
    return om.solve(om.Minimize(lambda x: jnp.sum(x**2)), method, jnp.ones(3), budget=om.Budget(steps=1), **options)


def constrain(method, bounds=(-1.0, 1.0), **options):
    return om.solve(om.Constrained(lambda x: jnp.sum(x**2), bounds=bounds, **options), method, jnp.ones(3))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LionK("l1"), "kernel"),
        (lambda: LionK(learning_rate=0.0), "learning_rate"),
        (lambda: LionK(learning_rate=0.5, weight_decay=2.0), "learning_rate"),
        (lambda: LionK(learning_rate=optax.linear_schedule(0.0, 0.6, 50), weight_decay=2.0), "learning_rate"),
        (lambda: lion_k(L1Kernel(), 1.0, 1.0), "learning_rate"),
        (lambda: LionK(weight_decay=-0.1), "weight_decay"),
        (lambda: LionK(b1=1.0), "b1"),
        (lambda: LionK(b2=-0.1), "b2"),
        (lambda: LionK(decay="none"), "decay"),
        (lambda: LionK(tolerance=-1.0), "tolerance"),
        (lambda: LionK(monitor="yes"), "monitor"),
        (lambda: minimise(LionK(TopKKernel(4))), "k"),
        (lambda: minimise(LionK(KERNELS["groups of 2"])), "groups"),
        (lambda: minimise(LionK(KERNELS["groups by number"])), "groups"),
        (lambda: lion_k(TopKKernel(4), 1e-3, 0.1).init(jnp.ones(3)), "k"),
        (lambda: LionK.for_bounds(float("inf")), "bounds"),
        (lambda: LionK.for_bounds(0.0), "bounds"),
        (lambda: LionK.for_bounds((0.0, float("inf"))), "bounds"),
        (lambda: LionK.for_bounds((None, 1.0)), "bounds"),
        (lambda: LionK.for_bounds((1.0, 0.0)), "bounds"),
        (lambda: LionK.for_bounds((1.0, 1.0)), "bounds"),
        (lambda: LionK.for_bounds((0.0, 1.0, 2.0)), "bounds"),
        (lambda: LionK.for_bounds(1.0, weight_decay=1.0), "weight_decay"),
        (lambda: LionK.for_bounds((0.0, 1.0), kernel=HuberKernel(0.1)), "kernel"),
        (lambda: constrain(LionK(HuberKernel(0.1))), "kernel"),
        (lambda: constrain(LionK(), (0.0, jnp.inf)), "bounds"),
        (lambda: constrain(LionK(), (jnp.array([0.0, -jnp.inf, 0.0]), 1.0)), "bounds"),
        (lambda: constrain(LionK(), (0.0, None)), "bounds"),
        (lambda: constrain(LionK(), None), "bounds"),
        (lambda: constrain(LionK(), equalities=lambda x: x[:1]), "problem"),
        (lambda: constrain(LionK(), inequalities=lambda x: x[:1]), "problem"),
    ],
)
def test_bad_input_is_refused_by_name(make, name):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == name


def test_the_message_about_a_kernel_that_imposes_no_bounds_gives_the_map():
    with pytest.raises(ArgumentError, match=r"x = \(lower \+ upper\) / 2 \+ y \(upper - lower\) / 2"):
        LionK.for_bounds((0.0, 1.0), kernel=KERNELS["lp 4"])


def test_a_decay_of_zero_warns_that_nothing_is_constrained():
    with pytest.warns(UserWarning, match="no constraint is imposed"):
        LionK(weight_decay=0.0)
    LionK(weight_decay=1.0, learning_rate=2.0, decay="implicit")
