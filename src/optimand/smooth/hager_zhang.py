r"""The line search of Hager and Zhang.

Along \(\varphi(t) = f(x + t d)\) a length is good if it satisfies the Wolfe conditions

$$\varphi(t) \le \varphi(0) + \delta t\, \varphi'(0), \qquad \varphi'(t) \ge \sigma \varphi'(0),$$

or, where \(\varphi(t) \le \varphi(0) + \epsilon |\varphi(0)|\), the approximate ones

$$(2\delta - 1)\varphi'(0) \ge \varphi'(t) \ge \sigma \varphi'(0)$$

(Hager and Zhang 2005, eq. 2.1 and 4.1; 2006, T1 and T2): they are computed from slopes, and so hold to rounding where values no
longer tell. An interval with \(\varphi(a) \le \varphi(0) + \epsilon\), \(\varphi'(a) < 0\), \(\varphi'(b) \ge 0\) is found by
expansion (B0-B3), kept by `update` (U0-U3), and shortened by two secant steps (S1-S4) and a bisection where those gain little (L2).
Written as a machine with one evaluation a turn: what the algorithm does between two evaluations is one transition.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_between, need_count
from .line_search import LineSearch, Step, follow
from .strong_wolfe import Point

__all__ = ["HagerZhang"]

# What the trial in flight is: of the expansion, of U3, of the two secant steps, of the bisection L2.
EXPAND, HALVE, FIRST_SECANT, SECOND_SECANT, BISECT = range(5)


class _End(NamedTuple):
    """A length, and the slope there."""

    length: Array
    slope: Array


class _Machine(NamedTuple):
    """The ends `a`, `b` of the interval at the start of the iteration, and `lower`, `upper` of the one that is being made of it: as one
    array, (4, 2), since each number that a loop holds by itself is an operation more in every turn of it."""

    phase: Array
    back: Array  # the phase that U3 was called from
    ends: Float[Array, "4 2"]


class HagerZhang(LineSearch):
    """Wolfe or approximate Wolfe conditions, by secants in a bracket: the search of CG_DESCENT.

    The right one where a solution is wanted to the last digits, and for nonlinear conjugate gradients. A trial where the function is
    not finite counts as too high, so the search turns back.

    **Arguments:**

    - `decrease`: delta; `curvature`: sigma, with 0 < delta < 1/2, delta <= sigma < 1.
    - `slack`: epsilon; at least the rounding error of the dtype is used.
    - `expansion`: rho, the factor of the expansion; `shrinkage`: gamma, what two secant steps must leave at most.
    - `max_trials`: evaluations that a search may spend. The lowest point is taken when they are over.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    om.solve(om.Minimize(lambda x: jnp.sum(x**4 - x)), om.smooth.NonlinearCG(line_search=om.smooth.HagerZhang()), jnp.zeros(3))
    ```
    """

    decrease: Any = 0.1
    curvature: Any = 0.9
    slack: Any = 1e-6
    expansion: Any = 5.0
    shrinkage: Any = 0.66
    max_trials: int = eqx.field(static=True, default=40)

    def __check_init__(self):
        need_between("decrease", self.decrease, 0, 0.5)
        need_between("curvature", self.curvature, 0, 1)
        need_between("slack", self.slack, 0, 1)
        need_between("expansion", self.expansion, 1, 1e6)
        need_between("shrinkage", self.shrinkage, 0, 1)
        need_count("max_trials", self.max_trials)
        if not (is_tracer(self.decrease) or is_tracer(self.curvature)) and self.curvature < self.decrease:
            raise ArgumentError("curvature", f"must be at least `decrease`, {self.decrease!r}, not {self.curvature!r}.")

    def search(self, problem, x, value, slope, direction, first, *, most=None) -> Step:
        number = lambda a: jnp.asarray(a, value.dtype)
        most = number(jnp.inf if most is None else most)
        start = Point(number(0.0), value, slope.astype(value.dtype))
        ends = jnp.stack([jnp.stack([start.length, start.slope])] * 4)
        machine = _Machine(jnp.int32(EXPAND), jnp.int32(EXPAND), ends)
        ceiling = value + jnp.maximum(self.slack, jnp.finfo(value.dtype).eps) * jnp.abs(value)

        def advance(machine, length, new_value, new_slope):
            return self._advance(start, ceiling, most, machine, Point(length, new_value, new_slope))

        first = jnp.minimum(first, most)
        return follow(problem, x, value, slope, direction, first, machine, advance, self.max_trials)

    def _advance(self, start: Point, ceiling: Array, most: Array, machine: _Machine, trial: Point):
        phase, back, ends = machine
        a, b, lower, upper = (_End(*end) for end in ends)
        here = _End(trial.length, trial.slope)
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        level = trial.slope >= self.curvature * start.slope
        armijo = trial.value <= start.value + self.decrease * trial.length * start.slope
        approximate = (trial.value <= ceiling) & (trial.slope <= (2 * self.decrease - 1) * start.slope)
        at_most = armijo & (trial.length >= most) & (trial.slope <= 0)
        accepted = finite & (((armijo | approximate) & level) | at_most)

        # `update` (U0-U3) with the trial. In the expansion the interval is [last low point, trial].
        expanding, halving = phase == EXPAND, phase == HALVE
        up = finite & (trial.slope >= 0)  # U1, B1
        down = finite & (trial.slope < 0) & (trial.value <= ceiling)  # U2, B3
        high = ~up & ~down  # U3, B2: also where nothing is finite
        inside = expanding | ((trial.length > lower.length) & (trial.length < upper.length))
        new_upper = _choose(inside & (up | high), here, upper)  # in U3 the trial is the new end b-bar
        new_lower = _choose(inside & down, here, lower)
        to_halve = inside & high
        halving_on = to_halve | (halving & down)  # U3 ends with a slope that is not negative
        grow = expanding & down

        # Where `update` ended, what comes next.
        ended = jnp.where(halving, back, phase)
        is_first = ended == FIRST_SECANT
        took_upper = (ended == FIRST_SECANT) & ~halving & inside & up
        took_lower = (ended == FIRST_SECANT) & ~halving & inside & down
        second = is_first & (took_upper | took_lower)
        second_length = jnp.where(took_upper, _secant(b, new_upper), _secant(a, new_lower))
        second = second & (second_length > new_lower.length) & (second_length < new_upper.length)
        to_bisect = (is_first | (ended == SECOND_SECANT)) & ~second
        width, old_width = new_upper.length - new_lower.length, b.length - a.length
        to_bisect = to_bisect & (width > self.shrinkage * old_width)
        fresh = ~(grow | halving_on | second | to_bisect)  # a new iteration, from the interval as it is

        middle = (new_lower.length + new_upper.length) / 2
        secant = _secant(new_lower, new_upper)
        inner = jnp.where((secant > new_lower.length) & (secant < new_upper.length), secant, middle)
        grown = jnp.where(trial.length >= most, jnp.nan, jnp.minimum(self.expansion * trial.length, most))
        following = jnp.where(
            grow, grown, jnp.where(halving_on | to_bisect, middle, jnp.where(second, second_length, inner))
        )
        empty = ~grow & ((middle <= new_lower.length) | (middle >= new_upper.length))
        following = jnp.where(empty, jnp.nan, following)
        phases = (grow, EXPAND), (halving_on, HALVE), (second, SECOND_SECANT), (to_bisect, BISECT)
        new_phase = jnp.int32(FIRST_SECANT)
        for condition, name in reversed(phases):
            new_phase = jnp.where(condition, name, new_phase)
        new_back = jnp.where(to_halve & ~halving, phase, back)
        new_a, new_b = _choose(fresh, new_lower, a), _choose(fresh, new_upper, b)
        new_phase, new_back = new_phase.astype(jnp.int32), new_back.astype(jnp.int32)
        new_ends = jnp.stack([jnp.stack(end) for end in (new_a, new_b, new_lower, new_upper)])
        return _Machine(new_phase, new_back, new_ends), following, accepted


def _secant(a: _End, b: _End) -> Array:
    return (a.length * b.slope - b.length * a.slope) / (b.slope - a.slope)


def _choose(condition: Array, a: _End, b: _End) -> _End:
    return _End(*(jnp.where(condition, p, q) for p, q in zip(a, b, strict=True)))
