r"""Barycentres whose points move: the fixed point of the barycentric projection,

$$x_i = \frac{1}{a_i} \sum_k w_k (P_k(x)\, y_k)_i,$$

with \(P_k(x)\) the plan of entropic transport from the points x, with weights a, to the measure k, at the cost of squared distances. For
given plans the right-hand side minimises \(\sum_k w_k \langle C_k(x), P_k \rangle\) over x, so its iteration lowers the objective in every
step, as Lloyd's does (Cuturi and Doucet 2014, algorithm 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.budget import Budget
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import FixedPoint
from ..core.solve import solve
from ..core.tracing import is_tracer
from .costs import PointCloud, as_floats
from .problem import Coupling
from .sinkhorn import Sinkhorn

__all__ = ["free_support_barycentre"]


def free_support_barycentre(
    points: Any,
    b: Any = None,
    shares: Any = None,
    *,
    a: Any = None,
    epsilon: Any,
    method: Method | None = None,
    budget: Budget | None = None,
) -> FixedPoint:
    """The points of a barycentre in squared distances, as a `FixedPoint`: solve it from points x (n, d) of your choice.

    `om.smooth.FixedPointIteration` alternates between plans and points; `om.smooth.Anderson` is faster. The solution can be differentiated
    with respect to points, weights, shares and epsilon.

    **Arguments:**

    - `points`: of the measures, each (m_k, d).
    - `b`: their weights, each (m_k,) with sum one; by default equal.
    - `shares`: w (K,) of the measures, not negative, with sum one; by default equal.
    - `a`: the weights (n,) of the barycentre; by default equal.
    - `epsilon`: the weight of the entropy, in units of squared distances. It draws the points together: their covariance is less by about
      epsilon / 2.
    - `method`, `budget`: with which the plans are found; `Sinkhorn(1e-6)` by default.

    Raises `ArgumentError`, naming the argument, for what a `Coupling` between these points would refuse, and for shares that do not fit.

    ```python
    y = jax.random.normal(jax.random.key(0), (2, 30, 2)) + jnp.array([[[0.0, 0.0]], [[4.0, 0.0]]])
    problem = om.transport.free_support_barycentre(y, epsilon=0.5)
    om.solve(problem, om.smooth.FixedPointIteration(tolerance=1e-3), y[0]).value.mean(0)     # about (2, 0)
    ```
    """
    clouds = [PointCloud(as_floats("points", one)).x for one in points]
    if not clouds or any(one.shape[1] != clouds[0].shape[1] for one in clouds):
        raise ArgumentError("points", "must be arrays of points (m_k, d) of one dimension d, at least one.")
    count = len(clouds)
    weights = [jnp.full((len(one),), 1 / len(one), one.dtype) for one in clouds] if b is None else [as_floats("b", one) for one in b]
    if len(weights) != count:
        raise ArgumentError("b", f"has {len(weights)} entries for {count} measures.")
    shares = jnp.full((count,), 1 / count, clouds[0].dtype) if shares is None else as_floats("shares", shares)
    if shares.shape != (count,):
        raise ArgumentError("shares", f"must have shape {(count,)}, one for each measure, not {shares.shape}.")
    if not is_tracer(shares) and (not np.all(np.asarray(shares) >= 0) or abs(float(np.sum(np.asarray(shares, np.float64))) - 1) > 1e-5):
        raise ArgumentError("shares", f"must not be negative and have the sum one, not {shares}.")
    a = None if a is None else as_floats("a", a)
    for one, weight in zip(clouds, weights, strict=True):
        Coupling(PointCloud(one[:1] if a is None else jnp.broadcast_to(one[:1], (a.size, one.shape[1])), one), a, weight, epsilon=epsilon)
    method = Sinkhorn(1e-6) if method is None else method

    def moved(x: Float[Array, "n d"], clouds, weights, shares, a, epsilon) -> Float[Array, "n d"]:
        total = jnp.zeros_like(x)
        for share, y, weight in zip(shares, clouds, weights, strict=True):
            problem = Coupling(PointCloud(x, y), a, weight, epsilon=epsilon)
            value = solve(problem, method, budget=budget).value
            total = total + share * barycentric_projection(problem, value, y)
        return total.astype(x.dtype)

    return FixedPoint(moved, clouds, weights, shares, a, jax.tree_util.tree_map(jnp.asarray, epsilon))


def barycentric_projection(problem: Any, x: Any, y: Float[Array, "m d"]) -> Float[Array, "n d"]:
    """Where each source goes on the average, (P y)_i / (P 1)_i: a map that the plan makes.

    `problem` is a coupling, balanced or not, `x` its potentials, and `y` what stands at the targets.
    """
    return problem.push(x, y) / problem.push(x, jnp.ones_like(y[:, 0]))[:, None]
