"""What the solvers of this face share: `run`, `init_state`, `update`, and how they are differentiated."""

import abc
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...core.adjoint import Adjoint, Implicit, Unrolled
from ...core.budget import Budget
from ...core.errors import ArgumentError
from ...core.method import Method
from ...core.problem import Minimize, Problem
from ...core.progress import Progress
from ...core.solve import solve
from ...core.tracing import as_arrays
from ...smooth.vectors import norm
from ..derivatives import with_gradient

__all__ = ["OptStep", "Solver", "SolverState", "absent", "objective"]


class OptStep(NamedTuple):
    """What `run` and `update` return."""

    params: Any
    state: Any


class SolverState(eqx.Module):
    """Where a solver is.

    `iter_num`, `error` and `value` are those of jaxopt, as far as the method reports them (NaN where not); `aux` is what
    the objective returns beside its value; `inner` is the state of the method.
    """

    iter_num: Array
    error: Array
    value: Array
    aux: PyTree
    inner: PyTree


@dataclasses.dataclass(eq=False, kw_only=True)
class Solver(abc.ABC):
    """The abstract solver: a problem without its arguments, with a method. Subclasses say which."""

    maxiter: int = 500
    tol: float = 1e-3
    verbose: bool | int = False
    implicit_diff: bool = True
    implicit_diff_solve: Any = None
    jit: Any = None
    unroll: Any = None

    # Settings of algorithms that are not ours: accepted, so that code runs, with a warning.
    passed_over: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        given = [name for name in self.passed_over if getattr(self, name) is not None]
        if given:
            message = f"{type(self).__name__}: {', '.join(given)} have no counterpart in the method behind it, and are passed over."
            warnings.warn(message, UserWarning, stacklevel=3)

    @abc.abstractmethod
    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        """The problem for arguments like those that `run` takes after the parameters."""

    @abc.abstractmethod
    def as_method(self) -> Method:
        """The method that is run."""

    def run(self, init_params: PyTree, *args: Any, **kwargs: Any) -> OptStep:
        """Solve from `init_params`. Differentiable in the arguments, under `jit` and `vmap` too."""
        problem, method = self.as_problem(*args, **kwargs), self.as_method()
        solution = solve(
            problem, method, init_params, budget=Budget(steps=self.maxiter), adjoint=self.adjoint(*args, **kwargs),
            callbacks=[Progress()] if self.verbose else [], throw=False,
        )  # fmt: skip
        history = {name: column[-1] for name, column in solution.history.items() if len(column)}
        nan = jnp.asarray(jnp.nan)
        error, value = (jnp.asarray(history.get(name, nan)) for name in ("residual", "value"))
        state = SolverState(jnp.asarray(solution.steps), error, value, solution.aux, solution.state)
        return OptStep(self.params(solution.value), state)

    def params(self, value: PyTree) -> PyTree:
        """The parameters in the value of a solution."""
        return value

    def adjoint(self, *args: Any, **kwargs: Any) -> Adjoint:
        """How a solution is differentiated."""
        del args, kwargs
        if self.implicit_diff_solve is not None:
            solve_system = self.implicit_diff_solve
            message = f"implicit_diff_solve={solve_system} is passed over: the linear solver is chosen from the problem."
            warnings.warn(message, UserWarning, stacklevel=3)
        return Implicit() if self.implicit_diff else Unrolled()

    def init_state(self, init_params: PyTree, *args: Any, **kwargs: Any) -> SolverState:
        """The state before the first `update`."""
        problem = self.as_problem(*args, **kwargs)
        guess = problem.start(init_params)
        problem = problem.traced(guess)
        return self._state(problem, self.as_method().init(problem, guess, key=None), jnp.int32(0))

    def update(self, params: PyTree, state: SolverState, *args: Any, **kwargs: Any) -> OptStep:
        """One step. It goes on from where the last one led; `params` are that point."""
        problem = self.as_problem(*args, **kwargs)
        problem = problem.traced(problem.start(params))
        inner = self.as_method().step(problem, state.inner, key=None)
        value = self.as_method().answer(problem, inner)
        return OptStep(self.params(value), self._state(problem, inner, state.iter_num + 1))

    def _state(self, problem, inner, number) -> SolverState:
        metrics = self.as_method().metrics(problem, inner)
        error, value = (jnp.asarray(metrics.get(name, jnp.nan)) for name in ("residual", "value"))
        return SolverState(number, error, value, None, inner)

    def optimality_fun(self, params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        """Zero at a solution."""
        return self.as_problem(*args, **kwargs).optimality(as_arrays(params))

    def l2_optimality_error(self, params: PyTree, *args: Any, **kwargs: Any) -> Array:
        """The norm of `optimality_fun`."""
        return norm(self.optimality_fun(params, *args, **kwargs))


class Called(eqx.Module):
    """`fun(x, *args, **kwargs)` of three positional arguments, the first output of it, or the rest."""

    fun: Callable
    value_and_grad: bool = eqx.field(static=True, default=False)
    first: bool = eqx.field(static=True, default=False)

    def __call__(self, x, args, kwargs):
        if self.value_and_grad:
            return with_gradient(lambda x, *a: _first(self._out(x, *a)), lambda x, *a: self._out(x, *a)[1])(x, args, kwargs)
        out = self._out(x, args, kwargs)
        return out[0] if self.first else out

    def _out(self, x, args, kwargs):
        return self.fun(x, *args, **kwargs)


def _first(out):
    """The value in (value, gradient) or ((value, aux), gradient)."""
    return out[0][0] if isinstance(out[0], tuple) else out[0]


def objective(fun: Callable, args: tuple, kwargs: dict, *, value_and_grad: bool, has_aux: bool) -> Minimize:
    """The problem of a function as jaxopt's solvers take it."""
    return Minimize(Called(fun, value_and_grad), args, kwargs, has_aux=has_aux and not value_and_grad)


def absent(name: str, hint: str) -> Callable[..., Any]:
    """What stands for a name of jaxopt that is not here: it says so when it is called."""

    def refuse(*args: Any, **kwargs: Any):
        raise ArgumentError(name, "of jaxopt is not here.", hint)

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Not here. {hint}"
    return refuse
