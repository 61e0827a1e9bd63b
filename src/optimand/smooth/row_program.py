r"""A quadratic program with two-sided rows: how methods for quadratic programs see it, and its certificates.

$$\min_x \tfrac12 x^\top P x + q^\top x \quad\text{s.t.}\quad l \le C x \le u, \qquad C = [A;\; G;\; I] .$$

It has no feasible point if some y with \(C^\top y = 0\) has \(u^\top y_+ + l^\top y_- < 0\), and no least value if some x with
\(P x = 0\) and \(q^\top x < 0\) can be followed for ever (Banjac, Goulart, Stellato and Boyd 2019, section 3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.constrained import PrimalDual
from ..core.dense import cholesky
from ..core.errors import ArgumentError
from ..core.solution import Result
from .equilibration import Scaling
from .flat_program import FlatProgram
from .quadratic_program import QuadraticProgram

__all__ = ["RowProgram", "is_convex", "program_status", "refuse_concave"]


def refuse_concave(problem: QuadraticProgram, method: str) -> None:
    """A method for convex programs refuses one that is declared not to be."""
    if not problem.convex:
        raise ArgumentError("problem", f"is declared not convex, and {method} needs it to be.", "Try SQP.")


def is_convex(P: Float[Array, "n n"]) -> Array:
    """Whether P is positive semidefinite, to about the root of the rounding; NaN passes, as what it is."""
    shift = jnp.sqrt(jnp.finfo(P.dtype).eps) * jnp.maximum(jnp.max(jnp.abs(P), initial=0.0), 1e-3)
    factor = cholesky(jax.lax.stop_gradient(P) + shift * jnp.eye(len(P), dtype=P.dtype))
    return jnp.all(jnp.isfinite(factor)) | ~jnp.all(jnp.isfinite(P))


def program_status(state: Any, tolerance: Any, patience: int) -> Array:
    """The code of a method's state: solved, proven infeasible or unbounded, not convex, or no nearer for `patience` steps."""
    code = jnp.where(state.idle >= patience, Result.stopped.code, Result.running.code)
    code = jnp.where(state.unbounded | ~state.convex, Result.diverged.code, code)
    code = jnp.where(state.infeasible, Result.infeasible.code, code)
    return jnp.where(state.convex & (state.residual <= tolerance), Result.converged.code, code)


class RowProgram(NamedTuple):
    """A quadratic program with two-sided rows, lower <= [M; I] x <= upper; the rows of I only if there are bounds.

    `row_scale` is E of the scaling that the program has gone through, `column_scale` D, `cost_scale` c. `view` packs and
    unpacks values.
    """

    P: Float[Array, "n n"]
    q: Float[Array, " n"]
    M: Float[Array, "r n"]
    lower: Float[Array, " k"]
    upper: Float[Array, " k"]
    row_scale: Float[Array, " k"]
    column_scale: Float[Array, " n"]
    cost_scale: Float[Array, ""]
    view: Any

    @staticmethod
    def of(problem: QuadraticProgram, like: PrimalDual) -> "RowProgram":
        view = FlatProgram(problem, like)
        cast = lambda array: array.astype(view.dtype)
        none, empty = jnp.zeros((0, view.size), view.dtype), jnp.zeros((0,), view.dtype)
        A, b = (none, empty) if problem.A is None else (cast(problem.A), cast(problem.b))
        G, h = (none, empty) if problem.G is None else (cast(problem.G), cast(problem.h))
        lower, upper = [b, jnp.full_like(h, -jnp.inf)], [b, h]
        if problem.bounds != (None, None):
            lower, upper = [*lower, view.lower], [*upper, view.upper]
        lower, upper = jnp.concatenate(lower), jnp.concatenate(upper)
        one = jnp.ones((), view.dtype)
        return RowProgram(
            cast(problem.P), cast(problem.q), jnp.concatenate([A, G]), lower, upper,
            jnp.ones_like(lower), jnp.ones((view.size,), view.dtype), one, view,
        )  # fmt: skip

    def scaled(self, scaling: Scaling) -> "RowProgram":
        """The same program in scaled variables, where the rows of the bounds are those of the identity again."""
        columns, rows, cost = scaling
        all_rows = rows if self.lower.size == rows.size else jnp.concatenate([rows, 1 / columns])
        return RowProgram(
            cost * self.P * columns * columns[:, None], cost * self.q * columns, self.M * columns * rows[:, None],
            self.lower * all_rows, self.upper * all_rows, all_rows, columns, cost, self.view,
        )  # fmt: skip

    def products(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """[M; I] x."""
        of_rows = self.M @ x
        return of_rows if self.lower.size == of_rows.size else jnp.concatenate([of_rows, x])

    def transposed(self, y: Float[Array, " k"]) -> Float[Array, " n"]:
        """[M; I]' y."""
        rows = len(self.M)
        of_rows = y[:rows] @ self.M
        return of_rows if y.size == rows else of_rows + y[rows:]

    def gram(self, weights: Float[Array, " k"]) -> Float[Array, "n n"]:
        """[M; I]' diag(weights) [M; I]."""
        rows = len(self.M)
        of_rows = (self.M * weights[:rows, None]).T @ self.M
        return of_rows if weights.size == rows else of_rows + jnp.diag(weights[rows:])

    def residuals(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """|[M; I] x - z| and |P x + q + [M; I]' y| of the program before scaling, each relative to 1 + its terms."""
        rows, curved, pulled = self.products(x), self.P @ x, self.transposed(y)
        back = 1 / (self.cost_scale * self.column_scale)
        primal = _ratio((rows - z) / self.row_scale, rows / self.row_scale, z / self.row_scale)
        return primal, _ratio((curved + self.q + pulled) * back, curved * back, self.q * back, pulled * back)

    def residual(self, x: Array, y: Array, z: Array) -> Array:
        """The larger of the two: for z within the sides and y in their normal cone, how far from a solution."""
        return jnp.maximum(*self.residuals(x, y, z))

    def flatten(self, value: PrimalDual) -> tuple[Array, Array]:
        """x and the multipliers y of all rows."""
        x, equality, inequality, lower, upper = self.view.unpack(value)
        parts = [equality, inequality] + ([upper - lower] if self.lower.size > equality.size + inequality.size else [])
        return x, jnp.concatenate(parts)

    def pack(self, x: Array, y: Array) -> PrimalDual:
        """The `PrimalDual` with these; the multipliers of inequalities not negative."""
        m, rows = self.view.equality_count, len(self.M)
        bounds = y[rows:] if y.size > rows else jnp.zeros_like(x)
        positive = lambda y: jnp.maximum(y, 0)
        return self.view.pack(x, y[:m], positive(y[m:rows]), positive(-bounds), positive(bounds))

    def proves_infeasible(self, y: Array, tolerance: Array) -> tuple[Array, Array]:
        """Whether C'y = 0 while u'y_+ + l'y_- < 0, and y scaled to have largest entry one."""
        y = jnp.where(jnp.isinf(self.upper), jnp.minimum(y, 0), y)
        y = jnp.where(jnp.isinf(self.lower), jnp.maximum(y, 0), y)
        size = jnp.max(jnp.abs(y), initial=0.0)
        y = y / jnp.where(size > 0, size, 1)
        present = lambda side, y: jnp.where(y == 0, 0, jnp.where(jnp.isinf(side), 0, side) * y)
        support = jnp.sum(present(self.upper, jnp.maximum(y, 0)) + present(self.lower, jnp.minimum(y, 0)))
        weight = jnp.max(jnp.abs(self.M), initial=1.0)
        proven = (size > 0) & (jnp.max(jnp.abs(self.transposed(y)), initial=0.0) <= tolerance * weight)
        return proven & (support < -tolerance * self._side_size()), y

    def _side_size(self) -> Array:
        side = lambda side: jnp.max(jnp.where(jnp.isinf(side), 0, jnp.abs(side)), initial=1.0)
        return jnp.maximum(side(self.lower), side(self.upper))

    def proves_unbounded(self, x: Array, tolerance: Array) -> tuple[Array, Array]:
        """Whether P x = 0, q'x < 0 and x keeps to every constraint however far, and x scaled to have largest entry one."""
        size = jnp.max(jnp.abs(x), initial=0.0)
        x = x / jnp.where(size > 0, size, 1)
        rows = self.products(x)
        room = tolerance * jnp.max(jnp.abs(self.M), initial=1.0)
        stays = jnp.all((jnp.isinf(self.upper) | (rows <= room)) & (jnp.isinf(self.lower) | (rows >= -room)))
        flat = jnp.max(jnp.abs(self.P @ x), initial=0.0) <= tolerance * jnp.max(jnp.abs(self.P), initial=1.0)
        return (size > 0) & stays & flat & (self.q @ x < -tolerance * jnp.max(jnp.abs(self.q), initial=1.0)), x


def _ratio(residual: Array, *terms: Array) -> Array:
    """The largest entry of a residual over 1 plus that of its terms."""
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(term), initial=0.0) for term in terms]))
    return jnp.max(jnp.abs(residual), initial=0.0) / (1 + size)
