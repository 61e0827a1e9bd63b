"""A product of matrices that stays one product for each sample when it is mapped over a batch.

`jax.vmap` of `w @ x` over x alone makes one product of `w` and all samples side by side, for which a processor has to
bring the samples side by side, and the result back: for the wide and low matrices of pointwise layers that takes longer
than the product. `per_sample(w, x)` is `w @ x`, with all its derivatives; mapped over one argument it repeats the other,
and the products stay apart.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = ["per_sample"]


def per_sample(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """The product `a @ b`."""
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return _product.bind(a.astype(dtype), b.astype(dtype), first=False, second=False)


# op(a) op(b), where op transposes the last two axes if the flag `first` (or `second`) is set; leading axes are mapped.
_product = Primitive("per_sample_product")


def _compute(a: Array, b: Array, *, first: bool, second: bool) -> Array:
    lead = tuple(range(a.ndim - 2))
    contracted = ((a.ndim - 2 if first else a.ndim - 1,), (b.ndim - 1 if second else b.ndim - 2,))
    return jax.lax.dot_general(a, b, (contracted, (lead, lead)))


def _shape(a, b, *, first: bool, second: bool):
    m, n = a.shape[-1 if first else -2], b.shape[-2 if second else -1]
    return a.update(shape=(*a.shape[:-2], m, n), weak_type=False)


def _transpose_first(cotangent, a, b, *, first: bool, second: bool):
    if first:  # c = a' b, so that a = b c'
        return _product.bind(b, cotangent, first=second, second=True)
    return _product.bind(cotangent, b, first=False, second=not second)


def _transpose_second(cotangent, a, b, *, first: bool, second: bool):
    if second:  # c = a b', so that b = c' a
        return _product.bind(cotangent, a, first=True, second=first)
    return _product.bind(a, cotangent, first=not first, second=False)


def _batch(arguments, axes, **flags):
    size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    mapped = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arguments, axes, strict=True)
    ]
    return _product.bind(*mapped, **flags), 0


_product.def_impl(jax.jit(_compute, static_argnames=("first", "second")))
_product.def_abstract_eval(_shape)
ad.defbilinear(_product, _transpose_first, _transpose_second)
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_compute, multiple_results=False))
