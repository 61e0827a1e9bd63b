"""How an iteration on a scalar objective ends: converged, stuck, or falling without bound."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..core.solution import Result

__all__ = ["bottom", "status"]


def bottom(dtype: Any) -> float:
    """An objective below this counts as unbounded: no problem with a minimum is stated in such units.

    In single precision squares of such numbers would overflow, and the bottom is higher.
    """
    return -1e20 if np.dtype(dtype).itemsize > 4 else -1e15


def status(converged: Any, value: Array, stuck: Any) -> Array:
    """The code for `Method.done`: `converged`, else `diverged` below the `bottom`, else `stopped` if `stuck`."""
    code = jnp.where(stuck, Result.stopped.code, Result.running.code)
    code = jnp.where(value < bottom(value.dtype), Result.diverged.code, code)
    return jnp.where(converged, Result.converged.code, code)
