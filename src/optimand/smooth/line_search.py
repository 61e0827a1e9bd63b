r"""Backtracking along a descent direction.

Along \(\varphi(t) = f(x + t d)\), a step is taken if it decreases enough (Armijo),

$$\varphi(t) \le \varphi(0) + c\, t\, \varphi'(0),$$

or, where rounding hides the decrease, if \(\varphi(t) \le \varphi(0) + \epsilon |\varphi(0)|\) and the slope has become
small enough, \(\varphi'(t) \le (2c - 1)\varphi'(0)\) (the approximate condition of Hager and Zhang 2005, eq. 4.1). A
refused step is shortened to the minimiser of the parabola through what is known, kept between a tenth and a half.

Value and gradient are evaluated together: with a well-scaled direction the first trial is nearly always taken, and
then a step of the method costs one evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .vectors import add, dot, select

__all__ = ["Step", "backtrack", "constant", "evaluated", "stay"]


class Step(NamedTuple):
    """What a search found: where, value and gradient there, how many evaluations, and whether it succeeded."""

    x: PyTree
    value: Array
    gradient: PyTree
    length: Array
    trials: Array
    accepted: Array


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
    reference: Any = None,
) -> Step:
    """Shorten `first` until the step `x + length * direction` is good enough. If none is, the last one is returned.

    **Arguments:** `value` and `slope` are those at `x`; `decrease` is c above. `reference` takes the place of `value` in
    the condition: a larger one makes the search nonmonotone.

    The length is found with everything held constant, and the point it leads to is differentiable: so a method that
    searches can be unrolled in both modes, and the derivative ignores only that the length would change.
    """
    fixed_problem, origin, heading = constant((problem, x, direction))
    value0, slope0, first = jax.lax.stop_gradient((value, slope, jnp.asarray(first, value.dtype)))
    reference = value0 if reference is None else jax.lax.stop_gradient(reference)
    allowance = jnp.finfo(value.dtype).eps * jnp.abs(value0)

    def trial(carry):
        length, _, _, trials, _ = carry
        value, gradient = fixed_problem.value_and_gradient(add(origin, heading, length))
        armijo = value <= reference + decrease * length * slope0
        flat = (value <= value0 + allowance) & (dot(gradient, heading) <= (2 * decrease - 1) * slope0)
        accepted = (armijo | flat) & jnp.isfinite(value)
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
