r"""Step sizes in target space, for `SSO`.

Each is a rule for \(\eta_t\), the length of the step \(z_t - \eta_t g_t\) that the model then follows as well as it can; or for a
metric in its place, the weight of the proximity term of the surrogate. Steps are counted from 1.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from .arguments import need_between, need_count, need_not_negative, need_positive
from .armijo import armijo
from .line_search import constant
from .target_problem import Query

__all__ = [
    "AdaGradTargetStep",
    "ArmijoTargetStep",
    "ConstantTargetStep",
    "DecreasingTargetStep",
    "ExponentialTargetStep",
    "NewtonTargetStep",
    "TargetStep",
]


class Chosen(NamedTuple):
    """What a rule says: the `metric` (1/eta), eta as one number to report, its next state, and losses evaluated."""

    metric: Array
    step_size: Array
    state: PyTree
    trials: Any


class TargetStep(eqx.Module):
    """The abstract rule.

    `kind` says what its metric is: "scalar", "diagonal" (like the targets) or "matrix" (over the outputs of one example);
    `persistent`, that it only makes sense if the targets are the same in every step.
    """

    kind: ClassVar[str] = "scalar"
    persistent: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, targets: Any) -> PyTree:
        """The state before the first step, a pytree of arrays; `targets` is a `jax.ShapeDtypeStruct`."""

    @abc.abstractmethod
    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        """The metric of step `number` (1, 2, ...); `mean_loss(targets, batch)` is the loss, without the model."""


def _scalar(step_size: Any, query: Query, state: PyTree = (), trials: Any = 0) -> Chosen:
    step_size = jnp.asarray(step_size, query.targets.dtype)
    return Chosen(1 / step_size, step_size, state, trials)


class ConstantTargetStep(TargetStep):
    """eta = `step_size` in every step; 1/L is the theoretical choice (4 for the logistic loss, 1/2 for (z - y)^2)."""

    step_size: Any

    def __check_init__(self):
        need_positive("step_size", self.step_size)

    def init(self, targets: Any) -> PyTree:
        return ()

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        return _scalar(self.step_size, query)


class DecreasingTargetStep(TargetStep):
    r"""\(\eta_t = \eta / \sqrt{t}\): for batches that cannot all be fitted, where a constant step ends in a neighbourhood.

    **Arguments:** `step_size`, eta; `power`, of t in the denominator, if it is not 1/2.
    """

    step_size: Any
    power: Any = 0.5

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_not_negative("power", self.power)

    def init(self, targets: Any) -> PyTree:
        return ()

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        return _scalar(self.step_size / number.astype(query.targets.dtype) ** self.power, query)


class ExponentialTargetStep(TargetStep):
    r"""\(\eta_t = \eta\, (1/T)^{t/T}\), with T = `steps` the number of outer steps that are planned."""

    step_size: Any
    steps: int = eqx.field(static=True)

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_count("steps", self.steps)

    def init(self, targets: Any) -> PyTree:
        return ()

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        exponent = number.astype(query.targets.dtype) / self.steps
        return _scalar(self.step_size * (1 / self.steps) ** exponent, query)


class ArmijoTargetStep(TargetStep):
    r"""The longest step tried with \(\ell(z - \eta g) \le \ell(z) - c\, \eta \lVert g \rVert^2\), means over the batch.

    It needs no model pass and no oracle, only losses at other targets. Where they are as dear as the oracle, take another rule.

    **Arguments:**

    - `first`: the step size before the first search. Each search begins at `growth` times the one before.
    - `shrink`: the factor of a refused step. `decrease`: c; 1/2 finds 1/L on a quadratic loss.
    - `smallest`, `largest`: the ends of the range the result is cut to.
    - `max_trials`: losses that a search may evaluate.
    """

    first: Any = 10.0
    growth: Any = 1.8
    shrink: Any = 0.9
    decrease: Any = 0.5
    smallest: Any = 1e-4
    largest: Any = 1e4
    max_trials: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        need_positive("first", self.first)
        need_positive("smallest", self.smallest)
        need_positive("largest", self.largest)
        need_between("shrink", self.shrink, 0, 1)
        need_between("decrease", self.decrease, 0, 1)
        need_count("max_trials", self.max_trials)
        if isinstance(self.growth, int | float) and self.growth < 1:
            raise ArgumentError("growth", f"must be at least 1, not {self.growth!r}.")

    def init(self, targets: Any) -> PyTree:
        return jnp.asarray(self.first, targets.dtype)

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        held = constant(query)
        squared = jnp.sum(held.gradients**2) / len(held.targets)
        found = armijo(
            lambda length: mean_loss(held.targets - length * held.gradients, held.batch),
            held.value, squared, state * self.growth,
            decrease=self.decrease, shrink=self.shrink, max_trials=self.max_trials,
            allowance=jnp.finfo(held.value.dtype).eps * jnp.abs(held.value),
        )  # fmt: skip
        step_size = jnp.clip(found.length, self.smallest, self.largest).astype(query.targets.dtype)
        return _scalar(step_size, query, step_size, found.trials)


class AdaGradTargetStep(TargetStep):
    r"""\(\eta_t = \eta \big/ \sqrt{\sum_{s \le t} \lVert g_s \rVert^2 + 10^{-8}}\), with the mean over a batch of squared norms.

    With `diagonal` each target has its own sum and its own step: for full batches, where the targets persist.
    """

    step_size: Any
    diagonal: bool = eqx.field(static=True, default=False)
    offset: Any = 1e-8

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_positive("offset", self.offset)

    @property
    def kind(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "diagonal" if self.diagonal else "scalar"

    @property
    def persistent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.diagonal

    def init(self, targets: Any) -> PyTree:
        return jnp.zeros(targets.shape if self.diagonal else (), targets.dtype)

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        squared = query.gradients**2
        total = state + (squared if self.diagonal else jnp.sum(squared) / len(squared))
        metric = (jnp.sqrt(total + self.offset) / self.step_size).astype(query.targets.dtype)
        return Chosen(metric, 1 / jnp.mean(metric), total.astype(query.targets.dtype), 0)


class NewtonTargetStep(TargetStep):
    r"""The online Newton step: the metric \(\big(\epsilon I + \sum_{s \le t} \overline{g_s g_s^\top}\big) / \eta\) over the p outputs of
    an example, with the mean over the batch. For outputs that are few.

    **Arguments:** `step_size`, eta; `ridge`, epsilon, what the metric begins with.
    """

    kind: ClassVar[str] = "matrix"

    step_size: Any
    ridge: Any = 1.0

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_positive("ridge", self.ridge)

    def init(self, targets: Any) -> PyTree:
        size = math.prod(targets.shape[1:])
        return jnp.zeros((size, size), targets.dtype)

    def choose(self, state: PyTree, query: Query, mean_loss: Callable, number: Array) -> Chosen:
        flat = query.gradients.reshape(len(query.gradients), -1)
        total = state + flat.T @ flat / len(flat)
        metric = (total + self.ridge * jnp.eye(len(total), dtype=total.dtype)) / self.step_size
        return Chosen(metric, len(metric) / jnp.trace(metric), total, 0)
