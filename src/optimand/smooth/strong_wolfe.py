r"""A line search for the strong Wolfe conditions.

Along \(\varphi(t) = f(x + t d)\) a length is good if

$$\varphi(t) \le \varphi(0) + c_1 t\, \varphi'(0), \qquad |\varphi'(t)| \le c_2 |\varphi'(0)|$$

(Nocedal and Wright 2006, eq. 3.7, algorithms 3.5 and 3.6). The search holds the lowest point `low` that decreases enough,
and a point `high` between which and `low` there are good lengths, infinitely far as long as none is known. The next
trial is the minimiser of the cubic through both (eq. 3.59), kept off the ends of the interval; two trials that do not
shorten it by a third each are followed by a bisection (Moré and Thuente 1994).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_between, need_count
from .line_search import SLACK, LineSearch, Step, follow, rounding

__all__ = ["StrongWolfe"]


class Point(NamedTuple):
    """A length, and value and slope there."""

    length: Array
    value: Array
    slope: Array


class _Bracket(NamedTuple):
    low: Point
    high: Point
    bracketed: Array
    width: Array
    slow: Array  # trials in a row that left more than two thirds of the interval


class StrongWolfe(LineSearch):
    """Strong Wolfe conditions by bracketing and safeguarded cubic interpolation.

    The search of quasi-Newton methods and, with `curvature` at most 0.1, of nonlinear conjugate gradients. A trial where the
    function is not finite is taken for the far end of the bracket, so the search turns back.

    **Arguments:**

    - `decrease`: c1; `curvature`: c2, with 0 < c1 < c2 < 1.
    - `max_trials`: evaluations that a search may spend. The lowest point is taken when they are over.
    - `slack`: the relative change of a value that may be rounding; at least ten times that of the dtype is used.

    Where rounding may hide the decrease, the approximate condition of Hager and Zhang (2005, eq. 4.1) counts as well.
    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    om.solve(om.Minimize(lambda x: jnp.sum(x**4 - x)), om.smooth.LBFGS(line_search=om.smooth.StrongWolfe()), jnp.zeros(3))
    ```
    """

    decrease: Any = 1e-4
    curvature: Any = 0.9
    max_trials: int = eqx.field(static=True, default=25)
    slack: Any = SLACK

    def __check_init__(self):
        need_between("decrease", self.decrease, 0, 0.5)
        need_between("curvature", self.curvature, 0, 1)
        need_between("slack", self.slack, 0, 1)
        need_count("max_trials", self.max_trials)
        if not (is_tracer(self.decrease) or is_tracer(self.curvature)) and self.curvature <= self.decrease:
            raise ArgumentError("curvature", f"must be above `decrease`, {self.decrease!r}, not {self.curvature!r}.")

    def search(self, problem, x, value, slope, direction, first, *, most=None) -> Step:
        number = lambda a: jnp.asarray(a, value.dtype)
        most = number(jnp.inf if most is None else most)
        start = Point(number(0.0), value, slope.astype(value.dtype))
        far = Point(number(jnp.inf), number(jnp.inf), number(jnp.inf))
        machine = _Bracket(start, far, jnp.array(False), number(jnp.inf), jnp.int32(0))

        def advance(bracket: _Bracket, length, new_value, new_slope):
            return self._advance(start, most, bracket, Point(length, new_value, new_slope))

        first = jnp.minimum(first, most)
        return follow(problem, x, value, slope, direction, first, machine, advance, self.max_trials)

    def _advance(self, start: Point, most: Array, bracket: _Bracket, trial: Point):
        low, high, bracketed, width, slow = bracket
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        allowance = rounding(start.value, self.slack)
        armijo = trial.value <= start.value + self.decrease * trial.length * start.slope
        flat = (jnp.abs(trial.value - start.value) <= allowance) & (trial.slope <= (2 * self.decrease - 1) * start.slope)
        enough = finite & (armijo | flat)
        level = jnp.where(flat, trial.slope >= self.curvature * start.slope, False)
        level = level | (jnp.abs(trial.slope) <= -self.curvature * start.slope)
        at_most = (trial.length >= most) & (trial.slope <= 0)
        accepted = enough & (level | at_most)

        beyond = ~enough | (trial.value > low.value + allowance)
        forward = jnp.where(bracketed, jnp.sign(high.length - low.length), 1.0)
        past = trial.slope * forward >= 0
        choose = lambda condition, a, b: Point(*(jnp.where(condition, p, q) for p, q in zip(a, b, strict=True)))
        new_high = choose(beyond, trial, choose(past, low, high))
        new_low = choose(beyond, low, trial)
        new_bracketed = bracketed | beyond | past

        gap = trial.length - low.length  # how far the last extrapolation went
        cubic = cubic_minimiser(low, trial)
        longer = jnp.where(cubic > trial.length, cubic, jnp.inf)
        longer = jnp.minimum(jnp.clip(longer, trial.length + 1.1 * gap, trial.length + 4 * gap), most)

        interval = new_high.length - new_low.length
        new_width = jnp.where(new_bracketed, jnp.abs(interval), jnp.inf)
        new_slow = jnp.where(new_width > 0.66 * width, slow + 1, 0).astype(jnp.int32)
        inner = (cubic_minimiser(new_low, new_high) - new_low.length) / interval
        unknown = ~jnp.isfinite(new_high.value) | ~jnp.isfinite(new_high.slope)
        inner = jnp.where(unknown, 0.2, jnp.where(jnp.isfinite(inner), jnp.clip(inner, 0.01, 0.99), 0.5))
        inner = jnp.where(new_slow >= 2, 0.5, inner)
        within = new_low.length + inner * interval
        stopped = new_bracketed & ((within == new_low.length) | (within == new_high.length))  # nothing is between
        following = jnp.where(stopped, jnp.nan, jnp.where(new_bracketed, within, longer))
        slow = jnp.where(new_slow >= 2, 0, new_slow).astype(jnp.int32)
        return _Bracket(new_low, new_high, new_bracketed, new_width, slow), following, accepted


def cubic_minimiser(a: Point, b: Point) -> Array:
    """The minimiser of the cubic with the values and slopes at two points (Nocedal and Wright 2006, eq. 3.59), or NaN."""
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.length - b.length)
    d2 = jnp.sign(b.length - a.length) * jnp.sqrt(d1**2 - a.slope * b.slope)
    return b.length - (b.length - a.length) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)
