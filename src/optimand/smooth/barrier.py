r"""The barrier problem of an interior point method, in one vector.

Inequalities get slacks, \(g(x) + s = 0, s \ge 0\), and in the elastic (feasibility restoration) phase every constraint
may be missed by \(p - n\), at a price:

$$ v = (x, s, p, n), \qquad c(v) = \begin{pmatrix} h(x) \\ g(x) + s \end{pmatrix} - p + n = 0, \qquad l \le v \le u .$$

Outside the elastic phase \(p = n = 0\) and neither moves. The barrier function is
\(\varphi_\mu(v) = f(v) - \mu \sum_i \log (v_i - l_i) - \mu \sum_i \log (u_i - v_i)\) over the finite bounds, and the
KKT error that decides when \(\mu\) falls is Waechter and Biegler 2006, eq. 5.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

__all__ = ["Barrier", "Iterate", "Layout"]

DAMPING = 1e-5  # kappa_d: weight of the linear term that keeps variables with one bound from running away
LARGEST_MEAN = 100.0  # s_max: multipliers with a mean above it scale the KKT error down


class Layout(eqx.Module):
    """Where x, s, p and n are in v, and products with the Jacobian A = [J, E, -I, I] of c(v)."""

    size: int = eqx.field(static=True)
    equality_count: int = eqx.field(static=True)
    inequality_count: int = eqx.field(static=True)

    @property
    def rows(self) -> int:
        """The number of constraints."""
        return self.equality_count + self.inequality_count

    @property
    def length(self) -> int:
        """That of v."""
        return self.size + self.inequality_count + 2 * self.rows

    def split(self, v: Array) -> tuple[Array, Array, Array, Array]:
        """x, s, p, n of v."""
        ends = (self.size, self.size + self.inequality_count, self.size + self.inequality_count + self.rows)
        return v[: ends[0]], v[ends[0] : ends[1]], v[ends[1] : ends[2]], v[ends[2] :]

    def of_inequalities(self, s: Array) -> Array:
        """A vector over the inequalities as one over all constraints."""
        return jnp.concatenate([jnp.zeros((self.equality_count,), s.dtype), s])

    def residual(self, constraints: Array, v: Array) -> Array:
        """c(v), from h(x) and g(x)."""
        _, s, p, n = self.split(v)
        return constraints + self.of_inequalities(s) - p + n

    def transposed(self, jacobian: Array, multipliers: Array) -> Array:
        """A'y."""
        y = multipliers
        return jnp.concatenate([y @ jacobian, y[self.equality_count :], -y, y])


class Iterate(eqx.Module):
    """v, the multipliers y of c(v) = 0, and those of the bounds of v: a row for the lower and one for the upper ones."""

    variables: Float[Array, " v"]
    multipliers: Float[Array, " m"]
    bounds: Float[Array, "2 v"]


class Barrier(eqx.Module):
    """Bounds of v, written as l <= v and -u <= -v, minus infinity where there is none; `free` says which variables move.

    So all that concerns bounds is done once, for both sides.
    """

    layout: Layout
    bounds: Float[Array, "2 v"]
    free: Bool[Array, " v"]

    @staticmethod
    def of(layout: Layout, lower: Array, upper: Array, relaxation: Array) -> "Barrier":
        """From the bounds of x, each moved outwards by `relaxation` times its size (and 1), in the elastic phase.

        A variable whose bounds are equal is a constant.
        """
        fixed = lower >= upper
        both = jnp.stack([lower, -upper])
        both = jnp.where(fixed | (both == -jnp.inf), -jnp.inf, both - relaxation * jnp.maximum(1, jnp.abs(both)))
        slack = jnp.broadcast_to(-relaxation, (layout.inequality_count,)).astype(lower.dtype)
        rest = jnp.concatenate([slack, jnp.zeros((2 * layout.rows,), lower.dtype)])
        rest = jnp.stack([rest, jnp.full_like(rest, -jnp.inf)])
        return Barrier(layout, jnp.concatenate([both, rest], axis=1), jnp.concatenate([~fixed, rest[0] > -jnp.inf]))

    def when(self, elastic: Array) -> "Barrier":
        """Outside the elastic phase p and n neither move nor have bounds."""
        there = elastic | (jnp.arange(self.layout.length) < self.layout.size + self.layout.inequality_count)
        return Barrier(self.layout, jnp.where(there, self.bounds, -jnp.inf), self.free & there)

    @property
    def present(self) -> Bool[Array, "2 v"]:
        """Where there is a bound."""
        return self.bounds > -jnp.inf

    def gaps(self, v: Array) -> Float[Array, "2 v"]:
        """v - l and u - v, or 1 where there is no such bound; never less than what rounding leaves of them."""
        present = self.present
        bounds = jnp.where(present, self.bounds, 0)
        least = jnp.finfo(v.dtype).eps * jnp.maximum(1, jnp.abs(bounds))
        return jnp.where(present, jnp.maximum(_SIDES * v - bounds, least), 1)

    def inside(self, v: Array, push: Array) -> Array:
        """The nearest point that keeps a distance from the bounds: kappa_1 = kappa_2 = `push` of section 3.6."""
        bounds = self.bounds
        width = -bounds[0] - bounds[1]  # infinite where a side is
        nearest = bounds + push * jnp.minimum(jnp.maximum(1, jnp.abs(bounds)), width)
        nearest = jnp.where(self.present, nearest, -jnp.inf)
        return jnp.minimum(jnp.maximum(v, nearest[0]), -nearest[1])

    def value(self, v: Array, mu: Array) -> Array:
        """The barrier terms, with a linear one for variables that have a bound on one side only."""
        present = self.present
        linear = jnp.where(present & ~present[::-1], DAMPING, 0)
        gaps = self.gaps(v)
        return mu * jnp.sum(linear * gaps - jnp.log(gaps))

    def gradient(self, v: Array, mu: Array) -> Array:
        """The gradient of `value`."""
        present = self.present
        linear = jnp.where(present & ~present[::-1], DAMPING, 0)
        return mu * jnp.sum(_SIDES * (linear - jnp.where(present, 1 / self.gaps(v), 0)), axis=0)

    def sigma(self, at: Iterate) -> Array:
        """The diagonal that the barrier adds to the Hessian, from the multipliers."""
        return jnp.sum(at.bounds / self.gaps(at.variables), axis=0)

    def dual_step(self, at: Iterate, step: Array, mu: Array) -> Float[Array, "2 v"]:
        """The steps of the multipliers of the bounds (eq. 12)."""
        gaps = self.gaps(at.variables)
        return jnp.where(self.present, (mu - at.bounds * _SIDES * step) / gaps - at.bounds, 0)

    def longest(self, v: Array, step: Array, fraction: Array) -> Array:
        """The longest step, up to 1, that goes no further than `fraction` of the way to a bound (eq. 15a)."""
        return _longest(self.gaps(v), jnp.where(self.present, _SIDES * step, 0), fraction)

    def longest_dual(self, at: Iterate, step: Float[Array, "2 v"], fraction: Array) -> Array:
        """The same for the multipliers of bounds, which stay positive (eq. 15b)."""
        return _longest(at.bounds, step, fraction)

    def safeguarded(self, at: Iterate, mu: Array) -> Iterate:
        """Multipliers of bounds not further than kappa_Sigma from the central path (eq. 16), zero where there is no bound."""
        central = mu / self.gaps(at.variables)
        bounds = jnp.where(self.present, jnp.clip(at.bounds, central / _NEAR, central * _NEAR), 0)
        return Iterate(at.variables, at.multipliers, bounds)

    def scales(self, at: Iterate) -> tuple[Array, Array]:
        """s_d and s_c of eq. 6."""
        count = jnp.sum(self.present)
        of_bounds = jnp.sum(jnp.where(self.present, at.bounds, 0))
        total = of_bounds + jnp.sum(jnp.abs(at.multipliers))
        mean = lambda total, count: jnp.maximum(LARGEST_MEAN, total / jnp.maximum(count, 1)) / LARGEST_MEAN
        return mean(total, count + self.layout.rows), mean(of_bounds, count)

    def products(self, at: Iterate) -> tuple[Array, Array]:
        """The least and the largest gap times multiplier; the wrong way round, and infinite, without bounds."""
        products = self.gaps(at.variables) * at.bounds
        least = jnp.min(jnp.where(self.present, products, jnp.inf), initial=jnp.inf)
        return least, jnp.max(jnp.where(self.present, products, -jnp.inf), initial=-jnp.inf)


def _longest(gaps: Array, step: Array, fraction: Array) -> Array:
    ratios = jnp.where(step < 0, fraction * gaps / jnp.where(step < 0, -step, 1), 1)
    return jnp.min(ratios, initial=1.0)


_NEAR = 1e10  # kappa_Sigma
_SIDES = np.array([[1.0], [-1.0]])
