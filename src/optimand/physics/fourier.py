r"""Periodic fields: derivatives, the velocity of a vorticity, and random fields, by the fast Fourier transform.

    d^r u / dx^r = F^-1( (2 pi i k / L)^r F u )

All functions take the axes they act on, so that a batch, channels or time may stand before or after; L is the length of
the period, the same on all axes. On an even number of points the wave number n/2 has no derivative of odd order (its
sine vanishes on the grid) and is dropped there.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from ..core.errors import ArgumentError

__all__ = [
    "divergence",
    "gaussian_field",
    "spectral_derivative",
    "spectral_laplacian",
    "velocity_from_vorticity",
    "vorticity_from_velocity",
    "wave_numbers",
]


def wave_numbers(n: int, length: float = 1.0, *, half: bool = False, odd: bool = False) -> np.ndarray:
    """The angular wave numbers 2 pi k / L of n points, in the order of the FFT (of the real FFT, if `half`).

    With `odd`, that of k = n/2 is zero, as a derivative of odd order needs it.
    """
    k = np.fft.rfftfreq(n, 1 / n) if half else np.fft.fftfreq(n, 1 / n)
    if odd:
        k = np.where(2 * np.abs(k) == n, 0, k)
    return 2 * np.pi * k / length


def _on_axis(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def _need_axes(u: Array, axes: Sequence[int]) -> tuple[int, ...]:
    for axis in axes:
        if not -u.ndim <= axis < u.ndim:
            raise ArgumentError("axes", f"names axis {axis}, but the field has the shape {u.shape}.")
    axes = tuple(axis % u.ndim for axis in axes)
    if len(set(axes)) < len(axes):
        raise ArgumentError("axes", f"must be different; they are {axes}.")
    return axes


def _spectra(u: Array, axes: tuple[int, ...], length: float, *, odd: bool) -> tuple[Array, list[np.ndarray]]:
    """The real Fourier transform over the axes, and the wave numbers on each, shaped to multiply it."""
    numbers = [
        _on_axis(wave_numbers(u.shape[axis], length, half=axis == axes[-1], odd=odd).astype(u.dtype), axis, u.ndim)
        for axis in axes
    ]
    return jnp.fft.rfftn(u, axes=axes), numbers


def _back(spectrum: Any, u: Array, axes: tuple[int, ...]) -> Array:
    return jnp.fft.irfftn(spectrum, s=[u.shape[axis] for axis in axes], axes=axes)


def spectral_derivative(
    u: Float[Array, "..."], *, axis: int, order: int = 1, length: float = 1.0
) -> Float[Array, "..."]:
    """The derivative of a periodic field along one axis, exact for every wave that the grid resolves."""
    if order < 1:
        raise ArgumentError("order", f"must be at least 1; it is {order}.")
    (axis,) = _need_axes(u, (axis,))
    spectrum, (k,) = _spectra(u, (axis,), length, odd=order % 2 == 1)
    return _back((1j * k) ** order * spectrum, u, (axis,))


def spectral_laplacian(
    u: Float[Array, "..."], *, axes: Sequence[int] = (-2, -1), length: float = 1.0
) -> Float[Array, "..."]:
    """The Laplacian of a periodic field."""
    axes = _need_axes(u, axes)
    spectrum, numbers = _spectra(u, axes, length, odd=False)
    return _back(-sum(k**2 for k in numbers) * spectrum, u, axes)


def velocity_from_vorticity(
    vorticity: Float[Array, "*shape"], *, axes: tuple[int, int] = (-2, -1), length: float = 1.0
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""The velocity of a vorticity on the torus, the law of Biot and Savart: (psi_y, -psi_x), where -lap psi = vorticity.

    The velocity has mean zero. The mean of the vorticity, zero on a torus, is left out of account.

    **Arguments:**

    - `vorticity`: with x and y on the two `axes`, in this order.
    - `length`: of the period.
    """
    axes_ = _need_axes(vorticity, axes)
    spectrum, (kx, ky) = _spectra(vorticity, axes_, length, odd=True)
    _, full = _spectra(vorticity, axes_, length, odd=False)
    squared = full[0] ** 2 + full[1] ** 2
    stream = spectrum / np.where(squared == 0, np.inf, squared).astype(squared.dtype)
    return _back(1j * ky * stream, vorticity, axes_), _back(-1j * kx * stream, vorticity, axes_)


def vorticity_from_velocity(
    u: Float[Array, "*shape"], v: Float[Array, "*shape"], *, axes: tuple[int, int] = (-2, -1), length: float = 1.0
) -> Float[Array, "*shape"]:
    """The vorticity v_x - u_y of a periodic velocity (u, v)."""
    return spectral_derivative(v, axis=axes[0], length=length) - spectral_derivative(u, axis=axes[1], length=length)


def divergence(
    u: Float[Array, "*shape"], v: Float[Array, "*shape"], *, axes: tuple[int, int] = (-2, -1), length: float = 1.0
) -> Float[Array, "*shape"]:
    """The divergence u_x + v_y of a periodic velocity (u, v)."""
    return spectral_derivative(u, axis=axes[0], length=length) + spectral_derivative(v, axis=axes[1], length=length)


def gaussian_field(
    key: Key[Array, ""],
    shape: Sequence[int],
    *,
    scale: ArrayLike = 7**1.5,
    tau: ArrayLike = 7.0,
    alpha: ArrayLike = 2.5,
    length: float = 1.0,
    dtype=None,
) -> Float[Array, "*grid"]:
    r"""A sample of the Gaussian random field \(N(0, s (-\Delta + \tau^2)^{-\alpha})\) of mean zero on the torus.

    The defaults are the initial vorticities of Li et al. (2021), \(7^{3/2} (-\Delta + 49)^{-2.5}\). In two dimensions
    their standard deviation is about 0.04: a weak flow. `scale=7**3` makes it about 0.19.

    **Arguments:**

    - `shape`: the number of points on each axis.
    - `scale`, `tau`, `alpha`: \(s\), \(\tau\) and \(\alpha\) (times one over length, and a pure number).
    - `length`: of the period.
    - `dtype`: JAX's default floating-point type if none is given.
    """
    shape = tuple(shape)
    if not shape or any(n < 1 for n in shape):
        raise ArgumentError("shape", f"must hold positive numbers of points; it is {shape}.")
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    noise = jr.normal(key, shape, dtype)
    axes = tuple(range(len(shape)))
    spectrum, numbers = _spectra(noise, axes, length, odd=False)
    squared = np.asarray(sum(k**2 for k in numbers))
    deviation = jnp.sqrt(jnp.asarray(scale, dtype)) * (squared + jnp.asarray(tau, dtype) ** 2) ** (
        -jnp.asarray(alpha, dtype) / 2
    )
    # White noise on a grid has as many units of variance as the grid has points; each mode of the field gets one,
    # spread over a volume of length^d.
    unit = np.sqrt(np.prod(shape) / length ** len(shape))
    return _back(jnp.where(squared == 0, 0, deviation) * spectrum, noise, axes) * jnp.asarray(unit, dtype)
