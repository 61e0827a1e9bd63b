"""Functions with derivatives of their own, as SciPy's `jac`, `hess` and `hessp` give them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..core.errors import ArgumentError

__all__ = ["vector_with_jacobian", "with_derivatives", "with_gradient"]


def with_derivatives(fun: Callable, x0: PyTree, args: tuple, jac: Any, hess: Any, hessp: Any) -> Callable:
    """`fun` as a scalar function of `(x, *args)` whose derivatives in x are the given ones, automatic where none is.

    Raises what JAX raises if a function cannot be traced, and `ArgumentError` if a derivative has the wrong shape.
    """
    n = ravel_pytree(x0)[0].size
    if jac is True:
        value, gradient = (lambda x, *a: fun(x, *a)[0]), (lambda x, *a: fun(x, *a)[1])
        out = jax.eval_shape(fun, x0, *args)
        if not (isinstance(out, tuple | list) and len(out) == 2):
            raise ArgumentError("fun", "must return the pair of value and gradient, because jac=True.")
    else:
        value, gradient = fun, jac if callable(jac) else None
    scalar = lambda x, *a: _as_scalar(value(x, *a))
    jax.eval_shape(scalar, x0, *args)
    if gradient is None:
        return scalar
    second = None
    if callable(hessp):
        second = lambda x, a, p: ravel_pytree(hessp(x, p, *a))[0]
    elif callable(hess):
        second = lambda x, a, p: jnp.reshape(jnp.asarray(hess(x, *a)), (n, n)) @ ravel_pytree(p)[0]
    for name, function in (("jac", lambda x, a: gradient(x, *a)), ("hess" if hessp is None else "hessp", second)):
        if function is not None:
            shapes = jax.eval_shape(function, x0, args, *([x0] if function is second else []))
            size = sum(leaf.size for leaf in jtu.tree_leaves(shapes))
            if size != n:
                raise ArgumentError(name, f"returns {size} numbers for {n} unknowns.")
    return with_gradient(scalar, lambda x, *a: gradient(x, *a), second)


def _as_scalar(out: Any) -> Any:
    """SciPy accepts an array of one number."""
    return jnp.reshape(out, ()) if getattr(out, "size", 0) == 1 and getattr(out, "shape", ()) != () else out


def with_gradient(value: Callable, gradient: Callable, second: Callable | None = None) -> Callable:
    """The scalar function `value(x, *args)` whose derivative in x is `gradient(x, *args)`; in `args` it is automatic.

    `second(x, args, p)`, if given, is the derivative of the gradient along p, as a vector.
    """

    @jax.custom_jvp
    def slope(x, args):
        return jnp.asarray(ravel_pytree(gradient(x, *args))[0])

    @slope.defjvp
    def _(primals, tangents):
        (x, args), (dx, d_args) = primals, tangents
        if second is None:
            return jax.jvp(lambda x, a: ravel_pytree(gradient(x, *a))[0], primals, tangents)
        out, along_args = jax.jvp(lambda a: ravel_pytree(gradient(x, *a))[0], (args,), (d_args,))
        return out, along_args + second(x, args, dx).astype(out.dtype)

    @jax.custom_jvp
    def function(x, args):
        return value(x, *args)

    @function.defjvp
    def _(primals, tangents):
        (x, args), (dx, d_args) = primals, tangents
        out, along_args = jax.jvp(lambda a: value(x, *a), (args,), (d_args,))
        direction = ravel_pytree(dx)[0]
        return out, along_args + jnp.vdot(slope(x, args).astype(direction.dtype), direction).astype(out.dtype)

    return lambda x, *args: function(x, args)


def vector_with_jacobian(function: Callable, jacobian: Callable) -> Callable:
    """The function of x, a vector or a number, whose derivative is `jacobian(x)`, one row for each number."""

    @jax.custom_jvp
    def wrapped(x):
        return ravel_pytree(function(x))[0]

    @wrapped.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        out, direction = ravel_pytree(function(x))[0], ravel_pytree(dx)[0]
        rows = jnp.reshape(jnp.asarray(jacobian(x)), (out.size, direction.size))
        return out, (rows @ direction).astype(out.dtype)

    return wrapped
