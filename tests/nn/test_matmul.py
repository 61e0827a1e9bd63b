"""The product for each sample is the matrix product, under every transformation."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from optimand.nn import per_sample

A, B = jr.normal(jr.key(0), (2, 3)), jr.normal(jr.key(1), (5, 3, 4))
loss = lambda product: lambda a, b: jnp.sum(jnp.sin(product(a, b)))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: lambda: f(A, B[0]),
        lambda f: lambda: jax.vmap(f, (None, 0))(A, B),
        lambda f: lambda: jax.vmap(f, (1, None), 1)(jnp.stack([A, -A], 1), B[0]),
        lambda f: lambda: jax.grad(lambda a, b: jnp.sum(jnp.sin(jax.vmap(f, (None, 0))(a, b))), (0, 1))(A, B),
        lambda f: lambda: jax.vmap(jax.grad(loss(f), (0, 1)), (None, 0))(A, B),
        lambda f: lambda: jax.jvp(f, (A, B[0]), (A, B[1])),
        lambda f: lambda: jax.hessian(loss(f))(A, B[0]),
        lambda f: lambda: jax.jacrev(jax.grad(loss(f), 1))(A, B[0]),
    ],
    ids=["plain", "mapped over the second", "mapped over the first", "gradient of mapped", "mapped gradient",
         "forward", "Hessian", "reverse over reverse"],
)  # fmt: skip
def test_it_is_the_matrix_product(transform):
    for jit in (jax.jit, lambda f: f):
        got, expected = jit(transform(per_sample))(), jax.jit(transform(jnp.matmul))()
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_mapped_products_stay_apart():
    text = jax.jit(jax.vmap(per_sample, (None, 0))).lower(A, B).as_text()
    assert "batching_dims = [0] x [0]" in text
