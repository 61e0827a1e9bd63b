r"""The residual of 2-D incompressible Navier-Stokes in vorticity form, without forcing, on the unit torus.

$$\omega_t + u \cdot \nabla \omega = \tfrac{1}{Re} \Delta \omega, \qquad u = (\psi_y, -\psi_x), \quad -\Delta \psi = \omega.$$

The field is \(\omega = \omega_0 + \sum_i w_i b_i\) with basis fields that vanish at t = 0 and have zero mean, so the initial
condition and the mean hold exactly. Every term is linear in the basis: the velocity of each basis field by Biot-Savart,
its gradient, Laplacian and time derivative; the residual is quadratic in the weights.

With several experts each one's velocity assumes that its own weights hold on the whole torus (Biot-Savart is not local).
The loss is formed from the assembled field afresh, and can differ; `ConstrainedBasis.info` reports the jump at the
borders.

Source: Chalapathi et al. 2024, section 4.2; Li et al. 2021 for the flow.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..physics.fourier import wave_numbers
from ..physics.stencils import first_derivative, periodic_first_derivative, periodic_second_derivative
from .grid import SpaceTimeGrid
from .pde import LinearTermsPDE

__all__ = ["NavierStokes2DVorticity"]


class NavierStokes2DVorticity(LinearTermsPDE):
    """The vorticity residual on a periodic grid. Data of a sample: the initial vorticity, (nx, ny), with zero mean.

    **Arguments:**

    - `nt`, `nx`, `ny`, `t_end`: times 0 ... t_end with both ends, and points i / n along each side of the unit torus; or
      `t`: any increasing times from 0 on. `x`, `y` may be given, and must be those uniform points.
    - `reynolds`: Re, one over the viscosity.
    - `derivatives`: "spectral", or "central" periodic differences of second order (velocities are spectral in both).
    - `residual_power`: 1, or 2 for rows that are the squared residual, as in the authors' code.
    - `basis_scale`: s, by which the basis fields are multiplied beside t / t_end.

    **Raises:** `ArgumentError` for spacing in space that is not uniform: Fourier modes and periodic differences need it.
    """

    grid: SpaceTimeGrid
    reynolds: float = eqx.field(static=True)
    derivatives: str = eqx.field(static=True)
    residual_power: int = eqx.field(static=True)
    basis_scale: float = eqx.field(static=True)

    start: ClassVar[float] = 0.0
    reference: ClassVar[str] = "chalapathi2024scaling"

    def __init__(
        self,
        nx: int = 64,
        ny: int | None = None,
        nt: int = 64,
        t_end: float = 5.0,
        *,
        t=None,
        x=None,
        y=None,
        reynolds: float = 1e4,
        derivatives: str = "spectral",
        residual_power: int = 1,
        basis_scale: float = 0.005,
    ):
        ny = nx if ny is None else ny
        self.grid = SpaceTimeGrid(
            np.linspace(0.0, t_end, nt) if t is None else t,
            np.arange(nx) / nx if x is None else x,
            np.arange(ny) / ny if y is None else y,
        )
        for axis, name in ((1, "x"), (2, "y")):
            points = self.grid.axis(axis)
            if not self.grid.uniform(axis) or not np.allclose(points, np.arange(len(points)) / len(points)):
                raise ArgumentError(
                    name,
                    f"must be the {len(points)} uniform points i / {len(points)} of the unit torus: "
                    "Fourier modes and periodic differences do not exist on other spacings.",
                )
        if self.grid.axes[0][0] != 0.0:
            raise ArgumentError("t", f"must start at 0, where the initial condition is, not {self.grid.axes[0][0]}.")
        if derivatives not in ("spectral", "central"):
            raise ArgumentError("derivatives", f"must be spectral or central, not {derivatives!r}.")
        if residual_power not in (1, 2):
            raise ArgumentError("residual_power", f"must be 1 or 2, not {residual_power!r}.")
        for name, value in (("reynolds", reynolds), ("basis_scale", basis_scale)):
            if not value > 0:
                raise ArgumentError(name, f"must be positive, not {value!r}.")
        self.reynolds, self.basis_scale = float(reynolds), float(basis_scale)
        self.derivatives, self.residual_power = derivatives, residual_power

    def _wavenumbers(self):
        """2 pi k along x and y for odd derivatives (the Nyquist mode has none), and |k|^2."""
        _, nx, ny = self.grid.shape
        square = wave_numbers(nx)[:, None] ** 2 + wave_numbers(ny, half=True)[None, :] ** 2
        return wave_numbers(nx, odd=True)[:, None], wave_numbers(ny, half=True, odd=True)[None, :], square

    def _spatial(self, b):
        """Velocity, gradient and Laplacian along axes 1 and 2 of (nt, nx, ny, N), from one transform of the basis."""
        kx, ky, square = (jnp.asarray(k, b.dtype)[..., None] for k in self._wavenumbers())
        shape = self.grid.shape[1:]
        transformed = jnp.fft.rfft2(b, axes=(1, 2))
        back = lambda hat: jnp.fft.irfft2(hat, s=shape, axes=(1, 2))
        inverse = jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1.0), 0.0)
        stream = inverse * transformed
        fields = {"velocity_x": back(1j * ky * stream), "velocity_y": back(-1j * kx * stream)}
        if self.derivatives == "spectral":
            return {
                **fields,
                "w_x": back(1j * kx * transformed),
                "w_y": back(1j * ky * transformed),
                "laplacian": back(-square * transformed),
            }
        (hx, hy) = (1 / n for n in shape)
        return {
            **fields,
            "w_x": periodic_first_derivative(b, hx, axis=1),
            "w_y": periodic_first_derivative(b, hy, axis=2),
            "laplacian": periodic_second_derivative(b, hx, axis=1) + periodic_second_derivative(b, hy, axis=2),
        }

    def terms(self, b: Float[Array, "..."], grid: SpaceTimeGrid) -> dict[str, Array]:
        return {**self._spatial(b), "w_t": first_derivative(b, grid.axis(0), axis=0)}

    def pointwise(self, q: dict[str, Array], x: Array, params: PyTree) -> Array:
        transport = q["velocity_x"] * q["w_x"] + q["velocity_y"] * q["w_y"]
        return (q["w_t"] + transport - q["laplacian"] / self.reynolds) ** self.residual_power

    def offset(self, data: PyTree) -> dict[str, Array]:
        initial = jnp.asarray(data)[None, ..., None]
        once = self._spatial(initial)
        return {name: jnp.broadcast_to(term[..., 0], self.grid.shape) for name, term in once.items()}

    def _clock(self, dtype):
        t = self.grid.axis(0)
        return jnp.asarray(t / t[-1], dtype)[:, None, None]

    def prepare(self, b: Float[Array, "..."], data: PyTree) -> Float[Array, "..."]:
        b = self.basis_scale * self._clock(b.dtype)[..., None] * b
        return b - jnp.mean(b, axis=(1, 2), keepdims=True)

    def assemble(self, combined: Float[Array, "..."], data: PyTree) -> Float[Array, "..."]:
        change = combined - jnp.mean(combined, axis=(1, 2), keepdims=True)  # boxes may leave a mean
        return jnp.asarray(data, combined.dtype)[None] + change

    def residual(self, field: Float[Array, "..."], data: PyTree) -> Array:
        rows = super().residual(field, data)
        return rows if self.residual_power == 1 else jnp.sqrt(jnp.maximum(rows, 1e-30))

    def check(self, data: PyTree) -> None:
        super().check(data)
        initial = np.asarray(data)
        if initial.shape != self.grid.shape[1:]:
            raise ArgumentError("inputs", f"needs vorticity of shape {self.grid.shape[1:]}, not {initial.shape}.")
        mean, size = abs(float(initial.mean())), float(np.abs(initial).max())
        if mean > 1e-4 * max(size, 1e-30):
            raise ArgumentError(
                "inputs", f"has mean vorticity {mean:.2g}, and on a torus it is zero.", "Subtract the mean."
            )
