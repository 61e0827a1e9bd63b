r"""Backtracking along a descent direction.

Along \(\varphi(t) = f(x + t d)\), a step is taken if it decreases enough (Armijo),

$$\varphi(t) \le \varphi(0) + c\, t\, \varphi'(0),$$

or, where rounding may hide the decrease, if \(\varphi(t) \le \varphi(0) + \epsilon |\varphi(0)|\) and the slope has become
small enough, \(\varphi'(t) \le (2c - 1)\varphi'(0)\) (the approximate condition of Hager and Zhang 2005, eq. 4.1). A
refused step is shortened to the minimiser of the parabola through what is known, kept between a tenth and a half.

Value and gradient are evaluated together: with a well-scaled direction the first trial is nearly always taken, and
then a step of the method costs one evaluation.

A search is a `LineSearch`, which methods take as their argument `line_search`: `Backtracking` is the above, `StrongWolfe`
and `HagerZhang` also bound the slope at the end of the step, for methods that live on the curvature along it.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from .arguments import need_between, need_count
from .vectors import add, dot, select

__all__ = ["SLACK", "Backtracking", "LineSearch", "Step", "backtrack", "constant", "evaluated", "follow", "need_line_search", "rounding", "stay"]

# A sum of many terms is less exact than one rounding, and a search that asks for more than the sum can tell ends too early.
SLACK = 1e-9


class Step(NamedTuple):
    """What a search found: where, value and gradient there, how many evaluations, and whether it succeeded."""

    x: PyTree
    value: Array
    gradient: PyTree
    length: Array
    trials: Array
    accepted: Array


class LineSearch(eqx.Module):
    """How far to go along a direction of descent: abstract. Each trial evaluates value and gradient together, at one place."""

    @abc.abstractmethod
    def search(
        self,
        problem: Any,
        x: PyTree,
        value: Array,
        slope: Array,
        direction: PyTree,
        first: Any,
        *,
        most: Any = None,
    ) -> Step:
        """A step `x + length * direction` that is good enough, or, where `accepted` is false, none.

        **Arguments:**

        - `problem`: what has a `value_and_gradient(x)`.
        - `value`, `slope`: the value at `x`, and the derivative along the direction there, which is negative.
        - `first`: the length to try first, and `most` the greatest one allowed.
        """


class Backtracking(LineSearch):
    """Shorten the step until Armijo's condition holds (Nocedal and Wright 2006, algorithm 3.1). See `backtrack`.

    The cheapest search, right where the first length is nearly always good: Newton's method, L-BFGS.

    **Arguments:**

    - `decrease`: the fraction of the predicted decrease that a step must achieve.
    - `max_trials`: evaluations that a search may spend.
    - `slack`: epsilon; at least ten times the rounding of the dtype is used.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    om.solve(om.Minimize(lambda x: jnp.sum(x**4 - x)), om.smooth.LBFGS(line_search=om.smooth.Backtracking(0.01)), jnp.zeros(3))
    ```
    """

    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=20)
    slack: Any = SLACK

    def __check_init__(self):
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_between("slack", self.slack, 0, 1)

    def search(self, problem, x, value, slope, direction, first, *, most=None) -> Step:
        first = first if most is None else jnp.minimum(first, most)
        return backtrack(
            problem, x, value, slope, direction, first,
            decrease=self.decrease, max_trials=self.max_trials, slack=self.slack,
        )  # fmt: skip


def rounding(value: Array, slack: Any) -> Array:
    """How much of a change of a value may be rounding: `slack` of it, and at least ten units in its last place."""
    return jnp.maximum(slack, 10 * jnp.finfo(value.dtype).eps).astype(value.dtype) * jnp.abs(value)


def need_line_search(line_search: Any) -> None:
    """A `LineSearch`, or None for the method's own."""
    if line_search is not None and not isinstance(line_search, LineSearch):
        raise ArgumentError(
            "line_search", f"must be a LineSearch, not {line_search!r}.", "Backtracking(), StrongWolfe(), HagerZhang()"
        )


def backtrack(
    problem: Any,
    x: PyTree,
    value: Array,
    slope: Array,
    direction: PyTree,
    first: Any,
    *,
    decrease: Any = 1e-4,
    max_trials: int = 20,
    slack: Any = SLACK,
    reference: Any = None,
) -> Step:
    """Shorten `first` until the step `x + length * direction` is good enough. If none is, the last one is returned.

    **Arguments:** `value` and `slope` are those at `x`; `decrease` is c above, `slack` epsilon. `reference` takes the place of `value` in
    the condition: a larger one makes the search nonmonotone.

    The length is found with everything held constant, and the point it leads to is differentiable: so a method that
    searches can be unrolled in both modes, and the derivative ignores only that the length would change.
    """
    fixed_problem, origin, heading = constant((problem, x, direction))
    value0, slope0, first = jax.lax.stop_gradient((value, slope, jnp.asarray(first, value.dtype)))
    reference = value0 if reference is None else jax.lax.stop_gradient(reference)
    allowance = rounding(value0, slack)

    def trial(carry):
        length, _, _, trials, _ = carry
        value, gradient = fixed_problem.value_and_gradient(add(origin, heading, length))
        armijo = value <= reference + decrease * length * slope0
        slope = dot(gradient, heading)
        moved = jnp.abs(slope - slope0) > 8 * jnp.finfo(value.dtype).eps * jnp.abs(slope0)
        flat = (value <= value0 + allowance) & (slope <= (2 * decrease - 1) * slope0)
        accepted = (armijo | flat) & (moved | (value < value0)) & jnp.isfinite(value)  # not by having stayed
        parabola = -slope0 * length**2 / (2 * (value - value0 - slope0 * length))
        shorter = jnp.clip(jnp.where(jnp.isfinite(parabola), parabola, 0.0), 0.1 * length, 0.5 * length)
        last = trials + 1 >= max_trials
        return jnp.where(accepted | last, length, shorter), value, gradient, trials + 1, accepted

    searching = lambda carry: ~carry[4] & (carry[3] < max_trials)
    start = (first, value0, jtu.tree_map(jnp.zeros_like, origin), jnp.int32(0), jnp.array(False))
    length, new_value, new_gradient, trials, accepted = jax.lax.while_loop(searching, trial, start)
    new = add(x, direction, length)
    new_value, new_gradient = evaluated(_value_and_gradient, (problem, new), (new_value, new_gradient))
    return Step(new, new_value, new_gradient, length, trials, accepted)


def follow(
    problem: Any,
    x: PyTree,
    value: Array,
    slope: Array,
    direction: PyTree,
    first: Any,
    machine: PyTree,
    advance: Callable[[PyTree, Array, Array, Array], tuple[PyTree, Array, Array]],
    max_trials: int,
) -> Step:
    """A search as a machine that is told what was found and says where to look next.

    `advance(machine, length, value, slope)` returns the machine, the next length and whether this one is good. When the
    trials are over the lowest point so far is taken. The one place that evaluates anything is here. As in `backtrack`,
    the length is found with everything held constant.
    """
    fixed, origin, heading = constant((problem, x, direction))
    machine, value0, slope0 = constant((machine, value, slope))
    first = jax.lax.stop_gradient(jnp.asarray(first, value.dtype))

    def trial(carry):
        machine, length, best_length, best_value, best_gradient, trials, _ = carry
        value, gradient = fixed.value_and_gradient(add(origin, heading, length))
        machine, following, accepted = advance(machine, length, value, dot(gradient, heading))
        better = accepted | ((value < best_value) & jnp.isfinite(value))
        best = select(better, (length, value, gradient), (best_length, best_value, best_gradient))
        stop = accepted | ~(following > 0) | ~jnp.isfinite(following)
        return machine, following, *best, trials + 1, stop

    searching = lambda carry: ~carry[6] & (carry[5] < max_trials)
    nowhere = jnp.zeros_like(first)
    start = (machine, first, nowhere, value0, jtu.tree_map(jnp.zeros_like, origin), jnp.int32(0), ~(slope0 < 0))
    _, _, length, new_value, new_gradient, trials, _ = jax.lax.while_loop(searching, trial, start)
    new = add(x, direction, length)
    new_value, new_gradient = evaluated(_value_and_gradient, (problem, new), (new_value, new_gradient))
    return Step(new, new_value, new_gradient, length, trials, length > 0)


def stay(accepted: Array, step: Step, x: PyTree, value: Array, gradient: PyTree) -> tuple[PyTree, Array, PyTree]:
    """The end of the step, or where it began if the search found nothing."""
    return select(accepted, (step.x, step.value, step.gradient), (x, value, gradient))


@eqx.filter_custom_jvp
def evaluated(fn: Callable, arguments: tuple, known: PyTree):
    """`fn(*arguments)`, which is `known`: nothing is computed until it is differentiated.

    This is how what was found inside a loop that holds everything constant is given its derivative.
    """
    del fn, arguments
    return known


@evaluated.def_jvp
def _evaluated_jvp(primals, tangents):
    fn, arguments, known = primals
    _, arguments_dot, _ = tangents
    moving = jtu.tree_map(lambda leaf: leaf is not None, arguments_dot, is_leaf=lambda leaf: leaf is None)
    active, fixed = eqx.partition(arguments, moving)
    _, known_dot = jax.jvp(lambda active: fn(*eqx.combine(active, fixed)), (active,), (arguments_dot,))
    return known, known_dot


def constant(tree: PyTree) -> PyTree:
    """The same, held constant under differentiation."""
    return jtu.tree_map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)


def _value_and_gradient(problem, x):
    return problem.value_and_gradient(x)
