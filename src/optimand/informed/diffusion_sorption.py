r"""The residual of 1-D diffusion-sorption.

$$u_t = \frac{D}{R(u)} u_{xx}, \qquad R(u) = 1 + \frac{1 - \phi}{\phi} \rho_s k n_f u^{n_f - 1},$$

on x in (0, 1), t in (0, 500] s, with u(t, 0) = 1, u + D u_x = 0 at x = 1, and u(0, x) = u_0. The right end is an outflow;
the papers' u = D u_x has the other sign, lets the field grow at the boundary, and has no solution that a fine grid
converges to. `optimand.physics.DiffusionSorption` uses the same sign as here.

Source: Takamoto et al. 2022 (PDEBench), section D.3; Chalapathi et al. 2024, section 4.1, for the constraint.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..physics.stencils import backward_derivative, first_derivative, second_derivative
from .grid import SpaceTimeGrid
from .pde import LinearTermsPDE, norm

__all__ = ["DiffusionSorption1D"]

_FLOOR = 1e-6  # keeps R finite where there is no solute


class DiffusionSorption1D(LinearTermsPDE):
    """The diffusion-sorption residual, its initial condition and its boundary rows.

    Data of a sample: the initial concentration, a number or an array over x. `(nt, nx)` fields.

    **Arguments:**

    - `nt`, `nx`, `t_end`: a uniform grid of points on [0, t_end] x [0, 1]; or `t`, `x`: any increasing coordinates.
    - `stencil`: "paper", second-order central with the second derivative as the derivative of the derivative, one-sided
      at the ends, residual rows everywhere; "compact", the three-point second derivative and backward Euler in time,
      residual rows inside and from t_1 on.
    - `skip_initial`: no residual rows before the time with this number. They are what ties the field to its initial
      condition: without them only the basis does.
    - `skip_corner`: (times, points): no residual rows at fewer than so many times from t = 0 and points from x = 0. The
      initial and the boundary condition contradict each other in that corner, and differences across a jump are no
      derivatives: there the residual of an exact solution is many times what it is on all the other points together.
    - `ic_scale`: "relative" divides the initial-condition rows by u_0, "absolute" does not.
    - `pde_weight`, `ic_weight`, `bc_weight`: of the rows of each kind.
    - `diffusion`, `porosity`, `density`, `freundlich_k`, `freundlich_n`: D, phi, rho_s, k, n_f.

    Boundary rows start at t_1: at t = 0 they contradict the initial condition.
    """

    grid: SpaceTimeGrid
    stencil: str = eqx.field(static=True)
    skip_initial: int = eqx.field(static=True)
    skip_corner: tuple[int, int] = eqx.field(static=True)
    ic_scale: str = eqx.field(static=True)
    pde_weight: float = eqx.field(static=True)
    ic_weight: float = eqx.field(static=True)
    bc_weight: float = eqx.field(static=True)
    diffusion: float = eqx.field(static=True)
    porosity: float = eqx.field(static=True)
    density: float = eqx.field(static=True)
    freundlich_k: float = eqx.field(static=True)
    freundlich_n: float = eqx.field(static=True)

    start: ClassVar[float] = 1.0
    reference: ClassVar[str] = "takamoto2022pdebench"

    def __init__(
        self,
        nx: int = 128,
        nt: int = 101,
        t_end: float = 500.0,
        *,
        t=None,
        x=None,
        stencil: str = "paper",
        skip_initial: int = 0,
        skip_corner: tuple[int, int] = (0, 0),
        ic_scale: str = "relative",
        pde_weight: float = 1.0,
        ic_weight: float = 1.0,
        bc_weight: float = 1.0,
        diffusion: float = 5e-4,
        porosity: float = 0.29,
        density: float = 2880.0,
        freundlich_k: float = 3.5e-4,
        freundlich_n: float = 0.874,
    ):
        self.grid = SpaceTimeGrid(
            np.linspace(0.0, t_end, nt) if t is None else t, np.linspace(0.0, 1.0, nx) if x is None else x
        )
        for name, chosen, valid in (
            ("stencil", stencil, ("paper", "compact")),
            ("ic_scale", ic_scale, ("relative", "absolute")),
        ):
            if chosen not in valid:
                raise ArgumentError(name, f"must be one of {', '.join(valid)}, not {chosen!r}.")
        if isinstance(skip_initial, bool) or not 0 <= skip_initial < self.grid.shape[0] - 1:
            raise ArgumentError(
                "skip_initial", f"must lie between 0 and {self.grid.shape[0] - 2}, not {skip_initial!r}."
            )
        corner = tuple(skip_corner)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in corner)
        if len(corner) != 2 or not whole or not all(0 <= n < size for n, size in zip(corner, self.grid.shape, strict=True)):
            raise ArgumentError(
                "skip_corner", f"must be two numbers of grid points, less than {self.grid.shape}, not {skip_corner!r}."
            )
        positive = {
            "diffusion": diffusion,
            "density": density,
            "freundlich_k": freundlich_k,
            "freundlich_n": freundlich_n,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ArgumentError(name, f"must be positive, not {value!r}.")
        if not 0 < porosity < 1:
            raise ArgumentError("porosity", f"must lie between 0 and 1, not {porosity!r}.")
        for name, value in (("pde_weight", pde_weight), ("ic_weight", ic_weight), ("bc_weight", bc_weight)):
            if not value >= 0:
                raise ArgumentError(name, f"must not be negative, not {value!r}.")
        self.stencil, self.skip_initial, self.skip_corner, self.ic_scale = stencil, skip_initial, corner, ic_scale
        self.pde_weight, self.ic_weight, self.bc_weight = float(pde_weight), float(ic_weight), float(bc_weight)
        self.diffusion, self.porosity, self.density = float(diffusion), float(porosity), float(density)
        self.freundlich_k, self.freundlich_n = float(freundlich_k), float(freundlich_n)

    def retardation(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """R(u); constant where u <= 0, with a finite derivative everywhere."""
        strength = (1 - self.porosity) / self.porosity * self.density * self.freundlich_k * self.freundlich_n
        present = jnp.where(u > 0, u, 0.0)  # first: the power below must never see a negative number
        return 1 + strength * (present + _FLOOR) ** (self.freundlich_n - 1)

    def terms(self, b: Float[Array, "..."], grid: SpaceTimeGrid) -> dict[str, Array]:
        t, x = grid.axis(0), grid.axis(1)
        if self.stencil == "paper":
            along_x = lambda values: first_derivative(values, x, axis=1, ends=1)
            return {"u": b, "u_t": first_derivative(b, t, axis=0, ends=1), "u_xx": along_x(along_x(b))}
        return {"u": b, "u_t": backward_derivative(b, t, axis=0), "u_xx": second_derivative(b, x, axis=1)}

    def pointwise(self, q: dict[str, Array], x: Array, params: PyTree) -> Array:
        return self.pde_weight * (q["u_t"] - self.diffusion / self.retardation(q["u"]) * q["u_xx"])

    def mask(self) -> np.ndarray:
        mask = np.ones(self.grid.shape, bool)
        mask[: self.skip_initial] = False
        mask[: self.skip_corner[0], : self.skip_corner[1]] = False
        if self.stencil == "compact":
            mask[0] = mask[:, 0] = mask[:, -1] = False
        return mask

    def _outflow(self, b):
        """u + D u_x at x = 1 from t_1 on, with a one-sided derivative."""
        gap = float(np.diff(self.grid.axis(1))[-1])
        return b[1:, -1] + self.diffusion * (b[1:, -1] - b[1:, -2]) / gap

    def _initial(self, data, dtype):
        return jnp.broadcast_to(jnp.asarray(data, dtype), self.grid.shape[1:])

    def rows(self, b: Float[Array, "..."], data: PyTree) -> tuple[Array, Array, Array]:
        initial = self._initial(data, b.dtype)
        scale = 1 / jnp.abs(initial) if self.ic_scale == "relative" else jnp.ones_like(initial)
        later = len(self.grid.axes[0]) - 1
        matrix = jnp.concatenate([b[0], b[1:, 0], self._outflow(b)])
        target = jnp.concatenate([initial, jnp.ones(later, b.dtype), jnp.zeros(later, b.dtype)])
        weight = jnp.concatenate([self.ic_weight * scale, jnp.full(2 * later, self.bc_weight, b.dtype)])
        return matrix, target, weight

    def penalties(self, field: Float[Array, "..."], data: PyTree) -> dict[str, Array]:
        initial = self._initial(data, field.dtype)
        scale = norm(initial) if self.ic_scale == "relative" else 1.0
        return {
            "initial": self.ic_weight * norm(field[0] - initial) / scale,
            "left": self.bc_weight * norm(field[1:, 0] - 1.0),
            "right": self.bc_weight * norm(self._outflow(field)),
        }

    def check(self, data: PyTree) -> None:
        super().check(data)
        initial = np.asarray(data)
        if initial.shape not in ((), self.grid.shape[1:]):
            raise ArgumentError(
                "inputs", f"needs one number or {self.grid.shape[1:]} values over x, not shape {initial.shape}."
            )
        if self.ic_scale == "relative" and np.any(initial == 0):
            raise ArgumentError(
                "inputs", "holds u0 = 0, and the initial-condition rows are divided by u0.", 'Use ic_scale="absolute".'
            )

    def sample_inputs(self, key: Array, number: int) -> Float[Array, " samples"]:
        """Initial concentrations, uniform on (0, 0.2), as in PDEBench."""
        return jax.random.uniform(key, (number,), minval=1e-3, maxval=0.2)
