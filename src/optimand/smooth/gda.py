r"""Gradient descent ascent: the forward-backward iteration.

$$u_{k+1} = J_{\eta G}\big(u_k - \eta F(u_k)\big)$$

On a saddle point problem F = (grad_x, -grad_y): descent in x and ascent in y at once (Arrow, Hurwicz and Uzawa 1958).
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import dtype_of

__all__ = ["GDA"]


class GDAState(eqx.Module):
    """`operator` is F at the iterate, which is `checked.x`."""

    checked: Checked
    operator: PyTree
    counters: Counters


class GDA(InclusionMethod):
    r"""Gradient descent ascent. Converges where F is cocoercive, as gradients are; on a game it circles, or worse.

    The baseline that shows what the others are for.

    **Arguments:**

    - `lipschitz`: \(L_F\). The step size is `step_scale / lipschitz`; below `2 / lipschitz` it converges if F is
      cocoercive.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this.

    A residual that grows tenfold over 50 steps ends the solve as `diverged`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    problem = om.smooth.MonotoneInclusion(lambda u, i: u - jnp.array([1.0, 3.0])[i], 2)
    om.solve(problem, om.smooth.GDA(lipschitz=2.0), jnp.array(0.0)).value      # 2
    ```
    """

    reference: ClassVar[str] = "arrow1958studies"

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> GDAState:
        operator = problem.operator(guess)
        return GDAState(
            first_check(problem, guess, operator), operator, Counters.zero().add(**full_evaluation(problem))
        )

    def step(self, problem: MonotoneInclusion, state: GDAState, *, key: Array | None) -> GDAState:
        x = problem.forward_backward(state.checked.x, state.operator, self.step_size(1.0, dtype_of(state.checked.x)))
        operator = problem.operator(x)
        counters = state.counters.add(**full_evaluation(problem)).add(proximal=1)
        return GDAState(state.checked.again(problem, x, operator), operator, counters)
