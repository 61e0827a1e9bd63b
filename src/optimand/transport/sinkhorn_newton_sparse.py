r"""Sinkhorn-Newton-Sparse: Newton's method on the dual of entropic transport, with only the large entries of the plan in its Hessian.

1. N_1 sweeps of Sinkhorn's method.
2. Newton steps (`newton_iteration`) whose matrix holds the K largest entries of P in its blocks off the diagonal, and the whole marginals of P
   on it, so that it stays semidefinite whatever is left out. Its system is solved by conjugate gradients with a diagonal preconditioner: a step
   of them costs O(K), and the Newton step O(n m) for P and the threshold.

For small epsilon the plan is nearly that of the linear program, which has at most n + m - 1 entries: what is left out is
exponentially small in 1 / epsilon (Tang et al. 2024, theorem 1).

Where this departs from the paper: one of the two potentials is eliminated from the linear system, which halves the steps that it takes; the system is solved as
accurately as the error asks for, which costs no Newton steps;
conjugate gradients that end at their limit give a direction of ascent all the same, and it is used if D rises as much as by a sweep; a step moves
no potential by more than a hundred epsilon; after K has been doubled twice, all entries are kept.

Where the plan falls into parts between which hardly any mass passes, as with an epsilon far below the differences of cost that decide an assignment of few
points, the system is nearly singular once for each part and conjugate gradients do not get to an end. When the error stalls for that, all entries are
kept at once, and the system is solved by Cholesky's factorisation (with up to 4000 sources).
"""

import functools
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.arguments import need_count, need_positive
from .newton_iteration import Direction, NewtonIteration, cholesky, conjugate_gradients, newton_system, ridge_of
from .problem import Coupling, Potentials
from .rounding import largest
from .thinned_plan import ThinnedPlan

__all__ = ["SinkhornNewtonSparse"]

DOUBLINGS = 2
DROPPED = 1e-2  # of the mass, at which a warm-up ends
SLACK = 0.05  # of K: so many entries less do as well, and their threshold is found sooner
FACTORED = 4000  # sources up to which a matrix with all entries is factored in place of iterations


class SinkhornNewtonSparse(NewtonIteration):
    """Newton's method with a sparse Hessian, after some sweeps of Sinkhorn's method: a step is a sweep, or a Newton step.

    For small epsilon and high accuracy: tens of steps to 1e-12 where `Sinkhorn` needs thousands. Give up on it when the plan is not nearly
    sparse (epsilon above a hundredth of the mean cost: `Sinkhorn` is as fast), or when the plan, which it forms, does not fit
    into memory (`SinkhornNewton("products")`).

    **Arguments:**

    - `tolerance`: converged when |P 1 - a| + |P' 1 - b|, sums of absolute values in units of the mass, is at most this.
    - `warmup`: sweeps first, N_1. "auto" ends them when less than a hundredth of the mass is left out at this density, or after 500.
    - `density`: entries to keep, K / max(n, m). 15 does for costs with unique plans, 30 is better for |x - y|. When the error does not halve in
      three Newton steps it is doubled, twice, and then all entries are kept; at once if conjugate gradients did not get to an end.
    - `inner_tolerance`, `inner_steps`: of conjugate gradients. The former is lowered to a tenth of the error.
    - `direct`: with up to so many sources all entries are kept in every step, and the system is factored, which is faster there.

    Where steps no longer help at this precision the solve ends as `stopped`. The state counts `sweeps` and `newton_steps`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.

    ```python
    cost = jax.random.uniform(jax.random.key(0), (20, 20))
    with jax.enable_x64(True):
        problem = om.transport.Coupling(jnp.asarray(cost, float), epsilon=1 / 500)
        om.solve(problem, om.transport.SinkhornNewtonSparse(tolerance=1e-12)).state.newton_steps
    ```
    """

    reference: ClassVar[str] = "tang2024accelerating"

    tolerance: Any = 1e-9
    warmup: Any = eqx.field(static=True, default=20)
    density: Any = eqx.field(static=True, default=15)
    inner_tolerance: Any = 1e-2
    inner_steps: int = eqx.field(static=True, default=500)
    direct: int = eqx.field(static=True, default=256)

    def __check_init__(self):
        need_positive("density", self.density)
        need_count("direct", self.direct, least=0)

    def counts(self, problem: Coupling) -> list[int]:
        """K at each level but the last, where all entries are kept."""
        n, m = problem.cost.shape
        if n <= self.direct:
            return []
        counts = [math.ceil(2**k * self.density * max(n, m)) for k in range(DOUBLINGS + 1)]
        return [count for count in counts if count < n * m]

    def levels(self, problem: Coupling) -> int:
        return len(self.counts(problem)) + 1

    def warm(self, problem: Coupling, x: Potentials) -> Array:
        plan = problem.plan(x)
        counts = self.counts(problem)
        kept = jnp.sum(jnp.where(largest(plan, counts[0], SLACK), plan, 0)) if counts else jnp.sum(plan)
        return kept >= (1 - DROPPED) * jnp.sum(plan)

    def forms_plan(self, problem: Coupling) -> bool:
        return True

    def direction(self, problem: Coupling, x: Potentials, plan: Any, lack: Potentials, rtol: Array, level: Array) -> Direction:
        lack = Potentials(problem.epsilon * lack.f, problem.epsilon * lack.g)
        rows, columns = jnp.sum(plan, 1), jnp.sum(plan, 0)
        solve = conjugate_gradients(rows, rtol, self.inner_steps)

        def of(times, times_transposed, lack):
            return newton_system(times, times_transposed, rows, columns, lack, solve, ridge_of(plan.dtype))

        def whole(lack):
            times, times_transposed = (lambda v: plan @ v), (lambda u: u @ plan)
            if rows.size > FACTORED:
                return of(times, times_transposed, lack)
            return newton_system(times, times_transposed, rows, columns, lack, cholesky(plan, rows, columns))

        def thinned(lack, count):
            kept = ThinnedPlan.of(plan, count, SLACK)
            return of(kept.times, kept.times_transposed, lack)

        return jax.lax.switch(level, [*(functools.partial(thinned, count=count) for count in self.counts(problem)), whole], lack)
