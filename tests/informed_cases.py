"""Small equations and networks for tests of the room `informed`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import ConstrainedBasis, ExpertGrid, LinearTermsPDE, NLLSConstraint, SpaceTimeGrid
from optimand.physics.stencils import first_derivative


class Eikonal(LinearTermsPDE):
    """u_t = c u_x^2 with u(0, x) = data x: solved by x + t for c = data = 1, exactly so on any grid."""

    grid: SpaceTimeGrid
    speed: float = eqx.field(static=True, default=1.0)

    def terms(self, b, grid):
        return {"u_t": first_derivative(b, grid.axis(0), axis=0), "u_x": first_derivative(b, grid.axis(1), axis=1)}

    def pointwise(self, q, x, params):
        return q["u_t"] - self.speed * q["u_x"] ** 2

    def rows(self, b, data):
        return b[0], data * jnp.asarray(self.grid.axis(1), b.dtype), 1.0


def eikonal(nt=6, nx=8):
    return Eikonal(SpaceTimeGrid(np.linspace(0, 1, nt), np.linspace(0, 1, nx)))


class PointwiseNet(eqx.Module):
    """A small network that sees one point at a time: (channels, *grid) -> (out, *grid)."""

    first: jax.Array
    second: jax.Array

    def __init__(self, channels, out, key, dtype=jnp.float32, width=8):
        one, two = jax.random.split(key)
        self.first = 1.5 * jax.random.normal(one, (width, channels), jnp.float32).astype(dtype)
        self.second = jax.random.normal(two, (out, width), jnp.float32).astype(dtype)

    def __call__(self, inputs):
        hidden = jnp.tanh(jnp.einsum("wc,c...->w...", self.first, inputs) + 0.3)
        return jnp.einsum("ow,w...->o...", self.second, hidden)


def vorticity(nx, samples=1, key=0):
    """Smooth random fields with zero mean, (samples, nx, nx)."""
    x = 2 * np.pi * np.arange(nx) / nx
    draw = np.random.default_rng(key)
    fields = 0.0
    for kx in range(3):
        for ky in range(-2, 3):
            if (kx, ky) > (0, 0):
                amplitude, phase = draw.standard_normal((samples, 1, 1)), draw.uniform(0, 6.28, (samples, 1, 1))
                fields = fields + amplitude * np.sin(kx * x[:, None] + ky * x[None, :] + phase)
    return jnp.asarray(fields)


def fields_and_gradients(mesh):
    """Fields of two samples with four experts, over the devices of a mesh or on one, and the gradient of their loss."""
    pde = eikonal()
    model = ConstrainedBasis(
        PointwiseNet(3, 3, jax.random.key(0), jnp.float64),
        pde,
        experts=ExpertGrid((1, 4)),
        constraint=NLLSConstraint(points=8, solver="normal"),
        mesh=mesh,
        dtype=np.float64,
    )
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    samples, options = jnp.asarray([1.2, 0.8]), {}
    if mesh is not None:
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def replicate(leaf):
            whole = np.asarray(leaf)
            return jax.make_array_from_callback(whole.shape, everywhere, lambda index: whole[index])

        weights, samples = jax.tree.map(replicate, (weights, samples))
        options = {"out_shardings": everywhere}

    def loss(weights, samples):
        model = eqx.combine(weights, rest)
        fields = jax.vmap(lambda data: model(data, key=jax.random.key(5)))(samples)
        return jnp.mean(jax.vmap(pde.loss)(fields, samples)), fields

    (_, fields), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), **options)(weights, samples)
    return [np.asarray(leaf.addressable_data(0)) for leaf in (fields, *jax.tree.leaves(gradient))]
