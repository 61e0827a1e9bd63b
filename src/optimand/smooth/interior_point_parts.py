r"""Parts of a step of the interior point method: the functions and their derivatives, the elastic objective, Newton's
right-hand side, where a phase starts, and what its point is worth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .barrier import Barrier, Iterate, Layout
from .flat_program import FlatProgram
from .kkt_system import KKTSystem

__all__ = ["Derivatives", "ElasticPart", "Errors", "Newton", "central", "derivatives", "functions", "placed", "solved"]

RHO = 1000.0  # price of a unit of violation in the elastic problem
_DELTA_C = 1e-8  # regularisation of the constraints, times mu^(1/4)
_LARGEST_RESET = 1e3  # of the multipliers of bounds after the elastic phase
_NEVER_ACTIVE = -1e20  # stands for an inequality of minus infinity


class Derivatives(NamedTuple):
    """f and c, the rows of their gradients, and the Hessian of their weighted sum."""

    values: Float[Array, " functions"]
    rows: Float[Array, "functions n"]
    hessian: Float[Array, "n n"]
    raw_objective: Array

    @property
    def objective(self) -> Array:
        return self.values[0]

    @property
    def constraints(self) -> Array:
        return self.values[1:]

    @property
    def gradient(self) -> Array:
        return self.rows[0]

    @property
    def jacobian(self) -> Array:
        return self.rows[1:]

    def scaled(self, objective: Array, constraints: Array) -> "Derivatives":
        """In another scale; the weights of the Hessian were in it already."""
        scale = jnp.concatenate([objective[None], constraints])
        return Derivatives(self.values * scale, self.rows * scale[:, None], self.hessian, self.raw_objective)


def functions(program: FlatProgram, x: Array) -> Float[Array, " functions"]:
    """f, h and g."""
    c = program.constraints(x)
    inequality = jnp.arange(len(c)) >= program.equality_count
    c = jnp.where(inequality & (c == -jnp.inf), _NEVER_ACTIVE, c)
    return jnp.concatenate([program.value(x)[None], c])


def derivatives(program: FlatProgram, at: Iterate, weights: Float[Array, " functions"]) -> Derivatives:
    """All of them in one forward pass over a reverse one: one place where the user's functions are compiled.

    The tangents of the gradient of the weighted sum, which are the Hessian, have those of the functions as by-products.
    """

    def gradient(x):
        values, pull = jax.vjp(lambda x: functions(program, x), x)
        return pull(weights)[0], values

    x = at.variables[: program.size]
    (_, values), along = jax.linearize(gradient, x)
    hessian, rows = jax.vmap(along, out_axes=(0, 1))(jnp.eye(program.size, dtype=x.dtype))
    return Derivatives(values, rows, (hessian + hessian.T) / 2, values[0])


class ElasticPart(NamedTuple):
    """The objective: f, or in the elastic phase rho sum(p + n) + zeta/2 |D_R (x - x_R)|^2 with zeta = sqrt(mu)."""

    elastic: Array
    anchor: Float[Array, " n"]

    def weight(self, mu: Array) -> Array:
        """zeta D_R^2."""
        return jnp.where(self.elastic, jnp.sqrt(mu), 0) / jnp.maximum(1, jnp.abs(self.anchor)) ** 2

    def value(self, layout: Layout, objective: Array, v: Array, mu: Array) -> Array:
        x, _, p, n = layout.split(v)
        near = jnp.sum(self.weight(mu) * (x - self.anchor) ** 2) / 2
        return jnp.where(self.elastic, RHO * jnp.sum(p + n) + near, objective)

    def gradient(self, layout: Layout, gradient: Array, v: Array, mu: Array) -> Array:
        x, s, p, _ = layout.split(v)
        of_x = jnp.where(self.elastic, self.weight(mu) * (x - self.anchor), gradient)
        miss = jnp.where(self.elastic, RHO, 0) * jnp.ones_like(p)
        return jnp.concatenate([of_x, jnp.zeros_like(s), miss, miss])


class Newton(NamedTuple):
    """The linear system at a point, its right-hand sides, and what its solution does."""

    barrier: Barrier
    iterate: Iterate
    mu: Array
    system: KKTSystem
    right_hand_side: Float[Array, " v"]
    constraint_side: Float[Array, " m"]

    @staticmethod
    def at(
        layout: Layout, barrier: Barrier, part: ElasticPart, at: Derivatives, iterate: Iterate, mu: Array, starts: Array
    ) -> "Newton":
        """Eq. 13; or where the method `starts` eq. 36, whose solution are least-squares multipliers."""
        v, y = iterate.variables, jnp.where(starts, 0, iterate.multipliers)
        sigma = jnp.where(starts, 1, barrier.sigma(iterate))
        hessian = jnp.where(starts, 0, at.hessian + jnp.diag(part.weight(mu)))
        compliance = jnp.full((layout.rows,), _DELTA_C, v.dtype) * mu**0.25
        jacobian = jnp.where(barrier.free[: layout.size], at.jacobian, 0)
        system = KKTSystem(layout, hessian, jacobian, sigma, barrier.free, compliance)
        of_bounds = jnp.where(starts, iterate.bounds[1] - iterate.bounds[0], barrier.gradient(v, mu))
        r = part.gradient(layout, at.gradient, v, mu) + layout.transposed(at.jacobian, y) + of_bounds
        c = jnp.where(starts, 0, layout.residual(at.constraints, v))
        return Newton(barrier, iterate, mu, system, -r, -c)

    def walked(self, step: Array, dual_step: Array, length: Array, dual_length: Array) -> Iterate:
        """The next iterate."""
        at = self.iterate
        there = Iterate(
            at.variables + length * step,
            at.multipliers + length * dual_step,
            at.bounds + dual_length * self.barrier.dual_step(at, step, self.mu),
        )
        return self.barrier.safeguarded(there, self.mu)


def placed(
    layout: Layout, barrier: Barrier, iterate: Iterate, mu: Array, at: Derivatives, scales: tuple[Array, Array], push: Array,
    warm: Array, starts: Array, enters: Array,
) -> tuple[Iterate, Array]:  # fmt: skip
    """Where a phase starts: slacks and multipliers of bounds at the first step, p and n at the first elastic one (eq. 33)."""
    x, s, p, n = layout.split(iterate.variables)
    s = jnp.where(starts, jnp.maximum(-at.constraints[layout.equality_count :], push), s)
    c = at.constraints + layout.of_inequalities(s)
    mu = jnp.where(enters, jnp.maximum(mu, jnp.max(jnp.abs(c), initial=0)), mu)
    half = (mu - RHO * c) / (2 * RHO)
    surplus = half + jnp.sqrt(half**2 + mu * c / (2 * RHO))
    least = mu / (4 * RHO)
    p, n = jnp.where(enters, jnp.maximum(c + surplus, least), p), jnp.where(enters, jnp.maximum(surplus, least), n)
    v = jnp.concatenate([x, s, p, n])

    objective_scale, constraint_scale = scales
    y = jnp.where(starts, iterate.multipliers * objective_scale / constraint_scale, iterate.multipliers)
    gaps = barrier.gaps(v)
    of_miss = jnp.arange(len(v)) >= layout.size + layout.inequality_count
    slacks = jnp.concatenate([jnp.zeros_like(x), y[layout.equality_count :], p, n])
    known = iterate.bounds * objective_scale + jnp.stack([slacks, jnp.zeros_like(v)])
    first = jnp.where(warm, jnp.maximum(known, mu / gaps), 1)
    bounds = jnp.where(starts, first, jnp.where(enters & of_miss, mu / gaps, iterate.bounds))
    return Iterate(v, y, jnp.where(barrier.present, bounds, 0)), mu


def central(layout: Layout, barrier: Barrier, v: Array, mu: Array) -> Iterate:
    """Where the main problem goes on after the elastic one: p = n = 0, y = 0, multipliers of bounds from mu, if not too large."""
    x, s, p, n = layout.split(v)
    v = jnp.concatenate([x, s, jnp.zeros_like(p), jnp.zeros_like(n)])
    bounds = jnp.where(barrier.present, mu / barrier.gaps(v), 0)
    bounds = jnp.where(jnp.max(bounds) > _LARGEST_RESET, barrier.present, bounds)
    return Iterate(v, jnp.zeros((layout.rows,), v.dtype), bounds)


class Errors(NamedTuple):
    """The parts of the error E_mu of the barrier problem, eq. 5: all of it that does not depend on mu."""

    fixed: Array
    least_product: Array
    largest_product: Array
    scale: Array

    @staticmethod
    def at(layout: Layout, barrier: Barrier, part: ElasticPart, at: Derivatives, iterate: Iterate, mu: Array) -> "Errors":
        v = iterate.variables
        dual = part.gradient(layout, at.gradient, v, mu) + layout.transposed(at.jacobian, iterate.multipliers)
        dual = jnp.where(barrier.free, dual - iterate.bounds[0] + iterate.bounds[1], 0)
        of_dual, of_products = barrier.scales(iterate)
        primal = jnp.max(jnp.abs(layout.residual(at.constraints, v)), initial=0)
        largest = jnp.maximum(jnp.max(jnp.abs(dual), initial=0) / of_dual, primal)
        return Errors(largest, *barrier.products(iterate), of_products)

    def of(self, mu: Array) -> Array:
        """E_mu."""
        products = jnp.maximum(self.largest_product - mu, mu - self.least_product)
        return jnp.maximum(self.fixed, jnp.maximum(products, 0) / self.scale)


def solved(
    program: FlatProgram, layout: Layout, at: Derivatives, iterate: Iterate, scales: tuple[Array, Array]
) -> tuple[Iterate, Array, Array]:
    """The largest part of the KKT residual of the problem as it was given, and the violation, at the answer.

    That is the iterate moved back between the bounds, to first order; multipliers of constants, which no iteration needs,
    are filled in.
    """
    objective_scale, constraint_scale = scales
    size, equalities = layout.size, layout.equality_count
    x = iterate.variables[:size]
    y = jnp.concatenate([iterate.multipliers[:equalities], jnp.maximum(iterate.multipliers[equalities:], 0)])
    moved = jnp.clip(x, program.lower, program.upper)
    lagrangian = at.gradient + y @ at.jacobian + at.hessian @ (moved - x)
    fixed = program.lower >= program.upper
    filled = jnp.maximum(jnp.stack([lagrangian, -lagrangian]), 0)
    of_x = jnp.where(fixed, filled, iterate.bounds[:, :size])
    bounds = iterate.bounds.at[:, :size].set(of_x)
    c = at.constraints + at.jacobian @ (moved - x)
    violation = jnp.where(jnp.arange(len(c)) < equalities, jnp.abs(c), c) / constraint_scale
    violation = jnp.max(violation, initial=0)
    ends = jnp.stack([program.lower, program.upper])
    products = jnp.where(jnp.isfinite(ends), of_x * (moved - jnp.where(jnp.isfinite(ends), ends, 0)), 0)
    dual = jnp.concatenate([(lagrangian - of_x[0] + of_x[1]), y[equalities:] * c[equalities:], products[0], products[1]])
    residual = jnp.maximum(jnp.max(jnp.abs(dual)) / objective_scale, violation)
    return Iterate(iterate.variables, iterate.multipliers, bounds), residual, violation
