r"""Constrained minimisation and its KKT conditions.

$$\min_x f(x) \quad\text{s.t.}\quad h(x) = 0,\; g(x) \le 0,\; l \le x \le u .$$

A solution is a `PrimalDual`: the point together with the multipliers that prove it stationary,

$$\nabla f + \partial h^\top \nu + \partial g^\top \mu - \lambda_l + \lambda_u = 0, \quad
  \mu_i g_i = 0, \quad \lambda_l (l - x) = 0, \quad \lambda_u (x - u) = 0 ,$$

with all of \(\mu, \lambda_l, \lambda_u \ge 0\). These equations (Blondel et al. 2022, eq. 6) are what a solution is
differentiated through: the inequality multipliers decide which constraints are active.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .errors import ArgumentError, GuessError, ObjectiveError
from .problem import Problem
from .tracing import as_arrays, is_tracer, need_callable, need_floating, need_scalar, show, trace_function

__all__ = ["Constrained", "KKTResidual", "PrimalDual"]


class PrimalDual(eqx.Module):
    """A point and its multipliers; `None` where the problem has no such constraint.

    `equality` and `inequality` have the structures of those constraints' values, `lower` and `upper` that of `primal`.
    """

    primal: PyTree
    equality: PyTree = None
    inequality: PyTree = None
    lower: PyTree = None
    upper: PyTree = None


class KKTResidual(eqx.Module):
    """How far a `PrimalDual` is from the KKT conditions, each as the largest absolute value.

    - `stationarity`: of the gradient of the Lagrangian.
    - `violation`: of the constraints and bounds.
    - `complementarity`: of multiplier times slack.
    - `sign`: of what multipliers of inequalities and bounds are below zero.
    """

    stationarity: Array
    violation: Array
    complementarity: Array
    sign: Array

    @property
    def largest(self) -> Array:
        """The largest of them; NaN if one is."""
        return jnp.max(jnp.stack([self.stationarity, self.violation, self.complementarity, self.sign]))


class Constrained(Problem):
    """Minimise `fn(x, *args)` subject to equalities, inequalities and bounds.

    **Arguments:**

    - `fn`: a scalar.
    - `equalities`: `equalities(x, *args)` = 0, any pytree of arrays.
    - `inequalities`: `inequalities(x, *args)` <= 0.
    - `bounds`: `(lower, upper)`; each a number, a pytree like `x`, or `None`. Infinite entries are no bounds.

    The guess may be a point, or a `PrimalDual` to start warm, where missing multipliers start from zero; the solution's
    value is a `PrimalDual`.
    """

    fn: Callable
    args: tuple
    equality_fn: Callable | None
    inequality_fn: Callable | None
    bounds: tuple[PyTree, PyTree]

    def __init__(
        self,
        fn: Callable,
        *args: PyTree,
        equalities: Callable | None = None,
        inequalities: Callable | None = None,
        bounds: tuple[PyTree, PyTree] | None = None,
    ):
        self.fn = need_callable(fn, "fn")
        self.args = as_arrays(args)
        self.equality_fn = None if equalities is None else need_callable(equalities, "equalities")
        self.inequality_fn = None if inequalities is None else need_callable(inequalities, "inequalities")
        if bounds is not None and not (isinstance(bounds, tuple | list) and len(bounds) == 2):
            raise ArgumentError("bounds", "must be a pair (lower, upper).", "Use None for a side without bounds.")
        lower, upper = (None, None) if bounds is None else bounds
        to_float = lambda leaf: float(leaf) if isinstance(leaf, int) and not isinstance(leaf, bool) else leaf
        self.bounds = (as_arrays(jtu.tree_map(to_float, lower)), as_arrays(jtu.tree_map(to_float, upper)))

    def value(self, x: PyTree) -> Array:
        """The objective at a point."""
        return self.fn(x, *self.args)

    def equalities(self, x: PyTree) -> PyTree:
        """h(x), or None."""
        return None if self.equality_fn is None else self.equality_fn(x, *self.args)

    def inequalities(self, x: PyTree) -> PyTree:
        """g(x), or None."""
        return None if self.inequality_fn is None else self.inequality_fn(x, *self.args)

    def start(self, guess: PyTree) -> PyTree:
        if guess is None:
            raise GuessError("guess", "is missing: a constrained problem cannot make one up.")
        guess = as_arrays(guess)
        warm = guess if isinstance(guess, PrimalDual) else PrimalDual(guess)
        x = warm.primal
        like = jtu.tree_map(jnp.zeros_like, eqx.filter(x, eqx.is_inexact_array))
        lower, upper = self.bounds
        cold = PrimalDual(
            x,
            self._multipliers("equalities", self.equality_fn, x),
            self._multipliers("inequalities", self.inequality_fn, x),
            None if lower is None else like,
            None if upper is None else like,
        )
        parts = {name: getattr(warm, name) for name in ("equality", "inequality", "lower", "upper")}
        for name, part in parts.items():
            wanted = getattr(cold, name)
            if part is not None and _shapes(part) != _shapes(wanted):
                raise GuessError(f"guess.{name}", f"does not fit: {show(part)}; the problem has {show(wanted)}.")
        return PrimalDual(x, **{name: getattr(cold, name) if part is None else part for name, part in parts.items()})

    def _multipliers(self, name: str, constraint: Callable | None, guess: PyTree) -> PyTree:
        """Zeros, one for each number that the constraint returns."""
        if constraint is None:
            return None
        try:
            shapes = eqx.filter_eval_shape(constraint, guess, *self.args)
        except Exception as error:
            raise GuessError("guess", f"does not suit `{name}`, which raised: {error}") from error
        need_floating(name, shapes)
        return jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def check(self, guess: PyTree) -> None:
        super().check(guess)
        x = guess.primal if isinstance(guess, PrimalDual) else guess
        lower, upper = (self._bound(side, x) for side in (0, 1))
        if lower is not None and upper is not None:
            for (path, low), high in zip(jtu.tree_leaves_with_path(lower), jtu.tree_leaves(upper), strict=True):
                if is_tracer(low) or is_tracer(high):
                    continue
                crossed = np.argwhere(np.asarray(low > high))
                if len(crossed):
                    where = jtu.keystr(path) + (str(crossed[0].tolist()) if np.ndim(low) else "")
                    raise ArgumentError("bounds", f"cross: lower > upper at x{where}.")

    def _bound(self, side: int, x: PyTree) -> PyTree:
        """The lower (0) or upper (1) bounds, one for each number in `x`; None if there are none."""
        bound = self.bounds[side]
        if bound is None:
            return None
        x = eqx.filter(x, eqx.is_inexact_array)
        try:
            if eqx.is_array(bound) and bound.ndim == 0:
                return jtu.tree_map(lambda leaf: jnp.full(leaf.shape, bound, leaf.dtype), x)
            return jtu.tree_map(lambda leaf, b: jnp.broadcast_to(jnp.asarray(b, leaf.dtype), leaf.shape), x, bound)
        except ValueError as error:
            name = ("lower", "upper")[side]
            raise ArgumentError(
                "bounds", f"({name}) do not have the structure and shapes of the guess: {error}"
            ) from None

    def lower(self, x: PyTree) -> PyTree:
        """Lower bounds with the structure and shapes of `x`; None if there are none."""
        return self._bound(0, x)

    def upper(self, x: PyTree) -> PyTree:
        """Upper bounds with the structure and shapes of `x`; None if there are none."""
        return self._bound(1, x)

    def lagrangian(self, z: PrimalDual) -> Array:
        """f + <nu, h> + <mu, g> - <lambda_l, x> + <lambda_u, x>, up to terms that do not depend on x."""
        x = z.primal
        total = self.value(x)
        for multiplier, constraint in (
            (z.equality, self.equalities(x)),
            (z.inequality, self.inequalities(x)),
        ):
            total = total + _inner(multiplier, constraint)
        return total - _inner(z.lower, None if z.lower is None else x) + _inner(z.upper, None if z.upper is None else x)

    def optimality(self, value: PrimalDual) -> PrimalDual:
        x = value.primal
        stationarity = jax.grad(lambda x: self.lagrangian(eqx.tree_at(lambda z: z.primal, value, x)))(x)
        lower, upper = self.lower(x), self.upper(x)
        return PrimalDual(
            stationarity,
            self.equalities(x),
            _complementarity(value.inequality, self.inequalities(x)),
            None if lower is None else _complementarity(value.lower, jtu.tree_map(lambda l, x: l - x, lower, x)),
            None if upper is None else _complementarity(value.upper, jtu.tree_map(lambda x, u: x - u, x, upper)),
        )

    def violation(self, x: PyTree) -> Array:
        """The largest violation of any constraint at `x`: zero where it is feasible."""
        worst = jnp.zeros(())
        parts: list[Any] = []
        parts += [jnp.abs(leaf) for leaf in jtu.tree_leaves(self.equalities(x))]
        parts += jtu.tree_leaves(self.inequalities(x))
        if (lower := self.lower(x)) is not None:
            parts += jtu.tree_leaves(jtu.tree_map(lambda l, x: l - x, lower, x))
        if (upper := self.upper(x)) is not None:
            parts += jtu.tree_leaves(jtu.tree_map(lambda x, u: x - u, x, upper))
        for part in parts:
            worst = jnp.maximum(worst, jnp.max(part, initial=0.0))
        return worst

    def kkt_residual(self, value: PyTree) -> KKTResidual:
        """How far `value` is from the KKT conditions: zero in all parts at a stationary point with its multipliers.

        `value` may be a point alone; missing multipliers count as zero.
        """
        value = self.start(value)
        condition = self.optimality(value)
        signed = (value.inequality, value.lower, value.upper)
        return KKTResidual(
            _largest(condition.primal),
            self.violation(value.primal),
            _largest((condition.inequality, condition.lower, condition.upper)),
            _largest(jtu.tree_map(lambda multiplier: jnp.minimum(multiplier, 0.0), signed)),
        )

    def at_guess(self, value: PrimalDual) -> PyTree:
        x = value.primal
        never_active = lambda g: jnp.maximum(g, -1.0)  # an inequality may well be -inf; NaN stays NaN
        return self.value(x), self.equalities(x), jtu.tree_map(never_active, self.inequalities(x))

    def traced(self, guess: PrimalDual) -> "Constrained":
        x = guess.primal
        fn = trace_function("fn", self.fn, x, *self.args)
        need_scalar("fn", fn.output)
        functions: list[Callable | None] = []
        for name, constraint, multipliers in (
            ("equalities", self.equality_fn, guess.equality),
            ("inequalities", self.inequality_fn, guess.inequality),
        ):
            if constraint is not None:
                constraint = trace_function(name, constraint, x, *self.args)
                need_floating(name, constraint.output)
                if _shapes(constraint.output) != _shapes(multipliers):
                    raise ObjectiveError(
                        name,
                        f"must return one shape, which its multipliers have; it returns {show(constraint.output)} "
                        f"and the multipliers are {show(multipliers)}.",
                    )
            functions.append(constraint)
        return eqx.tree_at(
            lambda p: (p.fn, p.equality_fn, p.inequality_fn),
            self,
            (fn, *functions),
            is_leaf=lambda leaf: leaf is None,
        )


def _largest(tree: PyTree) -> Array:
    """The largest absolute value in a pytree, zero if it is empty."""
    return jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jtu.tree_leaves(tree))]))


def _shapes(tree: PyTree):
    leaves, structure = jtu.tree_flatten(tree)
    return structure, [leaf.shape for leaf in leaves]


def _inner(a: PyTree, b: PyTree) -> Array:
    if a is None or b is None:
        return jnp.zeros(())
    return sum((jnp.sum(x * y) for x, y in zip(jtu.tree_leaves(a), jtu.tree_leaves(b), strict=True)), jnp.zeros(()))


def _complementarity(multiplier: PyTree, slack: PyTree) -> PyTree:
    """multiplier * slack; the multiplier itself where the slack is infinite, since there is no such constraint."""
    if slack is None:
        return None

    def product(m, s):
        present = jnp.isfinite(s)
        return m * jnp.where(present, s, 1.0)

    return jtu.tree_map(product, multiplier, slack)
