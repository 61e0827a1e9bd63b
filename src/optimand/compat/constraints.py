r"""SciPy's bounds and constraints as ours.

SciPy's \(c_l \le c(x) \le c_u\) is, entry by entry, the equality \(c - c_l = 0\) where both bounds are the same, and the
inequalities \(c_l - c \le 0\) and \(c - c_u \le 0\) where they are finite. Its dictionaries are \(c = 0\) and \(c \ge 0\).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.constrained import PrimalDual
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .derivatives import vector_with_jacobian

__all__ = ["Constraints", "as_bounds", "as_constraints"]


def as_bounds(bounds: Any, x0: PyTree) -> tuple[PyTree, PyTree] | None:
    """The pair (lower, upper) of arrays like x0, or None if nothing is bounded."""
    if bounds is None:
        return None
    flat, unravel = ravel_pytree(x0)
    one_array = isinstance(x0, jax.Array)
    if isinstance(bounds, scipy.optimize.Bounds):
        sizes = np.size(bounds.lb), np.size(bounds.ub)
        if not set(sizes) <= {1, flat.size}:
            raise ArgumentError("bounds", f"have {sizes[0]} and {sizes[1]} entries for {flat.size} unknowns.")
        sides = [jnp.broadcast_to(jnp.ravel(jnp.asarray(side, flat.dtype)), flat.shape) for side in (bounds.lb, bounds.ub)]
        return unravel(sides[0]), unravel(sides[1])
    if not one_array:
        if not (isinstance(bounds, tuple | list) and len(bounds) == 2):
            raise ArgumentError("bounds", "must be a pair (lower, upper) of pytrees like x0, or of numbers.")
        return tuple(_like(side, x0, missing) for side, missing in zip(bounds, (-jnp.inf, jnp.inf), strict=True))
    pairs = list(bounds)
    if len(pairs) != flat.size or any(not hasattr(pair, "__len__") or len(pair) != 2 for pair in pairs):
        raise ArgumentError("bounds", f"must be {flat.size} pairs (low, high), one for each unknown.", "None is no bound.")
    side = lambda which, missing: jnp.stack(
        [jnp.asarray(missing if pair[which] is None else pair[which], flat.dtype) for pair in pairs]
    )
    return unravel(side(0, -jnp.inf)), unravel(side(1, jnp.inf))


def _like(side: PyTree, x0: PyTree, missing: float) -> PyTree:
    if side is None:
        side = missing
    if jtu.treedef_is_leaf(jtu.tree_structure(side)) and jnp.ndim(side) == 0:
        return jtu.tree_map(lambda leaf: jnp.full(leaf.shape, side, leaf.dtype), x0)
    if jtu.tree_structure(side) != jtu.tree_structure(x0):
        raise ArgumentError("bounds", "do not have the structure of x0.")
    return jtu.tree_map(lambda leaf, bound: jnp.broadcast_to(jnp.asarray(bound, leaf.dtype), leaf.shape), x0, side)


class _Part(NamedTuple):
    """One constraint: its function of x, and which of its entries are equalities, bounded below, and bounded above."""

    function: Callable
    lower: Array
    upper: Array
    equal: np.ndarray
    below: np.ndarray
    above: np.ndarray


class Constraints(NamedTuple):
    """All of them, as functions of `(x, args)`; `None` where there is no equality or no inequality."""

    parts: tuple[_Part, ...]
    equalities: Callable | None
    inequalities: Callable | None

    def multipliers(self, value: PrimalDual) -> list[Array]:
        """One array for each constraint, with SciPy's sign: positive at its upper bound, negative at its lower one."""
        found, equality, inequality = [], value.equality, value.inequality
        for part in self.parts:
            v = jnp.zeros(part.lower.shape)
            for where, sign in ((part.equal, 1.0), (part.below, -1.0), (part.above, 1.0)):
                if where.size:
                    pool = equality if where is part.equal else inequality
                    taken, pool = pool[: where.size], pool[where.size :]
                    v = v.astype(taken.dtype).at[where].add(sign * taken)
                    if where is part.equal:
                        equality = pool
                    else:
                        inequality = pool
            found.append(v)
        return found


def as_constraints(constraints: Any, x0: PyTree) -> Constraints:
    """From whatever SciPy takes. Raises what JAX raises if a function cannot be traced."""
    single = isinstance(constraints, dict | scipy.optimize.LinearConstraint | scipy.optimize.NonlinearConstraint)
    given = [constraints] if single else list(constraints or ())
    parts = tuple(_part(constraint, number, x0) for number, constraint in enumerate(given))
    parts = tuple(part for part in parts if part is not None)
    joined = lambda pieces: jnp.concatenate(pieces)

    def equalities(x, args):
        del args
        return joined([part.function(x)[part.equal] - part.lower[part.equal] for part in parts if part.equal.size])

    def inequalities(x, args):
        del args
        pieces = []
        for part in parts:
            if part.below.size or part.above.size:
                value = part.function(x)
                pieces += [part.lower[part.below] - value[part.below]] if part.below.size else []
                pieces += [value[part.above] - part.upper[part.above]] if part.above.size else []
        return joined(pieces)

    return Constraints(
        parts,
        equalities if any(part.equal.size for part in parts) else None,
        inequalities if any(part.below.size or part.above.size for part in parts) else None,
    )


def _part(constraint: Any, number: int, x0: PyTree) -> _Part:
    name = f"constraints[{number}]"
    flat, _ = ravel_pytree(x0)
    if isinstance(constraint, dict):
        kind, fun = constraint.get("type"), constraint.get("fun")
        if str(kind).lower() not in ("eq", "ineq") or not callable(fun):
            raise ArgumentError(name, "must have a `type`, 'eq' or 'ineq', and a function `fun`.", f"It is {constraint}.")
        extra = constraint.get("args", ())
        extra = extra if isinstance(extra, tuple) else (extra,)
        jacobian = constraint.get("jac")
        function = lambda x: fun(x, *extra)
        if callable(jacobian):
            function = vector_with_jacobian(function, lambda x: jacobian(x, *extra))
        low, high = 0.0, 0.0 if str(kind).lower() == "eq" else np.inf
    elif isinstance(constraint, scipy.optimize.LinearConstraint):
        given: Any = constraint.A
        matrix = given.toarray() if hasattr(given, "toarray") else given  # SciPy's sparse ones
        matrix = jnp.atleast_2d(jnp.asarray(matrix, flat.dtype))
        if matrix.shape[1] != flat.size:
            raise ArgumentError(name, f"has a matrix of shape {matrix.shape} for {flat.size} unknowns.")
        function, low, high = lambda x: matrix @ ravel_pytree(x)[0], constraint.lb, constraint.ub
    elif isinstance(constraint, scipy.optimize.NonlinearConstraint):
        function, low, high = constraint.fun, constraint.lb, constraint.ub
        if callable(constraint.jac):
            function = vector_with_jacobian(function, constraint.jac)
    else:
        raise ArgumentError(
            name, f"is a {type(constraint).__name__}.",
            "Use a dictionary, a LinearConstraint or a NonlinearConstraint.",
        )  # fmt: skip
    vector = lambda x: ravel_pytree(jtu.tree_map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, flat.dtype)), function(x)))[0]
    shape = jax.eval_shape(vector, x0)
    if is_tracer(low) or is_tracer(high):
        raise ArgumentError(name, "has bounds that are traced; they decide which constraints there are.", "Put them into fun.")
    try:
        low, high = (np.broadcast_to(np.asarray(side, float), shape.shape) for side in (low, high))
    except ValueError:
        raise ArgumentError(name, f"has bounds that do not fit the {shape.size} numbers of its function.") from None
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        raise ArgumentError(name, f"has a lower bound above the upper one, at entry {crossed[0]}.")
    equal = low == high
    indices = np.flatnonzero(equal), np.flatnonzero(~equal & np.isfinite(low)), np.flatnonzero(~equal & np.isfinite(high))
    return _Part(vector, jnp.asarray(low, shape.dtype), jnp.asarray(high, shape.dtype), *indices)
