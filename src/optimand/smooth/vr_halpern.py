r"""Halpern's iteration with variance reduction: algorithm 1 of Cai, Alacaoglu and Diakonikolas 2024.

With \(u_1 = J_{\eta G}(u_0 - \eta F(u_0))\), \(\tilde F_0 = F(u_0)\), for k = 1, 2, ...

$$\tilde F_k = \begin{cases} F(u_k) & \text{with probability } p_k, \\
  \tilde F_{k-1} + \frac1b \sum_{i \in S_k} \frac{F_i(u_k) - F_i(u_{k-1})}{n q_i} & \text{otherwise,} \end{cases}$$

$$u_{k+1} = J_{\eta_k G}\big(\lambda_k u_0 + (1 - \lambda_k) u_k - \eta_k \tilde F_k\big), \qquad
  \lambda_k = \frac{2}{k+4}, \quad \eta_k = (1 - \lambda_k)\, \eta, \quad \eta = \frac{1}{4L},$$

with b components \(S_k\) drawn with probabilities q, \(p_k = \max(4/(k+5), 4/(\sqrt n + 5))\) and \(b = \lceil \sqrt n
\rceil\). The estimator is PAGE (Li, Bao, Zhang and Richtárik 2021). About \(n + \sqrt n L / \epsilon\) component calls make
the residual \(\epsilon\), where Halpern's iteration needs \(n L_F / \epsilon\).
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from .arguments import need_between, need_count
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import add, dot, dtype_of, scale, subtract

__all__ = ["VRHalpern"]


class VRHalpernState(eqx.Module):
    """`x` is u_k and `number` k; `previous` is u_{k-1} and `estimate` that of F there; `anchor` is u_0.

    `checked_operator` is F at `checked.x`, kept if the Lipschitz constant adapts.
    """

    x: PyTree
    previous: PyTree
    estimate: PyTree
    anchor: PyTree
    number: Array
    lipschitz: Array
    checked: Checked
    checked_operator: PyTree
    counters: Counters


class VRHalpern(InclusionMethod):
    r"""Halpern's iteration with a recursive estimate of F: for cocoercive operators with many components.

    Single loop, last iterate, and a residual that is known. The answer is the last iterate at which all components were
    called: only there is the residual known. On games, where F is not cocoercive, nothing is promised: it is fast on those
    of `matrix_game`, and on one with a mixed equilibrium it may stall far from it, where `InexactHalpern` does not.

    In single precision rounding gathers in the estimate between two full draws, about \(\sqrt n / 4\) steps apart.

    **Arguments:**

    - `lipschitz`: the average constant L, see `MonotoneInclusion`. The step size is `step_scale / (4 lipschitz)`.
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this, at a full draw.
    - `batch`: b, components drawn of each sum; \(\lceil \sqrt n \rceil\) by default.
    - `probability`: p_k, a number or a function of k; 1 makes every draw a full one.
    - `anchoring`: lambda_k, a function of k.
    - `adaptive`: double `lipschitz` whenever two full draws contradict it,
      \(\langle F(u) - F(v), u - v \rangle < \lVert F(u) - F(v) \rVert^2 / (1.01 L)\). For cocoercive F only: on a bilinear
      game the product is zero, and L would grow for ever.

    A residual that grows tenfold over 50 full draws ends the solve as `diverged`: `lipschitz` is too small (divide
    `step_scale` by four, or let it adapt), or F is not monotone.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    game = om.smooth.matrix_game("policeman-burglar", 30, key=jax.random.key(1))
    uniform = jnp.full(30, 1 / 30)
    method = om.smooth.VRHalpern(lipschitz=1.0, step_scale=4.0, tolerance=1e-2)
    om.solve(game, method, (uniform, uniform), key=jax.random.key(0)).value
    ```
    """

    reference: ClassVar[str] = "cai2024variance"
    stochastic: ClassVar[bool] = True

    batch: int | None = eqx.field(static=True, default=None)
    probability: Any = None
    anchoring: Callable | None = None
    adaptive: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.batch is not None:
            need_count("batch", self.batch)
        need_between("probability", self.probability, 0, 1 + 1e-9)
        if self.anchoring is not None and not callable(self.anchoring):
            raise ArgumentError("anchoring", f"must be a function of k, not {self.anchoring!r}.")

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> VRHalpernState:
        dtype = dtype_of(guess)
        operator = problem.operator(guess)
        lipschitz = jnp.asarray(self.lipschitz, dtype)
        x = problem.forward_backward(guess, operator, self._step_size(lipschitz))
        return VRHalpernState(
            x, guess, operator, guess, jnp.int32(1), lipschitz, first_check(problem, guess, operator),
            operator if self.adaptive else None, Counters.zero().add(**full_evaluation(problem)).add(proximal=1),
        )  # fmt: skip

    def step(self, problem: MonotoneInclusion, state: VRHalpernState, *, key: Any) -> VRHalpernState:
        dtype = dtype_of(state.x)
        coin, sample = jax.random.split(key)
        batch = math.ceil(math.sqrt(max(problem.n))) if self.batch is None else self.batch
        full = jax.random.uniform(coin, dtype=dtype) < self._probability(state.number, max(problem.n), dtype)

        def all_components():
            operator = problem.operator(state.x)
            return operator, state.checked.again(problem, state.x, operator)

        def some_components():
            moved = problem.difference(state.x, state.previous, problem.draw(sample, batch))
            return add(state.estimate, moved), state.checked

        estimate, checked = jax.lax.cond(full, all_components, some_components)
        lipschitz, checked_operator = state.lipschitz, state.checked_operator
        if self.adaptive:
            lipschitz = jnp.where(full & _contradicts(state, estimate), 2 * lipschitz, lipschitz)
            checked_operator = jax.tree.map(lambda new, old: jnp.where(full, new, old), estimate, checked_operator)
        number = state.number.astype(dtype)
        weight = 2 / (number + 4) if self.anchoring is None else jnp.asarray(self.anchoring(number), dtype)  # lambda_k
        step_size = (1 - weight) * self._step_size(lipschitz)  # eta_k
        base = add(scale(1 - weight, state.x), state.anchor, weight)
        counters = state.counters.add(
            calls=jnp.where(full, problem.total, problem.difference_calls(batch)),
            residuals=jnp.where(full, 1, 0),
            proximal=jnp.where(full, 2, 1),
        )
        return VRHalpernState(
            problem.forward_backward(base, estimate, step_size), state.x, estimate, state.anchor, state.number + 1,
            lipschitz, checked, checked_operator, counters,
        )  # fmt: skip

    def _step_size(self, lipschitz: Array) -> Array:
        return jnp.asarray(self.step_scale / (4 * lipschitz), lipschitz.dtype)

    def _probability(self, number: Array, n: int, dtype: Any) -> Any:
        if self.probability is None:
            return jnp.maximum(4 / (number + 5).astype(dtype), 4 / (math.sqrt(n) + 5))
        return self.probability(number) if callable(self.probability) else self.probability


def _contradicts(state: VRHalpernState, operator: PyTree) -> Array:
    """Whether F here and at the last full draw cannot be cocoercive with the constant 1 / L."""
    change, move = subtract(operator, state.checked_operator), subtract(state.x, state.checked.x)
    return dot(change, move) < dot(change, change) / (1.01 * state.lipschitz)
