"""What a solve returns."""

from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .budget import Counters
from .tracing import is_tracer

__all__ = ["Result", "Solution"]

_Value = TypeVar("_Value")


class Result(eqx.Module):
    """How a solve ended: `Result.converged`, `.budget_spent`, `.nonfinite`, `.infeasible`, `.diverged`,
    `.interrupted`, `.stopped` (by a callback, or by a method that can get no further at this precision) or
    `.running`.

    It is one integer array `code`, so it passes through `jit` and `vmap`; `==` compares codes element by element and
    `str` names them. `Result.converged.code` is what a method's `done` may return.
    """

    code: Any

    running: ClassVar["Result"]
    converged: ClassVar["Result"]
    budget_spent: ClassVar["Result"]
    nonfinite: ClassVar["Result"]
    infeasible: ClassVar["Result"]
    diverged: ClassVar["Result"]
    interrupted: ClassVar["Result"]
    stopped: ClassVar["Result"]

    def __eq__(self, other):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.code == other.code if isinstance(other, Result) else NotImplemented

    def __hash__(self):
        return hash(("Result", int(self.code)))

    @property
    def usable(self) -> Any:
        """Whether the value is an answer: converged, out of budget, or stopped by a callback."""
        return (self.code == 1) | (self.code == 2) | (self.code == 7)

    def __str__(self):
        if is_tracer(self.code):
            return f"Result({self.code})"
        names = [_NAMES[int(code)] for code in np.ravel(self.code)]
        return names[0] if np.ndim(self.code) == 0 else "[" + ", ".join(names) + "]"

    def __repr__(self):
        return f"Result.{self}" if np.ndim(self.code) == 0 else str(self)


_NAMES = (
    "running",
    "converged",
    "budget_spent",
    "nonfinite",
    "infeasible",
    "diverged",
    "interrupted",
    "stopped",
)
for _code, _name in enumerate(_NAMES):
    setattr(Result, _name, Result(np.int32(_code)))


class Solution(eqx.Module, Generic[_Value]):
    """The answer of a solve, and an account of how it was found.

    - `value`: the solution, with the structure of the guess (a `PrimalDual` for `Constrained`).
    - `result`: how the solve ended.
    - `steps`: completed iterations. `counters`: what they cost.
    - `history`: what the method reported after each step: name -> array, with the step numbers under "step". All of it
      after an eager solve; the last `record` steps inside a transformation, where rows not reached are step -1.
    - `aux`: what the objective returned beside its value, at the answer.
    - `state`: the method's last state.
    - `stats`: an eager solve adds `seconds`, `compile_seconds`, and where a value stopped being finite.
    """

    value: _Value
    result: Result
    steps: Any
    counters: Counters
    history: dict[str, Any]
    aux: PyTree
    state: PyTree
    stats: dict[str, Any]

    def __repr__(self):
        if any(is_tracer(leaf) for leaf in jtu.tree_leaves((self.result, self.steps))):
            return "Solution(traced)"
        last = {
            name: float(np.ravel(column)[-1])
            for name, column in self.history.items()
            if name != "step" and np.ndim(column) == 1 and len(column)
        }
        spent = self.counters.asdict()
        return (
            f"Solution({self.result}, steps={np.asarray(self.steps)}"
            + "".join(f", {name}={number:.6g}" for name, number in last.items())
            + (f", {spent}" if spent else "")
            + (f", {self.stats['seconds']:.3g} s" if "seconds" in self.stats else "")
            + ")"
        )


def status_code(done: Any) -> Any:
    """What `Method.done` returned, as a code: True is converged."""
    done = jnp.asarray(done)
    if done.dtype == jnp.bool_:
        return jnp.where(done, Result.converged.code, Result.running.code).astype(jnp.int32)
    return done.astype(jnp.int32)
