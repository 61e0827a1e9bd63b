r"""A primal-dual interior point method for convex quadratic programs.

$$P x + q + A^\top \nu + G^\top \mu - \lambda_l + \lambda_u = 0, \quad A x = b, \quad G x + s = h, \quad \mu_i s_i = \tau \to 0,$$

by Mehrotra's predictor-corrector method (Mehrotra 1992; Nocedal and Wright 2006, algorithm 16.4): every step solves for the
direction to the solution itself, learns from it how much to centre, and solves again with the same factorisation. The
algebra is in `interior_iteration`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.constrained import PrimalDual
from ..core.method import Method
from .arguments import need_count, need_not_negative, need_positive
from .equilibration import Scaling
from .interior_iteration import Interior, InteriorProgram, advance, begin, error_of, restored
from .quadratic_program import QuadraticProgram
from .row_program import RowProgram, is_convex, program_status, refuse_concave

__all__ = ["QuadraticInteriorPoint"]


class QuadraticInteriorPointState(eqx.Module):
    """The iterate (of the scaled program), the best answer so far, and what was proven; see `ADMM` for the certificate."""

    iterate: Interior
    scaling: Scaling
    best: PrimalDual
    residual: Array
    certificate: PrimalDual
    infeasible: Array
    unbounded: Array
    convex: Array
    idle: Array
    counters: Counters


class QuadraticInteriorPoint(Method):
    """Mehrotra's predictor-corrector method: high accuracy in ten to thirty steps, whatever the conditioning.

    The first choice for one convex quadratic (or linear) program with up to some thousand unknowns. Every step factorises
    an n x n matrix; for many small programs under `vmap`, `ADMM` may be faster.

    **Arguments:**

    - `equilibration`: sweeps of Ruiz's scaling.
    - `tolerance`: converged when stationarity, constraints and complementarity hold to this, absolutely plus relative to
      their terms.
    - `infeasibility_tolerance`: of a certificate, relative to its size; not less than 100 units of rounding.
    - `patience`: the solve ends as `stopped` when the residual has not fallen by a tenth in so many steps: it can get no
      nearer at this precision.

    Ends as `infeasible` or `diverged` with a certificate in `solution.state.certificate`, and as `diverged` with
    `solution.state.convex` false if P turns out not to be positive semidefinite. A warm start takes the point only: an
    interior method cannot begin at multipliers that are zero. Raises `ArgumentError`, naming the argument, for a number
    out of its range and for a program declared not convex.

    ```python
    program = om.smooth.QuadraticProgram(2 * jnp.eye(3), -jnp.arange(3.0), jnp.ones((1, 3)), jnp.ones(1), bounds=(0.0, None))
    om.solve(program, om.smooth.QuadraticInteriorPoint(tolerance=1e-5), jnp.zeros(3)).value.primal  # (0, 1/4, 3/4)
    ```
    """

    problem = QuadraticProgram
    reference: ClassVar[str] = "mehrotra1992implementation"

    equilibration: int = eqx.field(static=True, default=10)
    tolerance: Any = 1e-8
    infeasibility_tolerance: Any = 1e-6
    patience: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        need_count("equilibration", self.equilibration, least=0)
        need_count("patience", self.patience)
        need_not_negative("tolerance", self.tolerance)
        need_positive("infeasibility_tolerance", self.infeasibility_tolerance)

    def init(self, problem: QuadraticProgram, guess: PrimalDual, *, key: Array | None) -> QuadraticInteriorPointState:
        refuse_concave(problem, type(self).__name__)
        rows = RowProgram.of(problem, guess)
        program = _interior(rows).without_fixed()
        scaled, scaling = program.scaled(self.equilibration)
        x, _ = rows.flatten(guess)
        iterate = begin(scaled, x / scaling.columns)
        zero = jax.tree_util.tree_map(jnp.zeros_like, guess)
        return QuadraticInteriorPointState(
            iterate, scaling, guess, jnp.full((), jnp.inf, x.dtype), zero, jnp.array(False), jnp.array(False),
            is_convex(scaled.P), jnp.int32(0), Counters.zero().add(values=1, gradients=1),
        )  # fmt: skip

    def step(
        self, problem: QuadraticProgram, state: QuadraticInteriorPointState, *, key: Array | None
    ) -> QuadraticInteriorPointState:
        rows = RowProgram.of(problem, state.best)
        whole = _interior(rows)
        program = whole.without_fixed()
        scaled, _ = program.scaled_by(state.scaling)
        new = advance(scaled, state.iterate)
        there = restored(new, state.scaling)
        residual = error_of(program, there)
        better = residual < state.residual  # false if rounding has made it NaN, where the method can go no further
        idle = jnp.where(residual <= 0.9 * state.residual, 0, state.idle + 1)
        idle = jnp.where(jnp.isfinite(residual), idle, self.patience).astype(jnp.int32)
        nu, mu, lower, upper = whole.multipliers(there)
        y = jnp.concatenate([nu, mu] + ([upper - lower] if rows.lower.size > nu.size + mu.size else []))
        found = rows.pack(there.x, y)
        best = jax.tree_util.tree_map(lambda new, old: jnp.where(better, new, old), found, state.best)

        smallest = jnp.maximum(self.infeasibility_tolerance, 100 * jnp.finfo(y.dtype).eps)
        infeasible, farkas = rows.proves_infeasible(y, smallest)
        unbounded, ray = rows.proves_unbounded(there.x, smallest)
        certificate = rows.pack(
            jnp.where(unbounded, ray, jnp.zeros_like(ray)), jnp.where(infeasible, farkas, jnp.zeros_like(farkas))
        )
        return QuadraticInteriorPointState(
            new, state.scaling, best, jnp.where(better, residual, state.residual), certificate, infeasible, unbounded,
            state.convex, idle,
            state.counters.add(values=1, gradients=1, linear_solves=1),
        )  # fmt: skip

    def done(self, problem: QuadraticProgram, state: QuadraticInteriorPointState):
        return program_status(state, self.tolerance, self.patience)

    def answer(self, problem: QuadraticProgram, state: QuadraticInteriorPointState) -> PyTree:
        return state.best

    def metrics(self, problem: QuadraticProgram, state: QuadraticInteriorPointState) -> dict[str, Any]:
        return {"residual": state.residual}


def _interior(rows: RowProgram) -> InteriorProgram:
    m = rows.view.equality_count
    lower, upper = rows.view.lower, rows.view.upper
    return InteriorProgram(
        rows.P, rows.q, rows.M[:m], rows.lower[:m], rows.M[m:], rows.upper[m : len(rows.M)], lower, upper
    )
