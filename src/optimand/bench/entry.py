"""A problem of the collection as functions of one vector, which all solvers are given alike."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..core.constrained import Constrained
from ..core.problem import Minimize

__all__ = ["Entry"]


class Entry:
    """min f(x), h(x) = 0, g(x) <= 0, lower <= x <= upper, from `guess`; everything in double precision.

    `equality_count` and `inequality_count` are zero where there are none; bounds are NumPy vectors with infinities.
    `source` is the problem as `sif2jax` has it: see `catalogue.load`. The compiled functions (`value_and_gradient`, `hessian`, ...) take and return NumPy arrays, for solvers that are not
    traced; all of those share them.
    """

    def __init__(self, source: Any, name: str, kind: str):
        self.name, self.kind = name, kind
        guess = jtu.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float64), source.y0)
        flat, self._unravel = ravel_pytree(guess)
        self.guess = np.asarray(flat)
        self.size = flat.size
        self._source = source
        self._arguments = source.args
        bounds = getattr(source, "bounds", None)
        self.lower, self.upper = (self._side(bounds, side) for side in (0, 1))
        shapes = jax.eval_shape(self._constraints, flat) if hasattr(source, "constraint") else (None, None)
        self.equality_count, self.inequality_count = (0 if part is None else part.size for part in shapes)

    def _side(self, bounds: Any, side: int) -> np.ndarray:
        missing = (-np.inf, np.inf)[side]
        if bounds is None or bounds[side] is None:
            return np.full(self.size, missing)
        bound = jtu.tree_map(lambda b, y: jnp.broadcast_to(jnp.asarray(b, jnp.float64), y.shape), bounds[side], self.tree)
        flat = np.array(ravel_pytree(bound)[0])
        flat[np.isnan(flat) | (np.abs(flat) >= 1e20)] = missing  # the collection's own infinity
        return flat

    @property
    def tree(self) -> Any:
        """The guess, in the structure that the problem has it in."""
        return self._unravel(jnp.asarray(self.guess))

    @property
    def bounded(self) -> bool:
        """Whether any bound is finite."""
        return bool(np.any(np.isfinite(self.lower)) or np.any(np.isfinite(self.upper)))

    def objective(self, x: Array) -> Array:
        """f(x)."""
        return jnp.reshape(self._source.objective(self._unravel(x), self._arguments), ())

    def _constraints(self, x: Array) -> tuple[Array | None, Array | None]:
        flat = lambda part: None if part is None or not jtu.tree_leaves(part) else ravel_pytree(part)[0]
        equal, positive = self._source.constraint(self._unravel(x))
        equal, positive = flat(equal), flat(positive)
        return equal, None if positive is None else -positive

    def equalities(self, x: Array) -> Array:
        """h(x)."""
        return _vector(self._constraints(x)[0], x)

    def inequalities(self, x: Array) -> Array:
        """g(x), with the sign of this library: at most zero."""
        return _vector(self._constraints(x)[1], x)

    def constraints(self, x: Array) -> Array:
        """h(x) and then g(x)."""
        if self.equality_count + self.inequality_count == 0:
            return jnp.zeros((0,), x.dtype)
        return jnp.concatenate([self.equalities(x), self.inequalities(x)])

    def problem(self) -> Minimize | Constrained:
        """The problem as this library states it."""
        if self.kind == "unconstrained":
            return Minimize(self.objective)
        lower, upper = (None if np.all(np.isinf(side)) else side for side in (self.lower, self.upper))
        return Constrained(
            self.objective,
            equalities=self.equalities if self.equality_count else None,
            inequalities=self.inequalities if self.inequality_count else None,
            bounds=(lower, upper) if self.bounded else None,
        )

    # Compiled, for solvers that call Python.

    @functools.cached_property
    def value_and_gradient(self) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        return _on_host(jax.value_and_grad(self.objective))

    @functools.cached_property
    def hessian(self) -> Callable[[np.ndarray], np.ndarray]:
        return _on_host(jax.hessian(self.objective))

    @functools.cached_property
    def hessian_product(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return _on_host(lambda x, p: jax.jvp(jax.grad(self.objective), (x,), (p,))[1])

    @functools.cached_property
    def constraints_on_host(self) -> Callable[[np.ndarray], np.ndarray]:
        return _on_host(self.constraints)

    @functools.cached_property
    def jacobian(self) -> Callable[[np.ndarray], np.ndarray]:
        rows = self.equality_count + self.inequality_count
        if rows == 0:
            return lambda x: np.zeros((0, self.size))
        return _on_host((jax.jacrev if rows < self.size else jax.jacfwd)(self.constraints))

    @functools.cached_property
    def lagrangian_hessian(self) -> Callable[..., np.ndarray]:
        """The Hessian in x of `weight * f + multipliers' constraints`, at (x, multipliers, weight)."""

        def lagrangian(x, multipliers, weight):
            return weight * self.objective(x) + multipliers @ self.constraints(x)

        return _on_host(jax.hessian(lagrangian))


def _vector(part: Array | None, x: Array) -> Array:
    return jnp.zeros((0,), x.dtype) if part is None else part


def _on_host(fn: Callable) -> Callable:
    compiled = jax.jit(fn)

    def call(*arguments):
        out = compiled(*(np.asarray(argument, np.float64) for argument in arguments))
        return jtu.tree_map(lambda leaf: float(leaf) if leaf.ndim == 0 else np.array(leaf), out)

    return call
