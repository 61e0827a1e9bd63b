r"""Constrained minimisation and its KKT conditions.

$$\min_x f(x) \quad\text{s.t.}\quad h(x) = 0,\; g(x) \le 0,\; l \le x \le u .$$

A solution is a `PrimalDual`: the point together with the multipliers that prove it stationary,

$$\nabla f + \partial h^\top \nu + \partial g^\top \mu - \lambda_l + \lambda_u = 0, \quad
  \mu_i g_i = 0, \quad \lambda_l (l - x) = 0, \quad \lambda_u (x - u) = 0 ,$$

with all of \(\mu, \lambda_l, \lambda_u \ge 0\). A solution is differentiated through these conditions (Blondel et al. 2022,
section 2.2), with complementarity in the form \(\min(\mu_i, -g_i) = 0\) instead of \(\mu_i g_i = 0\). It has the same
solutions, and says which constraints are active: where the multiplier is larger than the slack, the constraint holds as an
equality in the derivative, and where it is smaller, the multiplier stays zero. So the derivative at an approximate solution
is that of its active set, however large the products \(\mu_i g_i\) are that an interior method leaves; with the products
themselves it would be off by the ratio of slack to multiplier.

Where both are nearly zero neither is right: the solution has a kink there. `Constrained.weakly_active` says where, and
`Implicit` warns of it by name, as it does of active constraints that are linearly dependent.
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
        with jax.ensure_compile_time_eval():  # bounds that are known stay known inside `jit`
            lower, upper = (self._bound(side, x) for side in (0, 1))
            if lower is None or upper is None:
                return
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
        below, above = self._distances(x)
        at_lower, at_upper = (_complementarity(value.lower, below), _complementarity(value.upper, above))
        if below is not None and above is not None:  # of a fixed variable one bound is the equality, the other is idle
            fixed = self._fixed(x)
            first = jtu.tree_map(jnp.greater, value.lower, value.upper)
            idle = lambda multiplier: multiplier - jax.lax.stop_gradient(multiplier)
            choose = lambda fixed, mine, condition, distance, multiplier: jnp.where(
                fixed, jnp.where(mine, distance, idle(multiplier)), condition
            )
            second = jtu.tree_map(jnp.logical_not, first)
            at_lower = jtu.tree_map(choose, fixed, first, at_lower, below, value.lower)
            at_upper = jtu.tree_map(choose, fixed, second, at_upper, above, value.upper)
        return PrimalDual(
            stationarity,
            self.equalities(x),
            _complementarity(value.inequality, self.inequalities(x)),
            at_lower,
            at_upper,
        )

    def _distances(self, x: PyTree) -> tuple[PyTree, PyTree]:
        """l - x and x - u, or None."""
        lower, upper = self.lower(x), self.upper(x)
        below = None if lower is None else jtu.tree_map(lambda l, x: l - x, lower, x)
        return below, None if upper is None else jtu.tree_map(lambda x, u: x - u, x, upper)

    def _fixed(self, x: PyTree) -> PyTree:
        """Where the bounds leave one value."""
        return jtu.tree_map(jnp.equal, self.lower(x), self.upper(x))

    def weakly_active(self, value: PrimalDual) -> PrimalDual:
        """Where an inequality or a bound is neither clearly active nor clearly inactive: strict complementarity fails.

        Multiplier and slack are both nearly zero (1e-6, or 100 units of rounding), or so near to each other that the
        accuracy of the solution does not tell which of them is zero, as at a weakly active constraint after an interior
        method. There the solution has a kink as a function of the parameters. Source: Fiacco 1983; the ratio is an
        indicator of El-Bakry, Tapia and Zhang 1994.

        **Returns:** booleans with the structure of the multipliers, as a `PrimalDual` with `None` for its other parts.
        """
        x = value.primal
        below, above = self._distances(x)
        weak_lower, weak_upper = _weak(value.lower, below), _weak(value.upper, above)
        if below is not None and above is not None:
            neither = lambda weak, fixed: weak & ~fixed
            weak_lower, weak_upper = (jtu.tree_map(neither, weak, self._fixed(x)) for weak in (weak_lower, weak_upper))
        return PrimalDual(None, None, _weak(value.inequality, self.inequalities(x)), weak_lower, weak_upper)

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
        signed = (value.inequality, value.lower, value.upper)
        slacks = (self.inequalities(value.primal), *self._distances(value.primal))
        return KKTResidual(
            _largest(self.optimality(value).primal),
            self.violation(value.primal),
            _largest([_products(*pair) for pair in zip(signed, slacks, strict=True)]),
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


def _complementarity(multiplier: PyTree, constraint: PyTree) -> PyTree:
    """-min(mu, -g), with the derivative of g where it is active and of -mu where it is not; an infinite g is no constraint."""
    if constraint is None:
        return None

    def condition(m, g):
        present = jnp.isfinite(g)
        return jnp.where(present & (m > -g), jnp.where(present, g, 0.0), jnp.where(jnp.isnan(g), g, -m))

    return jtu.tree_map(condition, multiplier, constraint)


def _products(multiplier: PyTree, constraint: PyTree) -> PyTree:
    """mu * g; the multiplier itself where g is infinite, since there is no such constraint."""
    if constraint is None:
        return None
    return jtu.tree_map(lambda m, g: m * jnp.where(jnp.isinf(g), 1.0, g), multiplier, constraint)


def _weak(multiplier: PyTree, constraint: PyTree) -> PyTree:
    """Whether neither mu nor g is clearly the one that is not zero."""
    if constraint is None:
        return None

    def weak(m, g):
        m, g = jnp.abs(jax.lax.stop_gradient(m)), jnp.abs(jax.lax.stop_gradient(g))
        larger, smaller = jnp.maximum(m, g), jnp.minimum(m, g)
        nearly_zero = max(1e-6, 100 * float(jnp.finfo(larger.dtype).eps))
        return (larger <= nearly_zero) | (smaller > 1e-2 * larger) & jnp.isfinite(larger)

    return jtu.tree_map(weak, multiplier, constraint)
