r"""Models whose output is constrained by an equation, and the soft baseline.

A network emits N basis fields \(b = f_\theta(\text{inputs})\). `ConstrainedBasis` combines them with the weights that
minimise the residual of the equation on sampled points: once for the whole domain (PI-HC), or once for each box (PI-HC-MoE),
where \(u(x) = b(x) \cdot w_k\) for x in box k. `SoftField` has no such solve: the loss alone asks for the equation (PI-SC).

Source: Chalapathi, Du and Krishnapriyan 2024, "Scaling physics-informed hard constraints with mixture-of-experts", ICLR.
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import inside_transformation
from .constraint import LocalInfo, NLLSConstraint, need_float64
from .experts import ExpertGrid, Router
from .local import LocalProblem
from .pde import LinearTermsPDE

__all__ = ["ConstrainedBasis", "ConstraintInfo", "SoftField", "local_problems", "solve_experts"]


class ConstraintInfo(eqx.Module):
    """How a constrained field was made.

    - `field`: shape of the grid. `weights`: (K, N), those of each expert.
    - `local`: `LocalInfo` with a leading axis of experts: iterations, converged, residual, gradient, fallbacks.
    - `jump`: the largest difference between neighbouring experts' fields where their boxes meet, relative to the largest
      value of the field: 0 for one expert, NaN where experts have no borders.
    """

    field: Float[Array, "..."]
    weights: Float[Array, "experts unknowns"]
    local: LocalInfo
    jump: Float[Array, ""]

    @property
    def status(self) -> list[str]:
        """One word for each expert."""
        return ["converged" if done else "out of steps" for done in np.atleast_1d(np.asarray(self.local.converged))]


class SoftField(eqx.Module):
    """A network as a field, with no constraint: the physics enters through the loss only (PI-SC).

    `net` maps (channels, *grid) to (N, *grid); with N > 1 the field is the sum of the channels, so that a basis trained
    this way can be constrained afterwards, at inference only: `ConstrainedBasis(soft.net, soft.pde)`.
    `dtype` is what the network's inputs are cast to.
    """

    net: Callable
    pde: LinearTermsPDE
    dtype: Any = eqx.field(static=True, default=np.dtype(np.float32))

    reference: ClassVar[str] = "chalapathi2024scaling"

    def __call__(self, data: PyTree, *, key: Array | None = None) -> Float[Array, "..."]:
        """The field (*grid) of one sample."""
        del key
        b = _basis(self.net, self.pde, data, self.dtype)
        return self.pde.assemble(jnp.sum(b, axis=-1), data)


class ConstrainedBasis(eqx.Module):
    """A network that emits basis fields, and a least-squares constraint that combines them.

    **Arguments:**

    - `net`: maps (channels, *grid) to (N, *grid).
    - `pde`: the equation, a `LinearTermsPDE`.
    - `experts`: `ExpertGrid` (one box: PI-HC), or `RandomExperts`; one global constraint by default.
    - `constraint`: an `NLLSConstraint`. Its `points` are those of *each* expert, all of them by default.
    - `mesh`: a `jax.sharding.Mesh` with an axis "experts", over whose devices (of one process or of many) the experts are
      divided. There is no communication inside a solve. The number of experts must be a multiple of the axis.
    - `seed`: of the points at inference, when there is no key.
    - `dtype`: what the network's inputs are cast to. The solve is in float64 whatever it is.

    Called with the data of one sample, and in training with a `key` that draws fresh points, it returns the field (*grid).
    `info` also returns the weights and how each solve went.

    **Raises:** `ArgumentError` if the experts do not divide the grid, if a box has fewer points than asked for, if there
    are fewer rows than unknowns, or if double precision is off. **Warns** of experts that ran out of steps; they keep the
    best weights found.
    """

    net: Callable
    pde: LinearTermsPDE
    experts: Router
    constraint: NLLSConstraint
    mesh: Mesh | None = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    reference: ClassVar[str] = "chalapathi2024scaling"

    def __init__(
        self,
        net: Callable,
        pde: LinearTermsPDE,
        *,
        experts: Router | None = None,
        constraint: NLLSConstraint | None = None,
        mesh: Mesh | None = None,
        seed: int = 0,
        dtype: Any = np.float32,
    ):
        if not isinstance(pde, LinearTermsPDE):
            raise ArgumentError("pde", f"must be a LinearTermsPDE, not {type(pde).__name__}.")
        self.net, self.pde = net, pde
        self.experts = ExpertGrid((1,) * len(pde.grid.shape)) if experts is None else experts
        self.experts.check(pde.grid.shape)
        constraint = NLLSConstraint() if constraint is None else constraint
        self.constraint = constraint.resolved(self.experts.count)
        self.mesh, self.seed, self.dtype = mesh, seed, np.dtype(dtype)
        _check_points(pde, self.experts, self.constraint.points)
        if mesh is not None:
            if "experts" not in mesh.axis_names:
                raise ArgumentError("mesh", f"needs an axis 'experts'; it has {', '.join(mesh.axis_names)}.")
            if self.experts.count % mesh.shape["experts"]:
                raise ArgumentError(
                    "mesh",
                    f"has {mesh.shape['experts']} devices along 'experts', which do not divide "
                    f"{self.experts.count} experts.",
                )

    def __call__(self, data: PyTree, *, key: Array | None = None) -> Float[Array, "..."]:
        """The field (*grid) of one sample."""
        return self.info(data, key=key).field

    def info(self, data: PyTree, *, key: Array | None = None) -> ConstraintInfo:
        """The field of one sample, the weights, and how each expert's solve went."""
        need_float64()
        key = jax.random.key(self.seed) if key is None else key  # here, so that either way is the same compiled function
        if inside_transformation(self.net, data, key):
            return _constrained(self, data, key)
        self.pde.check(data)
        info = _compiled(self, data, key)
        failed = int(np.sum(~np.asarray(info.local.converged)))
        if failed:
            warnings.warn(
                f"{failed} of {self.experts.count} experts ran out of steps; they keep the best weights found. "
                "See `info(...).local`, or allow more `max_steps`.",
                RuntimeWarning,
                stacklevel=2,
            )
        return info


def _basis(net, pde, data, dtype):
    """The prepared basis (*grid, N) in float64 (float32 where that is all there is)."""
    out = net(pde.inputs(data).astype(dtype))
    b = jnp.moveaxis(out, 0, -1).astype(jnp.zeros(()).dtype)
    return pde.prepare(b, data)


def _check_points(pde, experts, points):
    box = np.asarray(experts.split(pde.mask(), len(pde.grid.shape))).sum(axis=1)
    if points is not None and points > box.min():
        raise ArgumentError(
            "points",
            f"asks for {points} in each box, but the smallest has {int(box.min())} points with a residual.",
            "Points are drawn without duplicates.",
        )


def draw_points(key: Array, mask: Array, number: int | None) -> Array | None:
    """Indices of `number` different points where the mask is true; all of them, in order, for `None`."""
    if number is None:
        return None
    score = jnp.where(mask, jax.random.uniform(key, mask.shape, jnp.float32), 2.0)
    return jnp.sort(jnp.argsort(score)[:number])


def local_problems(
    pde: LinearTermsPDE,
    experts: Router,
    basis: Float[Array, "..."],
    data: PyTree,
    *,
    points: int | None = None,
    key: Array | None = None,
    ridge: float = 0.0,
    use_rows: bool = True,
) -> LocalProblem:
    """The least-squares problems of all experts, with a leading axis of experts on `terms`, `offsets` and `points`.

    The terms are formed on the whole grid and divided afterwards, so that stencils cross the borders of experts. The rows
    of initial and boundary conditions are global, and the same for each expert.

    **Arguments:** `basis` (*grid, N), prepared; `points` for each expert, drawn with `key`; `use_rows` says whether the
    conditions take part.
    """
    grid, dimensions = pde.grid, len(pde.grid.shape)
    terms = pde.terms(basis, grid)
    names = tuple(terms)
    offset = pde.offset(data)
    zero = jnp.zeros(grid.shape, basis.dtype)
    mask = np.asarray(experts.split(pde.mask(), dimensions))
    coordinates = jnp.asarray(experts.split(grid.coordinates(), dimensions), basis.dtype)
    split = lambda values: experts.split(values, dimensions)
    by_term = jnp.stack([split(terms[name]) for name in names], axis=1)  # (K, terms, points of a box, N)
    offsets = jnp.stack([split(offset.get(name, zero)) for name in names], axis=1)
    if points is not None or not mask.all():
        size = int(mask.sum(axis=1).min()) if points is None else points
        if points is None and len(set(mask.sum(axis=1).tolist())) == 1:
            chosen = jnp.asarray(np.stack([np.flatnonzero(row) for row in mask]))
        else:  # boxes at the border of a compact stencil have fewer rows: all get the number of the smallest
            key = jax.random.key(0) if key is None else key
            keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(experts.count))
            chosen = jax.vmap(lambda key, mask: draw_points(key, mask, size))(keys, jnp.asarray(mask))
        take = jax.vmap(lambda values, index: values[index])
        by_term = jax.vmap(lambda values, index: values[:, index])(by_term, chosen)
        offsets = jax.vmap(lambda values, index: values[:, index])(offsets, chosen)
        coordinates = take(coordinates, chosen)
    rows = pde.rows(basis, data) if use_rows else None
    if rows is None:
        matrix, target = jnp.zeros((0, basis.shape[-1]), basis.dtype), jnp.zeros((0,), basis.dtype)
    else:
        weight = jnp.broadcast_to(jnp.asarray(rows[2], basis.dtype), rows[1].shape)
        matrix, target = weight[:, None] * rows[0], weight * rows[1]
    return LocalProblem(
        by_term, offsets, coordinates, matrix, target, pde.params(data), pde.pointwise, names=names, ridge=ridge
    )


def solve_experts(
    problems: Any, constraint: NLLSConstraint, start: Float[Array, " unknowns"], mesh: Mesh | None = None
) -> tuple[Array, LocalInfo]:
    """Weights (K, N) of a stack of problems as `local_problems` makes it; over the devices of a mesh if there is one."""

    def every(terms, offsets, points, matrix, target, params, start):
        def one(terms, offsets, points):
            problem = LocalProblem(
                terms, offsets, points, matrix, target, params, problems.pointwise, problems.names, problems.ridge
            )
            return constraint(problem, start)

        return jax.vmap(one)(terms, offsets, points)

    divided = (problems.terms, problems.offsets, problems.points)
    shared = (problems.matrix, problems.target, problems.params, start)
    if mesh is None:
        return every(*divided, *shared)
    experts, everywhere = PartitionSpec("experts"), PartitionSpec()
    run = jax.shard_map(
        every, mesh=mesh, in_specs=(experts,) * 3 + (everywhere,) * 4, out_specs=experts, check_vma=False
    )
    weights, info = run(*divided, *shared)
    # The one gather: K N weights to every device. What is made of them is then whole everywhere.
    gather = NamedSharding(mesh, everywhere)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, gather), (weights, info))


def _constrained(model: ConstrainedBasis, data, key) -> ConstraintInfo:
    pde, experts, constraint = model.pde, model.experts, model.constraint
    b = _basis(model.net, pde, data, model.dtype)
    problems = local_problems(pde, experts, b, data, points=constraint.points, key=key)
    start = jnp.full((b.shape[-1],), pde.start, b.dtype)
    weights, local = solve_experts(problems, constraint, start, model.mesh)
    field = pde.assemble(experts.combine(b, weights), data)
    return ConstraintInfo(field, weights, local, _largest_jump(experts, b, weights, field))


_compiled = eqx.filter_jit(_constrained)


def _largest_jump(experts, basis, weights, field):
    """How far the two experts at a border are apart, on the points on either side of it."""
    if not isinstance(experts, ExpertGrid):
        return jnp.asarray(jnp.nan, field.dtype)
    shape = basis.shape[:-1]
    owner = experts.join(
        jnp.broadcast_to(jnp.arange(experts.count)[:, None], (experts.count, int(np.prod(shape)) // experts.count)),
        shape,
    )
    largest = jnp.zeros((), field.dtype)
    for axis, parts in enumerate(experts.parts):
        size = shape[axis] // parts
        for border in range(size, shape[axis], size):
            left, right = (jnp.take(owner, border - 1, axis), jnp.take(owner, border, axis))
            here = jnp.take(basis, border, axis)
            gap = jnp.einsum("...n,...n->...", here, weights[right] - weights[left])
            largest = jnp.maximum(largest, jnp.max(jnp.abs(gap)))
    return jax.lax.stop_gradient(largest / jnp.maximum(jnp.max(jnp.abs(field)), 1e-30))
