r"""A constrained problem as functions of one vector: what second-order methods for constraints are written in.

$$\min_x f(x) \quad\text{s.t.}\quad h(x) = 0,\; g(x) \le 0,\; l \le x \le u, \qquad
  L(x, \nu, \mu) = f(x) + \nu^\top h(x) + \mu^\top g(x),$$

with x, h and g as vectors (in the order of `ravel_pytree`), h and g of length zero where there are none, and infinite
bounds where there are none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.constrained import Constrained, PrimalDual

__all__ = ["FlatProgram"]


class FlatProgram:
    """The view. Made inside traced code from a problem and a `PrimalDual` that has all its multipliers; free to make.

    `size`, `equality_count` and `inequality_count` are the lengths of x, h and g; `lower` and `upper` are vectors.
    """

    def __init__(self, problem: Constrained, like: PrimalDual):
        self.problem = problem
        self._like = like
        flat, self._unravel = ravel_pytree(like.primal)
        self.size = flat.size
        self.dtype = flat.dtype
        self.equality_count = sum(leaf.size for leaf in jtu.tree_leaves(like.equality))
        self.inequality_count = sum(leaf.size for leaf in jtu.tree_leaves(like.inequality))
        self.lower = self._side(problem.lower(like.primal), -jnp.inf)
        self.upper = self._side(problem.upper(like.primal), jnp.inf)

    def _side(self, bound: PyTree, missing: float) -> Float[Array, " n"]:
        return jnp.full((self.size,), missing, self.dtype) if bound is None else ravel_pytree(bound)[0].astype(self.dtype)

    def point(self, x: Float[Array, " n"]) -> PyTree:
        """The vector as a point of the problem."""
        return self._unravel(x)

    def value(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """f(x)."""
        return self.problem.value(self.point(x)).astype(self.dtype)

    def equalities(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """h(x)."""
        return self._flat(self.problem.equalities, x)

    def inequalities(self, x: Float[Array, " n"]) -> Float[Array, " p"]:
        """g(x)."""
        return self._flat(self.problem.inequalities, x)

    def _flat(self, constraint: Callable, x: Array) -> Array:
        values = constraint(self.point(x))
        return jnp.zeros((0,), self.dtype) if values is None else ravel_pytree(values)[0].astype(self.dtype)

    def constraints(self, x: Float[Array, " n"]) -> Float[Array, " m_p"]:
        """h(x) and then g(x)."""
        return jnp.concatenate([self.equalities(x), self.inequalities(x)])

    def jacobian(self, x: Float[Array, " n"]) -> Float[Array, "m_p n"]:
        """The Jacobian of `constraints`, by as many products as the smaller of its sides."""
        rows = self.equality_count + self.inequality_count
        if rows == 0:
            return jnp.zeros((0, self.size), self.dtype)
        return (jax.jacrev if rows < self.size else jax.jacfwd)(self.constraints)(x)

    def lagrangian(self, x: Float[Array, " n"], multipliers: Float[Array, " m_p"]) -> Float[Array, ""]:
        """f(x) + nu' h(x) + mu' g(x), for `multipliers` = (nu, mu)."""
        return self.value(x) + multipliers @ self.constraints(x)

    def lagrangian_hessian(self, x: Float[Array, " n"], multipliers: Float[Array, " m_p"]) -> Float[Array, "n n"]:
        """The Hessian of the Lagrangian in x."""
        return jax.hessian(self.lagrangian)(x, multipliers)

    def pack(self, x: Array, equality: Array, inequality: Array, lower: Array, upper: Array) -> PrimalDual:
        """The vectors as a `PrimalDual` of the problem: what `Method.answer` returns."""
        like = self._like

        def shaped(vector: Array, tree: PyTree) -> Any:
            return None if tree is None else ravel_pytree(tree)[1](vector.astype(ravel_pytree(tree)[0].dtype))

        return PrimalDual(
            self.point(x),
            shaped(equality, like.equality),
            shaped(inequality, like.inequality),
            shaped(lower, like.lower),
            shaped(upper, like.upper),
        )

    def unpack(self, value: PrimalDual) -> tuple[Array, Array, Array, Array, Array]:
        """x, nu, mu, lambda_l and lambda_u as vectors; those of bounds that do not exist are zero."""

        def vector(tree: PyTree, length: int) -> Array:
            return jnp.zeros((length,), self.dtype) if tree is None else ravel_pytree(tree)[0].astype(self.dtype)

        return (
            vector(value.primal, self.size),
            vector(value.equality, self.equality_count),
            vector(value.inequality, self.inequality_count),
            vector(value.lower, self.size),
            vector(value.upper, self.size),
        )
