r"""Adam, with decoupled weight decay and clipping.

$$m_k = \beta_1 m_{k-1} + (1 - \beta_1) g_k, \quad v_k = \beta_2 v_{k-1} + (1 - \beta_2) g_k^2, \quad
  x_{k+1} = x_k - \eta_k \left( \frac{m_k / (1 - \beta_1^k)}{\sqrt{v_k / (1 - \beta_2^k)} + \epsilon} + \lambda x_k \right).$$

Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1; the weight decay \(\lambda\) as in
Loshchilov and Hutter (2019).
"""

from typing import Any, ClassVar

import equinox as eqx
import optax

from .arguments import need_between, need_not_negative, need_positive
from .optax import OptaxIteration, check_skips

__all__ = ["Adam"]


class Adam(OptaxIteration):
    """Gradient descent with the step of each unknown scaled by running moments of its gradient.

    The usual choice to train a network on batches. It does not converge to high precision with a constant learning
    rate on noisy gradients: give a schedule. On deterministic smooth problems use `LBFGS`, at the least to finish.

    **Arguments:**

    - `learning_rate`: a number, or an Optax schedule (step number -> number).
    - `b1`, `b2`, `eps`: decay of the two moments, and the number that keeps the division finite.
    - `weight_decay`: decoupled weight decay; zero is plain Adam.
    - `clip`: scale a gradient down to this global norm if it is longer; `None` does not.
    - `tolerance`, `skip_nonfinite`, `skips_in_a_row`: as in `Optax`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    reference: ClassVar[str] = "kingma2015adam"

    learning_rate: Any = 1e-3
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.0
    clip: Any = None
    tolerance: Any = 1e-6
    skip_nonfinite: bool = eqx.field(static=True, default=False)
    skips_in_a_row: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_skips(self)
        need_positive("learning_rate", self.learning_rate)
        need_positive("clip", self.clip)
        need_not_negative("eps", self.eps)
        need_not_negative("weight_decay", self.weight_decay)
        for name in ("b1", "b2"):
            need_between(name, getattr(self, name), -1e-30, 1)

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        parts = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        parts.append(optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps))
        if not (isinstance(self.weight_decay, int | float) and self.weight_decay == 0):
            parts.append(optax.add_decayed_weights(self.weight_decay))
        parts.append(optax.scale_by_learning_rate(self.learning_rate))
        return optax.chain(*parts)
