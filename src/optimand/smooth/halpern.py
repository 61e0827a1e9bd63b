r"""Halpern's iteration on the forward-backward operator.

$$u_{k+1} = \lambda_k u_0 + (1 - \lambda_k)\, J_{\eta G}\big(u_k - \eta F(u_k)\big), \qquad \lambda_k = \frac1{k+2}$$

(Halpern 1967). For F cocoercive and \(\eta \le 2/L_F\) the operator \(T = J_{\eta G}(I - \eta F)\) is nonexpansive, and
\(\lVert u_k - T u_k \rVert \le 2 \lVert u_0 - u_* \rVert / (k + 1)\): tight (Lieder 2021, theorem 2.1).
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import add, dtype_of, scale

__all__ = ["Halpern"]


class HalpernState(eqx.Module):
    """`number` is k, `anchor` u_0; the iterate is `checked.x`, and `operator` F there."""

    checked: Checked
    operator: PyTree
    anchor: PyTree
    number: Array
    counters: Counters


class Halpern(InclusionMethod):
    r"""Halpern's iteration: every iterate is pulled back to the start a little, and the last residual falls as 1/k.

    For cocoercive F: gradients of convex functions, u - T(u) for nonexpansive maps T. If F is the mean of many components
    `VRHalpern` needs fewer of their calls. The anchor makes 1/k the rate even where a plain iteration converges linearly.

    **Arguments:**

    - `lipschitz`: \(L_F\). The step size is `2 step_scale / lipschitz`.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this.

    A residual that grows tenfold over 50 steps ends the solve as `diverged`: `lipschitz` is too small, or F not monotone.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])      # nonexpansive, with the fixed point 0
    problem = om.smooth.MonotoneInclusion(lambda u, i: u - turn @ u, 1)
    om.solve(problem, om.smooth.Halpern(lipschitz=2.0, tolerance=1e-2), jnp.ones(2)).value
    ```
    """

    reference: ClassVar[str] = "halpern1967fixed"

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> HalpernState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        return HalpernState(first_check(problem, guess, operator), operator, guess, jnp.int32(0), counters)

    def step(self, problem: MonotoneInclusion, state: HalpernState, *, key: Array | None) -> HalpernState:
        dtype = dtype_of(state.anchor)
        weight = 1 / (state.number + 2).astype(dtype)  # lambda_k
        moved = problem.forward_backward(state.checked.x, state.operator, self.step_size(2.0, dtype))
        x = add(scale(1 - weight, moved), state.anchor, weight)
        operator = problem.operator(x)
        counters = state.counters.add(**full_evaluation(problem)).add(proximal=1)
        checked = state.checked.again(problem, x, operator)
        return HalpernState(checked, operator, state.anchor, state.number + 1, counters)
