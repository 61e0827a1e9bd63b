"""Calling a function of NumPy arrays from code that may be traced."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

__all__ = ["call_on_host"]


def call_on_host(fn: Callable[..., Any], shapes: PyTree, *arguments: PyTree) -> PyTree:
    """`fn(*arguments)`, where `fn` takes and returns pytrees of NumPy arrays; `shapes` are those of what it returns.

    A batch is called for one after the other. Numbers of eight bytes cross as pairs of four bytes: the callback may run in a thread of
    the runtime, where `jax.enable_x64` is not in force, and JAX would round what it hands over to single precision there.
    """
    dtypes = jtu.tree_map(lambda leaf: np.dtype(leaf.dtype), arguments)

    def on_host(bits):
        results = fn(*jtu.tree_map(_from_bits, bits, dtypes))
        results = jtu.tree_map(lambda leaf, shape: np.asarray(leaf, shape.dtype), results, shapes)
        return jtu.tree_map(lambda leaf, s: leaf.reshape(*leaf.shape, 1).view(s.dtype).reshape(s.shape), results, passed)

    passed = jax.eval_shape(lambda tree: jtu.tree_map(_to_bits, tree), shapes)
    bits = jax.pure_callback(on_host, passed, jtu.tree_map(_to_bits, arguments), vmap_method="sequential")
    return jtu.tree_map(_back, bits, shapes)


def _to_bits(leaf):
    """Eight-byte numbers as pairs of four-byte ones, complex ones as their two parts."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], -1)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32) if leaf.dtype.itemsize == 8 else leaf


def _from_bits(leaf, dtype: np.dtype) -> np.ndarray:
    leaf = np.asarray(leaf)
    if leaf.dtype == dtype:
        return leaf
    leaf = np.ascontiguousarray(leaf)  # not above: it would make a vector of a scalar
    extra = 2 if dtype.kind == "c" and dtype.itemsize == 16 else 1
    flat = leaf.reshape(*leaf.shape[: leaf.ndim - extra], -1)
    return flat.view(dtype)[..., 0]


def _back(leaf, shape):
    """`_to_bits` undone, in JAX."""
    if leaf.dtype == shape.dtype:
        return leaf
    if not jnp.issubdtype(shape.dtype, jnp.complexfloating):
        return jax.lax.bitcast_convert_type(leaf, shape.dtype)
    parts = jax.lax.bitcast_convert_type(leaf, jnp.float64) if leaf.dtype == jnp.uint32 else leaf
    return jax.lax.complex(parts[..., 0], parts[..., 1])
