r"""The extragradient method, and its anchored form.

$$u_{k+1/2} = J_{\eta G}\big(b_k - \eta F(u_k)\big), \qquad u_{k+1} = J_{\eta G}\big(b_k - \eta F(u_{k+1/2})\big)$$

with \(b_k = u_k\) (Korpelevich 1976), or with \(b_k = \lambda_k u_0 + (1 - \lambda_k) u_k\), \(\lambda_k = 1/(k+2)\), which
bounds the residual of the last iterate by O(1/k) (EAG-C of Yoon and Ryu 2021, section 2; with G, Cai, Oikonomou and Zheng
2022).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import add, dtype_of, scale

__all__ = ["ExtraAnchoredGradient", "Extragradient"]


class ExtragradientState(eqx.Module):
    """`operator` is F at the iterate, which is `checked.x`."""

    checked: Checked
    operator: PyTree
    counters: Counters


class Extragradient(InclusionMethod):
    r"""The extragradient method: the standard for monotone, Lipschitz operators. Two evaluations of F a step.

    **Arguments:**

    - `lipschitz`: \(L_F\). The step size is `0.9 step_scale / lipschitz`; it has to be below `1 / lipschitz`.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this.

    A residual that grows tenfold over 50 steps ends the solve as `diverged`: `lipschitz` is too small, or F not monotone.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    game = om.smooth.MonotoneInclusion.saddle(lambda x, y: x * y + 0.1 * x)
    om.solve(game, om.smooth.Extragradient(lipschitz=1.0), (1.0, 1.0)).value      # (0, -0.1)
    ```
    """

    reference: ClassVar[str] = "korpelevich1976extragradient"

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> ExtragradientState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        return ExtragradientState(first_check(problem, guess, operator), operator, counters)

    def step(self, problem: MonotoneInclusion, state: ExtragradientState, *, key: Array | None) -> ExtragradientState:
        step_size = self.step_size(0.9, dtype_of(state.checked.x))
        x, operator = two_moves(problem, state.checked.x, state.checked.x, state.operator, step_size)
        counters = state.counters.add(**full_evaluation(problem, 2)).add(proximal=1)
        return ExtragradientState(state.checked.again(problem, x, operator), operator, counters)


class ExtraAnchoredGradientState(eqx.Module):
    """`number` is k, `anchor` u_0."""

    checked: Checked
    operator: PyTree
    anchor: PyTree
    number: Array
    counters: Counters


class ExtraAnchoredGradient(InclusionMethod):
    r"""Extra anchored gradient: the residual of its last iterate falls as 1/k, the best possible in k.

    **Arguments:**

    - `lipschitz`: \(L_F\). The step size is `0.5 step_scale / lipschitz`; it has to be below `1 / (sqrt(3) lipschitz)`
      for the known guarantee.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this.

    A residual that grows tenfold over 50 steps ends the solve as `diverged`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    game = om.smooth.MonotoneInclusion.saddle(lambda x, y: x * y)
    om.solve(game, om.smooth.ExtraAnchoredGradient(lipschitz=1.0, tolerance=1e-2), (1.0, 1.0)).value
    ```
    """

    reference: ClassVar[str] = "yoon2021accelerated"

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> ExtraAnchoredGradientState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        return ExtraAnchoredGradientState(
            first_check(problem, guess, operator), operator, guess, jnp.int32(0), counters
        )

    def step(
        self, problem: MonotoneInclusion, state: ExtraAnchoredGradientState, *, key: Array | None
    ) -> ExtraAnchoredGradientState:
        dtype = dtype_of(state.anchor)
        weight = 1 / (state.number + 2).astype(dtype)  # lambda_k
        base = add(scale(1 - weight, state.checked.x), state.anchor, weight)
        x, operator = two_moves(problem, base, state.checked.x, state.operator, self.step_size(0.5, dtype))
        counters = state.counters.add(**full_evaluation(problem, 2)).add(proximal=1)
        checked = state.checked.again(problem, x, operator)
        return ExtraAnchoredGradientState(checked, operator, state.anchor, state.number + 1, counters)


def two_moves(
    problem: MonotoneInclusion, base: PyTree, x: PyTree, operator: PyTree, step_size: Any
) -> tuple[PyTree, PyTree]:
    """From `base` along F at `x`, which is `operator`; then from `base` along F there. F at the end comes with it."""

    def move(carry, _):
        _, operator = carry
        x = problem.forward_backward(base, operator, step_size)
        return (x, problem.operator(x)), None

    return jax.lax.scan(move, (x, operator), length=2)[0]
