r"""Transport without entropy, between bounds: the linear program

$$\min_{P \ge 0} \langle C, P \rangle \quad\text{s.t.}\quad P 1 = a,\; P^\top 1 = b,$$

and the Wasserstein distances \(W_p = (\min \sum_{ij} |x_i - y_j|^p P_{ij})^{1/p}\). Potentials of any entropic problem give a lower bound,
once \(g_j = \min_i C_{ij} - f_i\) has made them feasible, and its plan an upper one, once rounded (`Coupling.bracket`). Epsilon is lowered,
each solve beginning where the last one ended, until the bounds are as near to each other as asked for.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.arguments import need_between, need_count
from ..core.budget import Budget
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solve import solve
from ..core.tracing import is_tracer
from .costs import Cost, CostMatrix, PointCloud
from .dual_transport import Potentials, attained, mean_cost
from .problem import Coupling
from .sinkhorn import Sinkhorn
from .sinkhorn_newton_sparse import SinkhornNewtonSparse

__all__ = ["TransportBounds", "transport_bounds", "wasserstein"]

FIRST = 0.1  # epsilon of the first solve, in units of the mean cost
DECAY = 0.25
PLAN_FITS = 16_000_000  # pairs up to which Newton's method may form the plan


class TransportBounds(eqx.Module):
    """Two numbers with the optimum between them, and what they were made of.

    - `lower`, `upper`: the bounds. `met`: whether they are as near as asked for.
    - `problem`, `potentials`: the last entropic problem and its solution: `problem.rounded_plan(potentials)` is a plan near the optimum.
    - `solves`, `steps`: how many entropic problems, and steps of all of them.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    met: bool = eqx.field(static=True)
    problem: Coupling
    potentials: Potentials
    solves: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    @property
    def gap(self) -> Float[Array, ""]:
        """upper - lower."""
        return self.upper - self.lower


def transport_bounds(
    cost: Any,
    a: Any = None,
    b: Any = None,
    *,
    gap: float = 1e-3,
    method: Method | None = None,
    steps: int = 2000,
    solves: int = 12,
) -> TransportBounds:
    """The least cost of transport, without entropy, between two bounds with a relative distance of at most `gap`.

    **Arguments:**

    - `cost`, `a`, `b`: as for a `Coupling`.
    - `gap`: (upper - lower) / upper to reach. Where masses are sums of few numbers 1e-6 is no trouble in double precision; below 1e-3 do
      not expect it in single precision.
    - `method`: for the entropic problems, with a field `tolerance`, which is set; by default `SinkhornNewtonSparse` in double precision up
      to 16 million pairs, else `Sinkhorn`.
    - `steps`: at most in each entropic problem. `solves`: problems at most.

    **Returns:** `TransportBounds`. The bounds hold whether or not the gap was `met`, up to rounding.

    Raises `ArgumentError` as `Coupling` does, and under `jit`, `vmap` and `grad`: the gap has to be looked at. Derivatives of an entropic
    value near by are those of `bounds.problem`.

    ```python
    cost = jnp.abs(jnp.arange(5.0)[:, None] - jnp.arange(5.0) ** 2 / 4)
    om.transport.transport_bounds(cost, gap=0.02).upper
    ```
    """
    return _bounds(cost, a, b, 1, gap, method, steps, solves)


def wasserstein(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    *,
    p: int = 2,
    gap: float = 1e-3,
    method: Method | None = None,
    steps: int = 2000,
    solves: int = 12,
) -> TransportBounds:
    """The Wasserstein distance W_p between points x (n, d) and y (m, d) with weights, between two bounds.

    **Arguments:** `p`: 1 for distances, 2 for squared distances and their root; the bounds are of W_p itself. The rest as for
    `transport_bounds`.

    Raises `ArgumentError`, naming the argument, for another p and for what `transport_bounds` refuses. On a line
    `scipy.stats.wasserstein_distance` sorts, and is exact.

    ```python
    x = jax.random.normal(jax.random.key(0), (40, 2))
    om.transport.wasserstein(x, x + jnp.array([3.0, 4.0]), p=2, gap=0.02).upper     # about 5
    ```
    """
    if p not in (1, 2):
        raise ArgumentError("p", f"must be 1 or 2, not {p!r}.", "transport_bounds takes any cost.")
    cost = PointCloud(x, y, "euclidean" if p == 1 else "sqeuclidean")
    return _bounds(cost, a, b, p, gap, method, steps, solves)


def _bounds(cost, a, b, p: int, gap: float, method: Method | None, steps: int, solves: int) -> TransportBounds:
    need_between("gap", gap, 0, 1)
    need_count("steps", steps)
    need_count("solves", solves)
    if any(is_tracer(leaf) for leaf in jax.tree_util.tree_leaves((cost, a, b))):
        raise ArgumentError("cost", "must be known, not traced: how far epsilon is lowered depends on it.", "`Coupling` can be traced.")
    cost = cost if isinstance(cost, Cost) else CostMatrix(cost)
    problem = Coupling(cost, a, b, epsilon=max(1.0, attained(cost))).traced(None)
    unit = _size_of(problem)
    problem = eqx.tree_at(lambda problem: problem.epsilon, problem, jnp.asarray(FIRST * unit, problem.a.dtype))
    double, rounding = problem.a.dtype == jnp.float64, float(jnp.finfo(problem.a.dtype).eps)
    if method is None:
        newton = double and problem.a.size * problem.b.size <= PLAN_FITS
        method = SinkhornNewtonSparse(1e-6, warmup=10) if newton else Sinkhorn(1e-6)
    x, taken, number, lower, upper, met = problem.start(None), 0, 0, -np.inf, np.inf, False
    while number < solves:
        aim = max(min(1e-2, gap) * DECAY**number, 1e-12 if double else 1e-6)
        stage = eqx.tree_at(lambda method: method.tolerance, method, jnp.asarray(aim, problem.a.dtype))
        solution = solve(problem, stage, x, budget=Budget(steps=steps), throw=False)
        x, taken, number = solution.value, taken + int(solution.steps), number + 1
        low, high = map(float, _bracket(problem, x))
        lower, upper = max(lower, low), min(upper, high)
        ends = [max(end, 0.0) ** (1 / p) if p > 1 else end for end in (lower, upper)]
        met = ends[1] - ends[0] <= gap * abs(ends[1]) or max(-lower, upper) <= 16 * rounding * unit
        epsilon = problem.epsilon * DECAY
        if met or number == solves or float(epsilon) < 100 * rounding * unit:
            break
        problem = eqx.tree_at(lambda problem: problem.epsilon, problem, epsilon)
    dtype = problem.a.dtype
    return TransportBounds(jnp.asarray(ends[0], dtype), jnp.asarray(ends[1], dtype), met, problem, x, number, taken)


def _size_of(problem: Coupling) -> float:
    """About how large costs are: one if all of them are zero."""
    size = max(abs(float(mean_cost(problem.cost, problem.a, problem.b))), 1e-3 * attained(problem.cost))
    return size if size > 0 else 1.0


_bracket = eqx.filter_jit(lambda problem, x: problem.bracket(x))
