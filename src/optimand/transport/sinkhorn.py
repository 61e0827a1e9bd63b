r"""Sinkhorn's method: the dual of entropic transport, maximised over one potential after the other.

$$f_i \leftarrow f_i - \omega \varepsilon \log \frac{(P 1)_i}{a_i}, \qquad g_j \leftarrow g_j - \omega \varepsilon \log \frac{(P^\top 1)_j}{b_j}.$$

With \(\omega = 1\) each line is the exact maximiser (Cuturi 2013), in logarithms, which do not overflow for any epsilon. With
\(1 < \omega < 2\) sweeps go further, and near the solution they converge faster, as successive over-relaxation does; far from it they need not
converge, so where the dual would not rise, which takes a sum to know, a sweep is an exact one (Thibault, Chizat, Dossal and Papadakis 2021).
Epsilon may be lowered to that of the problem by a factor a sweep.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..core.arguments import need_between, need_not_negative, need_positive
from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .problem import Coupling, Potentials

__all__ = ["Sinkhorn"]


class SinkhornState(eqx.Module):
    """`soft_rows` are for the next sweep, and so is `epsilon`. `settled`: the last sweep was with the problem's own epsilon, and `error` counts.

    `still`: the last sweep moved the potentials by rounding errors only.
    """

    x: Potentials
    soft_rows: Array
    epsilon: Array
    value: Array
    error: Array
    settled: Array
    still: Array
    counters: Counters


class Sinkhorn(Method):
    """Sinkhorn's method in logarithms: a step is a sweep over both potentials, and costs two passes over the cost.

    The first choice for an epsilon above a hundredth of the mean cost, and for accuracies like 1e-4. Below, sweeps are many:
    `SinkhornNewtonSparse` needs tens of steps where this needs thousands.

    **Arguments:**

    - `tolerance`: converged when |P 1 - a| + |P' 1 - b|, sums of absolute values in units of the mass, is at most this.
    - `relaxation`: omega, between 0 and 2.
    - `first_epsilon`: begin with this epsilon, in the units of the cost, if it is above that of the problem; `None` begins with that.
    - `decay`: it falls by this factor every sweep.

    Where sweeps only move the potentials by rounding errors and the tolerance is not met, the solve ends as `stopped`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.
    """

    problem = Coupling
    reference: ClassVar[str] = "cuturi2013sinkhorn"

    tolerance: Any = 1e-6
    relaxation: Any = 1.0
    first_epsilon: Any = None
    decay: Any = 0.5

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)
        need_between("relaxation", self.relaxation, 0, 2)
        need_positive("first_epsilon", self.first_epsilon)
        need_between("decay", self.decay, 0, 1)

    def check(self, problem: Coupling, guess: Potentials) -> None:
        need_precision(problem, self.tolerance)

    def init(self, problem: Coupling, guess: Potentials, *, key: Array | None) -> SinkhornState:
        epsilon = problem.epsilon
        if self.first_epsilon is not None:
            epsilon = jnp.maximum(epsilon, jnp.asarray(self.first_epsilon, epsilon.dtype))
        soft_rows = problem.soft_rows(guess.g, epsilon)
        value = -problem.dual_from(guess, guess.f / epsilon + soft_rows)
        never = jnp.full((), jnp.inf, value.dtype)
        no = jnp.array(False)
        return SinkhornState(guess, soft_rows, epsilon, value, never, no, no, Counters.zero().add(values=1))

    def step(self, problem: Coupling, state: SinkhornState, *, key: Array | None) -> SinkhornState:
        epsilon = state.epsilon
        x, soft_columns = sweep(problem, state.x, state.soft_rows, epsilon, self.relaxation)
        following = jnp.maximum(problem.epsilon, epsilon * self.decay)
        soft_rows = problem.soft_rows(x.g, following)
        log_rows = x.f / following + soft_rows
        error = problem.error_from(log_rows, x.g / epsilon + soft_columns)
        moved = jnp.maximum(jnp.max(jnp.abs(x.f - state.x.f)), jnp.max(jnp.abs(x.g - state.x.g)))
        size = jnp.maximum(jnp.max(jnp.abs(x.f)), jnp.max(jnp.abs(x.g)))
        settled = epsilon <= problem.epsilon
        still = settled & (moved <= 4 * jnp.finfo(size.dtype).eps * size)
        counters = state.counters.add(values=1, gradients=1)
        return SinkhornState(x, soft_rows, following, -problem.dual_from(x, log_rows), error, settled, still, counters)

    def done(self, problem: Coupling, state: SinkhornState):
        code = jnp.where(state.still, Result.stopped.code, Result.running.code)
        return jnp.where(state.settled & (state.error <= self.tolerance), Result.converged.code, code)

    def answer(self, problem: Coupling, state: SinkhornState) -> Potentials:
        return state.x.centred()

    def metrics(self, problem: Coupling, state: SinkhornState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.error, "epsilon": state.epsilon}


def sweep(problem: Coupling, x: Potentials, soft_rows: Array, epsilon: Array, relaxation: Any = 1.0) -> tuple[Potentials, Array]:
    """The potentials after a sweep, and `soft_columns` for their f. `soft_rows` are those of x.g."""
    length = _length(x.f / epsilon + soft_rows, problem.a, relaxation)
    f = (1 - length) * x.f - length * epsilon * soft_rows
    soft_columns = problem.soft_columns(f, epsilon)
    length = _length(x.g / epsilon + soft_columns, problem.b, relaxation)
    return Potentials(f, (1 - length) * x.g - length * epsilon * soft_columns), soft_columns


def _length(log_error: Array, weights: Array, relaxation: Any) -> Any:
    """`relaxation`, or 1 if the dual would not rise with it.

    A move of a potential by -omega epsilon log r changes D by epsilon sum of a (-omega log r - r^(1 - omega) + r).
    """
    if isinstance(relaxation, int | float) and relaxation == 1:
        return 1
    rise = -relaxation * log_error - jnp.exp((1 - relaxation) * log_error) + jnp.exp(log_error)
    return jnp.where(jnp.sum(weights * rise) >= 0, relaxation, 1).astype(log_error.dtype)


def need_precision(problem: Any, tolerance: Any) -> None:
    """Raise where a tolerance is below what single precision reaches."""
    if problem.a.dtype == jnp.float32 and isinstance(tolerance, int | float) and tolerance < 1e-6:
        hint = "Use double precision: `jax.enable_x64(True)`, and arrays of it."
        raise ArgumentError("tolerance", f"= {tolerance:g} is out of reach in single precision.", hint)
