r"""The heat equation on a square, with a diffusion that changes in time and a source that runs in a circle.

$$u_t = \kappa(t) \Delta u + f(t, x), \quad x \in (0, 1)^2, \qquad u = 0 \text{ on the boundary}, \qquad
  u(0, x) = \beta\!\left(4 (x - (\tfrac12, \tfrac12))\right),$$

$$\kappa(t) = \max(0.1 \sin 2 \pi t, -10 \sin 2 \pi t), \qquad
  f(t, x) = 32\, \beta\!\left(8 (x - (\tfrac12 + \tfrac14 \cos 16 \pi t, \tfrac12 + \tfrac14 \sin 16 \pi t))\right),
  \qquad \beta(r) = e^{1 - 1 / (1 - |r|^2)}, \; |r| < 1,$$

the problem of Khodak, Chow, Balcan and Talwalkar (2024), section 4. Space is discretised by five-point differences, time by the method of Crank and
Nicolson (1947) with the coefficients in the middle of the step:

$$\left(I - \tfrac{\Delta t}{2} \kappa_{t + \Delta t / 2} \Delta_h\right) u_{t + \Delta t}
  = \left(I + \tfrac{\Delta t}{2} \kappa_{t + \Delta t / 2} \Delta_h\right) u_t + \Delta t\, f_{t + \Delta t / 2}.$$

Each step is a linear system, whose condition number follows the diffusion. What is known before, its context, is \(\kappa(t)\) at the begin of the step.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from ..linear import CG, SparseOperator
from .laplacian import LinearStep, dirichlet_laplacian, with_shift
from .simulator import Simulator

__all__ = ["HeatCrankNicolson", "HeatState", "bump"]


def bump(square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """exp(1 - 1 / (1 - r^2)) of r^2, and 0 from 1 on: smooth, with all derivatives."""
    inside = square < 1
    return jnp.where(inside, jnp.exp(1 - 1 / (1 - jnp.where(inside, square, 0))), 0)


class HeatState(eqx.Module):
    """The field at the points inside, and the steps that were taken."""

    u: Float[Array, " n"]
    steps: Int[Array, ""]


class HeatCrankNicolson(Simulator):
    """The heat equation on a square as a sequence of linear systems.

    A rollout solves them by itself; to solve them otherwise, `system` gives each one:

    ```python
    heat = om.physics.HeatCrankNicolson(10)
    u = heat.initial().u
    for step in range(3):
        operator, b, diffusion = heat.system(step, u)
        u = om.solve(om.Linear(operator, b), om.smooth.LinearSolve(om.linear.CG(1e-5)), u).value
    ```

    **Arguments:**

    - `cells`: in each direction; the unknowns are the values at the (cells - 1)^2 points inside.
    - `dt`: the length of a step.
    - `weak`, `strong`: the diffusion is the larger of `weak` sin(2 pi t) and -`strong` sin(2 pi t).
    - `source`: the height of the source. These three can be differentiated with respect to.
    - `solver`: for `step`: a lineax solver; conjugate gradients by default, to 1e-10 in double and 1e-5 in single precision.

    **Raises:** `ArgumentError` for a number out of its range.
    """

    weak: Float[Array, ""]
    strong: Float[Array, ""]
    source: Float[Array, ""]
    laplacian: SparseOperator
    solver: lx.AbstractLinearSolver
    cells: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        cells: int = 50,
        dt: float = 1e-3,
        *,
        weak: ArrayLike = 0.1,
        strong: ArrayLike = 10.0,
        source: ArrayLike = 32.0,
        solver: lx.AbstractLinearSolver | None = None,
    ):
        if not isinstance(cells, int) or cells < 2:
            raise ArgumentError("cells", f"must be a whole number of at least 2, not {cells!r}.")
        if not 0 < dt < np.inf:
            raise ArgumentError("dt", f"must be positive; it is {dt}.")
        for name, value in (("weak", weak), ("strong", strong)):
            if not is_tracer(value) and not 0 <= np.asarray(value) < np.inf:
                raise ArgumentError(name, f"must be a finite number that is not negative, not {value}.")
        dtype = jnp.zeros(()).dtype
        self.weak, self.strong, self.source = (jnp.asarray(value, dtype) for value in (weak, strong, source))
        self.laplacian = dirichlet_laplacian(cells - 1)
        self.solver = CG(1e-10 if dtype == jnp.float64 else 1e-5) if solver is None else solver
        self.cells, self.dt = cells, float(dt)

    @property
    def points(self) -> np.ndarray:
        """The coordinates of the unknowns, (n, 2)."""
        line = np.arange(1, self.cells) / self.cells
        return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)

    @property
    def context_bounds(self) -> tuple[float, float]:
        """Between which the diffusion lies; outside of `jit`."""
        return 0.0, float(jnp.maximum(self.weak, self.strong))

    def initial(self) -> HeatState:
        """The state at time 0."""
        return HeatState(self._bump((0.5, 0.5), 0.25), jnp.int32(0))

    def diffusion(self, time: ArrayLike) -> Float[Array, ""]:
        """kappa(t)."""
        wave = jnp.sin(2 * jnp.pi * jnp.asarray(time, self.weak.dtype))
        return jnp.maximum(self.weak * wave, -self.strong * wave)

    def forcing(self, time: ArrayLike) -> Float[Array, " n"]:
        """f(t, x) at the points."""
        angle = 16 * jnp.pi * jnp.asarray(time, self.weak.dtype)
        return self.source * self._bump((0.5 + jnp.cos(angle) / 4, 0.5 + jnp.sin(angle) / 4), 0.125)

    def system(self, step: Any, previous: Float[Array, " n"]) -> LinearStep:
        """The system of step number `step`, counted from zero, which may be traced; `previous` is the field before it.

        All systems have one pattern. The context is the diffusion at the begin of the step.
        """
        begin = jnp.asarray(step, self.weak.dtype) * self.dt
        middle = begin + self.dt / 2
        half = 0.5 * self.dt * self.diffusion(middle) * self.cells**2
        operator = with_shift(self.laplacian, half, 1)
        b = previous - half * self.laplacian.mv(previous) + self.dt * self.forcing(middle)
        return LinearStep(operator, b, self.diffusion(begin))

    def step(self, state: HeatState, control: PyTree = None) -> HeatState:
        """The state `dt` later."""
        operator, b, _ = self.system(state.steps, state.u)
        u = lx.linear_solve(operator, b, self.solver, options={"y0": jax.lax.stop_gradient(state.u)}).value
        return HeatState(u, state.steps + 1)

    def _bump(self, centre: tuple[Any, Any], radius: float) -> Array:
        x = jnp.asarray(self.points, self.weak.dtype)
        return bump(((x[:, 0] - centre[0]) ** 2 + (x[:, 1] - centre[1]) ** 2) / radius**2)
