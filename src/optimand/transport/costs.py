r"""What it costs to move mass from each point to each other: matrices, point clouds and grids.

All that is asked of a cost is one operation, the soft minimum of Sinkhorn's method,

$$L_i(h, s) = \log \sum_j \exp(h_j - s\, C_{ij}),$$

and the same over i. Its derivatives are the rest: with respect to h, averages under the plan; with respect to s, the cost that is
transported. So a cost that is evaluated as it goes, block by block or axis by axis, is used by the same code as a matrix.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.arguments import need_count
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer, need_callable, trace_once

__all__ = ["Cost", "CostMatrix", "Grid", "PointCloud"]


class Cost(eqx.Module):
    """The cost C, n x m: abstract."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, m)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """Single or double precision."""

    @abc.abstractmethod
    def logsumexp(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        """log of the sum over j (`axis=1`, h (m,), result (n,)) or i (`axis=0`, the other way round) of exp(h - scale C)."""

    def largest_term(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        """Finite where `logsumexp` is, for an h that is: where it is cheaper, the largest h - scale C."""
        return self.logsumexp(h, scale, axis)

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "n m"]:
        """All of C."""

    @abc.abstractmethod
    def among(self, rows: np.ndarray, columns: np.ndarray) -> "Cost":
        """The cost between these points only."""

    def traced(self) -> "Cost":
        """What a solve uses: a matrix if it is small, else with each user's function traced once."""
        return self


def log_sum_exp(logits: Array, axis: int) -> Array:
    """log sum exp, and -inf where there is nothing to add."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.squeeze(top, axis) + jnp.log(jnp.sum(jnp.exp(logits - top), axis))


class CostMatrix(Cost):
    """A cost that is there as a matrix (n, m). Entries may be +inf: pairs between which nothing can be moved.

    `forbids` says whether there are such; by default it is looked up, and where the matrix is traced it is assumed.

    Raises `ArgumentError` for what is no matrix, and for NaN or -inf in it.
    """

    entries: Float[Array, "n m"]
    forbids: bool = eqx.field(static=True)

    def __init__(self, entries: Any, forbids: bool | None = None):
        entries = as_floats("cost", entries)
        if entries.ndim != 2 or 0 in entries.shape:
            raise ArgumentError("cost", f"must be a matrix (n, m), not an array of shape {entries.shape}.", "PointCloud(x, y) takes points.")
        if forbids is None and not is_tracer(entries):
            known = np.asarray(entries)
            if not np.min(known) > -np.inf:  # NaN compares false
                i, j = np.argwhere(~(known > -np.inf))[0]
                raise ArgumentError("cost", f"is {known[i, j]} in row {i}, column {j}.", "Only +inf is allowed: a pair that is forbidden.")
            forbids = bool(np.max(known) == np.inf)
        self.forbids = forbids is not False
        self.entries = entries

    @property
    def shape(self) -> tuple[int, int]:
        n, m = self.entries.shape
        return n, m

    @property
    def dtype(self) -> Any:
        return self.entries.dtype

    def logsumexp(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        h = jnp.expand_dims(h, 1 - axis)
        if not self.forbids:
            return log_sum_exp(h - scale * self.entries, axis)
        allowed = jnp.isfinite(self.entries)  # 0 * inf would be the derivative with respect to the scale
        return log_sum_exp(jnp.where(allowed, h - scale * jnp.where(allowed, self.entries, 0), -jnp.inf), axis)

    def largest_term(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        entries = jnp.where(jnp.isfinite(self.entries), self.entries, jnp.inf) if self.forbids else self.entries
        return scale * jnp.max(jnp.expand_dims(h / scale, 1 - axis) - entries, axis)  # one pass, and no second matrix

    def matrix(self) -> Float[Array, "n m"]:
        return self.entries

    def among(self, rows: np.ndarray, columns: np.ndarray) -> "CostMatrix":
        return CostMatrix(self.entries[rows][:, columns])


class PointCloud(Cost):
    """The cost between points x (n, d) and y (m, d), a matrix only where it is small.

    **Arguments:**

    - `x`, `y`: points, one a row; `y=None` is x. Vectors are points on a line.
    - `cost`: "sqeuclidean" is |x - y|^2, "euclidean" is |x - y|; or a function of two points (d,) that returns a number.
    - `dense_below`: with up to this many pairs a solve makes a matrix of it first.
    - `block`: as many rows are evaluated at once where it does not; by default so many that a block stays in the cache.

    Raises `ArgumentError` for points of different dimension or that are not finite, and for an unknown cost.

    ```python
    x = jnp.linspace(0.0, 1.0, 5)[:, None]
    om.transport.PointCloud(x, x + 1.0).matrix()[0, 0]      # 1.0
    ```
    """

    x: Float[Array, "n d"]
    y: Float[Array, "m d"]
    fn: Callable | None
    kind: str = eqx.field(static=True)
    dense_below: int = eqx.field(static=True)
    block: int | None = eqx.field(static=True)

    def __init__(
        self,
        x: Any,
        y: Any = None,
        cost: str | Callable = "sqeuclidean",
        *,
        dense_below: int = 4_000_000,
        block: int | None = None,
    ):
        self.x = _points("x", x)
        self.y = self.x if y is None else _points("y", y)
        if self.x.shape[1] != self.y.shape[1]:
            raise ArgumentError("y", f"holds points of dimension {self.y.shape[1]}, and x of {self.x.shape[1]}.")
        dtype = jnp.result_type(self.x, self.y)
        self.x, self.y = self.x.astype(dtype), self.y.astype(dtype)
        if isinstance(cost, str) and cost not in ("sqeuclidean", "euclidean"):
            raise ArgumentError("cost", f"must be 'sqeuclidean', 'euclidean' or a function of two points, not {cost!r}.")
        self.kind = cost if isinstance(cost, str) else "function"
        self.fn = None if isinstance(cost, str) else need_callable(cost, "cost")
        if self.fn is not None:
            number = jax.eval_shape(self.fn, self.x[0], self.y[0])
            if getattr(number, "shape", None) != ():
                raise ArgumentError("cost", f"must return a number for two points; it returns {number}.")
        need_count("dense_below", dense_below, least=0)
        if block is not None:
            need_count("block", block)
        self.dense_below, self.block = dense_below, block

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def _between(self, x: Array, y: Array) -> Array:
        if self.fn is not None:
            fn = self.fn
            return jax.vmap(lambda p: jax.vmap(lambda q: fn(p, q))(y))(x).astype(self.dtype)
        dimension = x.shape[1]
        if dimension <= 8:  # differences, which lose nothing to cancellation
            square = sum(jnp.square(x[:, None, k] - y[None, :, k]) for k in range(1, dimension))
            square = square + jnp.square(x[:, None, 0] - y[None, :, 0])
        else:
            centre = jax.lax.stop_gradient(jnp.mean(self.y, 0))
            x, y = x - centre, y - centre
            product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
            square = jnp.maximum(jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :] - 2 * product, 0)
        if self.kind == "sqeuclidean":
            return square
        apart = square > 0  # where it is not, the distance has no derivative: zero is one of its subgradients
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)

    def logsumexp(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        left, summed = (self.x, self.y) if axis == 1 else (self.y, self.x)

        @jax.checkpoint  # a derivative evaluates the block again, or all blocks would be kept
        def of_block(part):
            costs = self._between(part, summed) if axis == 1 else self._between(summed, part).T
            return log_sum_exp(h - scale * costs, 1)

        count, rows = left.shape[0], self.block or max(1, 2**18 // summed.shape[0])
        blocks = math.ceil(count / rows)
        rows = math.ceil(count / blocks)
        left = jnp.pad(left, ((0, blocks * rows - count), (0, 0)), mode="edge")
        return jax.lax.map(of_block, left.reshape(blocks, rows, -1)).reshape(-1)[:count]

    def matrix(self) -> Float[Array, "n m"]:
        return self._between(self.x, self.y)

    def among(self, rows: np.ndarray, columns: np.ndarray) -> "PointCloud":
        return eqx.tree_at(lambda cost: (cost.x, cost.y), self, (self.x[rows], self.y[columns]))

    def traced(self) -> Cost:
        if math.prod(self.shape) <= self.dense_below:
            return CostMatrix(self.matrix(), None if self.fn is not None else False)
        if self.fn is None:
            return self
        point = jax.ShapeDtypeStruct(self.x.shape[1:], self.dtype)
        return eqx.tree_at(lambda cost: cost.fn, self, trace_once(self.fn, point, point))


class Grid(Cost):
    """A cost between the points of two grids that is a sum over coordinates: C(x, y) = sum_k c_k(x_k, y_k).

    A soft minimum is taken one axis after the other, in n^(1 + 1/d) instead of n^2 operations, and there is no matrix.

    **Arguments:**

    - `x`, `y`: the coordinates along each axis, a sequence of vectors; `y=None` is x. Points are counted in the order of `jnp.ravel`.
    - `cost`: "sqeuclidean", "manhattan", or a function of two numbers; or a sequence of them, one for each axis.

    Raises `ArgumentError` for grids of different dimension, coordinates that are no vectors or not finite, and for an unknown cost.

    ```python
    image = om.transport.Grid([jnp.arange(3.0), jnp.arange(4.0)])
    image.shape      # (12, 12)
    ```
    """

    factors: tuple[Float[Array, "_ _"], ...]

    def __init__(self, x: Sequence[Any], y: Sequence[Any] | None = None, cost: Any = "sqeuclidean"):
        x = [_line("x", axis) for axis in x]
        y = x if y is None else [_line("y", axis) for axis in y]
        if not x or len(x) != len(y):
            raise ArgumentError("y", f"is a grid of dimension {len(y)}, and x of {len(x)}.", "Both are sequences of vectors.")
        along = list(cost) if isinstance(cost, Sequence) and not isinstance(cost, str) else [cost] * len(x)
        if len(along) != len(x):
            raise ArgumentError("cost", f"has {len(along)} entries for {len(x)} axes.")
        dtype = jnp.result_type(*x, *y)
        self.factors = tuple(_along(c)(p[:, None], q[None, :]).astype(dtype) for c, p, q in zip(along, x, y, strict=True))

    @property
    def shape(self) -> tuple[int, int]:
        return math.prod(factor.shape[0] for factor in self.factors), math.prod(factor.shape[1] for factor in self.factors)

    @property
    def dtype(self) -> Any:
        return self.factors[0].dtype

    def logsumexp(self, h: Float[Array, " summed"], scale: Any, axis: int) -> Float[Array, " left"]:
        factors = [factor if axis == 1 else factor.T for factor in self.factors]
        h = h.reshape([factor.shape[1] for factor in factors])
        for k, factor in enumerate(factors):
            h = jnp.moveaxis(h, k, -1)
            h = jnp.moveaxis(log_sum_exp(h[..., None, :] - scale * factor, -1), -1, k)
        return h.reshape(-1)

    def matrix(self) -> Float[Array, "n m"]:
        total, d = jnp.zeros((1,) * (2 * len(self.factors)), self.dtype), len(self.factors)
        for k, factor in enumerate(self.factors):
            total = total + factor.reshape([factor.shape[0] if i == k else factor.shape[1] if i == d + k else 1 for i in range(2 * d)])
        return total.reshape(self.shape)

    def among(self, rows: np.ndarray, columns: np.ndarray) -> CostMatrix:
        return CostMatrix(self.matrix()[rows][:, columns])


def _along(cost: Any) -> Callable:
    """A cost between coordinates, of arrays."""
    if isinstance(cost, str):
        known = {"sqeuclidean": lambda p, q: jnp.square(p - q), "manhattan": lambda p, q: jnp.abs(p - q)}
        if cost not in known:
            raise ArgumentError("cost", f"must be 'sqeuclidean', 'manhattan' or a function of two numbers, not {cost!r}.")
        return known[cost]
    return jnp.vectorize(need_callable(cost, "cost"))


def as_floats(name: str, array: Any) -> Array:
    """Real floating-point numbers, in the precision that they have."""
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, f"must be an array of numbers, not {type(array).__name__}.") from error
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ArgumentError(name, f"must hold real numbers, not {array.dtype}.")
    return array


def _need_finite(name: str, array: Array) -> None:
    if not is_tracer(array) and not np.all(np.isfinite(array)):
        raise ArgumentError(name, f"holds a number that is not finite, at {np.argwhere(~np.isfinite(array))[0].tolist()}.")


def _points(name: str, points: Any) -> Array:
    points = as_floats(name, points)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or 0 in points.shape:
        raise ArgumentError(name, f"must be points in rows (n, d), not an array of shape {points.shape}.")
    _need_finite(name, points)
    return points


def _line(name: str, axis: Any) -> Array:
    axis = as_floats(name, axis)
    if axis.ndim != 1 or not axis.size:
        raise ArgumentError(name, f"must be a sequence of vectors; one has shape {axis.shape}.")
    _need_finite(name, axis)
    return axis
