r"""What a partial differential equation must say about itself to be imposed on a linear combination of basis fields.

The field is \(u = \sum_i w_i b_i\). Every differential term of the residual is linear in \(b\), so it is computed once, on
the whole grid, and weighted afterwards: a residual inside the local solve is a few small products and one pointwise
nonlinearity, never a derivative of a field. (Chalapathi, Du and Krishnapriyan 2024, section 3.)
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from .grid import SpaceTimeGrid

__all__ = ["LinearTermsPDE", "norm"]


def norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The Euclidean norm, with derivative zero at zero."""
    square = jnp.sum(jnp.square(x))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


class LinearTermsPDE(eqx.Module):
    """A residual whose differential terms are linear in the field. Abstract: write `terms` and `pointwise`.

    A subclass has a field or property `grid`. Its numbers should be static fields (or Python floats declared static): a
    model carries its equation, and arrays in it would be trained with the weights.

    - `terms(b, grid)`: dict of arrays with the shape of `b`, (*grid, N), each linear in `b`. Checked when the equation is
      built, on random fields; the error names the term that is not linear.
    - `pointwise(q, x, params)`: the residual at one point, a scalar or a few rows; `q` holds the weighted terms there.
    - `offset(data)`: what is added to the weighted terms (of an initial condition that the field is built on), by name.
    - `rows(b, data)`: extra linear rows (A, y, weight): initial and boundary conditions, weight * (A w - y).
    - `prepare(b, data)`, `assemble(combined, data)`: what is done to the basis before, and to the combination after, so
      that conditions hold by construction.
    - `mask()`: the points of the grid that have a residual row.

    ```python
    class Heat(om.informed.LinearTermsPDE):
        grid: om.informed.SpaceTimeGrid

        def terms(self, b, grid):
            d = lambda a, axis: jnp.gradient(a, grid.spacing(axis), axis=axis)
            return {"u_t": d(b, 0), "u_xx": d(d(b, 1), 1)}

        def pointwise(self, q, x, params):
            return q["u_t"] - 0.1 * q["u_xx"]
    ```
    """

    grid: eqx.AbstractVar[SpaceTimeGrid]
    start: ClassVar[float] = 1.0  # every weight, before the first step of a local solve

    @abc.abstractmethod
    def terms(self, b: Float[Array, "..."], grid: SpaceTimeGrid) -> dict[str, Array]:
        """The differential terms of the basis fields `b`, shape (*grid, N)."""

    @abc.abstractmethod
    def pointwise(self, q: dict[str, Array], x: Array, params: PyTree) -> Array:
        """The residual at one point, from the weighted terms there."""

    def offset(self, data: PyTree) -> dict[str, Array]:
        """Arrays of shape `grid.shape` added to the weighted terms."""
        del data
        return {}

    def rows(self, b: Float[Array, "..."], data: PyTree) -> tuple[Array, Array, Any] | None:
        """Extra linear rows: (A of shape (rows, N), y of shape (rows,), weight)."""
        del b, data
        return None

    def params(self, data: PyTree) -> PyTree:
        """What `pointwise` gets as `params`: parameters of the equation in this sample."""
        del data
        return None

    def prepare(self, b: Float[Array, "..."], data: PyTree) -> Float[Array, "..."]:
        """The basis fields that are combined, from those of the network."""
        del data
        return b

    def assemble(self, combined: Float[Array, "..."], data: PyTree) -> Float[Array, "..."]:
        """The field, from the combination of basis fields."""
        del data
        return combined

    def mask(self) -> np.ndarray:
        """Where there is a residual row: booleans of shape `grid.shape`."""
        return np.ones(self.grid.shape, bool)

    def inputs(self, data: PyTree) -> Float[Array, "channels ..."]:
        """What the network sees: normalised coordinates and the data, channels first."""
        fields = [jnp.broadcast_to(leaf, self.grid.shape) for leaf in jax.tree.leaves(data)]
        return jnp.concatenate([jnp.asarray(self.grid.normalised()), jnp.stack(fields)]) if fields else jnp.asarray(
            self.grid.normalised()
        )  # fmt: skip

    def check(self, data: PyTree) -> None:
        """Raise an `ArgumentError` for data (one sample, concrete) that the equation cannot take."""
        for leaf in jax.tree.leaves(data):
            bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
            if len(bad):
                where = tuple(int(i) for i in bad[0])
                raise ArgumentError("inputs", f"has a value that is not finite at index {where}.", "Remove it.")

    def residual(self, field: Float[Array, "..."], data: PyTree) -> Array:
        """The residual of a whole field afresh, shape (*grid, rows), zero where `mask` says there is no row."""
        terms = {name: term[..., 0] for name, term in self.terms(field[..., None], self.grid).items()}
        x = jnp.asarray(self.grid.coordinates(), field.dtype)
        params = self.params(data)

        def at_point(q, x):
            return jnp.atleast_1d(self.pointwise(q, x, params))

        evaluate = at_point
        for _ in self.grid.shape:
            evaluate = jax.vmap(evaluate)
        return jnp.where(self.mask()[..., None], evaluate(terms, x), 0.0)

    def penalties(self, field: Float[Array, "..."], data: PyTree) -> dict[str, Array]:
        """Terms of the loss beside the residual, by name: what the field is to satisfy at the border."""
        del field, data
        return {}

    def loss(self, field: Float[Array, "..."], data: PyTree) -> Float[Array, ""]:
        """The training loss of an assembled field: the norm of its residual, and the penalties. No labels."""
        return sum(self.penalties(field, data).values(), start=norm(self.residual(field, data)))

    def __check_init__(self):
        self._check_linear()

    def _check_linear(self) -> None:
        """Every term must be linear: terms(2 a + b) = 2 terms(a) + terms(b), on random fields."""
        generator = np.random.default_rng(0)
        first, second = (jnp.asarray(generator.standard_normal((*self.grid.shape, 1))) for _ in range(2))
        both = jax.jit(
            lambda a, b: (self.terms(2 * a + b, self.grid), self.terms(a, self.grid), self.terms(b, self.grid))
        )
        together, of_first, of_second = both(first, second)
        if not isinstance(together, dict) or not together:
            raise ArgumentError("terms", "must return a dict of arrays, name -> term.")
        for name, combined in together.items():
            if combined.shape != first.shape:
                raise ArgumentError(
                    "terms", f"term {name!r} has shape {combined.shape}, not that of the basis, {first.shape}."
                )
            expected = 2 * of_first[name] + of_second[name]
            gap = float(jnp.max(jnp.abs(combined - expected)) / (jnp.max(jnp.abs(expected)) + 1e-30))
            if not gap < 1e4 * jnp.finfo(first.dtype).eps:
                raise ArgumentError(
                    "terms",
                    f"term {name!r} is not linear in the basis: terms(2 a + b) differs from 2 terms(a) + terms(b) "
                    f"by {gap:.2g}.",
                    "Leave products of terms to `pointwise`.",
                )
