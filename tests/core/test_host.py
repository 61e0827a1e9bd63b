"""Calls of NumPy functions from traced code: every kind of number arrives and returns unrounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.core.host import call_on_host

DTYPES = ["float32", "float64", "int32", "int64", "bool", "complex64", "complex128"]


@pytest.mark.parametrize("transform", [lambda fn: fn, jax.jit, lambda fn: lambda x: jax.vmap(fn)(jnp.stack([x, x]))[1]])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_cross_unrounded(dtype, shape, transform):
    with jax.enable_x64(True):
        number = np.asarray(np.full(shape, 1 / 3) + (2j / 7 if "complex" in dtype else 0) + ("int" in dtype) * 5).astype(dtype)
        seen = []

        def on_host(tree):
            seen.append(tree["x"])
            return (tree["x"],)

        shapes = (jax.ShapeDtypeStruct(shape, number.dtype),)
        back = transform(lambda x: call_on_host(on_host, shapes, {"x": x})[0])(jnp.asarray(number))
        assert seen[0].dtype == number.dtype and back.dtype == number.dtype
        np.testing.assert_array_equal(seen[0], number)
        np.testing.assert_array_equal(back, number)
