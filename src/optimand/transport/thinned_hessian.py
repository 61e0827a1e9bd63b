r"""The inverse of the Hessian of a dual with only the large entries of the plan in it,

$$M = \frac{1}{\varepsilon} \begin{pmatrix} \mathrm{diag}(r) & S \\ S^\top & \mathrm{diag}(c) \end{pmatrix} + \kappa\, v v^\top,$$

as a preconditioner for derivatives of its solution (Tang et al. 2024). The diagonals are whole, so that M is definite; v, (1, -1) over the
numbers of points, is where the dual of a `Coupling` has no curvature of its own. M is solved with by conjugate gradients, whose products
cost as much as S has entries: where epsilon is small, and products with the whole plan were hundreds, one to four of them are left.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.krylov import conjugate_gradients
from .dual_transport import Potentials
from .thinned_plan import ThinnedPlan

__all__ = ["thinned_inverse"]

RTOL = 1e-6  # of the solutions with M
STEPS = 1000


def thinned_inverse(
    plan: Float[Array, "n m"],
    rows: Float[Array, " n"],
    columns: Float[Array, " m"],
    epsilon: Any,
    stiffness: Any,
    density: Any = 15,
) -> Callable[[Potentials], Potentials]:
    """The map from b to about M^{-1} b, where S holds the `density` * max(n, m) largest entries; r, c and kappa are `rows`, `columns` and `stiffness`."""
    plan, rows, columns, epsilon, stiffness = jax.lax.stop_gradient((plan, rows, columns, epsilon, stiffness))
    n, m = plan.shape
    kept = ThinnedPlan.of(plan, min(plan.size, math.ceil(density * max(n, m))))

    def times(x: Potentials) -> Potentials:
        pull = stiffness * (jnp.mean(x.f) - jnp.mean(x.g))
        return Potentials((rows * x.f + kept.times(x.g)) / epsilon + pull / n, (columns * x.g + kept.times_transposed(x.f)) / epsilon - pull / m)

    def diagonal(x: Potentials) -> Potentials:
        return Potentials(epsilon * x.f / rows, epsilon * x.g / columns)

    def solve(rhs: Potentials) -> Potentials:
        answer, _ = conjugate_gradients(times, rhs, None, diagonal, RTOL, STEPS)
        whole = jnp.all(jnp.isfinite(answer.f)) & jnp.all(jnp.isfinite(answer.g))
        return jax.tree_util.tree_map(lambda a, b: jnp.where(whole, a, b), answer, diagonal(rhs))

    return solve
