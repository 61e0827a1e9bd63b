"""How an iteration on a scalar objective ends: converged, stuck, or falling without bound."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ..core.solution import Result

__all__ = ["BOTTOM", "status"]

BOTTOM = -1e20
"""An objective below this counts as unbounded: no problem with a minimum is stated in such units."""


def status(converged: Any, value: Array, stuck: Any) -> Array:
    """The code for `Method.done`: `converged`, else `diverged` below `BOTTOM`, else `stopped` if `stuck`."""
    code = jnp.where(stuck, Result.stopped.code, Result.running.code)
    code = jnp.where(value < BOTTOM, Result.diverged.code, code)
    return jnp.where(converged, Result.converged.code, code)
