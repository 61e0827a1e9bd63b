r"""Proximal block coordinate descent.

One step visits every block i once, in order, with the others where they are:

$$x_i \leftarrow \mathrm{prox}_{\eta_i g_i}\big(x_i - \eta_i \nabla_i f(x)\big)$$

(Tseng 2001; the form with a gradient step in each block is in Blondel et al. 2022, appendix on fixed points). Each block has
its own step size, halved when the decrease that a Lipschitz gradient would guarantee does not come about.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Composite
from .arguments import need_between, need_not_negative, need_positive
from .vectors import dot, dtype_of, subtract

__all__ = ["BlockCoordinateDescent"]


class BlockCoordinateDescentState(eqx.Module):
    """`step_sizes` has one entry a block; `residual` is the root of the sum of squares of the moves over step sizes."""

    x: PyTree
    value: Array
    residual: Array
    step_sizes: Float[Array, "blocks"]
    counters: Counters


class BlockCoordinateDescent(Method):
    """Cyclic proximal gradient steps, a block at a time.

    The blocks are the leaves of the unknown if it has several, else its rows (the entries along its first axis). The
    `prox` of the `Composite` must be separable over blocks: it is applied with one block changed, and that block kept.
    Pick it when blocks differ much in curvature, or couple weakly. A step costs two evaluations for each block.

    **Arguments:**

    - `step_size`: a fixed one for all blocks (a number) or each (an array); `None` adapts, starting from `first_step`.
    - `growth`: what an adapted step size is multiplied by after it was accepted.
    - `tolerance`: converged when the norm of all moves of a step, each over its step size, is at most this.

    Raises `ArgumentError`, naming the argument, for a number out of its range, and for step sizes of other blocks.
    """

    problem = Composite
    reference: ClassVar[str] = "tseng2001convergence"

    step_size: Any = None
    first_step: Any = 1.0
    growth: Any = 1.2
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("step_size", self.step_size)
        need_positive("first_step", self.first_step)
        need_between("growth", self.growth, 0.999999, 1e6)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Composite, guess: PyTree, *, key: Array | None) -> BlockCoordinateDescentState:
        leaves = jtu.tree_leaves(guess)
        blocks = len(leaves) if len(leaves) > 1 else jnp.atleast_1d(leaves[0]).shape[0]
        start = self.first_step if self.step_size is None else self.step_size
        if jnp.ndim(start) and jnp.shape(start) != (blocks,):
            raise ArgumentError("step_size", f"has shape {jnp.shape(start)} for {blocks} blocks.")
        step_sizes = jnp.broadcast_to(jnp.asarray(start, dtype_of(guess)), (blocks,))
        value = problem.value(guess)
        residual = jnp.asarray(jnp.inf, value.dtype)
        return BlockCoordinateDescentState(guess, value, residual, step_sizes, Counters.zero().add(values=1))

    def step(
        self, problem: Composite, state: BlockCoordinateDescentState, *, key: Array | None
    ) -> BlockCoordinateDescentState:
        leaves, treedef = jtu.tree_flatten(state.x)
        blocks = len(state.step_sizes)
        if len(leaves) > 1:
            x, sizes, squares = state.x, state.step_sizes, jnp.zeros_like(state.residual)
            for i in range(blocks):
                take = lambda x, i=i: jtu.tree_leaves(x)[i]
                put = lambda x, block, i=i: jtu.tree_unflatten(
                    treedef, [block if j == i else leaf for j, leaf in enumerate(jtu.tree_leaves(x))]
                )
                x, size, square = self._visit(problem, x, take, put, sizes[i])
                sizes, squares = sizes.at[i].set(size), squares + square
        else:

            def visit(carry, i):
                x, squares = carry
                take = lambda x: jtu.tree_leaves(x)[0][i]
                put = lambda x, block: jtu.tree_map(lambda leaf: leaf.at[i].set(block), x)
                x, size, square = self._visit(problem, x, take, put, state.step_sizes[i])
                return (x, squares + square), size

            start = (state.x, jnp.zeros_like(state.residual))
            (x, squares), sizes = jax.lax.scan(visit, start, jnp.arange(blocks))
        trials = blocks if self.step_size is None else 0
        counters = state.counters.add(values=blocks + trials + 1, gradients=blocks, proximal=blocks)
        return BlockCoordinateDescentState(x, problem.value(x), _root(squares), sizes, counters)

    def _visit(self, problem, x, take, put, step_size):
        """One block: the new point, the block's new step size, and its squared move over the step size."""
        block = take(x)
        value, gradient = jax.value_and_grad(lambda block: problem.smooth.value(put(x, block)))(block)
        new = take(problem.prox(put(x, (block - step_size * gradient).astype(block.dtype)), step_size))
        move = subtract(new, block)
        square = dot(move, move) / step_size**2
        if self.step_size is None:
            bound = value + dot(gradient, move) + dot(move, move) / (2 * step_size)
            allowance = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
            good = problem.smooth.value(put(x, new)) <= bound + allowance
            new = jnp.where(good, new, block)
            step_size = jnp.where(good, self.growth * step_size, step_size / 2)
        return put(x, new), step_size, square

    def done(self, problem: Composite, state: BlockCoordinateDescentState):
        return state.residual <= self.tolerance

    def answer(self, problem: Composite, state: BlockCoordinateDescentState) -> PyTree:
        return state.x

    def metrics(self, problem: Composite, state: BlockCoordinateDescentState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}


def _root(squares):
    """The square root, with derivative zero at zero."""
    return jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
