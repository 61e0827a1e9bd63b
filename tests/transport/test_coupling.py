"""Couplings: costs that are evaluated as they go, the conventions of value and potentials, derivatives, invariances, bounds."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import optimand as om
from optimand.transport import (
    CostMatrix,
    Coupling,
    Grid,
    PointCloud,
    Potentials,
    Sinkhorn,
    SinkhornNewton,
    lyapunov_potential,
    rounded,
)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def data(n=7, m=5, seed=0):
    """A cost and weights."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    return jnp.asarray(rng.uniform(size=(n, m))), jnp.asarray(a / a.sum()), jnp.asarray(b / b.sum())


def anywhere(problem, seed=1):
    """Potentials that solve nothing."""
    f, g = (jnp.asarray(np.random.default_rng(seed + i).normal(size=w.shape)) * 0.2 for i, w in enumerate((problem.a, problem.b)))
    return Potentials(f, g)


def solved(problem, **settings):
    return om.solve(problem, SinkhornNewton(tolerance=1e-13, **settings)).value


def distance(p, q):
    return jnp.sum(jnp.abs(p - q) ** 1.5)


def clouds(dimension=2):
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=(count, dimension))) for i, count in enumerate((11, 6)))
    return {
        "squares": PointCloud(x, y, dense_below=0, block=4),
        "distances": PointCloud(x, y, "euclidean", dense_below=0, block=3),
        "a function": PointCloud(x, y, distance, dense_below=0, block=11),
        "many dimensions": PointCloud(jnp.tile(x, 6), jnp.tile(y, 6), dense_below=0, block=5),
        "grid": Grid([x[:4, 0], x[:3, 1]], [y[:2, 0], y[:3, 1]], ["manhattan", "sqeuclidean"]),
        "grid of a function": Grid([x[:4, 0], x[:3, 1]], cost=lambda p, q: jnp.abs(p - q) ** 1.5),
    }


@pytest.mark.parametrize("name", clouds())
def test_what_is_evaluated_as_it_goes_is_what_the_matrix_says(name):
    cost = clouds()[name]
    n, m = cost.shape
    dense = CostMatrix(cost.matrix())
    assert dense.shape == (n, m)
    for axis, count in ((1, m), (0, n)):
        h = jnp.sin(jnp.arange(1.0 * count))
        ours, theirs = (jax.value_and_grad(lambda h, s, c=c, axis=axis: jnp.sum(jnp.sin(c.logsumexp(h, s, axis))), (0, 1))(h, 3.0) for c in (cost, dense))
        for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_the_matrices_are_those_of_the_formulas():
    for name, of in {"squares": lambda d: d**2, "distances": lambda d: d}.items():
        cost = clouds()[name]
        d = np.linalg.norm(np.asarray(cost.x)[:, None] - np.asarray(cost.y)[None], axis=-1)
        np.testing.assert_allclose(cost.matrix(), of(d), atol=1e-12)
    many = clouds()["many dimensions"]
    np.testing.assert_allclose(many.matrix(), 6 * np.asarray(clouds()["squares"].matrix()), atol=1e-11)
    axes = [np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0])]
    points = np.stack([c.ravel() for c in np.meshgrid(*axes, indexing="ij")], 1)
    np.testing.assert_allclose(Grid(axes).matrix(), PointCloud(points).matrix(), atol=1e-12)
    assert jnp.all(jnp.isfinite(jax.grad(lambda x: jnp.sum(PointCloud(x, cost="euclidean").matrix()))(jnp.ones((2, 2)))))


def test_a_solve_on_blocks_is_the_solve_with_the_matrix_with_its_derivative():
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2))), jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)))

    def cost_of(x, **settings):
        problem = Coupling(PointCloud(x, y, distance, **settings), epsilon=0.2)
        return problem.transport_cost(om.solve(problem, Sinkhorn(1e-12)).value)

    on_line, dense = (jax.jit(jax.value_and_grad(lambda x, s=s: cost_of(x, **s)))(x) for s in ({"dense_below": 0, "block": 4}, {}))
    np.testing.assert_allclose(on_line[0], dense[0], rtol=1e-9)
    np.testing.assert_allclose(on_line[1], dense[1], atol=1e-8)
    problem = Coupling(PointCloud(x, y, dense_below=0, block=4), epsilon=0.2)
    value = solved(problem, hessian="products")
    assert problem.marginal_error(value) <= 1e-12


def test_the_gradient_is_that_of_the_value():
    problem = Coupling(*data(), epsilon=0.3)
    x = anywhere(problem)
    slope = jax.grad(problem.value)(x)
    for got, wanted in zip(jax.tree.leaves(problem.gradient(x)), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-13)


def test_sums_over_the_plan_need_no_plan():
    problem = Coupling(*data(), epsilon=0.3)
    x = anywhere(problem)
    plan = problem.plan(x)
    v, u = jnp.arange(10.0).reshape(5, 2), jnp.arange(7.0)
    np.testing.assert_allclose(problem.push(x, v), plan @ v, rtol=1e-12)
    np.testing.assert_allclose(problem.push(x, v[:, 1]), plan @ v[:, 1], rtol=1e-12)
    np.testing.assert_allclose(problem.pull(x, u), plan.T @ u, rtol=1e-12)
    np.testing.assert_allclose(problem.transport_cost(x), jnp.sum(plan * problem.cost.matrix()), rtol=1e-12)
    lacking = jnp.sum(jnp.abs(plan.sum(1) - problem.a)) + jnp.sum(jnp.abs(plan.sum(0) - problem.b))
    np.testing.assert_allclose(problem.marginal_error(x), lacking, rtol=1e-10)


def test_potentials_and_value_in_the_form_of_tang_et_al():
    cost, a, b = data()
    eta = 20.0
    problem = Coupling(cost, a, b, epsilon=1 / eta)
    value = anywhere(problem)
    x, y = value.f + (jnp.log(a) + 1) / eta, value.g + jnp.log(b) / eta
    plan = jnp.exp(eta * (x[:, None] + y[None, :] - cost) - 1)
    np.testing.assert_allclose(problem.plan(value), plan, rtol=1e-12)
    np.testing.assert_allclose(lyapunov_potential(problem, value), -jnp.sum(plan) / eta + a @ x + b @ y, rtol=1e-12)
    value = solved(problem)
    plan = problem.plan(value)
    primal = jnp.sum(cost * plan) + jnp.sum(plan * jnp.log(plan)) / eta
    np.testing.assert_allclose(lyapunov_potential(problem, value), primal, atol=1e-10)
    entropy = -(a @ jnp.log(a) + b @ jnp.log(b))
    np.testing.assert_allclose(problem.dual(value), primal + entropy / eta, atol=1e-10)
    np.testing.assert_allclose(problem.dual(value), problem.primal(plan), atol=1e-10)


def test_two_points_against_the_root_of_one_equation():
    cost, a, b = jnp.array([[0.3, 1.0], [0.8, 0.1]]), jnp.array([0.4, 0.6]), jnp.array([0.7, 0.3])
    epsilon = 0.1
    twist = float(cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0])

    def stationary(p):  # of the plan [[p, 0.4 - p], [0.7 - p, p - 0.1]]
        return twist + epsilon * np.log(p * (p - 0.1) / ((0.4 - p) * (0.7 - p)))

    p = scipy.optimize.brentq(stationary, 0.1 + 1e-12, 0.4 - 1e-12, xtol=1e-14)
    problem = Coupling(cost, a, b, epsilon=epsilon)
    np.testing.assert_allclose(problem.plan(solved(problem))[0, 0], p, atol=1e-11)


def linear_program(cost, a, b):
    n, m = cost.shape
    sums = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return scipy.optimize.linprog(np.ravel(cost), A_eq=sums, b_eq=np.concatenate([a, b]), method="highs").fun


def test_the_bracket_holds_the_linear_program_and_closes_as_epsilon_falls():
    cost, a, b = data(9, 12)
    exact = linear_program(cost, a, b)
    widths = []
    for epsilon in (0.1, 0.01, 0.001):
        problem = Coupling(cost, a, b, epsilon=epsilon)
        low, high = problem.bracket(solved(problem))
        assert low <= exact + 1e-12 and exact <= high + 1e-12
        widths.append(high - low)
    assert widths[2] < 1e-2 * widths[0] and widths[2] < 1e-3


def test_the_rounded_plan_has_the_marginals_and_the_gap_is_that_to_the_optimum():
    problem = Coupling(*data(), epsilon=0.05)
    best = problem.dual(solved(problem))
    x = om.solve(problem, Sinkhorn(1e-2)).value
    plan, near = problem.plan(x), problem.rounded_plan(x)
    np.testing.assert_allclose(near.sum(1), problem.a, atol=1e-15)
    np.testing.assert_allclose(near.sum(0), problem.b, atol=1e-15)
    assert jnp.sum(jnp.abs(near - plan)) <= 2 * problem.marginal_error(x) + 1e-15
    assert problem.dual(x) <= best <= problem.primal(near)
    np.testing.assert_allclose(problem.gap(x), problem.primal(near) - problem.dual(x))
    np.testing.assert_allclose(rounded(near, problem.a, problem.b), near, atol=1e-15)


# Derivatives.


def along(function, x, direction, h=1e-5):
    return (function(x + h * direction) - function(x - h * direction)) / (2 * h)


def given():
    cost, a, b = data()
    return {"cost": cost, "a": a, "b": b, "epsilon": jnp.asarray(0.05)}


def quantities(parts):
    problem = Coupling(**parts)
    x = om.solve(problem, SinkhornNewton(tolerance=1e-13)).value
    return jnp.stack([problem.envelope(x), problem.dual(x), problem.transport_cost(x)])


@functools.cache
def slopes():
    return jax.jit(jax.jacrev(quantities))(given())


@pytest.mark.parametrize("of", given())
def test_derivatives_by_the_envelope_theorem_the_implicit_function_theorem_and_differences(of):
    parts = given()
    direction = jnp.asarray(np.random.default_rng(5).normal(size=parts[of].shape))
    if of in ("a", "b"):
        direction = 0.1 * (direction - jnp.mean(direction))  # sums stay equal
    _, value, cost = along(lambda t: quantities({**parts, of: parts[of] + t * direction}), 0.0, 1.0, 1e-6)
    envelope, implicit, of_cost = jnp.tensordot(slopes()[of], direction, direction.ndim)
    np.testing.assert_allclose(envelope, value, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(implicit, envelope, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(of_cost, cost, rtol=1e-5, atol=1e-7)


def test_the_envelope_is_the_plan_and_the_potentials():
    cost, a, b = data()
    problem = Coupling(cost, a, b, epsilon=0.05)
    value = solved(problem)
    slopes = jax.grad(lambda cost, a, b: Coupling(cost, a, b, epsilon=0.05).envelope(value), (0, 1, 2))(cost, a, b)
    for slope, wanted in zip(slopes, (problem.plan(value), value.f, value.g), strict=True):
        np.testing.assert_allclose(slope, wanted, atol=1e-12)


def test_derivatives_with_respect_to_points():
    x, y = (jnp.asarray(np.random.default_rng(i).normal(size=(6, 2))) for i in (0, 1))

    def run(x):
        problem = Coupling(PointCloud(x, y), epsilon=0.3)
        value = om.solve(problem, SinkhornNewton(tolerance=1e-13)).value
        return jnp.stack([problem.envelope(value), problem.transport_cost(value)])

    direction = jnp.cos(jnp.arange(12.0)).reshape(6, 2)
    ours = jnp.tensordot(jax.jit(jax.jacrev(run))(x), direction, 2)
    dual, cost = along(run, x, direction)
    np.testing.assert_allclose(ours, [dual, cost], rtol=1e-6)


def test_derivatives_of_many_potentials_by_conjugate_gradients():
    cost, a, b = data(50, 40)
    a = a * jnp.logspace(0, 2, 50)
    a = a / jnp.sum(a)

    def run(t):
        problem = Coupling(cost + t * jnp.sin(7 * cost), a, b, epsilon=0.05)
        adjoint = om.Implicit(preconditioner=problem.precondition, max_steps=200)
        return problem.transport_cost(om.solve(problem, SinkhornNewton(tolerance=1e-13), adjoint=adjoint).value)

    np.testing.assert_allclose(jax.jit(jax.grad(run))(0.1), along(run, 0.1, 1.0), rtol=1e-6)


# Invariances and closed forms.


def test_permutations_and_shifts():
    cost, a, b = data()
    problem = Coupling(cost, a, b, epsilon=0.02)
    value = solved(problem)
    order = np.random.default_rng(2).permutation(7)
    permuted = solved(Coupling(cost[order], a[order], b, epsilon=0.02))
    np.testing.assert_allclose(permuted.f, value.f[order], atol=1e-10)
    np.testing.assert_allclose(permuted.g, value.g, atol=1e-10)
    u, v = jnp.sin(jnp.arange(7.0)), jnp.cos(jnp.arange(5.0))
    shifted = Coupling(cost + u[:, None] + v[None, :], a, b, epsilon=0.02)
    moved = solved(shifted)
    wanted = Potentials(value.f + u, value.g + v).centred()
    np.testing.assert_allclose(moved.f, wanted.f, atol=1e-10)
    np.testing.assert_allclose(moved.g, wanted.g, atol=1e-10)
    np.testing.assert_allclose(shifted.plan(moved), problem.plan(value), atol=1e-11)
    scaled = solved(Coupling(1e3 * cost, 5 * a, 5 * b, epsilon=20.0))
    np.testing.assert_allclose(scaled.f + scaled.g[0], 1e3 * (value.f + value.g[0]) - 20 * np.log(5), rtol=1e-8)


def test_gaussians_on_a_line_against_the_closed_form():
    grid = jnp.linspace(-6, 6, 241)
    weigh = lambda mean, deviation: jax.nn.softmax(-((grid - mean) ** 2) / (2 * deviation**2))
    epsilon, s, t, shift = 0.4, 0.7, 1.1, 0.8
    problem = Coupling(Grid([grid]), weigh(0.0, s), weigh(shift, t), epsilon=epsilon)
    value = om.solve(problem, Sinkhorn(1e-10)).value
    half = epsilon / 2
    d = np.sqrt(4 * s**2 * t**2 + half**2)
    exact = shift**2 + s**2 + t**2 - d + half * (1 - np.log(2 * half)) + half * np.log(d + half)
    np.testing.assert_allclose(problem.dual(value), exact, rtol=1e-4)


def test_an_epsilon_relative_to_the_mean_cost():
    cost, a, b = data()
    problem = Coupling(cost, a, b, epsilon=0.1, relative=True)
    np.testing.assert_allclose(problem.epsilon, 0.1 * (a @ cost @ b), rtol=1e-12)
    cloud = clouds()["squares"]
    np.testing.assert_allclose(Coupling(cloud, epsilon=0.1, relative=True).epsilon, 0.1 * jnp.mean(cloud.matrix()), rtol=1e-12)


def test_empty_points_are_left_out_if_asked_for():
    cost, a, b = data()
    a = (a.at[2].set(0.0)) / (1 - a[2])
    problem = Coupling(cost, a, b, epsilon=0.1, drop_empty=True)
    np.testing.assert_array_equal(problem.cost.matrix(), np.delete(np.asarray(cost), 2, axis=0))
    assert problem.a.shape == (6,)
    cloud = Coupling(clouds()["squares"], jnp.ones(11).at[0].set(0) / 10, epsilon=0.1, drop_empty=True)
    assert cloud.cost.shape == (10, 6)


def test_forbidden_pairs_get_nothing():
    allowed = jnp.ones((4, 4), bool).at[0, 1].set(False).at[2, 2].set(False)

    def total(weight):
        problem = Coupling(jnp.where(allowed, weight * (1 + jnp.eye(4)), jnp.inf), epsilon=0.2)
        value = om.solve(problem, Sinkhorn(1e-12)).value
        return problem.transport_cost(value), problem.plan(value)

    (_, plan), slope = total(1.0), jax.jit(jax.grad(lambda weight: total(weight)[0]))(1.0)
    assert plan[0, 1] == 0 and plan[2, 2] == 0
    np.testing.assert_allclose(plan.sum(1), 0.25, atol=1e-12)
    np.testing.assert_allclose(slope, along(lambda weight: total(weight)[0], 1.0, 1.0), rtol=1e-6)


# What others hand over.


class SqEuclidean:
    def __call__(self, x, y):
        return jnp.sum((x - y) ** 2)


class PNorm:
    def __call__(self, x, y):
        return jnp.sum(jnp.abs(x - y) ** 3)


@pytest.mark.parametrize("fn", [SqEuclidean(), PNorm()], ids=["squares", "another"])
def test_geometries_of_ott_are_taken_by_their_attributes(fn):
    x, y = clouds()["squares"].x, clouds()["squares"].y
    matrix = jax.vmap(lambda p: jax.vmap(lambda q: fn(p, q))(y))(x)
    cloud = types.SimpleNamespace(x=x, y=y, cost_fn=fn, epsilon=0.3, inv_scale_cost=1.0, cost_matrix=matrix)
    problem = Coupling.of(cloud)
    assert isinstance(problem.cost, PointCloud) and float(problem.epsilon) == 0.3
    np.testing.assert_allclose(problem.cost.matrix(), matrix, rtol=1e-12)
    scaled = types.SimpleNamespace(**{**vars(cloud), "inv_scale_cost": 0.5, "cost_matrix": 0.5 * matrix})
    np.testing.assert_allclose(Coupling.of(scaled).cost.matrix(), 0.5 * matrix, rtol=1e-12)
    axes = (jnp.arange(3.0), jnp.arange(2.0))
    grid = types.SimpleNamespace(x=axes, grid_size=(3, 2), cost_fns=[fn], epsilon=types.SimpleNamespace(target=0.3))
    points = jnp.stack([c.ravel() for c in jnp.meshgrid(*axes, indexing="ij")], 1)
    np.testing.assert_allclose(Coupling.of(grid).cost.matrix(), PointCloud(points, cost=fn.__call__).matrix(), atol=1e-12)
    a = jnp.arange(1.0, 12.0) / 66
    linear = types.SimpleNamespace(geom=cloud, a=a, b=None)
    np.testing.assert_array_equal(Coupling.of(linear, epsilon=0.1).a, a)


def test_arrays_as_pot_takes_them():
    cost, a, b = map(np.asarray, data())
    problem = Coupling.of(cost, a, b, 0.1)
    np.testing.assert_array_equal(problem.cost.matrix(), cost)
    np.testing.assert_allclose(Coupling.of(cost, [], [], 0.1).a, np.full(7, 1 / 7))


# What is wrong is named.

GOOD = np.full((2, 3), 0.5)
BAD = {
    "`cost` must be a matrix": lambda: Coupling(np.ones(3), epsilon=1.0),
    "`cost` is nan in row 1, column 2": lambda: Coupling(np.array([[1, 1, 1], [1, 1, np.nan]]), epsilon=1.0),
    "`cost` is -inf": lambda: Coupling(np.array([[-np.inf, 1.0]]), epsilon=1.0),
    "`cost` must hold real numbers": lambda: Coupling(np.ones((2, 2)) + 1j, epsilon=1.0),
    "`cost` forbids too much": lambda: Coupling(np.array([[0, np.inf], [0, np.inf]]), epsilon=1.0),
    "half of the mass|at most 0.5": lambda: Coupling(np.array([[0, np.inf], [0, np.inf]]), epsilon=1.0),
    "`cost` must be 'sqeuclidean', 'euclidean'": lambda: PointCloud(np.ones((2, 2)), cost="cosine"),
    "`cost` must return a number": lambda: PointCloud(np.ones((2, 2)), cost=lambda p, q: p - q),
    "`cost` must be 'sqeuclidean', 'manhattan'": lambda: Grid([np.ones(2)], cost="euclidean"),
    "`cost` has 2 entries for 1 axes": lambda: Grid([np.ones(2)], cost=["manhattan", "manhattan"]),
    "`a` must have shape": lambda: Coupling(GOOD, np.ones(3) / 3, epsilon=1.0),
    "`a` must be positive and finite, which it is not at 1": lambda: Coupling(GOOD, np.array([1.5, -0.5]), epsilon=1.0),
    "drop_empty": lambda: Coupling(GOOD, None, np.array([0.5, 0.0, 0.5]), epsilon=1.0),
    "`b` has the sum": lambda: Coupling(GOOD, None, np.ones(3), epsilon=1.0),
    "`epsilon` must be one positive": lambda: Coupling(GOOD, epsilon=0.0),
    "`epsilon` must be one": lambda: Coupling(GOOD, epsilon=np.ones(2)),
    "`epsilon` = 1e-20": lambda: Coupling(GOOD, epsilon=1e-20),
    "`epsilon` is missing": lambda: Coupling.of(GOOD),
    "`x` holds a number that is not finite, at": lambda: PointCloud(np.array([[np.inf]])),
    "`x` must be points": lambda: PointCloud(np.ones((2, 2, 2))),
    "`y` holds points of dimension 3": lambda: PointCloud(np.ones((2, 2)), np.ones((2, 3))),
    "`y` is a grid of dimension": lambda: Grid([np.ones(2)], [np.ones(2), np.ones(2)]),
    "`block`": lambda: PointCloud(np.ones((2, 2)), block=0),
    "`guess` must be Potentials": lambda: om.solve(Coupling(GOOD, epsilon=1.0), Sinkhorn(), (jnp.zeros(3), jnp.zeros(2))),
    "`relaxation`": lambda: Sinkhorn(relaxation=2.0),
    "`decay`": lambda: Sinkhorn(decay=1.0),
    "`domain`": lambda: Sinkhorn(domain="kernel"),
    "`first_epsilon`": lambda: Sinkhorn(first_epsilon=-1.0),
    "`tolerance`": lambda: Sinkhorn(-1.0),
    "`warmup`": lambda: SinkhornNewton(warmup=-1),
    "`hessian`": lambda: SinkhornNewton(hessian="sparse"),
    "`density`": lambda: om.transport.SinkhornNewtonSparse(density=0),
    "`density` must be positive": lambda: om.transport.sparsify_coupling(jnp.ones((2, 2)), 0),
    "`plan`": lambda: om.transport.sparsify_coupling(jnp.ones(2)),
}  # fmt: skip


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()


def test_single_precision_refuses_what_it_cannot_do():
    with jax.enable_x64(False):
        cost = np.random.default_rng(0).uniform(size=(4, 4)).astype(np.float32)
        with pytest.raises(om.errors.ArgumentError, match="`tolerance` = 1e-09 is out of reach in single precision"):
            om.solve(Coupling(cost, epsilon=0.1), SinkhornNewton())
        with pytest.raises(om.errors.ArgumentError, match="`epsilon` = 1e-07 is less than float32 resolves"):
            Coupling(cost, epsilon=1e-7)


def test_what_is_looked_at_in_a_guess_is_finite_where_sums_are():
    cost = jnp.array([[1.0, jnp.inf, 2.0], [jnp.inf, jnp.inf, jnp.inf], [3.0, -1e4, 0.5]])
    matrix = CostMatrix(cost)
    for axis in (0, 1):
        for h in (jnp.zeros(3), jnp.array([0.0, jnp.nan, 0.0]), jnp.array([0.0, 1.0, jnp.inf])):
            sums, terms = (of(h, 1e3, axis) for of in (matrix.logsumexp, matrix.largest_term))
            assert not jnp.any(jnp.isfinite(terms) & ~jnp.isfinite(sums))
            assert jnp.all(jnp.isfinite(terms) == jnp.isfinite(sums)) or not jnp.all(jnp.isfinite(h))
    terms = CostMatrix(jnp.eye(3)).largest_term(jnp.arange(3.0), 2.0, 1)
    np.testing.assert_allclose(terms, jnp.max(jnp.arange(3.0) - 2 * jnp.eye(3), 1))
