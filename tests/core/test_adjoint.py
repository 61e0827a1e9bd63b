"""Derivatives of solutions: implicit, unrolled, one step, none; for traced methods and for methods on the host."""

import os
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import optimand as om
from toys import Descent, HostDescent, Picard, quadratic

TARGET = np.array([1.0, -2.0, 0.5])
GUESS = np.zeros(3)
METHODS = [Descent(tolerance=1e-10), HostDescent(tolerance=1e-10)]
by_name = {"ids": lambda method: type(method).__name__}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def solved(target, method=METHODS[0], guess=GUESS, **options):
    return om.solve(om.Minimize(quadratic, target), method, guess, **options).value


def exact_jacobian(x):
    """x + x^3 = target."""
    return np.diag(1 / (1 + 3 * np.asarray(x) ** 2))


@pytest.mark.parametrize("method", METHODS, **by_name)
@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd, lambda f: jax.jit(jax.jacrev(f)), lambda f: jax.jit(jax.jacfwd(f))],
                         ids=["reverse", "forward", "jit reverse", "jit forward"])  # fmt: skip
def test_the_implicit_jacobian_is_exact(method, mode):
    jacobian = mode(lambda t: solved(t, method))(TARGET)
    np.testing.assert_allclose(jacobian, exact_jacobian(solved(TARGET)), atol=1e-8)


@pytest.mark.parametrize("method", METHODS, **by_name)
def test_batches_of_solves_have_the_gradients_of_each(method):
    targets = np.stack([TARGET, 2 * TARGET, -TARGET])
    gradient = jax.grad(lambda t: jnp.sum(jnp.sin(solved(t, method))))
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(targets), [gradient(t) for t in targets], atol=1e-9)


one_core = len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else os.cpu_count() == 1


@pytest.mark.parametrize(
    "size, batch, workers",
    [
        pytest.param(3, 8, 3, id="many small"),
        pytest.param(
            200_000, 2, 1, id="a large one",
            marks=pytest.mark.skipif(one_core, reason="a known limit on one core, see Method.host"),
        ),
    ],
)  # fmt: skip
def test_host_solves_neither_deadlock_nor_lose_precision(size, batch, workers):
    method, budget = HostDescent(step_size=0.3, tolerance=0.0), om.Budget(steps=5)
    solve = lambda t: jnp.sum(om.solve(om.Minimize(quadratic, t), method, jnp.zeros(size), budget=budget).value)
    f = jax.jit(jax.vmap(jax.value_and_grad(solve)))
    results = []

    def work(seed):
        with jax.enable_x64(True):
            results.append(jax.device_get(f(np.random.default_rng(seed).normal(size=(batch, size)))))

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == workers
    assert all(gradient.dtype == np.float64 and np.all(np.isfinite(gradient)) for _, gradient in results)


def test_second_derivatives_are_exact():
    hessian = jax.hessian(lambda t: jnp.sum(solved(t)))(TARGET)
    x = np.asarray(solved(TARGET))
    np.testing.assert_allclose(hessian, np.diag(-6 * x / (1 + 3 * x**2) ** 3), atol=1e-7)


def test_every_inexact_array_in_the_problem_has_a_gradient_nested_models_included():
    class Energy(eqx.Module):
        network: eqx.nn.MLP
        name: str
        count: int

        def __call__(self, x, shift):
            return jnp.sum((x - shift) ** 2) + 0.1 * jnp.sum(self.network(x) ** 2) * self.count

    energy = Energy(eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0), dtype=jnp.float64), "toy", 2)
    closed_over = jnp.asarray(0.7)

    def outer(everything):
        energy, shift, closed = everything
        problem = om.Minimize(lambda x, model, shift: model(x, shift) + closed * jnp.sum(x**2), energy, shift)
        return jnp.sum(jnp.sin(om.solve(problem, Descent(tolerance=1e-11), GUESS).value))

    point = (energy, jnp.asarray(TARGET), closed_over)
    gradient = eqx.filter_grad(outer)(point)
    leaves, structure = jax.tree_util.tree_flatten(eqx.filter(point, eqx.is_inexact_array))
    slopes = jax.tree_util.tree_leaves(gradient)
    assert len(slopes) == len(leaves) == 6
    for i, (leaf, slope) in enumerate(zip(leaves, slopes, strict=True)):
        direction = np.random.default_rng(i).normal(size=leaf.shape)

        def along(h, i=i, direction=direction):
            moved = [x + h * direction if j == i else x for j, x in enumerate(leaves)]
            return outer(eqx.combine(jax.tree_util.tree_unflatten(structure, moved), point))

        numeric = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(slope) * direction), numeric, rtol=1e-6, atol=1e-9)


def test_unrolling_agrees_in_both_modes():
    exact = exact_jacobian(solved(TARGET))
    budget = om.Budget(steps=200)
    reverse = jax.jacrev(lambda t: solved(t, adjoint=om.Unrolled(), budget=budget))(TARGET)
    few = jax.jacrev(lambda t: solved(t, adjoint=om.Unrolled(checkpoints=5), budget=budget))(TARGET)
    forward = jax.jacfwd(lambda t: solved(t, adjoint=om.Unrolled(forward=True), budget=budget))(TARGET)
    for jacobian in (reverse, few, forward):
        np.testing.assert_allclose(jacobian, exact, atol=1e-7)


def test_unrolling_cannot_see_inside_a_host_method():
    with pytest.raises(om.errors.ArgumentError, match="adjoint"):
        jax.grad(lambda t: solved(t, METHODS[1], adjoint=om.Unrolled()).sum())(TARGET)


def test_one_step_is_biased_by_the_contraction():
    step = jax.jacrev(lambda t: solved(t, adjoint=om.OneStep()))(TARGET)
    x = np.asarray(solved(TARGET))
    # the map keeps its gradient in the state, so its last step moves by -step_size * d grad / d target at the new point
    assert 0 < np.linalg.norm(step) < np.linalg.norm(exact_jacobian(x)) or np.linalg.norm(step) == 0


def test_detached_is_constant():
    np.testing.assert_array_equal(jax.jacrev(lambda t: solved(t, adjoint=om.Detached()))(TARGET), 0)


def test_guess_method_and_budget_have_no_influence_on_the_solution():
    np.testing.assert_array_equal(jax.jacrev(lambda guess: solved(TARGET, guess=guess))(GUESS), 0)
    gradient = jax.grad(lambda size: solved(TARGET, Descent(step_size=size, tolerance=1e-10)).sum())(0.2)
    assert gradient == 0


def test_fixed_points_have_exact_derivatives():
    problem = lambda a: om.FixedPoint(lambda x, a: jnp.cos(a * x), a)
    x = lambda a: om.solve(problem(a), Picard(tolerance=1e-12), np.ones(())).value
    value = x(0.8)
    np.testing.assert_allclose(jax.grad(x)(0.8), -value * jnp.sin(0.8 * value) / (1 + 0.8 * jnp.sin(0.8 * value)), rtol=1e-8)


def large(size, symmetric):
    """A linear root problem above the dense limit."""
    matrix = np.diag(np.linspace(1, 2, size)) + (np.eye(size, k=1) + (1 if symmetric else -1) * np.eye(size, k=-1)) * 0.2
    solver = om.implicit(lambda x, m, b: m @ x - b, symmetric=symmetric)(lambda guess, m, b: jnp.linalg.solve(m, b))
    return matrix, np.linspace(-1, 1, size), solver


@pytest.mark.parametrize("symmetric", [True, False], ids=["conjugate gradients", "GMRES"])
def test_krylov_adjoints_agree_with_the_dense_answer(symmetric):
    matrix, rhs, solver = large(100, symmetric)
    gradient = jax.grad(lambda m, b: jnp.sum(jnp.sin(solver(rhs, m, b))), argnums=(0, 1))(matrix, rhs)
    x = np.linalg.solve(matrix, rhs)
    cotangent = np.linalg.solve(matrix.T, np.cos(x))
    np.testing.assert_allclose(gradient[1], cotangent, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], -np.outer(cotangent, x), rtol=1e-5, atol=1e-9)


def test_a_krylov_solve_that_fails_falls_back_on_the_normal_equations():
    size = 80
    matrix = np.roll(np.eye(size), 1, axis=0)  # a cyclic shift: GMRES makes no progress before the last vector
    seen = []
    solver = om.implicit(lambda x, b: matrix @ x - b, max_steps=40, monitor=seen.append)(
        lambda guess, b: jnp.linalg.solve(matrix, b)
    )
    jacobian_product = jax.jvp(lambda b: solver(np.zeros(size), b), (np.ones(size),), (np.arange(size) * 1.0,))[1]
    np.testing.assert_allclose(jacobian_product, np.roll(np.arange(size), -1), atol=1e-6)
    jax.effects_barrier()
    assert seen and seen[0]["residual"] < 1e-6 and seen[0]["optimality"] < 1e-10


def test_any_lineax_solver_can_be_used():
    matrix, rhs, _ = large(100, False)
    solver = om.implicit(lambda x, b: matrix @ x - b, linear_solver=lx.GMRES(rtol=1e-10, atol=1e-10))(
        lambda guess, b: jnp.linalg.solve(matrix, b)
    )
    gradient = jax.grad(lambda b: jnp.sum(solver(rhs, b)))(rhs)
    np.testing.assert_allclose(gradient, np.linalg.solve(matrix.T, np.ones(100)), rtol=1e-6)


def test_a_singular_system_gives_the_derivative_of_least_norm_and_says_so():
    # only the sum of x is determined
    seen = []
    solver = om.implicit(lambda x, a: (jnp.sum(x) - a) * jnp.ones(2), monitor=seen.append)(
        lambda guess, a: jnp.full(2, a / 2)
    )
    with pytest.warns(RuntimeWarning, match="singular"):
        tangent = jax.jvp(lambda a: solver(jnp.zeros(2), a), (1.0,), (1.0,))[1]
        jax.effects_barrier()
    np.testing.assert_allclose(tangent, [0.5, 0.5], atol=1e-10)
    assert not seen[0]["solved"] and seen[0]["optimality"] < 1e-12


def test_ridge_regularises_the_adjoint():
    solver = om.implicit(lambda x, a: a - x, ridge=1.0)(lambda guess, a: a)
    np.testing.assert_allclose(jax.grad(lambda a: solver(0.0, a))(3.0), 0.5)


def test_a_point_that_is_no_solution_of_a_singular_system_warns_of_both():
    root = om.implicit(lambda x, b: jnp.array([x[0] - b[0], 0.0]) + 1.0, symmetric=True)(lambda guess, b: b)
    with pytest.warns(RuntimeWarning) as caught:
        jax.jvp(lambda b: root(jnp.zeros(2), b), (jnp.ones(2),), (jnp.ones(2),))
        jax.effects_barrier()
    messages = " ".join(str(one.message) for one in caught)
    assert "not a solution" in messages and "singular" in messages


def test_differentiating_a_point_that_is_no_solution_warns():
    with pytest.warns(RuntimeWarning, match="not a solution"):
        jax.grad(lambda t: solved(t, budget=om.Budget(steps=2)).sum())(TARGET)
        jax.effects_barrier()


def test_products_with_the_jacobian_need_no_solver():
    condition = lambda x, a, b: x**2 - a * b
    x, params = jnp.array([2.0, 3.0]), (jnp.array([4.0, 3.0]), jnp.array([1.0, 3.0]))
    tangents = (jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0]))
    tangent = om.root_jvp(condition, x, params, tangents)
    np.testing.assert_allclose(tangent, (tangents[0] * params[1] + params[0] * tangents[1]) / (2 * x))
    cotangents = om.root_vjp(condition, x, params, jnp.ones(2))
    np.testing.assert_allclose(cotangents[0], params[1] / (2 * x))
    np.testing.assert_allclose(cotangents[1], params[0] / (2 * x))


@pytest.mark.parametrize("symmetric", [True, False], ids=["conjugate gradients", "BiCGSTAB"])
def test_an_adjoint_that_starts_from_the_one_before_gives_the_same_answer(symmetric):
    matrix, rhs, _ = large(100, symmetric)

    def condition(x, b):
        return matrix @ x - b

    condition.symmetric = symmetric
    x, w = np.linalg.solve(matrix, rhs), np.cos(np.arange(100.0))
    cold, u = om.root_vjp(condition, x, (rhs,), w, with_adjoint=True)
    np.testing.assert_allclose(cold[0], np.linalg.solve(matrix.T, w), rtol=0, atol=1e-6)
    moved = w + 1e-3 * np.sin(np.arange(100.0))
    for start in (u, 0 * u, -u):
        warm = om.root_vjp(condition, x, (rhs,), moved, start=start)
        np.testing.assert_allclose(warm[0], np.linalg.solve(matrix.T, moved), rtol=0, atol=1e-6)


def test_a_foreign_solver_behind_a_callback_is_differentiable():
    import scipy.optimize

    def scipy_solver(guess, target):
        host = lambda guess, target: scipy.optimize.minimize(
            lambda x: float(np.sum(0.5 * (x - target) ** 2 + 0.25 * x**4)), guess, tol=1e-12
        ).x
        shape = jax.ShapeDtypeStruct(guess.shape, guess.dtype)
        return jax.pure_callback(host, shape, guess, target, vmap_method="sequential")

    solver = om.implicit(jax.grad(quadratic), symmetric=True)(scipy_solver)
    jacobian = jax.jacrev(lambda t: solver(GUESS, t))(TARGET)
    np.testing.assert_allclose(jacobian, exact_jacobian(solved(TARGET)), atol=1e-5)
    batch = jax.vmap(lambda t: solver(GUESS, t))(np.stack([TARGET, -TARGET]))
    np.testing.assert_allclose(batch[0], -batch[1], atol=1e-5)


def test_auxiliary_outputs_carry_no_derivative():
    solver = om.implicit(lambda x, a: x**2 - a, has_aux=True)(lambda guess, a: (jnp.sqrt(a), {"a": a, "n": 3}))
    (_, aux), gradient = jax.value_and_grad(lambda a: (solver(1.0, a)[0], solver(1.0, a)[1]), has_aux=True)(4.0)
    assert gradient == 0.25 and aux["n"] == 3
    assert jax.grad(lambda a: solver(1.0, a)[1]["a"])(4.0) == 0.0


def test_the_memory_of_the_implicit_gradient_does_not_grow_with_the_iterations():
    def memory(steps, adjoint):
        gradient = jax.grad(lambda t: solved(t, Descent(tolerance=0.0), np.zeros(1000), budget=om.Budget(steps=steps),
                                             adjoint=adjoint, record=1).sum())  # fmt: skip
        return jax.jit(gradient).lower(np.zeros(1000)).compile().memory_analysis().temp_size_in_bytes

    assert memory(2000, om.Implicit(tolerance=None)) <= 1.1 * memory(20, om.Implicit(tolerance=None))
    everything = lambda steps: om.Unrolled(checkpoints=steps)
    assert memory(2000, everything(2000)) > 20 * memory(20, everything(20))


def test_optax_steps_inside_a_hypergradient():
    """A gradient through an inner solve, inside an outer loop of somebody else's."""
    optimiser = optax.adam(0.1)
    loss = lambda t: jnp.sum((solved(t) - 0.3) ** 2)

    @jax.jit
    def step(t, state):
        updates, state = optimiser.update(jax.grad(loss)(t), state)
        return optax.apply_updates(t, updates), state

    t, state = jnp.asarray(TARGET), optimiser.init(jnp.asarray(TARGET))
    for _ in range(150):
        t, state = step(t, state)
    np.testing.assert_allclose(t, 0.3 + 0.3**3, atol=1e-2)


class Stretched(om.core.problem.Objective):
    """Curvatures over ten orders of magnitude, and a problem that knows their inverse."""

    curvatures: jax.Array
    target: jax.Array

    def value(self, x, *, key=None):
        return jnp.sum(self.curvatures * (x - self.target) ** 2) / 2

    def traced(self, guess):
        return self

    def preconditioner(self, value):
        return lambda: lambda rhs: rhs / self.curvatures


def test_a_preconditioner_of_the_problem_is_used_where_conjugate_gradients_are_slow():
    class AtOnce(om.Method):
        problem = om.core.problem.Objective

        def init(self, problem, guess, *, key):
            return problem.target + 0 * guess

        def step(self, problem, state, *, key):
            return state

        def done(self, problem, state):
            return jnp.array(True)

        def answer(self, problem, state):
            return state

    curvatures, target = jnp.logspace(-5, 5, 200), jnp.sin(jnp.arange(200.0))

    def run(target, preconditioner=None):
        adjoint = om.Implicit(max_steps=150, preconditioner=preconditioner)
        return jnp.sum(jnp.cos(om.solve(Stretched(curvatures, target), AtOnce(), jnp.zeros(200), adjoint=adjoint).value))

    np.testing.assert_allclose(jax.jit(jax.grad(run))(target), -jnp.sin(target), atol=1e-6)
    with pytest.warns(RuntimeWarning, match="was not solved"):
        jax.block_until_ready(jax.jit(jax.grad(lambda target: run(target, lambda rhs: rhs)))(target))
