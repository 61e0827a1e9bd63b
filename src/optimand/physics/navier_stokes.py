r"""Incompressible flow on a torus in two dimensions, by its vorticity.

    w_t + u . grad w = lap w / Re + f,        u = (psi_y, -psi_x),        -lap psi = w

*Space.* Fourier series; products are taken on the grid and their upper third of wave numbers is dropped, so that what a
product of two waves of the rest gives is never taken for another wave (Orszag, 1971, the 2/3 rule).

*Time.* The trapezoidal rule of Crank and Nicolson for the diffusion, Heun's method for the advection N(w): with h the
step and L the Laplacian over Re,

    (1 - h L / 2) w*   = (1 + h L / 2) w + h N(w)
    (1 - h L / 2) w_1  = (1 + h L / 2) w + h (N(w) + N(w*)) / 2

of second order in h.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .fourier import velocity_from_vorticity, wave_numbers
from .simulator import Simulator

__all__ = ["NavierStokes2D", "NavierStokes2DState", "subsample", "taylor_green"]


class NavierStokes2DState(eqx.Module):
    """The vorticity on the grid, x before y, and the time."""

    vorticity: Float[Array, "*batch n n"]
    time: Float[Array, ""]


class NavierStokes2D(Simulator):
    """Incompressible flow on a square torus, in vorticity form.

    ```python
    flow = om.physics.NavierStokes2D(n=64, reynolds=1e3, dt=0.1, substeps=10)
    vorticity = om.physics.gaussian_field(jax.random.key(0), (64, 64), scale=7**3)
    trajectory = om.physics.rollout(flow, flow.initial(vorticity), steps=30)
    trajectory.observations.vorticity                                  # (30, 64, 64)
    ```

    **Arguments:**

    - `n`: the number of points on each axis, even or odd.
    - `reynolds`: the Reynolds number: one over the viscosity. Can be differentiated with respect to.
    - `dt`: the length of a step, cut into `substeps` equal ones. See `safe_dt` for what a substep may be.
    - `forcing`: what is added to the change of the vorticity, a field or a number. Its mean is left out.
    - `length`: of the period, 1 by default.

    A state may have leading axes for a batch.

    **Source:** the 2/3 rule, Orszag (1971); the setting of the initial fields and viscosities, Li et al. (2021).
    """

    reynolds: Float[Array, ""]
    forcing: Float[Array, "*field"]
    n: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    length: float = eqx.field(static=True)

    def __init__(
        self,
        n: int = 64,
        reynolds: ArrayLike = 1e3,
        dt: float = 0.1,
        *,
        substeps: int = 10,
        forcing: ArrayLike = 0.0,
        length: float = 1.0,
    ):
        if n < 4:
            raise ArgumentError("n", f"must be at least 4; it is {n}.")
        if substeps < 1:
            raise ArgumentError("substeps", f"must be at least 1; it is {substeps}.")
        for name, value in (("dt", dt), ("length", length)):
            if not value > 0:
                raise ArgumentError(name, f"must be positive; it is {value}.")
        dtype = jnp.zeros(()).dtype
        self.reynolds = jnp.asarray(reynolds, dtype)
        self.forcing = jnp.asarray(forcing, dtype)
        if self.forcing.shape not in ((), (n, n)):
            raise ArgumentError(
                "forcing", f"must be a number or have the shape ({n}, {n}); it has {self.forcing.shape}."
            )
        self.n = n
        self.dt = float(dt)
        self.substeps = substeps
        self.length = float(length)

    def initial(self, vorticity: ArrayLike) -> NavierStokes2DState:
        """The state at time 0 with the given vorticity, `(n, n)` or a batch of such; its mean is subtracted.

        Raises `ArgumentError` for another shape, or a value that is not finite (naming where).
        """
        w = jnp.asarray(vorticity, self.reynolds.dtype)
        if w.shape[-2:] != (self.n, self.n):
            raise ArgumentError("vorticity", f"must have the shape ({self.n}, {self.n}); it has {w.shape}.")
        if not is_tracer(w) and not np.isfinite(w).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(w))[0])
            raise ArgumentError("vorticity", f"is not finite at index {where}.")
        return NavierStokes2DState(w - w.mean((-2, -1), keepdims=True), jnp.zeros((), w.dtype))

    def step(self, state: NavierStokes2DState, control: PyTree = None) -> NavierStokes2DState:
        """The state `dt` later. `control`, if any, is a further forcing during the step."""
        dtype = state.vorticity.dtype
        h = jnp.asarray(self.dt / self.substeps, dtype)
        kx, ky, squared, kept = (jnp.asarray(field, dtype) for field in self._wave_numbers())
        half = h / 2 * squared / self.reynolds
        force = self.forcing if control is None else self.forcing + control
        pushed = jnp.fft.rfft2(jnp.broadcast_to(force, (self.n, self.n)).astype(dtype)).at[0, 0].set(0)
        over = kept / jnp.where(squared == 0, 1, squared)

        def rate(w: Complex[Array, "*batch n half"]) -> Complex[Array, "*batch n half"]:
            low, stream = kept * w, over * w
            u, v, w_x, w_y = jnp.fft.irfft2(
                jnp.stack([1j * ky * stream, -1j * kx * stream, 1j * kx * low, 1j * ky * low]), s=(self.n, self.n)
            )
            return pushed - kept * jnp.fft.rfft2(u * w_x + v * w_y)

        def substep(w, _):
            first = rate(w)
            old = (1 - half) * w
            guess = (old + h * first) / (1 + half)
            return (old + h / 2 * (first + rate(guess))) / (1 + half), None

        spectrum, _ = jax.lax.scan(substep, jnp.fft.rfft2(state.vorticity), length=self.substeps)
        return NavierStokes2DState(jnp.fft.irfft2(spectrum, s=(self.n, self.n)), state.time + self.dt)

    def safe_dt(self, state: NavierStokes2DState) -> Array:
        """How long a substep may be for the advection: the time in which the fastest point crosses half a cell."""
        u, v = velocity_from_vorticity(state.vorticity, length=self.length)
        speed = jnp.maximum(jnp.max(jnp.abs(u) + jnp.abs(v)), jnp.finfo(u.dtype).tiny)
        return 0.5 * self.length / self.n / speed

    def invariants(self, state: NavierStokes2DState) -> dict[str, Array]:
        """The means over the torus: of the vorticity (kept), of half the squares of velocity and vorticity (dissipated)."""
        u, v = velocity_from_vorticity(state.vorticity, length=self.length)
        over = (-2, -1)
        return {
            "vorticity": state.vorticity.mean(over),
            "energy": (u**2 + v**2).mean(over) / 2,
            "enstrophy": (state.vorticity**2).mean(over) / 2,
        }

    def _wave_numbers(self) -> tuple[np.ndarray, ...]:
        """The wave numbers of first derivatives, the squares for the Laplacian, and where the 2/3 rule keeps waves."""
        kx = wave_numbers(self.n, self.length, odd=True)[:, None]
        ky = wave_numbers(self.n, self.length, half=True, odd=True)[None]
        full_x, full_y = wave_numbers(self.n, self.length)[:, None], wave_numbers(self.n, self.length, half=True)[None]
        largest = 2 * np.pi / self.length * self.n / 3
        kept = (np.abs(full_x) < largest) & (np.abs(full_y) < largest)
        return kx, ky, full_x**2 + full_y**2, kept


def taylor_green(
    n: int, time: ArrayLike = 0.0, *, reynolds: ArrayLike = 1e3, waves: int = 1, length: float = 1.0, dtype=None
) -> Float[Array, "n n"]:
    r"""The vorticity of the vortices of Taylor and Green, an exact solution without forcing.

    \(w = 2 \kappa \sin(\kappa x) \sin(\kappa y) \exp(-2 \kappa^2 t / Re)\), \(\kappa = 2 \pi m / L\): the velocity has the
    largest component 1 at time 0, and the nonlinear term vanishes.

    **Arguments:** `n` points on each axis, the `time`, the Reynolds number, m = `waves` vortex pairs on each axis, the
    `length` of the period.
    """
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    kappa = 2 * np.pi * waves / length
    wave = np.sin(2 * np.pi * waves * np.arange(n) / n)
    decay = jnp.exp(-2 * kappa**2 * jnp.asarray(time, dtype) / jnp.asarray(reynolds, dtype))
    return jnp.asarray(2 * kappa * wave[:, None] * wave[None], dtype) * decay


def subsample(u: Float[Array, "..."], n: int, *, axes: tuple[int, ...] = (-2, -1)) -> Float[Array, "..."]:
    """The values of a periodic field at every so-manieth point, so that `n` are left on each of the axes.

    Raises `ArgumentError` if `n` does not divide the number of points there is.
    """
    for axis in axes:
        if n < 1 or u.shape[axis] % n:
            raise ArgumentError("n", f"is {n}, which does not divide the {u.shape[axis]} points of axis {axis}.")
        axis %= u.ndim
        u = u[(slice(None),) * axis + (slice(None, None, u.shape[axis] // n),)]
    return u
