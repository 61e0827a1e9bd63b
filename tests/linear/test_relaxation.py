"""SOR and SSOR: the textbook's iterates, the preconditioner's matrix, the best parameter, and how failures are named."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

import optimand as om
from optimand.linear import (
    CG,
    GMRES,
    SOR,
    SSOR,
    SparseOperator,
    conjugate_gradient_bound,
    optimal_omega,
    sor_iteration_bound,
)
from optimand.linear.sweeps import Sweeps

POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def line(n, wind=0.0):
    tags = () if wind else POSITIVE
    return SparseOperator.from_scipy(scipy.sparse.diags_array([-1.0 - wind, 2.0, -1.0 + wind], offsets=[-1, 0, 1], shape=(n, n)), tags)


def poisson(side=8, wind=0.0):
    matrix, one = line(side, wind).to_scipy(), scipy.sparse.eye_array(side)
    return SparseOperator.from_scipy(scipy.sparse.kron(matrix, one) + scipy.sparse.kron(one, matrix), () if wind else POSITIVE)


def random_positive(seed, n=30):
    """A third of the entries, at the same places for all seeds."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(0).uniform(size=(n, n)) < 0.1
    root = np.tril(np.where(places, rng.normal(size=(n, n)), 0), -1)
    there = (np.tril(places, -1) + np.eye(n)) @ (np.tril(places, -1) + np.eye(n)).T > 0
    rows, columns = np.nonzero(there)
    matrix = (root + np.eye(n)) @ (root + np.eye(n)).T
    return SparseOperator.from_entries(matrix[rows, columns], rows, columns, (n, n), POSITIVE), jnp.asarray(rng.normal(size=n))


def dense_ssor(operator, omega, side):
    """M, as it is defined."""
    matrix = operator.as_matrix()
    sides = jnp.zeros(operator.shape).at[operator.pattern.rows, operator.pattern.columns].set(side)
    d = jnp.diagonal(matrix)
    lower, upper = (jnp.diag(d) + omega * jnp.where(sides == sign, matrix, 0) for sign in (-1, 1))
    return lower @ jnp.diag(1 / d) @ upper / (omega * (2 - omega))


# SOR.


@pytest.mark.parametrize("omega", [1.0, 0.6, 1.7])
def test_its_iterates_are_those_of_the_textbook(omega):
    rng = np.random.default_rng(0)
    matrix, b = rng.normal(size=(5, 5)) + 5 * np.eye(5), rng.normal(size=5)
    operator = SparseOperator.from_scipy(scipy.sparse.csr_array(matrix))
    x, path = np.zeros(5), [np.zeros(5)]
    for count in range(1, 7):
        for i in range(5):  # Gauss and Seidel for omega = 1
            x[i] += omega * (b[i] - matrix[i] @ x) / matrix[i, i]
        path.append(x.copy())
        if count not in (1, 2, 6):
            continue
        answer = lx.linear_solve(operator, jnp.asarray(b), SOR(omega, 0.0, max_steps=count), throw=False)
        assert answer.stats["num_steps"] == count and answer.result == lx.RESULTS.max_steps_reached
        best = min(path, key=lambda x: np.linalg.norm(b - matrix @ x))  # the answer is the best so far
        np.testing.assert_allclose(answer.value, best, rtol=0, atol=1e-14)
    if omega < 1.5:
        assert best is path[-1]


@pytest.mark.parametrize("ordering", ["natural", "redblack"])
@pytest.mark.parametrize("wind", [0.0, 0.3], ids=["symmetric", "not symmetric"])
def test_the_solution_and_its_derivatives_are_those_of_the_dense_solve(ordering, wind):
    operator, b = poisson(6, wind), jnp.sin(jnp.arange(36.0))
    solver = SOR(1.4, 1e-12, ordering=ordering)
    answer = lx.linear_solve(operator, b, solver)
    true = jnp.linalg.norm(b - operator.mv(answer.value)) / jnp.linalg.norm(b)
    assert true <= 1e-12 and answer.stats["products"] == answer.stats["num_steps"] > 0
    np.testing.assert_allclose(answer.stats["residual"], true, rtol=0.1)
    np.testing.assert_allclose(answer.value, jnp.linalg.solve(operator.as_matrix(), b), rtol=1e-9, atol=1e-10)
    sparse = lambda data, b: jnp.sum(lx.linear_solve(operator.with_data(data), b, solver).value ** 2)
    dense = lambda data, b: jnp.sum(jnp.linalg.solve(operator.with_data(data).as_matrix(), b) ** 2)
    for ours, theirs in zip(jax.jit(jax.grad(sparse, (0, 1)))(operator.data, b), jax.grad(dense, (0, 1))(operator.data, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def test_the_transposed_iteration_converges_at_the_same_rate():
    operator, b = poisson(8, 0.3), jnp.ones(64)
    solver = SOR(1.5, 1e-10)
    state = solver.init(operator, {})
    counts = [
        lx.linear_solve(one, b, solver, state=its).stats["num_steps"]
        for one, its in ((operator, state), (operator.T, solver.transpose(state, {})[0]))
    ]
    assert abs(int(counts[0] - counts[1])) <= 3


def test_sweeps_are_counted_one_by_one_for_every_parameter_of_a_batch():
    operator, b = poisson(8), jnp.ones(64)
    count = lambda omega: lx.linear_solve(operator, b, SOR(omega, 1e-6), throw=False).stats["num_steps"]
    omegas = jnp.array([0.9, 1.3, 1.5, 1.9])
    counts = jax.jit(jax.vmap(count))(omegas)
    assert counts.tolist() == [int(count(float(omega))) for omega in omegas] and len(set(counts.tolist())) == 4
    early = lx.linear_solve(operator, b, SOR(1.5, 1e-6, max_steps=int(counts[2]) - 1), throw=False)
    assert early.result == lx.RESULTS.max_steps_reached and early.stats["residual"] > 1e-6


def test_a_good_guess_saves_sweeps_and_zero_is_the_solution_for_zero():
    operator, b = poisson(5), jnp.ones(25)
    solution = lx.linear_solve(operator, b, SOR(1.4, 1e-13)).value
    near = lx.linear_solve(operator, b, SOR(1.4), options={"y0": solution + 1e-13})
    assert near.stats["num_steps"] == 0 and near.stats["products"] == 1
    nothing = lx.linear_solve(operator, 0 * b, SOR(1.4), options={"y0": solution})
    assert not jnp.any(nothing.value) and nothing.stats["num_steps"] == 0


def test_what_does_not_converge_is_named_and_the_best_iterate_is_kept():
    operator = SparseOperator.from_scipy(scipy.sparse.csr_array([[1.0, 3.0], [3.0, 1.0]]))
    answer = lx.linear_solve(operator, jnp.ones(2), SOR(), throw=False)
    assert answer.result == lx.RESULTS.stagnation and jnp.all(jnp.isfinite(answer.value)) and answer.stats["residual"] <= 1
    faster = operator.with_data(jnp.where(operator.data == 3, 1e9, operator.data))
    assert lx.linear_solve(faster, jnp.ones(2), SOR(), throw=False).result == lx.RESULTS.breakdown
    broken = poisson(4).with_data(poisson(4).data.at[3].set(jnp.nan))
    assert lx.linear_solve(broken, jnp.ones(16), SOR(), throw=False).result != lx.RESULTS.successful
    singular = jax.jit(lambda data: lx.linear_solve(operator.with_data(data), jnp.ones(2), SOR(), throw=False).result == lx.RESULTS.breakdown)
    assert singular(jnp.where(operator.data == 1, 0, operator.data))


# SSOR.


@pytest.mark.parametrize("ordering", ["natural", "redblack"])
@pytest.mark.parametrize("wind", [0.0, 0.3], ids=["symmetric", "not symmetric"])
def test_the_preconditioner_is_the_inverse_of_its_matrix_and_so_is_its_transpose(ordering, wind):
    operator = poisson(5, wind)
    sides = Sweeps.of(operator.pattern, ordering).side
    both = jax.jit(lambda inverse: (inverse.as_matrix(), inverse.transpose().as_matrix()))
    for omega in (0.3, 1.0, 1.9):
        inverse, matrix = SSOR(omega, ordering).of(operator), dense_ssor(operator, omega, sides)
        dense, transposed = both(inverse)
        np.testing.assert_allclose(dense @ matrix, jnp.eye(25), atol=1e-11)
        np.testing.assert_allclose(transposed @ matrix.T, jnp.eye(25), atol=1e-11)
        assert lx.is_symmetric(inverse) == lx.is_positive_semidefinite(inverse) == (wind == 0)


def test_its_matrix_is_symmetric_and_positive_definite():
    for ordering in ("natural", "redblack"):
        of = jax.jit(lambda operator, omega, ordering=ordering: SSOR(omega, ordering).of(operator).as_matrix())
        for seed in range(3):
            for omega in (0.05, 1.0, 1.95):
                inverse = of(random_positive(seed)[0], omega)
                np.testing.assert_allclose(inverse, inverse.T, atol=1e-10 * jnp.max(jnp.abs(inverse)))
                assert jnp.linalg.eigvalsh(inverse).min() > 0


@pytest.mark.parametrize("ordering", ["natural", "redblack"])
def test_conjugate_gradients_with_it_give_the_direct_solution(ordering):
    for seed in range(2):
        operator, b = random_positive(seed)
        answer = lx.linear_solve(operator, b, CG(1e-10, preconditioner=SSOR(1.2, ordering)))
        np.testing.assert_allclose(answer.value, jnp.linalg.solve(operator.as_matrix(), b), rtol=1e-6, atol=1e-7)
    operator, b = poisson(24), jnp.ones(576)
    plain = lx.linear_solve(operator, b, CG(1e-8)).stats["num_steps"]
    assert lx.linear_solve(operator, b, CG(1e-8, preconditioner=SSOR(1.7, ordering))).stats["num_steps"] < plain


def test_it_saves_more_steps_in_the_natural_order_with_a_good_parameter():
    operator, b = poisson(24), jnp.ones(576)
    steps = lambda *settings: int(lx.linear_solve(operator, b, CG(1e-8, preconditioner=SSOR(*settings))).stats["num_steps"])
    assert steps(1.7) < steps(1.0) and steps(1.7) < steps(1.7, "redblack")


def test_iterations_do_not_depend_on_the_scale_of_the_rows():
    """M of S A S is S M S: with the diagonal taken to one both matrices are one, and without the iterates are S^-1 x."""
    operator, b = random_positive(5)
    scale = np.logspace(-0.5, 0.5, 30)[np.random.default_rng(6).permutation(30)]
    scaling = scipy.sparse.diags_array(scale)
    scaled = SparseOperator.from_scipy(scaling @ operator.to_scipy() @ scaling, POSITIVE)
    for steps in (5, 8):
        solver = CG(0.0, max_steps=steps, preconditioner=SSOR(1.3))
        plain, other = (lx.linear_solve(one, rhs, solver, throw=False).value for one, rhs in ((operator, b), (scaled, scale * b)))
        np.testing.assert_allclose(scale * other, plain, rtol=1e-6, atol=1e-8)
    counts = []
    for one, rhs in ((operator, b), (scaled, scale * b)):
        root = 1 / np.sqrt(one.to_scipy().diagonal())
        normalised = SparseOperator.from_scipy(scipy.sparse.diags_array(root) @ one.to_scipy() @ scipy.sparse.diags_array(root), POSITIVE)
        np.testing.assert_allclose(lx.diagonal(normalised), 1)
        counts.append(int(lx.linear_solve(normalised, root * rhs, CG(1e-8, preconditioner=SSOR(1.3))).stats["num_steps"]))
    assert counts[0] == counts[1]


def test_it_is_used_transposed_in_the_adjoint_solve():
    operator, b = poisson(6, 0.4), jnp.sin(jnp.arange(36.0))
    solver = GMRES(1e-10, restart=36, preconditioner=SSOR(1.3))
    solve = lambda b: lx.linear_solve(operator, b, solver).value
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(jnp.sin(solve(b)))))(b)
    np.testing.assert_allclose(operator.T.mv(gradient), jnp.cos(solve(b)), atol=1e-8)
    state = solver.init(operator, {})
    turned = solver.transpose(state, {})[0]
    steps = [int(lx.linear_solve(one, b, solver, state=its).stats["num_steps"]) for one, its in ((operator, state), (operator.T, turned))]
    assert abs(steps[0] - steps[1]) <= 2 and steps[1] < int(lx.linear_solve(operator.T, b, GMRES(1e-10, restart=36)).stats["num_steps"])


def test_the_parameter_and_the_operator_may_be_traced():
    operator, b = poisson(6), jnp.ones(36)
    count = lambda operator, omega: lx.linear_solve(operator, b, CG(1e-8, preconditioner=SSOR(omega))).stats["num_steps"]
    traced = jax.jit(count)
    assert [int(traced(operator, omega)) for omega in (0.7, 1.2)] == [int(count(operator, omega)) for omega in (0.7, 1.2)]
    solution = om.solve(om.Linear(operator, b), om.smooth.LinearSolve(CG(1e-10, preconditioner=SSOR(1.2, "redblack"))))
    np.testing.assert_allclose(operator.mv(solution.value), b, atol=1e-8)


# What is known about omega.


@pytest.mark.parametrize("n", [3, 20, 100])
def test_the_best_parameter_of_a_line_is_the_known_one(n):
    exact = 2 / (1 + np.sin(np.pi / (n + 1)))
    np.testing.assert_allclose(optimal_omega(line(n)), exact, rtol=0, atol=1e-10)
    untagged = line(n).to_scipy()
    np.testing.assert_allclose(optimal_omega(SparseOperator.from_scipy(untagged)), exact, rtol=0, atol=1e-10)


def test_the_best_parameter_of_a_larger_grid_is_the_known_one():
    np.testing.assert_allclose(optimal_omega(poisson(30)), 2 / (1 + np.sin(np.pi / 31)), rtol=0, atol=1e-10)


def test_the_fewest_sweeps_are_within_a_cell_of_it():
    operator, grid = line(20), jnp.linspace(1.5, 1.95, 10)
    b = jnp.asarray(np.random.default_rng(0).normal(size=20))
    counts = jax.vmap(lambda omega: lx.linear_solve(operator, b, SOR(omega, 1e-8)).stats["num_steps"])(grid)
    assert abs(float(grid[jnp.argmin(counts)]) - optimal_omega(operator)) <= 0.05


def test_the_bound_is_that_of_the_spectral_radius():
    n, omegas = 12, np.array([0.5, 1.0, 1.4, 1.6, 1.9])
    operator, beta = line(n), np.cos(np.pi / (n + 1))
    matrix = np.asarray(operator.as_matrix())
    for omega in omegas:
        lower = np.diag(np.diag(matrix)) / omega + np.tril(matrix, -1)
        radius = np.abs(np.linalg.eigvals(np.eye(n) - np.linalg.solve(lower, matrix))).max()
        np.testing.assert_allclose(sor_iteration_bound(omega, beta, 1e-6), 1 + np.log(1e-6) / np.log(radius), rtol=1e-6)
    best = optimal_omega(operator)
    bounds = sor_iteration_bound(jnp.array([best - 0.01, best, best + 0.01]), beta)
    assert bounds[1] < bounds[0] and bounds[1] < bounds[2]
    assert sor_iteration_bound(1.0, 0.0) == 1 and jnp.all(sor_iteration_bound(omegas, beta, tau=0.3) > sor_iteration_bound(omegas, beta))


@pytest.mark.parametrize("ordering", ["natural", "redblack"])
def test_the_bound_of_conjugate_gradients_rests_on_the_spectrum_of_the_preconditioned_matrix(ordering):
    """q and 1 enclose it, and the rate is the one that they give."""
    operator = random_positive(2)[0]
    matrix = np.asarray(operator.as_matrix())
    side = Sweeps.of(operator.pattern, ordering).side
    lower = np.zeros((30, 30))
    lower[np.asarray(operator.pattern.rows), np.asarray(operator.pattern.columns)] = np.where(np.asarray(side) < 0, np.asarray(operator.data), 0)
    d = np.diag(np.diag(matrix))
    kappa = np.linalg.cond(matrix)
    for omega in (0.4, 1.0, 1.6):
        m = np.asarray(dense_ssor(operator, omega, side))
        spectrum = scipy.linalg.eigvalsh(matrix, m)
        top = lambda one: scipy.linalg.eigvalsh(one, matrix)[-1]
        least = (2 - omega) / (1 + (2 - omega) ** 2 * top(d) / (4 * omega) + omega * top(lower @ np.linalg.inv(d) @ lower.T - d / 4))
        assert 0 < least <= spectrum[0] * (1 + 1e-9) and spectrum[-1] <= 1 + 1e-9
        # Chebyshev's polynomial on [least, 1] has to fall below rtol / sqrt(kappa).
        steps = float(conjugate_gradient_bound(operator, omega, 1e-6, ordering)) - 1
        np.testing.assert_allclose(np.cosh(steps * np.arccosh((1 + least) / (1 - least))), np.sqrt(kappa) / 1e-6, rtol=1e-5)


@pytest.mark.parametrize("make, size", [(line, 40), (poisson, 12), (poisson, 24)], ids=["line", "grid", "grid by ARPACK"])
def test_measured_steps_are_below_the_bound_which_is_least_near_the_best_parameter(make, size):
    operator = make(size)
    grid = jnp.linspace(0.5, 1.95, 30)
    bounds = conjugate_gradient_bound(operator, grid, 1e-8)
    b = jnp.asarray(np.random.default_rng(4).normal(size=operator.shape[0]))
    count = lambda omega: lx.linear_solve(operator, b, CG(1e-8, preconditioner=SSOR(omega))).stats["num_steps"]
    counts = np.asarray(jax.lax.map(count, grid))
    assert np.all(counts <= bounds)
    if make is line:  # there few steps are enough for another reason: a small matrix has few eigenvalues
        return
    assert counts[np.argmin(bounds)] <= 1.15 * counts.min() and counts.max() > 1.5 * counts.min()


def test_the_bound_of_a_diagonal_matrix_with_one_is_a_step():
    diagonal = SparseOperator.from_scipy(scipy.sparse.diags_array([1.0, 2.0, 5.0]), POSITIVE)
    np.testing.assert_allclose(conjugate_gradient_bound(diagonal, 1.0), 1.0, atol=1e-4)


def with_diagonal(value):
    return SparseOperator.from_entries(jnp.array([2.0, value, 2.0]), [0, 1, 2], [0, 1, 2], (3, 3))


BAD = {
    "omega.*2.0": lambda: SSOR(2.0),
    "omega.*-0.1": lambda: SOR(-0.1),
    "omega.*nan": lambda: SOR(jnp.nan),
    "ordering": lambda: SSOR(1.0, "rcm"),
    "rtol": lambda: SOR(1.0, -1.0),
    "max_steps": lambda: SOR(max_steps=0),
    "SparseOperator for SOR": lambda: SOR().init(lx.MatrixLinearOperator(jnp.eye(3)), {}),
    "SparseOperator for SSOR": lambda: SSOR().of(lx.MatrixLinearOperator(jnp.eye(3))),
    "entry .1, 1. is 0.0": lambda: SOR().init(with_diagonal(0.0), {}),
    "entry .1, 1. is -1.0": lambda: SSOR().of(with_diagonal(-1.0)),
    "positive or negative semidefinite for CG": lambda: CG(preconditioner=SSOR()).init(poisson(3, 0.2), {}),
    "traced": lambda: jax.jit(lambda data: optimal_omega(line(3).with_data(data)))(line(3).data),
    "spectral radius": lambda: optimal_omega(SparseOperator.from_scipy(scipy.sparse.csr_array([[1.0, 2.0], [2.0, 1.0]]))),
    "complex eigenvalues": lambda: optimal_omega(SparseOperator.from_scipy(scipy.sparse.csr_array([[1.0, 0.5], [-0.5, 1.0]]))),
    "beta": lambda: sor_iteration_bound(1.0, 1.0),
    "rtol.*above 0": lambda: sor_iteration_bound(1.0, 0.5, 0.0),
    "traced, but the spectrum": lambda: jax.jit(lambda data: conjugate_gradient_bound(line(3).with_data(data), 1.0))(line(3).data),
    "tagged as positive semidefinite": lambda: conjugate_gradient_bound(poisson(3, 0.2), 1.0),
    "positive definite, but its least": lambda: conjugate_gradient_bound(
        SparseOperator.from_scipy(scipy.sparse.csr_array([[1.0, 2.0], [2.0, 1.0]]), POSITIVE), 1.0
    ),
    "omega.*2.5": lambda: conjugate_gradient_bound(line(3), jnp.array([1.0, 2.5])),
    "rtol.*1.0": lambda: conjugate_gradient_bound(line(3), 1.0, 1.0),
    "tau": lambda: sor_iteration_bound(1.0, 0.5, tau=1.0),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
