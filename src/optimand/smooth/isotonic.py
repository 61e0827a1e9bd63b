r"""Isotonic regression, and soft sorting and ranking built on it.

$$\operatorname{argmin}_{v_1 \le \dots \le v_n} \sum_i w_i (v_i - y_i)^2$$

Its solution is constant on blocks of neighbours, where it is their mean. The pool-adjacent-violators algorithm (Best and
Chakravarti 1990) finds the blocks in one pass: each number is a new block, and as long as the last two blocks are in the
wrong order they become one. Here it is a loop of 2 n steps of constant size, so that it is compiled, batched by `vmap` and
takes O(n). The blocks are then held fixed and the means taken once more: that is what is differentiated, and its
derivative, block averages of the tangent, is an element of the Clarke Jacobian of the solution (Blondel et al. 2020, section 5).

`isotonic_kl` is the entropic problem of the same paper, and `soft_sort` and `soft_rank` are its projections onto the
permutahedron, the convex hull of all orders of a vector: piecewise linear or smooth, O(n log n), with exact derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_positive

__all__ = ["isotonic_kl", "isotonic_regression", "permutahedron", "soft_rank", "soft_sort"]


def isotonic_regression(
    y: Float[Array, " n"],
    weights: Float[Array, " n"] | None = None,
    *,
    increasing: bool = True,
    lower: Any = None,
    upper: Any = None,
) -> Float[Array, " n"]:
    """The nearest vector whose entries do not fall.

    **Arguments:**

    - `weights`: positive, one for each entry; ones by default.
    - `increasing`: False for entries that do not rise.
    - `lower`, `upper`: bounds on all entries.

    Differentiable in `y`, in the weights and in the bounds. Raises `ArgumentError` for weights that are not positive.

    ```python
    om.smooth.isotonic.isotonic_regression(jnp.array([1.0, 3.0, 2.0, 4.0]))      # [1., 2.5, 2.5, 4.]
    ```
    """
    need_positive("weights", weights)
    weights = jnp.ones_like(y) if weights is None else jnp.asarray(weights, y.dtype)
    if weights.shape != y.shape:
        raise ArgumentError("weights", f"has shape {weights.shape}, and y {y.shape}.")
    if not (is_tracer(lower) or is_tracer(upper) or lower is None or upper is None) and lower > upper:
        raise ArgumentError("lower", f"= {lower} is above `upper` = {upper}.")
    if not increasing:
        negative = lambda bound: None if bound is None else -bound
        flipped = isotonic_regression(-y, weights, lower=negative(upper), upper=negative(lower))
        return -flipped
    blocks = _pool((weights * y, weights), lambda left, right: (left[0] + right[0], left[1] + right[1]), _mean)
    total = lambda part: jax.ops.segment_sum(part, blocks, y.size)[blocks]
    fitted = total(weights * y) / total(weights)
    return jnp.clip(fitted, lower, upper)


def isotonic_kl(s: Float[Array, " n"], w: Float[Array, " n"], *, increasing: bool = True) -> Float[Array, " n"]:
    r"""The entropic counterpart, which in the limit of small differences is the same for y = s - w.

    $$\operatorname{argmin}_{v_1 \le \dots \le v_n} \langle e^{s - v}, 1 \rangle + \langle e^w, v \rangle$$

    On a block B it is LSE(s_B) - LSE(w_B), with LSE the logarithm of the sum of exponentials (Blondel et al. 2020, section 5).
    """
    if s.shape != w.shape:
        raise ArgumentError("w", f"has shape {w.shape}, and s {s.shape}.")
    if not increasing:
        return isotonic_kl(s[::-1], w[::-1])[::-1]
    merge = lambda left, right: (jnp.logaddexp(left[0], right[0]), jnp.logaddexp(left[1], right[1]))
    blocks = _pool((s, w), merge, lambda stats: stats[0] - stats[1])

    def log_sum(part):
        highest = jax.lax.stop_gradient(jax.ops.segment_max(part, blocks, part.size)[blocks])
        return highest + jnp.log(jax.ops.segment_sum(jnp.exp(part - highest), blocks, part.size)[blocks])

    return log_sum(s) - log_sum(w)


def _mean(stats):
    return stats[0] / stats[1]


def _pool(stats: tuple[Array, Array], merge: Callable, value: Callable) -> Int[Array, " n"]:
    """The number of the block of each entry, by pool-adjacent-violators: no derivative.

    `stats` are two numbers for each entry, `merge` makes those of two blocks into those of their union, and `value` is
    the solution on a block. Blocks of equal values become one as well, so that ties are treated alike.
    """
    source_first, source_second = jax.lax.stop_gradient(stats)
    n = source_first.size
    if n == 0:
        return jnp.zeros((0,), jnp.int32)

    def step(_, carry):
        first, second, begins, blocks, read = carry
        # first, second, begins are a stack of blocks, of which the last may still be in the wrong order
        last, before = jnp.maximum(blocks - 1, 0), jnp.maximum(blocks - 2, 0)
        stat = lambda i: (first[i], second[i])
        wrong = (blocks >= 2) & (value(stat(before)) >= value(stat(last)))
        entry = jnp.minimum(read, n - 1)
        merged, pushed = merge(stat(before), stat(last)), (source_first[entry], source_second[entry])
        place = jnp.where(wrong, before, jnp.where(read < n, blocks, n))  # n is outside: nothing is left to do
        put = lambda array, new: array.at[place].set(new, mode="drop")
        first, second = (put(array, jnp.where(wrong, *pair)) for array, *pair in zip((first, second), merged, pushed, strict=True))
        begins = put(begins, jnp.where(wrong, begins[before], read))
        blocks = jnp.where(wrong, blocks - 1, jnp.where(read < n, blocks + 1, blocks))
        return first, second, begins, blocks, jnp.where(wrong, read, jnp.minimum(read + 1, n))

    start = (source_first, source_second, jnp.zeros((n,), jnp.int32), jnp.int32(0), jnp.int32(0))
    _, _, begins, blocks, _ = jax.lax.fori_loop(0, 2 * n, step, start)
    places = jnp.where(jnp.arange(n) < blocks, begins, n)
    return jnp.cumsum(jnp.zeros((n,), jnp.int32).at[places].set(1, mode="drop")) - 1


def permutahedron(z: Float[Array, " n"], w: Float[Array, " n"], *, loss: str = "l2") -> Float[Array, " n"]:
    r"""The projection of z onto the convex hull of all orders of w.

    With `loss="l2"` the nearest point. With `"kl"` the maximiser of \(\langle z, \mu \rangle\) plus the entropy of
    \(e^\mu\), where \(e^\mu\) lies in the hull of the orders of \(e^w\) (Blondel et al. 2020, equations 5 and 6).
    """
    order = jnp.argsort(z, descending=True)
    s, w = z[order], jnp.sort(w, descending=True)
    if loss == "l2":
        fitted = isotonic_regression(s - w, increasing=False)
    elif loss == "kl":
        fitted = isotonic_kl(s, w, increasing=False)
    else:
        raise ArgumentError("loss", f"must be 'l2' or 'kl', not {loss!r}.")
    return z - jnp.zeros_like(z).at[order].set(fitted)


def soft_sort(
    x: Float[Array, " n"], regularization: Any = 1.0, *, increasing: bool = True, loss: str = "l2"
) -> Float[Array, " n"]:
    """A differentiable sort: exact for a small `regularization`, all entries at their mean for a large one.

    `loss` is "l2" (piecewise linear) or "kl" (smooth but where blocks change). Source: Blondel et al. 2020.

    ```python
    om.smooth.isotonic.soft_sort(jnp.array([3.0, 1.0, 2.0]), 1e-3)      # [1., 2., 3.]
    ```
    """
    need_positive("regularization", regularization)
    if increasing:
        return -soft_sort(-x, regularization, increasing=False, loss=loss)
    places = jnp.arange(x.size, 0, -1, dtype=x.dtype)
    return permutahedron(places / regularization, x, loss=loss)


def soft_rank(
    x: Float[Array, " n"], regularization: Any = 1.0, *, increasing: bool = True, loss: str = "l2"
) -> Float[Array, " n"]:
    """Differentiable ranks, from 1 for the smallest entry to n: exact for a small `regularization`.

    With `increasing=False` the largest has rank 1. `loss` is "l2" or "kl". Source: Blondel et al. 2020.
    """
    need_positive("regularization", regularization)
    ranks = jnp.arange(x.size, 0, -1, dtype=x.dtype)
    z = x / regularization if increasing else -x / regularization
    return jnp.exp(permutahedron(z, jnp.log(ranks), loss=loss)) if loss == "kl" else permutahedron(z, ranks, loss=loss)
