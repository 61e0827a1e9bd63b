"""Conjugate gradients and BiCGSTAB for the linear systems of derivatives, on pytrees.

Both return the solution and the norm of its residual, that of conjugate gradients by recurrence. They take one or two products
fewer than those of `jax.scipy.sparse.linalg` and a look at the result, which multiply a start of zero by the matrix and do
not say what is left: where a handful of products solve the system, they count. A system that asks for more gets its solver from Lineax,
`Implicit(linear_solver=...)`.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

__all__ = ["bicgstab", "conjugate_gradients", "defect_of", "norm"]


def norm(tree) -> Array:
    """The Euclidean norm of all leaves together."""
    # The barrier keeps what computes a leaf out of the reduction, in which it would be evaluated element by element.
    leaves = jax.lax.optimization_barrier(jtu.tree_leaves(tree))
    square = lambda leaf: jnp.real(jnp.vdot(leaf, leaf, precision=jax.lax.Precision.HIGHEST))
    return jnp.sqrt(sum((square(leaf) for leaf in leaves), start=jnp.zeros(())))


def defect_of(matvec, solution, rhs):
    """|A u - b|."""
    return norm(jtu.tree_map(lambda a, b: a - b, matvec(solution), rhs))


def _dot(a, b) -> Array:
    product = functools.partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)
    return functools.reduce(operator.add, map(product, jtu.tree_leaves(a), jtu.tree_leaves(b)))


def _along(x, step, d):
    return jtu.tree_map(lambda x, d: (x + step * d).astype(x.dtype), x, d)


def _first_residual(matvec, rhs, start):
    return (jtu.tree_map(jnp.zeros_like, rhs), rhs) if start is None else (start, _along(rhs, -1, matvec(start)))


def conjugate_gradients(matvec, rhs, start, preconditioner, rtol, steps: int):
    """Hestenes and Stiefel 1952."""
    precondition = (lambda r: r) if preconditioner is None else preconditioner
    limit = rtol**2 * _dot(rhs, rhs)

    def going(carry):
        _, _, left, _, _, step = carry
        return (left > limit) & (step < steps)

    def iterate(carry):
        x, r, _, inner, p, step = carry
        image = matvec(p)
        length = inner / _dot(p, image)
        x, r = _along(x, length, p), _along(r, -length, image)
        z = precondition(r)
        next_inner = _dot(r, z)
        left = next_inner if preconditioner is None else _dot(r, r)
        return x, r, left, next_inner, _along(z, next_inner / inner, p), step + 1

    x, r = _first_residual(matvec, rhs, start)
    z = precondition(r)
    x, _, left, *_ = jax.lax.while_loop(going, iterate, (x, r, _dot(r, r), _dot(r, z), z, jnp.int32(0)))
    return x, jnp.sqrt(left)


def bicgstab(matvec, rhs, start, preconditioner, rtol, steps: int):
    """Van der Vorst 1992, preconditioned from the right: two products an iteration, and no basis to keep orthogonal.

    Its residual may rise by orders of magnitude on the way, and the recurrence then keeps the rounding error of the
    highest: so what is left is computed, by one more product.
    """
    precondition = (lambda r: r) if preconditioner is None else preconditioner
    limit = rtol**2 * _dot(rhs, rhs)
    x, shadow = _first_residual(matvec, rhs, start)

    def going(carry):
        left, step = carry[4], carry[5]
        return (left > limit) & (step < steps)

    def iterate(carry):
        x, r, p, inner, _, step = carry  # inner: rho
        toward = precondition(p)
        v = matvec(toward)
        alpha = inner / _dot(shadow, v)
        s = _along(r, -alpha, v)
        onward = precondition(s)
        t = matvec(onward)
        length = _dot(t, t)
        omega = jnp.where(length > 0, _dot(t, s) / length, 0)  # s = 0: solved
        x = _along(_along(x, alpha, toward), omega, onward)
        r = _along(s, -omega, t)
        next_inner, left = _dot(shadow, r), _dot(r, r)
        p = _along(r, next_inner / inner * alpha / omega, _along(p, -omega, v))
        return x, r, p, next_inner, left, step + 2

    left = _dot(shadow, shadow)
    x, *_ = jax.lax.while_loop(going, iterate, (x, shadow, shadow, left, left, jnp.int32(0)))
    return x, defect_of(matvec, x, rhs)
