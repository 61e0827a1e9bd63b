r"""The five-point Laplacian on a square, and a sequence of systems with it whose diagonal is shifted at random.

The systems are those of Khodak, Chow, Balcan and Talwalkar (2024), section 2: \((L + c_t I) x = b_t\), with the shift \(c_t\) from a Beta distribution
that is moved and scaled, and \(b_t\) from a normal distribution within the ball of radius \(\sqrt{n}\). The shift is known before the solve.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core.errors import ArgumentError
from ..linear import SparseOperator
from .elliptic import five_point_pattern

__all__ = ["LinearStep", "ShiftedLaplacian", "dirichlet_laplacian"]


class LinearStep(NamedTuple):
    """A linear system of a sequence, and what is known about it before it is solved."""

    operator: SparseOperator
    b: Float[Array, " n"]
    context: Float[Array, ""]


def dirichlet_laplacian(side: int) -> SparseOperator:
    """The five-point stencil of minus the Laplacian, times the square of the spacing: 4 on the diagonal and -1 for each neighbour.

    On `side` by `side` points inside of a square, at whose boundary the field is zero; point (i, j) is number `side * i + j`.

    **Raises:** `ArgumentError` for a side below one.

    ```python
    om.physics.dirichlet_laplacian(2).as_matrix()
    ```
    """
    if not isinstance(side, int) or side < 1:
        raise ArgumentError("side", f"must be a whole number above zero, not {side!r}.")
    pattern = five_point_pattern(side)
    data = np.where(pattern.places.rows == pattern.places.columns, 4.0, -1.0)
    return SparseOperator(jnp.asarray(data, jnp.result_type(float)), pattern, lx.positive_semidefinite_tag)


class ShiftedLaplacian(eqx.Module):
    """Systems \\((L + c_t I) x = b_t\\), independent of each other.

    **Arguments:**

    - `key`: of all of them.
    - `side`: points in each direction.
    - `shape`: of the Beta distribution: the paper's are (1/2, 3/2), of high variance, and (2, 6).
    - `lowest`, `width`: the shift is `lowest + width * Beta`. It must stay above minus the smallest eigenvalue of the Laplacian,
      8 sin(pi / (2 side + 2))^2, about 0.16 for `side=10`.

    **Raises:** `ArgumentError` for shifts that make the matrix indefinite, and for numbers out of their range.

    ```python
    sequence = om.physics.ShiftedLaplacian(jax.random.key(0))
    operator, b, shift = sequence.system(3)
    ```
    """

    key: PRNGKeyArray
    laplacian: SparseOperator
    shape: tuple[float, float] = eqx.field(static=True)
    lowest: float = eqx.field(static=True)
    width: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        side: int = 10,
        *,
        shape: tuple[float, float] = (0.5, 1.5),
        lowest: float = -0.15,
        width: float = 0.6,
    ):
        self.key = key
        self.laplacian = dirichlet_laplacian(side)
        if len(shape) != 2 or not all(0 < number < np.inf for number in shape):
            raise ArgumentError("shape", f"must be two positive numbers, not {shape}.")
        if not 0 < width < np.inf:
            raise ArgumentError("width", f"must be a positive number, not {width!r}.")
        smallest = 8 * np.sin(np.pi / (2 * side + 2)) ** 2
        if not -smallest < lowest < np.inf:
            raise ArgumentError("lowest", f"must be above {-smallest:.6g}, else the matrix is indefinite; it is {lowest!r}.")
        self.shape = (float(shape[0]), float(shape[1]))
        self.lowest, self.width = float(lowest), float(width)

    @property
    def context_bounds(self) -> tuple[float, float]:
        """Between which all shifts lie."""
        return self.lowest, self.lowest + self.width

    def system(self, step: Any, previous: Any = None) -> LinearStep:
        """System number `step`, which may be traced; the solution of the one before plays no part."""
        shift_key, side_key = jax.random.split(jax.random.fold_in(self.key, step))
        dtype = self.laplacian.data.dtype
        shift = self.lowest + self.width * jax.random.beta(shift_key, *self.shape, dtype=dtype)
        b = _normal_within_ball(side_key, self.laplacian.shape[0], dtype)
        return LinearStep(with_shift(self.laplacian, 1, shift), b, shift)


def with_shift(operator: SparseOperator, scale: Any, shift: Any) -> SparseOperator:
    """scale A + shift I, for a matrix with one entry at each place of its diagonal."""
    diagonal: Bool[Array, " entries"] = operator.pattern.rows == operator.pattern.columns
    return operator.with_data(scale * operator.data + jnp.where(diagonal, shift, 0))


def _normal_within_ball(key: PRNGKeyArray, n: int, dtype: Any) -> Float[Array, " n"]:
    """A standard normal vector, drawn until its length is at most the root of n."""

    def draw(count: Int[Array, ""]) -> Array:
        return jax.random.normal(jax.random.fold_in(key, count), (n,), dtype)

    def again(at):
        count, _ = at
        return count + 1, draw(count + 1)

    none = jnp.int32(0)
    return jax.lax.while_loop(lambda at: jnp.sum(at[1] ** 2) > n, again, (none, draw(none)))[1]
