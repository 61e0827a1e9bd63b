"""The linear system of a derivative, A u = b: products with A only, or dense where it is small; and what is said if it fails."""

import functools
import warnings

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree

from .krylov import bicgstab, conjugate_gradients, defect_of, norm

__all__ = ["solve_system"]


def solve_system(
    matvec,
    rhs,
    adjoint,
    symmetric: bool,
    at_solution,
    unknown,
    start=None,
    weak=None,
    transposed: bool = False,
    preconditioner=None,
):
    """u with A u = b, in both modes of differentiation. `adjoint` is an `Implicit`, which says how.

    `at_solution` is F there, and `unknown` the solution that is differentiated: what to warn of. `start` is a first u.
    `weak` is there if F are KKT conditions: where the solution has a kink. `transposed`: A is the transpose of the matrix.
    `preconditioner` makes one, at a price, that is used if `adjoint` has none and the system turns out to need it; or None.
    """
    size = sum(leaf.size for leaf in jtu.tree_leaves(rhs))
    if size == 0:
        return rhs
    if adjoint.linear_solver is not None:
        method = functools.partial(_by_lineax, adjoint.linear_solver, symmetric, start)
    elif size <= (adjoint.dense_below if adjoint.dense_below is not None else _DENSE if weak is None else _DENSE_KKT):
        method = functools.partial(_dense, weak is not None)
    else:
        own = preconditioner if adjoint.preconditioner is None else None
        method = functools.partial(_krylov, adjoint, symmetric, start, own)

    report = _reporting(adjoint, at_solution, unknown, weak)

    def watched(transposed, matvec, rhs):
        solution, solved, defect, undetermined = method(matvec, rhs, transposed=transposed)
        relative = lambda: defect() / jnp.maximum(norm(rhs), jnp.finfo(jnp.float32).tiny)
        if adjoint.monitor is not None:
            measured = {"residual": relative(), "solved": solved, "optimality": norm(at_solution)}
            jax.debug.callback(adjoint.monitor, measured)
        return report(solution, solved, relative, undetermined)

    return jax.lax.custom_linear_solve(
        matvec,
        rhs,
        solve=functools.partial(watched, transposed),
        transpose_solve=functools.partial(watched, not transposed),
        symmetric=symmetric,
    )


_DENSE, _DENSE_KKT = 64, 512
_FEW = 100  # steps before a preconditioner of the problem is made


# Each of the following returns the solution, whether it is one, |A u - b|, to be computed where it is needed, and which
# unknowns of the solution that is differentiated a singular system leaves undetermined, or None if nobody has looked.


def _by_lineax(solver, symmetric, start, matvec, rhs, *, transposed):
    import lineax as lx

    structure = jax.eval_shape(lambda: rhs)
    tags = {lx.symmetric_tag, lx.positive_semidefinite_tag} if symmetric else set()
    operator = lx.FunctionLinearOperator(matvec, structure, tags)
    options = {} if start is None else {"y0": start}
    answer = lx.linear_solve(operator, rhs, solver, options=options, throw=False)
    solved = answer.result == lx.RESULTS.successful
    return answer.value, solved, lambda: defect_of(matvec, answer.value, rhs), None


def _dense(kkt: bool, matvec, rhs, *, transposed):
    """LU, or the minimum-norm solution where the matrix is singular to working precision.

    A KKT matrix counts as singular earlier: at an approximate solution, dependent rows are only nearly dependent.
    """
    flat, unravel = ravel_pytree(rhs)
    # One column after the other: together they would need that many times the memory of a product, which then leaves the
    # cache. Where products are expensive this is several times faster, and where they are cheap hardly slower.
    product = lambda e: ravel_pytree(matvec(unravel(e)))[0]
    matrix = jax.lax.map(product, jnp.eye(flat.size, dtype=flat.dtype)).T
    eps = float(jnp.finfo(flat.dtype).eps)
    threshold = jnp.asarray(max(1e-8, 100 * eps) if kkt else flat.size * eps, flat.dtype)
    solution, regular, right, left = (_least_norm_scaled if kkt else _least_norm)(matrix, flat, threshold)
    free = unravel_flags(unravel, left if transposed else right)
    return unravel(solution), regular, lambda: norm(matrix @ solution - flat), free


def unravel_flags(unravel, flags):
    """Booleans in the structure of the unknown."""
    return jtu.tree_map(lambda leaf: leaf > 0.5, unravel(flags.astype(jnp.result_type(float))))


def _least_norm_by(scaled: bool, matrix, rhs, threshold):
    """The solution; whether the matrix is regular; and which unknowns (of it, of its transpose) it leaves undetermined if not.

    With any number of leading axes: a batch is decomposed into singular values only if one of it is singular, which is what
    a branch under `vmap` cannot do. `scaled`: rows and columns to one size first, for KKT matrices.
    """
    if not scaled:  # where an equation is that of one unknown alone, that unknown stays exact
        return _least_norm_of(matrix, rhs, threshold, jnp.ones_like(matrix[..., :1]), jnp.ones_like(matrix[..., :1, :]))
    rows = jnp.max(jnp.abs(matrix), axis=-1, keepdims=True)
    rows = jnp.where(rows > 0, rows, 1)
    columns = jnp.max(jnp.abs(matrix / rows), axis=-2, keepdims=True)
    columns = jnp.where(columns > 0, columns, 1)
    return _least_norm_of(matrix, rhs, threshold, rows, columns)


def _least_norm_of(matrix, rhs, threshold, rows, columns):
    """The same, for these scales of rows and columns."""
    factorise = jnp.vectorize(jax.scipy.linalg.lu_factor, signature="(n,n)->(n,n),(n)")
    lu, pivots = factorise(matrix / rows / columns)
    diagonal = jnp.abs(jnp.diagonal(lu, axis1=-2, axis2=-1))
    threshold = jnp.reshape(threshold, (-1,))[0]
    regular = jnp.min(diagonal, -1) > threshold * jnp.max(diagonal, -1)

    def by_lu():
        solve = jnp.vectorize(lambda lu, p, b: jax.scipy.linalg.lu_solve((lu, p), b), signature="(n,n),(n),(n)->(n)")
        nothing = jnp.zeros(rhs.shape, bool)
        return solve(lu, pivots, rhs / rows[..., 0]) / columns[..., 0, :], nothing, nothing

    def by_singular_values():
        u, s, vt = jnp.linalg.svd(matrix)
        gone = s <= 10 * threshold * jnp.max(s, -1, keepdims=True)
        weights = jnp.where(gone, 0, 1 / jnp.where(gone, 1, s)) * jnp.einsum("...ij,...i->...j", u, rhs)
        weight = lambda vectors: jnp.sum(jnp.where(gone[..., None, :], vectors, 0) ** 2, -1) > 1e-6
        least = jnp.einsum("...ij,...i->...j", vt, weights)
        solution, _, _ = by_lu()
        singular = ~regular[..., None]
        return (
            jnp.where(singular, least, solution),
            singular & weight(jnp.swapaxes(vt, -1, -2)),
            singular & weight(u),
        )

    solution, right, left = jax.lax.cond(jnp.all(regular), by_lu, by_singular_values)
    return solution, regular, right, left


def _batched(scaled: bool):
    """`_least_norm_by` as a function that is given whole batches under `vmap`."""
    solve = jax.custom_batching.custom_vmap(functools.partial(_least_norm_by, scaled))

    @solve.def_vmap
    def of_batch(axis_size, in_batched, matrix, rhs, threshold):
        spread = lambda array, batched: array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
        batch = [spread(array, batched) for array, batched in zip((matrix, rhs, threshold), in_batched, strict=True)]
        return solve(*batch), (True, True, True, True)

    return solve


_least_norm, _least_norm_scaled = _batched(False), _batched(True)


def _krylov(adjoint, symmetric: bool, start, own, matvec, rhs, *, transposed):
    dtype = jnp.result_type(*jtu.tree_leaves(rhs))
    rtol = adjoint.rtol if adjoint.rtol is not None else (1e-8 if dtype == jnp.float64 else 1e-6)
    size = sum(leaf.size for leaf in jtu.tree_leaves(rhs))
    steps = adjoint.max_steps or 10 * size
    iterate = conjugate_gradients if symmetric else bicgstab
    few = steps if own is None else min(steps, _FEW)
    solution, missed = iterate(matvec, rhs, start, adjoint.preconditioner, rtol, few)
    if own is not None and few < steps:
        again = lambda u: iterate(matvec, rhs, u, own(), rtol, steps - few)
        unsolved = missed > rtol * norm(rhs)
        solution, missed = jax.lax.cond(unsolved, again, lambda u: (u, missed), solution)
    broken = ~jnp.isfinite(missed)  # a division by zero, which reaches all entries
    solution = jtu.tree_map(lambda leaf: jnp.where(broken, 0, leaf), solution)
    if symmetric and dtype != jnp.float64:  # where rounding may have led the recurrence of the residual astray
        missed = defect_of(matvec, solution, rhs)

    def normal_equations(u, missed):
        (transposed,) = [jax.linear_transpose(matvec, rhs)]
        product = lambda v: transposed(matvec(v))[0]
        again, _ = jax.scipy.sparse.linalg.cg(product, transposed(rhs)[0], x0=u, tol=rtol, maxiter=steps)
        left, before = defect_of(matvec, again, rhs), defect_of(matvec, u, rhs)
        return jtu.tree_map(functools.partial(jnp.where, left < before), again, u), jnp.minimum(left, before)

    enough = 100 * rtol * norm(rhs)
    solution, missed = jax.lax.cond(
        ~(missed <= enough), normal_equations, lambda u, missed: (u, missed), solution, missed
    )
    return solution, missed <= 100 * enough, lambda: missed, None


# What is said.


def _reporting(adjoint, at_solution, unknown, weak):
    """A function of (solution, whether it solves the system, relative residual, undetermined unknowns) that warns if it does
    not, if F is not zero, or if there is a weakly active constraint, and returns the solution.

    The host answers with a zero that is added to the solution, which keeps the call alive although it is declared pure:
    one with an effect would make every call of the compiled function pass through Python, which costs more than many a
    linear solve. The question is asked once, after the solve: on the CPU a branch before it slows the loop down.
    """
    if adjoint.tolerance is None:
        return lambda solution, solved, relative, undetermined: solution
    size = jax.lax.stop_gradient(norm(at_solution))
    astray = ~(size <= adjoint.tolerance * (1 + jax.lax.stop_gradient(norm(unknown))))
    kink = functools.reduce(jnp.logical_or, [jnp.any(leaf) for leaf in jtu.tree_leaves(weak)], jnp.array(False))

    def report(solution, solved, relative, undetermined):
        answer = jax.ShapeDtypeStruct((), np.float32)
        # None, as an absent part of a `PrimalDual`, is a structure without leaves: names come back with the arrays.
        tell = lambda: jax.pure_callback(
            functools.partial(_warn, weak is not None), answer,
            astray, size, ~solved, relative(), weak, undetermined, vmap_method="broadcast_all",
        )  # fmt: skip
        zero = jax.lax.cond(astray | ~solved | kink, tell, lambda: jnp.zeros((), np.float32))
        return jtu.tree_map(lambda leaf: leaf + zero.astype(leaf.dtype), solution)

    return report


def _warn(kkt, astray, norm, unsolved, relative, weak, undetermined):
    # Under vmap both branches of a cond run, for all members of the batch.
    batched = np.ndim(astray)
    if np.any(astray):
        warnings.warn(
            f"differentiating a point that is not a solution: the norm of its optimality condition is "
            f"{float(np.max(norm)):.3g}. Solve to a smaller tolerance, or use `Unrolled()` if the path matters.",
            RuntimeWarning,
            stacklevel=2,
        )
    kinks = _names(weak, batched)
    if kinks:
        warnings.warn(
            f"strict complementarity fails: multiplier and slack are both nearly zero, or too near to each other to tell "
            f"which is, at {kinks}. The solution has a kink there, and its derivative is that of one side.",
            RuntimeWarning,
            stacklevel=2,
        )
    if np.any(unsolved):
        names = _names(undetermined, batched) if kkt else ""
        cause = (
            f"it leaves undetermined: {names}. Multipliers among them belong to active constraints that are linearly "
            f"dependent, unknowns to a solution that is not unique."
            if names
            else "the solution may not be unique."
        )
        warnings.warn(
            f"the linear system of a derivative is singular or was not solved (relative residual "
            f"{float(np.max(relative)):.3g}): {cause} The derivative is that of least norm; "
            f"`Implicit(ridge=...)` regularises it.",
            RuntimeWarning,
            stacklevel=2,
        )
    return np.zeros(np.shape(astray), np.float32)


def _names(flags, batched: int) -> str:
    """The places where flags are set in any member of the batch, the first few by name."""
    found = []
    for path, leaf in jtu.tree_leaves_with_path(flags):
        leaf = np.asarray(leaf)
        leaf = leaf.any(axis=tuple(range(batched)))
        found += [jtu.keystr(path).lstrip(".") + (str(list(map(int, at))) if len(at) else "") for at in np.argwhere(leaf)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
