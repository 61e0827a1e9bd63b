"""What a solve may spend, and what it has spent: `Budget` and `Counters`."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .errors import ArgumentError

__all__ = ["Budget", "Counters"]

Count = Int[Array, "..."] | Int[np.ndarray, "..."] | int


class Counters(eqx.Module):
    """How often each kind of expensive thing was done: the common currency of every comparison.

    A method keeps one in its state as `state.counters` and adds to it in every step; fields count since the start
    of the solve. A batch of a finite sum counts one gradient, and as many samples as it has.
    """

    values: Count = 0
    gradients: Count = 0
    hessian_products: Count = 0
    residuals: Count = 0
    jacobians: Count = 0
    proximal: Count = 0
    samples: Count = 0
    linear_solves: Count = 0
    linear_iterations: Count = 0
    substeps: Count = 0
    environment_steps: Count = 0
    circuits: Count = 0
    calls: Count = 0

    @staticmethod
    def zero() -> "Counters":
        """All zero, as arrays: what a method's `init` starts from."""
        return Counters(**{name: jnp.zeros((), jnp.int32) for name in COUNTER_NAMES})

    def add(self, **amounts) -> "Counters":
        """A copy with `amounts` added: `counters.add(values=1, gradients=1)`."""
        return dataclasses.replace(self, **{name: getattr(self, name) + amount for name, amount in amounts.items()})

    @property
    def evaluations(self) -> Count:
        """Calls of the user's functions: values, gradients, Hessian products, residuals and Jacobians."""
        return self.values + self.gradients + self.hessian_products + self.residuals + self.jacobians

    def asdict(self) -> dict[str, int]:
        """The non-zero counts as Python integers."""
        counts = {name: int(np.max(getattr(self, name))) for name in COUNTER_NAMES}
        return {name: count for name, count in counts.items() if count}


COUNTER_NAMES = tuple(field.name for field in dataclasses.fields(Counters))


class Budget(eqx.Module):
    """The most that a solve may spend. It ends as `budget_spent` at the first limit that is reached.

    **Arguments:**

    - `steps`: iterations of the method.
    - `seconds`: wall-clock time, compilation included. Only an eager solve can look at a clock.
    - `evaluations`: calls of the user's functions, `Counters.evaluations`.
    - `limits`: any other field of `Counters`, as in `Budget(samples=10_000)`.

    A limit on anything but steps can be overshot by at most one step of the method.
    """

    steps: int = eqx.field(static=True)
    seconds: float | None = eqx.field(static=True)
    evaluations: int | None = eqx.field(static=True)
    limits: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __init__(
        self,
        steps: int = 1000,
        seconds: float | None = None,
        evaluations: int | None = None,
        **limits: int,
    ):
        for name, limit in {"steps": steps, "evaluations": evaluations, **limits}.items():
            if name not in ("steps", "evaluations") and name not in COUNTER_NAMES:
                raise ArgumentError(
                    name, "is not something a budget can limit.", f"Limits: {', '.join(COUNTER_NAMES)}."
                )
            if limit is not None or name == "steps":
                _need_count(name, limit)
        if seconds is not None and not (_is_number(seconds) and seconds > 0):
            raise ArgumentError("seconds", f"must be a positive number, not {seconds!r}.")
        self.steps = int(steps)
        self.seconds = None if seconds is None else float(seconds)
        self.evaluations = None if evaluations is None else int(evaluations)
        self.limits = tuple(sorted((name, int(limit)) for name, limit in limits.items()))

    def spent(self, counters: Counters) -> Any:
        """Whether one of the limits on counted things is reached."""
        spent: Any = False
        if self.evaluations is not None:
            spent = counters.evaluations >= self.evaluations
        for name, limit in self.limits:
            spent = spent | (getattr(counters, name) >= limit)
        return spent


_MOST = 2**31 - 2  # what is counted, is counted in 32 bits


def _need_count(name: str, limit: Any) -> None:
    if not _is_number(limit) or limit % 1 != 0 or limit < 0:
        raise ArgumentError(name, f"must be a whole number that is not negative, not {limit!r}.")
    if limit > _MOST:
        raise ArgumentError(name, f"must be at most {_MOST}, not {limit!r}.")


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool) and x == x
