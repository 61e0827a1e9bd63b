"""GCRO-DR: what its space is, what carrying it saves, and that answers do not depend on it."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import optimand as om
from optimand.linear import GCRODR, GMRES, Jacobi, SparseOperator


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def helmholtz(shift, side=12, wind=0.0):
    """Indefinite, and with wind not symmetric: what restarted GMRES finds hard."""
    line = scipy.sparse.diags_array([-1.0 - wind, 2.0, -1.0 + wind], offsets=[-1, 0, 1], shape=(side, side))
    one = scipy.sparse.eye_array(side)
    return SparseOperator.from_scipy((scipy.sparse.kron(line, one) + scipy.sparse.kron(one, line) - shift * scipy.sparse.eye_array(side**2)).tocsr())


def solve(operator, b, solver, space=None, **settings):
    state = solver.init(operator, {} if space is None else {"space": space})
    return lx.linear_solve(operator, b, solver, state=state, **settings)


def test_without_a_space_it_is_gmres():
    operator, b = helmholtz(0.3, wind=0.1), jnp.sin(jnp.arange(144.0))
    for most in (7, 20, 45):
        ours = solve(operator, b, GCRODR(1e-12, restart=20, recycle=0, max_steps=most), throw=False)
        theirs = lx.linear_solve(operator, b, GMRES(1e-12, restart=20, max_steps=most), throw=False)
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-8, atol=1e-10)
        assert ours.stats["num_steps"] == theirs.stats["num_steps"] == most


@pytest.mark.parametrize("wind", [0.0, 0.2])
@pytest.mark.parametrize("preconditioner", [None, Jacobi()], ids=["plain", "jacobi"])
def test_the_matrix_maps_its_space_to_an_orthonormal_one(wind, preconditioner):
    operator, b = helmholtz(0.3, wind=wind), jnp.ones(144)
    solver = GCRODR(1e-10, restart=20, recycle=6, preconditioner=preconditioner)
    answer = solve(operator, b, solver)
    space = answer.stats["space"]
    assert answer.stats["residual"] <= 1e-10 and jnp.sum(jnp.any(space != 0, axis=1)) >= 5  # a pair may have been cut
    for changed in (operator, helmholtz(0.35, wind=wind)):
        u, c = solver.init(changed, {"space": space}).memory
        there = jnp.any(c != 0, axis=1)
        np.testing.assert_allclose(c @ c.T, jnp.diag(there.astype(float)), atol=1e-12)
        scale = 1.0 if preconditioner is None else 1 / lx.diagonal(changed)
        np.testing.assert_allclose(jax.vmap(lambda v, changed=changed, scale=scale: changed.mv(scale * v))(u), c, atol=1e-8)


def test_the_space_is_that_of_the_smallest_eigenvalues():
    diagonal = jnp.concatenate([jnp.array([0.001, 0.002, 0.003]), jnp.linspace(1, 2, 97)])
    operator = lx.DiagonalLinearOperator(diagonal)
    space = solve(operator, jnp.ones(100), GCRODR(1e-12, restart=25, recycle=3)).stats["space"]
    basis = jnp.linalg.qr(space.T)[0]
    assert jnp.linalg.norm(basis[:3]) > jnp.sqrt(3.0) - 1e-4


def test_with_the_eigenvectors_of_the_smallest_values_it_converges_as_without_them():
    slow, fast = jnp.array([1e-4, -2e-3, 1e-2]), jnp.linspace(1, 3, 40)
    operator, b = lx.DiagonalLinearOperator(jnp.concatenate([slow, fast])), jnp.ones(43)
    known = solve(operator, b, GCRODR(1e-8, restart=30, recycle=3), jnp.eye(43)[:3])
    deflated = lx.linear_solve(lx.DiagonalLinearOperator(fast), b[3:], GMRES(1e-8 * np.sqrt(43 / 40), restart=30))
    assert abs(known.stats["num_steps"] - deflated.stats["num_steps"]) <= 1
    np.testing.assert_allclose(known.value, 1 / jnp.concatenate([slow, fast]), rtol=1e-4)


# With shifts near one, where many eigenvalues lie on both sides of zero, the carried space costs as much as it saves or more: 0.96 to 1.17 of the products, as the last
# digits of the right-hand side will have it.
@pytest.mark.parametrize("wind, shifts, most", [(0.0, (0.3, 0.35), 0.9), (0.2, (0.0, 0.05), 1), (0.0, (0.9, 1.0), np.inf)])
def test_a_space_that_is_carried_saves_products_and_changes_no_answer(wind, shifts, most):
    solver, space, fresh, carried, cold = GCRODR(1e-8, restart=20, recycle=6), None, 0, 0, 0
    for number, shift in enumerate(np.linspace(*shifts, 5)):
        operator, b = helmholtz(shift, wind=wind), jnp.cos(jnp.arange(144.0) + number)
        alone = solve(operator, b, solver)
        answer = solve(operator, b, solver, space)
        gmres = lx.linear_solve(operator, b, GMRES(1e-8, restart=20, max_steps=3000), throw=False)
        space = answer.stats["space"]
        assert jnp.linalg.norm(b - operator.mv(answer.value)) <= 1e-8 * jnp.linalg.norm(b)
        np.testing.assert_allclose(answer.value, jnp.linalg.solve(operator.as_matrix(), b), rtol=1e-4, atol=1e-5)
        if number:
            fresh, carried, cold = (a + int(s.stats["products"]) for a, s in ((fresh, alone), (carried, answer), (cold, gmres)))
    assert carried < most * fresh and fresh < 0.8 * cold


def test_it_needs_no_more_products_than_the_like_of_scipy():
    space, pairs, ours, theirs = None, [], 0, 0
    solver = GCRODR(1e-8, restart=26, recycle=6)
    for shift in np.linspace(0.9, 1.0, 5):
        operator, b = helmholtz(shift), np.ones(144)
        answer = solve(operator, jnp.asarray(b), solver, space)
        space, ours = answer.stats["space"], ours + int(answer.stats["products"])
        seen, matrix = [], operator.to_scipy()
        product = lambda v, matrix=matrix, seen=seen: (seen.append(1), matrix @ v)[1]
        _, info = scipy.sparse.linalg.gcrotmk(
            scipy.sparse.linalg.LinearOperator(matrix.shape, product), b, rtol=1e-8, atol=0, m=20, k=6, CU=pairs, discard_C=True, maxiter=100
        )
        assert info == 0
        theirs += len(seen)
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("preconditioner", [None, Jacobi()], ids=["plain", "jacobi"])
def test_where_the_matrix_stays_its_images_do_too(preconditioner):
    solver, rhs = GCRODR(1e-8, restart=20, recycle=6, preconditioner=preconditioner), jnp.cos(jnp.arange(144.0))
    first = solve(helmholtz(0.3), jnp.ones(144), solver).stats
    known = {name: first[name] for name in ("space", "images")}
    for shift, products in ((0.3, 1), (0.30001, 7)):
        operator = helmholtz(shift)
        kept, anew = solver.init(operator, known), solver.init(operator, {"space": first["space"]})
        assert kept.products == products and anew.products == 6
        np.testing.assert_allclose(jnp.abs(kept.memory.images), jnp.abs(anew.memory.images), atol=1e-6)
        answers = [lx.linear_solve(operator, rhs, solver, state=state) for state in (kept, anew)]
        assert abs(answers[0].stats["num_steps"] - answers[1].stats["num_steps"]) <= 1 and answers[0].stats["residual"] <= 1e-8
        np.testing.assert_allclose(answers[0].value, answers[1].value, rtol=1e-4, atol=1e-6)


def test_a_sequence_with_one_matrix_multiplies_its_space_once():
    system = lambda shift: (lx.DiagonalLinearOperator(jnp.linspace(1.0, 100.0, 60)), jnp.cos(shift * jnp.arange(60.0)))
    method = om.linear.RecycledSequence(GCRODR(1e-6, restart=12, recycle=4))
    sequence = om.linear.LinearSequence(system, jnp.array([0.1, 0.2, 0.3, 0.4]))
    kept = om.solve(sequence, method).state
    changing = om.linear.LinearSequence(lambda shift: (lx.DiagonalLinearOperator(jnp.linspace(1.0, 100.0 + shift, 60)), system(shift)[1]), jnp.array([0.1, 0.2, 0.3, 0.4]))
    made = om.solve(changing, method).state
    assert jnp.all(kept.products[1:] <= made.products[1:] - 2)  # one instead of four, and an iteration either way


@pytest.mark.parametrize("tags", [(), lx.symmetric_tag])
def test_derivatives_are_those_of_the_dense_solve(tags):
    operator, b = helmholtz(0.3), jnp.sin(jnp.arange(144.0))
    operator = SparseOperator(operator.data, operator.pattern, tags)
    solver = GCRODR(1e-12, restart=20, recycle=6)
    space = solve(operator, b, solver).stats["space"]
    ours = lambda scale, b: jnp.sum(solve(operator.with_data(scale * operator.data), b, solver, space).value ** 2)
    dense = lambda scale, b: jnp.sum(jnp.linalg.solve(scale * operator.as_matrix(), b) ** 2)
    for mine, theirs in zip(jax.grad(ours, (0, 1))(1.5, b), jax.grad(dense, (0, 1))(1.5, b), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def test_rows_of_a_space_that_depend_on_others_are_left_out():
    operator, b = helmholtz(0.3), jnp.ones(144)
    solver = GCRODR(1e-10, restart=20, recycle=4)
    rows = jnp.stack([b, 2 * b, jnp.arange(144.0), b - jnp.arange(144.0)])
    assert jnp.sum(jnp.any(solver.init(operator, {"space": rows}).memory.images != 0, axis=1)) == 2
    assert solve(operator, b, solver, rows).stats["residual"] <= 1e-10


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: GCRODR(restart=1), "restart"),
        (lambda: GCRODR(recycle=-1), "recycle"),
        (lambda: GCRODR(restart=10, recycle=10), "recycle"),
        (lambda: GCRODR().init(lx.MatrixLinearOperator(jnp.eye(3) + 0j), {}), "real"),
        (lambda: GCRODR(recycle=2).init(lx.MatrixLinearOperator(jnp.eye(3)), {"space": jnp.ones((2, 4))}), "space"),
        (lambda: GCRODR(recycle=2).init(lx.MatrixLinearOperator(jnp.eye(3)), {"space": jnp.ones((2, 3)), "images": jnp.ones(2)}), "images"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()


def test_the_space_of_a_matrix_tagged_as_symmetric_is_that_without_the_tag():
    plain, b = helmholtz(0.3), jnp.sin(jnp.arange(144.0))
    tagged = SparseOperator(plain.data, plain.pattern, lx.symmetric_tag)
    for most in (20, 33, 50):
        solver = GCRODR(1e-13, restart=20, recycle=6, max_steps=most)
        ours, theirs = (solve(operator, b, solver, throw=False).stats for operator in (tagged, plain))
        assert ours["num_steps"] == theirs["num_steps"]
        np.testing.assert_allclose(ours["residual"], theirs["residual"], rtol=1e-6)
        angles = jnp.linalg.svd(ours["images"] @ theirs["images"].T, compute_uv=False)
        np.testing.assert_allclose(angles, 1.0, atol=1e-6)


def test_answers_do_not_depend_on_a_wrong_tag_of_symmetry():
    windy, b = helmholtz(0.3, wind=0.3), jnp.ones(144)
    tagged = SparseOperator(windy.data, windy.pattern)
    object.__setattr__(tagged, "tags", frozenset([lx.symmetric_tag]))  # which is refused where the entries are known
    answer = solve(tagged, b, GCRODR(1e-10, restart=20, recycle=6))
    np.testing.assert_allclose(windy.mv(answer.value), b, atol=1e-8)
    u, c = answer.stats["space"], answer.stats["images"]
    np.testing.assert_allclose(jax.vmap(windy.mv)(u), c, atol=1e-8)
