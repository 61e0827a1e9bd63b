r"""A network that proposes search directions: a V of residual convolutions, from a residual on a grid to an estimate of \(A^{-1} r\) up to a positive factor.

    inlet     1 (and the mask) -> width channels, linear
    down      on each level `pairs` residual pairs, then the mean over blocks of two points along each axis
    bottom    `bottom_pairs` residual pairs
    up        nearest neighbours, plus what was there on the way down, then `pairs` residual pairs
    outlet    width -> 1 channels, point by point

A residual pair is x + relu(conv(relu(conv(x)))), with kernels of 3 points along each axis (Kaneda et al. 2023, whose networks have one level). A convolution
reaches one point, hence what it sees on the coarsest level are some 2^levels points: a network with fewer levels than the grid has octaves does not see from one side of
the domain to the other, and its directions are poor there.

Two things are not the paper's. The residual is scaled to a mean square of one, not to unit length, so that numbers inside of the network do not shrink as the grid is refined. And it is
given the sign with which its sum is not negative, and the direction that sign back, so that f(-r) = -f(r), as \(A^{-1}\) has it. Without that a network may be right for the smoothest
residuals of one sign and wrong for those of the other, of which there are too few in training to tell, and take five times the iterations.
"""

import io
import json
import os
from importlib import resources
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError

__all__ = ["ConjugateDirectionNet"]


class _Pair(eqx.Module):
    """x + relu(conv(relu(conv(x)))); a mask is one more channel, which the first convolution sees."""

    first: eqx.nn.Conv
    second: eqx.nn.Conv

    def __init__(self, dim: int, width: int, masks: int, *, key: Key[Array, ""]):
        keys = jax.random.split(key)
        self.first = eqx.nn.Conv(dim, width + masks, width, 3, padding=1, dtype=jnp.float32, key=keys[0])
        self.second = eqx.nn.Conv(dim, width, width, 3, padding=1, dtype=jnp.float32, key=keys[1])

    def __call__(self, x: Float[Array, "width *grid"], mask: Array | None, inside: Array | float, looped: bool) -> Float[Array, "width *grid"]:
        seen = x if mask is None else jnp.concatenate([x, mask])
        y = inside * jax.nn.relu(_convolved(self.first, seen, looped))
        return x + inside * jax.nn.relu(_convolved(self.second, y, looped))


class _Level(eqx.Module):
    """The residual pairs before the next coarser level and after it."""

    down: tuple[_Pair, ...]
    up: tuple[_Pair, ...]


class ConjugateDirectionNet(eqx.Module):
    """Proposes a search direction for a residual on a grid, for `DeepConjugateDirection`; `train_inverse` trains it, `pretrained` is trained.

    `net(residual, mask)` takes a field `(*grid)` of any size, two- or three-dimensional, and returns one. It computes in single precision. A grid that does not divide by
    2^levels is padded inside.

    **Arguments:**

    - `dim`: of the grid, 2 or 3.
    - `width`: channels.
    - `levels`: how often the grid is halved.
    - `pairs`, `bottom_pairs`: residual pairs on each level, before and after the coarser ones, and on the coarsest.
    - `mask_channel`: whether the network sees which cells are what: 1 in a fluid, 0 in air, which is also what lies outside of the box, -1 in a solid.
    - `key`: of the first weights.

    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a residual of another dimension.

    ```python
    net = om.linear.ConjugateDirectionNet(2, width=8, levels=2, key=jax.random.key(0))
    net(jnp.ones((20, 30))).shape
    ```
    """

    inlet: eqx.nn.Conv
    levels: tuple[_Level, ...]
    bottom: tuple[_Pair, ...]
    outlet: eqx.nn.Conv
    dim: int = eqx.field(static=True)
    mask_channel: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int = 2,
        *,
        width: int = 12,
        levels: int = 3,
        pairs: int = 1,
        bottom_pairs: int = 4,
        mask_channel: bool = False,
        key: Key[Array, ""],
    ):
        if dim not in (2, 3):
            raise ArgumentError("dim", f"must be 2 or 3, not {dim!r}.")
        for name, value, least in (("width", width, 1), ("levels", levels, 1), ("pairs", pairs, 1), ("bottom_pairs", bottom_pairs, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ArgumentError(name, f"must be a whole number of at least {least}, not {value!r}.")
        masks = int(mask_channel)
        fresh = (jax.random.fold_in(key, number) for number in range(10**6))
        residual_pairs = lambda count: tuple(_Pair(dim, width, masks, key=next(fresh)) for _ in range(count))
        self.inlet = eqx.nn.Conv(dim, 1 + masks, width, 3, padding=1, dtype=jnp.float32, key=next(fresh))
        self.levels = tuple(_Level(residual_pairs(pairs), residual_pairs(pairs)) for _ in range(levels))
        self.bottom = residual_pairs(bottom_pairs)
        self.outlet = eqx.nn.Conv(dim, width, 1, 1, use_bias=False, dtype=jnp.float32, key=next(fresh))
        self.dim, self.mask_channel = dim, bool(mask_channel)

    def __call__(self, residual: Float[Array, "*grid"], mask: Array | None = None) -> Float[Array, "*grid"]:
        """The direction. `mask` is as for `mask_channel`; without one, all cells are fluid."""
        return self._direction(residual, mask, looped=True)

    def in_training(self, residual: Float[Array, "*grid"], mask: Array | None = None) -> Float[Array, "*grid"]:
        """The same in a form that is quicker where a batch of it is differentiated, and slower inside of a loop."""
        return self._direction(residual, mask, looped=False)

    def _direction(self, residual: Array, mask: Array | None, looped: bool) -> Array:
        grid = residual.shape
        if len(grid) != self.dim:
            raise ArgumentError("residual", f"must have {self.dim} axes, as the network has, not the shape {grid}.")
        if mask is not None and mask.shape != grid:
            raise ArgumentError("mask", f"must have the shape of the residual, {grid}, not {mask.shape}.")
        room = [(0, -n % 2 ** len(self.levels)) for n in grid]
        x = residual.astype(jnp.float32)
        size = jnp.where(jnp.sum(x) < 0, -1, 1) * jnp.sqrt(jnp.mean(x**2))
        x = jnp.pad(x / jnp.where(size == 0, 1, size), room)[None]
        cells = jnp.ones(grid, jnp.float32) if mask is None else mask.astype(jnp.float32)
        cells = jnp.pad(cells, room)[None] if self.mask_channel else None
        inside = jnp.pad(jnp.ones(grid, jnp.float32), room) if any(after for _, after in room) else 1.0
        x = _convolved(self.inlet, x if cells is None else jnp.concatenate([x, cells]), looped)
        x = self._through(x, cells, inside, self.levels, looped)
        direction = self.outlet(x)[0][tuple(slice(n) for n in grid)].astype(residual.dtype)
        return jnp.where(size < 0, -direction, direction)

    def _through(self, x: Array, cells: Array | None, inside: Array | float, levels: tuple[_Level, ...], looped: bool) -> Array:
        if not levels:
            return _apply(self.bottom, x, cells, inside, looped)
        level = levels[0]
        x = _apply(level.down, x, cells, inside, looped)
        below = 1.0 if isinstance(inside, float) else (_means(jnp.asarray(inside)[None])[0] > 0).astype(jnp.float32)
        coarse = self._through(_means(x), None if cells is None else _means(cells), below, levels[1:], looped)
        for axis in range(1, x.ndim):
            coarse = jnp.repeat(coarse, 2, axis)
        return _apply(level.up, x + inside * coarse, cells, inside, looped)

    # Files.

    def save(self, path: str | os.PathLike) -> None:
        """Write the network to a file: its sizes in a first line, then its weights."""
        content = io.BytesIO()
        content.write(json.dumps(self._sizes()).encode() + b"\n")
        eqx.tree_serialise_leaves(content, self)
        Path(path).write_bytes(content.getvalue())

    @staticmethod
    def load(path: str | os.PathLike) -> "ConjugateDirectionNet":
        """The network that `save` wrote. Raises `ArgumentError` for another file."""
        content = Path(path).read_bytes()
        sizes, _, rest = content.partition(b"\n")
        try:
            like = ConjugateDirectionNet(**json.loads(sizes), key=jax.random.key(0))
            return eqx.tree_deserialise_leaves(io.BytesIO(rest), like)
        except (ValueError, TypeError, RuntimeError, EOFError) as error:
            raise ArgumentError("path", f"is not the file of a network: {path}.") from error

    @staticmethod
    def pretrained(dim: int = 2) -> "ConjugateDirectionNet":
        """The network that comes with the package, for pressure systems of fluids on grids of 2 or 3 dimensions.

        Trained on empty boxes of one size, 32^2 and 16^3, which `examples/train_conjugate_direction.py` does; it serves boxes with solids and other sizes too: it was tried on up to 128 points along
        an axis in two dimensions and 32 in three.
        """
        if dim not in (2, 3):
            raise ArgumentError("dim", f"must be 2 or 3, not {dim!r}.")
        with resources.as_file(resources.files("optimand.linear") / "models" / f"conjugate_direction_{dim}d.eqx") as path:
            return ConjugateDirectionNet.load(path)

    def _sizes(self) -> dict:
        return {
            "dim": self.dim,
            "width": self.inlet.out_channels,
            "levels": len(self.levels),
            "pairs": len(self.levels[0].down),
            "bottom_pairs": len(self.bottom),
            "mask_channel": self.mask_channel,
        }


def _convolved(layer: eqx.nn.Conv, x: Float[Array, "channels *grid"], looped: bool) -> Float[Array, "out *grid"]:
    """`layer(x)` for kernels of 3 points along each axis, in the form that XLA is quick at on a CPU.

    In two dimensions, if `looped`, one matrix product: with the grid padded and flat, each of the 9 neighbours is a slice, and what is computed at the padding is cut off. Inside of a
    loop, where a solver calls it, that is much quicker than XLA's convolution; where a batch is differentiated it is slower. In three dimensions convolutions of three
    neighbouring planes.
    """
    if x.ndim == 3 and not looped:
        return layer(x)
    if x.ndim == 4:
        depth = x.shape[1]
        padded = jnp.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)])
        planes = jnp.concatenate([padded[:, k : k + depth] for k in range(3)])
        kernel = jnp.concatenate([layer.weight[:, :, k] for k in range(3)], axis=1)
        y = jax.lax.conv_general_dilated(jnp.swapaxes(planes, 0, 1), kernel, (1, 1), ((1, 1), (1, 1)))
        return jnp.swapaxes(y, 0, 1) + jnp.asarray(layer.bias)
    rows, columns = x.shape[1] + 2, x.shape[2] + 2
    flat = jnp.pad(x, [(0, 0), (1, 1), (1, 1)]).reshape(x.shape[0], -1)
    length = flat.shape[1] - 2 * columns - 2
    neighbours = [(i, j) for i in range(3) for j in range(3)]
    slices = jnp.concatenate([flat[:, i * columns + j : i * columns + j + length] for i, j in neighbours])
    kernel = jnp.concatenate([layer.weight[:, :, i, j] for i, j in neighbours], axis=1)
    y = jnp.pad(kernel @ slices, [(0, 0), (0, 2 * columns + 2)]).reshape(-1, rows, columns)
    return y[:, :-2, :-2] + jnp.asarray(layer.bias)


def _apply(pairs: tuple[_Pair, ...], x: Array, cells: Array | None, inside: Array | float, looped: bool) -> Array:
    for pair in pairs:
        x = pair(x, cells, inside, looped)
    return x


def _means(x: Float[Array, "channels *grid"]) -> Float[Array, "channels *coarse"]:
    """The means over blocks of two points along each axis."""
    blocks = [length for n in x.shape[1:] for length in (n // 2, 2)]
    return jnp.mean(x.reshape(x.shape[0], *blocks), axis=tuple(range(2, 2 * x.ndim, 2)))
