r"""Sinkhorn's method: the dual of entropic transport, maximised over one potential after the other.

$$f_i \leftarrow f_i - \omega \varepsilon \log \frac{(P 1)_i}{a_i}, \qquad g_j \leftarrow g_j - \omega \varepsilon \log \frac{(P^\top 1)_j}{b_j}.$$

With \(\omega = 1\) each line is the exact maximiser (Cuturi 2013). Sums are taken in logarithms, which do not overflow for any epsilon, or as products with a
matrix that is made anew where they would (`stabilised_kernel`): the iterates are the same. With
\(1 < \omega < 2\) sweeps go further, and near the solution they converge faster, as successive over-relaxation does; far from it they need not
converge, so where the dual would not rise, which takes a sum to know, a sweep is an exact one (Thibault, Chizat, Dossal and Papadakis 2021).
Epsilon may be lowered to that of the problem by a factor a sweep.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..core.arguments import need_between, need_not_negative, need_positive
from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .costs import CostMatrix
from .problem import Coupling, Potentials
from .stabilised_kernel import StabilisedKernel, is_moderate

__all__ = ["Sinkhorn"]


class SinkhornState(eqx.Module):
    """`soft_rows` are for the next sweep, and so is `epsilon`. `settled`: the last sweep was with the problem's own epsilon, and `error` counts.

    `still`: the last sweep moved the potentials by rounding errors only. `kernel` is there where sums are products; `balanced`: it can be made from x.
    """

    x: Potentials
    soft_rows: Array
    epsilon: Array
    value: Array
    error: Array
    settled: Array
    still: Array
    balanced: Array
    kernel: StabilisedKernel | None
    counters: Counters


class Sinkhorn(Method):
    """Sinkhorn's method: a step is a sweep over both potentials, and costs two passes over the cost, or two products with a matrix (see `domain`).

    The first choice for an epsilon above a hundredth of the mean cost, and for accuracies like 1e-4. Below, sweeps are many:
    `SinkhornNewtonSparse` needs tens of steps where this needs thousands.

    **Arguments:**

    - `tolerance`: converged when |P 1 - a| + |P' 1 - b|, sums of absolute values in units of the mass, is at most this.
    - `relaxation`: omega, between 0 and 2.
    - `first_epsilon`: begin with this epsilon, in the units of the cost, if it is above that of the problem; `None` begins with that.
    - `decay`: it falls by this factor every sweep.
    - `domain`: "log" takes sums in logarithms; "scaling" as products with the plan at potentials nearby, a second matrix of the size of the cost,
      which is several times faster. By default the latter where the cost is a matrix.

    Where sweeps only move the potentials by rounding errors and the tolerance is not met, the solve ends as `stopped`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.
    """

    problem = Coupling
    reference: ClassVar[str] = "cuturi2013sinkhorn"

    tolerance: Any = 1e-6
    relaxation: Any = 1.0
    first_epsilon: Any = None
    decay: Any = 0.5
    domain: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.domain not in (None, "log", "scaling"):
            raise ArgumentError("domain", f"must be 'log', 'scaling' or None, not {self.domain!r}.")
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
        kernel, soft_rows_of = None, problem.soft_rows
        if self.domain == "scaling" or (self.domain is None and isinstance(problem.cost, CostMatrix)):
            kernel = StabilisedKernel.at(problem, guess) if self.first_epsilon is None else StabilisedKernel.none(problem)
            soft_rows_of = functools.partial(kernel.soft_rows, problem)
        soft_rows = soft_rows_of(guess.g, epsilon)
        value = -problem.dual_from(guess, guess.f / epsilon + soft_rows)
        never = jnp.full((), jnp.inf, value.dtype)
        no = jnp.array(False)
        return SinkhornState(guess, soft_rows, epsilon, value, never, no, no, no, kernel, Counters.zero().add(values=1))

    def step(self, problem: Coupling, state: SinkhornState, *, key: Array | None) -> SinkhornState:
        epsilon, kernel = state.epsilon, state.kernel
        following = jnp.maximum(problem.epsilon, epsilon * self.decay)
        soft_rows_of, soft_columns_of = problem.soft_rows, problem.soft_columns
        if kernel is not None:
            kernel = kernel.near(problem, state.x, state.balanced)
            soft_rows_of, soft_columns_of = functools.partial(kernel.soft_rows, problem), functools.partial(kernel.soft_columns, problem)
        x, soft_columns = sweep(problem, state.x, state.soft_rows, epsilon, self.relaxation, soft_columns_of)
        soft_rows = soft_rows_of(x.g, following)
        log_rows = x.f / following + soft_rows
        log_columns = x.g / epsilon + soft_columns
        error = problem.error_from(log_rows, log_columns)
        moved = jnp.maximum(jnp.max(jnp.abs(x.f - state.x.f)), jnp.max(jnp.abs(x.g - state.x.g)))
        size = jnp.maximum(jnp.max(jnp.abs(x.f)), jnp.max(jnp.abs(x.g)))
        settled = epsilon <= problem.epsilon
        still = settled & (moved <= 4 * jnp.finfo(size.dtype).eps * size)
        balanced = settled & is_moderate(log_rows) & is_moderate(log_columns)
        counters = state.counters.add(values=1, gradients=1)
        return SinkhornState(x, soft_rows, following, -problem.dual_from(x, log_rows), error, settled, still, balanced, kernel, counters)

    def done(self, problem: Coupling, state: SinkhornState):
        code = jnp.where(state.still, Result.stopped.code, Result.running.code)
        return jnp.where(state.settled & (state.error <= self.tolerance), Result.converged.code, code)

    def answer(self, problem: Coupling, state: SinkhornState) -> Potentials:
        return state.x.centred()

    def metrics(self, problem: Coupling, state: SinkhornState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.error, "epsilon": state.epsilon}


def sweep(
    problem: Coupling, x: Potentials, soft_rows: Array, epsilon: Array, relaxation: Any = 1.0, soft_columns_of: Callable | None = None
) -> tuple[Potentials, Array]:
    """The potentials after a sweep, and `soft_columns` for their f. `soft_rows` are those of x.g; `soft_columns_of` is by default the problem's."""
    length = _length(x.f / epsilon + soft_rows, problem.a, relaxation)
    f = (1 - length) * x.f - length * epsilon * soft_rows
    soft_columns = (soft_columns_of or problem.soft_columns)(f, epsilon)
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
