"""Constrained models: derivatives through the whole constraint, equivalences, bad input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from informed_cases import PointwiseNet, eikonal, vorticity
from optimand.informed import (
    ConstrainedBasis,
    DiffusionSorption1D,
    ExpertGrid,
    NavierStokes2DVorticity,
    NLLSConstraint,
    RandomExperts,
    SoftField,
    local_problems,
    solve_experts,
)

ArgumentError = om.core.errors.ArgumentError
TIGHT = NLLSConstraint(solver="normal", rtol=1e-12, atol=1e-12, max_steps=60, polish=2)


def sorption():
    pde = DiffusionSorption1D(nx=8, nt=6)
    x = np.linspace(0, 1, 8)[None, :, None]
    t = np.linspace(0.2, 1, 6)[:, None, None]
    smooth = np.concatenate([np.exp(-x * k / t) for k in (1.0, 2.0, 4.0)] + [np.ones((6, 8, 1))], -1)
    return pde, jnp.asarray(smooth), jnp.asarray(0.15)


def turbulence():
    pde = NavierStokes2DVorticity(8, nt=4, t_end=0.5, reynolds=100.0, basis_scale=1.0)
    initial = vorticity(8)[0]
    basis = pde.prepare(jnp.asarray(np.random.default_rng(3).standard_normal((4, 8, 8, 4))), initial)
    return pde, basis, initial


@pytest.mark.parametrize(
    "case, parts",
    [(sorption, (1, 1)), (sorption, (1, 4)), (turbulence, (1, 1, 1)), (turbulence, (1, 2, 2))],
    ids=["DS, one", "DS, four", "NS, one", "NS, four"],
)
def test_the_implicit_gradient_agrees_with_differences_and_with_unrolling(case, parts):
    pde, basis, data = case()
    experts = ExpertGrid(parts)
    direction = 0.1 * jnp.asarray(np.random.default_rng(0).standard_normal(basis.shape))
    start = jnp.full(4, 0.3)

    def loss(size, solve):
        b = basis + size * direction
        weights = solve(local_problems(pde, experts, b, data, ridge=1e-4))
        return jnp.mean(jnp.square(pde.assemble(experts.combine(b, weights), data))), weights

    by_theorem = jax.value_and_grad(lambda size: loss(size, lambda p: solve_experts(p, TIGHT, start)[0]), has_aux=True)
    h = 1e-5
    sizes = h * jnp.array([0.0, 1, -1, 2, -2])
    (values, weights), slopes = jax.jit(lambda: jax.lax.map(by_theorem, sizes))()  # one program for all of them
    slope, optimum = slopes[0], weights[0]
    numeric = (8 * (values[1] - values[2]) - (values[3] - values[4])) / (12 * h)
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)

    def unrolled(problems):  # Gauss-Newton from nearby: as many steps as its linear convergence needs
        def one(terms, offsets, points, w):
            problem = eqx.tree_at(lambda p: (p.terms, p.offsets, p.points), problems, (terms, offsets, points))
            linear_part = problem.linear_part()

            def step(w, _):
                _, gradient, matrix = problem.normal_equations(w, linear_part)
                return w - jnp.linalg.solve(matrix, gradient), None

            return jax.lax.scan(step, w + 1e-3, length=100)[0]

        return jax.vmap(one)(problems.terms, problems.offsets, problems.points, optimum)

    np.testing.assert_allclose(slope, jax.jit(jax.grad(lambda size: loss(size, unrolled)[0]))(0.0), rtol=1e-6)


@pytest.mark.parametrize("parts", [(1, 1), (2, 2)])
def test_with_linear_sorption_the_constraint_is_a_linear_least_squares_problem(parts):
    """An exponent of one makes R a constant; then weights and gradients are those of `lstsq`, expert by expert."""
    pde, experts = DiffusionSorption1D(nx=8, nt=6, freundlich_n=1.0), ExpertGrid(parts)
    _, basis, data = sorption()
    exact = NLLSConstraint(solver="normal", ridge=0.0, rtol=1e-12, atol=1e-12, polish=2)
    slowed = pde.diffusion / float(pde.retardation(jnp.asarray(0.3)))

    def by_constraint(basis):
        return solve_experts(local_problems(pde, experts, basis, data), exact, jnp.ones(4))[0]

    def by_lstsq(basis):
        terms = pde.terms(basis, pde.grid)
        boxes = experts.split(terms["u_t"] - slowed * terms["u_xx"], 2)
        matrix, target, weight = pde.rows(basis, data)

        def one(box):
            rows = jnp.concatenate([box, weight[:, None] * matrix])
            return jnp.linalg.lstsq(rows, jnp.concatenate([jnp.zeros(len(box)), weight * target]))[0]

        return jax.vmap(one)(boxes)

    def weights_and_gradient(solve):
        return jax.jit(lambda b: (solve(b), jax.grad(lambda b: jnp.sum(jnp.sin(solve(b))))(b)))(basis)

    ours, theirs = weights_and_gradient(by_constraint), weights_and_gradient(by_lstsq)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-7 * float(jnp.max(jnp.abs(theirs[1]))))


def toy_model(parts=(1, 1), dtype=jnp.float32, router=None, **options):
    pde = eikonal()
    net = PointwiseNet(3, 3, jax.random.key(0), dtype)
    constraint = NLLSConstraint(**{"solver": "normal", **options})
    return ConstrainedBasis(net, pde, experts=router or ExpertGrid(parts), constraint=constraint, dtype=dtype)


def test_one_expert_is_the_global_constraint_bit_by_bit():
    model = toy_model((1, 1), points=20)
    default = ConstrainedBasis(model.net, model.pde, constraint=model.constraint)
    key = jax.random.key(3)
    data = jnp.asarray(1.2)
    np.testing.assert_array_equal(model(data, key=key), default(data, key=key))


def test_the_global_constraint_is_one_solve_over_the_whole_grid():
    model = toy_model((1, 1))

    @eqx.filter_jit
    def pieces(data):
        basis = jnp.moveaxis(model.net(model.pde.inputs(data).astype(jnp.float32)), 0, -1).astype(float)
        problems = local_problems(model.pde, model.experts, basis, data)
        weights = solve_experts(problems, model.constraint, jnp.ones(3))[0]
        return basis, (problems.terms, problems.names), model.pde.terms(basis, model.pde.grid), weights

    basis, (stacked, names), terms, weights = pieces(jnp.asarray(1.0))
    for number, name in enumerate(names):
        np.testing.assert_array_equal(stacked[0, number], terms[name].reshape(-1, 3))
    np.testing.assert_allclose(model(jnp.asarray(1.0)), basis @ weights[0], atol=1e-10)


def test_the_network_may_be_in_either_precision():
    fields = [toy_model((1, 2), dtype)(jnp.asarray(1.2)) for dtype in (jnp.float32, jnp.float64)]
    np.testing.assert_allclose(fields[0], fields[1], atol=1e-5)
    assert fields[0].dtype == jnp.float64


def test_points_are_fresh_with_each_key_and_fixed_without():
    model = toy_model((1, 2), points=8)
    data = jnp.asarray(1.2)
    np.testing.assert_array_equal(model(data), model(data))
    assert not np.array_equal(model(data, key=jax.random.key(1)), model(data, key=jax.random.key(2)))


def test_random_experts_use_all_their_points_and_one_mean():
    info = toy_model(router=RandomExperts(4)).info(jnp.asarray(1.2))
    assert info.weights.shape == (4, 3) and bool(jnp.isnan(info.jump)) and bool(jnp.all(jnp.isfinite(info.field)))


def test_experts_of_their_own_fit_their_boxes_better_than_one_for_all():
    """Without shared rows the sum over boxes of the minima is at most the minimum of the sum."""
    pde, basis, data = turbulence()
    residuals = []
    for parts in ((1, 1, 1), (1, 2, 2)):
        experts = ExpertGrid(parts)
        constraint = NLLSConstraint(solver="normal", ridge=0.0, rtol=1e-10, atol=1e-10, max_steps=40)

        @jax.jit
        def solve(basis, experts=experts, constraint=constraint):
            return solve_experts(local_problems(pde, experts, basis, data, use_rows=False), constraint, jnp.zeros(4))

        _, info = solve(basis)
        residuals.append(float(jnp.sum(info.residual**2)))
    assert residuals[1] <= residuals[0] * (1 + 1e-9)


def test_info_reports_each_expert_and_warns_of_those_that_ran_out():
    model = toy_model((1, 2), max_steps=1, polish=0, rtol=1e-12, atol=1e-12)
    with pytest.warns(RuntimeWarning, match="2 of 2 experts ran out of steps"):
        info = model.info(jnp.asarray(1.2))
    assert info.status == ["out of steps"] * 2 and info.weights.shape == (2, 3)
    assert bool(jnp.all(jnp.isfinite(info.field))) and float(info.jump) > 0


def test_a_soft_basis_can_be_constrained_at_inference():
    pde = eikonal()
    soft = SoftField(PointwiseNet(3, 3, jax.random.key(1)), pde)
    hard = ConstrainedBasis(soft.net, soft.pde, constraint=NLLSConstraint(solver="normal", max_steps=40))
    data = jnp.asarray(1.2)
    assert soft(data).shape == pde.grid.shape
    assert float(pde.loss(hard(data), data)) < float(pde.loss(soft(data), data))


def test_a_model_holds_no_weights_but_the_networks():
    model = toy_model((1, 2))
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert len(leaves) == len(jax.tree.leaves(eqx.filter(model.net, eqx.is_inexact_array)))


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: toy_model((1, 3)), r"axis 1 \(x\), which has 8 points.*2 and 4"),
        (lambda: toy_model((1, 4), points=13), "13 in each box, but the smallest has 12 points"),
        (lambda: ConstrainedBasis(None, "heat"), "LinearTermsPDE"),
        (lambda: toy_model((1, 1)).info(jnp.asarray(jnp.nan)), "not finite"),
    ],
)
def test_bad_models_are_refused(build, match, as_a_user):
    with pytest.raises(ArgumentError, match=match):
        build()


def test_too_few_rows_are_refused_with_their_numbers():
    pde = DiffusionSorption1D(nx=4, nt=3)
    net = PointwiseNet(3, 16, jax.random.key(0))
    model = ConstrainedBasis(net, pde, constraint=NLLSConstraint(points=3, solver="normal"))
    with pytest.raises(ArgumentError, match="N=16 unknowns, 11 rows"):
        model(jnp.asarray(0.1))


def test_single_precision_is_refused_before_anything_is_computed():
    model = toy_model((1, 2))
    with jax.enable_x64(False), pytest.raises(ArgumentError, match="enable_x64"):
        model(jnp.asarray(1.2, jnp.float32))
