r"""How a solution is differentiated.

A solution \(x^\star(\theta)\) with \(F(x^\star, \theta) = 0\) has, by the implicit function theorem, the derivative

$$A\, \partial x^\star = B, \qquad A = -\partial_1 F(x^\star, \theta), \quad B = \partial_2 F(x^\star, \theta),$$

whatever method found it (Blondel et al. 2022, eq. 4). `Implicit` solves this linear system: forward mode with
\(A u = B v\), reverse mode with \(A^\top u = w\), followed by \(B^\top u\). Products with \(A\) and \(B\) come from
automatic differentiation of \(F\); no iteration is stored, so memory does not grow with their number. The other
adjoints are for when the path matters (`Unrolled`), for a cheap biased gradient (`OneStep`) and for none (`Detached`).

The rule differs from `optimistix.ImplicitAdjoint` in three points: the linear solve never raises inside a compiled
function (a bad one is reported or falls back instead), the gradient of a failed solve is NaN rather than a number, and
the unknown, the problem and what merely helped to find the solution (guess, method, key) are kept apart.
"""

import abc
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .adjoint_system import solve_system
from .arguments import need_count, need_not_negative
from .errors import ArgumentError, GradientError, ObjectiveError
from .tracing import as_arrays, need_callable, trace_once

__all__ = ["Adjoint", "Detached", "Implicit", "OneStep", "Unrolled", "implicit", "root_jvp", "root_vjp"]


class Adjoint(eqx.Module):
    """How `solve` answers when it is differentiated. Abstract: `Implicit`, `Unrolled`, `OneStep`, `Detached`."""

    @abc.abstractmethod
    def kind(self) -> str:
        """One word for the driver: which loop to run."""


class Implicit(Adjoint):
    r"""The implicit function theorem: exact at the solution, memory independent of the number of iterations.

    **Arguments:**

    - `linear_solver`: a `lineax` solver for \(A u = b\). By default: a dense factorisation up to `dense_below`
      unknowns (64; 512 for the KKT conditions of a constrained problem, on which Krylov methods do badly), above it conjugate
      gradients if \(A\) is symmetric and BiCGSTAB if not; a Krylov solve that misses its tolerance is
      repeated by conjugate gradients on the normal equations, a singular dense one by the minimum-norm solution.
    - `ridge`: move the eigenvalues of \(A\) away from zero by this much, for singular or ill-conditioned systems.
    - `rtol`, `max_steps`: of the default Krylov solvers; `rtol=None` is 1e-8 in float64 and 1e-6 in float32.
    - `preconditioner`: maps a right-hand side to an approximate solution; symmetric, or used with symmetric \(A\),
      which is then \(+\partial_1 F\): the Hessian of an objective. By default none, and
      the problem's own, if it has one, once a hundred steps were not enough.
    - `tolerance`: warn when \(\lVert F \rVert\) at the solution exceeds this (times \(1 + \lVert x \rVert\)): then
      \(x\) is not a solution, and the gradient is not that of one. `None` never looks.
    - `condition`: another optimality condition `F(value, problem)` to differentiate instead of the problem's own.
    - `symmetric`: whether \(A\) is symmetric; by default the problem says.
    - `monitor`: called on the host with a dict (`residual`: relative residual of the linear solve, `optimality`:
      the norm of \(F\), `solved`: whether the linear system was) whenever a derivative is computed.

    A linear system that is singular or could not be solved is answered as well as can be, by the minimum-norm or the
    least-squares solution, and a `RuntimeWarning` says so. At the solution of a constrained problem it names the constraints:
    those that are linearly dependent, and those that are weakly active (`Constrained.weakly_active`), where the solution
    has a kink and its derivative is that of one side.
    """

    linear_solver: Any = None  # lineax is loaded by those who use it: it takes as long as all of the core
    ridge: float = 0.0
    dense_below: int | None = eqx.field(static=True, default=None)
    rtol: float | None = eqx.field(static=True, default=None)
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Callable | None = None
    tolerance: float | None = eqx.field(static=True, default=1e-3)
    condition: Callable | None = None
    symmetric: bool | None = eqx.field(static=True, default=None)
    monitor: Callable | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("ridge", "rtol", "tolerance"):
            need_not_negative(name, getattr(self, name))
        if self.dense_below is not None:
            need_count("dense_below", self.dense_below, least=0)
        if self.max_steps is not None:
            need_count("max_steps", self.max_steps)
        for name in ("preconditioner", "condition", "monitor"):
            if getattr(self, name) is not None:
                need_callable(getattr(self, name), name)
        if self.linear_solver is not None:
            import lineax as lx

            if not isinstance(self.linear_solver, lx.AbstractLinearSolver):
                raise ArgumentError("linear_solver", f"must be a lineax solver, not {self.linear_solver!r}.")

    def kind(self) -> str:
        return "implicit"


class Unrolled(Adjoint):
    """Differentiate through the iterations themselves, as many as the budget allows.

    **Arguments:**

    - `checkpoints`: how many states reverse mode keeps; the others are recomputed (`None`: of the order of the square
      root of the number of steps).
    - `forward`: make the loop differentiable in forward mode (`jvp`, `jacfwd`) instead of in reverse mode.
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    forward: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.checkpoints is not None:
            need_count("checkpoints", self.checkpoints)

    def kind(self) -> str:
        return "unrolled"


class OneStep(Adjoint):
    """Differentiate one last step of the method, taken at the solution held constant.

    Costs one step and no linear solve; the error is of the order of the method's contraction factor.
    """

    def kind(self) -> str:
        return "one step"


class Detached(Adjoint):
    """No derivative: the solution is a constant."""

    def kind(self) -> str:
        return "detached"


# The rule.


def differentiable(find: Callable, condition: Callable, params: PyTree, adjoint: Implicit, symmetric: bool):
    """`find(params)`, a pair (solution, anything else), with implicit derivatives of the solution.

    `condition(solution, params)` is F. Everything in `find` is held constant. The other output carries no derivative;
    if it has an entry "failed", the derivatives are NaN where that is true.
    """
    return _differentiable(find, condition, params, adjoint, symmetric)


@eqx.filter_custom_jvp
def _differentiable(find, condition, params, adjoint, symmetric):
    params = as_arrays(params)  # JAX may hand over a Python float as it is
    return jtu.tree_map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, find(params))


@_differentiable.def_jvp
def _differentiable_jvp(primals, tangents):
    find, condition, params, adjoint, symmetric = primals
    _, _, params_dot, _, _ = tangents
    value, rest = _differentiable(find, condition, params, adjoint, symmetric)
    failed = rest["failed"] if isinstance(rest, dict) and "failed" in rest else jnp.array(False)
    value_dot = _tangent(condition, value, as_arrays(params), params_dot, adjoint, symmetric, failed)
    rest_dot = jax.custom_derivatives.zero_from_primal(rest, symbolic_zeros=True)
    return (value, rest), (value_dot, rest_dot)


def _tangent(condition, value, params, params_dot, adjoint: Implicit, symmetric: bool, failed):
    """The tangent of the solution for a tangent of the parameters (leaves of which may be None)."""
    moving = jtu.tree_map(lambda leaf: leaf is not None, params_dot, is_leaf=lambda leaf: leaf is None)
    active, fixed = eqx.partition(params, moving)
    unknown, rest = eqx.partition(value, eqx.is_inexact_array)

    def residual(unknown, active):
        out = condition(eqx.combine(unknown, rest), eqx.combine(active, fixed))
        return _like(out, unknown)

    _, rhs = jax.jvp(lambda active: residual(unknown, active), (active,), (params_dot,))
    symmetric = symmetric if adjoint.symmetric is None else adjoint.symmetric
    at_solution, derivative = _linearised(lambda unknown: residual(unknown, active), unknown, symmetric)
    matvec, sign = _operator(derivative, unknown, adjoint.ridge, symmetric)
    # A leaf that does not depend on the tangent would be a constant under transposition, where all or none may be.
    tie = sum((0 * jnp.sum(b) for b in jtu.tree_leaves(rhs)), start=jnp.zeros(()))
    rhs = jtu.tree_map(lambda b: -sign * b + tie.astype(b.dtype), rhs)
    weak = _weakly_active(condition, value, params)
    own = _preconditioner(value, params) if symmetric and adjoint.condition is None else None
    solution = solve_system(matvec, rhs, adjoint, symmetric, at_solution, unknown, weak=weak, preconditioner=own)
    spoil = jnp.where(failed, jnp.nan, 1.0)  # a factor, so that reverse mode meets it too
    return jtu.tree_map(lambda leaf: leaf * spoil.astype(leaf.dtype), solution)


def _weakly_active(condition, value, params) -> PyTree:
    """Where the solution of a constrained problem has a kink, as its condition or the problem itself says; else None."""
    if getattr(condition, "weakly_active", None) is not None:
        return condition.weakly_active(value, params)
    if hasattr(params, "weakly_active"):
        return params.weakly_active(value)
    return None


def _preconditioner(value, params) -> Callable | None:
    """What makes the preconditioner that the problem itself knows at this solution, if it does."""
    make = getattr(params, "preconditioner", None)
    return None if make is None else make(value)


def _linearised(residual, unknown, symmetric: bool):
    """F at the solution, and products with its derivative there.

    A symmetric derivative, the Hessian of something, is its own transpose, and reverse over reverse mode multiplies by it
    with fewer operations than forward over reverse mode.
    """
    if not symmetric:
        return jax.linearize(residual, unknown)
    at_solution, pullback = jax.vjp(residual, unknown)
    return at_solution, lambda u: pullback(u)[0]


def _operator(derivative, unknown, ridge, symmetric: bool):
    """The system matrix as products, and its sign relative to the derivative of F.

    It is +dF where that is symmetric, so that the Hessian of an objective is the positive matrix which conjugate
    gradients and Cholesky expect, and -dF (the I - dT of a fixed point) where it is not. The ridge is added with the
    sign of the matrix, as far as one product can tell it: a residual may rise (x - prox) or fall (T - x).
    """
    sign = 1.0 if symmetric else -1.0
    matvec = derivative if symmetric else lambda u: jtu.tree_map(jnp.negative, derivative(u))
    if not _present(ridge):
        return matvec, sign
    flat, unravel = ravel_pytree(unknown)
    probe = unravel(jnp.cos(1.0 + jnp.arange(flat.size, dtype=flat.dtype)))
    inner = sum(jtu.tree_leaves(jtu.tree_map(lambda a, b: jnp.sum(a * b), matvec(probe), probe)))
    shift = jax.lax.stop_gradient(jnp.where(inner < 0, -ridge, ridge))
    return lambda u: jtu.tree_map(lambda au, u: au + shift.astype(u.dtype) * u, matvec(u), u), sign


def _present(ridge) -> bool:
    return not (isinstance(ridge, int | float) and ridge == 0)


def _like(out, unknown):
    """The residual with the structure and dtypes of the unknown, or an error that shows both trees."""
    out = eqx.filter(out, eqx.is_inexact_array)
    if jtu.tree_structure(out) != jtu.tree_structure(unknown) or [x.shape for x in jtu.tree_leaves(out)] != [
        x.shape for x in jtu.tree_leaves(unknown)
    ]:
        raise ObjectiveError(
            "optimality",
            "must return the structure and shapes of the solution.",
            f"\n  solution:   {_shapes(unknown)}\n  optimality: {_shapes(out)}",
        )
    return jtu.tree_map(lambda f, x: f.astype(x.dtype), out, unknown)


def _shapes(tree) -> str:
    return eqx.tree_pformat(tree)


# For any solver, ours or not.


def implicit(
    optimality: Callable,
    *,
    has_aux: bool = False,
    symmetric: bool | None = None,
    **options: Any,
) -> Callable[[Callable], Callable]:
    r"""Make any solver function differentiable in its parameters.

    **Arguments:**

    - `optimality`: `F(x, *params)`, zero at a solution, with the structure of `x`. See `optimand.core.optimality` for
      ready-made ones.
    - `has_aux`: the solver returns `(x, aux)`; `aux` carries no derivative.
    - `symmetric`: whether the Jacobian of `F` in `x` is symmetric, as it is when `F` is a gradient. By default the
      attribute `symmetric` of `optimality` says, which those of `optimand.core.optimality` have, and else it is not.
    - `options`: those of `Implicit` (`linear_solver`, `ridge`, `rtol`, ...).

    **Returns:** a decorator for `solver(guess, *params)`. The guess gets a zero derivative, since it has no influence
    on the solution. The solver may be anything: JAX code, or SciPy behind `jax.pure_callback`.

    ```python
    @om.implicit(lambda x, theta: x**2 - theta)
    def square_root(guess, theta):
        return jnp.sqrt(theta)

    jax.grad(square_root, argnums=1)(1.0, 4.0)     # 1 / (2 sqrt(4))
    ```

    Source: Blondel et al. 2022, section 2.1 (`custom_root`).
    """
    refuse_catch_all(optimality, "optimality")
    adjoint = Implicit(**options)
    symmetric = is_symmetric(optimality) if symmetric is None else symmetric

    def decorate(solver: Callable) -> Callable:
        @functools.wraps(solver)
        def solve(guess: PyTree, *params: PyTree):
            params = as_arrays(params)
            guess = jax.lax.stop_gradient(as_arrays(guess))
            complex_leaves = [leaf for leaf in jtu.tree_leaves(guess) if jnp.iscomplexobj(leaf)]
            if complex_leaves:
                raise GradientError("guess", "is complex.", "Solve for its real and imaginary parts.")

            def find(params):
                out = solver(guess, *params)
                value, aux = out if has_aux else (out, None)
                return value, {"aux": aux}

            closed_find = eqx.filter_closure_convert(find, params)
            shape_of = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
            value_struct = jtu.tree_map(
                lambda leaf: shape_of(leaf) if eqx.is_array_like(leaf) else leaf,  # a Python integer becomes an array
                eqx.filter_eval_shape(closed_find, params)[0],
                is_leaf=lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
            )
            condition = trace_once(_Spread(optimality), value_struct, params)
            weak = getattr(optimality, "weakly_active", None)
            if weak is not None:
                condition = _Watched(condition, trace_once(_Spread(weak), value_struct, params))
            value, rest = differentiable(closed_find, condition, params, adjoint, symmetric)
            return (value, rest["aux"]) if has_aux else value

        return solve

    return decorate


class _Spread(eqx.Module):
    """`F(x, *params)` as a function of two arguments."""

    optimality: Callable

    def __call__(self, value, params):
        return self.optimality(value, *params)


class _Watched(eqx.Module):
    """A condition, and where its solution has a kink."""

    condition: Callable
    weakly_active: Callable

    def __call__(self, value, params):
        return self.condition(value, params)


def is_symmetric(optimality: Callable) -> bool:
    """Whether a condition says that its Jacobian is symmetric."""
    return bool(getattr(optimality, "symmetric", False))


def refuse_catch_all(fn: Callable, name: str) -> None:
    """Raise if arguments cannot be bound by position."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # builtins have no signature
        return
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise ArgumentError(name, f"takes `**{parameter.name}`: arguments are bound by position.", "Name them.")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.default is inspect.Parameter.empty:
            raise ArgumentError(name, f"has the keyword-only argument `{parameter.name}`.", "Make it positional.")


def root_jvp(optimality: Callable, value: PyTree, params: tuple, tangents: tuple, **options: Any) -> PyTree:
    """The tangent of a solution `value` of `optimality(value, *params) = 0` for tangents of the parameters.

    `options` are those of `Implicit`, and `symmetric`. Source: Blondel et al. 2022, section 2.1.
    """
    adjoint = Implicit(**options)
    condition, weak = _Spread(optimality), getattr(optimality, "weakly_active", None)
    condition = condition if weak is None else _Watched(condition, _Spread(weak))
    return _tangent(condition, value, params, tangents, adjoint, is_symmetric(optimality), jnp.array(False))


def root_vjp(
    optimality: Callable,
    value: PyTree,
    params: tuple,
    cotangent: PyTree,
    *,
    start: PyTree = None,
    with_adjoint: bool = False,
    **options: Any,
) -> Any:
    """The cotangents of the parameters for a cotangent of the solution `value`: one linear solve for all of them.

    With `with_adjoint` it returns the pair (cotangents, u), where u solves the linear system; handed back as `start`
    when the problem has changed a little, as in an outer iteration, it saves an iterative solver most of its work.
    `options` are those of `Implicit`, and `symmetric`. Source: Blondel et al. 2022, section 2.1.
    """
    adjoint = Implicit(**options)
    symmetric = is_symmetric(optimality) if adjoint.symmetric is None else adjoint.symmetric
    active, fixed = eqx.partition(params, eqx.is_inexact_array)
    unknown, rest = eqx.partition(value, eqx.is_inexact_array)

    def residual(unknown, active):
        return _like(optimality(eqx.combine(unknown, rest), *eqx.combine(active, fixed)), unknown)

    at_solution, pullback = jax.vjp(residual, unknown, active)
    transposed, sign = _operator(lambda u: pullback(u)[0], unknown, adjoint.ridge, symmetric)
    w = jtu.tree_map(lambda w, x: jnp.asarray(w, x.dtype), eqx.filter(cotangent, eqx.is_array_like), unknown)
    weak = getattr(optimality, "weakly_active", None)
    weak = None if weak is None else weak(value, *params)
    u = solve_system(transposed, w, adjoint, symmetric, at_solution, unknown, start, weak, transposed=True)
    cotangents = pullback(jtu.tree_map(lambda u: -sign * u, u))[1]
    return (cotangents, u) if with_adjoint else cotangents
