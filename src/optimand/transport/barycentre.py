r"""Barycentres with entropy: the weights p on given points that are nearest to several measures at once,

$$\min_p \sum_k w_k\, \min_{P_k} \left\{ \langle C_k, P_k \rangle + \varepsilon\, \mathrm{KL}(P_k \,|\, u b_k^\top) :\; P_k 1 = p,\;
P_k^\top 1 = b_k \right\},$$

with u equal weights on the points of p. The dual has potentials \(f_k\) and \(g_k\) with \(\sum_k w_k f_k = 0\). For given \(g_k\) the best
\(f_k\) are known: with the soft minima \(s_k = \log \sum_j b_{kj} e^{(g_{kj} - C_{k,ij}) / \varepsilon}\),

$$\log \frac{p}{u} = \frac{h}{\varepsilon} + \sum_k w_k s_k, \qquad \frac{f_k}{\varepsilon} = \log \frac{p}{u} - s_k, \qquad
  D(g) = \sum_k w_k \langle b_k, g_k \rangle - \varepsilon \sum_i p_i + \text{const},$$

with h = 0 (Benamou et al. 2015). Left are the conditions \(P_k^\top 1 = b_k\), which determine all but the means of \(g_k\): the problem
chooses equal ones.

Entropy blurs p: it has more variance than the measures. The distance of Sinkhorn divergences is without this bias to first order: the plan
Q of p to itself, with the potential h of both sides, enters with the weight -1/2, which makes of h = 0 the condition \(Q 1 = p\), \(Q_{ij}
= u_i u_j e^{(h_i + h_j - C_{ij}) / \varepsilon}\) (Janati, Cuturi and Gramfort 2020). Such a barycentre may leave points empty: there h
falls without bound, and has no derivative.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError, GuessError
from ..core.problem import Problem
from ..core.tracing import is_tracer, show
from .costs import Cost, CostMatrix, as_floats
from .dual_transport import in_precision, need_resolved, need_weights, read_epsilon

__all__ = ["Barycentre", "BarycentrePotentials"]


class BarycentrePotentials(eqx.Module):
    """The dual variables of a barycentre, in the units of its cost: `g[k]` (m_k,) of each measure, `h` (n,) of the barycentre to itself."""

    g: tuple[Float[Array, " _"], ...]
    h: Float[Array, " n"]


class Barycentre(Problem):
    """Weights on n given points that are nearest to K measures, in entropic transport: a problem whose solution are `BarycentrePotentials`.

    `weights(x)` are those of the barycentre. They can be differentiated with respect to costs, measures, `shares` and epsilon, by the
    implicit function theorem, also where a share is zero; the value by `envelope` alone.

    **Arguments:**

    - `cost`: between the n points and those of the measures: a matrix (n, m) or a `Cost` for all of them, or a sequence, one for each.
    - `b`: the measures, a matrix (K, m) or a sequence of vectors; positive, with equal sums, which is the mass of the barycentre.
    - `shares`: w (K,), not negative, with sum one; by default equal.
    - `epsilon`: the weight of the entropy, in the units of the cost.
    - `within`: the cost (n, n) of the n points to each other, symmetric. With it the distance is the Sinkhorn divergence, and the
      barycentre is not blurred.

    Raises `ArgumentError`, naming the argument, for shapes that do not fit, forbidden pairs, weights that are not positive, sums that
    differ, and for an epsilon that the precision cannot resolve.

    ```python
    grid = jnp.linspace(0.0, 1.0, 50)
    bumps = jnp.stack([jax.nn.softmax(-((grid - centre) ** 2) / 0.005) for centre in (0.25, 0.75)])
    problem = om.transport.Barycentre(om.transport.Grid([grid]), bumps + 1e-12, epsilon=0.01)
    solution = om.solve(problem, om.transport.BregmanProjections(1e-4))
    grid[jnp.argmax(problem.weights(solution.value))]      # in the middle
    ```
    """

    costs: tuple[Cost, ...]
    which: tuple[int, ...] = eqx.field(static=True)
    b: tuple[Float[Array, " _"], ...]
    shares: Float[Array, " K"]
    epsilon: Float[Array, ""]
    within: Cost | None

    def __init__(self, cost: Any, b: Any, shares: Any = None, *, epsilon: Any, within: Any = None):
        measures = [as_floats("b", one) for one in b]
        count = len(measures)
        if not count or any(one.ndim != 1 for one in measures):
            raise ArgumentError("b", "must be a matrix with a measure in each row, or a sequence of vectors.")
        several = isinstance(cost, Sequence) and not isinstance(cost, np.ndarray | jax.Array)
        costs = [one if isinstance(one, Cost) else CostMatrix(one) for one in (cost if several else [cost])]
        if several and len(costs) != count:
            raise ArgumentError("cost", f"has {len(costs)} entries for {count} measures.")
        within = within if within is None or isinstance(within, Cost) else CostMatrix(within)
        self.which = tuple(range(count)) if several else (0,) * count
        n = costs[0].shape[0]
        for k, one in enumerate(measures):
            if costs[self.which[k]].shape != (n, one.size):
                raise ArgumentError("b", f"[{k}] has {one.size} entries, and its cost the shape {costs[self.which[k]].shape}; {(n, one.size)} fits.")
        if within is not None and within.shape != (n, n):
            raise ArgumentError("within", f"must have shape {(n, n)}, not {within.shape}.")
        shares = jnp.full((count,), 1 / count, measures[0].dtype) if shares is None else as_floats("shares", shares)
        if shares.shape != (count,):
            raise ArgumentError("shares", f"must have shape {(count,)}, one for each measure, not {shares.shape}.")
        if not is_tracer(shares) and (not np.all(np.asarray(shares) >= 0) or abs(float(np.sum(np.asarray(shares, np.float64))) - 1) > 1e-5):
            raise ArgumentError("shares", f"must not be negative and have the sum one, not {shares}.")
        dtype = jnp.result_type(*measures, *(one.dtype for one in costs), shares)
        self.costs = tuple(in_precision(one, dtype) for one in costs)
        self.within = None if within is None else in_precision(within, dtype)
        self.b = tuple(one.astype(dtype) for one in measures)
        self.shares = shares.astype(dtype)
        for k, one in enumerate(self.b):
            need_weights(f"b[{k}]", one)
        _need_one_mass(self.b)
        self.epsilon = read_epsilon(epsilon).astype(dtype)
        for one in (*self.costs, *(() if self.within is None else (self.within,))):
            if isinstance(one, CostMatrix) and one.forbids and not is_tracer(one.entries):
                raise ArgumentError("cost", "forbids pairs, which a barycentre does not allow for.")
            need_resolved(one, self.epsilon)

    # What methods use.

    @property
    def size(self) -> int:
        """n."""
        return self.costs[0].shape[0]

    def soft_rows(self, x: BarycentrePotentials) -> Float[Array, "K n"]:
        """s_k for each measure."""
        scale = 1 / self.epsilon
        return jnp.stack([self.costs[c].logsumexp(g * scale + jnp.log(b), scale, 1) for c, g, b in zip(self.which, x.g, self.b, strict=True)])

    def soft_columns(self, f: Float[Array, "K n"]) -> tuple[Float[Array, " _"], ...]:
        """log sum_i u_i exp((f_ki - C_k,ij) / epsilon) for each measure."""
        scale = 1 / self.epsilon
        return tuple(self.costs[c].logsumexp(one * scale - math.log(self.size), scale, 0) for c, one in zip(self.which, f, strict=True))

    def soft_within(self, h: Float[Array, " n"]) -> Float[Array, " n"]:
        """log sum_j u_j exp((h_j - C_ij) / epsilon), of the cost within."""
        if self.within is None:
            return jnp.zeros_like(h)
        scale = 1 / self.epsilon
        return self.within.logsumexp(h * scale - math.log(self.size), scale, 1)

    def log_density(self, x: BarycentrePotentials, soft_rows: Float[Array, "K n"]) -> Float[Array, " n"]:
        """log(p / u), from the soft minima."""
        return x.h / self.epsilon + self.shares @ soft_rows

    def log_errors(self, x: BarycentrePotentials) -> BarycentrePotentials:
        """log(P_k' 1 / b_k), and log(Q 1 / p)."""
        return self.log_errors_from(x, self.soft_rows(x))

    def log_errors_from(self, x: BarycentrePotentials, soft_rows: Float[Array, "K n"]) -> BarycentrePotentials:
        """The same, from the soft minima of x."""
        log_density = self.log_density(x, soft_rows)
        columns = self.soft_columns(self.epsilon * (log_density - soft_rows))
        within = jnp.zeros_like(x.h) if self.within is None else x.h / self.epsilon + self.soft_within(x.h) - log_density
        return BarycentrePotentials(tuple(g / self.epsilon + s for g, s in zip(x.g, columns, strict=True)), within)

    # The problem.

    def optimality(self, value: BarycentrePotentials) -> BarycentrePotentials:
        """What the marginals exceed, and a pull to equal means of g; h without `within` is zero."""
        log_errors = self.log_errors(value)
        means = jnp.stack([jnp.mean(g) for g in value.g])
        pulls = jnp.sum(self.b[0]) / self.epsilon * (means - self.shares @ means)
        g = tuple(b * jnp.expm1(e) + pull / b.size for b, e, pull in zip(self.b, log_errors.g, pulls, strict=True))
        if self.within is None:
            return BarycentrePotentials(g, value.h)
        return BarycentrePotentials(g, self.weights(value) * jnp.expm1(log_errors.h))

    def start(self, guess: PyTree) -> BarycentrePotentials:
        if guess is None:
            return BarycentrePotentials(tuple(jnp.zeros_like(b) for b in self.b), jnp.zeros((self.size,), self.epsilon.dtype))
        wanted = self.start(None)
        shapes = [getattr(leaf, "shape", None) for leaf in jax.tree_util.tree_leaves(guess)]
        if not isinstance(guess, BarycentrePotentials) or shapes != [leaf.shape for leaf in jax.tree_util.tree_leaves(wanted)]:
            raise GuessError("guess", f"must be {show(wanted)}, not {show(guess)}.")
        return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, self.epsilon.dtype), guess)

    def at_guess(self, value: PyTree) -> PyTree:
        return self.log_errors(value)

    def traced(self, guess: PyTree) -> "Barycentre":
        within = None if self.within is None else self.within.traced()
        costs = tuple(one.traced() for one in self.costs)
        return eqx.tree_at(lambda problem: (problem.costs, problem.within), self, (costs, within), is_leaf=lambda leaf: leaf is None)

    # What a solution tells.

    def weights(self, x: BarycentrePotentials) -> Float[Array, " n"]:
        """p, the barycentre."""
        return jnp.exp(self.log_density(x, self.soft_rows(x))) / self.size

    def dual(self, x: BarycentrePotentials) -> Float[Array, ""]:
        """The dual function: at the solution the value, sum_k w_k OT(p, b_k), less half of OT(p, p) with `within`; both with entropies relative to u."""
        mass = jnp.sum(self.b[0])
        moved = self.shares @ jnp.stack([b @ g for b, g in zip(self.b, x.g, strict=True)])
        value = moved + self.epsilon * (mass - jnp.sum(self.weights(x)))
        if self.within is None:
            return value
        own = jnp.sum(jnp.exp(x.h / self.epsilon + self.soft_within(x.h))) / self.size
        return value + self.epsilon / 2 * (own - 1)

    def envelope(self, x: BarycentrePotentials) -> Float[Array, ""]:
        """The dual function with the potentials held constant: at a solution its derivatives are those of the value."""
        return self.dual(jax.lax.stop_gradient(x))

    def marginal_error(self, x: BarycentrePotentials) -> Float[Array, ""]:
        """The greatest error of a marginal, a sum of absolute values, in units of the mass."""
        return self.error_from(self.log_errors(x), self.weights(x))

    def error_from(self, log_errors: BarycentrePotentials, weights: Float[Array, " n"]) -> Float[Array, ""]:
        """The same, from `log_errors`."""
        measured = [jnp.sum(b * jnp.abs(jnp.expm1(e))) for b, e in zip((*self.b, weights), (*log_errors.g, log_errors.h), strict=True)]
        return jnp.max(jnp.stack(measured)) / jnp.sum(self.b[0])


def _need_one_mass(b: tuple[Array, ...]) -> None:
    if any(is_tracer(one) for one in b):
        return
    sums = [float(np.sum(np.asarray(one, np.float64))) for one in b]
    for k, total in enumerate(sums):
        if abs(total - sums[0]) > (1e-8 if b[0].dtype == jnp.float64 else 1e-5) * sums[0]:
            raise ArgumentError("b", f"[{k}] has the sum {total:.10g}, and [0] {sums[0]:.10g}.", "Divide each by its sum.")
