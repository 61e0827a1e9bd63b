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


def solve_system(matvec, rhs, adjoint, symmetric: bool, at_solution, unknown, start=None):
    """u with A u = b, in both modes of differentiation. `adjoint` is an `Implicit`, which says how.

    `at_solution` is F there, and `unknown` the solution that is differentiated: what to warn of. `start` is a first u.
    """
    size = sum(leaf.size for leaf in jtu.tree_leaves(rhs))
    if size == 0:
        return rhs
    if adjoint.linear_solver is not None:
        method = functools.partial(_by_lineax, adjoint.linear_solver, symmetric, start)
    elif size <= adjoint.dense_below:
        method = _dense
    else:
        method = functools.partial(_krylov, adjoint, symmetric, start)

    report = _reporting(adjoint, at_solution, unknown)

    def watched(matvec, rhs):
        solution, solved, defect = method(matvec, rhs)
        relative = lambda: defect() / jnp.maximum(norm(rhs), jnp.finfo(jnp.float32).tiny)
        if adjoint.monitor is not None:
            measured = {"residual": relative(), "solved": solved, "optimality": norm(at_solution)}
            jax.debug.callback(adjoint.monitor, measured)
        return report(solution, solved, relative)

    return jax.lax.custom_linear_solve(matvec, rhs, solve=watched, transpose_solve=watched, symmetric=symmetric)


# Each of the following returns the solution, whether it is one, and |A u - b|, to be computed where it is needed.


def _by_lineax(solver, symmetric, start, matvec, rhs):
    import lineax as lx

    structure = jax.eval_shape(lambda: rhs)
    tags = {lx.symmetric_tag, lx.positive_semidefinite_tag} if symmetric else set()
    operator = lx.FunctionLinearOperator(matvec, structure, tags)
    options = {} if start is None else {"y0": start}
    answer = lx.linear_solve(operator, rhs, solver, options=options, throw=False)
    solved = answer.result == lx.RESULTS.successful
    return answer.value, solved, lambda: defect_of(matvec, answer.value, rhs)


def _dense(matvec, rhs):
    """LU, or the minimum-norm solution where the matrix is singular to working precision."""
    flat, unravel = ravel_pytree(rhs)
    # One column after the other: together they would need that many times the memory of a product, which then leaves the
    # cache. Where products are expensive this is several times faster, and where they are cheap hardly slower.
    product = lambda e: ravel_pytree(matvec(unravel(e)))[0]
    matrix = jax.lax.map(product, jnp.eye(flat.size, dtype=flat.dtype)).T
    lu, pivots = jax.scipy.linalg.lu_factor(matrix)
    diagonal = jnp.abs(jnp.diagonal(lu))
    regular = diagonal.min() > flat.size * jnp.finfo(flat.dtype).eps * diagonal.max()
    solution = jax.lax.cond(
        regular,
        lambda: jax.scipy.linalg.lu_solve((lu, pivots), flat),
        lambda: jnp.linalg.lstsq(matrix, flat)[0],
    )
    return unravel(solution), regular, lambda: norm(matrix @ solution - flat)


def _krylov(adjoint, symmetric: bool, start, matvec, rhs):
    dtype = jnp.result_type(*jtu.tree_leaves(rhs))
    rtol = adjoint.rtol if adjoint.rtol is not None else (1e-8 if dtype == jnp.float64 else 1e-6)
    size = sum(leaf.size for leaf in jtu.tree_leaves(rhs))
    steps = adjoint.max_steps or 10 * size
    iterate = conjugate_gradients if symmetric else bicgstab
    solution, missed = iterate(matvec, rhs, start, adjoint.preconditioner, rtol, steps)
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
    return solution, missed <= 100 * enough, lambda: missed


# What is said.


def _reporting(adjoint, at_solution, unknown):
    """A function of (solution, whether it solves the system, relative residual) that warns if it does not, or if F is
    not zero, and returns the solution.

    The host answers with a zero that is added to the solution, which keeps the call alive although it is declared pure:
    one with an effect would make every call of the compiled function pass through Python, which costs more than many a
    linear solve. The question is asked once, after the solve: on the CPU a branch before it slows the loop down.
    """
    if adjoint.tolerance is None:
        return lambda solution, solved, relative: solution
    size = jax.lax.stop_gradient(norm(at_solution))
    astray = ~(size <= adjoint.tolerance * (1 + jax.lax.stop_gradient(norm(unknown))))

    def report(solution, solved, relative):
        answer = jax.ShapeDtypeStruct((), np.float32)
        tell = lambda: jax.pure_callback(
            _warn, answer, astray, size, ~solved, relative(), vmap_method="broadcast_all"
        )
        zero = jax.lax.cond(astray | ~solved, tell, lambda: jnp.zeros((), np.float32))
        return jtu.tree_map(lambda leaf: leaf + zero.astype(leaf.dtype), solution)

    return report


def _warn(astray, norm, unsolved, relative):
    # Under vmap both branches of a cond run, for all members of the batch.
    if np.any(astray):
        warnings.warn(
            f"differentiating a point that is not a solution: the norm of its optimality condition is "
            f"{float(np.max(norm)):.3g}. Solve to a smaller tolerance, or use `Unrolled()` if the path matters.",
            RuntimeWarning,
            stacklevel=2,
        )
    if np.any(unsolved):
        warnings.warn(
            f"the linear system of a derivative is singular or was not solved (relative residual "
            f"{float(np.max(relative)):.3g}): the solution may not be unique. The derivative is that of least norm; "
            f"`Implicit(ridge=...)` regularises it.",
            RuntimeWarning,
            stacklevel=2,
        )
    return np.zeros(np.shape(astray), np.float32)
