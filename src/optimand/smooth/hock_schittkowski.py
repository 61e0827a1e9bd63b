"""Small problems with smooth equality constraints from the collection of Hock and Schittkowski (1981).

The numbers are those of the collection, and so are the guesses; HS47 has several local solutions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.constrained import Constrained
from ..core.errors import ArgumentError

__all__ = ["HOCK_SCHITTKOWSKI", "TestProblem", "hock_schittkowski"]


class TestProblem(NamedTuple):
    """A problem, its standard guess, and the objective at its solution."""

    __test__ = False

    name: str
    problem: Constrained
    guess: Float[Array, " n"]
    optimum: float


_ROOT2 = math.sqrt(2)


def _hs6(x):
    return (1 - x[0]) ** 2


def _hs6_c(x):
    return [10 * (x[1] - x[0] ** 2)]


def _hs7(x):
    return jnp.log(1 + x[0] ** 2) - x[1]


def _hs7_c(x):
    return [(1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4]


def _hs26(x):
    return (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 4


def _hs26_c(x):
    return [(1 + x[1] ** 2) * x[0] + x[2] ** 4 - 3]


def _hs27(x):
    return 0.01 * (x[0] - 1) ** 2 + (x[1] - x[0] ** 2) ** 2


def _hs27_c(x):
    return [x[0] + x[2] ** 2 + 1]


def _hs28(x):
    return (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2


def _hs28_c(x):
    return [x[0] + 2 * x[1] + 3 * x[2] - 1]


def _hs39(x):
    return -x[0]


def _hs39_c(x):
    return [x[1] - x[0] ** 3 - x[2] ** 2, x[0] ** 2 - x[1] - x[3] ** 2]


def _hs40(x):
    return -x[0] * x[1] * x[2] * x[3]


def _hs40_c(x):
    return [x[0] ** 3 + x[1] ** 2 - 1, x[0] ** 2 * x[3] - x[2], x[3] ** 2 - x[1]]


def _hs42(x):
    return jnp.sum((x - jnp.arange(1.0, 5.0)) ** 2)


def _hs42_c(x):
    return [x[0] - 2, x[2] ** 2 + x[3] ** 2 - 2]


def _hs46(x):
    return (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6


def _hs46_c(x):
    return [x[0] ** 2 * x[3] + jnp.sin(x[3] - x[4]) - 1, x[1] + x[2] ** 4 * x[3] ** 2 - 2]


def _hs47(x):
    return (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 3 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 4


def _hs47_c(x):
    return [x[0] + x[1] ** 2 + x[2] ** 3 - 3, x[1] - x[2] ** 2 + x[3] - 1, x[0] * x[4] - 1]


def _hs48(x):
    return (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2


def _hs48_c(x):
    return [jnp.sum(x) - 5, x[2] - 2 * (x[3] + x[4]) + 3]


def _hs49(x):
    return (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6


def _hs49_c(x):
    return [x[0] + x[1] + x[2] + 4 * x[3] - 7, x[2] + 5 * x[4] - 6]


def _hs50(x):
    return (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 2


def _hs50_c(x):
    return [x[i] + 2 * x[i + 1] + 3 * x[i + 2] - 6 for i in range(3)]


def _hs51(x):
    return (x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2


def _hs51_c(x):
    return [x[0] + 3 * x[1] - 4, x[2] + x[3] - 2 * x[4], x[1] - x[4]]


def _hs52(x):
    return (4 * x[0] - x[1]) ** 2 + (x[1] + x[2] - 2) ** 2 + (x[3] - 1) ** 2 + (x[4] - 1) ** 2


def _hs52_c(x):
    return [x[0] + 3 * x[1], x[2] + x[3] - 2 * x[4], x[1] - x[4]]


def _hs77(x):
    return (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[2] - 1) ** 2 + (x[3] - 1) ** 4 + (x[4] - 1) ** 6


def _hs77_c(x):
    return [x[0] ** 2 * x[3] + jnp.sin(x[3] - x[4]) - 2 * _ROOT2, x[1] + x[2] ** 4 * x[3] ** 2 - 8 - _ROOT2]


def _hs78(x):
    return jnp.prod(x)


def _hs78_c(x):
    return [jnp.sum(x**2) - 10, x[1] * x[2] - 5 * x[3] * x[4], x[0] ** 3 + x[1] ** 3 + 1]


def _hs79(x):
    return (x[0] - 1) ** 2 + (x[0] - x[1]) ** 2 + (x[1] - x[2]) ** 2 + (x[2] - x[3]) ** 4 + (x[3] - x[4]) ** 4


def _hs79_c(x):
    first = x[0] + x[1] ** 2 + x[2] ** 3 - 2 - 3 * _ROOT2
    return [first, x[1] - x[2] ** 2 + x[3] + 2 - 2 * _ROOT2, x[0] * x[4] - 2]


# objective, constraints, guess, objective at the solution
_PROBLEMS: dict[str, tuple[Callable, Callable, tuple[float, ...], float]] = {
    "HS6": (_hs6, _hs6_c, (-1.2, 1), 0.0),
    "HS7": (_hs7, _hs7_c, (2, 2), -math.sqrt(3)),
    "HS26": (_hs26, _hs26_c, (-2.6, 2, 2), 0.0),
    "HS27": (_hs27, _hs27_c, (2, 2, 2), 0.04),
    "HS28": (_hs28, _hs28_c, (-4, 1, 1), 0.0),
    "HS39": (_hs39, _hs39_c, (2, 2, 2, 2), -1.0),
    "HS40": (_hs40, _hs40_c, (0.8, 0.8, 0.8, 0.8), -0.25),
    "HS42": (_hs42, _hs42_c, (1, 1, 1, 1), 28 - 10 * _ROOT2),
    "HS46": (_hs46, _hs46_c, (_ROOT2 / 2, 1.75, 0.5, 2, 2), 0.0),
    "HS47": (_hs47, _hs47_c, (2, _ROOT2, -1, 2 - _ROOT2, 0.5), 0.0),
    "HS48": (_hs48, _hs48_c, (3, 5, -3, 2, -2), 0.0),
    "HS49": (_hs49, _hs49_c, (10, 7, 2, -3, 0.8), 0.0),
    "HS50": (_hs50, _hs50_c, (35, -31, 11, 5, -5), 0.0),
    "HS51": (_hs51, _hs51_c, (2.5, 0.5, 2, -1, 0.5), 0.0),
    "HS52": (_hs52, _hs52_c, (2, 2, 2, 2, 2), 1859 / 349),
    "HS77": (_hs77, _hs77_c, (2, 2, 2, 2, 2), 0.24150513),
    "HS78": (_hs78, _hs78_c, (-2, 1.5, 2, -1, -1), -2.91970041),
    "HS79": (_hs79, _hs79_c, (2, 2, 2, 2, 2), 0.0787768209),
}
HOCK_SCHITTKOWSKI = tuple(_PROBLEMS)


def hock_schittkowski(name: str) -> TestProblem:
    """A problem of the collection by its name: HS6, 7, 26, 27, 28, 39, 40, 42, 46 to 52, 77, 78 or 79.

    **Returns:** a `TestProblem`: `problem` (a `Constrained` with equalities), the standard `guess` and the `optimum`.

    **Raises:** `ArgumentError`, with the names there are.

    ```python
    hs28 = om.smooth.hock_schittkowski("HS28")
    om.solve(hs28.problem, om.smooth.AdaSketchNewton(), hs28.guess, key=jax.random.key(0)).value.primal    # (0.5, -0.5, 0.5)
    ```

    Source: Hock and Schittkowski 1981.
    """
    if name not in _PROBLEMS:
        raise ArgumentError("name", f"must be a problem of the collection, not {name!r}.", ", ".join(_PROBLEMS))
    objective, constraints, guess, optimum = _PROBLEMS[name]
    problem = Constrained(objective, equalities=_stacked(constraints))
    return TestProblem(name, problem, jnp.array(guess, dtype=float), optimum)


_STACKED: dict[Callable, Callable] = {}


def _stacked(constraints: Callable) -> Callable:
    """The constraints in one vector; the same function each time, so that what was compiled for it is found again."""
    return _STACKED.setdefault(constraints, lambda x: jnp.stack(constraints(x)))
