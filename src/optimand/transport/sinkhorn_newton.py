r"""Newton's method on the dual of entropic transport, with its whole Hessian.

$$\nabla^2 D = -\frac{1}{\varepsilon} \begin{pmatrix} \mathrm{diag}(P 1) & P \\ P^\top & \mathrm{diag}(P^\top 1) \end{pmatrix}$$

(see `newton_iteration`). It is the reference for `SinkhornNewtonSparse`, and the method for a cost that has no matrix (Brauer, Clason, Lorenz and Wirth 2017).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.errors import ArgumentError
from .costs import CostMatrix
from .newton_iteration import Direction, NewtonIteration, cholesky, conjugate_gradients, newton_system, ridge_of
from .problem import Coupling, Potentials

__all__ = ["SinkhornNewton"]


class SinkhornNewton(NewtonIteration):
    """Newton's method with all of the Hessian, after some sweeps of Sinkhorn's method: a step is a sweep, or a Newton step.

    With "dense" a step takes O(n^3) operations, and with "products" two passes over the cost for each step of conjugate gradients; then no
    matrix is formed where the cost has none. For plans that are nearly sparse, with an epsilon below a hundredth of the mean cost,
    `SinkhornNewtonSparse` is faster than both.

    **Arguments:**

    - `tolerance`: converged when |P 1 - a| + |P' 1 - b|, sums of absolute values in units of the mass, is at most this.
    - `warmup`: sweeps first. "auto" goes on to Newton's method after ten.
    - `hessian`: "dense" or "products"; by default dense with up to 500 sources.
    - `inner_tolerance`, `inner_steps`: of conjugate gradients. The former is lowered to a tenth of the error.

    Where steps no longer help at this precision the solve ends as `stopped`. The state counts `sweeps` and `newton_steps`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a tolerance below 1e-6 in single precision.
    """

    reference: ClassVar[str] = "brauer2017sinkhorn"

    tolerance: Any = 1e-9
    warmup: Any = eqx.field(static=True, default=20)
    hessian: str | None = eqx.field(static=True, default=None)
    inner_tolerance: Any = 1e-6
    inner_steps: int = eqx.field(static=True, default=500)

    def __check_init__(self):
        if self.hessian not in (None, "dense", "products"):
            raise ArgumentError("hessian", f"must be 'dense', 'products' or None, not {self.hessian!r}.")

    def levels(self, problem: Coupling) -> int:
        return 1

    def warm(self, problem: Coupling, x: Potentials) -> Array:
        return jnp.array(True)

    def forms_plan(self, problem: Coupling) -> bool:
        return self._dense(problem) or isinstance(problem.cost, CostMatrix)

    def _dense(self, problem: Coupling) -> bool:
        return self.hessian == "dense" or (self.hessian is None and problem.a.size <= 500)

    def direction(self, problem: Coupling, x: Potentials, plan: Any, lack: Potentials, rtol: Array, level: Array) -> Direction:
        lack = Potentials(problem.epsilon * lack.f, problem.epsilon * lack.g)
        if plan is not None:
            rows, columns, times, times_transposed = jnp.sum(plan, 1), jnp.sum(plan, 0), plan.__matmul__, lambda u: u @ plan
            if self._dense(problem):
                return newton_system(times, times_transposed, rows, columns, lack, cholesky(plan, rows, columns))
        else:
            arrays, static = eqx.partition((problem, x), eqx.is_array)
            problem, x = eqx.combine(jax.lax.stop_gradient(arrays), static)  # what changes the matrix changes the solution in second order
            log_rows, log_columns = problem.log_errors(x)
            rows, columns = problem.a * jnp.exp(log_rows), problem.b * jnp.exp(log_columns)
            times, times_transposed = (lambda v: problem.push(x, v)), (lambda u: problem.pull(x, u))
        solve = conjugate_gradients(rows, rtol, self.inner_steps)
        return newton_system(times, times_transposed, rows, columns, lack, solve, ridge_of(rows.dtype))
