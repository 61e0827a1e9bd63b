"""What lineax's own tests demand of a solver, of those of this room: every kind of operator, trees, derivatives, batches, failures.

The properties are those of lineax's test suite (https://github.com/patrick-kidger/lineax, tests), where they apply to solvers of square systems. What takes longest to
compile is marked `thorough`.
"""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import CG, FGMRES, GCRODR, GMRES, MINRES, BiCGStab, SparseLU, SparseOperator

SYMMETRIC, POSITIVE, NEGATIVE = lx.symmetric_tag, lx.positive_semidefinite_tag, lx.negative_semidefinite_tag
SIZE, RTOL = 4, 1e-12

# name: (how it is made for a tolerance, the tag of the matrices it is tried on)
ITERATIVE = {
    "CG": (CG, POSITIVE),
    "CG, negative": (CG, NEGATIVE),
    "MINRES": (MINRES, SYMMETRIC),
    "GMRES": (GMRES, ()),
    "FGMRES": (FGMRES, ()),
    "BiCGStab": (BiCGStab, ()),
    "GCRODR": (lambda rtol, **settings: GCRODR(rtol, restart=4, recycle=2, **settings), ()),
}
DIRECT = {"SuperLU": (lambda rtol: SparseLU(), ())}
if importlib.util.find_spec("kvxopt") is not None:
    DIRECT["KLU"] = (lambda rtol: SparseLU(library="klu"), ())
ALL = ITERATIVE | DIRECT
REAL_ONLY = ("MINRES", "GCRODR")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def made(name, rtol=RTOL):
    make, tag = ALL[name]
    return make(rtol), tag


def entries(seed, shape, dtype=np.float64):
    draw = np.random.default_rng(seed)
    values = draw.normal(size=shape) + (1j * draw.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else 0)
    return jnp.asarray(values, dtype)


def matrix_for(tag, seed=0, dtype=np.float64, size=SIZE):
    """A random matrix with that tag, with a condition number below 1000: lineax's bound for matrices that its solvers must get right."""
    while True:
        matrix = entries(seed, (size, size), dtype)
        if tag == SYMMETRIC:
            matrix = matrix + matrix.T
        if tag in (POSITIVE, NEGATIVE):
            matrix = (1 if tag == POSITIVE else -1) * (matrix @ matrix.conj().T)
        if np.linalg.cond(matrix) < 1000:
            return matrix
        seed += 1000


# Kinds of operators: each takes a matrix and a tag to an operator and to the matrix that it has.


def tagged(operator, tag):
    return operator if tag == () else lx.TaggedLinearOperator(operator, tag)


def dense(matrix, tag):
    return lx.MatrixLinearOperator(matrix, tag), matrix


def sparse(matrix, tag):
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    return SparseOperator.from_entries(matrix.ravel(), rows, columns, matrix.shape, tag), matrix


def structure(matrix):
    return jax.ShapeDtypeStruct((matrix.shape[0],), matrix.dtype)


def one_leaf(matrix, tag):
    return lx.PyTreeLinearOperator(matrix, structure(matrix), tag), matrix


def function(matrix, tag):
    return lx.FunctionLinearOperator(lambda x: matrix @ x, structure(matrix), tag), matrix


def _curved(matrix):
    """A function, and where its Jacobian is the matrix."""
    at, bend = jnp.linspace(0.5, 1.5, len(matrix)).astype(matrix.dtype), jnp.arange(1.0, len(matrix) + 1)
    return lambda x: (matrix - jnp.diag(2 * bend * at)) @ x + bend * x**2, at


def jacobian(matrix, tag):
    curve, at = _curved(matrix)
    return lx.JacobianLinearOperator(lambda x, _: curve(x), at, None, tag), matrix


def jacobian_backwards(matrix, tag):
    curve, at = _curved(matrix)
    return lx.JacobianLinearOperator(lambda x, _: curve(x), at, None, tag, jac="bwd"), matrix


def diagonal(matrix, tag):
    along = jnp.diag(matrix)
    return tagged(lx.DiagonalLinearOperator(along), tag), jnp.diag(along)


def tridiagonal(matrix, tag):
    matrix = jnp.triu(jnp.tril(matrix, 1), -1)
    matrix = matrix + 10 * jnp.diag(jnp.sign(jnp.diag(matrix).real))  # what is cut out keeps the tag
    parts = (jnp.diag(matrix), jnp.diag(matrix, -1), jnp.diag(matrix, 1))
    return tagged(lx.TridiagonalLinearOperator(*parts), tag), matrix


def identity(matrix, tag):
    sign = -1 if tag == NEGATIVE else 1
    return tagged(sign * lx.IdentityLinearOperator(structure(matrix)), tag), sign * jnp.eye(len(matrix), dtype=matrix.dtype)


def negated(matrix, tag):
    return tagged(-lx.MatrixLinearOperator(-matrix), tag), matrix


def total(matrix, tag):
    return tagged(lx.MatrixLinearOperator(0.7 * matrix) + function(0.3 * matrix, ())[0], tag), matrix


def scaled(matrix, tag):
    return tagged(jacobian(0.35 * matrix, ())[0] * 2 / 0.7, tag), matrix


def composed(matrix, tag):
    scale = jnp.arange(2.0, len(matrix) + 2).astype(matrix.dtype)
    return tagged(one_leaf(matrix / scale, ())[0] @ lx.DiagonalLinearOperator(scale), tag), matrix


KINDS = [dense, sparse, one_leaf, function, jacobian, jacobian_backwards, diagonal, tridiagonal, identity, negated, total, scaled, composed]
QUICK = [dense, one_leaf, jacobian, jacobian_backwards, tridiagonal, total, composed]  # on the others, GMRES is tried thoroughly
SLOW = ("CG, negative", "FGMRES", "GCRODR", "KLU")  # to compile, or much like another


def solvers(among=ALL, thorough=SLOW):
    """Their names; those that are only tried thoroughly are marked."""
    return [pytest.param(name, marks=pytest.mark.thorough if name in thorough else ()) for name in among]


def pairs():
    """Each solver on each kind; if not thoroughly, all but GMRES on one or two."""
    for name in ITERATIVE:
        few = {"GMRES": QUICK, "CG": [diagonal, scaled]}.get(name, [composed])
        for kind in KINDS:
            marks = () if kind in few and name not in SLOW else pytest.mark.thorough
            yield pytest.param(name, kind, id=f"{name}, {kind.__name__}", marks=marks)
    for name in DIRECT:
        yield pytest.param(name, sparse, id=f"{name}, sparse")


def close(ours, wanted, rtol=1e-7, atol=1e-8):
    np.testing.assert_allclose(ours, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name, kind", list(pairs()))
def test_every_kind_of_operator_and_its_transpose_are_solved(name, kind):
    solver, tag = made(name)
    operator, matrix = kind(matrix_for(tag), tag)
    close(operator.as_matrix(), matrix, 1e-12, 1e-12)
    x = entries(7, SIZE)

    @eqx.filter_jit
    def both(operator, b, b_turned):
        answer = lx.linear_solve(operator, b, solver)
        turned = jax.linear_transpose(lambda v: lx.linear_solve(operator, v, solver).value, b)
        return answer.value, turned(b_turned)[0]

    ours, turned = both(operator, matrix @ x, matrix.T @ x)
    close(ours, x)
    close(turned, x)


@pytest.mark.thorough
@pytest.mark.parametrize("change", [lx.linearise, lx.materialise, lambda operator: operator.T], ids=["linearised", "materialised", "transposed"])
@pytest.mark.parametrize("name", ITERATIVE)
def test_what_lineax_makes_of_operators_is_solved(name, change):
    solver, tag = made(name)
    for kind in KINDS:
        operator = change(kind(matrix_for(tag), tag)[0])
        x = entries(7, SIZE)
        close(lx.linear_solve(operator, operator.mv(x), solver).value, x)


@pytest.mark.parametrize("name", solvers(thorough=("CG, negative", "FGMRES")))
def test_random_matrices_are_solved_as_the_dense_solver_does(name):
    """Fifty of them, well posed but not kind."""
    solver, tag = made(name, 1e-10)
    matrices = jnp.stack([matrix_for(tag, seed) for seed in range(50)])
    b = entries(8, (50, SIZE))
    kind = sparse if name in DIRECT else dense
    solve = jax.jit(jax.vmap(lambda matrix, b: lx.linear_solve(kind(matrix, tag)[0], b, solver, throw=False)))
    answer = solve(matrices, b)
    assert jnp.all(answer.result == lx.RESULTS.successful), np.flatnonzero(answer.result != lx.RESULTS.successful)
    close(answer.value, jnp.linalg.solve(matrices, b[..., None])[..., 0], 1e-5, 1e-6)


@pytest.mark.parametrize("name", solvers(ITERATIVE, (*SLOW, "MINRES", "BiCGStab")))
def test_trees_go_in_and_come_out(name):
    solver, tag = made(name)
    if name == "GCRODR":
        solver = GCRODR(RTOL, restart=9, recycle=2)
    matrix = matrix_for(tag, 3, size=7)
    like = {"a": jax.ShapeDtypeStruct((2, 2), jnp.float64), "b": (jax.ShapeDtypeStruct((3,), jnp.float64),)}
    join = lambda tree: jnp.concatenate([tree["a"].ravel(), tree["b"][0]])
    cut = lambda v: {"a": v[:4].reshape(2, 2), "b": (v[4:],)}
    operator = lx.FunctionLinearOperator(lambda tree: cut(matrix @ join(tree)), like, tag)
    x = cut(entries(4, 7))
    answer = lx.linear_solve(operator, operator.mv(x), solver).value
    assert jax.tree.structure(answer) == jax.tree.structure(x)
    jax.tree.map(close, answer, x)


# Derivatives.


@pytest.mark.parametrize("with_state", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["", "with a state"])
@pytest.mark.parametrize("name", solvers())
def test_derivatives_in_both_directions_are_those_of_the_dense_solve(name, with_state):
    solver, tag = made(name)
    kind = sparse if name in DIRECT else dense
    matrix, b, other = matrix_for(tag), entries(1, SIZE), entries(2, SIZE)
    toward = (matrix_for(tag, 5), entries(3, SIZE))

    def ours(matrix, b):
        operator, _ = kind(matrix, tag)
        state = {"state": solver.init(kind(jax.lax.stop_gradient(matrix), tag)[0], {})} if with_state else {}
        return lx.linear_solve(operator, b, solver, **state).value

    def derivatives(solve):
        along = lambda matrix, b: jax.jvp(solve, (matrix, b), toward)
        both, back = along(matrix, b), jax.vjp(solve, matrix, b)[1](other)
        of_matrix = jax.jvp(lambda matrix: solve(matrix, b), (matrix,), toward[:1])[1]
        of_vector = jax.jvp(lambda b: solve(matrix, b), (b,), toward[1:])[1]
        return both, back, of_matrix, of_vector

    dense_solve = lambda matrix, b: jnp.linalg.solve(matrix, b)
    jax.tree.map(lambda a, b: close(a, b, 1e-6, 1e-7), jax.jit(lambda: derivatives(ours))(), derivatives(dense_solve))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ALL)
def test_second_derivatives_and_those_of_batches_are_those_of_the_dense_solve(name):
    solver, tag = made(name)
    kind = sparse if name in DIRECT else dense
    matrix, b = matrix_for(tag), entries(1, SIZE)
    toward, turn = (matrix_for(tag, 5), entries(3, SIZE)), (matrix_for(tag, 6), entries(4, SIZE))
    some = jnp.stack([matrix, matrix_for(tag, 9)]), jnp.stack([b, 2 * b])
    ours = lambda matrix, b: lx.linear_solve(kind(matrix, tag)[0], b, solver).value

    def twice(solve):
        once = lambda matrix, b: jax.jvp(solve, (matrix, b), toward)[1]
        return jax.jvp(once, (matrix, b), turn)

    def batched(solve):
        return jax.vmap(lambda matrix, b: jax.jvp(solve, (matrix, b), toward))(*some)

    dense_solve = lambda matrix, b: jnp.linalg.solve(matrix, b)
    for derivative in (twice, batched):
        jax.tree.map(lambda a, b: close(a, b, 1e-5, 1e-6), jax.jit(lambda derivative=derivative: derivative(ours))(), derivative(dense_solve))


# Batches.


@pytest.mark.parametrize("axes", [(0, 0), pytest.param((None, 0), marks=pytest.mark.thorough), pytest.param((0, None), marks=pytest.mark.thorough)], ids=str)
@pytest.mark.parametrize("name", solvers(thorough=(*SLOW, "MINRES", "BiCGStab")))
def test_batches_over_vectors_operators_and_both_are_solves_one_by_one(name, axes):
    solver, tag = made(name)
    kind = sparse if name in DIRECT else dense
    matrices, vectors = jnp.stack([matrix_for(tag, seed) for seed in (0, 10, 20)]), entries(5, (3, SIZE))
    solve = lambda matrix, b: lx.linear_solve(kind(matrix, tag)[0], b, solver).value
    wanted = lambda matrix, b: jnp.linalg.solve(matrix, b)
    given = (matrices if axes[0] == 0 else matrices[1], vectors if axes[1] == 0 else vectors[1])
    close(jax.jit(jax.vmap(solve, axes))(*given), jax.vmap(wanted, axes)(*given))


# Kinds of numbers.


@pytest.mark.parametrize("name", solvers(thorough=("CG", "FGMRES", "KLU", "BiCGStab")))
def test_complex_systems_are_solved_or_refused_by_name(name):
    solver, tag = made(name)
    matrix, x = matrix_for(tag, 2, np.complex128), entries(6, SIZE, np.complex128)
    operator, _ = (sparse if name in DIRECT else dense)(matrix, tag)
    if name in REAL_ONLY:
        with pytest.raises(om.errors.ArgumentError, match="must be real"):
            lx.linear_solve(operator, matrix @ x, solver)
        return
    ours = lambda matrix, b: lx.linear_solve((sparse if name in DIRECT else dense)(matrix, tag)[0], b, solver).value
    close(ours(matrix, matrix @ x), x)
    size = lambda solve: jax.vjp(solve, matrix, x)[1](entries(9, SIZE, np.complex128))
    jax.tree.map(lambda a, b: close(a, b, 1e-6, 1e-7), size(ours), size(lambda matrix, b: jnp.linalg.solve(matrix, b)))


@pytest.mark.parametrize("name", solvers())
def test_single_precision_stays_single(name):
    solver, tag = made(name, 1e-5)
    matrix = matrix_for(tag).astype(jnp.float32)
    b = entries(6, SIZE, np.float32)
    answer = lx.linear_solve((sparse if name in DIRECT else dense)(matrix, tag)[0], b, solver)
    assert answer.value.dtype == jnp.float32 and answer.stats["residual"] <= 1e-5
    close(matrix @ answer.value, b, 1e-3, 1e-4)


# What has no answer.


@pytest.mark.parametrize("name", solvers())
def test_a_singular_system_without_a_solution_is_no_success_and_raises_if_asked(name):
    solver, tag = made(name, 1e-8)
    matrix = matrix_for(tag).at[0].set(0)
    matrix = matrix if tag == () else matrix.at[:, 0].set(0)
    operator, _ = (sparse if name in DIRECT else dense)(matrix, tag)
    b = jnp.ones(SIZE)
    answer = lx.linear_solve(operator, b, solver, throw=False)
    assert answer.result != lx.RESULTS.successful
    with pytest.raises(Exception, match=r"singular|stagnation|breakdown|maximum number"):
        jax.block_until_ready(lx.linear_solve(operator, b, solver).value)


@pytest.mark.parametrize("name", solvers())
def test_a_right_hand_side_that_is_not_a_number_is_no_success(name):
    solver, tag = made(name)
    operator, _ = (sparse if name in DIRECT else dense)(matrix_for(tag), tag)
    answer = lx.linear_solve(operator, jnp.ones(SIZE).at[1].set(jnp.nan), solver, throw=False)
    assert answer.result != lx.RESULTS.successful


@pytest.mark.parametrize("name", DIRECT)
def test_direct_solvers_say_which_operator_they_need(name):
    with pytest.raises(om.errors.ArgumentError, match="must be a SparseOperator"):
        lx.linear_solve(dense(matrix_for(()), ())[0], jnp.ones(SIZE), made(name)[0])


@pytest.mark.parametrize("name", ITERATIVE)
def test_an_operator_that_is_not_square_is_refused(name):
    solver, _ = made(name)
    with pytest.raises(om.errors.ArgumentError, match=r"must be (square|tagged)"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 4))), jnp.ones(3), solver)


# What lineax passes on.


@pytest.mark.parametrize("name", solvers())
def test_a_state_serves_several_solves_its_transpose_and_its_conjugate(name):
    solver, tag = made(name)
    dtype = np.float64 if name in REAL_ONLY else np.complex128
    matrix, x = matrix_for(tag, 2, dtype), entries(6, SIZE, dtype)
    operator, _ = (sparse if name in DIRECT else dense)(matrix, tag)
    state = solver.init(operator, {})
    turned, options = solver.transpose(state, {})
    conjugate, _ = solver.conj(state, {})
    for its_state, its_matrix in ((state, matrix), (turned, matrix.T), (conjugate, matrix.conj())):
        value, result, _ = solver.compute(its_state, its_matrix @ x, options)
        assert result == lx.RESULTS.successful
        close(value, x)


@pytest.mark.parametrize("name", solvers(["CG", "GMRES", "SuperLU"], ["CG", "GMRES"]))
def test_the_inverse_of_an_operator_is_an_operator(name):
    solver, tag = made(name)
    matrix, x = matrix_for(tag), entries(6, SIZE)
    operator, _ = (sparse if name in DIRECT else dense)(matrix, tag)
    inverse = lx.invert(operator, solver)
    close(inverse.mv(matrix @ x), x)
    close((inverse @ operator).mv(x), x)
    close(inverse.T.mv(matrix.T @ x), x)
