r"""Diffusion of a solute that sorbs to the soil it moves through, in one dimension.

    u_t = D / R(u) u_xx,     0 < x < 1,        R(u) = 1 + (1 - phi) / phi rho_s k n u^(n - 1)
    u(0, t) = 1,             u(1, t) = -D u_x(1, t),             u(x, 0) = u_0(x)

the problem of PDEBench (Takamoto et al., 2022), with its parameters: t up to 500 s, D = 5e-4, phi = 0.29, rho_s = 2880,
k = 3.5e-4, n = 0.874.

*The sign at the right end.* The condition is often printed as u = D u_x. That feeds what flows in with what is there: on
a grid of cells of width h the value at the wall is -u_N (2D/h) / (1 - 2D/h), which is negative, and infinite as h comes
to 2D. Here it is the outflow u = -D u_x, for which that factor is (2D/h) / (1 + 2D/h): well-posed on all grids, and what
PDEBench's own program computes.

*The singularity.* R is infinite at u = 0, so that R is taken at max(u, 0) + 1e-6.

*Method.* Finite volumes in space, of second order: n equal cells, the boundary conditions at the outer faces. In time
the L-stable diagonally implicit Runge-Kutta method of Alexander (1977) of three stages and third order. Each stage is a
nonlinear system with a tridiagonal Jacobian, solved by Newton's method; its derivative is the implicit one, from the
Jacobian at the answer. The jump between u_0 and 1 at the left end makes a layer as thick as the square root of time, so
steps grow with time: from very small ones in the first period to a few equal ones in each of the late periods.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .simulator import Simulator

__all__ = ["DiffusionSorption", "DiffusionSorptionState", "retardation"]

# Alexander's method: gamma is the root of x^3 - 3 x^2 + 3/2 x - 1/6 between 1/6 and 1/2.
GAMMA = 0.4358665215084589994160194
STAGES = (  # what each stage takes of the rates of those before it; of its own rate it takes gamma
    (0.0, 0.0, 0.0),
    ((1 - GAMMA) / 2, 0.0, 0.0),
    (-(6 * GAMMA**2 - 16 * GAMMA + 1) / 4, (6 * GAMMA**2 - 20 * GAMMA + 5) / 4, 0.0),
)
FLOOR = 1e-6


def retardation(
    u: Float[Array, "*shape"], porosity: ArrayLike, density: ArrayLike, sorption: ArrayLike, exponent: ArrayLike
) -> Float[Array, "*shape"]:
    """The retardation factor R(u) = 1 + (1 - phi)/phi rho_s k n (max(u, 0) + 1e-6)^(n - 1); constant where u <= 0."""
    above = jnp.where(u > 0, u, 0)  # the power of a negative number is never taken, so its derivative is finite too
    power = jnp.where(u > 0, (above + FLOOR) ** (exponent - 1), FLOOR ** (exponent - 1))
    return 1 + jnp.asarray((1 - porosity) / porosity * density * sorption * exponent) * power


class DiffusionSorptionState(eqx.Module):
    """The concentration in each cell, and the time in seconds."""

    u: Float[Array, " cells"]
    time: Float[Array, ""]


class DiffusionSorption(Simulator):
    """Diffusion with sorption in one dimension, as in PDEBench.

    ```python
    soil = om.physics.DiffusionSorption()
    trajectory = om.physics.rollout(soil, soil.initial(0.1), steps=100)
    trajectory.observations.u                                          # (100, 256): at 5, 10, ..., 500 s
    ```

    **Arguments:**

    - `cells`: how many; `dt`: the length of a step in seconds.
    - `substeps`: the Runge-Kutta steps in each `dt`; in the first there are `first_substeps`, which grow, and in the next
      `early_substeps`, as long as the others would be longer than that part of the time.
    - `diffusion`, `porosity`, `density`, `sorption`, `exponent`: D, phi, rho_s, k and n; `left`: u at the left end. All can
      be differentiated with respect to.

    With the defaults and double precision the error in time is below 1e-6 of the largest value. In single precision
    rounding adds as much again at most.

    **Source:** Takamoto et al. (2022); the time stepping, Alexander (1977), theorem 5.
    """

    diffusion: Float[Array, ""]
    porosity: Float[Array, ""]
    density: Float[Array, ""]
    sorption: Float[Array, ""]
    exponent: Float[Array, ""]
    left: Float[Array, ""]
    dt: float = eqx.field(static=True)
    cells: int = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    early_substeps: int = eqx.field(static=True)
    first_substeps: int = eqx.field(static=True)

    def __init__(
        self,
        cells: int = 256,
        dt: float = 5.0,
        *,
        substeps: int = 3,
        early_substeps: int = 24,
        first_substeps: int = 120,
        diffusion: ArrayLike = 5e-4,
        porosity: ArrayLike = 0.29,
        density: ArrayLike = 2880.0,
        sorption: ArrayLike = 3.5e-4,
        exponent: ArrayLike = 0.874,
        left: ArrayLike = 1.0,
    ):
        for name, value, least in (
            ("cells", cells, 3),
            ("substeps", substeps, 1),
            ("early_substeps", early_substeps, 1),
            ("first_substeps", first_substeps, 1),
        ):
            if value < least:
                raise ArgumentError(name, f"must be at least {least}; it is {value}.")
        if not dt > 0:
            raise ArgumentError("dt", f"must be positive; it is {dt}.")
        dtype = jnp.zeros(()).dtype
        self.diffusion = jnp.asarray(diffusion, dtype)
        self.porosity = jnp.asarray(porosity, dtype)
        self.density = jnp.asarray(density, dtype)
        self.sorption = jnp.asarray(sorption, dtype)
        self.exponent = jnp.asarray(exponent, dtype)
        self.left = jnp.asarray(left, dtype)
        self.dt = float(dt)
        self.cells = cells
        self.substeps = substeps
        self.early_substeps = early_substeps
        self.first_substeps = first_substeps

    @property
    def x(self) -> np.ndarray:
        """The centres of the cells."""
        return (np.arange(self.cells) + 0.5) / self.cells

    def initial(self, u: ArrayLike) -> DiffusionSorptionState:
        """The state at time 0.

        `u` is one number for all cells or one for each. Raises `ArgumentError` if it has another shape or is not finite.
        """
        u = jnp.asarray(u, self.diffusion.dtype)
        if u.shape not in ((), (self.cells,)):
            raise ArgumentError("u", f"must be a number or have the shape ({self.cells},); it has {u.shape}.")
        if not is_tracer(u) and not np.isfinite(u).all():
            where = "" if u.ndim == 0 else f" at index {int(np.argmin(np.isfinite(u)))}"
            raise ArgumentError("u", f"is not finite{where}.")
        return DiffusionSorptionState(jnp.broadcast_to(u, (self.cells,)), jnp.zeros((), u.dtype))

    def step(self, state: DiffusionSorptionState, control: PyTree = None) -> DiffusionSorptionState:
        """The state `dt` seconds later."""

        def advance(fractions: np.ndarray):
            sizes = jnp.asarray(np.diff(fractions) * self.dt, state.u.dtype)
            return lambda u: jax.lax.scan(lambda u, size: (self._runge_kutta(u, size), None), u, sizes)[0]

        branches = [
            advance(np.linspace(0, 1, self.first_substeps + 1) ** 4),
            advance(np.linspace(0, 1, self.early_substeps + 1)),
            advance(np.linspace(0, 1, self.substeps + 1)),
        ]
        # Early ends where a step of dt / substeps is no longer a larger part of the time than the first early one was.
        period = jnp.round(state.time / self.dt)
        age = (period > 0) * 1 + (period >= self.early_substeps / self.substeps)
        return DiffusionSorptionState(jax.lax.switch(age, branches, state.u), state.time + self.dt)

    def invariants(self, state: DiffusionSorptionState) -> dict[str, Array]:
        """`mass`: dissolved and sorbed, per area. It changes by what flows through the ends only."""
        return {"mass": jnp.mean(self.stored(state.u))}

    def stored(self, u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The integral of R from 0 to u: what a cell holds at the concentration u >= 0, dissolved and sorbed."""
        capacity = (1 - self.porosity) / self.porosity * self.density * self.sorption
        return u + capacity * ((jnp.maximum(u, 0) + FLOOR) ** self.exponent - FLOOR**self.exponent)

    def inflow(self, u: Float[Array, " cells"]) -> Float[Array, ""]:
        """The rate at which the mass grows, by the fluxes through both ends."""
        below, _, above, source = self._stencil()
        h = 1 / self.cells
        through_left = source[0] - below[0] * u[0]
        return self.diffusion * h * (through_left - above[-1] * u[-1])

    def profile(self, u: Float[Array, " cells"], x: ArrayLike) -> Float[Array, " points"]:
        """The concentration at the points `x` of [0, 1], linear between centres and faces, where the conditions hold."""
        wall = 2 * self.diffusion * self.cells
        ends = jnp.stack([jnp.asarray(self.left, u.dtype), u[-1] * wall / (1 + wall)])
        values = jnp.concatenate([ends[:1], u, ends[1:]])
        return jnp.interp(jnp.asarray(x, u.dtype), jnp.concatenate([np.zeros(1), self.x, np.ones(1)]), values)

    def _stencil(self) -> tuple[Array, Array, Array, Array]:
        """The second difference: below, diagonal, above, and what the left end adds. Their ends hold the conditions.

        At the left face u = left, half a cell away. At the right u_f = -D (u_f - u_N) / (h / 2).
        """
        n = self.cells
        ones = jnp.full(n, float(n) ** 2, self.diffusion.dtype)
        wall = 2 * self.diffusion * n
        below = ones.at[0].multiply(2)  # the coefficient of the left end's value, not of a cell's
        above = ones.at[-1].multiply(2 / (1 + wall))  # what leaves through the right face
        source = jnp.zeros(n, ones.dtype).at[0].set(2 * float(n) ** 2 * self.left)
        return below, -(below + above), above, source

    def _rate_and_jacobian(self, u: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        """du/dt, and its tridiagonal Jacobian."""
        below, diagonal, above, source = self._stencil()
        no = jnp.zeros(1, u.dtype)
        lower, upper = below.at[0].set(0), above.at[-1].set(0)
        curvature = diagonal * u + lower * jnp.concatenate([no, u[:-1]]) + upper * jnp.concatenate([u[1:], no]) + source

        def mobility(u):
            return self.diffusion / retardation(u, self.porosity, self.density, self.sorption, self.exponent)

        m, slope = jax.jvp(mobility, (u,), (jnp.ones_like(u),))
        return m * curvature, (m * lower, m * diagonal + slope * curvature, m * upper)

    def _runge_kutta(self, u: Array, size: Array) -> Array:
        """One step of Alexander's method; its last stage is the answer (it is stiffly accurate)."""

        def stage(carry, row):
            guess, rates = carry
            index, weights = row
            known = u + size * weights @ rates
            z = self._solve_stage(known, size * GAMMA, guess)
            return (z, rates.at[index].set((z - known) / (size * GAMMA))), None

        rows = (np.arange(3), jnp.asarray(STAGES, u.dtype))
        (u_end, _), _ = jax.lax.scan(stage, (u, jnp.zeros((3, *u.shape), u.dtype)), rows)
        return u_end

    def _solve_stage(self, known: Array, size: Array, guess: Array) -> Array:
        """The z with z = known + size f(z).

        Newton's method finds it outside of differentiation. One more Newton step with a constant Jacobian then changes
        the value no more, and has the derivative that the implicit function theorem gives; a second one has the second
        derivative too, which the Hessian of a misfit needs.
        """
        tolerance = 1e-11 if known.dtype == jnp.float64 else 3e-6

        def newton(self, z, known, size):
            rate, (lower, diagonal, upper) = self._rate_and_jacobian(z)
            residual = z - known - size * rate
            bands = jax.lax.stop_gradient((-size * lower, 1 - size * diagonal, -size * upper))
            return z - jax.lax.linalg.tridiagonal_solve(*bands, residual[:, None])[:, 0]

        def go_on(carry):
            _, change, count = carry
            return (change > tolerance) & (count < 30)

        def iterate(carry):
            z, _, count = carry
            new = newton(frozen, z, *constants)
            return new, jnp.max(jnp.abs(new - z)), count + 1

        frozen, *constants = jax.lax.stop_gradient((self, known, size))
        start = (jax.lax.stop_gradient(guess), jnp.asarray(jnp.inf, known.dtype), 0)
        z, change, _ = jax.lax.while_loop(go_on, iterate, start)
        z = jnp.where(change <= 1e3 * tolerance, z, jnp.nan)  # a stage without an answer must not pass for one
        return newton(self, newton(self, jax.lax.stop_gradient(z), known, size), known, size)
