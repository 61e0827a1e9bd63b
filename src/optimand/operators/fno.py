r"""The Fourier neural operator of Li et al. (2021): lift, convolve in Fourier space with pointwise skips, project.

    v_0     = P(a, x)                                 pointwise network, the lifting
    v_{l+1} = gelu( K_l v_l + W_l v_l )               K_l a spectral convolution, W_l a pointwise matrix
    u       = Q(v_L)                                  pointwise network, the projection

and with a channel network, as in Kossaifi et al. (2024), each layer goes on with

    v_{l+1} = gelu( M_l(gelu( K_l v_l + W_l v_l )) + s_l * v_l ).
"""

from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError
from ..nn.pointwise import Pointwise, PointwiseMLP, gelu, need_channels, need_size
from ..nn.spectral import SpectralConv

__all__ = ["FNO", "FNOLayer", "from_neuraloperator"]


class FNOLayer(eqx.Module):
    """One Fourier layer: a spectral convolution beside a pointwise skip, then (if wanted) a pointwise network.

    **Arguments:**

    - `width`: the number of channels, in and out.
    - `modes`: see `optimand.nn.SpectralConv`.
    - `channel_mlp`: the hidden channels of the pointwise network; no such network if `None`.
    - `activation`: applied after each half of the layer, if `activate`.
    - `activate`: whether the layer ends in the activation (in the paper, all but the last do).
    """

    spectral: SpectralConv
    skip: Pointwise
    channel_mlp: PointwiseMLP | None
    gate: Float[Array, " width"] | None
    activation: Callable = eqx.field(static=True)
    activate: bool = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        modes: Sequence[int],
        *,
        channel_mlp: int | None = None,
        activation: Callable = gelu,
        activate: bool = True,
        dtype=None,
        key: Key[Array, ""],
    ):
        spectral_key, skip_key, mlp_key = jr.split(key, 3)
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        self.spectral = SpectralConv(width, width, modes, dtype=dtype, key=spectral_key)
        self.skip = Pointwise(width, width, dtype=dtype, key=skip_key)
        if channel_mlp is None:
            self.channel_mlp, self.gate = None, None
        else:
            sizes = (width, need_size("channel_mlp", channel_mlp), width)
            self.channel_mlp = PointwiseMLP(sizes, activation=activation, dtype=dtype, key=mlp_key)
            self.gate = jnp.ones((width,), dtype)
        self.activation = activation
        self.activate = activate

    def __call__(self, x: Float[Array, "width *grid"]) -> Float[Array, "width *grid"]:
        """The next field."""
        y = self.spectral(x) + self.skip(x)
        y = self.activation(y) if self.activate else y
        if self.channel_mlp is not None and self.gate is not None:
            y = self.channel_mlp(y) + self.gate.reshape(-1, *(1,) * (x.ndim - 1)) * x
            y = self.activation(y) if self.activate else y
        return y


class FNO(eqx.Module):
    """The Fourier neural operator: fields `(in_channels, n_1, ..., n_d)` to fields `(out_channels, n_1, ..., n_d)`.

    ```python
    model = om.operators.FNO(in_channels=3, out_channels=1, width=16, modes=(8, 8), key=jax.random.key(0))
    a = jax.random.normal(jax.random.key(1), (2, 3, 64, 64))
    u = jax.vmap(model)(a)                                       # (batch, 3, 64, 64) -> (batch, 1, 64, 64)
    ```

    **Arguments:**

    - `in_channels`, `out_channels`: of the fields.
    - `width`: the channels inside.
    - `modes`: the wave numbers kept on each axis; its length, 1 to 3, is the number of dimensions. On a grid of n points
      at most n / 2, on the last axis at most n / 2 + 1.
    - `layers`: how many Fourier layers.
    - `lifting`, `projection`: the hidden sizes of the pointwise networks at both ends; `()` makes one a single matrix. By
      default one hidden layer of twice the width.
    - `channel_mlp`: the hidden channels of a further pointwise network in each layer; none by default, as in the paper.
    - `activation`: exact `gelu` by default; `activate_last_layer` puts it after the last Fourier layer too, `activate_output`
      after the projection.
    - `coordinates`: whether to append to the input the coordinates of the grid, i / n on each axis.
    - `dtype`: of the parameters; JAX's default floating-point type if none is given.

    Raises `ArgumentError` when called with a field of another rank or number of channels, or on too coarse a grid.

    **Source:** Li et al. (2021); the channel network, Kossaifi et al. (2024).
    """

    lifting: PointwiseMLP
    layers: tuple[FNOLayer, ...]
    projection: PointwiseMLP
    coordinates: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 32,
        modes: Sequence[int] = (8, 8),
        layers: int = 4,
        *,
        lifting: Sequence[int] | None = None,
        projection: Sequence[int] | None = None,
        channel_mlp: int | None = None,
        activation: Callable = gelu,
        activate_last_layer: bool = False,
        activate_output: bool = False,
        coordinates: bool = False,
        dtype=None,
        key: Key[Array, ""],
    ):
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            need_size(name, value)
        need_size("layers", layers)
        if not isinstance(modes, Sequence):
            raise ArgumentError("modes", f"must be a tuple with one number for each axis of the grid; it is {modes!r}.")
        lifting = (2 * width,) if lifting is None else tuple(lifting)
        projection = (2 * width,) if projection is None else tuple(projection)
        lifting_key, projection_key, *layer_keys = jr.split(key, layers + 2)
        lifted = in_channels + (len(modes) if coordinates else 0)
        self.lifting = PointwiseMLP((lifted, *lifting, width), activation=activation, dtype=dtype, key=lifting_key)
        self.layers = tuple(
            FNOLayer(
                width,
                modes,
                channel_mlp=channel_mlp,
                activation=activation,
                activate=activate_last_layer or index < layers - 1,
                dtype=dtype,
                key=layer_key,
            )
            for index, layer_key in enumerate(layer_keys)
        )
        self.projection = PointwiseMLP(
            (width, *projection, out_channels),
            activation=activation,
            activate_last=activate_output,
            dtype=dtype,
            key=projection_key,
        )
        self.coordinates = coordinates

    @property
    def modes(self) -> tuple[int, ...]:
        """The wave numbers kept on each axis."""
        return self.layers[0].spectral.modes

    def __call__(self, x: Float[Array, "in_channels *grid"]) -> Float[Array, "out_channels *grid"]:
        """The output field."""
        d = len(self.modes)
        need_channels(x, self.lifting.layers[0].weight.shape[1] - (d if self.coordinates else 0), d)
        if self.coordinates:
            axes = [jnp.arange(n, dtype=x.dtype) / n for n in x.shape[1:]]
            x = jnp.concatenate([x, jnp.stack(jnp.meshgrid(*axes, indexing="ij"))])
        x = self.lifting(x)
        for layer in self.layers:
            x = layer(x)
        return self.projection(x)


def _gelu_twice(x: Array) -> Array:
    return gelu(gelu(x))


def from_neuraloperator(state: Mapping[str, np.ndarray], in_channels: int) -> FNO:
    """Our `FNO` with the weights of an FNO of the package `neuraloperator`: the same function.

    ```text
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if hasattr(tensor, "numpy")}
    ours = om.operators.from_neuraloperator(state, in_channels=1)
    ```

    Their `n_modes = (2 m_1, ..., 2 m_{d-1}, 2 (m_d - 1))` are our `modes = (m_1, ..., m_d)`. Dense weights, real data, linear
    skips, no normalisation and no padding are what can be taken over; the channel network may be there or not. (Without it,
    their layers apply the activation twice; so does the model returned.) On axes with an odd number of points theirs puts
    the kept modes back one wave number off, and this one does not.

    **Arguments:**

    - `state`: their state dictionary as NumPy arrays; entries that are not arrays are left alone.
    - `in_channels`: of the input field. If their lifting takes more, the difference is the grid's coordinates.

    Raises `ArgumentError` for a model that is not such an FNO.
    """
    taken: set[str] = set()

    def get(name: str) -> np.ndarray:
        if name not in state:
            raise ArgumentError(
                "state", f"has no entry {name!r}.", "Only dense FNOs with linear skips can be taken over."
            )
        taken.add(name)
        return np.asarray(state[name])

    def count(pattern: str) -> int:
        index = 0
        while pattern.format(index) in state:
            index += 1
        return index

    layers = count("fno_blocks.convs.{}.weight.tensor")
    first = get("fno_blocks.convs.0.weight.tensor")
    width, _, *kept = first.shape
    if any(size % 2 for size in kept[:-1]):
        raise ArgumentError("state", f"keeps {kept} modes: an odd number on an axis has no counterpart here.")
    modes = (*(size // 2 for size in kept[:-1]), kept[-1])
    lifted, d = get("lifting.fcs.0.weight").shape[1], len(modes)
    if lifted not in (in_channels, in_channels + d):
        raise ArgumentError(
            "in_channels", f"is {in_channels}, but the lifting takes {lifted} (with coordinates, {d} more)."
        )
    with_mlp = "fno_blocks.channel_mlp.0.fcs.0.weight" in state
    lifting = [get(f"lifting.fcs.{i}.weight").shape[0] for i in range(count("lifting.fcs.{}.weight") - 1)]
    projections = count("projection.fcs.{}.weight")
    projection = [get(f"projection.fcs.{i}.weight").shape[0] for i in range(projections - 1)]
    model = FNO(
        in_channels,
        get(f"projection.fcs.{projections - 1}.weight").shape[0],
        width,
        modes,
        layers,
        lifting=lifting,
        projection=projection,
        channel_mlp=get("fno_blocks.channel_mlp.0.fcs.0.weight").shape[0] if with_mlp else None,
        coordinates=lifted > in_channels,
        dtype=np.real(first).dtype,
        key=jr.key(0),
    )

    if not with_mlp:
        twice = [
            FNOLayer(width, modes, activation=_gelu_twice, activate=i < layers - 1, key=jr.key(0))
            for i in range(layers)
        ]
        model = eqx.tree_at(lambda m: m.layers, model, tuple(twice))

    def pointwise(prefix: str, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        weight = get(f"{prefix}.weight")[..., 0]
        return weight, get(f"{prefix}.bias") if bias is None else bias

    where: list[Callable] = []
    values: list[np.ndarray] = []

    def put(place: Callable, value: np.ndarray):
        where.append(place)
        values.append(value)

    def put_mlp(place: Callable, prefix: str):
        for i in range(count(prefix + ".fcs.{}.weight")):
            weight, bias = pointwise(f"{prefix}.fcs.{i}")
            put(lambda m, i=i: place(m).layers[i].weight, weight)
            put(lambda m, i=i: place(m).layers[i].bias, bias)

    put_mlp(lambda m: m.lifting, "lifting")
    put_mlp(lambda m: m.projection, "projection")
    for i in range(layers):
        weight = get(f"fno_blocks.convs.{i}.weight.tensor")
        # Theirs runs over wave numbers -m, ..., m - 1, ours over 0, ..., m - 1, -m, ..., -1; theirs has channels first.
        weight = np.fft.ifftshift(weight, axes=range(2, 1 + d)).transpose(*range(2, d + 2), 0, 1)
        put(lambda m, i=i: m.layers[i].spectral.real, np.real(weight))
        put(lambda m, i=i: m.layers[i].spectral.imag, np.imag(weight))
        # Both the convolution and the skip may have a bias; only their sum matters.
        bias = np.zeros(width, np.real(first).dtype)
        for name in (f"fno_blocks.convs.{i}.bias", f"fno_blocks.fno_skips.{i}.conv.bias"):
            bias = bias + get(name).reshape(-1) if name in state else bias
        skip, bias = pointwise(f"fno_blocks.fno_skips.{i}.conv", bias)
        put(lambda m, i=i: m.layers[i].skip.weight, skip)
        put(lambda m, i=i: m.layers[i].skip.bias, bias)
        if with_mlp:
            put_mlp(lambda m, i=i: m.layers[i].channel_mlp, f"fno_blocks.channel_mlp.{i}")
            put(lambda m, i=i: m.layers[i].gate, get(f"fno_blocks.channel_mlp_skips.{i}.weight").reshape(-1))
    left = [name for name, value in state.items() if isinstance(value, np.ndarray) and name not in taken]
    if left:
        raise ArgumentError("state", f"has entries that have no counterpart here: {left[:3]}.")
    return eqx.tree_at(lambda m: [place(m) for place in where], model, [jnp.asarray(value) for value in values])
