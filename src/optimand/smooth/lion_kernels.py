r"""The convex kernels K of Lion-K, and the problems that they make it solve.

Lion-K with weight decay \(\lambda\) minimises

$$F(x) = f(x) + \tfrac{1}{\lambda} K^*(\lambda x), \qquad K^*(y) = \sup_c \, \langle c, y \rangle - K(c),$$

so the kernel decides what is added to f: a set, if K is a norm (the unit ball of the dual norm, shrunk by
\(\lambda\)), and a penalty beside it, if K is smoothed or thresholded near zero.

| kernel | K(c) | step, an element of \(\partial K(c)\) | what \(\lambda x = y\) is held to |
|---|---|---|---|
| `L1Kernel` (Lion) | \(\lVert c \rVert_1\) | sign(c) | \(\lVert y \rVert_\infty \le 1\) |
| `LpKernel(p)` | \(\lVert c \rVert_p\) | sign(c) \(\lvert c \rvert^{p-1} / \lVert c \rVert_p^{p-1}\) | \(\lVert y \rVert_q \le 1\), 1/p + 1/q = 1 |
| `ThresholdKernel(e)` | \(\sum \max(\lvert c_i \rvert - e, 0)\) | sign(c) where \(\lvert c \rvert > e\) | the box, and \(e \lVert y \rVert_1\) is added |
| `TopKKernel(k)` | the k largest \(\lvert c_i \rvert\), summed | sign(c) on those | \(\lVert y \rVert_\infty \le 1\), \(\lVert y \rVert_1 \le k\) |
| `HuberKernel(e)` | \(c^2 / 2e\) up to e, \(\lvert c \rvert - e/2\) beyond | clip(c / e, -1, 1) | the box, and \(\tfrac{e}{2} \lVert y \rVert^2\) is added |
| `SmoothL1Kernel(e)` | \(\sum \sqrt{c_i^2 + e^2} - e\) | \(c / \sqrt{c^2 + e^2}\) | the box, and \(\sum e - e \sqrt{1 - y_i^2}\) is added |
| `GroupKernel(groups)` | \(\sum_g \lVert c_g \rVert_2\) | \(c_g / \lVert c_g \rVert_2\) | \(\lVert y_g \rVert_2 \le 1\) for each group |
| `SpectralKernel()` | nuclear norm | \(U V^\top\) of the singular value decomposition | spectral norm at most 1 |
| `L2SquaredKernel()` | \(\lVert c \rVert^2 / 2\) | c | free; \(\tfrac{1}{2} \lVert y \rVert^2\) is added |

Every K has K(0) = 0 and is even. At a kink the step is one fixed subgradient; zero where c is zero.

Chen, Liu, Liang and Liu, "Lion secretly solves constrained optimization: as Lyapunov predicts" (2024), table 1 and
section 3.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_count, need_positive
from .vectors import dot, dtype_of, size

__all__ = [
    "GroupKernel",
    "HuberKernel",
    "Kernel",
    "L1Kernel",
    "L2SquaredKernel",
    "LpKernel",
    "SmoothL1Kernel",
    "SpectralKernel",
    "ThresholdKernel",
    "TopKKernel",
]


class Kernel(eqx.Module):
    """A convex even function K of a pytree with K(0) = 0, with what Lion-K and its certificates need of it: abstract.

    Class variables: `constrains` says whether the domain of K* is bounded; `imposes_bounds`, that K* is nothing but
    the indicator of the box |y| <= 1; `cheap`, that K and K* cost little beside a gradient.
    """

    constrains: ClassVar[bool] = True
    imposes_bounds: ClassVar[bool] = False
    cheap: ClassVar[bool] = True

    @abc.abstractmethod
    def value(self, c: PyTree) -> Array:
        """K(c)."""

    @abc.abstractmethod
    def subgradient(self, c: PyTree) -> PyTree:
        """One element of the subdifferential of K at c, always the same."""

    @abc.abstractmethod
    def gauge(self, y: PyTree) -> Array:
        """The least s >= 0 such that y lies in s times the domain of K*; zero if the domain is everything."""

    @abc.abstractmethod
    def penalty(self, y: PyTree) -> Array:
        """K*(y) for y in its domain; finite at points that rounding puts just outside."""

    def check(self, x: PyTree) -> None:
        """Raise `ArgumentError` if unknowns of these shapes do not suit the kernel."""
        del x

    def conjugate(self, y: PyTree) -> Array:
        """K*(y); infinite outside its domain, by more than rounding."""
        penalty = self.penalty(y)
        slack = 64 * jnp.finfo(penalty.dtype).eps
        return jnp.where(self.gauge(y) <= 1 + slack, penalty, jnp.inf).astype(penalty.dtype)


class L1Kernel(Kernel):
    r"""\(K = \lVert c \rVert_1\): Lion, on the box \(\lVert x \rVert_\infty \le 1 / \lambda\)."""

    imposes_bounds: ClassVar[bool] = True

    def value(self, c: PyTree) -> Array:
        return _total(jnp.abs, c)

    def subgradient(self, c: PyTree) -> PyTree:
        return jtu.tree_map(jnp.sign, c)

    def gauge(self, y: PyTree) -> Array:
        return _largest(y)

    def penalty(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))


class LpKernel(Kernel):
    r"""\(K = \lVert c \rVert_p\) of all unknowns together, for 1 < p < infinity; p = 2 is the normalised momentum.

    **Arguments:** `p`. The dual norm of the constraint has q = p / (p - 1). Raises `ArgumentError` for any other p.
    """

    p: Any = 2.0

    def __check_init__(self):
        need_positive("p", self.p)
        if not is_tracer(self.p) and not (np.all(np.asarray(self.p) > 1) and np.all(np.isfinite(self.p))):
            raise ArgumentError(
                "p", f"must lie between 1 and infinity, not be {self.p!r}.", "p = 1 is L1Kernel, p = infinity has no use."
            )

    def value(self, c: PyTree) -> Array:
        return _norm(c, self.p)

    def subgradient(self, c: PyTree) -> PyTree:
        norm = _norm(c, self.p)
        safe = jnp.where(norm == 0, 1, norm)  # NaN stays NaN
        return jtu.tree_map(lambda c: (jnp.sign(c) * _power(jnp.abs(c) / safe, self.p - 1)).astype(c.dtype), c)

    def gauge(self, y: PyTree) -> Array:
        return _norm(y, self.p / (self.p - 1))

    def penalty(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))


class ThresholdKernel(Kernel):
    r"""\(K = \sum_i \max(\lvert c_i \rvert - e, 0)\): the box, with \(e \lVert x \rVert_1\) added to f. Sparse solutions.

    **Arguments:** `e`, more than zero: entries of the momentum up to e move nothing.
    """

    e: Any

    def __check_init__(self):
        need_positive("e", self.e)

    def value(self, c: PyTree) -> Array:
        return _total(lambda c: jnp.maximum(jnp.abs(c) - self.e, 0), c)

    def subgradient(self, c: PyTree) -> PyTree:
        return jtu.tree_map(lambda c: jnp.sign(c) * jnp.where(jnp.abs(c) <= self.e, 0, 1).astype(c.dtype), c)

    def gauge(self, y: PyTree) -> Array:
        return _largest(y)

    def penalty(self, y: PyTree) -> Array:
        return _total(lambda y: self.e * jnp.abs(y), y)


class TopKKernel(Kernel):
    r"""The sum of the k largest \(\lvert c_i \rvert\) of all unknowns together: each step moves k of them.

    The set is \(\lVert y \rVert_\infty \le 1\), \(\lVert y \rVert_1 \le k\). Of equal entries the first count.

    **Arguments:** `k`, at most the number of unknowns (an `ArgumentError` before anything is compiled).
    """

    k: int = eqx.field(static=True)

    def __check_init__(self):
        need_count("k", self.k)

    def check(self, x: PyTree) -> None:
        if self.k > size(x):
            raise ArgumentError("k", f"is {self.k}, but there are only {size(x)} unknowns.")

    def value(self, c: PyTree) -> Array:
        return jnp.sum(jax.lax.top_k(jnp.abs(ravel_pytree(c)[0]), self.k)[0])

    def subgradient(self, c: PyTree) -> PyTree:
        flat, unravel = ravel_pytree(c)
        # NaN sorts as the largest: it is kept, and the step that it poisons is refused
        chosen = jax.lax.top_k(jnp.abs(flat), self.k)[1]
        return unravel(jnp.zeros_like(flat).at[chosen].set(jnp.sign(flat[chosen])))

    def gauge(self, y: PyTree) -> Array:
        return jnp.maximum(_largest(y), _total(jnp.abs, y) / self.k)

    def penalty(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))


class HuberKernel(Kernel):
    r"""Huber's function: the box, with \(\tfrac{e \lambda}{2} \lVert x \rVert^2\) added to f. Small momenta take small steps.

    **Arguments:** `e`, more than zero: where the kernel turns from quadratic to linear.
    """

    e: Any

    def __check_init__(self):
        need_positive("e", self.e)

    def value(self, c: PyTree) -> Array:
        def huber(c):
            size = jnp.abs(c)
            return jnp.where(size <= self.e, jnp.minimum(size, self.e) ** 2 / (2 * self.e), size - self.e / 2)

        return _total(huber, c)

    def subgradient(self, c: PyTree) -> PyTree:
        return jtu.tree_map(lambda c: jnp.clip(c / self.e, -1, 1).astype(c.dtype), c)

    def gauge(self, y: PyTree) -> Array:
        return _largest(y)

    def penalty(self, y: PyTree) -> Array:
        return (dot(y, y) * self.e / 2).astype(dtype_of(y))


class SmoothL1Kernel(Kernel):
    r"""\(K = \sum_i \sqrt{c_i^2 + e^2} - e\): the box, with the barrier-like \(\sum_i e - e \sqrt{1 - y_i^2}\) beside it.

    Smooth, so the flow of Lion-K is an ordinary differential equation: what `lion_k_flow` is tried on. (The paper writes
    it without the shift by e, which makes K(0) = 0.)

    **Arguments:** `e`, more than zero.
    """

    e: Any

    def __check_init__(self):
        need_positive("e", self.e)

    def value(self, c: PyTree) -> Array:
        # sqrt(c^2 + e^2) - e without cancellation
        return _total(lambda c: jnp.square(c) / (jnp.hypot(c, self._e(c)) + self.e), c)

    def subgradient(self, c: PyTree) -> PyTree:
        return jtu.tree_map(lambda c: (c / jnp.sqrt(jnp.square(c) + self.e**2)).astype(c.dtype), c)

    def gauge(self, y: PyTree) -> Array:
        return _largest(y)

    def penalty(self, y: PyTree) -> Array:
        # 1 - sqrt(1 - y^2) without cancellation
        def rise(y):
            squared = jnp.minimum(jnp.square(y), 1)
            return self.e * squared / (1 + jnp.sqrt(1 - squared))

        return _total(rise, y)

    def _e(self, like: Array) -> Array:
        return jnp.asarray(self.e, like.dtype)


class GroupKernel(Kernel):
    r"""\(K = \sum_g \lVert c_g \rVert_2\): every group of unknowns in a ball of its own, \(\lVert x_g \rVert_2 \le 1 / \lambda\).

    **Arguments:** `groups`: a whole number n, for groups of n consecutive entries along the last axis of every array; or a
    pytree of whole numbers with the structure and shapes of the unknowns, the number of the group of each, from 0.
    """

    groups: Any

    def __init__(self, groups: Any):
        if isinstance(groups, int | np.integer):
            need_count("groups", groups)
            self.groups = int(groups)
            return
        self.groups = jtu.tree_map(jnp.asarray, groups)
        leaves = jtu.tree_leaves(self.groups)
        if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves):
            raise ArgumentError("groups", "must be a whole number, or whole numbers like the unknowns.")
        if any(not is_tracer(leaf) and bool(jnp.any(leaf < 0)) for leaf in leaves):
            raise ArgumentError("groups", "must be numbered from 0: one is negative.")

    def check(self, x: PyTree) -> None:
        if isinstance(self.groups, int):
            for path, leaf in jtu.tree_leaves_with_path(x):
                if leaf.ndim == 0 or leaf.shape[-1] % self.groups:
                    where, last = jtu.keystr(path), leaf.shape[-1] if leaf.ndim else 1
                    raise ArgumentError("groups", f"of {self.groups} do not divide the last axis of x{where}, {last}.")
            return
        shapes = lambda tree: (jtu.tree_structure(tree), [leaf.shape for leaf in jtu.tree_leaves(tree)])
        if shapes(self.groups) != shapes(x):
            raise ArgumentError("groups", "do not have the structure and shapes of the unknowns.")

    def value(self, c: PyTree) -> Array:
        return _total(lambda norms: norms, self._norms(c)[0])

    def subgradient(self, c: PyTree) -> PyTree:
        _, each = self._norms(c)
        return jtu.tree_map(lambda c, norm: c / jnp.where(norm == 0, 1, norm), c, each)  # NaN stays NaN

    def gauge(self, y: PyTree) -> Array:
        return _largest(self._norms(y)[0])

    def penalty(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))

    def _norms(self, c: PyTree) -> tuple[PyTree, PyTree]:
        """The norm of every group, and for every entry of c that of its group."""
        if isinstance(self.groups, int):
            width = self.groups
            norms = jtu.tree_map(lambda c: _length(c.reshape(*c.shape[:-1], -1, width), -1), c)
            each = jtu.tree_map(lambda c, norm: jnp.repeat(norm, width, axis=-1).reshape(c.shape), c, norms)
            return norms, each
        labels, leaves = jtu.tree_leaves(self.groups), jtu.tree_leaves(c)
        count = size(c)  # at most so many groups, whatever their numbers
        squares = sum(
            jax.ops.segment_sum(jnp.square(leaf).ravel(), label.ravel(), count)
            for leaf, label in zip(leaves, labels, strict=True)
        )
        norms = _root(jnp.asarray(squares))
        return norms, jtu.tree_map(lambda c, label: norms[label].astype(c.dtype), c, self.groups)


class SpectralKernel(Kernel):
    r"""The nuclear norm of every matrix: its step is the orthogonal factor \(U V^\top\), as in Muon.

    The last two axes of an array are a matrix, and a vector is a matrix of one row, so that for it this is `LpKernel(2)`
    of that array. K and K* cost a singular value decomposition each; so does the step, unless

    **Arguments:** `newton_schulz`: approximate \(U V^\top\) by so many steps of \(X \leftarrow \tfrac{3}{2} X -
    \tfrac{1}{2} X X^\top X\), from c over its Frobenius norm. Unlike the quintic polynomial of Muon its singular values
    never exceed one, so the iterates stay in the set; small ones take long to come near one (factor 3/2 a step).
    """

    cheap: ClassVar[bool] = False

    newton_schulz: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.newton_schulz is not None:
            need_count("newton_schulz", self.newton_schulz)

    def value(self, c: PyTree) -> Array:
        return _total(_singular_values, c)

    def subgradient(self, c: PyTree) -> PyTree:
        return jtu.tree_map(self._orthogonal_factor, c)

    def gauge(self, y: PyTree) -> Array:
        return _largest(jtu.tree_map(_singular_values, y))

    def penalty(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))

    def _orthogonal_factor(self, c: Array) -> Array:
        matrix = jnp.atleast_2d(c)
        if self.newton_schulz is None:
            left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
            negligible = max(matrix.shape[-2:]) * jnp.finfo(c.dtype).eps * values[..., :1]
            kept = jnp.where(values <= negligible, 0, 1).astype(c.dtype)
            return ((left * kept[..., None, :]) @ right).reshape(c.shape)
        wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else jnp.swapaxes(matrix, -1, -2)
        length = _length(wide.reshape(*wide.shape[:-2], -1), -1)[..., None, None]
        x = wide / jnp.where(length == 0, 1, length)
        x = jax.lax.fori_loop(
            0, self.newton_schulz, lambda _, x: 1.5 * x - 0.5 * (x @ jnp.swapaxes(x, -1, -2)) @ x, x
        )
        return (x if wide is matrix else jnp.swapaxes(x, -1, -2)).reshape(c.shape)


class L2SquaredKernel(Kernel):
    r"""\(K = \lVert c \rVert^2 / 2\): no set, and \(\tfrac{\lambda}{2} \lVert x \rVert^2\) added to f.

    Momentum descent with weight decay: what Lion-K is without the geometry.
    """

    constrains: ClassVar[bool] = False

    def value(self, c: PyTree) -> Array:
        return dot(c, c) / 2

    def subgradient(self, c: PyTree) -> PyTree:
        return c

    def gauge(self, y: PyTree) -> Array:
        return jnp.zeros((), dtype_of(y))

    def penalty(self, y: PyTree) -> Array:
        return dot(y, y) / 2


# Sums and norms over a pytree.


def _total(fn: Callable, tree: PyTree) -> Array:
    """The sum of fn over all entries."""
    return jnp.sum(jnp.stack([jnp.sum(fn(leaf)) for leaf in jtu.tree_leaves(tree)]))


def _largest(tree: PyTree) -> Array:
    """The largest absolute value; zero of nothing."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jtu.tree_leaves(tree)]))


def _root(squares: Array) -> Array:
    """The square root, with derivative zero (not infinite) at zero."""
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def _length(x: Array, axis: int) -> Array:
    """The Euclidean norm along an axis, with derivative zero (not NaN) at zero."""
    return _root(jnp.sum(jnp.square(x), axis=axis))


def _power(x: Array, p: Any) -> Array:
    """x^p for x >= 0 and p > 0, with derivative zero (not NaN or infinite) at zero."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.where(zero, 1, x) ** p)


def _norm(tree: PyTree, p: Any) -> Array:
    """The p-norm of all entries; scaled by the largest, so that no power overflows."""
    largest = jax.lax.stop_gradient(_largest(tree))
    scale = jnp.where(largest == 0, 1, largest)
    total = _total(lambda leaf: _power(jnp.abs(leaf) / scale, p), tree)
    return (scale * _power(total, 1 / p)).astype(dtype_of(tree))


def _singular_values(x: Array) -> Array:
    return jnp.linalg.svd(jnp.atleast_2d(x), compute_uv=False)
