r"""Stochastic gradient descent with Polyak's step size.

$$\gamma_k = \min\Big\{ \frac{f_k(x_k) - f^\star}{\lVert \nabla f_k(x_k) \rVert^2 + \delta},\; \gamma_{\max} \Big\}, \qquad
  v_{k+1} = \beta v_k - \gamma_k \nabla f_k(x_k), \qquad x_{k+1} = x_k + v_{k+1},$$

where \(f_k\) is the loss of batch k and \(f^\star\) a lower bound on it. Loizou, Vaswani, Laradji and Lacoste-Julien, "Stochastic
Polyak step-size for SGD: an adaptive learning rate for fast convergence" (2021), eq. 3 (SPS_max).
"""

from typing import Any, ClassVar, Literal

import equinox as eqx
import optax

from ..core.errors import ArgumentError
from .arguments import need_between, need_not_negative, need_positive
from .optax import OptaxIteration, check_skips

__all__ = ["PolyakSGD"]


class PolyakSGD(OptaxIteration):
    """Gradient descent whose step size follows from how far the loss is above its least possible value.

    Pick it if that value is known: zero for a model that can fit all of its data. If `minimum` is too low the steps are too
    long near the end; if it is too high they end too early. The step is `optax.scale_by_polyak`; `optax.polyak_sgd` has no momentum.

    **Arguments:**

    - `max_step`: the longest step size.
    - `minimum`: f* above, a lower bound on the loss of every batch.
    - `delta`: added to the squared norm of the gradient.
    - `momentum`: beta above.
    - `variant`: "sps", or "sps+", where a loss below `minimum` makes no step instead of one backwards.
    - `scaling`: multiplies every step; a number, or an Optax schedule (step number -> number).
    - `tolerance`, `skip_nonfinite`, `skips_in_a_row`: as in `Optax`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    reference: ClassVar[str] = "loizou2021stochastic"

    max_step: Any = 1.0
    minimum: Any = 0.0
    delta: Any = 0.0
    momentum: Any = 0.0
    variant: Literal["sps", "sps+"] = eqx.field(static=True, default="sps")
    scaling: Any = 1.0
    tolerance: Any = 1e-6
    skip_nonfinite: bool = eqx.field(static=True, default=False)
    skips_in_a_row: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_skips(self)
        need_positive("max_step", self.max_step)
        need_positive("scaling", self.scaling)
        need_not_negative("delta", self.delta)
        need_between("momentum", self.momentum, -1e-30, 1)
        if self.variant not in ("sps", "sps+"):
            raise ArgumentError("variant", f"must be 'sps' or 'sps+', not {self.variant!r}.")

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        parts: list[optax.GradientTransformation] = [
            optax.scale_by_polyak(
                f_min=self.minimum, max_learning_rate=self.max_step, eps=self.delta, variant=self.variant
            )
        ]
        if not (isinstance(self.momentum, int | float) and self.momentum == 0):
            parts.append(optax.trace(self.momentum))
        parts.append(optax.scale_by_learning_rate(self.scaling))
        return optax.with_extra_args_support(optax.chain(*parts))
