r"""Bounds alone: the view that methods for \(\min f(x),\ l \le x \le u\) have of their problem, and what they share.

A point is stationary if the gradient is zero, or points out of the box where a bound is met. Its residual is here

$$\max_i \min\big(|g_i|,\; \delta_i \max(1, |g_i|)\big), \qquad
  \delta_i = x_i - l_i \text{ if } g_i > 0, \quad u_i - x_i \text{ if } g_i < 0 :$$

at most a tolerance, it bounds the projected gradient \(P(x - g) - x\) and, with \(|g_i|\) as multiplier where the second
number is the smaller one, every part of the KKT residual.
"""


import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.problem import Objective

__all__ = ["BoundedProgram", "snapped"]


class BoundedProgram(eqx.Module):
    """An objective of one vector, and bounds. `lower` and `upper` are vectors, infinite where there is no bound; both are
    None where the problem has none at all."""

    problem: Objective | Constrained
    point: PyTree
    lower: Float[Array, " n"] | None
    upper: Float[Array, " n"] | None

    @staticmethod
    def of(problem: Objective | Constrained, like: PyTree, name: str) -> "BoundedProgram":
        """The view of a problem whose unknowns are like these; `name` is the method that cannot do with more."""
        if not isinstance(problem, Constrained):
            if problem.stochastic:
                raise ArgumentError("problem", f"has random batches, between which {name} cannot compare.", "Try Adam.")
            return BoundedProgram(problem, like, None, None)
        for kind, constraint in (("equalities", problem.equality_fn), ("inequalities", problem.inequality_fn)):
            if constraint is not None:
                raise ArgumentError("problem", f"has {kind}; {name} takes bounds only.", "Try AugmentedLagrangian or SQP.")
        lower, upper = problem.lower(like), problem.upper(like)
        if lower is None and upper is None:
            return BoundedProgram(problem, like, None, None)
        flat, _ = ravel_pytree(like)
        side = lambda bound, missing: jnp.full_like(flat, missing) if bound is None else ravel_pytree(bound)[0]
        return BoundedProgram(problem, like, side(lower, -jnp.inf), side(upper, jnp.inf))

    @property
    def bounded(self) -> bool:
        """Whether there are any bounds."""
        return self.lower is not None

    def value_and_gradient(self, x: Float[Array, " n"]) -> tuple[Array, Float[Array, " n"]]:
        """f and its gradient."""
        problem, point = self.problem, self.unflatten(x)
        if isinstance(problem, Constrained):
            value, gradient = jax.value_and_grad(problem.value)(point)
        else:
            value, gradient = problem.value_and_gradient(point)
        return value, ravel_pytree(gradient)[0].astype(x.dtype)

    def gradient(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Its gradient: what second derivatives are made of."""
        point = self.unflatten(x)
        return ravel_pytree(jax.grad(self.problem.value)(point))[0].astype(x.dtype)

    def unflatten(self, x: Float[Array, " n"]) -> PyTree:
        """The vector as a point."""
        return ravel_pytree(self.point)[1](x)

    def project(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The nearest point in the box."""
        return x if self.lower is None else jnp.clip(x, self.lower, self.upper)

    def snap(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """In the box, and on a bound where only rounding is between."""
        if self.lower is None or self.upper is None:
            return x
        return snapped(x, self.lower, self.upper)

    def room(self, x: Float[Array, " n"], direction: Float[Array, " n"]) -> Float[Array, " n"]:
        """How far each entry can go in its direction: infinitely far where nothing is in the way, or nothing moves."""
        if self.lower is None or self.upper is None:
            return jnp.full_like(x, jnp.inf)
        gap = jnp.where(direction < 0, x - self.lower, self.upper - x)
        return jnp.where(direction == 0, jnp.inf, gap / jnp.where(direction == 0, 1, jnp.abs(direction)))

    def held(self, x: Float[Array, " n"], gradient: Float[Array, " n"]) -> Array:
        """Where the gradient pushes against a bound that is met, in the sense of the residual."""
        size, gap = jnp.abs(gradient), self._gap(x, gradient)
        return gap * jnp.maximum(1, size) < size

    def residual(self, x: Float[Array, " n"], gradient: Float[Array, " n"]) -> Array:
        """How far the point is from stationary; NaN if the gradient is."""
        size, gap = jnp.abs(gradient), self._gap(x, gradient)
        each = jnp.minimum(size, gap * jnp.maximum(1, size))
        return jnp.max(jnp.where(jnp.isnan(gradient), jnp.nan, each), initial=0)

    def _gap(self, x: Array, gradient: Array) -> Array:
        if self.lower is None or self.upper is None:
            return jnp.full_like(x, jnp.inf)
        return jnp.where(gradient > 0, x - self.lower, self.upper - x)

    def answer(self, x: Float[Array, " n"], gradient: Float[Array, " n"]) -> PyTree:
        """The point; with the multipliers of its bounds if the problem is `Constrained`."""
        point = self.unflatten(x)
        if not isinstance(self.problem, Constrained):
            return point
        push = jnp.where(self.held(x, gradient), gradient, 0)
        sides = []
        for bound, sign in ((self.problem.lower(point), 1), (self.problem.upper(point), -1)):
            multiplier = None if bound is None else self.unflatten(jnp.maximum(sign * push, 0))
            sides.append(multiplier)
        return PrimalDual(point, lower=sides[0], upper=sides[1])

    @staticmethod
    def start(guess: PyTree) -> PyTree:
        """The point of a guess, which comes as a `PrimalDual` if the problem is `Constrained`."""
        return guess.primal if isinstance(guess, PrimalDual) else guess


def snapped(x: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"]) -> Float[Array, " n"]:
    """In the box, and on a bound where only rounding is between."""
    close = 4 * jnp.finfo(x.dtype).eps
    x = jnp.clip(x, lower, upper)
    near = lambda gap, bound: jnp.isfinite(bound) & (gap <= close * jnp.abs(bound))
    x = jnp.where(near(x - lower, lower), lower, x)
    return jnp.where(near(upper - x, upper), upper, x)
