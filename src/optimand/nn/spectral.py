r"""The spectral convolution: a linear map of the channels of a field, another one for each of its low Fourier modes.

    y = F^-1( R . F v ),      (R . F v)_o(k) = sum_i R_io(k) (F v)_i(k)   for the kept k,  0 for the others

Li et al., "Fourier neural operator for parametric partial differential equations" (2021), equation (4). The kept modes
are k_j = -m_j, ..., m_j - 1 on every axis but the last, where k_d = 0, ..., m_d - 1 (a real field has no other).

Only few modes are kept, so a Fourier transform that computes all of them and drops most is wasteful: where m is small
against n, the transform to the kept modes is a small matrix for each axis, and two matrix products are quicker than two
fast Fourier transforms with their copies. Complex numbers are pairs of reals on the last axis, in the parameters as
well: an optimiser need not know about complex derivatives.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError
from .pointwise import need_channels, need_size

__all__ = ["SpectralConv"]


class SpectralConv(eqx.Module):
    """A linear map of each kept Fourier mode of a field.

    **Arguments:**

    - `in_channels`, `out_channels`: of the fields.
    - `modes`: (m_1, ..., m_d), one for each axis of the grid, d = 1, 2 or 3: wave numbers -m_j to m_j - 1 are kept on
      every axis but the last, 0 to m_d - 1 there. A grid needs n_j >= 2 m_j points, and n_d >= 2 (m_d - 1) on the last.
    - `bias`: whether to add a number to each channel.
    - `dtype`: of the parameters; JAX's default floating-point type if none is given.

    `real` and `imag` are the parts of the weights, in the order of wave numbers of the FFT: 0, ..., m - 1, -m, ..., -1.
    At first they are normal, the variance of a complex weight being 2 / (in + out).
    """

    real: Float[Array, "*modes in out"]
    imag: Float[Array, "*modes in out"]
    bias: Float[Array, " out"] | None
    modes: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        bias: bool = False,
        dtype=None,
        key: Key[Array, ""],
    ):
        need_size("in_channels", in_channels)
        need_size("out_channels", out_channels)
        modes = tuple(modes)
        if not 1 <= len(modes) <= 3:
            raise ArgumentError("modes", f"must name 1, 2 or 3 axes; it names {len(modes)}.")
        for axis, count in enumerate(modes):
            need_size(f"modes[{axis}]", count)
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        shape = (*(2 * m for m in modes[:-1]), modes[-1], in_channels, out_channels)
        scale = (in_channels + out_channels) ** -0.5
        real_key, imag_key, bias_key = jr.split(key, 3)
        self.modes = modes
        self.real = scale * jr.normal(real_key, shape, dtype)
        self.imag = scale * jr.normal(imag_key, shape, dtype)
        self.bias = scale * jr.normal(bias_key, (out_channels,), dtype) if bias else None

    def __call__(self, x: Float[Array, "in *grid"]) -> Float[Array, "out *grid"]:
        """The convolved field. Raises `ArgumentError` if the grid is too coarse for the modes."""
        need_channels(x, self.real.shape[-2], len(self.modes))
        grid = x.shape[1:]
        for axis, (n, m) in enumerate(zip(grid, self.modes, strict=True)):
            last = axis == len(grid) - 1
            if n < (2 * (m - 1) if last else 2 * m):
                needed = 2 * (m - 1) if last else 2 * m
                raise ArgumentError("x", f"has {n} points on axis {axis + 1}; {m} modes need at least {needed}.")
        if all(_matrix_is_quicker(n, m) for n, m in zip(grid, self.modes, strict=True)):
            y = _from_modes_by_matrices(self._multiply(_to_modes_by_matrices(x, self.modes)), grid, self.modes)
        else:
            y = _from_modes_by_fft(self._multiply(_to_modes_by_fft(x, self.modes)), grid, self.modes)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * len(grid))

    def _multiply(self, z: Float[Array, "in *modes 2"]) -> Float[Array, "out *modes 2"]:
        """Multiply each mode by its complex matrix."""
        *modes, in_channels, out_channels = self.real.shape
        complex_z = jax.lax.complex(z[..., 0], z[..., 1]).reshape(in_channels, -1)
        weight = jax.lax.complex(self.real, self.imag).reshape(-1, in_channels, out_channels)
        y = jnp.einsum("ik,kio->ok", complex_z, weight).reshape(out_channels, *modes)
        return jnp.stack([y.real, y.imag], axis=-1)


def _matrix_is_quicker(n: int, m: int) -> bool:
    return n <= 128 and 4 * m <= n


def _wave_numbers(m: int, last: bool) -> np.ndarray:
    return np.arange(m) if last else np.concatenate([np.arange(m), np.arange(-m, 0)])


def _as_real(matrix: np.ndarray, dtype) -> np.ndarray:
    """A complex matrix (k, n) as the real array (n, 2, k, 2) that multiplies pairs of reals."""
    re, im = np.real(matrix).T, np.imag(matrix).T
    return np.stack([np.stack([re, im], axis=-1), np.stack([-im, re], axis=-1)], axis=1).astype(dtype)


def _to_modes_by_matrices(x: Float[Array, "c *grid"], modes: tuple[int, ...]) -> Float[Array, "c *modes 2"]:
    """The kept modes, one axis after the other."""
    grid, d = x.shape[1:], len(modes)
    for axis in reversed(range(d)):
        last, n = axis == d - 1, grid[axis]
        phase = np.outer(_wave_numbers(modes[axis], last), np.arange(n)) % n  # exact, unlike large angles
        matrix = _as_real(np.exp(-2j * np.pi * phase / n), x.dtype)
        # The axes still to do come first, those done follow, the latest last.
        if last:
            x = jnp.tensordot(x, matrix[:, 0], axes=((d,), (0,)))
        else:
            x = jnp.tensordot(x, matrix, axes=((axis + 1, d + 1), (0, 1)))
    return x.transpose(0, *range(d, 0, -1), d + 1)


def _from_modes_by_matrices(
    z: Float[Array, "c *modes 2"], grid: tuple[int, ...], modes: tuple[int, ...]
) -> Float[Array, "c *grid"]:
    """The real field that has these modes; as always, the imaginary part of its means along the last axis is lost."""
    d = len(modes)
    for axis in range(d):
        last, n = axis == d - 1, grid[axis]
        k = _wave_numbers(modes[axis], last)
        matrix = np.exp(2j * np.pi * (np.outer(np.arange(n), k) % n) / n) / n
        if last:  # modes 1, ..., n/2 - 1 stand for their conjugates too
            matrix = matrix * np.where((k == 0) | (2 * k == n), 1, 2)
        real = _as_real(matrix, z.dtype)
        z = jnp.tensordot(z, real[..., 0] if last else real, axes=((1, d + 1), (0, 1)))
    return z


def _to_modes_by_fft(x: Float[Array, "c *grid"], modes: tuple[int, ...]) -> Float[Array, "c *modes 2"]:
    """The kept modes, cut from the whole spectrum."""
    spectrum = jnp.fft.rfftn(x, axes=range(1, x.ndim))[..., : modes[-1]]
    for axis, m in enumerate(modes[:-1], start=1):
        n = spectrum.shape[axis]
        spectrum = jnp.concatenate(
            [jax.lax.slice_in_dim(spectrum, 0, m, axis=axis), jax.lax.slice_in_dim(spectrum, n - m, n, axis=axis)], axis
        )
    return jnp.stack([spectrum.real, spectrum.imag], axis=-1)


def _from_modes_by_fft(
    z: Float[Array, "c *modes 2"], grid: tuple[int, ...], modes: tuple[int, ...]
) -> Float[Array, "c *grid"]:
    """The real field that has these modes."""
    spectrum = jax.lax.complex(z[..., 0], z[..., 1])
    for axis, (m, n) in enumerate(zip(modes[:-1], grid[:-1], strict=True), start=1):
        gap = jnp.zeros((*spectrum.shape[:axis], n - 2 * m, *spectrum.shape[axis + 1 :]), spectrum.dtype)
        low, high = jnp.split(spectrum, 2, axis=axis)
        spectrum = jnp.concatenate([low, gap, high], axis)
    room = grid[-1] // 2 + 1 - modes[-1]
    spectrum = jnp.pad(spectrum, [(0, 0)] * len(grid) + [(0, room)])
    return jnp.fft.irfftn(spectrum, s=grid, axes=range(1, len(grid) + 1))
