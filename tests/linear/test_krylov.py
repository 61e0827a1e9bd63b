"""Krylov solvers: answers, true residuals, derivatives, preconditioners in both directions, and how failures are named."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

import optimand as om
from optimand.linear import CG, FGMRES, GMRES, MINRES, BiCGStab, BlockJacobi, Jacobi, SparseOperator

POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def poisson(side=8):
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    one = scipy.sparse.eye_array(side)
    return scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line)


def matrices():
    side = poisson().shape[0]
    wind = scipy.sparse.diags_array([-0.6, 0.5], offsets=[-1, 1], shape=(side, side))
    twist = 0.3j * (scipy.sparse.eye_array(side, k=1) - scipy.sparse.eye_array(side, k=-1))
    return {
        "positive": (poisson(), POSITIVE),
        "negative": (-poisson(), lx.negative_semidefinite_tag),
        "indefinite": (poisson() - 2.03 * scipy.sparse.eye_array(side), lx.symmetric_tag),
        "not symmetric": (poisson() + wind, ()),
        "hermitian": (poisson() + 1j * (scipy.sparse.eye_array(side, k=1) - scipy.sparse.eye_array(side, k=-1)) * 0.3, POSITIVE),
        "complex": (poisson() + twist @ twist + 0.5j * scipy.sparse.eye_array(side), ()),
    }


SUITED = {
    "positive": [CG, MINRES, GMRES, FGMRES, BiCGStab],
    "negative": [CG, MINRES],
    "indefinite": [MINRES, GMRES],
    "not symmetric": [GMRES, FGMRES, BiCGStab],
    "hermitian": [CG, GMRES],
    "complex": [GMRES, FGMRES, BiCGStab],
}
CASES = [pytest.param(name, solver, id=f"{solver.__name__}, {name}") for name, solvers in SUITED.items() for solver in solvers]


def system(name):
    matrix, tags = matrices()[name]
    operator = SparseOperator.from_scipy(matrix, tags)
    b = np.random.default_rng(3).normal(size=(2, 64))
    return operator, jnp.asarray(b[0] + (1j * b[1] if jnp.iscomplexobj(operator.data) else 0))


@pytest.mark.parametrize("name, solver", CASES)
def test_the_solution_and_its_derivatives_are_those_of_the_dense_solve(name, solver):
    operator, b = system(name)
    solver = solver(1e-12)
    answer = lx.linear_solve(operator, b, solver)
    true = jnp.linalg.norm(b - operator.mv(answer.value)) / jnp.linalg.norm(b)
    assert true <= 1e-12 and 0 < answer.stats["num_steps"] < 400
    np.testing.assert_allclose(answer.stats["residual"], true, rtol=0.1)
    np.testing.assert_allclose(answer.value, jnp.linalg.solve(operator.as_matrix(), b), rtol=1e-8, atol=1e-9)
    size = lambda value: jnp.sum(jnp.abs(value) ** 2)
    ours = jax.grad(lambda scale, b: size(lx.linear_solve(operator.with_data(scale * operator.data), b, solver).value), (0, 1))(jnp.asarray(1.5), b)
    dense = jax.grad(lambda scale, b: size(jnp.linalg.solve(scale * operator.as_matrix(), b)), (0, 1))(jnp.asarray(1.5), b)
    np.testing.assert_allclose(ours[0], dense[0], rtol=1e-7)
    np.testing.assert_allclose(ours[1], dense[1], rtol=1e-6, atol=1e-8)


def count_of_scipy(solve, matrix, b, **settings):
    seen = []
    solve(matrix, b, callback=lambda *_: seen.append(1), **settings)
    return len(seen)


@pytest.mark.parametrize("solver, theirs, settings", [
    (CG, scipy.sparse.linalg.cg, {"rtol": 1e-8}),
    (MINRES, scipy.sparse.linalg.minres, {"rtol": 1e-12}),
    (GMRES, scipy.sparse.linalg.gmres, {"rtol": 1e-8, "restart": 20, "callback_type": "pr_norm"}),
    (BiCGStab, scipy.sparse.linalg.bicgstab, {"rtol": 1e-8}),
])  # fmt: skip
def test_they_take_as_many_steps_as_those_of_scipy(solver, theirs, settings):
    operator, b = system("positive")
    extra = {"restart": 20} if solver is GMRES else {}
    steps = int(lx.linear_solve(operator, b, solver(1e-8, **extra)).stats["num_steps"])
    assert steps <= count_of_scipy(theirs, operator.to_scipy(), np.asarray(b), **settings) + 1


def test_gmres_without_restart_ends_in_as_many_steps_as_there_are_eigenvalues():
    diagonal = jnp.repeat(jnp.array([1.0, -2.0, 5.0]), 7)
    answer = lx.linear_solve(lx.DiagonalLinearOperator(diagonal), jnp.arange(1.0, 22.0), GMRES(1e-12, restart=21))
    assert answer.stats["num_steps"] == 3


@pytest.mark.parametrize("solver", [GMRES, FGMRES, BiCGStab])
def test_the_preconditioner_is_used_transposed_in_the_adjoint_solve(solver):
    """With the inverse as a preconditioner two steps are enough, in the solve and in its derivative, which raises if they are not."""
    operator, b = system("not symmetric")
    inverse = lx.MatrixLinearOperator(jnp.linalg.inv(operator.as_matrix()))
    solve = lambda b: lx.linear_solve(operator, b, solver(1e-10, max_steps=2, preconditioner=inverse)).value
    gradient = jax.grad(lambda b: jnp.sum(jnp.sin(solve(b))))(b)
    np.testing.assert_allclose(operator.T.mv(gradient), jnp.cos(solve(b)), atol=1e-8)
    as_option = lx.linear_solve(operator, b, solver(1e-10, max_steps=2), options={"preconditioner": inverse}).value
    np.testing.assert_allclose(as_option, solve(b), atol=1e-9)


@pytest.mark.parametrize("solver", [CG, MINRES, GMRES, FGMRES, BiCGStab])
@pytest.mark.parametrize("preconditioner", [Jacobi(), BlockJacobi(8)], ids=["jacobi", "block jacobi"])
def test_preconditioners_save_steps_where_rows_differ_in_size(solver, preconditioner):
    scale = scipy.sparse.diags_array(np.logspace(0, 3, 64))
    operator, b = SparseOperator.from_scipy(scale @ poisson() @ scale, POSITIVE), jnp.ones(64)
    budget = {"max_steps": 2000}
    plain = lx.linear_solve(operator, b, solver(1e-6, **budget), throw=False)
    with_it = lx.linear_solve(operator, b, solver(1e-6, preconditioner=preconditioner, **budget))
    assert with_it.stats["num_steps"] < 0.5 * plain.stats["num_steps"] and with_it.stats["residual"] <= 1e-6


def test_block_jacobi_is_the_inverse_of_the_blocks_and_its_transpose_that_of_theirs():
    operator, _ = system("not symmetric")
    dense = np.asarray(operator.as_matrix())
    inverse = BlockJacobi(10).of(operator)
    blocks = scipy.linalg.block_diag(*(np.linalg.inv(dense[i : i + 10, i : i + 10]) for i in range(0, 64, 10)))
    np.testing.assert_allclose(inverse.as_matrix(), blocks, atol=1e-12)
    np.testing.assert_allclose(inverse.transpose().as_matrix(), blocks.T, atol=1e-12)


def test_flexible_gmres_takes_a_preconditioner_that_is_another_in_each_step():
    operator, b = system("positive")

    def inner(v):  # not linear: how many of its steps it takes depends on v
        return lx.linear_solve(operator, v, CG(0.05), throw=False).value

    inexact = lx.FunctionLinearOperator(inner, operator.in_structure())
    state = FGMRES(1e-10).init(operator, {})._replace(preconditioner=inexact)
    answer = lx.linear_solve(operator, b, FGMRES(1e-10), state=state)
    assert answer.stats["residual"] <= 1e-10 and answer.stats["num_steps"] <= 12


def test_a_good_guess_saves_steps_and_zero_is_the_solution_for_zero():
    operator, b = system("positive")
    solution = lx.linear_solve(operator, b, CG(1e-12)).value
    for solver in (CG, MINRES, GMRES, BiCGStab):
        near = lx.linear_solve(operator, b, solver(1e-8), options={"y0": solution + 1e-12})
        assert near.stats["num_steps"] == 0
        nothing = lx.linear_solve(operator, 0 * b, solver(1e-8), options={"y0": solution})
        assert not jnp.any(nothing.value) and nothing.stats["num_steps"] == 0


def test_trees_single_precision_and_batches():
    matrix = {"a": {"a": 3.0 * jnp.eye(2), "b": jnp.ones((2, 3))}, "b": {"a": jnp.zeros((3, 2)), "b": 2.0 * jnp.eye(3)}}
    structure = {"a": jax.ShapeDtypeStruct((2,), jnp.float64), "b": jax.ShapeDtypeStruct((3,), jnp.float64)}
    operator = lx.PyTreeLinearOperator(matrix, structure)
    b = {"a": jnp.ones(2), "b": jnp.arange(3.0)}
    value = lx.linear_solve(operator, b, GMRES(1e-12)).value
    for ours, wanted in zip(jax.tree.leaves(operator.mv(value)), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-11)
    single = SparseOperator.from_scipy(poisson().astype(np.float32), POSITIVE)
    many = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)
    for solver in (CG, MINRES, GMRES, BiCGStab):
        values = jax.vmap(lambda b, solver=solver: lx.linear_solve(single, b, solver(1e-5)).value)(many)
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(jax.vmap(single.mv)(values), many, atol=1e-4)


# What ends without an answer.


def ended(operator, solver, b=None, **options):
    return lx.linear_solve(operator, jnp.ones(operator.in_size()) if b is None else b, solver, throw=False, options=options)


def test_a_wrong_tag_ends_as_a_breakdown_with_the_best_iterate():
    matrix = scipy.sparse.diags_array([1.0, 2.0, -3.0, 4.0])
    answer = ended(SparseOperator.from_scipy(matrix, POSITIVE), CG(1e-10), jnp.array([1.0, 1.0, 5.0, 1.0]))
    assert answer.result == lx.RESULTS.breakdown and jnp.all(jnp.isfinite(answer.value))


@pytest.mark.parametrize("solver", [CG, MINRES])
def test_a_preconditioner_that_is_not_positive_definite_is_a_breakdown(solver):
    operator, b = system("positive")
    negative = lx.DiagonalLinearOperator(-jnp.ones(64))
    assert ended(operator, solver(1e-10), b, preconditioner=negative).result == lx.RESULTS.breakdown


@pytest.mark.parametrize("solver", [MINRES, GMRES, BiCGStab])
def test_an_inconsistent_system_does_not_pass_for_solved(solver):
    operator = SparseOperator.from_scipy(scipy.sparse.diags_array([1.0, 2.0, 0.0]), lx.symmetric_tag)
    answer = ended(operator, solver(1e-8))
    assert answer.result != lx.RESULTS.successful and jnp.all(jnp.isfinite(answer.value))
    if solver is not BiCGStab:  # they minimise
        np.testing.assert_allclose(answer.stats["residual"], 1 / np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize("solver", [CG, MINRES, GMRES])
def test_a_consistent_singular_system_is_solved(solver):
    operator = SparseOperator.from_scipy(scipy.sparse.diags_array([1.0, 2.0, 0.0, 3.0]), POSITIVE)
    b = jnp.array([1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(ended(operator, solver(1e-10), b).value, [1.0, 0.5, 0.0, 1 / 3], atol=1e-9)


def test_a_cycle_that_gains_nothing_is_stagnation():
    shift = SparseOperator.from_scipy(scipy.sparse.eye_array(40, k=1) + scipy.sparse.eye_array(40, k=-39))
    answer = ended(shift, GMRES(1e-8, restart=5), jnp.eye(40)[0])
    assert answer.result == lx.RESULTS.stagnation and answer.stats["num_steps"] <= 200


@pytest.mark.parametrize("solver", [CG, MINRES, GMRES, BiCGStab])
def test_numbers_that_are_none_and_steps_that_are_spent_are_named(solver):
    operator, b = system("positive")
    assert ended(operator, solver(1e-10, max_steps=3), b).result == lx.RESULTS.max_steps_reached
    broken = operator.with_data(operator.data.at[0].set(jnp.nan))
    answer = ended(broken, solver(1e-10), b)
    assert answer.result != lx.RESULTS.successful and jnp.all(jnp.isfinite(answer.value))


BAD = {
    "rtol": lambda: CG(-1.0),
    "atol": lambda: GMRES(1e-8, float("inf")),
    "max_steps": lambda: MINRES(max_steps=0),
    "restart": lambda: GMRES(restart=0),
    "preconditioner": lambda: BiCGStab(preconditioner="ilu"),
    "size": lambda: BlockJacobi(0),
    "SparseOperator": lambda: BlockJacobi(2).of(lx.MatrixLinearOperator(jnp.eye(4))),
    "tagged as positive": lambda: CG().init(lx.MatrixLinearOperator(jnp.eye(4)), {}),
    "tagged as symmetric": lambda: MINRES().init(lx.MatrixLinearOperator(jnp.eye(4)), {}),
    "square": lambda: GMRES().init(lx.MatrixLinearOperator(jnp.ones((3, 4))), {}),
    "real": lambda: MINRES().init(lx.MatrixLinearOperator(jnp.eye(3) + 0j, lx.symmetric_tag), {}),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
