r"""Optimality conditions, ready to be differentiated: the catalogue of Blondel et al. 2022, section 2.2 and table 1.

Each constructor returns a condition `F(x, *params)` that is zero at a solution and has the structure of `x`. It goes
into `optimand.implicit(F)`, which makes any solver differentiable, or into `Implicit(condition=F)`, where the one
parameter is the problem. What a set or a penalty is, is told by its projection or proximal operator (those of
`optimand.smooth.projections` and `.proximal`, or your own); it may depend on the parameters as the objective does.

| condition | solution of | F |
|---|---|---|
| `stationary(f)` | min f(x) | grad f |
| `kkt(f, h, g)` | min f, h = 0, g <= 0 | the KKT conditions on a `PrimalDual` |
| `proximal_gradient(f, prox)` | min f + g | prox(x - eta grad f) - x |
| `projected_gradient(f, projection)` | min f over C | proj_C(x - eta grad f) - x |
| `mirror_descent(f)` | min f over the simplex, or any C with a mirror map | proj_C^phi(grad phi(x) - eta grad f) - x |
| `newton(r)` | r(x) = 0 | r |
| `block_proximal(f, proxes)` | min f + sum of g_i(x_i) | the same, block by block |
| `conic_residual(projection)` | a cone program | the homogeneous self-dual residual |
| `simplex_weights(f, vertices, projection)` | min f over a polytope given by its vertices | the projected gradient of the weights |
| `fixed_point(T)` | x = T(x) | T - x |

```python
distance = lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2)

@om.implicit(om.core.optimality.projected_gradient(distance, lambda y, theta: jnp.maximum(y, 0)))
def nearest_nonnegative(guess, theta):
    return jnp.maximum(theta, 0)

jax.jacobian(nearest_nonnegative, argnums=1)(jnp.zeros(2), jnp.array([1.0, -1.0]))     # diag(1, 0)
```

Where F is not smooth (a projection at a kink) its derivative is one that automatic differentiation gives, an element of
the Clarke Jacobian in the cases of this library; it is the derivative of the solution almost everywhere.
`active_set_degeneracy` says when that is in doubt, and `jacobian_precision` measures how the derivative's error follows
that of the solution.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .adjoint import refuse_catch_all, root_jvp
from .constrained import Constrained, PrimalDual
from .errors import ArgumentError
from .tracing import as_arrays, need_callable

__all__ = [
    "JacobianPrecision",
    "active_set_degeneracy",
    "block_proximal",
    "conic_point",
    "conic_residual",
    "conic_solution",
    "fixed_point",
    "jacobian_precision",
    "kkt",
    "mirror_descent",
    "newton",
    "projected_gradient",
    "proximal_gradient",
    "simplex_weights",
    "stationary",
]


class _Condition(eqx.Module):
    """A condition `F(x, *params)` made of functions. `symmetric`: its Jacobian in x is. `weak`: says where x has a kink."""

    call: Callable
    parts: tuple
    symmetric: bool = eqx.field(static=True, default=False)
    weak: Callable | None = None

    def __call__(self, x: PyTree, *params: PyTree) -> PyTree:
        return self.call(self.parts, x, params)

    @property
    def weakly_active(self) -> Callable | None:
        """`Constrained.weakly_active` as a function of (x, *params), if it is the condition of a constrained problem."""
        weak = self.weak
        return None if weak is None else lambda x, *params: weak(self.parts, x, params)


def _function(fn: Any, name: str) -> Callable:
    need_callable(fn, name)
    refuse_catch_all(fn, name)
    return fn


def _step_size(step_size: Any, name: str = "step_size") -> Any:
    if isinstance(step_size, int | float) and not step_size > 0:
        raise ArgumentError(name, f"must be positive, not {step_size!r}.")
    return step_size


def _gradient(fn: Callable, x: PyTree, params: tuple) -> PyTree:
    """grad_1 fn, with None for the leaves of x that are no floating-point arrays."""
    unknown, rest = eqx.partition(as_arrays(x), eqx.is_inexact_array)
    return jax.grad(lambda unknown: fn(eqx.combine(unknown, rest), *params))(unknown)


def _moved(x: PyTree, direction: PyTree, step_size: Any) -> PyTree:
    """x - step_size * direction; leaves without a direction stay."""
    move = lambda g, x: x if g is None else x - jnp.asarray(step_size, g.dtype) * g
    return jtu.tree_map(move, direction, x, is_leaf=lambda leaf: leaf is None)


def _change(image: PyTree, x: PyTree) -> PyTree:
    """image - x on the unknowns."""
    unknown = eqx.filter(as_arrays(x), eqx.is_inexact_array)
    return jtu.tree_map(lambda image, x: image - x, eqx.filter(image, eqx.is_inexact_array), unknown)


def stationary(fn: Callable) -> _Condition:
    """The gradient of `fn(x, *params)` in x is zero. Source: Blondel et al. 2022, section 2.2."""

    def call(parts, x, params):
        return _gradient(parts[0], x, params)

    return _Condition(call, (_function(fn, "fn"),), symmetric=True)


def kkt(fn: Callable, equalities: Callable | None = None, inequalities: Callable | None = None) -> _Condition:
    """The KKT conditions of min `fn` subject to `equalities` = 0 and `inequalities` <= 0, on a `PrimalDual`.

    Each is a function of `(x, *params)`. Multipliers of inequalities are not negative. The value is a
    `PrimalDual(x, nu, mu)`, with `None` where there is no such constraint. Source: Blondel et al. 2022, section 2.2.
    """
    parts = tuple(
        function if function is None else _function(function, name)
        for function, name in ((fn, "fn"), (equalities, "equalities"), (inequalities, "inequalities"))
    )

    def call(parts, value, params):
        if not isinstance(value, PrimalDual):
            raise ArgumentError("value", f"must be a PrimalDual, not {type(value).__name__}.", "PrimalDual(x, nu, mu)")
        return problem(parts, params).optimality(value)

    def problem(parts, params):
        fn, equalities, inequalities = parts
        return Constrained(fn, *params, equalities=equalities, inequalities=inequalities)

    return _Condition(call, parts, weak=lambda parts, value, params: problem(parts, params).weakly_active(value))


def proximal_gradient(fn: Callable, prox: Callable, *, step_size: Any = 1.0) -> _Condition:
    """x is a fixed point of the proximal gradient step; the derivative does not depend on the step size.

    **Arguments:** `fn(x, *params)`, the smooth part, and `prox(y, step_size, *params)`, the proximal operator of
    `step_size` times the other part. Source: Blondel et al. 2022, section 2.2.
    """

    def call(parts, x, params):
        fn, prox, step_size = parts
        return _change(prox(_moved(x, _gradient(fn, x, params), step_size), step_size, *params), x)

    return _Condition(call, (_function(fn, "fn"), _function(prox, "prox"), _step_size(step_size)))


def projected_gradient(fn: Callable, projection: Callable, *, step_size: Any = 1.0) -> _Condition:
    """x is a fixed point of the projected gradient step, with `projection(y, *params)` onto the feasible set.

    Source: Blondel et al. 2022, section 2.2.
    """

    def call(parts, x, params):
        fn, projection, step_size = parts
        return _change(projection(_moved(x, _gradient(fn, x, params), step_size), *params), x)

    return _Condition(call, (_function(fn, "fn"), _function(projection, "projection"), _step_size(step_size)))


def mirror_descent(
    fn: Callable,
    projection: Callable | None = None,
    mirror: Callable | None = None,
    *,
    step_size: Any = 1.0,
) -> _Condition:
    r"""x is a fixed point of the mirror descent step \(\mathrm{proj}^\varphi(\nabla \varphi(x) - \eta \nabla f(x))\).

    **Arguments:** `projection(y, *params)`, the Bregman projection as a function of the dual point, and `mirror(x)`, the
    gradient of phi. By default those of the entropy on the simplex (the last axis of each array):
    softmax(log x - eta grad f), written as x exp(-eta grad f) over its sum, which is finite where x is zero.

    Source: Blondel et al. 2022, section 2.2.
    """
    if (projection is None) != (mirror is None):
        missing = "projection" if projection is None else "mirror"
        raise ArgumentError(missing, "is missing.", "Give both, or neither for the entropy on the simplex.")

    def entropic(parts, x, params):
        fn, step_size = parts
        reweighted = jtu.tree_map(
            lambda g, x: x if g is None else _reweighted(x, -jnp.asarray(step_size, g.dtype) * g),
            _gradient(fn, x, params),
            as_arrays(x),
            is_leaf=lambda leaf: leaf is None,
        )
        return _change(reweighted, x)

    def general(parts, x, params):
        fn, projection, mirror, step_size = parts
        dual = _moved(mirror(x), _gradient(fn, x, params), step_size)
        return _change(projection(dual, *params), x)

    step_size = _step_size(step_size)
    if projection is None or mirror is None:
        return _Condition(entropic, (_function(fn, "fn"), step_size))
    return _Condition(
        general, (_function(fn, "fn"), _function(projection, "projection"), need_callable(mirror, "mirror"), step_size)
    )


def _reweighted(x: Float[Array, "... n"], logits: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """softmax(log x + logits) along the last axis."""
    largest = jnp.max(jnp.where(x > 0, logits, -jnp.inf), axis=-1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    weights = x * jnp.exp(jnp.minimum(logits - largest, 60.0))  # what is zero stays zero, however much it would gain
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def newton(residual: Callable) -> _Condition:
    """The solution of `residual(x, *params) = 0` as the fixed point of Newton's method.

    At a root the derivative of Newton's step, x - (d_1 r)^-1 r, is that of the root itself (Blondel et al. 2022, section 2.2):
    so the condition is the residual, and no second derivative is needed.
    """

    def call(parts, x, params):
        return parts[0](x, *params)

    return _Condition(call, (_function(residual, "residual"),))


def block_proximal(fn: Callable, proxes: Any, *, step_sizes: Any = 1.0) -> _Condition:
    """x is a fixed point of proximal gradient steps of its blocks, as block coordinate descent ends in.

    **Arguments:** the blocks are the children of x, a tuple, list or dict. `proxes` is one
    `prox(block, step_size, *params)` for each (a container like x), or one for all; `step_sizes` likewise. A prox of
    `None` is that of zero. Source: Blondel et al. 2022, section 2.2.
    """

    def call(parts, x, params):
        fn, proxes, step_sizes = parts
        gradient = _gradient(fn, x, params)
        blocks, structure = _children(x)
        directions, _ = _children(gradient)
        images = [
            moved if prox is None else prox(moved, step_size, *params)
            for block, direction, prox, step_size in zip(
                blocks,
                directions,
                _each(proxes, structure, "proxes"),
                _each(step_sizes, structure, "step_sizes"),
                strict=True,
            )
            for moved in [_moved(block, direction, step_size)]
        ]
        return _change(jtu.tree_unflatten(structure, images), x)

    for step_size in jtu.tree_leaves(step_sizes):
        _step_size(step_size, "step_sizes")
    for prox in jtu.tree_leaves(proxes):
        _function(prox, "proxes")
    return _Condition(call, (_function(fn, "fn"), proxes, step_sizes))


def _children(tree: PyTree) -> tuple[list, Any]:
    return jtu.tree_flatten(tree, is_leaf=lambda node: node is not tree)


def _each(given: Any, structure: Any, name: str) -> list:
    if not isinstance(given, tuple | list | dict):
        return [given] * structure.num_leaves
    children = [given[key] for key in sorted(given)] if isinstance(given, dict) else list(given)
    if len(children) != structure.num_leaves:
        raise ArgumentError(name, f"has {len(children)} entries for {structure.num_leaves} blocks.")
    return children


def conic_residual(projection: Callable) -> _Condition:
    r"""The residual of the homogeneous self-dual embedding of a cone program.

    $$\min_x c^\top x \;\text{s.t.}\; A x + s = b,\; s \in K
      \qquad\text{dual}\qquad A^\top y + c = 0,\; y \in K^* .$$

    The unknown is \(z = (u, v, w)\) of `conic_point`: \(u = x\), \(v = y - s\), \(w = 1\). With
    \(\Pi z = (u, \mathrm{proj}_{K^*} v, \max(w, 0))\) and the skew matrix \(Q\) of \((A, b, c)\), z is a solution if
    \((Q - I) \Pi z + z = 0\). Any multiple of a solution is one, so \(w = 1\) is added to the condition, along the left
    null vector \(\Pi z\) of its Jacobian, which is then regular if the program's solution is.

    **Arguments:** `projection(v)` onto the dual cone. The parameters of the condition are `A`, `b`, `c`.

    Source: Busseti, Moursi and Boyd 2019; Agrawal et al. 2019; Blondel et al. 2022, section 2.2.
    """

    def call(parts, z, params):
        a, b, c = params
        u, v, w = z
        y, tau = parts[0](v), jnp.maximum(w, 0)
        # Q = [[0, A', c], [-A, 0, b], [-c', -b', 0]]
        top = a.T @ y + c * tau
        middle = b * tau - a @ u + (v - y)
        bottom = -(c @ u) - b @ y + (w - tau)
        excess = w - 1
        return top + excess * u, middle + excess * y, bottom + excess * tau

    return _Condition(call, (_function(projection, "projection"),))


def conic_point(x: Float[Array, " n"], y: Float[Array, " m"], s: Float[Array, " m"]) -> tuple[Array, Array, Array]:
    """The unknown z of `conic_residual` for a primal solution x with slack s, and a dual solution y."""
    return x, y - s, jnp.ones((), x.dtype)


def conic_solution(z: tuple[Array, Array, Array], projection: Callable) -> tuple[Array, Array, Array]:
    """x, y and s of a z."""
    u, v, w = z
    y = projection(v)
    return u / w, y / w, (y - v) / w


def simplex_weights(
    fn: Callable, vertices: Callable | Array | np.ndarray, projection: Callable, *, step_size: Any = 1.0
) -> _Condition:
    """x = V'p is optimal among convex combinations of the vertices (rows of V): for Frank-Wolfe and SparseMAP.

    The unknown is the vector p of weights.

    **Arguments:** `fn(x, *params)`; `vertices`, a matrix or a function `vertices(*params)` that returns one;
    `projection(p)` onto the simplex. Source: Blondel et al. 2022, section 2.2.
    """

    def call(parts, p, params):
        fn, vertices, projection, step_size = parts
        matrix: Any = vertices(*params) if callable(vertices) else vertices
        weights = lambda p: fn(matrix.T @ p, *params)
        return projection(p - jnp.asarray(step_size, p.dtype) * jax.grad(weights)(p)) - p

    vertices = _function(vertices, "vertices") if callable(vertices) else jnp.asarray(vertices)
    parts = (_function(fn, "fn"), vertices, _function(projection, "projection"), _step_size(step_size))
    return _Condition(call, parts)


def fixed_point(fn: Callable) -> _Condition:
    """x = `fn(x, *params)`: an equilibrium of a time stepper, a layer defined by its fixed point, any contraction.

    Source: Blondel et al. 2022, section 2.2.
    """

    def call(parts, x, params):
        return _change(parts[0](x, *params), x)

    return _Condition(call, (_function(fn, "fn"),))


# How far a derivative can be trusted.


def active_set_degeneracy(
    multipliers: PyTree, constraints: PyTree, *, tolerance: float = 1e-6, warn: bool = True
) -> PyTree[Bool[Array, "..."]]:
    """Where an inequality constraint is neither active nor inactive: its multiplier and its value are both nearly zero.

    There the solution has a kink as a function of the parameters, and its derivative is one-sided at best.

    **Arguments:** `multipliers`, as `PrimalDual.inequality`, and the values of the constraints g(x) at the solution, with
    the same structure. `warn`: raise a `RuntimeWarning` that names the constraints.

    **Returns:** booleans, with the structure of the constraints.
    """
    if tolerance < 0:
        raise ArgumentError("tolerance", f"must not be negative, not {tolerance!r}.")
    if jtu.tree_structure(multipliers) != jtu.tree_structure(constraints):
        raise ArgumentError("multipliers", "must have the structure of the constraints.")
    both_small = lambda m, g: (jnp.abs(m) < tolerance) & (jnp.abs(g) < tolerance)
    degenerate = jtu.tree_map(both_small, multipliers, constraints)
    if warn:
        jax.debug.callback(_warn_degenerate, degenerate)
    return degenerate


def _warn_degenerate(degenerate):
    found = [
        jtu.keystr(path) + (str(list(map(int, where))) if len(where) else "")
        for path, leaf in jtu.tree_leaves_with_path(degenerate)
        for where in np.argwhere(np.asarray(leaf))
    ]
    if found:
        names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        warnings.warn(
            f"{len(found)} constraint(s) have a multiplier and a value of nearly zero ({names}): "
            "the derivative of the solution is one-sided there.",
            RuntimeWarning,
            stacklevel=2,
        )


class JacobianPrecision(eqx.Module):
    """A measured curve: `iterate_error[t]` = |x_t - x*|, `jacobian_error[t]` = |J(x_t) - J(x*)| in the Frobenius norm."""

    iterate_error: Float[Array, " iterates"]
    jacobian_error: Float[Array, " iterates"]

    @property
    def constant(self) -> Array:
        """The largest ratio of the two: an estimate of the constant C in theorem 1."""
        return jnp.max(jnp.where(self.iterate_error > 0, self.jacobian_error / self.iterate_error, 0.0))

    @property
    def slope(self) -> Array:
        """The slope of log error of J against log error of x by least squares, without the errors at round-off."""
        floor = 1e3 * jnp.finfo(self.jacobian_error.dtype).eps
        used = (self.iterate_error > floor) & (self.jacobian_error > floor)
        weight = used / jnp.maximum(jnp.sum(used), 1)
        x, y = (jnp.log(jnp.where(used, e, 1.0)) for e in (self.iterate_error, self.jacobian_error))
        x, y = x - jnp.sum(weight * x), y - jnp.sum(weight * y)
        return jnp.sum(weight * x * y) / jnp.sum(weight * x * x)


def jacobian_precision(
    optimality: Callable,
    iterates: PyTree,
    solution: PyTree,
    params: tuple,
    *,
    jacobian: PyTree = None,
    **options: Any,
) -> JacobianPrecision:
    r"""How the error of the implicit Jacobian follows the error of the point it is taken at.

    Theorem 1 of Blondel et al. 2022: \(\lVert J(\hat x) - J(x^\star) \rVert \le C \lVert \hat x - x^\star \rVert\).

    **Arguments:**

    - `optimality`: `F(x, *params)`.
    - `iterates`: points with the structure of `solution` and a leading axis.
    - `jacobian`: the Jacobian at the solution, if it is known in closed form, as a matrix (size of x, size of the
      parameters, both in the order of `ravel_pytree`); by default the implicit one at `solution`.
    - `options`: those of `Implicit`, and `symmetric`.
    """
    options = {"tolerance": None, **options}
    active, fixed = eqx.partition(as_arrays(params), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(active)
    unknowns = lambda x: ravel_pytree(eqx.filter(x, eqx.is_inexact_array))[0]

    def jacobian_at(x):
        params = eqx.combine(active, fixed)
        column = lambda e: unknowns(root_jvp(optimality, x, params, unravel(e), **options))
        return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))

    @jax.jit
    def measure(iterates, solution):
        exact = jacobian_at(solution) if jacobian is None else jnp.asarray(jacobian)
        one = lambda x: (
            jnp.linalg.norm(unknowns(x) - unknowns(solution)),
            jnp.linalg.norm(jacobian_at(x) - exact),
        )
        return jax.lax.map(one, iterates)

    return JacobianPrecision(*measure(as_arrays(iterates), as_arrays(solution)))
