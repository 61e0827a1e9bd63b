r"""What transport problems with entropy have in common: a plan that two potentials make,

$$P_{ij} = a_i b_j\, e^{(f_i + g_j - C_{ij}) / \varepsilon},$$

and sums over it, none of which needs the matrix P.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError, GuessError
from ..core.problem import Objective
from ..core.tracing import is_tracer, show
from .costs import Cost, CostMatrix, Grid, PointCloud, as_floats

__all__ = ["DualTransport", "Potentials"]


class Potentials(eqx.Module):
    """The dual variables of a coupling, in the units of its cost: `f` (n,) of the sources, `g` (m,) of the targets."""

    f: Float[Array, " n"]
    g: Float[Array, " m"]

    def centred(self) -> "Potentials":
        """Those with equal means: the plan is the same."""
        shift = (jnp.mean(self.g) - jnp.mean(self.f)) / 2
        return Potentials(self.f + shift, self.g - shift)


class DualTransport(Objective):
    """A problem whose solution are the potentials of a plan: abstract. What differs is what is asked of the marginals."""

    cost: eqx.AbstractVar[Cost]
    a: eqx.AbstractVar[Float[Array, " n"]]
    b: eqx.AbstractVar[Float[Array, " m"]]
    epsilon: eqx.AbstractVar[Float[Array, ""]]

    # What methods use.

    def soft_rows(self, g: Float[Array, " m"], epsilon: Any = None) -> Float[Array, " n"]:
        """log sum_j b_j exp((g_j - C_ij) / epsilon): log(P 1 / a) - f / epsilon."""
        scale = 1 / (self.epsilon if epsilon is None else epsilon)
        return self.cost.logsumexp(g * scale + jnp.log(self.b), scale, 1)

    def soft_columns(self, f: Float[Array, " n"], epsilon: Any = None) -> Float[Array, " m"]:
        """log sum_i a_i exp((f_i - C_ij) / epsilon): log(P' 1 / b) - g / epsilon."""
        scale = 1 / (self.epsilon if epsilon is None else epsilon)
        return self.cost.logsumexp(f * scale + jnp.log(self.a), scale, 0)

    def start(self, guess: PyTree) -> Potentials:
        if guess is None:
            return Potentials(jnp.zeros_like(self.a), jnp.zeros_like(self.b))
        f, g = (guess.f, guess.g) if isinstance(guess, Potentials) else guess if isinstance(guess, tuple) and len(guess) == 2 else (None, None)
        shapes = [getattr(part, "shape", None) for part in (f, g)]
        if shapes != [self.a.shape, self.b.shape]:
            raise GuessError("guess", f"must be Potentials or a pair of shapes {self.a.shape} and {self.b.shape}, not {show(guess)}.")
        return Potentials(jnp.asarray(f, self.a.dtype), jnp.asarray(g, self.b.dtype))

    def traced(self, guess: PyTree) -> Any:
        return eqx.tree_at(lambda problem: problem.cost, self, self.cost.traced())

    def at_guess(self, value: Potentials) -> PyTree:
        """What both sums are finite with: the dual itself may overflow there, and sweeps start from it all the same."""
        scale = 1 / self.epsilon
        rows = self.cost.largest_term(value.g * scale + jnp.log(self.b), scale, 1)
        columns = self.cost.largest_term(value.f * scale + jnp.log(self.a), scale, 0)
        return value.f * scale + rows, value.g * scale + columns

    # What a solution tells.

    def plan(self, x: Potentials) -> Float[Array, "n m"]:
        """P, all of it."""
        logits = (x.f[:, None] + x.g[None, :] - self.cost.matrix()) / self.epsilon
        return jnp.exp(logits + jnp.log(self.a)[:, None] + jnp.log(self.b)[None, :])

    def push(self, x: Potentials, v: Float[Array, "m *k"]) -> Float[Array, "n *k"]:
        """P v, without P where the cost has no matrix: v are numbers or vectors, one for each target."""
        return self._apply(x.f, self.a, x.g, self.b, v, 1)

    def pull(self, x: Potentials, u: Float[Array, "n *k"]) -> Float[Array, "m *k"]:
        """P' u, one for each source."""
        return self._apply(x.g, self.b, x.f, self.a, u, 0)

    def _apply(self, left, left_weights, summed, summed_weights, v, axis):
        scale = 1 / self.epsilon
        log_sum, average = jax.linearize(lambda h: self.cost.logsumexp(h, scale, axis), summed * scale + jnp.log(summed_weights))
        mass = left_weights * jnp.exp(left * scale + log_sum)
        if v.ndim == 1:
            return mass * average(v)
        return mass[:, None] * jax.vmap(average, 1, 1)(v)

    def transport_cost(self, x: Potentials) -> Float[Array, ""]:
        """<C, P>, without the entropy: the value of `ot.sinkhorn2` of POT."""
        scale = 1 / self.epsilon
        return priced(self.cost, self.a, x.f * scale, x.g * scale + jnp.log(self.b), scale)


def priced(cost: Cost, left: Float[Array, " n"], log_left: Float[Array, " n"], log_right: Float[Array, " m"], scale: Array) -> Float[Array, ""]:
    """<C, Q> for Q = left_i exp(log_left_i + log_right_j - scale C_ij), without the matrix."""
    log_sum, slope = jax.jvp(lambda scale: cost.logsumexp(log_right, scale, 1), (scale,), (jnp.ones_like(scale),))
    return -jnp.sum(left * jnp.exp(log_left + log_sum) * slope)


# What a problem is made of.


def read_data(cost: Any, a: Any, b: Any, epsilon: Any, relative: bool, drop_empty: bool) -> tuple[Cost, Array, Array, Array]:
    """Cost, weights and epsilon in one precision; or an `ArgumentError` that names what is wrong with them."""
    cost = cost if isinstance(cost, Cost) else CostMatrix(cost)
    n, m = cost.shape
    a = jnp.full((n,), 1 / n, cost.dtype) if a is None else as_floats("a", a)
    b = jnp.full((m,), 1 / m, cost.dtype) if b is None else as_floats("b", b)
    for name, weights, count in (("a", a, n), ("b", b, m)):
        if weights.shape != (count,):
            raise ArgumentError(name, f"must have shape {(count,)}, as the cost has {cost.shape}; it has {weights.shape}.")
    if drop_empty:
        cost, a, b = _without_empty(cost, a, b)
    dtype = jnp.result_type(cost.dtype, a, b)
    cost = in_precision(cost, dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    need_weights("a", a)
    need_weights("b", b)
    epsilon = read_epsilon(epsilon).astype(dtype)
    if relative:
        epsilon = epsilon * jax.lax.stop_gradient(mean_cost(cost, a, b))
    need_resolved(cost, epsilon)
    return cost, a, b, epsilon


def in_precision(cost: Cost, dtype: Any) -> Cost:
    """The cost with its numbers in this precision."""
    return jtu.tree_map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, cost)


def read_epsilon(epsilon: Any) -> Array:
    """One positive number."""
    epsilon = as_floats("epsilon", epsilon)
    if epsilon.shape != () or (not is_tracer(epsilon) and not 0 < float(epsilon) < np.inf):
        raise ArgumentError("epsilon", f"must be one positive number, not {epsilon}.", "It is 1 / eta, in the units of the cost.")
    return epsilon


def mean_cost(cost: Cost, a: Array, b: Array) -> Array:
    """That of the independent coupling, over pairs that are not forbidden."""
    zero, none = jnp.zeros((), a.dtype), jnp.zeros_like(a)
    return priced(cost, a, none, jnp.log(b), zero) / jnp.sum(a * jnp.exp(cost.logsumexp(jnp.log(b), zero, 1)))


def _without_empty(cost: Cost, a: Array, b: Array) -> tuple[Cost, Array, Array]:
    if is_tracer(a) or is_tracer(b):
        raise ArgumentError("drop_empty", "needs weights that are known, not traced.")
    rows, columns = np.flatnonzero(np.asarray(a) != 0), np.flatnonzero(np.asarray(b) != 0)
    if len(rows) == a.size and len(columns) == b.size:
        return cost, a, b
    return cost.among(rows, columns), a[rows], b[columns]


def need_weights(name: str, weights: Array) -> None:
    """Positive and finite, or an error with the places where they are not."""
    if not is_tracer(weights):
        wrong = np.flatnonzero(~((np.asarray(weights) > 0) & np.isfinite(weights)))
        if len(wrong):
            where = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            hint = "`drop_empty=True` leaves out points of zero weight."
            raise ArgumentError(name, f"must be positive and finite, which it is not at {where}.", hint)


def need_resolved(cost: Cost, epsilon: Array) -> None:
    """That differences of the cost by epsilon are not lost in rounding."""
    if is_tracer(epsilon) or any(is_tracer(leaf) for leaf in jtu.tree_leaves(cost)):
        return
    largest = attained(cost)
    if largest * float(jnp.finfo(cost.dtype).eps) > 0.1 * float(epsilon):
        hint = "Use double precision, or a larger epsilon." if cost.dtype == jnp.float32 else "Use a larger epsilon."
        raise ArgumentError("epsilon", f"= {float(epsilon):.3g} is less than {cost.dtype} resolves of costs up to {largest:.3g}.", hint)


def attained(cost: Cost) -> float:
    """A cost that is attained, and about the largest; zero where that is not known."""
    if isinstance(cost, CostMatrix):
        entries = np.asarray(cost.entries)
        return float(np.max(np.abs(entries[np.isfinite(entries)]), initial=0))
    if isinstance(cost, Grid):
        return float(sum(np.max(np.abs(factor)) for factor in cost.factors))
    if isinstance(cost, PointCloud) and cost.fn is None:
        x, y = np.asarray(cost.x, np.float64), np.asarray(cost.y, np.float64)
        far = y[np.argmax(np.sum((y - np.mean(x, 0)) ** 2, 1))]
        square = np.max(np.sum((x - far) ** 2, 1))
        return float(square if cost.kind == "sqeuclidean" else np.sqrt(square))
    return 0.0
