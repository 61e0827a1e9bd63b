"""The local solve: its answer, its derivatives, and what it says when it fails."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.informed import LocalProblem, NLLSConstraint

SOLVERS = ("optimistix", "normal")


def linear(q, x, params):
    return q["a"] - 0.5 * q["b"]


def nonlinear(q, x, params):
    return q["a"] + q["b"] * q["a"] + 0.3 * jnp.sin(q["b"]) - x[0]


def local_problem(pointwise, key=0, points=40, unknowns=4, rows=3):
    """A well-conditioned random problem with two terms."""
    draw = np.random.default_rng(key)
    return LocalProblem(
        terms=jnp.asarray(draw.standard_normal((2, points, unknowns))),
        offsets=jnp.asarray(0.3 * draw.standard_normal((2, points))),
        points=jnp.asarray(draw.uniform(size=(points, 1))),
        matrix=jnp.asarray(draw.standard_normal((rows, unknowns))),
        target=jnp.asarray(draw.standard_normal(rows)),
        params=None,
        pointwise=pointwise,
        names=("a", "b"),
    )


def tight(**options):
    return NLLSConstraint(**{"rtol": 1e-12, "atol": 1e-12, "max_steps": 1000, "ridge": 0.0, **options})


@eqx.filter_jit
def run(constraint, problem, start):
    return constraint(problem, start)


def stack(problems):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *problems)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_residual_is_solved_like_lstsq_with_its_gradient(solver):
    problem = local_problem(linear)
    cotangent = jnp.arange(1.0, 5.0)

    def by_lstsq(problem):
        matrix = jnp.concatenate([problem.terms[0] - 0.5 * problem.terms[1], problem.matrix])
        rhs = jnp.concatenate([-(problem.offsets[0] - 0.5 * problem.offsets[1]), problem.target])
        return jnp.linalg.lstsq(matrix, rhs)[0]

    def parts(problem):
        return problem.terms, problem.offsets, problem.matrix, problem.target

    def put(problem, parts):
        terms, offsets, matrix, target = parts
        return dataclasses.replace(problem, terms=terms, offsets=offsets, matrix=matrix, target=target)

    def mine(parts):
        return cotangent @ tight(solver=solver)(put(problem, parts), jnp.zeros(4))[0]

    weights = run(tight(solver=solver), problem, jnp.zeros(4))[0]
    np.testing.assert_allclose(weights, by_lstsq(problem), rtol=0, atol=1e-10)
    gradient = jax.jit(jax.grad(mine))(parts(problem))
    expected = jax.jit(jax.grad(lambda parts: cotangent @ by_lstsq(put(problem, parts))))(parts(problem))
    for ours, theirs in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_both_solvers_agree():
    for key in range(3):
        problem = local_problem(nonlinear, key)
        weights = [run(tight(solver=solver, ridge=1e-4), problem, jnp.zeros(4))[0] for solver in SOLVERS]
        np.testing.assert_allclose(weights[0], weights[1], rtol=0, atol=1e-8)
        gradient = dataclasses.replace(problem, ridge=1e-4).gradient(weights[1])
        assert jnp.linalg.norm(gradient) < 1e-9


def test_jacobian_gradient_and_hessian_are_those_of_automatic_differentiation():
    problem = dataclasses.replace(local_problem(nonlinear), ridge=0.1)
    w = jnp.array([0.3, -0.2, 0.5, 0.1])
    slope, hessian, jacobian = jax.jit(
        lambda w: (jax.grad(problem.value)(w), jax.hessian(problem.value)(w), jax.jacobian(problem.residual)(w))
    )(w)
    ours = jax.jit(
        lambda w: (problem.gradient(w), problem.hessian(w), problem.jacobian(w), problem.value(w),
                   problem.normal_equations(w, problem.linear_part()))
    )(w)  # fmt: skip
    np.testing.assert_allclose(ours[0], slope, rtol=1e-11)
    np.testing.assert_allclose(ours[1], hessian, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(ours[2], jacobian[: problem.points.shape[0]], rtol=1e-12)
    value, gradient, matrix = ours[4]
    np.testing.assert_allclose(value, ours[3])
    np.testing.assert_allclose(gradient, slope, rtol=1e-11)
    np.testing.assert_allclose(matrix, jacobian.T @ jacobian, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_implicit_gradient_is_that_of_finite_differences_and_of_unrolling(solver):
    problem = local_problem(nonlinear, 5)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(problem.terms.shape))

    def through(find):
        return lambda size: jnp.sum(
            jnp.sin(find(dataclasses.replace(problem, terms=problem.terms + size * direction))) * jnp.arange(1.0, 5.0)
        )

    implicit = jax.jit(through(lambda p: tight(solver=solver)(p, jnp.zeros(4))[0]))
    slope = jax.jit(jax.grad(implicit))(0.0)
    numeric = (implicit(1e-5) - implicit(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)

    def unrolled(problem):
        def step(w, _):
            jacobian, residual = jax.jacfwd(problem.residual)(w), problem.residual(w)
            return w - jnp.linalg.solve(jacobian.T @ jacobian + 1e-3 * jnp.eye(4), jacobian.T @ residual), None

        return jax.lax.scan(step, jnp.zeros(4), length=150)[0]

    np.testing.assert_allclose(slope, jax.jit(jax.grad(through(unrolled)))(0.0), rtol=1e-7)


def test_the_gauss_newton_adjoint_is_exact_only_where_the_residual_vanishes():
    problem = local_problem(nonlinear, 2, points=40)

    def slope(adjoint, consistent):
        def value(scale):
            moved = dataclasses.replace(problem, matrix=scale * problem.matrix)
            if consistent:  # offsets that make one set of weights solve every row
                w = jnp.array([0.2, -0.1, 0.3, 0.4])
                q = moved.weighted(w)
                shift = jax.vmap(lambda q, x: nonlinear({"a": q[0], "b": q[1]}, x, None))(q, moved.points)
                moved = dataclasses.replace(moved, pointwise=Shifted(), params=None, target=problem.matrix @ w)
                moved = dataclasses.replace(moved, points=jnp.concatenate([moved.points, shift[:, None]], 1))
            return jnp.sum(tight(solver="normal", adjoint=adjoint)(moved, 0.1 * jnp.ones(4))[0])

        return float(jax.jit(jax.grad(value))(1.0))

    assert abs(slope("exact", True) - slope("gauss_newton", True)) < 1e-6
    assert abs(slope("exact", False) - slope("gauss_newton", False)) > 1e-3


class Shifted:
    """The nonlinear residual less what it was at the weights that are to solve it."""

    def __call__(self, q, x, params):
        return nonlinear(q, x[:1], params) - x[1]


def test_a_batch_a_loop_and_any_order_of_experts_give_the_same_weights():
    problems = [local_problem(nonlinear, key) for key in range(4)]
    constraint = NLLSConstraint(solver="normal")
    loop = jnp.stack([run(constraint, p, jnp.zeros(4))[0] for p in problems])
    batch = eqx.filter_jit(eqx.filter_vmap(lambda p: constraint(p, jnp.zeros(4))[0]))
    np.testing.assert_allclose(batch(stack(problems)), loop, rtol=0, atol=1e-10)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(batch(stack([problems[i] for i in order])), loop[jnp.array(order)], rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_more_steps_never_give_a_larger_residual(solver):
    problem = dataclasses.replace(local_problem(nonlinear, 7), ridge=1e-4)
    start = 3 * jnp.ones(4)
    values = [problem.value(start)]
    for steps in (1, 3, 9):
        constraint = NLLSConstraint(solver=solver, max_steps=steps, polish=0, rtol=1e-12, atol=1e-12)
        weights, info = run(constraint, problem, start)
        values.append(problem.value(weights))
        assert int(info.iterations) <= steps
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("solver", SOLVERS)
def test_running_out_of_steps_is_flagged_and_the_best_iterate_kept(solver):
    problem = local_problem(nonlinear, 7)
    start = 3 * jnp.ones(4)
    weights, info = run(NLLSConstraint(solver=solver, max_steps=2, polish=0), problem, start)
    assert not bool(info.converged)
    assert problem.value(weights) < problem.value(start)
    assert bool(run(NLLSConstraint(solver=solver, max_steps=100), problem, start)[1].converged)


def test_a_saddle_falls_back_to_gauss_newton_and_is_counted():
    """r(w) = w^2 - 1 has a stationary point at w = 0 where the Hessian is negative."""
    saddle = LocalProblem(
        terms=jnp.ones((1, 3, 1)),
        offsets=jnp.zeros((1, 3)),
        points=jnp.zeros((3, 1)),
        matrix=jnp.zeros((0, 1)),
        target=jnp.zeros((0,)),
        params=None,
        pointwise=lambda q, x, params: q["a"] ** 2 - 1,
        names=("a",),
    )

    def weights(shift, constraint):
        moved = dataclasses.replace(saddle, offsets=saddle.offsets + shift)
        found, info = constraint(moved, jnp.zeros(1))
        return jnp.sum(found), info

    constraint = tight(solver="normal", ridge=1e-2)
    slope, info = jax.jit(jax.grad(lambda shift: weights(shift, constraint), has_aux=True))(0.0)
    assert int(info.fallbacks) == 1 and bool(jnp.isfinite(slope))
    _, info = run(constraint, dataclasses.replace(saddle, offsets=saddle.offsets + 0.5), jnp.zeros(1))
    assert int(info.fallbacks) == 0


def test_a_singular_basis_gives_finite_weights_and_gradients():
    problem = local_problem(nonlinear)
    twice = dataclasses.replace(
        problem, terms=problem.terms.at[:, :, 1].set(problem.terms[:, :, 0]).at[:, :, 2].set(0.0),
        matrix=problem.matrix.at[:, 1].set(problem.matrix[:, 0]).at[:, 2].set(0.0),
    )  # fmt: skip
    for solver in SOLVERS:
        value = lambda terms, solver=solver: jnp.sum(
            NLLSConstraint(solver=solver)(dataclasses.replace(twice, terms=terms), jnp.zeros(4))[0]
        )
        found, gradient = jax.jit(jax.value_and_grad(value))(twice.terms)
        assert bool(jnp.isfinite(found)) and bool(jnp.all(jnp.isfinite(gradient)))


def test_single_precision_is_refused_with_the_fix():
    with jax.enable_x64(False), pytest.raises(om.core.errors.ArgumentError, match="enable_x64"):
        NLLSConstraint()(local_problem(linear), jnp.zeros(4))


def test_more_unknowns_than_rows_are_refused():
    with pytest.raises(om.core.errors.ArgumentError, match=r"underdetermined: N=4 unknowns, 3 rows"):
        NLLSConstraint()(local_problem(linear, points=3, rows=0), jnp.zeros(4))


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": -1.0},
        {"atol": float("nan")},
        {"ridge": -1e-3},
        {"points": 0},
        {"max_steps": 1.5},
        {"polish": -1},
        {"solver": "newton"},
        {"adjoint": "unrolled"},
    ],
)
def test_bad_hyperparameters_are_refused_by_name(options, as_a_user):
    with pytest.raises(om.core.errors.ArgumentError, match=next(iter(options))):
        NLLSConstraint(**options)
