r"""Armijo's condition by a fixed factor: the search of the stochastic methods.

Along \(\varphi(t) = f(x - t g)\), with g the gradient, a step size t is taken if

$$\varphi(t) \le \varphi(0) - c\, t\, \lVert g \rVert^2,$$

and a refused one is multiplied by a factor below one. With Goldstein's second condition a step that achieves more than
\((1 - c)\, t\, \lVert g \rVert^2\) is refused as too short, and multiplied by a factor above one.

Only values are evaluated: batch losses are cheap to look at again, and a step is not refined once it will do. The search of
`line_search`, which fits parabolas and evaluates gradients on the way, is for deterministic problems.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["Length", "armijo"]


class Length(NamedTuple):
    """A step size, the value there, how many were tried, and whether it satisfies the conditions."""

    length: Array
    value: Array
    trials: Array
    accepted: Array


def armijo(
    value_at: Callable[[Array], Array],
    value: Array,
    squared: Array,
    first: Any,
    *,
    decrease: Any,
    shrink: Any,
    max_trials: int,
    allowance: Any = 0.0,
    grow: Any = None,
    longest: Any = jnp.inf,
) -> Length:
    """The first good step size, or the last one tried.

    **Arguments:**

    - `value_at`: the value at a step size; called in one place, inside a loop, so what it closes over must be constant under
      differentiation (see `line_search.constant`).
    - `value`, `squared`: value and squared norm of the gradient at step size zero.
    - `first`: the first one tried. `longest`: no longer one is tried when growing.
    - `decrease`: c. `shrink`, `grow`: the factors; without `grow` no step is too short.
    - `allowance`: a rise this small passes for none, because of rounding.
    """
    value, squared, first = jax.lax.stop_gradient((value, squared, jnp.asarray(first, value.dtype)))

    def attempt(carry):
        length, _, _, trials, _ = carry
        new = value_at(length)
        enough = (length * decrease * squared <= value - new + allowance) & jnp.isfinite(new)
        following, accepted = length * shrink, enough
        if grow is not None:
            short = enough & (new < value - length * (1 - decrease) * squared) & (length < longest)
            following = jnp.where(short, jnp.minimum(length * grow, longest), following)
            accepted = enough & ~short
        return following.astype(value.dtype), length, new.astype(value.dtype), trials + 1, accepted

    searching = lambda carry: ~carry[4] & (carry[3] < max_trials)
    start = (first, first, value, jnp.int32(0), jnp.array(False))
    _, length, new, trials, accepted = jax.lax.while_loop(searching, attempt, start)
    return Length(length, new, trials, accepted)
