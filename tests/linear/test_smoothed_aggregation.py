"""Smoothed aggregation: its pieces against their definitions, that the number of steps does not grow, and that it serves in both directions."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.spatial

import optimand as om
from optimand.linear import CG, Jacobi, SmoothedAggregation, SparseLU, SparseOperator, rigid_body_modes
from optimand.linear.aggregation import Recipe, aggregates_of, levels_of, spectral_bound, tentative_of
from optimand.linear.row_groups import layout_of

POSITIVE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def line(n):
    return scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))


def grid(side, along=1.0):
    """-u_xx - along u_yy."""
    one = scipy.sparse.eye_array(side)
    return (scipy.sparse.kron(line(side), one) + along * scipy.sparse.kron(one, line(side))).tocsr()


def cube(side):
    one = scipy.sparse.eye_array(side)
    return (scipy.sparse.kron(grid(side), one) + scipy.sparse.kron(scipy.sparse.eye_array(side**2), line(side))).tocsr()


def jumping(side, factor=1e4, seed=0):
    """-div(K grad u) in cells, with K of one or `factor` in blocks of four by four."""
    k = np.where(np.random.default_rng(seed).uniform(size=(side // 4 + 1, side // 4 + 1)) < 0.5, 1, factor)
    k = np.kron(k, np.ones((4, 4)))[:side, :side]
    number = np.arange(side * side).reshape(side, side)
    rows, columns, data = [], [], []
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        face = 2 / (1 / k[first] + 1 / k[second])
        for i, j in ((first, second), (second, first)):
            rows += [number[i].ravel(), number[i].ravel()]
            columns += [number[j].ravel(), number[i].ravel()]
            data += [-face.ravel(), face.ravel()]
    edge = np.zeros((side, side))
    edge[0] = 2 * k[0]
    rows, columns, data = [*rows, number.ravel()], [*columns, number.ravel()], [*data, edge.ravel()]
    return scipy.sparse.coo_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns)))).tocsr()


def triangles(count, seed=0):
    """Points in the unit square, and the triangles between them."""
    points = np.random.default_rng(seed).uniform(size=(count, 2))
    side = np.linspace(0, 1, round(count**0.5))
    rim = np.concatenate([np.stack([side, one * np.ones_like(side)], axis=1) for one in (0, 1)])
    points = np.unique(np.concatenate([points, rim, rim[:, ::-1]]), axis=0)
    mesh = scipy.spatial.Delaunay(points).simplices
    a, b, c = (points[mesh[:, k]] for k in range(3))
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    keep = np.abs(area) > 1e-12
    gradients = np.stack([np.stack([(q - r)[:, 1], (r - q)[:, 0]], axis=1) for q, r in ((b, c), (c, a), (a, b))], axis=1) / (2 * area)[:, None, None]
    return points, mesh[keep], np.abs(area[keep]), gradients[keep]


def assembled(mesh, local, block=1):
    unknowns = (mesh[:, :, None] * block + np.arange(block)).reshape(len(mesh), -1)
    rows, columns = np.broadcast_arrays(unknowns[:, :, None], unknowns[:, None, :])
    return scipy.sparse.coo_array((local.ravel(), (rows.ravel(), columns.ravel()))).tocsr()


def membrane(count):
    """Linear elements for Laplace's operator, zero on the rim."""
    points, mesh, area, gradients = triangles(count)
    matrix = assembled(mesh, area[:, None, None] * np.einsum("eid,ejd->eij", gradients, gradients))
    inner = np.flatnonzero(np.all((points > 0) & (points < 1), axis=1))
    return matrix[inner][:, inner]


def elastic(count):
    """Linear elements for plane strain, clamped on the left; and the rigid body modes."""
    points, mesh, area, gradients = triangles(count)
    strain = np.zeros((len(mesh), 3, 6))
    strain[:, 0, 0::2], strain[:, 1, 1::2] = gradients[:, :, 0], gradients[:, :, 1]
    strain[:, 2, 0::2], strain[:, 2, 1::2] = gradients[:, :, 1], gradients[:, :, 0]
    stress = np.array([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    matrix = assembled(mesh, area[:, None, None] * np.einsum("esi,st,etj->eij", strain, stress, strain), 2)
    free = np.flatnonzero(points[:, 0] > 0)
    inner = (2 * free[:, None] + np.arange(2)).ravel()
    return matrix[inner][:, inner], rigid_body_modes(points[free])


def operator_of(matrix):
    matrix = (matrix + matrix.T) / 2
    return SparseOperator.from_scipy(matrix, POSITIVE)


def steps(matrix, preconditioner, rtol=1e-8):
    """Those of CG, which has to come to the tolerance."""
    operator = operator_of(matrix)
    if isinstance(preconditioner, SmoothedAggregation):
        preconditioner = preconditioner.of(operator)
    b = jnp.asarray(np.random.default_rng(1).normal(size=operator.shape[0]))
    answer = lx.linear_solve(operator, b, CG(rtol, max_steps=3000, preconditioner=preconditioner))
    assert jnp.linalg.norm(b - operator.mv(answer.value)) <= 1.0001 * rtol * jnp.linalg.norm(b)
    return int(answer.stats["num_steps"])


# The pieces.


@pytest.mark.parametrize("matrix", [grid(30), cube(9), membrane(600), jumping(20)], ids=["grid", "cube", "mesh", "jumping"])
def test_aggregates_are_connected_disjoint_and_cover_all_points(matrix):
    label = aggregates_of(abs(matrix).tocsr())
    count = label.max() + 1
    assert label.min() == 0 and np.array_equal(np.unique(label), np.arange(count))
    assert 1 / 20 < count / len(label) < 1 / 3
    inside = abs(matrix).tocoo()
    same = label[inside.coords[0]] == label[inside.coords[1]]
    within = scipy.sparse.coo_array((inside.data[same], (inside.coords[0][same], inside.coords[1][same])), shape=matrix.shape)
    assert scipy.sparse.csgraph.connected_components(within)[0] == count


def test_points_without_couplings_join_nothing():
    matrix = scipy.sparse.block_diag([grid(5), scipy.sparse.eye_array(7)]).tocsr()
    label = aggregates_of(abs(matrix))
    assert np.all(label[:25] >= 0) and np.all(label[25:] == -1)


@pytest.mark.parametrize("block", [1, 2])
def test_the_tentative_prolongation_is_orthonormal_and_holds_the_candidates(block):
    rng = np.random.default_rng(0)
    point = np.repeat(np.arange(40), block)
    label = rng.integers(0, 6, size=40)
    label[3] = -1
    for m in (1, 3):
        candidates = rng.normal(size=(40 * block, m))
        t, coarse, coarse_point = tentative_of(label, point, candidates)
        np.testing.assert_allclose((t.T @ t).toarray(), np.eye(t.shape[1]), atol=1e-12)
        belongs = label[point] >= 0
        np.testing.assert_allclose((t @ coarse)[belongs], candidates[belongs], atol=1e-10)
        assert t.shape[1] == len(coarse_point) == len(coarse) and not np.any((t @ coarse)[~belongs])


def test_a_point_alone_keeps_as_many_unknowns_as_its_candidates_span():
    t, coarse, _ = tentative_of(np.array([0]), np.zeros(2, int), np.array([[1.0, 0.0, 0.3], [0.0, 1.0, -0.2]]))
    assert t.shape == (2, 2)
    np.testing.assert_allclose(t @ coarse, [[1.0, 0.0, 0.3], [0.0, 1.0, -0.2]], atol=1e-12)


def test_levels_hold_the_candidates_and_are_triple_products():
    matrix, modes = elastic(300)
    made = levels_of(matrix, Recipe(0.0, 2, 20, SmoothedAggregation(candidates=modes).candidates))
    assert len(made.levels) >= 2 and not made.flaw
    finer = [*(level.matrix for level in made.levels[1:]), made.last]
    for level, coarse in zip(made.levels, finer, strict=True):
        np.testing.assert_allclose(coarse.toarray(), (level.prolongation.T @ level.matrix @ level.prolongation).toarray(), atol=1e-10)
        np.testing.assert_allclose(level.restriction.toarray(), level.prolongation.T.toarray())
    # Away from the clamped side, rigid motions are in the range of the first prolongation.
    p = made.levels[0].prolongation.toarray()
    inside = np.flatnonzero(np.abs(matrix @ modes).max(axis=1) < 1e-10)
    depth = abs(matrix) @ np.isin(np.arange(len(p)), inside, invert=True).astype(float) == 0
    coarse = tentative_of(aggregates_of_points(matrix), np.arange(len(p)) // 2, modes)[1]
    np.testing.assert_allclose((p @ coarse)[depth], modes[depth], atol=1e-9)


def aggregates_of_points(matrix):
    belongs = scipy.sparse.kron(scipy.sparse.eye_array(matrix.shape[0] // 2), np.ones((2, 1))).tocsr()
    norms = (belongs.T @ matrix.multiply(matrix) @ belongs).tocsr()
    norms.data = np.sqrt(norms.data)
    return aggregates_of(norms)


def test_the_bound_of_the_spectrum_is_one_and_is_close():
    for matrix in (grid(9), membrane(150), jumping(12), cube(5)):
        diagonal = matrix.diagonal()
        largest = scipy.linalg.eigvalsh(matrix.toarray(), np.diag(diagonal))[-1]
        assert largest <= spectral_bound(matrix.tocsr(), diagonal) <= 1.2 * largest


def test_rows_by_groups_multiply_like_the_matrix():
    rng = np.random.default_rng(0)
    for lengths in (rng.integers(0, 9, size=60), np.full(20, 3), np.append(np.full(30, 2), 40), np.zeros(4, int)):
        columns = [rng.choice(50, size=n, replace=False) for n in lengths]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        matrix = scipy.sparse.csr_array((rng.normal(size=len(rows)), (rows, np.concatenate(columns).astype(int))), shape=(len(lengths), 50))
        layout, vector = layout_of(matrix), rng.normal(size=50)
        np.testing.assert_allclose(jax.device_put(layout.of(matrix)).mv(jnp.asarray(vector)), matrix @ vector, atol=1e-12)
        assert sum(n * w for n, w in zip(layout.counts, layout.widths, strict=True)) <= 1.5 * max(matrix.nnz, len(lengths)) + 20


@pytest.mark.parametrize("settings", [{}, {"smoother": "jacobi"}, {"cycle": "W"}, {"strength": 0.1, "smoothing": 3}], ids=str)
def test_a_cycle_is_symmetric_and_positive_definite(settings):
    dense_of = jax.jit(lambda made: made.as_matrix())
    for matrix in (grid(12, 0.01), membrane(200)):
        made = SmoothedAggregation(coarsest=8, **settings).of(operator_of(matrix))
        dense = np.asarray(dense_of(made))
        np.testing.assert_allclose(dense, dense.T, atol=1e-12 * np.abs(dense).max())
        assert np.linalg.eigvalsh(dense).min() > 0 and made.transpose() is made
        assert lx.is_symmetric(made) and lx.is_positive_semidefinite(made)


def test_up_to_the_coarsest_it_is_the_inverse():
    matrix = grid(6)
    np.testing.assert_allclose(SmoothedAggregation().of(operator_of(matrix)).as_matrix() @ matrix.toarray(), np.eye(36), atol=1e-10)


# How it serves.


def test_the_steps_hardly_grow_as_the_grid_is_refined():
    counts = [steps(grid(side), SmoothedAggregation(coarsest=100)) for side in (24, 96, 192)]
    assert counts[-1] <= 16 and counts[-1] <= counts[0] + 6, counts
    assert steps(cube(16), SmoothedAggregation(coarsest=100)) <= 14


@pytest.mark.thorough
def test_the_steps_hardly_grow_as_an_unstructured_mesh_is_refined():
    counts = [steps(membrane(count), SmoothedAggregation(coarsest=100)) for count in (500, 4000, 16000)]
    assert counts[-1] <= 20 and counts[-1] <= counts[0] + 8, counts


def test_strong_couplings_serve_anisotropic_equations():
    matrix = grid(64, 0.001)
    following, without = (steps(matrix, SmoothedAggregation(strength, coarsest=100)) for strength in (0.1, 0.0))
    assert following <= 16 and following < 0.5 * without, (following, without)


@pytest.mark.thorough
def test_it_serves_coefficients_that_jump():
    counts = [steps(jumping(64, factor), SmoothedAggregation(0.02, coarsest=100)) for factor in (1.0, 1e4, 1e6)]
    assert max(counts) <= 40, counts
    assert counts[1] < 0.5 * steps(jumping(64, 1e4), Jacobi())


def test_rigid_body_modes_serve_elasticity():
    counts = []
    for count in (500, 4000):
        matrix, modes = elastic(count)
        counts.append(steps(matrix, SmoothedAggregation(candidates=modes, block=2, coarsest=100)))
    assert counts[-1] <= 40 and counts[-1] <= 2 * counts[0], counts
    assert counts[-1] < 0.3 * steps(matrix, SmoothedAggregation(coarsest=100))


def test_rigid_body_modes_are_those_of_a_body_that_is_not_held():
    points = triangles(60)[0]
    modes = rigid_body_modes(points)
    assert modes.shape == (2 * len(points), 3) and np.linalg.matrix_rank(modes) == 3
    x = np.random.default_rng(0).normal(size=(7, 3))
    turned = rigid_body_modes(x)
    assert turned.shape == (21, 6) and np.linalg.matrix_rank(turned) == 6
    for mode in turned.T:  # distances are kept to the first order
        u = mode.reshape(7, 3)
        np.testing.assert_allclose(np.einsum("ijd,ijd->ij", x[:, None] - x, u[:, None] - u), 0, atol=1e-12)


@pytest.mark.thorough
def test_a_w_cycle_takes_fewer_steps_and_more_smoothing_does_too():
    matrix = grid(80)
    plain, double_, more = (steps(matrix, SmoothedAggregation(coarsest=30, **s)) for s in ({}, {"cycle": "W"}, {"smoothing": 4}))
    assert double_ <= plain and more < plain
    assert steps(matrix, SmoothedAggregation(smoother="jacobi", coarsest=30)) <= 1.5 * plain


def test_it_is_made_under_jit_where_all_couplings_count():
    operator = operator_of(grid(40))
    b = jnp.sin(jnp.arange(1600.0))
    solver = CG(1e-8, preconditioner=SmoothedAggregation(coarsest=50))
    inside = lx.linear_solve(operator, b, solver)  # lineax traces the operator
    outside = lx.linear_solve(operator, b, CG(1e-8, preconditioner=SmoothedAggregation(coarsest=50).of(operator)))
    assert abs(int(inside.stats["num_steps"] - outside.stats["num_steps"])) <= 1
    np.testing.assert_allclose(inside.value, outside.value, atol=1e-6)
    scales = jnp.array([1.0, 2.0])
    many = jax.vmap(lambda scale: lx.linear_solve(operator.with_data(scale * operator.data), b, solver).value)(scales)
    np.testing.assert_allclose(many, inside.value / scales[:, None], atol=1e-6)


def test_single_precision_stays_single():
    operator = SparseOperator.from_scipy(grid(40).astype(np.float32), POSITIVE)
    for preconditioner in (SmoothedAggregation(coarsest=50), SmoothedAggregation(coarsest=50).of(operator)):
        answer = lx.linear_solve(operator, jnp.ones(1600, jnp.float32), CG(1e-4, preconditioner=preconditioner))
        assert answer.value.dtype == jnp.float32 and answer.stats["num_steps"] <= 10


@pytest.mark.parametrize("frozen", [False, True], ids=["made anew", "frozen"])
def test_derivatives_are_those_of_a_direct_solve(frozen):
    operator, b = operator_of(membrane(150)), None
    b = jnp.sin(jnp.arange(operator.shape[0]) * 1.0)
    made = SmoothedAggregation(coarsest=20)
    solver = CG(1e-12, preconditioner=made.of(operator) if frozen else made)
    changed = lambda data: operator.with_data(1.3 * data)  # a frozen one is that of another matrix
    ours = lambda data, b: jnp.sum(lx.linear_solve(changed(data), b, solver).value ** 2)
    direct = lambda data, b: jnp.sum(lx.linear_solve(changed(data), b, SparseLU()).value ** 2)
    for one, other in zip(jax.jit(jax.grad(ours, (0, 1)))(operator.data, b), jax.grad(direct, (0, 1))(operator.data, b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8 * float(jnp.abs(other).max()))


def test_the_preconditioner_is_used_transposed_in_the_adjoint_solve():
    """The derivative's solve may take no more steps than the solve itself needs, which is a fraction of what it takes without."""
    operator = operator_of(grid(40, 0.1))
    b = jnp.sin(jnp.arange(1600.0))
    made = SmoothedAggregation(coarsest=50).of(operator)
    needed = int(lx.linear_solve(operator, b, CG(1e-10, preconditioner=made)).stats["num_steps"]) + 3
    assert needed < 0.4 * lx.linear_solve(operator, b, CG(1e-10)).stats["num_steps"]
    solve = lambda b: lx.linear_solve(operator, b, CG(1e-10, max_steps=needed, preconditioner=made)).value
    gradient = jax.grad(lambda b: jnp.sum(jnp.sin(solve(b))))(b)
    np.testing.assert_allclose(operator.mv(gradient), jnp.cos(solve(b)), atol=1e-6)


def test_a_frozen_one_serves_a_sequence_that_moves_away():
    operator, b = operator_of(grid(50)), jnp.ones(2500)
    frozen = SmoothedAggregation(coarsest=50).of(operator)
    mass = jnp.where(operator.pattern.rows == operator.pattern.columns, 1.0, 0.0)
    count = lambda shift: lx.linear_solve(operator.with_data(operator.data + shift * mass), b, CG(1e-8, preconditioner=frozen)).stats["num_steps"]
    assert [int(count(shift)) <= 20 for shift in (0.0, 0.002, 0.01)] == [True] * 3


def test_a_singular_matrix_whose_kernel_is_the_candidate_is_solved_where_it_can_be():
    _, mesh, area, gradients = triangles(400)
    matrix = assembled(mesh, area[:, None, None] * np.einsum("eid,ejd->eij", gradients, gradients))  # no boundary conditions
    b = np.random.default_rng(0).normal(size=matrix.shape[0])
    assert np.abs(matrix @ np.ones(len(b))).max() < 1e-10
    operator = operator_of(matrix)
    answer = lx.linear_solve(operator, jnp.asarray(b - b.mean()), CG(1e-8, preconditioner=SmoothedAggregation(coarsest=30).of(operator)))
    assert answer.stats["num_steps"] <= 25


# Bad input.


def test_entries_that_have_no_levels_end_as_a_failure_where_they_are_traced():
    operator = operator_of(grid(10))
    solve = jax.jit(lambda data: lx.linear_solve(operator.with_data(data), jnp.ones(100), CG(1e-6, preconditioner=SmoothedAggregation(coarsest=10)), throw=False))
    assert solve(operator.data).result == lx.RESULTS.successful
    for data in (operator.data.at[5].set(jnp.nan), -operator.data):
        answer = solve(data)
        assert answer.result != lx.RESULTS.successful and jnp.all(jnp.isfinite(answer.value))


def indefinite():
    return SparseOperator.from_scipy(grid(12) - 1.0 * scipy.sparse.eye_array(144), POSITIVE)


BAD = {
    "strength": lambda: SmoothedAggregation(1.0),
    "smoothing": lambda: SmoothedAggregation(smoothing=0),
    "smoother": lambda: SmoothedAggregation(smoother="sor"),
    "cycle": lambda: SmoothedAggregation(cycle="F"),
    "lowest": lambda: SmoothedAggregation(lowest=0.0),
    "coarsest": lambda: SmoothedAggregation(coarsest=0),
    "block.*divide": lambda: SmoothedAggregation(block=2).of(operator_of(grid(3))),
    "candidates.*column": lambda: SmoothedAggregation(candidates=np.ones(9)),
    "candidates.*finite": lambda: SmoothedAggregation(candidates=np.full((9, 1), np.nan)),
    "candidates.*rows": lambda: SmoothedAggregation(candidates=np.ones((8, 1))).of(operator_of(grid(3))),
    "SparseOperator for SmoothedAggregation": lambda: SmoothedAggregation().of(lx.MatrixLinearOperator(jnp.eye(3), POSITIVE)),
    "tagged as positive": lambda: SmoothedAggregation().of(SparseOperator.from_scipy(grid(3))),
    "real": lambda: SmoothedAggregation().of(SparseOperator.from_scipy(grid(3) * (1 + 0j), POSITIVE)),
    "unknown 2 of level 0": lambda: SmoothedAggregation(coarsest=2).of(SparseOperator.from_scipy(scipy.sparse.diags_array([1.0, 1.0, -1.0]), POSITIVE)),
    "level 1 has no positive diagonal": lambda: SmoothedAggregation(coarsest=20).of(indefinite()),
    "eigenvalue -": lambda: SmoothedAggregation().of(indefinite()),
    "not finite": lambda: SmoothedAggregation().of(operator_of(grid(3)).with_data(operator_of(grid(3)).data.at[0].set(jnp.nan))),
    "traced": lambda: lx.linear_solve(operator_of(grid(3)), jnp.ones(9), CG(preconditioner=SmoothedAggregation(0.1))),
    "points": lambda: rigid_body_modes(np.ones((5, 4))),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
