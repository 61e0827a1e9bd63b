"""Small equations and networks for tests of the room `informed`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import LinearTermsPDE, SpaceTimeGrid
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
