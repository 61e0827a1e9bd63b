"""Checks of numbers that a user gives: tolerances, step sizes, counts. Traced values cannot be looked at, and pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import ArgumentError
from .tracing import is_tracer

__all__ = ["need_between", "need_count", "need_not_negative", "need_positive"]


def need_not_negative(name: str, number: Any) -> None:
    """A tolerance or a rate: zero or more. None passes, here and below: it stands for a default."""
    if _known(name, number) and not np.all(np.asarray(number) >= 0):
        raise ArgumentError(name, f"must not be negative, not {number!r}.")


def need_positive(name: str, number: Any) -> None:
    """A step size or a scale: more than zero."""
    if _known(name, number) and not np.all(np.asarray(number) > 0):
        raise ArgumentError(name, f"must be positive, not {number!r}.")


def need_between(name: str, number: Any, low: Any, high: Any) -> None:
    """A fraction strictly between two numbers."""
    if _known(name, number) and not np.all((low < np.asarray(number)) & (np.asarray(number) < high)):
        raise ArgumentError(name, f"must lie strictly between {low:g} and {high:g}, not {number!r}.")


def need_count(name: str, number: Any, least: int = 1) -> None:
    """A whole number of things, never None."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
        raise ArgumentError(name, f"must be a whole number, at least {least}, not {number!r}.")


def _known(name: str, number: Any) -> bool:
    if number is None or is_tracer(number) or callable(number):  # a schedule is a function of the step
        return False
    known = isinstance(number, int | float | np.ndarray | np.generic | jax.Array) and not isinstance(number, bool)
    if not known or not any(jnp.issubdtype(np.asarray(number).dtype, kind) for kind in (np.integer, np.floating)):
        raise ArgumentError(name, f"must be a number, not {number!r}.")
    return True
