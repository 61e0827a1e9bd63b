r"""Proximal operators, with right derivatives.

$$\mathrm{prox}_{\eta g}(y) = \operatorname{argmin}_x g(x) + \tfrac{1}{2 \eta} \lVert x - y \rVert^2$$

Each is a function `(y, step_size, *weights)`: what `optimand.Composite(fn, prox, prox_args=weights)` and
`optimand.core.optimality.proximal_gradient` take. `y` is any pytree; weights are numbers, or pytrees like `y`, and may be
differentiated.

| g(x) | prox | value |
|---|---|---|
| 0 | `nothing` | |
| w |x|_1 | `lasso` | `lasso_value` |
| w |x|_1 + v/2 |x|_2^2 | `elastic_net` | `elastic_net_value` |
| w sum over groups of |x|_2 | `group_lasso` | `group_lasso_value` |
| w/2 |x|_2^2 | `ridge` | `ridge_value` |
| the same, and x >= 0 | `non_negative_lasso`, `non_negative_elastic_net`, `non_negative_ridge` | |
| -w sum log x | `log_barrier` | `log_barrier_value` |
| 0 on a set, infinite outside | `indicator(projection)` | |

At a kink the derivative is one of the two one-sided ones, and finite; with a weight of zero it is the identity.

```python
a, b = jnp.eye(3), jnp.arange(3.0)
least_squares = lambda x, a, b: 0.5 * jnp.sum((a @ x - b) ** 2)
problem = om.Composite(least_squares, om.smooth.proximal.lasso, a, b, prox_args=(0.1,))
om.solve(problem, om.smooth.ProximalGradient(), jnp.zeros(3)).value                        # [0., 0.9, 1.9]
```

Source: Parikh and Boyd 2014, chapter 6.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError

__all__ = [
    "elastic_net",
    "elastic_net_value",
    "group_lasso",
    "group_lasso_value",
    "indicator",
    "lasso",
    "lasso_value",
    "log_barrier",
    "log_barrier_value",
    "non_negative_elastic_net",
    "non_negative_lasso",
    "non_negative_ridge",
    "nothing",
    "ridge",
    "ridge_value",
]


def _each(fn: Callable, y: PyTree, *weights: PyTree) -> PyTree:
    """fn(leaf, weight, ...) for each leaf; a weight is a number, or a pytree like y."""

    def like(weight):
        return jtu.tree_map(lambda _: weight, y) if jtu.treedef_is_leaf(jtu.tree_structure(weight)) else weight

    typed = lambda leaf, *w: fn(leaf, *(jnp.asarray(v, leaf.dtype) for v in w))
    return jtu.tree_map(typed, y, *map(like, weights))


def _total(fn: Callable, x: PyTree, *weights: PyTree) -> Float[Array, ""]:
    return jnp.stack([jnp.sum(leaf) for leaf in jtu.tree_leaves(_each(fn, x, *weights))]).sum()


def _shrink(y: Array, threshold: Array) -> Array:
    """y moved towards zero by the threshold. `>=`, so that a threshold of zero is the identity at zero too."""
    return jnp.where(y >= threshold, y - threshold, jnp.where(y <= -threshold, y + threshold, 0.0))


def _norm(x: Array, axis: Any) -> Array:
    """The Euclidean norm along axes, with derivative zero at zero."""
    squared = jnp.sum(x**2, axis=axis, keepdims=True)
    nonzero = squared > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1.0)), 0.0)


def nothing(y: PyTree, step_size: Any = 1.0) -> PyTree:
    """g = 0: the identity."""
    del step_size
    return y


def indicator(projection: Callable) -> Callable:
    """The proximal operator of a set, `prox(y, step_size, *args)`, from its `projection(y, *args)`."""
    if not callable(projection):
        raise ArgumentError("projection", f"must be callable, not {type(projection).__name__}.")
    return _Indicator(projection)


class _Indicator(eqx.Module):
    projection: Callable

    def __call__(self, y: PyTree, step_size: Any = 1.0, *args: PyTree) -> PyTree:
        del step_size
        return self.projection(y, *args)


def lasso(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0) -> PyTree:
    """g = weight |x|_1: soft thresholding."""
    return _each(lambda y, s, w: _shrink(y, s * w), y, step_size, weight)


def lasso_value(x: PyTree, weight: PyTree = 1.0) -> Float[Array, ""]:
    """weight |x|_1."""
    return _total(lambda x, w: w * jnp.abs(x), x, weight)


def elastic_net(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0, ridge_weight: PyTree = 1.0) -> PyTree:
    """g = weight |x|_1 + ridge_weight/2 |x|^2."""
    return _each(lambda y, s, w, v: _shrink(y, s * w) / (1 + s * v), y, step_size, weight, ridge_weight)


def elastic_net_value(x: PyTree, weight: PyTree = 1.0, ridge_weight: PyTree = 1.0) -> Float[Array, ""]:
    """weight |x|_1 + ridge_weight/2 |x|^2."""
    return _total(lambda x, w, v: w * jnp.abs(x) + 0.5 * v * x**2, x, weight, ridge_weight)


def ridge(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0) -> PyTree:
    """g = weight/2 |x|^2: scaling."""
    return _each(lambda y, s, w: y / (1 + s * w), y, step_size, weight)


def ridge_value(x: PyTree, weight: PyTree = 1.0) -> Float[Array, ""]:
    """weight/2 |x|^2."""
    return _total(lambda x, w: 0.5 * w * x**2, x, weight)


def group_lasso(
    y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0, *, axis: int | tuple[int, ...] | None = None
) -> PyTree:
    """g = weight times the sum of |x|_2 over groups: shrinks each group as a whole, to zero if it is small.

    A group is a whole array, or what lies along `axis`; a weight then has the shape of the groups, or is a number.
    """

    def shrink(y, step_size, weight):
        norm = _norm(y, axis)
        threshold = step_size * (weight if weight.ndim == 0 or axis is None else jnp.expand_dims(weight, axis))
        kept = (norm >= threshold) & (norm > 0)
        scale = jnp.where(kept, 1 - threshold / jnp.where(norm > 0, norm, 1.0), 0.0)
        return jnp.where((threshold == 0) & (norm == 0), y, scale * y)

    return _each(shrink, y, step_size, weight)


def group_lasso_value(
    x: PyTree, weight: PyTree = 1.0, *, axis: int | tuple[int, ...] | None = None
) -> Float[Array, ""]:
    """weight times the sum of |x|_2 over groups."""
    expand = lambda w: w if w.ndim == 0 or axis is None else jnp.expand_dims(w, axis)
    return _total(lambda x, w: expand(w) * _norm(x, axis), x, weight)


def non_negative_lasso(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0) -> PyTree:
    """g = weight sum x on x >= 0."""
    return _each(lambda y, s, w: _rise(y - s * w), y, step_size, weight)


def non_negative_elastic_net(
    y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0, ridge_weight: PyTree = 1.0
) -> PyTree:
    """g = weight sum x + ridge_weight/2 |x|^2 on x >= 0."""
    return _each(lambda y, s, w, v: _rise(y - s * w) / (1 + s * v), y, step_size, weight, ridge_weight)


def non_negative_ridge(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0) -> PyTree:
    """g = weight/2 |x|^2 on x >= 0."""
    return _each(lambda y, s, w: _rise(y) / (1 + s * w), y, step_size, weight)


def _rise(y: Array) -> Array:
    return jnp.where(y >= 0, y, 0.0)


def log_barrier(y: PyTree, step_size: Any = 1.0, weight: PyTree = 1.0) -> PyTree:
    """g = -weight sum log x: always positive.

    The positive root of x^2 - y x - step_size weight, in the form that loses no digits for the sign of y.
    """

    def root(y, step_size, weight):
        product = step_size * weight
        positive = product > 0
        discriminant = jnp.sqrt(y**2 + 4 * jnp.where(positive, product, 1.0))
        above = y >= 0
        large = 0.5 * (jnp.where(above, y, 0.0) + discriminant)
        small = 2 * product / (discriminant - jnp.where(above, 0.0, y))
        return jnp.where(positive, jnp.where(above, large, small), _rise(y))

    return _each(root, y, step_size, weight)


def log_barrier_value(x: PyTree, weight: PyTree = 1.0) -> Float[Array, ""]:
    """-weight sum log x; infinite outside x > 0."""
    positive = lambda x: jnp.where(x > 0, x, 1.0)
    return _total(lambda x, w: jnp.where(x > 0, -w * jnp.log(positive(x)), jnp.inf), x, weight)
