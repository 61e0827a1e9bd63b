r"""Many steps of a simulator, and the memory that their derivative takes.

For T steps of a state of size S, reverse-mode differentiation keeps

| `checkpoint` | states kept | steps computed again |
|---|---|---|
| `"none"` | all that each step computes inside | none |
| `"step"` | T | each once |
| `"sqrt"` | 2 sqrt(T) | each twice |

Griewank, "Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation" (1992),
is the general theory of which these are the two simplest schedules.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..core.errors import ArgumentError, OptimandError
from .simulator import Simulator

__all__ = ["SimulationError", "Trajectory", "rollout"]


class SimulationError(OptimandError, ArithmeticError):
    """A simulation became infinite or NaN. `trajectory` holds what was computed, its states finite ones."""

    def __init__(self, message: str, trajectory: "Trajectory"):
        self.trajectory = trajectory
        super().__init__(message)


class Trajectory(eqx.Module):
    """What `rollout` returns.

    - `final`: the last state; if a step gave a number that is not finite, the last state before it.
    - `observations`: what was observed, stacked over the frames on the first axis.
    - `finite`: for each frame, whether all steps up to it were finite.
    """

    final: PyTree
    observations: PyTree
    finite: Bool[Array, " frames"]
    every: int = eqx.field(static=True)

    def require_finite(self) -> "Trajectory":
        """This trajectory, if all of it is finite; otherwise raise `SimulationError`. (Not under `jit`.)"""
        finite = np.asarray(self.finite)
        if not finite.all():
            frame = int(np.argmin(finite))
            first, last = frame * self.every + 1, (frame + 1) * self.every
            raise SimulationError(
                f"the state is not finite after step {last} (it was after step {first - 1}): the time step may be too long.",
                self,
            )
        return self


def rollout(
    simulator: Simulator,
    state: PyTree,
    controls: PyTree = None,
    *,
    steps: int | None = None,
    observe: Callable[[PyTree], PyTree] | None = None,
    every: int = 1,
    checkpoint: str = "step",
    window: int | None = None,
) -> Trajectory:
    """Let a simulator run.

    ```python
    flow = om.physics.NavierStokes2D(n=64, reynolds=1e3, dt=0.05)
    vorticity = om.physics.gaussian_field(jax.random.key(0), (64, 64), scale=7**3)
    trajectory = om.physics.rollout(flow, flow.initial(vorticity), steps=60, every=4)
    trajectory.observations.vorticity                                  # (15, 64, 64)
    ```

    **Arguments:**

    - `state`: where to begin.
    - `controls`: a pytree whose leaves have the steps on their first axis; `None` for none.
    - `steps`: how many; not needed if there are controls.
    - `observe`: what to store of a state; `simulator.observe` by default.
    - `every`: store each so many steps; must divide the steps. The state at the beginning is not stored.
    - `checkpoint`: what reverse-mode differentiation keeps, see the table of this module.
    - `window`: if given, no derivative passes through the state each so many steps: a truncated, biased gradient.

    Batches are mapped: `jax.vmap(lambda state: rollout(simulator, state, steps=60))(states)`.

    Raises `ArgumentError` for counts that do not fit. A number that is not finite raises nothing here: see `Trajectory`.
    """
    lengths = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jtu.tree_leaves(controls)}
    if len(lengths) > 1 or None in lengths:
        raise ArgumentError("controls", "must have the steps on the first axis of all leaves, as many on each.")
    if lengths:
        (length,) = lengths
        if steps not in (None, length):
            raise ArgumentError("steps", f"is {steps}, but there are controls for {length}.")
        steps = length
    if steps is None or steps < 1:
        raise ArgumentError("steps", f"must be a positive integer; it is {steps}.", "Give it, or give controls.")
    if every < 1 or steps % every:
        raise ArgumentError("every", f"is {every}, which does not divide {steps} steps.")
    if checkpoint not in ("none", "step", "sqrt"):
        raise ArgumentError("checkpoint", f"must be 'none', 'step' or 'sqrt'; it is {checkpoint!r}.")
    if window is not None and window < 1:
        raise ArgumentError("window", f"must be a positive integer; it is {window}.")
    observe = simulator.observe if observe is None else observe
    frames = steps // every

    def one_step(carry, item):
        state, finite = carry
        index, control = item
        if window is not None:
            cut = index % window == 0
            state = jtu.tree_map(lambda x: jnp.where(cut, jax.lax.stop_gradient(x), x), state)
        new = simulator.step(state, control)
        leaves = [jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(new) if jnp.issubdtype(x.dtype, jnp.inexact)]
        finite = finite & jnp.all(jnp.stack(leaves)) if leaves else finite
        return (jtu.tree_map(lambda x, old: jnp.where(finite, x, old), new, state), finite), None

    def one_frame(carry, items):
        step = one_step if checkpoint == "none" else jax.checkpoint(one_step)
        carry, _ = jax.lax.scan(step, carry, items)
        return carry, (observe(carry[0]), carry[1])

    items = (jnp.arange(steps), controls)
    items = jtu.tree_map(lambda x: jnp.reshape(x, (frames, every, *x.shape[1:])), items)
    carry = (jtu.tree_map(jnp.asarray, state), jnp.asarray(True))
    block = math.isqrt(frames)
    if checkpoint == "sqrt" and block > 1:
        carry, (observations, finite) = _scan_in_blocks(one_frame, carry, items, frames, block)
    else:
        carry, (observations, finite) = jax.lax.scan(one_frame, carry, items)
    return Trajectory(carry[0], observations, finite, every)


def _scan_in_blocks(function: Callable, carry: PyTree, items: PyTree, length: int, block: int):
    """A scan in `block`s, and a shorter one for the rest, of which only the states between them are kept."""

    @jax.checkpoint
    def one_block(carry, items):
        return jax.lax.scan(jax.checkpoint(function), carry, items)

    whole = length // block * block
    blocks = jtu.tree_map(lambda x: x[:whole].reshape(length // block, block, *x.shape[1:]), items)
    carry, outputs = jax.lax.scan(one_block, carry, blocks)
    outputs = jtu.tree_map(lambda x: x.reshape(whole, *x.shape[2:]), outputs)
    if whole < length:
        carry, rest = one_block(carry, jtu.tree_map(lambda x: x[whole:], items))
        outputs = jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), outputs, rest)
    return carry, outputs
