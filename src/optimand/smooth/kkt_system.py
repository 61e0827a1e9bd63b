r"""The linear system of a primal-dual step, its inertia, and its regularisation.

$$\begin{pmatrix} W + \Sigma + \delta I & A^\top \\ A & -\delta_c I \end{pmatrix}
  \begin{pmatrix} d_v \\ d_y \end{pmatrix} = \begin{pmatrix} r \\ q \end{pmatrix}, \qquad A = [J, E, -I, I].$$

W is the Hessian of the Lagrangian, which only x enters; so s, p and n are eliminated, and what remains is
\(\begin{pmatrix} K & J^\top \\ J & -D \end{pmatrix}\) with \(K = H + \Sigma_x + \delta I\) and a diagonal
\(D \ge \delta_c > 0\), of the size of x and the multipliers. It is solved by LU, after scaling, with iterative refinement.

The step goes downhill if the matrix has as many positive eigenvalues as there are variables, which with \(D > 0\) means
that \(K + J^\top D^{-1} J\) is positive definite. That is tested by Cholesky. There each entry of D that is smaller than
1e-9 in proportion to its row is raised to that, to keep the sum meaningful in floating point: which can make the matrix less
positive, never more, so that a matrix that passes has the right inertia; one that fails has its \(\delta\) raised
(Waechter and Biegler 2006, algorithm IC). Since \(\delta_c\) is never zero, rank-deficient Jacobians need no detection.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.dense import cholesky, in_turn
from .barrier import Layout

__all__ = ["KKTSystem", "regularised"]

_FIRST, _LEAST, _MOST = 1e-4, 1e-20, 1e40  # of delta_w
_QUICKLY, _SLOWLY, _DOWN = 100.0, 8.0, 3.0
_SOFTEST = 1e-9  # the least part of D in the test of the inertia
_REFINEMENTS = 3


class KKTSystem(eqx.Module):
    """The matrix without its regularisation `delta`: `curvature` is H, `sigma` the barrier's diagonal over v.

    `compliance` is \\(\\delta_c\\), a row each. `moves` is false for what is constant, among x and in the elastic part.
    """

    layout: Layout
    curvature: Float[Array, "n n"]
    jacobian: Float[Array, "m n"]
    sigma: Float[Array, " v"]
    moves: Array
    compliance: Float[Array, " m"]

    def reduced(self, delta: Array) -> tuple[Array, Array]:
        """K and D."""
        x, s, p, n = self.layout.split(self.sigma + delta)
        free, _, elastic, _ = self.layout.split(self.moves)
        both = free[:, None] & free[None, :]
        corner = jnp.where(both, self.curvature, 0) + jnp.diag(jnp.where(free, x, 1))
        # Not only are these infinite where there is no elastic part: their derivatives would be NaN.
        miss = jnp.where(elastic, 1 / jnp.where(elastic, p, 1) + 1 / jnp.where(elastic, n, 1), 0)
        return corner, self.layout.of_inequalities(1 / s) + miss + self.compliance

    def right_inertia(self, delta: Array) -> Array:
        """Whether there are as many positive eigenvalues as variables."""
        corner, diagonal = self.reduced(delta)
        size = jnp.max(jnp.abs(jnp.where(self.moves[: len(corner)], jnp.diagonal(corner), 0)), initial=0)
        size = jnp.minimum(size, jnp.max(jnp.abs(self.curvature), initial=0) + delta + 1)
        softest = _SOFTEST * jnp.sum(self.jacobian**2, axis=1) / size
        condensed = corner + (self.jacobian.T / jnp.maximum(diagonal, softest)) @ self.jacobian
        scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(condensed), jnp.finfo(corner.dtype).tiny))
        factor = cholesky(condensed * scale[:, None] * scale[None, :])
        return jnp.all(jnp.isfinite(jnp.diagonal(factor)))

    def factorised(self, delta: Array) -> "Factors":
        """The matrix with `delta`, ready to be solved with."""
        corner, diagonal = self.reduced(delta)
        matrix = jnp.block([[corner, self.jacobian.T], [self.jacobian, -jnp.diag(diagonal)]])
        scale = jnp.ones((len(matrix),), matrix.dtype)
        for _ in range(2):
            scale = scale * jax.lax.rsqrt(jnp.maximum(jnp.max(jnp.abs(matrix * scale[:, None] * scale), axis=1), 1e-300))
        lu, _, order = _lu(matrix * scale[:, None] * scale)
        return Factors(self.layout, matrix, scale, lu, order, self.sigma + delta, self.moves)


class Factors(eqx.Module):
    """LU factors of the scaled matrix. `diagonal` is that of the variables."""

    layout: Layout
    matrix: Array
    scale: Array
    lu: Array
    order: Array
    diagonal: Array
    moves: Array

    def solve(self, r: Float[Array, " v"], q: Float[Array, " m"]) -> tuple[Array, Array]:
        """d_v and d_y."""
        layout, inequalities = self.layout, slice(self.layout.equality_count, None)
        _, s, p, n = layout.split(self.diagonal)
        r = jnp.where(self.moves, r, 0)
        r_x, r_s, r_p, r_n = layout.split(r)
        _, _, elastic, _ = layout.split(self.moves)
        p, n = jnp.where(elastic, p, 1), jnp.where(elastic, n, 1)
        missed = jnp.where(elastic, r_p / p - r_n / n, 0)
        target = jnp.concatenate([r_x, q - layout.of_inequalities(r_s / s) + missed])
        solution = _refined(self.matrix, self.scale, self.lu, self.order, target)
        d_x, d_y = solution[: layout.size], solution[layout.size :]
        d_s = (r_s - d_y[inequalities]) / s
        d_p, d_n = (jnp.where(elastic, part, 0) for part in ((r_p + d_y) / p, (r_n - d_y) / n))
        return jnp.concatenate([d_x, d_s, d_p, d_n]), d_y


@in_turn
def _lu(matrix):
    return tuple(jax.lax.linalg.lu(matrix))


@in_turn
def _refined(matrix, scale, lu, order, target):
    """A^{-1} b by the factors of the scaled matrix, with the residuals of A itself."""

    def refine(_, solution):
        missing = (target - matrix @ solution) * scale
        half = jax.lax.linalg.triangular_solve(lu, missing[order][:, None], left_side=True, lower=True, unit_diagonal=True)
        return solution + jax.lax.linalg.triangular_solve(lu, half, left_side=True)[:, 0] * scale

    return jax.lax.fori_loop(0, _REFINEMENTS, refine, jnp.zeros_like(target))


def regularised(system: KKTSystem, last: Array) -> tuple[Array, Array, Array]:
    """The delta that gives the right inertia, and `last`, the last one that was needed; and the number of trials."""
    first = jnp.where(last == 0, _FIRST, jnp.maximum(_LEAST, last / _DOWN))
    factor = jnp.where(last == 0, _QUICKLY, _SLOWLY)

    def trial(carry):
        delta, trials, _ = carry
        right = system.right_inertia(delta)
        raised = jnp.where(delta == 0, first, delta * factor)
        return jnp.where(right, delta, raised), trials + 1, right

    wrong = lambda carry: ~carry[2] & (carry[0] < _MOST)
    delta, trials, _ = jax.lax.while_loop(wrong, trial, (jnp.zeros_like(last), jnp.int32(0), jnp.array(False)))
    return delta, jnp.where(delta > 0, delta, last), trials
