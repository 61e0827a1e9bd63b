r"""Stochastic gradient descent with Armijo's line search (SLS).

$$x_{k+1} = x_k - \eta_k \nabla f_k(x_k) + \beta (x_k - x_{k-1}), \qquad
  f_k(x_k - \eta_k \nabla f_k(x_k)) \le f_k(x_k) - c\, \eta_k \lVert \nabla f_k(x_k) \rVert^2,$$

where \(f_k\) is the loss of batch k, on which the search compares too. If one model can fit all data, so that every batch has its
minimum at the same place, this converges as fast as gradient descent does on all of it, and without a step size to tune.

Vaswani, Mishkin, Laradji, Schmidt, Gidel and Lacoste-Julien, "Painless stochastic gradient: interpolation, line-search, and
convergence rates" (2019), algorithm 1 and section 6.1.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.fit import Fit
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_between, need_count, need_not_negative, need_positive
from .armijo import armijo
from .line_search import constant
from .target_problem import TargetProblem
from .vectors import add, dot, select, subtract, zeros_like

__all__ = ["SLS"]


class SLSState(eqx.Module):
    """`value` is the loss of the last batch where its step began (where it ended, if there are no batches and no momentum).

    `residual` is the norm of its gradient where the step began, `length` the step size found, `velocity` the last move (None without
    momentum). `skipped` counts the steps not taken because the batch was not finite, `in_a_row` the last of them.
    """

    x: PyTree
    value: Array
    residual: Array
    length: Array
    velocity: PyTree
    skipped: Array
    in_a_row: Array
    counters: Counters


class SLS(Method):
    """Stochastic gradient descent whose step size is searched on every batch: no learning rate to tune.

    Pick it for models that can fit all of their data, such as large networks without label noise. Where batches contradict
    each other its steps do not shrink: give `Adam` or `Optax` a schedule there.

    **Arguments:**

    - `max_step`: the longest step size, and the first that is tried.
    - `growth`: how much longer than the step before the first trial of the next is.
    - `shrink`: the factor of a refused step.
    - `decrease`: c above, between 0 and 1.
    - `reset`: where a search begins. "increase": at `growth` times the step before; "conservative": at the step before, so that
      steps never grow; "goldstein": there too, but a step that is too short is lengthened by `growth`.
    - `momentum`: beta above.
    - `max_trials`: values that a search may evaluate. If it ends without a good step, the last is taken unless it raises the loss.
    - `tolerance`: converged when the norm of the gradient is at most this; a problem with random batches never says so.
    - `skips_in_a_row`: a batch whose loss or gradient is not finite is left out, and counted in the metric `skipped`; after so many
      in a row the solve ends as `nonfinite`.

    A step costs one gradient, and a value for each trial, all on the same batch.

    Raises `ArgumentError`, naming the argument, for a number out of its range.
    """

    problem = Objective
    reference: ClassVar[str] = "vaswani2019painless"

    max_step: Any = 1.0
    growth: Any = 1.5
    shrink: Any = 0.8
    decrease: Any = 0.1
    reset: Literal["increase", "conservative", "goldstein"] = eqx.field(static=True, default="increase")
    momentum: Any = 0.0
    max_trials: int = eqx.field(static=True, default=16)
    tolerance: Any = 1e-6
    skips_in_a_row: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        need_positive("max_step", self.max_step)
        need_between("shrink", self.shrink, 0, 1)
        need_between("decrease", self.decrease, 0, 1)
        need_not_negative("momentum", self.momentum)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)
        need_count("skips_in_a_row", self.skips_in_a_row)
        need_positive("growth", self.growth)
        if isinstance(self.growth, int | float) and self.growth < 1:
            raise ArgumentError("growth", f"must be at least 1, not {self.growth!r}.")
        if self.reset not in ("increase", "conservative", "goldstein"):
            raise ArgumentError("reset", f"must be 'increase', 'conservative' or 'goldstein', not {self.reset!r}.")

    @property
    def _heavy(self) -> bool:
        return not (isinstance(self.momentum, int | float) and self.momentum == 0)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> SLSState:
        infinite = jnp.asarray(jnp.inf, jax.eval_shape(lambda x: problem.value(x, key=key), guess).dtype)
        length = jnp.asarray(self.max_step, infinite.dtype)
        zero = jnp.zeros((), jnp.int32)
        velocity = zeros_like(guess) if self._heavy else None
        return SLSState(guess, infinite, infinite, length, velocity, zero, zero, Counters.zero())

    def step(self, problem: Objective, state: SLSState, *, key: Array | None) -> SLSState:
        stochastic = problem.stochastic
        problem, samples = _on_one_batch(problem, state.x, key)
        value, gradient = problem.value_and_gradient(state.x, key=key)
        squared = dot(gradient, gradient).astype(value.dtype)
        residual = jnp.sqrt(jnp.where(squared == 0, 1, squared)) * (squared != 0)
        sound = jnp.isfinite(value) & jnp.isfinite(squared)
        fixed, origin, heading, before = constant((problem, state.x, gradient, value))
        rounding = jnp.finfo(value.dtype).eps * jnp.maximum(1, jnp.abs(before))
        found = armijo(
            lambda length: fixed.value(add(origin, heading, -length), key=key), value, squared,
            jnp.minimum(state.length * (self.growth if self.reset == "increase" else 1.0), self.max_step),
            decrease=self.decrease, shrink=self.shrink, max_trials=self.max_trials, allowance=rounding,
            grow=self.growth if self.reset == "goldstein" else None, longest=self.max_step,
        )  # fmt: skip
        good = sound & (found.accepted | (found.value <= before + rounding))
        moves = good if stochastic else good & (residual > self.tolerance)
        x, velocity = add(state.x, gradient, -found.length), state.velocity
        if self._heavy:
            x = add(x, velocity, self.momentum)
            velocity = select(moves, subtract(x, state.x), velocity)
        in_a_row = jnp.where(sound, 0, state.in_a_row + 1).astype(jnp.int32)
        reported = value if stochastic or self._heavy else jnp.where(moves, found.value, value)
        reported = jnp.where(sound, reported, jnp.where(in_a_row < self.skips_in_a_row, state.value, jnp.nan))
        return SLSState(
            x=select(moves, x, state.x),
            value=reported.astype(state.value.dtype),
            residual=jnp.where(sound, residual, state.residual),
            length=jnp.where(sound, found.length, state.length).astype(state.length.dtype),
            velocity=velocity,
            skipped=state.skipped + ~sound,
            in_a_row=in_a_row,
            counters=state.counters.add(values=1 + found.trials, gradients=1, samples=samples),
        )

    def done(self, problem: Objective, state: SLSState):
        if problem.stochastic:
            return jnp.array(False)
        return (state.residual <= self.tolerance) & (state.in_a_row == 0)

    def answer(self, problem: Objective, state: SLSState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: SLSState) -> dict[str, Any]:
        return {
            "value": state.value, "residual": state.residual, "step_size": state.length, "skipped": state.skipped,
        }  # fmt: skip


def _on_one_batch(problem: Objective, x: PyTree, key: Array | None) -> tuple[Objective, int]:
    """The problem on the batch of this key, drawn once and not for every trial, and its number of examples.

    A problem of another type draws its batches from the key as well, and so the same ones, whenever it is evaluated.
    """
    if isinstance(problem, TargetProblem):
        problem = problem.at(x, key)
        return problem, jtu.tree_leaves(problem.batch(x))[0].shape[0]
    if isinstance(problem, Fit):
        if problem.stochastic:
            problem = dataclasses.replace(problem, data=problem.batch(key), batch_size=None)
        return problem, problem.count
    return problem, 0
