r"""Successive over-relaxation.

For A = D + L + U, in a given order of the unknowns,

$$x_{k+1} = x_k + \left(\tfrac{1}{\omega} D + L\right)^{-1} (b - A x_k),$$

a sweep over the unknowns in which each is moved omega times as far as would solve its equation; omega = 1 is the method of Gauss and
Seidel. It converges for every start if A is symmetric and positive definite and \(0 < \omega < 2\) (Young 1954).
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from .preconditioners import as_sparse
from .ssor import need_diagonal, need_omega
from .sweeps import Sweeps, Triangle, need_ordering

__all__ = ["SOR"]


class SORState(NamedTuple):
    """The operator, and the triangle D + omega L that a sweep solves with; for the transposed system, its transpose."""

    operator: lx.AbstractLinearOperator
    triangle: Triangle


class _Progress(NamedTuple):
    x: Array
    residual: Array
    left: Array
    best: Array  # of all x so far that with the least residual
    least: Array
    steps: Array
    idle: Array  # sweeps since then


class SOR(lx.AbstractLinearSolver[SORState]):
    """Successive over-relaxation: a lineax solver for `SparseOperator`, and the method for which a good `omega` matters most.

    It ends where |b - A x| <= max(rtol |b|, atol), Euclidean norms of the true residual, which is computed after every sweep. Else the
    result is `max_steps_reached`; `stagnation`, after as many sweeps without a smaller residual as there are unknowns, and at least a
    hundred; or `breakdown`, if x grows beyond all numbers. The answer then is the x with the least residual. `stats` has `num_steps`,
    sweeps, `products` with the matrix, and the relative true `residual`. `options={"y0": x}` is a first guess.

    Derivatives solve the transposed system by transposed sweeps, which converge at the same rate.

    **Arguments:**

    - `omega`: between 0 and 2; may be traced.
    - `rtol`, `atol`, `max_steps`: when to end.
    - `ordering`: as for `SSOR`.

    Raises `ArgumentError`, naming the argument, for a number out of its range, for an operator that is not a `SparseOperator`, and by `init`,
    where the entries are known, for one of the diagonal that is zero or negative, with its row.

    ```python
    import lineax as lx
    import scipy.sparse

    laplacian = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(20, 20))
    operator = om.linear.SparseOperator.from_scipy(laplacian, tags=lx.positive_semidefinite_tag)
    omega = om.linear.optimal_omega(operator)
    lx.linear_solve(operator, jnp.ones(20), om.linear.SOR(omega, rtol=1e-4)).stats["num_steps"]
    ```
    """

    reference: ClassVar[str] = "young1954iterative"

    omega: Any = 1.0
    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int = eqx.field(static=True, default=10_000)
    ordering: str = eqx.field(static=True, default="natural")

    def __check_init__(self):
        need_omega(self.omega)
        need_ordering(self.ordering)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ArgumentError(name, f"must be a finite number that is not negative, not {value!r}.")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ArgumentError("max_steps", f"must be a whole number above zero, not {self.max_steps!r}.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> SORState:
        operator = as_sparse(operator, "SOR")
        need_diagonal(operator)
        sweeps = Sweeps.of(operator.pattern, self.ordering)
        omega = jnp.asarray(self.omega, jnp.finfo(operator.data.dtype).dtype)
        return SORState(lx.linearise(operator), sweeps.lower_triangle(operator, omega))

    def compute(self, state: SORState, vector: PyTree[Array], options: dict[str, Any]):
        b, size = vector, jnp.linalg.norm(vector)
        limit = jnp.maximum(self.rtol * size, self.atol)
        patience = max(100, b.size)
        omega = jnp.asarray(self.omega, size.dtype)
        start = jnp.where(size > 0, options["y0"], 0) if "y0" in options else jnp.zeros_like(b)

        def going(at: _Progress):
            return (at.left > limit) & (at.steps < self.max_steps) & (at.idle < patience) & jnp.isfinite(at.left)

        def sweep(at: _Progress) -> _Progress:
            x = at.x + omega * state.triangle.solve(at.residual)
            residual = b - state.operator.mv(x)
            left = jnp.linalg.norm(residual)
            better = left < at.least
            best, least = jnp.where(better, x, at.best), jnp.where(better, left, at.least)
            return _Progress(x, residual, left, best, least, at.steps + 1, jnp.where(better, 0, at.idle + 1))

        residual = b - state.operator.mv(start) if "y0" in options else b
        left, none = jnp.linalg.norm(residual), jnp.int32(0)
        end = jax.lax.while_loop(going, sweep, _Progress(start, residual, left, start, left, none, none))
        products = end.steps + (1 if "y0" in options else 0)
        relative = end.least / jnp.where(size > 0, size, 1)
        stats = {"num_steps": end.steps, "max_steps": jnp.int32(self.max_steps), "products": products, "residual": relative}
        return end.best, self._result(end, left, limit), stats

    def _result(self, end: _Progress, left: Array, limit: Array) -> lx.RESULTS:
        choose, results = lx.RESULTS.where, lx.RESULTS
        failed = choose(end.steps >= self.max_steps, results.max_steps_reached, results.stagnation)
        failed = choose(jnp.isfinite(end.left), failed, results.breakdown)
        failed = choose(jnp.isfinite(left), failed, results.nonfinite_input)
        return choose(end.least <= limit, results.successful, failed)

    def transpose(self, state: SORState, options: dict[str, Any]):
        return SORState(state.operator.transpose(), state.triangle.transpose()), {}

    def conj(self, state: SORState, options: dict[str, Any]):
        return SORState(lx.conj(state.operator), state.triangle.conj()), {}

    def assume_full_rank(self) -> bool:
        return True
