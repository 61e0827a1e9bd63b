r"""The forward-reflected-backward method with variance reduction (Alacaoglu and Malitsky 2022).

$$\bar z_k = \alpha z_k + (1 - \alpha) w_k, \qquad
  z_{k+1} = J_{\tau G}\Big(\bar z_k - \tau\Big[F(w_k) + \frac{F_i(z_k) - F_i(w_{k-1})}{n q_i}\Big]\Big), \quad i \sim q,$$

and \(w_{k+1} = z_{k+1}\) with probability p, else \(w_k\). The component subtracted is that at \(w_{k-1}\), not at \(w_k\).
\(\alpha = 1 - p\), \(\tau = \sqrt p / (2 L)\). It is algorithm 3 of Cai, Alacaoglu and Diakonikolas 2024, the inner solver
of `InexactHalpern`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from .arguments import need_between, need_count
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import Draw, MonotoneInclusion
from .vectors import add, dtype_of, scale, subtract

__all__ = ["VRForwardReflectedBackward"]


class VRForwardReflectedBackwardState(eqx.Module):
    """`z` is z_k, `w` w_k, `previous` w_{k-1} and `operator` F(w_k)."""

    z: PyTree
    w: PyTree
    previous: PyTree
    operator: PyTree
    checked: Checked
    counters: Counters


class VRForwardReflectedBackward(InclusionMethod):
    r"""Forward-reflected-backward with variance reduction: one component a step, linear where F is strongly monotone.

    For monotone, Lipschitz operators with many components. Where nothing is strongly monotone its last iterate has no
    rate; `InexactHalpern` makes one of it. The answer is the last w_k, where the residual is known.

    **Arguments:**

    - `lipschitz`: the average constant L, see `MonotoneInclusion`. The step size is
      `step_scale * sqrt(p) / (2 lipschitz)`.
    - `tolerance`: converged when the residual `operator_residual(problem, w)` is at most this.
    - `probability`: p; by default so that evaluations of F and sampled components are as many: batch / n.
    - `batch`: components drawn of each sum.

    A residual that grows tenfold over 50 full evaluations ends the solve as `diverged`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    targets = jnp.array([1.0, 2.0, 6.0])
    mean = om.smooth.MonotoneInclusion(lambda u, i: u - targets[i], 3)
    method = om.smooth.VRForwardReflectedBackward(lipschitz=1.0)
    om.solve(mean, method, jnp.array(0.0), key=jax.random.key(0)).value      # 3
    ```
    """

    reference: ClassVar[str] = "alacaoglu2022stochastic"
    stochastic: ClassVar[bool] = True

    probability: Any = None
    batch: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        need_between("probability", self.probability, 0, 1 + 1e-9)
        need_count("batch", self.batch)

    def init(
        self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None
    ) -> VRForwardReflectedBackwardState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        checked = first_check(problem, guess, operator)
        return VRForwardReflectedBackwardState(guess, guess, guess, operator, checked, counters)

    def step(
        self, problem: MonotoneInclusion, state: VRForwardReflectedBackwardState, *, key: Any
    ) -> VRForwardReflectedBackwardState:
        dtype = dtype_of(state.z)
        coin, sample = jax.random.split(key)
        p = jnp.asarray(default_probability(problem, self.batch) if self.probability is None else self.probability, dtype)
        step_size = self.step_size(0.5, dtype) * jnp.sqrt(p)  # tau
        z = reflected_move(
            problem, state.z, state.w, state.previous, state.operator, problem.draw(sample, self.batch), step_size, 1 - p
        )
        renewed = jax.random.uniform(coin, dtype=dtype) < p

        def renew():
            operator = problem.operator(z)
            return z, operator, state.checked.again(problem, z, operator)

        w, operator, checked = jax.lax.cond(renewed, renew, lambda: (state.w, state.operator, state.checked))
        counters = state.counters.add(
            calls=problem.difference_calls(self.batch) + jnp.where(renewed, problem.total, 0),
            residuals=jnp.where(renewed, 1, 0),
            proximal=jnp.where(renewed, 2, 1),
        )
        return VRForwardReflectedBackwardState(z, w, state.w, operator, checked, counters)


def default_probability(problem: MonotoneInclusion, batch: int = 1) -> float:
    """p for which evaluations of F and sampled components cost about the same."""
    return min(1.0, problem.sums * batch / problem.total)


def reflected_move(
    problem: MonotoneInclusion,
    z: PyTree,
    w: PyTree,
    previous: PyTree,
    operator: PyTree,
    draws: tuple[Draw, ...],
    step_size: Any,
    alpha: Any,
    outer: Any = 1.0,
    centre: PyTree | None = None,
) -> PyTree:
    """z_{k+1} of the module's formula, for 0 in outer * (F + G)(z) + (z - centre) if there is a centre, with F(w) known."""
    estimate = add(operator, problem.difference(z, previous, draws))
    direction = scale(outer, estimate)
    if centre is not None:  # the identity is not estimated: H(w) + H_i(z) - H_i(previous) holds it exactly
        direction = add(direction, add(subtract(w, centre), subtract(z, previous)))
    base = add(scale(alpha, z), w, 1 - alpha)
    return problem.forward_backward(base, direction, step_size, step_size * outer)
