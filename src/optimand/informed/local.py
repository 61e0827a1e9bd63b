r"""One small nonlinear least-squares problem: how to combine the basis on the points of one expert.

$$\tfrac12 \sum_i \lVert \varphi(q(x_i), x_i) \rVert^2 + \tfrac12 \lVert A w - y \rVert^2 + \tfrac12 \rho^2 \lVert w \rVert^2,
\qquad q_j(x_i) = (S_j w)_i + s_j(x_i),$$

with the terms \(S_j\) (points x N) of the basis, offsets \(s_j\), and the pointwise residual \(\varphi\). Jacobian and Hessian
follow from derivatives of \(\varphi\) in the few numbers \(q\) (hard-constraint paper, section 3):

$$J = \sum_j \operatorname{diag}(\partial_j \varphi)\, S_j, \qquad
H = J^\top J + \sum_{jk} S_j^\top \operatorname{diag}(r\, \partial_{jk} \varphi)\, S_k + A^\top A + \rho^2 I .$$
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

__all__ = ["LocalProblem"]


class LocalProblem(eqx.Module):
    """The least-squares problem of one expert; its methods are for one, and a stack of problems goes through `vmap`.

    - `terms`: values of the differential terms of the basis at the points, in the order of `names`.
    - `offsets`: what is added to the weighted terms.
    - `points`: physical coordinates, handed to `pointwise`.
    - `matrix`, `target`: extra linear rows, already weighted.
    - `params`: handed to `pointwise`.
    - `pointwise(q, x, params)`: the residual at a point.
    """

    terms: Float[Array, "*experts terms points unknowns"]
    offsets: Float[Array, "*experts terms points"]
    points: Float[Array, "*experts points axes"]
    matrix: Float[Array, "*stack rows unknowns"]
    target: Float[Array, "*stack rows"]
    params: PyTree
    pointwise: Callable
    names: tuple[str, ...] = eqx.field(static=True)
    ridge: float = eqx.field(static=True, default=0.0)

    @property
    def unknowns(self) -> int:
        """N, the number of weights."""
        return self.terms.shape[-1]

    def _phi(self, q: Float[Array, " terms"], x: Float[Array, " axes"]) -> Float[Array, " components"]:
        return jnp.atleast_1d(self.pointwise(dict(zip(self.names, q, strict=True)), x, self.params))

    def weighted(self, w: Float[Array, " unknowns"]) -> Float[Array, "points terms"]:
        """The weighted terms q at every point."""
        return (jnp.einsum("jmn,n->jm", self.terms, w) + self.offsets).T

    def residual(self, w: Float[Array, " unknowns"]) -> Float[Array, " all_rows"]:
        """All rows: the equation's at every point, then the linear ones, then the ridge."""
        pde = jax.vmap(self._phi)(self.weighted(w), self.points).ravel()
        return jnp.concatenate([pde, self.matrix @ w - self.target, *([self.ridge * w] if self.ridge else [])])

    def value(self, w: Float[Array, " unknowns"]) -> Float[Array, ""]:
        """Half the sum of squares."""
        return jnp.sum(jnp.square(self.residual(w))) / 2

    def _first(self, w):
        """phi and its derivatives in q at every point: shapes (points, components) and (points, components, terms)."""
        q = self.weighted(w)

        def value_and_derivative(q, x):
            phi, push = jax.linearize(lambda q: self._phi(q, x), q)
            return phi, jax.vmap(push, out_axes=-1)(jnp.eye(q.size, dtype=q.dtype))

        return jax.vmap(value_and_derivative)(q, self.points)

    def gradient(self, w: Float[Array, " unknowns"]) -> Float[Array, " unknowns"]:
        """The stationarity condition g(w) = J' r."""
        phi, derivative = self._first(w)
        force = jnp.einsum("mr,mrj->jm", phi, derivative)
        pde = jnp.einsum("jmn,jm->n", self.terms, force)
        return pde + self.matrix.T @ (self.matrix @ w - self.target) + self.ridge**2 * w

    def jacobian(self, w: Float[Array, " unknowns"]) -> Float[Array, "pde_rows unknowns"]:
        """The Jacobian of the rows of the equation."""
        _, derivative = self._first(w)
        return jnp.einsum("mrj,jmn->mrn", derivative, self.terms).reshape(-1, self.unknowns)

    def linear_part(self) -> Float[Array, "unknowns unknowns"]:
        """What the rows that do not change contribute to the normal matrix."""
        return self.matrix.T @ self.matrix + self.ridge**2 * jnp.eye(self.unknowns, dtype=self.terms.dtype)

    def normal_equations(
        self, w: Float[Array, " unknowns"], linear_part: Float[Array, "unknowns unknowns"]
    ) -> tuple[Float[Array, ""], Float[Array, " unknowns"], Float[Array, "unknowns unknowns"]]:
        """Value, gradient J' r and Gauss-Newton matrix J' J, from one pass over the points."""
        phi, derivative = self._first(w)
        jacobian = jnp.einsum("mrj,jmn->mrn", derivative, self.terms).reshape(-1, self.unknowns)
        phi = phi.ravel()
        linear = self.matrix @ w - self.target
        value = (phi @ phi + linear @ linear + self.ridge**2 * (w @ w)) / 2
        gradient = phi @ jacobian + linear @ self.matrix + self.ridge**2 * w
        return value, gradient, jacobian.T @ jacobian + linear_part

    def curvature(self, w: Float[Array, " unknowns"]) -> Float[Array, "unknowns unknowns"]:
        """The second-order part of the Hessian, sum_i r_i hess r_i."""
        q = self.weighted(w)

        def contracted(q, x):
            phi = jax.lax.stop_gradient(self._phi(q, x))
            return jax.hessian(lambda q: phi @ self._phi(q, x))(q)

        second = jax.vmap(contracted)(q, self.points)
        return jnp.einsum("jmn,mjk,kmo->no", self.terms, second, self.terms, optimize="optimal")

    def hessian(self, w: Float[Array, " unknowns"]) -> Float[Array, "unknowns unknowns"]:
        """The exact Hessian of `value`, symmetrised."""
        full = self.normal_equations(w, self.linear_part())[2] + self.curvature(w)
        return (full + full.T) / 2
