r"""Iterative Bregman projections, for barycentres: Sinkhorn's method on all measures at once.

$$g_k \leftarrow -\varepsilon \log \sum_i u_i e^{(f_{ki} - C_{k,ij}) / \varepsilon}, \qquad
  \frac{h}{\varepsilon} \leftarrow \frac{1}{2} \left( \frac{h}{\varepsilon} + \log \frac{p}{u} - \log \sum_j u_j e^{(h_j - C_{ij}) /
  \varepsilon} \right),$$

with p and \(f_k\) made of g and h as in `barycentre`: the first is the projection on the measures, making p that on a common marginal
(Benamou et al. 2015, section 3.2); the second, where the cost within is given, is that of Janati, Cuturi and Gramfort (2020, algorithm 1).
All in logarithms.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..core.arguments import need_not_negative
from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .barycentre import Barycentre, BarycentrePotentials

__all__ = ["BregmanProjections"]


class BregmanProjectionsState(eqx.Module):
    """`soft_rows` and `log_errors` are those of x. `still`: the last step moved the potentials by rounding errors only."""

    x: BarycentrePotentials
    soft_rows: Array
    log_errors: BarycentrePotentials
    error: Array
    still: Array
    counters: Counters


class BregmanProjections(Method):
    """Iterative Bregman projections: a step costs two passes over the cost of each measure, and one over the cost within.

    **Arguments:**

    - `tolerance`: converged when no marginal is wrong by more than this, in sums of absolute values and units of the mass.

    Where steps only move the potentials by rounding errors and the tolerance is not met, the solve ends as `stopped`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.
    """

    problem = Barycentre
    reference: ClassVar[str] = "benamou2015iterative"

    tolerance: Any = 1e-6

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)

    def check(self, problem: Barycentre, guess: BarycentrePotentials) -> None:
        if problem.epsilon.dtype == jnp.float32 and isinstance(self.tolerance, int | float) and self.tolerance < 1e-6:
            hint = "Use double precision: `jax.enable_x64(True)`, and arrays of it."
            raise ArgumentError("tolerance", f"= {self.tolerance:g} is out of reach in single precision.", hint)

    def init(self, problem: Barycentre, guess: BarycentrePotentials, *, key: Array | None) -> BregmanProjectionsState:
        still, counters = jnp.array(False), Counters.zero().add(gradients=1)
        return BregmanProjectionsState(guess, *_measures(problem, guess), still, counters)

    def step(self, problem: Barycentre, state: BregmanProjectionsState, *, key: Array | None) -> BregmanProjectionsState:
        epsilon, errors = problem.epsilon, state.log_errors
        g = tuple(g - epsilon * e for g, e in zip(state.x.g, errors.g, strict=True))
        x = BarycentrePotentials(g, state.x.h - epsilon / 2 * errors.h)
        moved, size = (jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in (*tree.g, tree.h)])) for tree in (errors, x))
        still = epsilon * moved <= 4 * jnp.finfo(size.dtype).eps * size
        return BregmanProjectionsState(x, *_measures(problem, x), still, state.counters.add(gradients=1))

    def done(self, problem: Barycentre, state: BregmanProjectionsState):
        code = jnp.where(state.still, Result.stopped.code, Result.running.code)
        return jnp.where(state.error <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Barycentre, state: BregmanProjectionsState) -> BarycentrePotentials:
        means = jnp.stack([jnp.mean(g) for g in state.x.g])
        shifts = problem.shares @ means - means  # which leave p as it is
        return BarycentrePotentials(tuple(g + shift for g, shift in zip(state.x.g, shifts, strict=True)), state.x.h)

    def metrics(self, problem: Barycentre, state: BregmanProjectionsState) -> dict[str, Any]:
        return {"residual": state.error}


def _measures(problem: Barycentre, x: BarycentrePotentials) -> tuple[Array, BarycentrePotentials, Array]:
    soft_rows = problem.soft_rows(x)
    log_errors = problem.log_errors_from(x, soft_rows)
    weights = jnp.exp(problem.log_density(x, soft_rows)) / problem.size
    return soft_rows, log_errors, problem.error_from(log_errors, weights)
