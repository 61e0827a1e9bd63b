"""Every error that a user can cause. Each says what was wrong, where (the argument, leaf or step), and what to do.

All of them are `OptimandError`s; those about an argument are also `ValueError`s (or `TypeError`s), so that code which
does not know this library can catch them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .solution import Solution

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "GradientError",
    "GuessError",
    "Interrupted",
    "MissingExtra",
    "ObjectiveError",
    "OptimandError",
    "PairingError",
    "SolveError",
]


class OptimandError(Exception):
    """The base of all errors raised on purpose by optimand."""


class ArgumentError(OptimandError, ValueError):
    """An argument has a wrong value.

    **Arguments:** `argument` is its name, `problem` what is wrong with it, `hint` what to do instead.
    """

    def __init__(self, argument: str, problem: str, hint: str = ""):
        self.argument = argument
        self.problem = problem
        self.hint = hint
        super().__init__(f"`{argument}` {problem}" + (f" {hint}" if hint else ""))

    def __reduce__(self):  # exceptions with several arguments need help to cross a process boundary
        return type(self), (self.argument, self.problem, self.hint)


class GuessError(ArgumentError):
    """The guess has a structure, shape or dtype that the problem cannot start from."""


class ObjectiveError(ArgumentError):
    """A function of the problem returns something that cannot be optimised (a vector, an integer, NaN, ...)."""


class GradientError(ArgumentError, TypeError):
    """A derivative was asked for where none exists (integer arrays, ...)."""


class PairingError(ArgumentError, TypeError):
    """This method does not solve this type of problem; the message names methods that do."""


class CheckpointError(ArgumentError):
    """A checkpoint is damaged, or belongs to another problem, method or version."""


class MissingExtra(OptimandError, ImportError):
    """An optional dependency is not installed; says which extra brings it."""

    def __init__(self, extra: str, package: str):
        self.extra = extra
        self.package = package
        super().__init__(f"this needs `{package}`, which is not installed: pip install 'optimand[{extra}]'")

    def __reduce__(self):
        return type(self), (self.extra, self.package)


class SolveError(OptimandError, RuntimeError):
    """A solve ended without a usable answer. `solution` holds the best finite value found: nothing is lost."""

    def __init__(self, message: str, solution: "Solution[Any]"):
        self.solution = solution
        super().__init__(message)


class Interrupted(SolveError, KeyboardInterrupt):
    """A solve was stopped by Ctrl-C. `solution` holds the best value so far; with a `Checkpoint` it can be resumed."""
