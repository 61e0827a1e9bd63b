r"""What a network has to know of a matrix: the grid its unknowns lie on, what each cell is, and where constants are lost.

A fluid that no air touches has a pressure up to a constant: on each such component the matrix maps constants to zero, b has to have the mean zero, and so do
residuals and directions here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from ..core.errors import ArgumentError

__all__ = ["GridCells", "flat_product"]


def flat_product(operator: lx.AbstractLinearOperator) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
    """The product with flat vectors, whatever the shape of those of the operator."""
    shape = operator.in_structure().shape
    return lambda vector: jnp.ravel(operator.mv(vector.reshape(shape)))


class GridCells(NamedTuple):
    """The cells of a grid, on which vectors are flat, in row-major order.

    `mask` is 1 in fluid cells, 0 in air and -1 in solids. `component` numbers the connected parts of the fluid, and `closed` says whether the matrix maps the constants of
    the component of this number to zero.
    """

    mask: Float[Array, "*grid"]
    component: Int[Array, " n"]
    closed: Bool[Array, " n"]

    @staticmethod
    def of(operator: lx.AbstractLinearOperator) -> "GridCells":
        """Those of an operator, without a look at which components are closed. Raises `ArgumentError` for one that does not say what its grid is."""
        shape = getattr(operator, "grid", None)
        if shape is None and hasattr(operator, "fluid"):
            shape = operator.shape  # pyright: ignore[reportAttributeAccessIssue]
        if shape is None:
            name = type(operator).__name__
            raise ArgumentError("operator", f"must have a grid; a {name} has none.", "A PoissonGrid or a StencilOperator has one.")
        dtype = operator.in_structure().dtype
        if hasattr(operator, "fluid"):
            fluid, solid = (jnp.reshape(jnp.asarray(cells), shape) for cells in (operator.fluid, operator.solid))  # pyright: ignore[reportAttributeAccessIssue]
            mask = fluid.astype(dtype) - solid.astype(dtype)
        else:
            mask = jnp.ones(shape, dtype)
        return GridCells(mask, jnp.zeros(mask.size, jnp.int32), jnp.zeros(mask.size, bool))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.shape

    @property
    def size(self) -> int:
        return self.mask.size

    @property
    def dtype(self) -> Any:
        return self.mask.dtype

    @property
    def fluid(self) -> Bool[Array, " n"]:
        return self.mask.ravel() > 0

    def propose(self, net: Callable, residual: Float[Array, " n"]) -> Float[Array, " n"]:
        """The direction of a network: zero where there is no fluid."""
        direction = net(residual.reshape(self.shape), self.mask)
        return jnp.where(self.fluid, jnp.ravel(direction).astype(residual.dtype), 0)

    def means(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The mean over each closed component, by its number; zero for other numbers."""
        counts = jnp.zeros_like(vector).at[self.component].add(self.fluid.astype(vector.dtype))
        sums = jnp.zeros_like(vector).at[self.component].add(jnp.where(self.fluid, vector, 0))
        return jnp.where(self.closed, sums / jnp.maximum(counts, 1), 0)

    def projected(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """Without what lies outside of the fluid, and without the means over closed components."""
        vector = jnp.where(self.fluid, vector, 0)
        without = lambda v: v - jnp.where(self.fluid, self.means(v)[self.component], 0)
        return jax.lax.cond(jnp.any(self.closed), without, lambda v: v, vector)

    def with_components(self, operator: lx.AbstractLinearOperator) -> "GridCells":
        """With the components, and which of them are closed. Each cell takes the least number of its neighbours in the fluid, until none changes."""
        n = self.size
        fluid = self.fluid.reshape(self.shape)
        number = jnp.where(fluid, jnp.arange(n, dtype=jnp.int32).reshape(self.shape), n)

        def spread(carry):
            number, _ = carry
            new = number
            for axis, length in enumerate(self.shape):
                around = [(1, 1) if i == axis else (0, 0) for i in range(number.ndim)]
                padded = jnp.pad(new, around, constant_values=n)
                for start in (0, 2):
                    side = jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
                    new = jnp.where(fluid, jnp.minimum(new, side), n)
            return new, jnp.any(new != number)

        number, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (number, jnp.array(True)))
        component = jnp.where(fluid, number, 0).ravel()
        sums = jnp.abs(flat_product(operator)(self.fluid.astype(self.dtype)))
        most = jnp.zeros(n, self.dtype).at[component].max(jnp.where(self.fluid, sums, 0))
        cells = jnp.zeros(n, jnp.int32).at[component].add(self.fluid.astype(jnp.int32))
        size = jnp.max(jnp.abs(lx.diagonal(operator)))
        return self._replace(component=component, closed=(cells > 0) & (most <= 100 * jnp.finfo(self.dtype).eps * size))
