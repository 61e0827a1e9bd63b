"""How every method of every part is run: so many oracle calls, in one program for all values of a grid."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimand.core.method import Method
from optimand.smooth import (
    SLS,
    SSO,
    AdaGradTargetStep,
    Adam,
    ArmijoGD,
    ArmijoTargetStep,
    DecreasingTargetStep,
    ExponentialTargetStep,
    Optax,
)


@dataclasses.dataclass(frozen=True)
class Rival:
    """A family of methods: `make` of one row of a grid of numbers. Equal ones share what was compiled."""

    name: str
    make: Callable[..., Method]
    fixed: tuple[tuple[str, Any], ...] = ()

    def __call__(self, row: Any) -> Method:
        return self.make(row, **dict(self.fixed))


def schedule(row):
    """A learning rate, divided by a power of the step number."""
    return lambda count: row[0] / (count + 1.0) ** row[1]


def sgd(row) -> Method:
    return Optax(tx=optax.sgd(schedule(row)), tolerance=0.0)


def adam(row) -> Method:
    return Adam(learning_rate=schedule(row), tolerance=0.0)


def adagrad(row) -> Method:
    return Optax(tx=optax.adagrad(row[0]), tolerance=0.0)


def sls(row) -> Method:
    """The longest step size."""
    return SLS(max_step=row[0], max_trials=50, tolerance=0.0)


def sso(row, *, inner_steps, rule, inner, inner_rate, decrease, calls) -> Method:
    """Step size in target space and the power of the step number that divides it."""
    rules = {
        "constant": lambda: DecreasingTargetStep(row[0], row[1]),
        "exponential": lambda: ExponentialTargetStep(row[0], calls),
        "armijo": lambda: ArmijoTargetStep(),
        "adagrad": lambda: AdaGradTargetStep(row[0]),
    }
    inners = {
        "armijo": lambda: ArmijoGD(decrease=decrease),
        "gd": lambda: optax.sgd(inner_rate),
        "adam": lambda: optax.adam(inner_rate),
    }
    return SSO(rules[rule](), inner_steps=inner_steps, inner=inners[inner](), tolerance=0.0)


def sso_rival(settings: Any, inner_steps: int, calls: int) -> Rival:
    """SSO with what the settings say."""
    fixed = {
        "inner_steps": inner_steps, "rule": settings.rule, "inner": settings.inner, "inner_rate": settings.inner_rate,
        "decrease": settings.decrease, "calls": calls if settings.rule == "exponential" else 0,
    }  # fmt: skip
    return Rival(f"SSO, m = {inner_steps}", sso, tuple(fixed.items()))


def rows(*columns: Any) -> np.ndarray:
    """The grid of all combinations."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*map(np.asarray, columns), indexing="ij")], axis=1).astype(float)


@dataclasses.dataclass
class Sweep:
    """Measured figures [row of the grid, measurement], the first before any call, and what each row has spent."""

    name: str
    grid: np.ndarray
    figures: np.ndarray
    oracle_calls: np.ndarray
    model_passes: np.ndarray

    def calls_per_step(self, steps: int) -> float:
        """Calls of the oracle for each step: of the rows, the figure farthest from one."""
        ratios = self.oracle_calls / steps
        return float(ratios[np.argmax(np.abs(ratios - 1))])

    def best(self, at: int = -1, among: Any = None) -> int:
        """The row, of those `among` which it is sought, with the least figure at a measurement; one that diverged has none."""
        among = np.arange(len(self.grid)) if among is None else np.asarray(among)
        figures = self.figures[among, at]
        return int(among[np.argmin(np.where(np.isfinite(figures), figures, np.inf))])


def sweep(
    problem: Any, rival: Rival, grid: np.ndarray, guess: Any, key: Any, *,
    calls: int, every: int = 1, measure: Callable, measure_key: Any = None,
) -> Sweep:  # fmt: skip
    """Run a rival on every row of a grid at once, and measure `measure(problem, x, measure_key)` after each `every` calls."""
    figures, counters = _sweep(problem, rival, jnp.asarray(grid), guess, key, calls // every, every, measure, measure_key)
    spent = counters.calls if rival.make is sso else counters.gradients
    spent = np.asarray(spent) - (0 if rival.make in (sso, sls) else 1)  # the gradient at the end leads nowhere
    passes = np.asarray(counters.values + counters.gradients)
    return Sweep(rival.name, grid, np.asarray(figures), spent, passes)


@eqx.filter_jit
def _sweep(problem, rival, grid, guess, key, measurements, every, measure, measure_key):
    unknown, rest = eqx.partition(guess, eqx.is_inexact_array)
    traced = problem.traced(guess)

    def run(row):
        method = rival(row)

        def step(state, number):
            return method.step(traced, state, key=jax.random.fold_in(key, number + 1)), None

        def block(state, numbers):
            state, _ = jax.lax.scan(step, state, numbers)
            return state, method.answer(traced, state)

        state = method.init(traced, unknown, key=jax.random.fold_in(key, 0))
        numbers = jnp.arange(measurements * every).reshape(measurements, every)
        state, after = jax.lax.scan(block, state, numbers)
        iterates = jax.tree.map(lambda first, others: jnp.concatenate([first[None], others]), unknown, after)
        figures = jax.lax.map(lambda x: measure(problem, eqx.combine(x, rest), measure_key), iterates)
        return figures, method.counters(state)

    return jax.vmap(run)(grid)


def loss_on_all(problem: Any, x: Any, key: Any) -> Any:
    """The loss on all data."""
    del key
    return problem.value(x)
