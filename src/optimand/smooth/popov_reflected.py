r"""Popov's method in its reflected form: optimistic gradient descent ascent, with a resolvent.

$$u_{k+1} = J_{\eta G}\big(u_k - 2 \eta F(u_k) + \eta F(u_{k-1})\big)$$

(the forward-reflected-backward method of Malitsky and Tam 2020, eq. 1.6). With G = 0 it is the method of Popov 1980 in
its leading points, which came to be called optimistic.
"""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import add, dtype_of, scale

__all__ = ["PopovReflected"]


class PopovReflectedState(eqx.Module):
    """`operator` is F at the iterate, which is `checked.x`; `previous` that at the one before."""

    checked: Checked
    operator: PyTree
    previous: PyTree
    counters: Counters


class PopovReflected(InclusionMethod):
    r"""Popov's method, or optimistic gradient descent ascent. One evaluation of F a step, where `Extragradient` has two.

    **Arguments:**

    - `lipschitz`: \(L_F\). The step size is `0.45 step_scale / lipschitz`; it has to be below `1 / (2 lipschitz)`.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this.

    A residual that grows tenfold over 50 steps ends the solve as `diverged`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    game = om.smooth.MonotoneInclusion.saddle(lambda x, y: x * y)
    om.solve(game, om.smooth.PopovReflected(lipschitz=1.0), (1.0, 1.0)).value      # (0, 0)
    ```
    """

    reference: ClassVar[str] = "malitsky2020forward"

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> PopovReflectedState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        return PopovReflectedState(first_check(problem, guess, operator), operator, operator, counters)

    def step(
        self, problem: MonotoneInclusion, state: PopovReflectedState, *, key: Array | None
    ) -> PopovReflectedState:
        direction = add(scale(2.0, state.operator), state.previous, -1.0)
        step_size = self.step_size(0.45, dtype_of(state.checked.x))
        x = problem.forward_backward(state.checked.x, direction, step_size)
        operator = problem.operator(x)
        counters = state.counters.add(**full_evaluation(problem)).add(proximal=1)
        return PopovReflectedState(state.checked.again(problem, x, operator), operator, state.operator, counters)
