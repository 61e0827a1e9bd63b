"""Solvers for roots and fixed points."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from ... import smooth
from ...core.method import Method
from ...core.problem import FixedPoint, Problem, Root
from .solver import Called, OptStep, Solver

__all__ = ["AndersonAcceleration", "Bisection", "Broyden", "FixedPointIteration"]


@dataclasses.dataclass(eq=False, kw_only=True)
class FixedPointIteration(Solver):
    """`optimand.smooth.FixedPointIteration` of `fixed_point_fun(params, *args, **kwargs)`."""

    fixed_point_fun: Callable = dataclasses.field(kw_only=False)
    has_aux: bool = False
    maxiter: int = 100
    tol: float = 1e-5

    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        return FixedPoint(Called(self.fixed_point_fun, first=self.has_aux), args, kwargs)

    def as_method(self) -> Method:
        return smooth.FixedPointIteration(tolerance=self.tol)


@dataclasses.dataclass(eq=False, kw_only=True)
class AndersonAcceleration(FixedPointIteration):
    """`optimand.smooth.Anderson`. The mixing happens in every step."""

    history_size: int = 5
    beta: float = 1.0
    ridge: float = 1e-5
    mixing_frequency: Any = None
    passed_over: ClassVar[tuple[str, ...]] = ("mixing_frequency",)

    def as_method(self) -> Method:
        return smooth.Anderson(memory=self.history_size, damping=self.beta, ridge=self.ridge, tolerance=self.tol)


@dataclasses.dataclass(eq=False, kw_only=True)
class Broyden(Solver):
    """`optimand.smooth.Broyden`, for a root of `fun(params, *args, **kwargs)`."""

    fun: Callable = dataclasses.field(kw_only=False)
    has_aux: bool = False
    linesearch: Any = None
    condition: Any = None
    stepsize: Any = None
    maxls: int = 15
    decrease_factor: Any = None
    increase_factor: Any = None
    max_stepsize: Any = None
    min_stepsize: Any = None
    stop_if_linesearch_fails: Any = None
    history_size: int | None = None
    gamma: Any = None
    passed_over: ClassVar[tuple[str, ...]] = (
        "linesearch", "condition", "stepsize", "decrease_factor", "increase_factor", "max_stepsize", "min_stepsize",
        "stop_if_linesearch_fails", "gamma",
    )  # fmt: skip

    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        return Root(Called(self.fun, first=self.has_aux), args, kwargs)

    def as_method(self) -> Method:
        memory = {} if self.history_size is None else {"memory": self.history_size}
        return smooth.Broyden(max_trials=self.maxls, tolerance=self.tol, **memory)


@dataclasses.dataclass(eq=False, kw_only=True)
class Bisection(Solver):
    """The root of `optimality_fun(x, *args, **kwargs)` between `lower` and `upper`, by Optimistix's bisection.

    `check_bracket`: an interval without a change of sign is an error, else its end.
    """

    optimality_fun: Callable = dataclasses.field(kw_only=False)  # pyright: ignore[reportIncompatibleMethodOverride]
    lower: Any = dataclasses.field(kw_only=False)
    upper: Any = dataclasses.field(kw_only=False)
    maxiter: int = 30
    tol: float = 1e-5
    check_bracket: bool = True
    has_aux: bool = False

    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        return Root(Called(self.optimality_fun, first=self.has_aux), args, kwargs)

    def as_method(self) -> Method:
        solver = optx.Bisection(rtol=0.0, atol=self.tol, flip="detect")
        return smooth.Optimistix(solver, options={"lower": self.lower, "upper": self.upper})

    def run(self, init_params: PyTree = None, *args: Any, **kwargs: Any) -> OptStep:
        middle = 0.5 * (jnp.asarray(self.lower, float) + jnp.asarray(self.upper, float))
        return super().run(middle if init_params is None else init_params, *args, **kwargs)
