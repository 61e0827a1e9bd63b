r"""Smoke that rises past obstacles, in two or three dimensions.

    v_t + v . grad v = -grad p + g s,    div v = 0,        s_t + v . grad s = source

for the velocity v and the density s of the smoke, which is lifted along the last axis by g s. No viscosity but that of the scheme. Densities and pressures are in the
centres of square cells, components of the velocity on the faces across their axis (Harlow and Welch 1965). A step of length dt:

1. *Advection*: what is at x comes from where it was dt before, found by the midpoint rule and interpolated linearly (Stam 1999).
2. *Forces*: the lift, and the control.
3. *Projection*: faces of solid cells get the velocity of the solid. In fluid cells \(A q = -h \operatorname{div} v\), A that of `PoissonGrid`; minus the differences of q
   makes the divergence zero, and \(p = q h / dt\).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from ..linear import CG
from .obstacles import ball_mask, need_grid
from .poisson_grid import PoissonGrid
from .simulator import Simulator

__all__ = ["Smoke", "SmokeState", "smoke_systems"]

Velocity = tuple[Array, ...]


class SmokeState(eqx.Module):
    """The velocity, a component for each axis on the faces across it (one more than there are cells), the density and q of the pressure in the cells, and the time."""

    velocity: Velocity
    density: Array
    pressure: Array
    time: Float[Array, ""]


class Smoke(Simulator):
    """Buoyant smoke on a staggered grid, its pressure by any lineax solver.

    ```python
    obstacle = om.physics.ball_mask((32, 32), 0.15)
    source = om.physics.ball_mask((32, 32), 0.1, jnp.array([0.5, 0.15]))
    smoke = om.physics.Smoke((32, 32), solid=obstacle, source=source)
    trajectory = om.physics.rollout(smoke, smoke.initial(), steps=20, every=5)
    trajectory.observations.density                                    # (4, 32, 32)
    ```

    **Arguments:**

    - `shape`: cells along each axis, two or three; the first axis has the length 1, and the last one points upwards.
    - `solid`: where obstacles are: a mask, or a function of the time that gives one. What may be traced is the time.
    - `motion`: the velocity of moving obstacles, a function of the time and of points `(*points, axes)` with a vector for each; at rest by default.
    - `source`: the density that is added in unit time, a field or a number.
    - `buoyancy`: g. Both can be differentiated with respect to.
    - `dt`: the length of a step. The scheme is stable for any; accurate where smoke moves by a few cells in a step.
    - `boundary`: what is outside of the box, as for `PoissonGrid`: `"air"`, into which smoke leaves, or `"solid"`.
    - `solver`: a lineax solver; conjugate gradients by default, to 1e-10 in double and 1e-5 in single precision.
    - `form`: the form in which it is given the system: `"grid"`, the `PoissonGrid`; `"stencil"`, as `Multigrid` needs it; or `"sparse"`, as `SparseLU` and `IncompleteLU` do.
      The last two are singular like the first where a part of the fluid is enclosed.

    Smoke that comes from within an obstacle is nothing: interpolation loses mass there, and, of the order of the cells, elsewhere.

    **Raises:** `ArgumentError` for a number out of its range, a field of another shape, and an unknown name.

    **Source:** Stam (1999); Bridson (2015), chapters 2 to 6.
    """

    reference: ClassVar[str] = "stam1999stable"

    buoyancy: Float[Array, ""]
    source: Float[Array, "*field"]
    solid: PoissonGrid | Callable
    motion: Callable | None
    solver: lx.AbstractLinearSolver
    shape: tuple[int, ...] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    boundary: str = eqx.field(static=True)
    form: str = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        solid: Any = None,
        *,
        motion: Callable | None = None,
        source: Any = 0.0,
        buoyancy: Any = 1.0,
        dt: float = 0.05,
        boundary: str = "air",
        solver: lx.AbstractLinearSolver | None = None,
        form: str = "grid",
    ):
        self.shape = need_grid(shape)
        dtype = jnp.zeros(()).dtype
        self.boundary, self.motion = boundary, motion
        fixed = PoissonGrid(self.shape, None if callable(solid) else solid, None, boundary)  # checks the boundary as well
        self.solid = solid if callable(solid) else fixed
        if not 0 < dt < np.inf:
            raise ArgumentError("dt", f"must be positive; it is {dt}.")
        if form not in ("grid", "stencil", "sparse"):
            raise ArgumentError("form", f"must be 'grid', 'stencil' or 'sparse', not {form!r}.")
        self.source, self.buoyancy = jnp.asarray(source, dtype), jnp.asarray(buoyancy, dtype)
        if self.source.shape not in ((), self.shape):
            raise ArgumentError("source", f"must be a number or have the shape {self.shape}; it has {self.source.shape}.")
        if self.buoyancy.shape:
            raise ArgumentError("buoyancy", f"must be a number, not of shape {self.buoyancy.shape}.")
        self.dt, self.form = float(dt), form
        self.solver = CG(1e-10 if dtype == jnp.float64 else 1e-5) if solver is None else solver

    @property
    def h(self) -> float:
        """The side of a cell."""
        return 1 / self.shape[0]

    def grid(self, time: Any = 0.0) -> PoissonGrid:
        """The operator of the pressure at this time."""
        return self.solid if isinstance(self.solid, PoissonGrid) else PoissonGrid(self.shape, self.solid(time), None, self.boundary)

    def initial(self, density: Any = 0.0, velocity: Velocity | None = None) -> SmokeState:
        """The state at time 0: of that density, zero in solid cells, and of the velocity, at rest by default, after a projection.

        Raises `ArgumentError` for another shape, or a value that is not finite (naming where).
        """
        time = jnp.zeros((), self.buoyancy.dtype)
        grid = self.grid(time)
        density = jnp.where(grid.fluid, self._field("density", density, self.shape), 0)
        parts = [0.0] * len(self.shape) if velocity is None else list(velocity)
        if len(parts) != len(self.shape):
            raise ArgumentError("velocity", f"must have {len(self.shape)} components, not {len(parts)}.")
        faces = tuple(self._field(f"velocity[{axis}]", part, self._faces(axis)) for axis, part in enumerate(parts))
        nothing = jnp.zeros(self.shape, time.dtype)
        if velocity is None and self.motion is None:
            return SmokeState(faces, density, nothing, time)
        faces, pressure = self._projected(self._walled(faces, grid, time), grid, nothing)
        return SmokeState(faces, density, pressure, time)

    def step(self, state: SmokeState, control: PyTree = None) -> SmokeState:
        """The state `dt` later. `control`, if any, is a further acceleration: `(axes,)`, or a component for each axis on its faces."""
        velocity, density, grid, time = self._before_projection(state, control)
        velocity, pressure = self._projected(velocity, grid, jax.lax.stop_gradient(state.pressure))
        return SmokeState(velocity, density, pressure, time)

    def system(self, state: SmokeState, control: PyTree = None) -> tuple[PoissonGrid, Float[Array, " n"]]:
        """The system that the step from this state solves for the pressure."""
        velocity, _, grid, _ = self._before_projection(state, control)
        return grid, self._right_hand_side(velocity, grid)

    def divergence(self, state: SmokeState) -> Array:
        """What flows out of each fluid cell, by its volume."""
        return jnp.where(self.grid(state.time).fluid, _outflow(state.velocity), 0) / self.h

    def invariants(self, state: SmokeState) -> dict[str, Array]:
        """The mass of the smoke, the kinetic energy, and the largest modulus of the divergence, which is zero."""
        cell = self.h ** len(self.shape)
        energy = sum(jnp.sum(part**2) for part in state.velocity) * cell / 2
        return {"mass": jnp.sum(state.density) * cell, "energy": jnp.asarray(energy), "divergence": jnp.max(jnp.abs(self.divergence(state)))}

    # A step.

    def _before_projection(self, state: SmokeState, control: PyTree) -> tuple[Velocity, Array, PoissonGrid, Array]:
        time = state.time + self.dt
        grid = self.grid(time)
        centre = (0.5,) * len(self.shape)
        carried = self._advected(state.density, centre, state.velocity) + self.dt * self.source
        density = jnp.where(grid.fluid, carried, 0)
        faces = [self._advected(part, self._offset(axis), state.velocity) for axis, part in enumerate(state.velocity)]
        up = len(self.shape) - 1
        faces[up] = faces[up] + self.dt * self.buoyancy * _on_faces(density, up)
        if control is not None:
            faces = [part + self.dt * control[axis] for axis, part in enumerate(faces)]
        return self._walled(tuple(faces), grid, time), density, grid, time

    def _advected(self, field: Array, offset: tuple[float, ...], velocity: Velocity) -> Array:
        """The field, whose first value is at `offset` h, after dt."""
        points = self._points(field.shape, offset)
        half = points - self.dt / 2 * self._velocity_at(velocity, points)
        return self._sampled(field, offset, points - self.dt * self._velocity_at(velocity, half))

    def _velocity_at(self, velocity: Velocity, points: Array) -> Array:
        return jnp.stack([self._sampled(part, self._offset(axis), points) for axis, part in enumerate(velocity)], -1)

    def _sampled(self, field: Array, offset: tuple[float, ...], points: Array) -> Array:
        """Linear interpolation; beyond the outermost values the nearest one."""
        places = [points[..., axis] / self.h - start for axis, start in enumerate(offset)]
        return map_coordinates(field, places, order=1, mode="nearest")

    def _walled(self, velocity: Velocity, grid: PoissonGrid, time: Array) -> Velocity:
        """With the velocity of the solid on its faces; walls of the box are at rest."""
        walled = []
        for axis, part in enumerate(velocity):
            at = lambda where, axis=axis: tuple(where if i == axis else slice(None) for i in range(len(self.shape)))
            touched = _on_either_side(grid.solid, axis)
            moving = jnp.zeros_like(part)
            if self.motion is not None:
                moving = self.motion(time, self._points(part.shape, self._offset(axis)))[..., axis].astype(part.dtype)
            part = jnp.where(touched, moving, part)
            if self.boundary == "solid":
                part = part.at[at(0)].set(0).at[at(-1)].set(0)
            walled.append(part)
        return tuple(walled)

    def _right_hand_side(self, velocity: Velocity, grid: PoissonGrid) -> Array:
        b = -jnp.where(grid.fluid, _outflow(velocity), 0).ravel()
        return grid.without_mean(b) if grid.enclosed_parts else b

    def _projected(self, velocity: Velocity, grid: PoissonGrid, guess: Array) -> tuple[Velocity, Array]:
        """Without divergence, and q."""
        b = self._right_hand_side(velocity, grid)
        if self.form == "stencil":
            answer = lx.linear_solve(grid.to_stencil(), grid.field(b), self.solver, options={"y0": guess})
        else:
            operator = grid if self.form == "grid" else grid.to_sparse()
            answer = lx.linear_solve(operator, b, self.solver, options={"y0": guess.ravel()})
        q = jnp.where(grid.fluid, grid.field(answer.value.ravel()), 0)
        moved = []
        for axis, part in enumerate(velocity):
            blocked = _on_either_side(grid.solid, axis)
            if self.boundary == "solid":
                blocked = blocked | _outermost(part.shape, axis)
            around = jnp.pad(q, [(1, 1) if i == axis else (0, 0) for i in range(q.ndim)])
            moved.append(part - jnp.where(blocked, 0, jnp.diff(around, axis=axis)))
        return tuple(moved), q

    # Places.

    def _faces(self, axis: int) -> tuple[int, ...]:
        return tuple(n + (i == axis) for i, n in enumerate(self.shape))

    def _offset(self, axis: int) -> tuple[float, ...]:
        return tuple(0.0 if i == axis else 0.5 for i in range(len(self.shape)))

    def _points(self, shape: tuple[int, ...], offset: tuple[float, ...]) -> Array:
        lines = [(jnp.arange(n, dtype=self.buoyancy.dtype) + start) * self.h for n, start in zip(shape, offset, strict=True)]
        return jnp.stack(jnp.meshgrid(*lines, indexing="ij"), -1)

    def _field(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        field = jnp.asarray(value, self.buoyancy.dtype)
        if field.shape not in ((), shape):
            raise ArgumentError(name, f"must be a number or have the shape {shape}; it has {field.shape}.")
        field = jnp.broadcast_to(field, shape)
        if not is_tracer(field) and not np.isfinite(field).all():
            raise ArgumentError(name, f"is not finite at index {tuple(int(i) for i in np.argwhere(~np.isfinite(field))[0])}.")
        return field


def _outflow(velocity: Velocity) -> Array:
    """The sum over the faces of each cell: h times the divergence."""
    return jnp.sum(jnp.stack([jnp.diff(part, axis=axis) for axis, part in enumerate(velocity)]), 0)


def _on_either_side(mask: Array, axis: int) -> Array:
    """The faces across an axis that a cell of the mask has."""
    padded = jnp.pad(mask, [(1, 1) if i == axis else (0, 0) for i in range(mask.ndim)])
    along = lambda start, stop: jax.lax.slice_in_dim(padded, start, stop, axis=axis)
    return along(0, mask.shape[axis] + 1) | along(1, mask.shape[axis] + 2)


def _outermost(shape: tuple[int, ...], axis: int) -> Array:
    number = jnp.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (number == 0) | (number == shape[axis] - 1)


def _on_faces(field: Array, axis: int) -> Array:
    """Means of the two cells of each face across an axis; at the boundary that of the cell."""
    padded = jnp.pad(field, [(1, 1) if i == axis else (0, 0) for i in range(field.ndim)], mode="edge")
    along = lambda start, stop: jax.lax.slice_in_dim(padded, start, stop, axis=axis)
    return (along(0, field.shape[axis] + 1) + along(1, field.shape[axis] + 2)) / 2


def smoke_systems(
    shape: Sequence[int], steps: int = 60, every: int = 10, solid: Any = None, *, key: PRNGKeyArray | None = None, **settings: Any
) -> list[tuple[PoissonGrid, Float[Array, " n"]]]:
    """The systems for the pressure that a plume of smoke meets: what solvers for such systems are trained for and tried on.

    The smoke rises from a disk, or a ball, near the floor, from rest.

    ```python
    systems = om.physics.smoke_systems((16, 16), steps=4, every=2)
    grid, b = systems[-1]
    ```

    **Arguments:**

    - `shape`, `solid`: as for `Smoke`; `solid` may be a function of the time.
    - `steps`, `every`: the system of each so-manieth step, so many at most.
    - `key`: if given, the place along the floor, the size and the strength of the source are drawn with it.
    - `settings`: further ones of `Smoke`.

    **Returns:** pairs of a `PoissonGrid` and a right-hand side, which `PoissonGrid.check` accepts.

    **Raises:** `ArgumentError` for counts that do not fit, and as `Smoke` does.
    """
    shape = need_grid(shape)
    if not isinstance(every, int) or every < 1:
        raise ArgumentError("every", f"must be a whole number above zero, not {every!r}.")
    if not isinstance(steps, int) or steps < every:
        raise ArgumentError("steps", f"must be a whole number of at least `every`, {every}, not {steps!r}.")
    floor = np.array([n / (2 * shape[0]) for n in shape])
    floor[-1] = 0.15
    radius, strength = 0.1, 5.0
    if key is not None:
        draw = np.asarray(jax.random.uniform(key, (len(shape) + 1,)))
        floor[:-1] *= 0.7 + 0.6 * draw[: len(shape) - 1]
        radius, strength = 0.07 + 0.06 * float(draw[-2]), 3 + 4 * float(draw[-1])
    settings = {"source": strength * ball_mask(shape, radius, floor)} | settings
    smoke = Smoke(shape, solid, **settings)
    step, system = eqx.filter_jit(smoke.step), eqx.filter_jit(smoke.system)
    state, found = smoke.initial(), []
    for number in range(1, steps + 1):
        if number % every == 0:
            traced, b = system(state)
            grid = PoissonGrid(shape, np.asarray(traced.solid), None, smoke.boundary)  # made outside of jit, it knows what is enclosed
            found.append((grid, grid.without_mean(b)))
        state = step(state)
    return found
