"""Any Optimistix solver as a method, one of its steps at a time.

The solver's own `init`, `step`, `terminate` and `postprocess` are called inside the loop of `solve`, so that history,
checkpoints, budgets and adjoints are ours. What its state holds beside arrays (recorded functions) never changes during a
solve, and is kept apart.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError, PairingError
from ..core.method import Method
from ..core.problem import FixedPoint, LeastSquares, Objective, Root
from ..core.solution import Result

__all__ = ["Optimistix"]


class _Held:
    """What is not an array in a solver's state. Two of one solve are equal, as Optimistix itself relies on."""

    def __init__(self, tree: PyTree):
        self.tree = tree

    def __eq__(self, other):
        return isinstance(other, _Held)

    def __hash__(self):
        return hash(_Held)


class OptimistixState(eqx.Module):
    """`arrays` are those of the solver's state, `held` the rest of it."""

    x: PyTree
    arrays: PyTree
    held: _Held = eqx.field(static=True)
    counters: Counters

    @property
    def inner(self) -> Any:
        """The solver's state."""
        return eqx.combine(self.arrays, self.held.tree)


class Optimistix(Method):
    """Any Optimistix minimiser, least-squares solver, root finder or fixed-point solver.

    Pick it for the trust-region and dogleg methods, nonlinear conjugate gradients, Nelder-Mead, Chord or Bisection that
    this room does not have, or a solver of your own on that interface.

    **Arguments:**

    - `solver`: with its tolerances, as in `optimistix.Dogleg(rtol=1e-6, atol=1e-6)`.
    - `options`: the dictionary that some solvers take (bounds of a bisection).

    A step is one of the solver, counted as one evaluation and one derivative: an upper bound for most. Solvers that end
    unsuccessfully give the result `diverged`. Raises `ArgumentError` if `solver` is not one, and `PairingError` if it is
    of another kind than the problem.
    """

    problem = (Objective, LeastSquares, Root, FixedPoint)
    reference: ClassVar[str] = "rader2024optimistix"

    solver: Any
    options: dict[str, Any] | None = None

    def __check_init__(self):
        if not isinstance(self.solver, tuple(_KINDS)):
            raise ArgumentError("solver", f"must be an Optimistix solver, not {type(self.solver).__name__}.")

    def _function(self, problem):
        """The solver's view of the problem: `fn(y, args) -> (out, aux)`."""
        for kind, (wanted, function, _) in _KINDS.items():
            if isinstance(self.solver, kind):
                if not isinstance(problem, wanted):
                    name = type(self.solver).__name__
                    message = f"{name} solves {wanted.__name__} problems, not {type(problem).__name__}."
                    raise PairingError("solver", message)
                return lambda y, args: (function(problem, y), None)
        raise AssertionError

    def _spent(self) -> dict[str, int]:
        return next(spent for kind, (_, _, spent) in _KINDS.items() if isinstance(self.solver, kind))

    def init(self, problem: Any, guess: PyTree, *, key: Array | None) -> OptimistixState:
        if getattr(problem, "stochastic", False):
            raise ArgumentError("problem", "has random batches, which Optimistix solvers do not expect.", "Try Optax.")
        fn = self._function(problem)
        out_struct, aux_struct = jax.eval_shape(fn, guess, None)
        inner = self.solver.init(fn, guess, None, self.options or {}, out_struct, aux_struct, frozenset())
        arrays, rest = eqx.partition(inner, eqx.is_array)
        return OptimistixState(guess, arrays, _Held(rest), Counters.zero())

    def step(self, problem: Any, state: OptimistixState, *, key: Array | None) -> OptimistixState:
        fn = self._function(problem)
        x, inner, _ = self.solver.step(fn, state.x, None, self.options or {}, state.inner, frozenset())
        arrays = eqx.filter(inner, eqx.is_array)
        return OptimistixState(x, arrays, state.held, state.counters.add(**self._spent()))

    def done(self, problem: Any, state: OptimistixState):
        fn = self._function(problem)
        ended, result = self.solver.terminate(fn, state.x, None, self.options or {}, state.inner, frozenset())
        failed = result != optx.RESULTS.successful
        code = jnp.where(ended, Result.converged.code, Result.running.code)
        return jnp.where(failed, Result.diverged.code, code)

    def answer(self, problem: Any, state: OptimistixState) -> PyTree:
        fn, inner = self._function(problem), state.inner
        successful = optx.RESULTS.successful
        x, _, _ = self.solver.postprocess(
            fn, state.x, None, None, self.options or {}, inner, frozenset(), successful
        )  # fmt: skip
        return jtu.tree_map(lambda new, old: jnp.asarray(new, old.dtype), x, state.x)

    def metrics(self, problem: Any, state: OptimistixState) -> dict[str, Any]:
        inner = state.inner
        value: Any = getattr(getattr(inner, "f_info", inner), "f", None)
        return {"value": value} if eqx.is_array(value) and value.ndim == 0 else {}


_KINDS: dict[type, tuple[type, Any, dict[str, int]]] = {
    optx.AbstractMinimiser: (Objective, lambda problem, y: problem.value(y), {"values": 1, "gradients": 1}),
    optx.AbstractLeastSquaresSolver: (
        LeastSquares,
        lambda problem, y: problem.residual(y),
        {"residuals": 1, "jacobians": 1},
    ),
    optx.AbstractRootFinder: (Root, lambda problem, y: problem.residual(y), {"residuals": 1, "jacobians": 1}),
    optx.AbstractFixedPointSolver: (FixedPoint, lambda problem, y: problem.apply(y), {"residuals": 1}),
}
