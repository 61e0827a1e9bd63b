r"""Monotone inclusions with finite sums: equilibria of games, saddle points, variational inequalities, fixed points.

$$\text{find } u \text{ with } 0 \in F(u) + G(u), \qquad F = \frac1n \sum_{i=1}^n F_i ,$$

F monotone, G maximally monotone and known through its resolvent \(J_{\eta G} = (I + \eta G)^{-1}\): the projection onto a
set if G is its normal cone, a proximal operator if G is a subdifferential. u is a solution exactly where the residual

$$r_\eta(u) = \tfrac1\eta \big(u - J_{\eta G}(u - \eta F(u))\big)$$

is zero. Its norm can be computed, which a duality gap in general cannot, and bounds the distance of F(u) + G(u) from
zero from below (Cai, Alacaoglu and Diakonikolas 2024, section 2).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..core.errors import ArgumentError
from ..core.problem import Problem
from ..core.tracing import (
    as_arrays,
    inside_transformation,
    is_tracer,
    need_callable,
    need_same_structure,
    trace_function,
)
from .arguments import need_count
from .vectors import add, combine, dot, dtype_of, norm, select, size, subtract

__all__ = ["MonotoneInclusion", "operator_residual"]

_CHUNK = 2**22  # numbers that the components of a full evaluation may fill at a time


class Draw(NamedTuple):
    """Components of one of the sums, drawn with replacement: `weights` are 1 / (n q_i)."""

    indices: Int[Array, " batch"]
    weights: Float[Array, " batch"]


class MonotoneInclusion(Problem):
    r"""Find `u` with 0 in F(u) + G(u), F the mean of `n` components.

    **Arguments:**

    - `components`: `components(u, i, *args)` is \(F_i(u)\), with the structure of `u`, for an integer i below `n`. A tuple
      of such functions stands for the sum of their means, and a sample draws from each: a matrix game is a sum over
      columns and one over rows.
    - `n`: how many components there are; a tuple, if `components` is one and its sums are not equally long.
    - `resolvent`: `resolvent(v, eta, *resolvent_args)` = (I + eta G)^{-1} v. None: G = 0.
    - `args`, `resolvent_args`: a solution can be differentiated with respect to their floating-point arrays.
    - `operator`: `operator(u, *args)` = F(u) at once, if that is cheaper than its components one by one. It counts as all
      of them.
    - `probabilities`: with which components are drawn (one array, or one for each sum); uniform by default. With
      probabilities in proportion to the Lipschitz constants of the components the constant L below is least.
    - `linear`: whether \(F_i(u) - F_i(v) = F_i(u - v)\). Then the difference of a component between two points costs one
      call, not two.
    - `probes`: random pairs of points at which an eager solve looks, before it starts, whether all this is true: a
      resolvent that is not nonexpansive, an `operator` that is not the mean of the components, or a wrong `linear` raises
      `ArgumentError`; a pair with <F(u) - F(v), u - v> < 0 warns. It costs two evaluations of F a pair, which no counter
      counts; 0 trusts you.

    The methods speak of two constants: \(L_F\), the Lipschitz constant of F, and the average one L with
    \(\mathbb E_q \lVert (F_i(u) - F_i(v)) / (n q_i) \rVert^2 \le L^2 \lVert u - v \rVert^2\), or in the cocoercive case
    \(\langle F(u) - F(v), u - v \rangle \ge \tfrac1L \mathbb E_q \lVert (F_i(u) - F_i(v)) / (n q_i) \rVert^2\);
    \(L_F \le L \le \sqrt n L_F\).

    A guess outside the domain of G starts from its projection, with a warning. The condition that is differentiated is
    \(u - J_G(u - F(u))\).

    **Raises:** `ArgumentError`, naming the argument; `ObjectiveError` if a component or the resolvent does not return what
    `u` looks like.

    ```python
    rows = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    fit = om.smooth.MonotoneInclusion(lambda u, i, a, b: a[i] * (a[i] @ u - b[i]), 3, None, rows, jnp.ones(3))
    om.solve(fit, om.smooth.Halpern(lipschitz=2.5, tolerance=1e-2), jnp.zeros(2)).value
    ```
    """

    components: tuple[Callable, ...]
    resolvent_fn: Callable
    operator_fn: Callable | None
    args: tuple
    resolvent_args: tuple
    probabilities: tuple[Float[Array, " n"], ...] | None
    cumulative: tuple[Float[Array, " n"], ...] | None
    n: tuple[int, ...] = eqx.field(static=True)
    linear: bool = eqx.field(static=True)
    probes: int = eqx.field(static=True)

    def __init__(
        self,
        components: Callable | tuple[Callable, ...],
        n: int | tuple[int, ...],
        resolvent: Callable | None = None,
        *args: PyTree,
        resolvent_args: tuple = (),
        operator: Callable | None = None,
        probabilities: Any = None,
        linear: bool = False,
        probes: int = 4,
    ):
        functions = components if isinstance(components, tuple) else (components,)
        counts = n if isinstance(n, tuple) else (n,) * len(functions)
        if len(counts) != len(functions) or not functions:
            raise ArgumentError("n", f"must be {len(functions)} numbers, one for each sum of components, not {n!r}.")
        for count in counts:
            need_count("n", count)
        need_count("probes", probes, least=0)
        self.components = tuple(need_callable(fn, "components") for fn in functions)
        self.n = tuple(int(count) for count in counts)
        self.resolvent_fn = _identity if resolvent is None else need_callable(resolvent, "resolvent")
        self.operator_fn = None if operator is None else need_callable(operator, "operator")
        self.args = as_arrays(args)
        self.resolvent_args = as_arrays(tuple(resolvent_args))
        if probabilities is not None:
            listed = probabilities if isinstance(probabilities, tuple) else (probabilities,)
            probabilities = _distributions(listed, self.n)
        self.probabilities = probabilities
        self.cumulative = None if probabilities is None else tuple(jnp.cumsum(q) for q in probabilities)
        self.linear = bool(linear)
        self.probes = probes

    @staticmethod
    def saddle(
        phi: Callable,
        project_x: Callable | None = None,
        project_y: Callable | None = None,
        *args: PyTree,
        n: int | None = None,
        **options: Any,
    ) -> "MonotoneInclusion":
        r"""min over x, max over y of a convex-concave `phi`: F = (grad_x phi, -grad_y phi) on u = (x, y).

        **Arguments:**

        - `phi`: `phi(x, y, *args)`, a scalar; with `n` it is `phi(x, y, i, *args)`, and the objective is the mean over i.
        - `project_x`, `project_y`: onto the sets of x and of y; None leaves them free.
        - `options`: those of `MonotoneInclusion`.

        ```python
        phi = lambda x, y: 0.5 * x**2 + x * y - 0.5 * y**2 + x
        game = om.smooth.MonotoneInclusion.saddle(phi)
        om.solve(game, om.smooth.Extragradient(lipschitz=1.5), (0.0, 0.0)).value      # (-0.5, -0.5)
        ```
        """
        need_callable(phi, "phi")
        for name, project in (("project_x", project_x), ("project_y", project_y)):
            if project is not None:
                need_callable(project, name)
        component = _Saddle(phi, indexed=n is not None)
        project = _OnProduct(project_x or _same, project_y or _same)
        return MonotoneInclusion(component, 1 if n is None else n, project, *args, **options)

    @property
    def sums(self) -> int:
        """How many sums of components there are: of how many a single sample calls one."""
        return len(self.n)

    @property
    def total(self) -> int:
        """Component calls that one evaluation of F costs."""
        return sum(self.n)

    def operator(self, u: PyTree) -> PyTree:
        """F(u), from all components."""
        if self.operator_fn is not None:
            return self.operator_fn(u, *self.args)
        return self.mean_of_components(u)

    def mean_of_components(self, u: PyTree) -> PyTree:
        """F(u) from the components, even if `operator` gives it at once."""
        means = [_mean(fn, n, u, self.args) for fn, n in zip(self.components, self.n, strict=True)]
        return jtu.tree_map(lambda *parts: sum(parts[1:], parts[0]), *means)

    def resolvent(self, v: PyTree, step_size: Any) -> PyTree:
        """J(v) of `step_size * G`."""
        moved = self.resolvent_fn(v, jnp.asarray(step_size, dtype_of(v)), *self.resolvent_args)
        return jtu.tree_map(lambda new, old: new.astype(old.dtype), moved, v)

    def forward_backward(self, base: PyTree, direction: PyTree, step_size: Any, backward: Any = None) -> PyTree:
        """J(base - step_size * direction), of `backward * G` if that is not `step_size * G`."""
        return self.resolvent(add(base, direction, -step_size), step_size if backward is None else backward)

    def draw(self, key: Array, batch: int) -> tuple[Draw, ...]:
        """`batch` components of each sum, with replacement."""
        draws = []
        for number, (part, n) in enumerate(zip(jax.random.split(key, self.sums), self.n, strict=True)):
            if self.probabilities is None or self.cumulative is None:
                draws.append(Draw(jax.random.randint(part, (batch,), 0, n, jnp.int32), jnp.ones((batch,))))
                continue
            q, cumulative = jax.lax.stop_gradient((self.probabilities[number], self.cumulative[number]))
            at = jax.random.uniform(part, (batch,), q.dtype) * cumulative[-1]
            indices = jnp.minimum(jnp.searchsorted(cumulative, at, side="right"), n - 1).astype(jnp.int32)
            draws.append(Draw(indices, 1 / (n * q[indices])))
        return tuple(draws)

    def difference(self, u: PyTree, v: PyTree, draws: tuple[Draw, ...]) -> PyTree:
        """An estimate of F(u) - F(v) without bias, from the components drawn."""
        parts = []
        for fn, draw in zip(self.components, draws, strict=True):
            if self.linear:
                moved = subtract(u, v)
                each = jax.vmap(lambda i, fn=fn, moved=moved: fn(moved, i, *self.args))(draw.indices)
            else:  # one call site: it is compiled once
                both = jtu.tree_map(lambda a, b: jnp.stack([a, b]), u, v)
                call = jax.vmap(lambda w, i, fn=fn: fn(w, i, *self.args), in_axes=(0, None))
                values = jax.vmap(call, in_axes=(None, 0))(both, draw.indices)
                each = jtu.tree_map(lambda leaf: leaf[:, 0] - leaf[:, 1], values)
            parts.append(combine(draw.weights / draw.weights.size, each))
        return jtu.tree_map(lambda *terms: sum(terms[1:], terms[0]), *parts)

    def difference_calls(self, batch: int) -> int:
        """Component calls that `difference` costs."""
        return self.sums * batch * (1 if self.linear else 2)

    def optimality(self, value: PyTree) -> PyTree:
        return subtract(value, self.forward_backward(value, self.operator(value), 1.0))

    def at_guess(self, value: PyTree) -> PyTree:
        return self.operator(value)

    def start(self, guess: PyTree) -> PyTree:
        guess = super().start(guess)
        super().check(guess)
        unknown, rest = eqx.partition(guess, eqx.is_inexact_array)
        unknown = jtu.tree_map(jnp.asarray, unknown)
        inside = self._with_traced_resolvent(guess).resolvent(unknown, _tiny(unknown))
        scale = 1 + norm(unknown)
        outside = norm(subtract(inside, unknown)) > jnp.sqrt(jnp.finfo(scale.dtype).eps) * scale
        if not is_tracer(outside):
            if not bool(outside):  # the guess itself, to the bit
                return guess
            warnings.warn("the guess lies outside the domain of G; the solve starts from its projection", stacklevel=3)
        return eqx.combine(select(outside, inside, unknown), rest)

    def check(self, guess: PyTree) -> None:
        super().check(guess)
        if self.probes and not inside_transformation(self, guess):
            unknown = jtu.tree_map(jnp.asarray, eqx.filter(guess, eqx.is_inexact_array))
            _report(_probe(self.traced(guess), unknown, self.probes), self, dtype_of(unknown))

    def _with_traced_resolvent(self, guess: PyTree) -> "MonotoneInclusion":
        unknown = eqx.filter(guess, eqx.is_inexact_array)
        number = jax.ShapeDtypeStruct((), dtype_of(unknown))
        resolvent = trace_function("resolvent", self.resolvent_fn, guess, number, *self.resolvent_args)
        need_same_structure("resolvent", resolvent.output, guess)
        return eqx.tree_at(lambda p: p.resolvent_fn, self, resolvent)

    def traced(self, guess: PyTree) -> "MonotoneInclusion":
        index = jax.ShapeDtypeStruct((), jnp.int32)
        components = tuple(trace_function("components", fn, guess, index, *self.args) for fn in self.components)
        for component in components:
            need_same_structure("components", component.output, guess)
        operator = self.operator_fn
        if operator is not None:
            operator = trace_function("operator", operator, guess, *self.args)
            need_same_structure("operator", operator.output, guess)
        return eqx.tree_at(
            lambda p: (p.components, p.operator_fn),
            self._with_traced_resolvent(guess),
            (components, operator),
            is_leaf=lambda leaf: leaf is None,
        )


def operator_residual(problem: MonotoneInclusion, value: PyTree, step_size: Any = 1.0) -> Array:
    r"""The norm of \(r_\eta(u) = (u - J_{\eta G}(u - \eta F(u))) / \eta\) at `value`: zero exactly at a solution.

    **Arguments:** `step_size` is eta. The norm does not grow with it, and is that of F(u) whatever eta if G = 0. Methods
    report it at eta = 1.

    It is at most the norm of F(u) + g for every g in G(u).

    ```python
    game = om.smooth.matrix_game("symmetric-1", 20)
    om.smooth.operator_residual(game, (jnp.full(20, 0.05), jnp.full(20, 0.05)))
    ```
    """
    return residual_at(problem, value, problem.operator(value), step_size)


def residual_at(problem: MonotoneInclusion, u: PyTree, operator: PyTree, step_size: Any = 1.0) -> Array:
    """The same, where F(u) is known."""
    return norm(subtract(u, problem.forward_backward(u, operator, step_size))) / step_size


def _tiny(unknown: PyTree) -> float:
    """A step so small that a resolvent with it only projects."""
    return float(jnp.finfo(dtype_of(unknown)).eps) ** 1.5


def _identity(v, step_size):
    return v


def _same(v):
    return v


class _Saddle(eqx.Module):
    """(grad_x phi, -grad_y phi) as a component."""

    phi: Callable
    indexed: bool = eqx.field(static=True)

    def __call__(self, u, i, *args):
        rest = (i, *args) if self.indexed else args
        by_x, by_y = jax.grad(lambda u: self.phi(*u, *rest))(u)
        return by_x, jtu.tree_map(jnp.negative, by_y)


class _OnProduct(eqx.Module):
    """The projection of a pair."""

    project_x: Callable
    project_y: Callable

    def __call__(self, v, step_size):
        x, y = v
        return self.project_x(x), self.project_y(y)


def _mean(fn: Callable, n: int, u: PyTree, args: tuple) -> PyTree:
    """The mean of `n` components, a chunk of them at a time."""
    every = jax.vmap(lambda i: fn(u, i, *args))
    chunk = max(1, min(n, _CHUNK // max(1, size(u))))
    if chunk == n:
        return jtu.tree_map(lambda leaf: jnp.mean(leaf, axis=0), every(jnp.arange(n, dtype=jnp.int32)))

    def add_chunk(total, first):
        numbers = first + jnp.arange(chunk, dtype=jnp.int32)
        there = (numbers < n).astype(dtype_of(u))
        return add(total, combine(there, every(jnp.minimum(numbers, n - 1)))), None

    zeros = jtu.tree_map(jnp.zeros_like, u)
    total, _ = jax.lax.scan(add_chunk, zeros, jnp.arange(0, n, chunk, dtype=jnp.int32))
    return jtu.tree_map(lambda leaf: leaf / n, total)


def _distributions(probabilities: tuple, counts: tuple[int, ...]) -> tuple[Array, ...]:
    if len(probabilities) != len(counts):
        raise ArgumentError("probabilities", f"must be {len(counts)} arrays, one for each sum of components.")
    arrays = []
    for q, n in zip(probabilities, counts, strict=True):
        q = jnp.asarray(q)
        if q.shape != (n,) or not jnp.issubdtype(q.dtype, jnp.floating):
            raise ArgumentError("probabilities", f"must be {n} floating-point numbers, not of shape {q.shape}.")
        if not is_tracer(q):
            known = np.asarray(q, float)
            if not (np.all(known > 0) and np.all(np.isfinite(known))):
                raise ArgumentError("probabilities", "must be positive: what is never drawn is missing from the sum.")
            if abs(known.sum() - 1) > 1e-4:
                raise ArgumentError("probabilities", f"must sum to 1, not to {known.sum():g}.", "Divide by the sum.")
        arrays.append(q / jnp.sum(q))
    return tuple(arrays)


@eqx.filter_jit
def _probe(problem: MonotoneInclusion, guess: PyTree, pairs: int) -> dict[str, Any]:
    """What the promises about a problem come to at random pairs of points near the guess, always the same."""
    spread = 1 + norm(guess) / jnp.sqrt(size(guess))
    leaves, structure = jtu.tree_flatten(guess)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    noise = [jax.random.normal(key, (2 * pairs, *x.shape), x.dtype) for key, x in zip(keys, leaves, strict=True)]
    points = jtu.tree_unflatten(structure, [x + spread.astype(x.dtype) * e for x, e in zip(leaves, noise, strict=True)])
    of_both = jax.vmap(problem.resolvent, in_axes=(None, 0))
    images = jax.vmap(of_both, in_axes=(0, None))(points, jnp.asarray([1.0, _tiny(guess)], dtype_of(guess)))
    image, inside = (jtu.tree_map(lambda leaf, i=i: leaf[:, i], images) for i in (0, 1))
    values = jax.vmap(problem.operator)(inside)
    gap = lambda tree: jtu.tree_map(lambda leaf: leaf[:pairs] - leaf[pairs:], tree)
    length = jax.vmap(norm)
    found: dict[str, Any] = {
        "points": inside,
        "products": jax.vmap(dot)(gap(values), gap(inside)),
        "size": (length(values) * length(inside)).reshape(2, pairs).max(axis=0),
        "expansion": jnp.nanmax(length(gap(image)) / length(gap(points))),
    }
    first, last = (jtu.tree_map(lambda leaf, i=i: leaf[i], inside) for i in (0, -1))
    off = lambda a, b: norm(subtract(a, b)) / (norm(a) + norm(b) + jnp.finfo(dtype_of(guess)).tiny)
    if problem.operator_fn is not None:
        found["mean"] = off(problem.operator(first), problem.mean_of_components(first))
    if problem.linear:
        three = jtu.tree_map(lambda a, b: jnp.stack([a, b, a - b]), first, last)
        for fn in problem.components:
            at = jax.vmap(lambda u, fn=fn: fn(u, jnp.int32(0), *problem.args))(three)
            a, b, c = (jtu.tree_map(lambda leaf, i=i: leaf[i], at) for i in range(3))
            found["linear"] = jnp.maximum(found.get("linear", 0.0), off(subtract(a, b), c))
    return found


def _report(found: dict[str, Any], problem: MonotoneInclusion, dtype: Any) -> None:
    rounding = float(jnp.finfo(dtype).eps)
    bound = 100 * rounding**0.75
    expansion = float(found["expansion"])
    if expansion > 1 + bound:
        raise ArgumentError(
            "resolvent",
            f"is not nonexpansive: it moves two points apart by the factor {expansion:.6g}.",
            "That of a monotone operator never does.",
        )
    if "mean" in found and float(found["mean"]) > bound:
        raise ArgumentError(
            "n",
            f"= {problem.n if problem.sums > 1 else problem.n[0]} components do not have the mean `operator`: the two "
            f"differ by {float(found['mean']):.3g}, relative.",
            "Components are averaged over n, not summed.",
        )
    if "linear" in found and float(found["linear"]) > bound:
        text = f"is not true: F_i(u) - F_i(v) differs from F_i(u - v) by {float(found['linear']):.3g}, relative."
        raise ArgumentError("linear", text)
    products = np.asarray(found["products"])
    wrong = np.flatnonzero(products < -1e-8 - 10 * rounding * np.asarray(found["size"]))
    if len(wrong):
        pair = int(wrong[0])
        u, v = (jtu.tree_map(lambda leaf, i=i: np.asarray(leaf[i]), found["points"]) for i in (pair, pair + len(products)))
        with np.printoptions(threshold=8, edgeitems=2, precision=4):
            warnings.warn(
                f"F is not monotone: <F(u) - F(v), u - v> = {products[pair]:.4g} at the pair\n  u = {u}\n  v = {v}\n"
                "Methods for monotone inclusions may diverge.",
                stacklevel=4,
            )
