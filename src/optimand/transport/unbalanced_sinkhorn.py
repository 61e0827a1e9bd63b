r"""Sinkhorn's method for masses that need not be equal.

$$f_i \leftarrow -\frac{\tau_a \varepsilon}{\tau_a + \varepsilon} \log \sum_j b_j e^{(g_j - C_{ij}) / \varepsilon}, \qquad
  g_j \leftarrow -\frac{\tau_b \varepsilon}{\tau_b + \varepsilon} \log \sum_i a_i e^{(f_i - C_{ij}) / \varepsilon}, \qquad (f, g) \leftarrow
  (f + t, g - t).$$

The first two lines are the exact maximisers of the dual over one potential each (Chizat, Peyré, Schmitzer and Vialard 2018), those of
`Sinkhorn` damped by \(\tau / (\tau + \varepsilon)\). By themselves they take of the order of \(\tau / \varepsilon\) sweeps to find the mass
of the plan. The third is the maximiser along (1, -1), in closed form, and the mass is right after every sweep (Séjourné, Vialard and Peyré
2022). None lowers the dual.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..core.arguments import need_not_negative
from ..core.budget import Counters
from ..core.method import Method
from ..core.solution import Result
from .sinkhorn import need_precision
from .unbalanced_coupling import Potentials, UnbalancedCoupling

__all__ = ["UnbalancedSinkhorn"]


class UnbalancedSinkhornState(eqx.Module):
    """`soft_rows` are for the next sweep. `still`: the last one moved the potentials by rounding errors only."""

    x: Potentials
    soft_rows: Array
    value: Array
    error: Array
    still: Array
    counters: Counters


class UnbalancedSinkhorn(Method):
    """Sinkhorn's method with damped exponents, in logarithms: a step is a sweep over both potentials, and costs two passes over the cost.

    The smaller tau, the fewer sweeps. For epsilon below a hundredth of the mean cost and of tau, `om.smooth.Newton` from its answer reaches
    high accuracy in a few steps.

    **Arguments:**

    - `tolerance`: converged when the marginals of the plan differ from those that the potentials ask for by at most this, in sums of
      absolute values and units of the mass.

    Where sweeps only move the potentials by rounding errors and the tolerance is not met, the solve ends as `stopped`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.
    """

    problem = UnbalancedCoupling
    reference: ClassVar[str] = "chizat2018scaling"

    tolerance: Any = 1e-6

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)

    def check(self, problem: UnbalancedCoupling, guess: Potentials) -> None:
        need_precision(problem, self.tolerance)

    def init(self, problem: UnbalancedCoupling, guess: Potentials, *, key: Array | None) -> UnbalancedSinkhornState:
        soft_rows = problem.soft_rows(guess.g)
        value = -problem.dual_from(guess, soft_rows)
        return UnbalancedSinkhornState(
            guess, soft_rows, value, jnp.full((), jnp.inf, value.dtype), jnp.array(False), Counters.zero().add(values=1)
        )

    def step(self, problem: UnbalancedCoupling, state: UnbalancedSinkhornState, *, key: Array | None) -> UnbalancedSinkhornState:
        rate_a, rate_b = problem.rates
        f = -state.soft_rows / (1 / problem.epsilon + rate_a)
        soft_columns = problem.soft_columns(f)
        g = -soft_columns / (1 / problem.epsilon + rate_b)
        t = problem.translation(Potentials(f, g))
        x = Potentials(f + t, g - t)
        soft_rows = problem.soft_rows(x.g)
        error = problem.error_from(x, *problem.log_errors_from(x, soft_rows, soft_columns + t / problem.epsilon))
        moved = jnp.maximum(jnp.max(jnp.abs(x.f - state.x.f)), jnp.max(jnp.abs(x.g - state.x.g)))
        size = jnp.maximum(jnp.max(jnp.abs(x.f)), jnp.max(jnp.abs(x.g)))
        still = moved <= 4 * jnp.finfo(size.dtype).eps * size
        return UnbalancedSinkhornState(
            x, soft_rows, -problem.dual_from(x, soft_rows), error, still, state.counters.add(values=1, gradients=1)
        )

    def done(self, problem: UnbalancedCoupling, state: UnbalancedSinkhornState):
        code = jnp.where(state.still, Result.stopped.code, Result.running.code)
        return jnp.where(state.error <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: UnbalancedCoupling, state: UnbalancedSinkhornState) -> Potentials:
        """The potentials, with equal means where both marginals are exact and a translation changes nothing."""
        rate_a, rate_b = problem.rates
        centred = state.x.centred()
        free = rate_a + rate_b > 0
        return Potentials(jnp.where(free, state.x.f, centred.f), jnp.where(free, state.x.g, centred.g))

    def metrics(self, problem: UnbalancedCoupling, state: UnbalancedSinkhornState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.error}
