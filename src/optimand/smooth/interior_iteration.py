r"""One iteration of Mehrotra's predictor-corrector method for a convex quadratic program whose constraints may be elastic.

$$\min_x \tfrac12 x^\top P x + q^\top x + \rho\, \lVert A x - b \rVert_1 + \rho \sum_i \max(0, (G x - h)_i)
  \quad\text{s.t.}\quad l \le x \le u ,$$

where \(\rho\) may be infinite: then \(A x = b\) and \(G x \le h\). With slacks s of the inequalities (the rows of G, -I and I
together, R x + s - t = r) and elastic parts t, v, w >= 0 (A x - v + w = b), the conditions are

$$P x + q + A^\top \nu + R^\top \mu = 0, \quad s \mu = \tau, \quad t (\rho - \mu) = \tau, \quad
  v (\rho - \nu) = \tau, \quad w (\rho + \nu) = \tau .$$

Elastic parts and slacks are eliminated from a Newton step by hand: they only change the weights of the rows, so that an
elastic program costs what a hard one does: one Cholesky factorisation of

$$P + \delta I + R^\top \Big(\frac{s}{\mu} + \frac{t}{\rho - \mu}\Big)^{-1} R
  + A^\top \Big(\delta I + \frac{v}{\rho - \nu} + \frac{w}{\rho + \nu}\Big)^{-1} A .$$

The small \(\delta\) is that of a proximal method of multipliers centred at the iterate: the residuals on the right-hand side
are the true ones, so it vanishes from the solution, and rows of A may be linearly dependent (Friedlander and Orban 2012).

Sources: Mehrotra 1992; Nocedal and Wright 2006, section 16.6; for elastic constraints Fletcher 1985.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.dense import cholesky, cholesky_solve, in_turn
from .equilibration import Scaling, equilibrate
from .line_search import constant

__all__ = ["Interior", "InteriorProgram", "advance", "begin", "error_of", "minimise", "restored"]


class InteriorProgram(NamedTuple):
    """The data; sides may be infinite. `elastic` is rho, or None for hard constraints."""

    P: Float[Array, "n n"]
    q: Float[Array, " n"]
    A: Float[Array, "m n"]
    b: Float[Array, " m"]
    G: Float[Array, "p n"]
    h: Float[Array, " p"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    elastic: Float[Array, ""] | None = None

    def scaled(self, iterations: int) -> tuple["InteriorProgram", Scaling]:
        """The program in the variables of `equilibrate`; rho is that of each row then, as a vector (A's, then G's)."""
        return self.scaled_by(equilibrate(self.P, self.q, jnp.concatenate([self.A, self.G]), iterations))

    def scaled_by(self, scaling: Scaling) -> tuple["InteriorProgram", Scaling]:
        """The same by a scaling that is known."""
        M = jnp.concatenate([self.A, self.G])
        columns, rows, cost = scaling
        m = len(self.b)
        M = M * columns * rows[:, None]
        return InteriorProgram(
            cost * self.P * columns * columns[:, None], cost * self.q * columns,
            M[:m], self.b * rows[:m], M[m:], self.h * rows[m:], self.lower / columns, self.upper / columns,
            None if self.elastic is None else cost * self.elastic / rows,
        ), scaling  # fmt: skip

    @property
    def fixed(self) -> Array:
        """Which unknowns have one value that their bounds allow: there is no interior between those."""
        return self.lower == self.upper

    def without_fixed(self) -> "InteriorProgram":
        """The program in which fixed unknowns take part in nothing but x_i^2 / 2 - l_i x_i, which gives them their value."""
        fixed = self.fixed
        value = jnp.where(fixed, self.lower, 0)
        free = lambda rows: jnp.where(fixed, 0, rows)
        P = jnp.where(fixed[:, None], 0, free(self.P)) + jnp.diag(jnp.where(fixed, 1, 0).astype(self.q.dtype))
        return self._replace(
            P=P, q=jnp.where(fixed, -value, self.q + self.P @ value),
            A=free(self.A), b=self.b - self.A @ value, G=free(self.G), h=self.h - self.G @ value,
            lower=jnp.where(fixed, -jnp.inf, self.lower), upper=jnp.where(fixed, jnp.inf, self.upper),
        )  # fmt: skip

    def multipliers(self, z: "Interior") -> tuple[Array, Array, Array, Array]:
        """nu, and mu of G and of both bounds, where those of fixed unknowns are what balances the gradient."""
        p, n = self.G.shape
        mu, low, up = z.mu[:p], z.mu[p : p + n], z.mu[p + n :]
        pull = self.P @ z.x + self.q + z.nu @ self.A + mu @ self.G
        low = jnp.where(self.fixed, jnp.maximum(pull, 0), low)
        return z.nu, mu, low, jnp.where(self.fixed, jnp.maximum(-pull, 0), up)

    def rows(self, x: Array) -> Array:
        """R x."""
        return jnp.concatenate([self.G @ x, -x, x])

    def pulled(self, multipliers: Array) -> Array:
        """R' mu."""
        p, n = self.G.shape
        return multipliers[:p] @ self.G - multipliers[p : p + n] + multipliers[p + n :]

    @property
    def sides(self) -> Array:
        """r."""
        return jnp.concatenate([self.h, -self.lower, self.upper])

    @property
    def penalty(self) -> tuple[Array, Array]:
        """rho of the equalities and of the inequalities."""
        m = len(self.b)
        rho = jnp.broadcast_to(jnp.asarray(self.elastic, self.q.dtype), (m + len(self.h),))
        return rho[:m], rho[m:]


class Interior(NamedTuple):
    """x, nu, mu and the slacks s; and the elastic parts with their multipliers pi = rho - mu, which stay positive.

    Those of hard constraints, and of absent ones, are zero or one and never move.
    """

    x: Array
    nu: Array
    mu: Array
    s: Array
    t: Array
    pi: Array
    v: Array
    w: Array
    pi_v: Array
    pi_w: Array


def restored(z: Interior, scaling: Scaling) -> Interior:
    """An iterate of a scaled program with hard constraints, as one of the program before."""
    columns, rows, cost = scaling
    m = len(z.nu)
    row = jnp.concatenate([rows[m:], 1 / columns, 1 / columns])
    return z._replace(x=z.x * columns, nu=z.nu * rows[:m] / cost, mu=z.mu * row / cost, s=z.s / row)


def _present(program: InteriorProgram) -> tuple[Array, Array]:
    """Which inequalities are there, and which of them are elastic."""
    there = jnp.isfinite(program.sides)
    p = len(program.h)
    elastic = there & (jnp.arange(there.size) < p) if program.elastic is not None else jnp.zeros_like(there)
    return there, elastic


def begin(program: InteriorProgram, x: Array) -> Interior:
    """An interior start near x: slacks and multipliers of about one, in a scaled program."""
    there, elastic = _present(program)
    m = len(program.b)
    slack = jnp.where(there, jnp.where(there, program.sides, 0) - program.rows(x), 1.0)
    one = jnp.ones_like(slack)
    s, t = jnp.maximum(slack, 1.0), jnp.where(elastic, jnp.maximum(-slack, 0) + 1.0, 1.0)
    mu = jnp.where(there, 1.0, 0.0)
    pi, equality = one, jnp.ones((m,), program.q.dtype)
    if program.elastic is not None:
        of_equalities, of_inequalities = program.penalty
        rho = jnp.concatenate([of_inequalities, jnp.ones((2 * x.size,), x.dtype)])
        mu = jnp.where(elastic, jnp.minimum(1.0, rho / 2), mu)
        pi = jnp.where(elastic, rho - mu, 1.0)
        equality = of_equalities
    miss = program.A @ x - program.b
    return Interior(
        x, jnp.zeros_like(program.b), mu, jnp.where(there, s, 1.0), t, pi,
        jnp.maximum(miss, 0) + 1.0, jnp.maximum(-miss, 0) + 1.0, equality, equality,
    )  # fmt: skip


class _Residuals(NamedTuple):
    dual: Array
    inequality: Array
    equality: Array
    pi: Array
    pi_v: Array
    pi_w: Array


def _residuals(program: InteriorProgram, z: Interior) -> _Residuals:
    there, elastic = _present(program)
    dual = program.P @ z.x + program.q + z.nu @ program.A + program.pulled(z.mu)
    sides = jnp.where(there, program.sides, 0)
    inequality = jnp.where(there, program.rows(z.x) + z.s - jnp.where(elastic, z.t, 0) - sides, 0)
    equality = program.A @ z.x - program.b
    zero_m, zero = jnp.zeros_like(z.nu), jnp.zeros_like(z.mu)
    if program.elastic is None:
        return _Residuals(dual, inequality, equality, zero, zero_m, zero_m)
    of_equalities, of_inequalities = program.penalty
    rho = jnp.concatenate([of_inequalities, jnp.ones((2 * z.x.size,), z.x.dtype)])
    return _Residuals(
        dual, inequality, equality - z.v + z.w, jnp.where(elastic, rho - z.mu - z.pi, 0),
        of_equalities - z.nu - z.pi_v, of_equalities + z.nu - z.pi_w,
    )  # fmt: skip


def minimise(program: InteriorProgram, x: Array, *, tolerance: Any, most: int) -> tuple[Interior, Array]:
    """The best iterate from x and how many it took; none of it is differentiated."""
    still, origin = constant((program, x))

    def iterate(carry):
        z, best, least, count, idle = carry
        z = advance(still, z)
        error = error_of(still, z)
        better = error < least
        best = jax.tree_util.tree_map(lambda new, old: jnp.where(better, new, old), z, best)
        idle = jnp.where(error < 0.9 * least, 0, jnp.where(jnp.isfinite(error), idle + 1, _PATIENCE))
        return z, best, jnp.where(better, error, least), count + 1, idle.astype(jnp.int32)

    def going(carry):
        _, _, least, count, idle = carry
        return (idle < _PATIENCE) & (least > tolerance) & (count < most)

    z = begin(still, origin)
    carry = (z, z, error_of(still, z), jnp.int32(0), jnp.int32(0))
    _, best, _, count, _ = jax.lax.while_loop(going, iterate, carry)
    return best, count


def error_of(program: InteriorProgram, z: Interior) -> Array:
    """How far z is from the conditions, each relative to one plus the terms in it: the largest."""
    there, elastic = _present(program)
    r = _residuals(program, z)
    largest = lambda *arrays: jnp.max(jnp.stack([jnp.max(jnp.abs(a), initial=0.0) for a in arrays]))
    curved, pulled = program.P @ z.x, z.nu @ program.A + program.pulled(z.mu)
    dual = largest(r.dual) / (1 + largest(curved, program.q, pulled))
    rows = jnp.where(there, program.rows(z.x), 0)
    sides = jnp.where(there, program.sides, 0)
    primal = largest(r.inequality, r.equality) / (1 + largest(rows, sides, program.b))
    value = jnp.abs(0.5 * z.x @ curved + program.q @ z.x)
    products = [jnp.where(there, z.mu * z.s, 0)]
    if program.elastic is not None:
        products += [jnp.where(elastic, z.pi * z.t, 0), z.pi_v * z.v, z.pi_w * z.w]
    return jnp.maximum(jnp.maximum(dual, primal), largest(*products) / (1 + value))


def _shift(matrix):
    """What is added to a matrix that rounding has made indefinite."""
    largest = jnp.max(jnp.abs(jnp.diagonal(matrix)), initial=1.0)
    return 10 * len(matrix) * jnp.finfo(matrix.dtype).eps * largest * jnp.eye(len(matrix), dtype=matrix.dtype)


def _factor_of_one(matrix):
    factor = cholesky(matrix)
    return jax.lax.cond(jnp.all(jnp.isfinite(factor)), lambda: factor, lambda: cholesky(matrix + _shift(matrix)))


def _factors_of_many(matrices):
    factors = jax.vmap(cholesky)(matrices)
    sound = jnp.all(jnp.isfinite(factors), axis=(1, 2))

    def some_shifted():
        shift = jnp.where(sound[:, None, None], 0, jax.vmap(_shift)(matrices))
        return jax.vmap(cholesky)(matrices + shift)

    return jax.lax.cond(jnp.all(sound), lambda: factors, some_shifted)


_factored = in_turn(_factor_of_one, _factors_of_many)


def _factor(matrix):
    """Cholesky's; where rounding has made the matrix indefinite, that of it with a larger shift."""
    return _factored(matrix)


def advance(program: InteriorProgram, z: Interior) -> Interior:
    """The iterate after a predictor and a corrector, with one factorisation."""
    there, elastic = _present(program)
    dtype = z.x.dtype
    delta = jnp.asarray(jnp.finfo(dtype).eps ** 0.5, dtype)
    r = _residuals(program, z)
    soft = program.elastic is not None
    # D^-1 and the weights of the rows
    spread = z.s / jnp.where(there, z.mu, 1) + (jnp.where(elastic, z.t / z.pi, 0) if soft else 0)
    weight = jnp.where(there, 1 / jnp.where(there, spread, 1), 0)
    softness = delta + (z.v / z.pi_v + z.w / z.pi_w if soft else jnp.zeros_like(z.nu))
    p, n = program.G.shape
    identity = jnp.eye(n, dtype=dtype)
    matrix = program.P + delta * identity + (program.G * weight[:p, None]).T @ program.G
    matrix = matrix + jnp.diag(weight[p : p + n] + weight[p + n :]) + (program.A / softness[:, None]).T @ program.A
    factor = _factor(matrix)

    def direction(c_s, c_t, c_v, c_w, refine: bool) -> Interior:
        """The Newton step for residuals r and products c, as an `Interior` of differences."""
        k = r.inequality - jnp.where(there, c_s / jnp.where(there, z.mu, 1), 0)
        e = r.equality
        if soft:
            k = k + jnp.where(elastic, (c_t + z.t * r.pi) / z.pi, 0)
            e = e + (c_v + z.v * r.pi_v) / z.pi_v - (c_w + z.w * r.pi_w) / z.pi_w

        def solved(dual, k, e):
            rhs = -dual - program.pulled(weight * k) - (e / softness) @ program.A
            dx = cholesky_solve(factor, rhs)
            return dx, (program.A @ dx + e) / softness, weight * (program.rows(dx) + k)

        dx, dnu, dmu = solved(r.dual, k, e)
        if refine:  # the whole system once: what the eliminated rows lose to rounding comes back
            dual = r.dual + program.P @ dx + delta * dx + dnu @ program.A + program.pulled(dmu)
            more = solved(
                dual, jnp.where(there, k + program.rows(dx) - spread * dmu, 0), e + program.A @ dx - softness * dnu
            )
            dx, dnu, dmu = dx + more[0], dnu + more[1], dmu + more[2]
        ds = jnp.where(there, (-c_s - z.s * dmu) / jnp.where(there, z.mu, 1), 0)
        if not soft:
            still, still_m = jnp.zeros_like(ds), jnp.zeros_like(dnu)
            return Interior(dx, dnu, dmu, ds, still, still, still_m, still_m, still_m, still_m)
        dpi = jnp.where(elastic, r.pi - dmu, 0)
        dt = jnp.where(elastic, (-c_t - z.t * dpi) / z.pi, 0)
        dpi_v, dpi_w = r.pi_v - dnu, r.pi_w + dnu
        return Interior(
            dx, dnu, dmu, ds, dt, dpi, (-c_v - z.v * dpi_v) / z.pi_v, (-c_w - z.w * dpi_w) / z.pi_w, dpi_v, dpi_w
        )

    pairs = [(z.mu, z.s, there)]
    if soft:
        everywhere = jnp.ones_like(z.nu, bool)
        pairs += [(z.pi, z.t, elastic), (z.pi_v, z.v, everywhere), (z.pi_w, z.w, everywhere)]
    count = jnp.maximum(sum(jnp.sum(mask) for _, _, mask in pairs), 1).astype(dtype)
    mean = lambda pairs: sum(jnp.sum(jnp.where(mask, a * b, 0)) for a, b, mask in pairs) / count
    tau = mean(pairs)

    def moved(d: Interior, length) -> Interior:
        return Interior(*(a + length * b for a, b in zip(z, d, strict=True)))

    def longest(d: Interior) -> Array:
        bound = jnp.full((), jnp.inf, dtype)
        steps = [(z.mu, d.mu, there), (z.s, d.s, there)]
        if soft:
            steps += [(z.pi, d.pi, elastic), (z.t, d.t, elastic)]
            steps += [(a, b, everywhere) for a, b in ((z.pi_v, d.pi_v), (z.v, d.v), (z.pi_w, d.pi_w), (z.w, d.w))]
        for value, change, mask in steps:
            ratio = jnp.where(mask & (change < 0), -value / jnp.where(change < 0, change, -1), jnp.inf)
            bound = jnp.minimum(bound, jnp.min(ratio, initial=jnp.inf))
        return bound

    affine = direction(z.mu * z.s, z.pi * z.t, z.pi_v * z.v, z.pi_w * z.w, refine=False)
    reach = jnp.minimum(1.0, longest(affine))
    predicted = moved(affine, reach)
    after = [(predicted.mu, predicted.s, there)]
    if soft:
        after += [(predicted.pi, predicted.t, elastic)]
        after += [(predicted.pi_v, predicted.v, everywhere), (predicted.pi_w, predicted.w, everywhere)]
    centring = jnp.clip(mean(after) / jnp.where(tau > 0, tau, 1), 0, 1) ** 3
    target = centring * tau
    # Products of a predictor that cannot be followed far mislead: with their full weight iterates can cycle.
    corrected = direction(
        z.mu * z.s + reach * affine.mu * affine.s - target, z.pi * z.t + reach * affine.pi * affine.t - target,
        z.pi_v * z.v + reach * affine.pi_v * affine.v - target, z.pi_w * z.w + reach * affine.pi_w * affine.w - target, refine=True,
    )  # fmt: skip
    return moved(corrected, jnp.minimum(1.0, _FRACTION * longest(corrected)))


_FRACTION = 0.995
_PATIENCE = 8  # iterations without a better one, after which rounding is what is left
