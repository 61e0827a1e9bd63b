"""Pytrees of arrays as vectors: the few operations that iterations are written in."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

__all__ = ["add", "all_finite", "combine", "curved", "dot", "dtype_of", "norm", "scale", "select", "size", "steepest", "subtract", "zeros_like"]


def add(x: PyTree, y: PyTree, factor: Any = None) -> PyTree:
    """x + y, or x + factor * y."""
    if factor is None:
        return jtu.tree_map(operator.add, x, y)
    return jtu.tree_map(lambda x, y: (x + factor * y).astype(x.dtype), x, y)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """x - y."""
    return jtu.tree_map(operator.sub, x, y)


def scale(factor: Any, x: PyTree) -> PyTree:
    """factor * x, in the dtype of x."""
    return jtu.tree_map(lambda x: (factor * x).astype(x.dtype), x)


def all_finite(tree: PyTree) -> Array:
    """Whether every number in a pytree is finite."""
    finite = jnp.array(True)
    for leaf in jtu.tree_leaves(tree):
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite


def combine(coefficients: Array, stacked: PyTree) -> PyTree:
    """The sum over i of coefficients[i] * stacked[i], for leaves with a leading axis."""
    return jtu.tree_map(lambda leaf: jnp.tensordot(coefficients.astype(leaf.dtype), leaf, axes=1), stacked)


def curved(sy: Array, ss: Array, yy: Array) -> Array:
    """Whether a pair (s, y) of a quasi-Newton method, by its inner products, shows curvature: s'y > 0 up to rounding."""
    return sy > 1e-10 * jnp.sqrt(yy) * jnp.sqrt(ss)


def dot(x: PyTree, y: PyTree) -> Array:
    """The inner product <x, y>."""
    return _sum(jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST) for a, b in zip(jtu.tree_leaves(x), jtu.tree_leaves(y), strict=True))


def norm(x: PyTree) -> Array:
    """The Euclidean norm, with derivative zero (not NaN) at zero."""
    squared = dot(x, x)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared))).astype(squared.dtype)


def select(condition: Any, x: PyTree, y: PyTree) -> PyTree:
    """x where the condition holds, else y."""
    return jtu.tree_map(lambda x, y: jnp.where(condition, x, y), x, y)


def zeros_like(x: PyTree) -> PyTree:
    """Zero, in the shape of x."""
    return jtu.tree_map(jnp.zeros_like, x)


def size(x: PyTree) -> int:
    """The number of unknowns."""
    return sum(math.prod(leaf.shape) for leaf in jtu.tree_leaves(x))


def steepest(g: Array, least: Any = 0.0) -> tuple[Array, Array]:
    """A first direction, down the gradient by at most a unit, or by `least` if that is longer; and the slope along it."""
    length = norm(g)
    floor = jnp.finfo(g.dtype).tiny ** 0.5  # whose inverse square, in the derivative, is finite
    factor = (jnp.maximum(jnp.minimum(1.0, length), least) / jnp.maximum(length, floor)).astype(g.dtype)
    return -factor * g, -factor * length**2


def dtype_of(x: PyTree) -> Any:
    """The dtype that scalars computed from x have."""
    return jnp.result_type(*(leaf.dtype for leaf in jtu.tree_leaves(x)))


def _sum(terms) -> Array:
    return functools.reduce(operator.add, terms)
