r"""Any `scipy.optimize.minimize` method.

SciPy runs to its end in one step. For a `Constrained` problem the multipliers, which a solution needs to be
differentiated, are those that make the Lagrangian most nearly stationary,

$$\min_{\nu,\; \mu \ge 0} \lVert \nabla f + \partial h^\top \nu + \partial g_A^\top \mu_A - \lambda_l + \lambda_u \rVert^2 ,$$

over the constraints A that are active at the answer (Nocedal and Wright 2006, eq. 18.21, with the signs imposed).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Objective
from ..core.solution import Result
from .arguments import need_not_negative, need_positive

__all__ = ["Scipy"]

_DERIVATIVE_FREE = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_HESSIAN = {"dogleg", "trust-exact"}
_HESSIAN_PRODUCT = {"newton-cg", "trust-ncg", "trust-krylov"}
_CONSTRAINED = {"slsqp", "trust-constr", "cobyla", "cobyqa"}
_BOUNDED = _CONSTRAINED | {"nelder-mead", "powell", "l-bfgs-b", "tnc"}
_OTHER = {"cg", "bfgs"}
_KNOWN = _DERIVATIVE_FREE | _HESSIAN | _HESSIAN_PRODUCT | _BOUNDED | _OTHER


class ScipyState(eqx.Module):
    """`code` is how SciPy ended (0 before it has run), as the code of a `Result`."""

    value: PyTree
    objective: Array
    code: Array
    counters: Counters


class Scipy(Method):
    """A `scipy.optimize.minimize` method, with exact derivatives, `jit`, `vmap` and implicit gradients.

    Pick it for constrained problems of moderate size (`"SLSQP"`, `"trust-constr"`), for derivative-free methods, and to
    cross-check. SciPy computes in double precision and calls compiled JAX functions; inside a transformation it is a
    callback.

    **Arguments:**

    - `method`: a name that `scipy.optimize.minimize` knows.
    - `tolerance`: its `tol`; `None` is SciPy's default for the method.
    - `options`: its `options`, such as `{"maxiter": 500}`.
    - `active`: a constraint within this of its bound (times 1 + the largest entry of x) counts as active when
      multipliers are computed.

    The solve ends as `stopped` when SciPy says that it did not succeed but the point is finite; as `infeasible` when a
    constraint is violated. Raises `ArgumentError` for an unknown method, or one that cannot handle the problem's constraints.
    """

    problem = (Objective, Constrained)
    reference: ClassVar[str] = "virtanen2020scipy"
    host: ClassVar[bool] = True

    method: str = eqx.field(static=True, default="L-BFGS-B")
    tolerance: float | None = eqx.field(static=True, default=None)
    options: dict[str, Any] | None = None
    active: float = eqx.field(static=True, default=1e-5)

    def __check_init__(self):
        if not isinstance(self.method, str) or self.method.lower() not in _KNOWN:
            known = ", ".join(sorted(_KNOWN))
            raise ArgumentError(
                "method", f"is not one of scipy.optimize.minimize: {self.method!r}.", f"Known: {known}."
            )
        need_not_negative("tolerance", self.tolerance)
        need_positive("active", self.active)

    def init(self, problem: Any, guess: PyTree, *, key: Array | None) -> ScipyState:
        if isinstance(problem, Constrained):
            x, name = guess.primal, self.method.lower()
            if (problem.equality_fn or problem.inequality_fn) and name not in _CONSTRAINED:
                fitting = ", ".join(sorted(_CONSTRAINED))
                raise ArgumentError("method", f"{self.method} takes no constraints.", f"These do: {fitting}.")
            if problem.equality_fn and name == "cobyla":
                raise ArgumentError("method", "COBYLA takes no equalities.", "Use SLSQP or trust-constr.")
            if problem.bounds != (None, None) and name not in _BOUNDED:
                fitting = ", ".join(sorted(_BOUNDED))
                raise ArgumentError("method", f"{self.method} takes no bounds.", f"These do: {fitting}.")
        else:
            x = guess
            if problem.stochastic:
                raise ArgumentError("problem", "has random batches, which SciPy does not expect.", "Try Optax.")
        objective = _value(problem, x)
        return ScipyState(guess, objective, jnp.int32(0), Counters.zero().add(values=1))

    def step(self, problem: Any, state: ScipyState, *, key: Array | None) -> ScipyState:
        constrained = isinstance(problem, Constrained)
        x0 = state.value.primal if constrained else state.value
        seen = _Seen()
        flat0, unravel = ravel_pytree(x0)
        name = self.method.lower()
        on_host = lambda out: jtu.tree_map(lambda leaf: np.asarray(leaf, np.float64), out)
        as_point = lambda flat: unravel(jnp.asarray(flat, flat0.dtype))

        def objective(flat):
            out = on_host(_value_and_gradient(problem, as_point(flat)))
            return seen.look(flat, *out)

        arguments: dict[str, Any] = {"jac": True}
        if name in _DERIVATIVE_FREE:
            arguments = {}
        if name in _HESSIAN:
            arguments["hess"] = lambda flat: on_host(_hessian(problem, as_point(flat)))
        if name in _HESSIAN_PRODUCT:
            arguments["hessp"] = lambda flat, p: on_host(_hessian_product(problem, as_point(flat), as_point(p)))
        if constrained:
            arguments |= _constraints(problem, x0, as_point, on_host, name)
        result = scipy.optimize.minimize(
            (lambda flat: objective(flat)[0]) if name in _DERIVATIVE_FREE else objective,
            np.asarray(flat0, np.float64), method=self.method, tol=self.tolerance,
            options=dict(self.options or {}), **arguments,
        )  # fmt: skip
        flat = np.asarray(result.x)
        if not (np.all(np.isfinite(flat)) and np.all(np.isfinite(result.fun))):
            flat = seen.best if seen.best is not None else np.asarray(flat0, np.float64)
            result.success = False
        x = as_point(flat)
        code = Result.converged.code if result.success else Result.stopped.code
        value = x
        if constrained:
            value = self._with_multipliers(problem, x, state.value)
            size = 1 + float(np.max(np.abs(flat), initial=0))
            if float(problem.violation(x)) > 1e-3 * size:
                code = Result.infeasible.code
        counters = state.counters.add(values=seen.count, gradients=0 if name in _DERIVATIVE_FREE else seen.count)
        return ScipyState(value, _value(problem, x), jnp.int32(code), counters)

    def _with_multipliers(self, problem: Constrained, x: PyTree, like: PrimalDual) -> PrimalDual:
        flat, _ = ravel_pytree(x)
        n = flat.size
        gradient, h_rows, g, g_rows, lower, upper = jtu.tree_map(
            lambda leaf: np.asarray(leaf, np.float64), _linearised(problem, x)
        )
        point = np.asarray(flat, np.float64)
        near = self.active * (1 + np.max(np.abs(point), initial=0))
        g_active = np.flatnonzero(g >= -near)
        low_active, up_active = np.flatnonzero(point - lower <= near), np.flatnonzero(upper - point <= near)
        identity = np.eye(n)
        columns = np.concatenate([h_rows, g_rows[g_active], -identity[low_active], identity[up_active]]).T
        least = np.concatenate([np.full(len(h_rows), -np.inf), np.zeros(columns.shape[1] - len(h_rows))])
        found = np.zeros(columns.shape[1])
        if columns.shape[1]:
            found = scipy.optimize.lsq_linear(columns, -gradient, bounds=(least, np.inf), method="bvls").x
        parts = np.split(found, np.cumsum([len(h_rows), len(g_active), len(low_active)]))
        spread = lambda size, where, part: np.bincount(where, part, minlength=size) if size else np.zeros(0)
        multipliers = (parts[0], spread(len(g), g_active, parts[1]), spread(n, low_active, parts[2]),
                       spread(n, up_active, parts[3]))  # fmt: skip

        def shaped(numbers, example):
            if example is None:
                return None
            like_flat, unravel_like = ravel_pytree(example)
            return unravel_like(jnp.asarray(numbers, like_flat.dtype))

        old = (like.equality, like.inequality, like.lower, like.upper)
        return PrimalDual(x, *(shaped(*pair) for pair in zip(multipliers, old, strict=True)))

    def done(self, problem: Any, state: ScipyState):
        return state.code

    def answer(self, problem: Any, state: ScipyState) -> PyTree:
        return state.value

    def metrics(self, problem: Any, state: ScipyState) -> dict[str, Any]:
        return {"value": state.objective}


class _Seen:
    """How often the objective was evaluated, and the best finite point."""

    def __init__(self):
        self.count, self.best, self.lowest = 0, None, np.inf

    def look(self, flat, value, gradient):
        self.count += 1
        finite = np.isfinite(value) and np.all(np.isfinite(gradient))
        if finite and value < self.lowest:
            self.best, self.lowest = np.array(flat), value
        return value, gradient


def _constraints(problem: Constrained, x0, as_point, on_host, name) -> dict[str, Any]:
    constraints = []
    for part, low in (("equalities", 0.0), ("inequalities", -np.inf)):
        if getattr(problem, "equality_fn" if part == "equalities" else "inequality_fn") is None:
            continue
        fun = lambda flat, part=part: on_host(_constraint(problem, as_point(flat), part))
        jac = lambda flat, part=part: on_host(_jacobian(problem, as_point(flat), part))
        if name == "cobyla":
            constraints.append({"type": "ineq", "fun": lambda flat, fun=fun: -fun(flat)})
        else:
            constraints.append(scipy.optimize.NonlinearConstraint(fun, low, 0.0, jac=jac))  # pyright: ignore[reportArgumentType]
    arguments: dict[str, Any] = {"constraints": constraints} if constraints else {}
    if problem.bounds != (None, None):
        lower, upper = _bounds(problem, x0)
        arguments["bounds"] = scipy.optimize.Bounds(on_host(lower), on_host(upper))
    return arguments


def _bounds(problem: Constrained, x: PyTree) -> tuple[Array, Array]:
    flat, _ = ravel_pytree(x)
    side = lambda bound, missing: jnp.full(flat.shape, missing) if bound is None else ravel_pytree(bound)[0]
    return side(problem.lower(x), -jnp.inf), side(problem.upper(x), jnp.inf)


# Compiled once for each problem; the problem is an argument, so that its arrays may change.


@eqx.filter_jit
def _value(problem, x):
    return problem.value(x)


@eqx.filter_jit
def _value_and_gradient(problem, x):
    value, gradient = jax.value_and_grad(problem.value)(x)
    return value, ravel_pytree(gradient)[0]


@eqx.filter_jit
def _hessian(problem, x):
    flat, unravel = ravel_pytree(x)
    return jax.hessian(lambda flat: problem.value(unravel(flat)))(flat)


@eqx.filter_jit
def _hessian_product(problem, x, p):
    return ravel_pytree(jax.jvp(jax.grad(problem.value), (x,), (p,))[1])[0]


def _flat_constraint(problem, x, part):
    flat, unravel = ravel_pytree(x)

    def constraint(flat):
        out = getattr(problem, part)(unravel(flat))
        return jnp.zeros((0,), flat.dtype) if out is None else ravel_pytree(out)[0]

    return constraint, flat


@eqx.filter_jit
def _constraint(problem, x, part):
    constraint, flat = _flat_constraint(problem, x, part)
    return constraint(flat)


@eqx.filter_jit
def _jacobian(problem, x, part):
    constraint, flat = _flat_constraint(problem, x, part)
    return jax.jacobian(constraint)(flat)


@eqx.filter_jit
def _linearised(problem, x):
    """The gradient, the Jacobian of h, g and its Jacobian, and the bounds."""
    _, gradient = _value_and_gradient(problem, x)
    return (gradient, _jacobian(problem, x, "equalities"), _constraint(problem, x, "inequalities"),
            _jacobian(problem, x, "inequalities"), *_bounds(problem, x))  # fmt: skip
