r"""The Sinkhorn divergence: entropic transport without its bias,

$$S_\varepsilon(\alpha, \beta) = \mathrm{OT}_\varepsilon(\alpha, \beta) - \tfrac{1}{2} \mathrm{OT}_\varepsilon(\alpha, \alpha) -
\tfrac{1}{2} \mathrm{OT}_\varepsilon(\beta, \beta)
  + \tfrac{\varepsilon}{2} (|\alpha| - |\beta|)^2,$$

with \(\mathrm{OT}_\varepsilon\) the value of a `Coupling` or an `UnbalancedCoupling`, where only in the latter the masses may differ. For
squared distances it is not negative, and zero for equal measures only; it goes from the transport cost, at epsilon zero, to half of the
squared distance of means (Feydy et al. 2019; Séjourné et al. 2019).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.adjoint import Detached
from ..core.budget import Budget
from ..core.method import Method
from ..core.solve import solve
from .costs import PointCloud
from .problem import Coupling
from .sinkhorn import Sinkhorn
from .unbalanced_coupling import UnbalancedCoupling
from .unbalanced_sinkhorn import UnbalancedSinkhorn

__all__ = ["sinkhorn_divergence"]


def sinkhorn_divergence(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    *,
    epsilon: Any,
    cost: Any = "sqeuclidean",
    tau: Any = None,
    method: Method | None = None,
    budget: Budget | None = None,
) -> Float[Array, ""]:
    """The divergence between points x (n, d) and y (m, d) with weights, a number that can be differentiated.

    Its derivatives, with respect to points, weights and epsilon, are those of the envelope theorem: no linear system is solved, and there
    are no second ones.

    **Arguments:**

    - `x`, `y`, `cost`: as for a `PointCloud`.
    - `a`, `b`, `epsilon`: as for a `Coupling`.
    - `tau`: as for an `UnbalancedCoupling`, one number for both sides; `None` asks for equal masses.
    - `method`, `budget`: for the three problems; by default `Sinkhorn(1e-6)` or `UnbalancedSinkhorn(1e-6)`, and 1000 steps.

    Raises `ArgumentError`, naming the argument, for what these refuse.

    ```python
    x, y = jax.random.normal(jax.random.key(0), (2, 30, 2))
    jax.grad(lambda x: om.transport.sinkhorn_divergence(x, y, epsilon=0.5))(x)
    ```
    """
    if method is None:
        method = Sinkhorn(1e-6) if tau is None else UnbalancedSinkhorn(1e-6)

    def value(left, right, left_weights, right_weights):
        cloud = PointCloud(left, right, cost)
        if tau is None:
            problem = Coupling(cloud, left_weights, right_weights, epsilon=epsilon)
        else:
            problem = UnbalancedCoupling(cloud, left_weights, right_weights, epsilon=epsilon, tau=tau)
        return problem, problem.envelope(solve(problem, method, adjoint=Detached(), budget=budget).value)

    problem, apart = value(x, y, a, b)
    _, of_x = value(x, x, a, a)
    _, of_y = value(y, y, b, b)
    difference = jnp.sum(problem.a) - jnp.sum(problem.b)
    return apart - (of_x + of_y) / 2 + problem.epsilon / 2 * difference**2
