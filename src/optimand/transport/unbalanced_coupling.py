r"""Entropic transport between masses that need not be equal.

$$\min_{P \ge 0} \langle C, P \rangle + \varepsilon\, \mathrm{KL}(P \,|\, a b^\top) + \tau_a\, \mathrm{KL}(P 1 \,|\, a) + \tau_b\,
\mathrm{KL}(P^\top 1 \,|\, b),$$

where an infinite \(\tau\) asks for that marginal exactly (Chizat, Peyré, Schmitzer and Vialard 2018). The dual is concave,

$$D(f, g) = \sum_i a_i \tau_a (1 - e^{-f_i / \tau_a}) + \sum_j b_j \tau_b (1 - e^{-g_j / \tau_b}) - \varepsilon \sum_{ij} P_{ij} +
\varepsilon \sum_i a_i \sum_j b_j,$$

with P as in `Coupling`, and its gradient is what the marginals of P lack of those that the potentials ask for,
\(a e^{-f / \tau_a} - P 1\) and \(b e^{-g / \tau_b} - P^\top 1\). The terms of the first two sums are a f and b g where \(\tau\) is
infinite.

POT's `unbalanced.sinkhorn_unbalanced` with `reg_type="kl"` is this problem, with `reg_m` for tau. OTT has the plain entropy, which is that of the
costs \(C_{ij} + \varepsilon \log (a_i b_j)\) here, and \(\tau / (\tau + \varepsilon)\) for `tau_a`, `tau_b`.

At the solution both marginals have the same sum, the mass m of the plan, and the value is
\(\tau_a (|a| - m) + \tau_b (|b| - m) + \varepsilon (|a| |b| - m)\), with |a| the sum of a.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .costs import Cost, CostMatrix, as_floats
from .dual_transport import DualTransport, Potentials, mean_cost, read_data
from .rounding import rounded

__all__ = ["UnbalancedCoupling"]


class UnbalancedCoupling(DualTransport):
    """Move mass `a` towards mass `b`, or destroy and create it where that is cheaper: a problem whose solution are `Potentials`.

    As an objective it is -D(f, g). Its gradient is the optimality condition, so a solution can be differentiated with respect to cost,
    points, weights, epsilon and tau; the value alone is cheaper to differentiate: see `envelope`.

    **Arguments:**

    - `cost`, `a`, `b`, `epsilon`, `drop_empty`: as for a `Coupling`; the sums of `a` and `b` may differ.
    - `tau`: what it costs to depart from the marginals, in the units of the cost: a positive number, or a pair of them for `a` and `b`.
      Mass is hardly moved over costs above the sum of the two. Infinite: the marginal is exact; both: the problem is a `Coupling`.
    - `relative`: epsilon and tau are in units of the mean cost of the independent coupling.

    Raises `ArgumentError`, naming the argument and the entry, for what a `Coupling` refuses, for a tau that is not positive, and for sums
    that differ while both tau are infinite.

    ```python
    x, y = jax.random.normal(jax.random.key(0), (2, 50, 2))
    problem = om.transport.UnbalancedCoupling(om.transport.PointCloud(x, y + 3), b=jnp.full(50, 0.03), epsilon=0.5, tau=2.0)
    solution = om.solve(problem, om.transport.UnbalancedSinkhorn(1e-4))
    problem.mass(solution.value)
    ```
    """

    cost: Cost
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]
    tau_a: Float[Array, ""]
    tau_b: Float[Array, ""]

    def __init__(
        self,
        cost: Any,
        a: Any = None,
        b: Any = None,
        *,
        epsilon: Any,
        tau: Any,
        relative: bool = False,
        drop_empty: bool = False,
    ):
        self.cost, self.a, self.b, self.epsilon = read_data(cost, a, b, epsilon, relative, drop_empty)
        pair = tau if isinstance(tau, tuple | list) else (tau, tau)
        if len(pair) != 2:
            raise ArgumentError("tau", f"must be a number or a pair of them, not {tau!r}.")
        if isinstance(self.cost, CostMatrix) and self.cost.forbids and not is_tracer(self.cost.entries):
            for name, axis in (("a", 1), ("b", 0)):
                alone = np.flatnonzero(~np.any(np.isfinite(self.cost.entries), axis))
                if len(alone):
                    raise ArgumentError("cost", f"forbids all pairs of {name} at {alone[0]}.", "Leave that point out: its mass cannot be moved.")
        unit = jax.lax.stop_gradient(mean_cost(self.cost, self.a, self.b)) if relative else 1
        self.tau_a, self.tau_b = (_read_tau(one).astype(self.a.dtype) * unit for one in pair)
        if not any(is_tracer(leaf) for leaf in (self.a, self.b, self.tau_a, self.tau_b)) and np.isinf(self.tau_a) and np.isinf(self.tau_b):
            sums = [float(np.sum(np.asarray(weights, np.float64))) for weights in (self.a, self.b)]
            if abs(sums[0] - sums[1]) > (1e-8 if self.a.dtype == jnp.float64 else 1e-5) * sums[0]:
                raise ArgumentError("tau", f"is infinite on both sides, and the sums differ: {sums[0]:.10g} and {sums[1]:.10g}.", "Make one finite.")

    # What methods use.

    @property
    def rates(self) -> tuple[Array, Array]:
        """1 / tau: zero where the marginal is exact."""
        return 1 / self.tau_a, 1 / self.tau_b

    def asked(self, x: Potentials) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The marginals that the potentials ask for."""
        rate_a, rate_b = self.rates
        return self.a * jnp.exp(-rate_a * x.f), self.b * jnp.exp(-rate_b * x.g)

    def log_errors(self, x: Potentials) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The logarithms of P 1 and P' 1 over what is asked for."""
        return self.log_errors_from(x, self.soft_rows(x.g), self.soft_columns(x.f))

    def log_errors_from(self, x: Potentials, soft_rows: Array, soft_columns: Array) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """The same, from the soft minima of x."""
        rate_a, rate_b = self.rates
        return (1 / self.epsilon + rate_a) * x.f + soft_rows, (1 / self.epsilon + rate_b) * x.g + soft_columns

    def dual_from(self, x: Potentials, soft_rows: Float[Array, " n"]) -> Float[Array, ""]:
        """D(f, g), from the soft minima over rows."""
        rate_a, rate_b = self.rates
        mass = jnp.sum(self.a * jnp.exp(x.f / self.epsilon + soft_rows))
        kept = self.a @ _saturating(x.f, rate_a) + self.b @ _saturating(x.g, rate_b)
        return kept - self.epsilon * (mass - jnp.sum(self.a) * jnp.sum(self.b))

    def error_from(self, x: Potentials, log_rows: Array, log_columns: Array) -> Float[Array, ""]:
        """`marginal_error`, from `log_errors`."""
        rows, columns = self.asked(x)
        error = jnp.sum(rows * jnp.abs(jnp.expm1(log_rows))) + jnp.sum(columns * jnp.abs(jnp.expm1(log_columns)))
        return error / jnp.minimum(jnp.sum(rows), jnp.sum(columns))

    def translation(self, x: Potentials) -> Float[Array, ""]:
        """The t for which D(f + t, g - t) is greatest: that with which the masses asked for are equal. Zero where both marginals are exact."""
        rate_a, rate_b = self.rates
        log_mass = [jax.nn.logsumexp(jnp.log(w) - r * p) for w, r, p in ((self.a, rate_a, x.f), (self.b, rate_b, x.g))]
        free = rate_a + rate_b > 0
        return jnp.where(free, (log_mass[0] - log_mass[1]) / jnp.where(free, rate_a + rate_b, 1), 0)

    # The objective.

    def value(self, x: Potentials, *, key: Array | None = None) -> Float[Array, ""]:
        gap = jnp.mean(x.f) - jnp.mean(x.g)
        return self._stiffness / 2 * gap**2 - self.dual(x)

    def gradient(self, x: Potentials, *, key: Array | None = None) -> Potentials:
        (rows, columns), (log_rows, log_columns) = self.asked(x), self.log_errors(x)
        pull = self._stiffness * (jnp.mean(x.f) - jnp.mean(x.g))
        return Potentials(rows * jnp.expm1(log_rows) + pull / self.a.size, columns * jnp.expm1(log_columns) - pull / self.b.size)

    def value_and_gradient(self, x: Potentials, *, key: Array | None = None) -> tuple[Array, Potentials]:
        return self.value(x), self.gradient(x)

    @property
    def _stiffness(self) -> Array:
        """As in a `Coupling` where both marginals are exact, and D does not change along (1, -1); else zero."""
        rate_a, rate_b = self.rates
        return jnp.where(rate_a + rate_b > 0, 0, jnp.sum(self.a) / self.epsilon)

    # What a solution tells.

    def dual(self, x: Potentials) -> Float[Array, ""]:
        """D(f, g): a lower bound of the regularised value, which it is at the solution."""
        return self.dual_from(x, self.soft_rows(x.g))

    def envelope(self, x: Potentials) -> Float[Array, ""]:
        """D with the potentials held constant: at a solution its derivatives are those of the regularised value."""
        return self.dual(jax.lax.stop_gradient(x))

    def mass(self, x: Potentials) -> Float[Array, ""]:
        """The sum of the plan."""
        return jnp.sum(self.a * jnp.exp(x.f / self.epsilon + self.soft_rows(x.g)))

    def marginal_error(self, x: Potentials) -> Float[Array, ""]:
        """How far the marginals of P are from those that the potentials ask for, sums of absolute values, in units of the mass."""
        return self.error_from(x, *self.log_errors(x))

    def primal(self, plan: Float[Array, "n m"]) -> Float[Array, ""]:
        """The regularised cost of a plan. Where tau is infinite the marginal is not looked at."""
        there = plan > 0
        moved = jnp.sum(jnp.where(there, plan * jnp.where(there, self.cost.matrix(), 0), 0))
        rate_a, rate_b = self.rates
        paid = [jnp.where(rate > 0, _kl(marginal, weights) / jnp.where(rate > 0, rate, 1), 0)
                for rate, marginal, weights in ((rate_a, plan.sum(1), self.a), (rate_b, plan.sum(0), self.b))]  # fmt: skip
        return moved + self.epsilon * _kl(plan, self.a[:, None] * self.b[None, :]) + paid[0] + paid[1]

    def feasible_plan(self, x: Potentials) -> Float[Array, "n m"]:
        """P, scaled so that a marginal whose tau is infinite is exact."""
        plan, tiny = self.plan(x), jnp.finfo(self.a.dtype).tiny
        rate_a, rate_b = self.rates
        by_rows = plan * (self.a / jnp.maximum(plan.sum(1), tiny))[:, None]
        by_columns = plan * (self.b / jnp.maximum(plan.sum(0), tiny))[None, :]
        one = jnp.where(rate_a > 0, jnp.where(rate_b > 0, plan, by_columns), by_rows)
        return jnp.where(rate_a + rate_b > 0, one, rounded(plan, self.a, self.b))

    def gap(self, x: Potentials) -> Float[Array, ""]:
        """How far D(f, g) and the feasible plan are from the optimum at most: the difference of their values."""
        return self.primal(self.feasible_plan(x)) - self.dual(x)


def _saturating(potential: Array, rate: Array) -> Array:
    """(1 - exp(-rate f)) / rate, and f for a rate of zero."""
    soft = rate > 0
    safe = jnp.where(soft, rate, 1)
    return jnp.where(soft, -jnp.expm1(-safe * potential) / safe, potential)


def _kl(p: Array, q: Array) -> Array:
    """sum p log (p / q) - p + q."""
    there = p > 0
    return jnp.sum(jnp.where(there, p * jnp.log(jnp.where(there, p, 1) / q), 0) - p + q)


def _read_tau(tau: Any) -> Array:
    tau = as_floats("tau", tau)
    if tau.shape != () or (not is_tracer(tau) and not float(tau) > 0):
        raise ArgumentError("tau", f"must be positive, not {tau}.", "Infinite asks for the marginal exactly.")
    return tau
