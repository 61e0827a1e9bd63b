"""How a solution is found: the contract of every method, ours and yours."""

import abc
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree

from .budget import Counters
from .problem import Objective, Problem

__all__ = ["Method"]


class Method(eqx.Module):
    """An iteration that ends at a value which satisfies a problem's optimality conditions.

    A method is a frozen module whose fields are its hyperparameters. It holds no data and no state: `init` makes the
    state, an `equinox.Module` of arrays whose structure, shapes and dtypes never change; `step` maps it to the next
    one; `done` says whether it is good enough; `answer` reads the value out of it. All are pure functions. A method passes
    `optimand.core.checks.check_method` before anybody relies on it.

    Class variables say what it is for:

    - `problem`: the type of problem it solves, or a tuple of types.
    - `reference`: the key of its source in `references.bib`.
    - `host`: its step runs Python that cannot be traced (SciPy, a simulator, a language model). Nothing else changes:
      gradients, `jit` and `vmap` still work, through a callback. (On the CPU a callback with arrays above 100 kB waits
      for a thread of the runtime: as many compiled host solves at once, from threads of your own, as the machine has
      cores can wait for each other for ever; where a process may use one core only, a single one can. Set
      `jax_cpu_enable_async_dispatch` to False before you do that.)
    - `stochastic`: it draws random numbers, so `solve` insists on a key.
    - `requires_x64`: it is wrong or useless in single precision, and is refused there.
    """

    problem: ClassVar[type[Problem] | tuple[type[Problem], ...]] = Objective
    reference: ClassVar[str] = ""
    host: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    requires_x64: ClassVar[bool] = False

    def check(self, problem: Any, guess: PyTree) -> None:
        """Raise an `ArgumentError` for a problem of the right type that this method cannot solve, before anything is compiled.

        Only here are the problem's arrays at hand as numbers; inside a transformation they are traced, and pass.
        """
        del problem, guess

    @abc.abstractmethod
    def init(self, problem: Any, guess: PyTree, *, key: Array | None) -> Any:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, problem: Any, state: Any, *, key: Array | None) -> Any:
        """The state after one more iteration. `key` differs from step to step, and is the same when a step is redone."""

    @abc.abstractmethod
    def done(self, problem: Any, state: Any) -> Any:
        """Whether the state has converged: a boolean, or the `code` of a `Result` (`Result.running` to go on)."""

    @abc.abstractmethod
    def answer(self, problem: Any, state: Any) -> PyTree:
        """The value the state stands for, with the structure of the guess."""

    def metrics(self, problem: Any, state: Any) -> dict[str, Any]:
        """Scalars to record after each step, read from the state at no cost. Standard names: `value`, `residual`."""
        del problem, state
        return {}

    def counters(self, state: Any) -> Counters:
        """What has been spent so far: by default the field `counters` of the state, if it has one."""
        return getattr(state, "counters", None) or Counters.zero()
