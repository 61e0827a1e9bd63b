"""A sequence of systems whose solver has a parameter that is learned on the way."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer, need_callable
from .learners import ParameterLearner
from .sequence import SequenceMethod, answer_of, need_solver, solved_by

__all__ = ["TunedSequence"]


class TunedSequence(SequenceMethod):
    """Before each system a learner picks the parameter of the solver, and sees the iterations that the solve took: nothing else (Khodak et al. 2024).

    **Arguments:**

    - `solver`: takes a parameter, a traced number of the learner's grid, to a lineax solver: `lambda omega: CG(1e-8,
      preconditioner=SSOR(omega))`.
    - `learner`: `TsallisINF`, `TsallisINFContextual` or `ChebCB`.
    - `context`: what the learner may know before the solve: a function of the parameter of the system. `LinearSequence.parameters` may hold it.
    - `cost`: what is to become small, a function of lineax's solution; by default its iterations, and those at the limit for a solver that
      failed.
    - `warm`: start each system from the solution of the one before.

    A context outside of the `context_bounds` of the learner is moved to the nearest one. The first that is warns, a `RuntimeWarning`; how
    many were stands in
    the learner's state as `clipped`.

    It draws random numbers: `om.solve` needs a key. Raises `ArgumentError`, naming the argument, for one that is none of these, and what
    the solver raises for a value of the
    grid.

    ```python
    stream = om.physics.ShiftedLaplacian(jax.random.key(0), 6, lowest=0.1)
    sequence = om.linear.LinearSequence(lambda step: stream.system(step)[:2], jnp.arange(8))
    learner = om.linear.ChebCB(jnp.linspace(1.0, 1.9, 5), stream.context_bounds)
    solver = lambda omega: om.linear.CG(1e-4, preconditioner=om.linear.SSOR(omega))
    method = om.linear.TunedSequence(solver, learner, context=lambda step: stream.system(step)[2])
    om.solve(sequence, method, key=jax.random.key(1)).state.chosen
    ```
    """

    reference: ClassVar[str] = "khodak2024learning"
    stochastic: ClassVar[bool] = True

    solver: Callable
    learner: Any
    context: Callable | None = None
    cost: Callable | None = None
    warm: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        need_callable(self.solver, "solver")
        if not isinstance(self.learner, ParameterLearner):
            raise ArgumentError("learner", f"must be a ParameterLearner, not {type(self.learner).__name__}.", "TsallisINF(grid)")
        if not is_tracer(self.learner.grid):
            for value in np.asarray(self.learner.grid):
                self.solver(value)  # one that it refuses is named here; where it is traced it would not be noticed
        for name in ("context", "cost"):
            if getattr(self, name) is not None:
                need_callable(getattr(self, name), name)

    def begin(self, operator: lx.AbstractLinearOperator) -> PyTree:
        return self.learner.init()

    def solve_next(self, memory, operator, rhs, *, guess=None, parameter=None, key=None):
        context = jnp.asarray(0.0) if self.context is None else self.context(parameter)
        before = getattr(memory, "clipped", None)
        index, memory = self.learner.choose(memory, context, key)
        if before is not None:
            first = (before == 0) & (memory.clipped > 0)
            warn = functools.partial(_warn_outside, getattr(self.learner, "context_bounds", ()))
            jax.lax.cond(first, lambda: jax.debug.callback(warn, first, context), lambda: None)
        chosen = jnp.asarray(self.learner.grid)[index]
        solver = self.solver(jax.lax.stop_gradient(chosen))
        need_solver(solver)
        solution = solved_by(solver, operator, rhs, guess)
        answer = answer_of(solution, chosen)
        cost = answer.iterations.astype(chosen.dtype) if self.cost is None else self.cost(solution)
        return answer, self.learner.learn(memory, cost)


def _warn_outside(bounds, first, context):
    if first:  # under `vmap` the others get here, too
        place = f"the context {float(context):.4g} lies outside of context_bounds {tuple(bounds)}"
        warnings.warn(f"{place}: it is moved to the nearest bound, and later ones will be; the state counts them as `clipped`.", RuntimeWarning, stacklevel=2)
