r"""The exact augmented Lagrangian: a merit function of point and multipliers together, smooth, with the right minimisers.

$$L_\eta(x, \lambda) = f(x) + \lambda^\top c(x) + \frac{\eta_1}{2} \lVert c(x) \rVert^2
  + \frac{\eta_2}{2} \lVert \nabla_x L(x, \lambda) \rVert^2$$

(Pillo and Grippo 1979). With K and \(F = (\nabla_x L, c)\) of the KKT conditions its gradient is
\(F + K (\eta_2 \nabla_x L,\; \eta_1 c)\), one product with K. For \(\eta_1\) large and \(\eta_2\) small enough, its stationary
points near a regular solution are the KKT points; since it is differentiable, it accepts unit Newton steps there.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.constrained import Constrained, PrimalDual
from .arguments import need_positive
from .equality_kkt import Point, equality_program, evaluate, pack, unpack

__all__ = ["ExactAugmentedLagrangian"]


class ExactAugmentedLagrangian(eqx.Module):
    """The merit function, for a `Constrained` problem with equalities only.

    **Arguments:** `violation`, the weight eta_1 of the constraints; `stationarity`, the weight eta_2 of the gradient of the
    Lagrangian. Both positive, or an `ArgumentError` is raised.

    ```python
    circle = om.Constrained(lambda x: jnp.sum(x), equalities=lambda x: jnp.sum(x**2) - 2.0)
    merit = om.smooth.ExactAugmentedLagrangian(violation=1.0, stationarity=0.1)
    merit.value(circle, om.PrimalDual(-jnp.ones(2), jnp.array(0.5)))    # -2, as f there
    ```

    Source: Hong et al. 2023, equation (3).
    """

    violation: Any = 1.0
    stationarity: Any = 0.1

    def __check_init__(self):
        need_positive("violation", self.violation)
        need_positive("stationarity", self.stationarity)

    def value(self, problem: Constrained, value: PrimalDual) -> Float[Array, ""]:
        """L_eta at a point with its multipliers."""
        value = problem.start(value)
        program = equality_program(problem, value, type(self).__name__)
        z = unpack(program, value)
        return self.of(z, evaluate(z, (problem, value)), program.size)

    def gradient(self, problem: Constrained, value: PrimalDual) -> PrimalDual:
        """Its gradient in both, from one product with the KKT matrix."""
        value = problem.start(value)
        program = equality_program(problem, value, type(self).__name__)
        z = unpack(program, value)
        residual, product = jax.linearize(lambda z: evaluate(z, (problem, value)).residual, z)
        return pack(program, self.gradient_of(residual, product, program.size))

    def of(self, z: Float[Array, " n_m"], point: Point, size: int) -> Float[Array, ""]:
        """L_eta from what is known at z, of which the first `size` numbers are x."""
        gradient, c = point.residual[:size], point.residual[size:]
        lagrangian = point.objective + z[size:] @ c
        return lagrangian + self.violation / 2 * (c @ c) + self.stationarity / 2 * (gradient @ gradient)

    def gradient_of(self, residual: Float[Array, " n_m"], product: Callable, size: int) -> Float[Array, " n_m"]:
        """Its gradient from F and products with K."""
        return residual + product(jnp.concatenate([self.stationarity * residual[:size], self.violation * residual[size:]]))
