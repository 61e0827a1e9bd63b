r"""Maps of the channels at each point of a field: a matrix, or a small network.

y(x) = W v(x) + b            the same W and b at every x, on a grid of any resolution
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError
from .matmul import per_sample

__all__ = ["Pointwise", "PointwiseMLP", "gelu", "need_channels", "need_size"]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The Gaussian error linear unit \(x \Phi(x)\), exactly: not by its tanh approximation."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def need_size(name: str, value: int) -> int:
    """The value, if it is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(name, f"must be a positive integer; it is {value!r}.")
    return value


def need_channels(x: Array, channels: int, dimensions: int | None = None) -> None:
    """Raise unless `x` is one field with this many channels (on a grid of this many dimensions)."""
    grid = "*grid" if dimensions is None else ", ".join(f"n_{i + 1}" for i in range(dimensions))
    if x.ndim < 1 or (dimensions is not None and x.ndim != dimensions + 1):
        raise ArgumentError(
            "x",
            f"must have the shape ({channels}, {grid}); it has {x.shape}.",
            "Batches are mapped: jax.vmap(model)(x).",
        )
    if x.shape[0] != channels:
        raise ArgumentError("x", f"must have {channels} channels on its first axis; its shape is {x.shape}.")


class Pointwise(eqx.Module):
    """One matrix that maps the channels of a field at each of its points.

    **Arguments:**

    - `in_channels`, `out_channels`: the sizes of the matrix.
    - `bias`: whether to add a vector.
    - `dtype`: of the parameters; JAX's default floating-point type if none is given.

    At first, weights and bias are uniform within one over the square root of `in_channels`.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, dtype=None, key: Key[Array, ""]):
        need_size("in_channels", in_channels)
        need_size("out_channels", out_channels)
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        bound = in_channels**-0.5
        weight_key, bias_key = jr.split(key)
        self.weight = jr.uniform(weight_key, (out_channels, in_channels), dtype, -bound, bound)
        self.bias = jr.uniform(bias_key, (out_channels,), dtype, -bound, bound) if bias else None

    def __call__(self, x: Float[Array, "in *grid"]) -> Float[Array, "out *grid"]:
        """The field with its channels mapped."""
        need_channels(x, self.weight.shape[1])
        y = per_sample(self.weight, x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * (x.ndim - 1))


class PointwiseMLP(eqx.Module):
    """A multi-layer perceptron on the channels of a field at each of its points.

    **Arguments:**

    - `sizes`: the numbers of channels, from the input's to the output's.
    - `activation`: applied after every matrix but the last, and after that too if `activate_last`.
    """

    layers: tuple[Pointwise, ...]
    activation: Callable = eqx.field(static=True)
    activate_last: bool = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Callable = gelu,
        activate_last: bool = False,
        dtype=None,
        key: Key[Array, ""],
    ):
        if len(sizes) < 2:
            raise ArgumentError("sizes", f"must name the input's and the output's channels; it is {tuple(sizes)}.")
        keys = jr.split(key, len(sizes) - 1)
        self.layers = tuple(
            Pointwise(before, after, dtype=dtype, key=key)
            for (before, after), key in zip(pairwise(sizes), keys, strict=True)
        )
        self.activation = activation
        self.activate_last = activate_last

    def __call__(self, x: Float[Array, "in *grid"]) -> Float[Array, "out *grid"]:
        """The field with its channels mapped."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        x = self.layers[-1](x)
        return self.activation(x) if self.activate_last else x
