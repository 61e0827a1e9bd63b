r"""Entropic optimal transport.

$$\min_{P \ge 0} \langle C, P \rangle + \varepsilon\, \mathrm{KL}(P \,|\, a b^\top) \quad\text{s.t.}\quad P 1 = a,\; P^\top 1 = b,$$

with \(\mathrm{KL}(P | Q) = \sum_{ij} P_{ij} \log (P_{ij} / Q_{ij}) - P_{ij} + Q_{ij}\). What is solved for are the potentials of the dual, which is
concave and without constraints:

$$D(f, g) = \langle a, f \rangle + \langle b, g \rangle - \varepsilon \sum_{ij} P_{ij} + \varepsilon \sum_i a_i \sum_j b_j, \qquad
  P_{ij} = a_i b_j\, e^{(f_i + g_j - C_{ij}) / \varepsilon}.$$

Its gradient is what the marginals of P lack, (a - P 1, b - P' 1). D does not change if a number is added to f and subtracted from g: the
problem chooses the potentials with equal means.

How others write it. The value D is that of OTT (`reg_ot_cost`) and, for weights with sum one, exceeds the one with the plain entropy
\(\sum P \log P\) by \(\varepsilon (H(a) + H(b))\), H the entropy of the weights. OTT's potentials are
\(f + \varepsilon \log a\) and \(g + \varepsilon \log b\), the logarithms of POT's scalings are those divided by \(\varepsilon\), and in the form
\(P = e^{\eta (x + y - C) - 1}\), \(\eta = 1 / \varepsilon\), of Tang et al. (2024) they are \(x = f + \varepsilon (\log a + 1)\) and
\(y = g + \varepsilon \log b\). The plan and what it costs, `ot.sinkhorn2` of POT, are the same in all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float
from scipy.sparse.csgraph import maximum_flow

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .costs import Cost, CostMatrix, Grid, PointCloud
from .dual_transport import DualTransport, Potentials, priced, read_data
from .rounding import rounded
from .thinned_hessian import thinned_inverse

__all__ = ["Coupling", "Potentials", "lyapunov_potential"]


class Coupling(DualTransport):
    """Move mass `a` to mass `b` at the least cost, with a penalty on the entropy: a problem whose solution are `Potentials`.

    As an objective it is -D(f, g), plus a term that is zero for potentials with equal means. Its gradient, the error of the marginals, is the
    optimality condition, so a solution can be differentiated with respect to cost, points, weights and epsilon. The value alone is
    cheaper to differentiate: see `envelope`.

    **Arguments:**

    - `cost`: a matrix (n, m), in which +inf forbids a pair, or a `PointCloud`, a `Grid`, a `Cost` of yours.
    - `a`, `b`: weights (n,) and (m,), positive, with the same sum; by default equal weights with sum one.
    - `epsilon`: the weight of the entropy, in the units of the cost; 1 / eta of Tang et al. With `relative=True` it is in units of the mean
      cost of the independent coupling, which is then held constant in derivatives.
    - `drop_empty`: leave out points of zero weight, instead of refusing them.

    Derivatives with respect to weights are those along changes that keep the sums equal, and determined up to a constant. If the
    sums differ by a little, no plan has both marginals, and a tolerance below that difference is not reached.

    Raises `ArgumentError`, naming the argument and the entry, for shapes that do not fit, weights that are not positive, sums that differ by more
    than 1e-8 (in single precision 1e-5), an epsilon that is not positive or that the precision cannot resolve, NaN in the cost,
    and forbidden pairs that leave no plan. Inside `jit` and `vmap` only shapes can be looked at.

    ```python
    x, y = jax.random.normal(jax.random.key(0), (2, 50, 2))
    problem = om.transport.Coupling(om.transport.PointCloud(x, y), epsilon=0.05, relative=True)
    solution = om.solve(problem, om.transport.Sinkhorn(1e-4))
    problem.transport_cost(solution.value)
    ```
    """

    cost: Cost
    a: Float[Array, " n"]
    b: Float[Array, " m"]
    epsilon: Float[Array, ""]

    def __init__(
        self,
        cost: Any,
        a: Any = None,
        b: Any = None,
        *,
        epsilon: Any,
        relative: bool = False,
        drop_empty: bool = False,
    ):
        self.cost, self.a, self.b, self.epsilon = read_data(cost, a, b, epsilon, relative, drop_empty)
        _need_equal_sums(self.a, self.b)
        if isinstance(self.cost, CostMatrix) and self.cost.forbids and not any(is_tracer(leaf) for leaf in (self.cost.entries, self.a, self.b)):
            _need_feasible(np.isfinite(self.cost.entries), np.asarray(self.a), np.asarray(self.b))

    @staticmethod
    def of(source: Any, a: Any = None, b: Any = None, epsilon: Any = None) -> "Coupling":
        """The coupling of a geometry or a linear problem of OTT (anything with their attributes), or of a cost matrix as POT takes it.

        Weights of length zero are equal weights, as in POT; `epsilon` is by default that of the geometry. Raises `ArgumentError` for a
        source that is neither, and for a problem of OTT whose marginals are penalised.
        """
        if any(not is_tracer(tau) and float(tau) != 1 for tau in (getattr(source, "tau_a", 1), getattr(source, "tau_b", 1))):
            raise ArgumentError("source", "has penalised marginals.", "`UnbalancedCoupling` takes tau = epsilon tau_a / (1 - tau_a).")
        geometry = getattr(source, "geom", source)
        weights = [getattr(source, name, None) if given is None else given for name, given in (("a", a), ("b", b))]
        a, b = (None if given is None or len(given) == 0 else given for given in weights)
        if epsilon is None:
            epsilon = getattr(geometry, "epsilon", None)
            epsilon = getattr(epsilon, "target", epsilon)
        if epsilon is None:
            raise ArgumentError("epsilon", "is missing: this source has none.")
        return Coupling(_cost_of(geometry), a, b, epsilon=epsilon)

    # What methods use.

    def log_errors(self, x: Potentials) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """log(P 1 / a) and log(P' 1 / b)."""
        return x.f / self.epsilon + self.soft_rows(x.g), x.g / self.epsilon + self.soft_columns(x.f)

    def dual_from(self, x: Potentials, log_rows: Float[Array, " n"]) -> Float[Array, ""]:
        """D(f, g), where log(P 1 / a) is known."""
        mass = jnp.sum(self.a * jnp.exp(log_rows))
        return self.a @ x.f + self.b @ x.g - self.epsilon * (mass - jnp.sum(self.a) * jnp.sum(self.b))

    # The objective.

    def value(self, x: Potentials, *, key: Array | None = None) -> Float[Array, ""]:
        gap = jnp.mean(x.f) - jnp.mean(x.g)
        return self._stiffness / 2 * gap**2 - self.dual(x)

    def gradient(self, x: Potentials, *, key: Array | None = None) -> Potentials:
        return self._gradient_from(x, *self.log_errors(x))

    def value_and_gradient(self, x: Potentials, *, key: Array | None = None) -> tuple[Array, Potentials]:
        log_rows, log_columns = self.log_errors(x)
        gap = jnp.mean(x.f) - jnp.mean(x.g)
        return self._stiffness / 2 * gap**2 - self.dual_from(x, log_rows), self._gradient_from(x, log_rows, log_columns)

    def _gradient_from(self, x: Potentials, log_rows: Array, log_columns: Array) -> Potentials:
        pull = self._stiffness * (jnp.mean(x.f) - jnp.mean(x.g))
        return Potentials(self.a * jnp.expm1(log_rows) + pull / self.a.size, self.b * jnp.expm1(log_columns) - pull / self.b.size)

    @property
    def _stiffness(self) -> Array:
        """The curvature along (1, -1), where D has none: about that of D elsewhere."""
        return jnp.sum(self.a) / self.epsilon

    def precondition(self, rhs: Potentials) -> Potentials:
        """The inverse of the diagonal of the Hessian at a solution, for `Implicit(preconditioner=problem.precondition)`.

        It costs nothing, and does for an epsilon above a hundredth of the mean cost; below that the default, `preconditioner`, does better.
        """
        return Potentials(self.epsilon * rhs.f / self.a, self.epsilon * rhs.g / self.b)

    def preconditioner(self, value: Potentials) -> Callable | None:
        """Makes the inverse of the Hessian with only the large entries of the plan, where the cost is a matrix.

        A derivative uses it by itself where products with the whole plan become many, as they do for small epsilon;
        `Implicit(preconditioner=problem.preconditioner(value)())` uses it at once.
        """
        if not isinstance(self.cost, CostMatrix):
            return None

        def make():
            plan = self.plan(value)
            return thinned_inverse(plan, jnp.sum(plan, 1), jnp.sum(plan, 0), self.epsilon, self._stiffness)

        return make

    # What a solution tells.

    def dual(self, x: Potentials) -> Float[Array, ""]:
        """D(f, g): a lower bound of the regularised value, which it is at the solution."""
        return self.dual_from(x, x.f / self.epsilon + self.soft_rows(x.g))

    def envelope(self, x: Potentials) -> Float[Array, ""]:
        """D with the potentials held constant: at a solution its derivatives are those of the regularised value.

        That is the envelope theorem: P with respect to C, f to a, g to b. No linear system is solved.
        """
        return self.dual(jax.lax.stop_gradient(x))

    def marginal_error(self, x: Potentials) -> Float[Array, ""]:
        """|P 1 - a| + |P' 1 - b|, sums of absolute values, in units of the mass."""
        return self.error_from(*self.log_errors(x))

    def error_from(self, log_rows: Float[Array, " n"], log_columns: Float[Array, " m"]) -> Float[Array, ""]:
        """The same, from `log_errors`."""
        error = jnp.sum(self.a * jnp.abs(jnp.expm1(log_rows))) + jnp.sum(self.b * jnp.abs(jnp.expm1(log_columns)))
        return error / jnp.sum(self.a)

    def primal(self, plan: Float[Array, "n m"]) -> Float[Array, ""]:
        """The regularised cost of a plan, <C, P> + epsilon KL(P | a b')."""
        independent = self.a[:, None] * self.b[None, :]
        there = plan > 0
        entropy = jnp.sum(jnp.where(there, plan * jnp.log(jnp.where(there, plan, 1) / independent), 0) - plan + independent)
        return self._priced(plan) + self.epsilon * entropy

    def _priced(self, plan: Array) -> Array:
        there = plan > 0
        return jnp.sum(jnp.where(there, plan * jnp.where(there, self.cost.matrix(), 0), 0))

    def rounded_plan(self, x: Potentials) -> Float[Array, "n m"]:
        """A plan with exactly these marginals, near P (Altschuler, Weed and Rigollet 2017, algorithm 2)."""
        return rounded(self.plan(x), self.a, self.b)

    def gap(self, x: Potentials) -> Float[Array, ""]:
        """How far D(f, g) and the rounded plan are from the optimum at most: the difference of their values."""
        return self.primal(self.rounded_plan(x)) - self.dual(x)

    def bracket(self, x: Potentials) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """A lower and an upper bound of the transport cost without entropy, the linear program.

        Above is the cost of the rounded plan, below the value of potentials that satisfy f_i + g_j <= C_ij, made of these by minima that
        are softened by a millionth of epsilon, downwards. For a cost |x - y| this brackets the Wasserstein distance W1, for |x - y|^2 the square of
        W2. No matrix is formed where the cost has none. Above is infinite where the rounded plan uses forbidden pairs.
        """
        hard = 1e6 / self.epsilon
        f = -self.cost.logsumexp(x.g * hard, hard, 1) / hard
        g = -self.cost.logsumexp(f * hard, hard, 0) / hard
        return self.a @ f + self.b @ g, self._rounded_cost(x)

    def _rounded_cost(self, x: Potentials) -> Array:
        """<C, Q> for the plan that `rounded` makes, diag(u) P diag(v) and what is lacking, of rank one."""
        scale, tiny = 1 / self.epsilon, jnp.finfo(self.a.dtype).tiny
        log_u = -jnp.maximum(x.f * scale + self.soft_rows(x.g), 0)
        columns = self.pull(x, jnp.exp(log_u))
        v = jnp.minimum(self.b / jnp.maximum(columns, tiny), 1)
        lacking_a = jnp.maximum(self.a - jnp.exp(log_u) * self.push(x, v), 0)
        log_b = jnp.log(jnp.maximum(self.b - columns * v, tiny))
        kept = priced(self.cost, self.a, x.f * scale + log_u, x.g * scale + jnp.log(self.b * v), scale)
        zero, total = jnp.zeros_like(scale), jnp.maximum(jnp.sum(lacking_a), tiny)
        added = priced(self.cost, lacking_a, jnp.zeros_like(self.a), log_b, zero) / total
        if not (isinstance(self.cost, CostMatrix) and self.cost.forbids):
            return kept + added
        allowed = jnp.sum(lacking_a * jnp.exp(self.cost.logsumexp(log_b, zero, 1))) / total
        astray = jnp.sum(jnp.exp(log_b)) - allowed
        return jnp.where(astray > 8 * jnp.finfo(self.a.dtype).eps * jnp.sum(self.a), jnp.inf, kept + added)


def lyapunov_potential(problem: Coupling, x: Potentials) -> Float[Array, ""]:
    r"""The dual function of Tang et al. (2024), for the plain entropy: what Sinkhorn sweeps and Newton steps raise.

    \(f(x, y) = -\frac1\eta \sum_{ij} e^{\eta (x_i + y_j - C_{ij}) - 1} + a^\top x + b^\top y\), at the x and y of these potentials. For weights with sum one
    it is D less \(\varepsilon (H(a) + H(b))\).
    """
    entropies = problem.a @ jnp.log(problem.a) + problem.b @ jnp.log(problem.b) + jnp.sum(problem.a)
    mass = jnp.sum(problem.a) * jnp.sum(problem.b)
    return problem.dual(x) + problem.epsilon * (entropies - mass)


def _cost_of(geometry: Any) -> Cost:
    if isinstance(geometry, Cost):
        return geometry
    if hasattr(geometry, "grid_size") and hasattr(geometry, "cost_fns"):
        costs = list(geometry.cost_fns)
        costs += [costs[-1]] * (len(geometry.x) - len(costs))
        return Grid(list(geometry.x), cost=[_of_numbers(cost) for cost in costs])
    scaled = getattr(geometry, "inv_scale_cost", 1.0)
    plain = not is_tracer(scaled) and float(scaled) == 1.0
    if all(hasattr(geometry, name) for name in ("x", "y", "cost_fn")) and plain:
        names: dict[str, Any] = {"SqEuclidean": "sqeuclidean", "Euclidean": "euclidean"}
        return PointCloud(geometry.x, geometry.y, names.get(type(geometry.cost_fn).__name__, geometry.cost_fn))
    return CostMatrix(geometry.cost_matrix if hasattr(geometry, "cost_matrix") else geometry)


def _of_numbers(cost: Any) -> Any:
    """A cost of OTT, which is between vectors, between numbers."""
    return "sqeuclidean" if type(cost).__name__ == "SqEuclidean" else lambda p, q: cost(p[None], q[None])


def _need_equal_sums(a: Array, b: Array) -> None:
    if not is_tracer(a) and not is_tracer(b):
        sums = [float(np.sum(np.asarray(weights, np.float64))) for weights in (a, b)]
        if abs(sums[0] - sums[1]) > (1e-8 if a.dtype == jnp.float64 else 1e-5) * sums[0]:
            hint = "Divide each by its sum; `UnbalancedCoupling` takes masses that differ."
            raise ArgumentError("b", f"has the sum {sums[1]:.10g}, and a {sums[0]:.10g}.", hint)


def _need_feasible(allowed: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """That there is a plan on the allowed pairs: a maximal flow, in whole units of 2^-30 of the mass."""
    n, m = allowed.shape
    units = [np.floor(weights / np.sum(weights) * 2.0**30).astype(np.int32) for weights in (a, b)]
    i, j = np.nonzero(allowed)
    rows = np.concatenate([np.zeros(n, int), 1 + i, 1 + n + np.arange(m)])
    columns = np.concatenate([1 + np.arange(n), 1 + n + j, np.full(m, n + m + 1)])
    capacity = np.concatenate([units[0], np.full(len(i), 2**30, np.int32), units[1]])
    graph = scipy.sparse.csr_array((capacity, (rows, columns)), shape=(n + m + 2,) * 2)
    flow = maximum_flow(graph, 0, n + m + 1).flow_value
    if flow < min(np.sum(units[0], dtype=np.int64), np.sum(units[1], dtype=np.int64)) - (n + m):
        raise ArgumentError("cost", f"forbids too much: at most {flow / 2**30:.6g} of the mass can be moved.", "Allow more pairs.")
