r"""`optimand.minimize`: `scipy.optimize.minimize`, with our methods behind it.

$$\min_x f(x) \quad\text{s.t.}\quad c_l \le c(x) \le c_u,\; l \le x \le u .$$

What SciPy calls a constraint is turned into the equalities and inequalities of a `Constrained` problem, the name of a
method into a `Method`, and the `Solution` into an `OptimizeResult`. A function that JAX cannot trace goes to SciPy as it
is.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..core.adjoint import Adjoint
from ..core.budget import Budget
from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Minimize, Problem
from ..core.progress import Progress
from ..core.solution import Solution
from ..core.solve import solve
from ..core.tracing import inside_transformation, is_tracer
from ..smooth.advice import advise, first_suitable, known_method
from ..smooth.scipy import Scipy
from .constraints import Constraints, as_bounds, as_constraints
from .derivatives import with_derivatives

__all__ = ["minimize"]

# What SciPy calls a method: ours, best first; the first that suits the precision is taken.
METHODS: dict[str, tuple[str, ...]] = {
    "bfgs": ("BFGS",),
    "l-bfgs-b": ("LBFGSB",),
    "cg": ("NonlinearCG",),
    "newton-cg": ("TrustRegion",),
    "tnc": ("TrustRegion",),
    "dogleg": ("TrustRegion",),
    "trust-exact": ("TrustRegion",),
    "trust-ncg": ("TrustRegion",),
    "trust-krylov": ("TrustRegion",),
    "slsqp": ("SQP",),
    "trust-constr": ("InteriorPoint", "AugmentedLagrangian"),
    "ipopt": ("InteriorPoint", "AugmentedLagrangian"),
    "nelder-mead": ("Scipy:Nelder-Mead",),
    "powell": ("Scipy:Powell",),
    "cobyla": ("Scipy:COBYLA",),
    "cobyqa": ("Scipy:COBYQA",),
}

_UNTRACEABLE = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def minimize(
    fun: Callable,
    x0: PyTree,
    args: Any = (),
    method: str | Method | None = None,
    jac: Callable | str | bool | None = None,
    hess: Callable | str | None = None,
    hessp: Callable | None = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    options: dict[str, Any] | None = None,
    *,
    key: Array | None = None,
    budget: Budget | None = None,
    adjoint: Adjoint | None = None,
) -> scipy.optimize.OptimizeResult:
    r"""Minimise a function of one or many variables, with or without bounds and constraints.

    The face of `scipy.optimize.minimize` on `solve`: same arguments, same conventions, same result. Derivatives are
    automatic, and solutions can be differentiated.

    **Arguments:**

    - `fun`: `fun(x, *args)`, a scalar, written with `jax.numpy`. If JAX cannot trace it (it uses NumPy, or a program
      of your own) SciPy's own method is run on it, with finite differences if there is no `jac`.
    - `x0`: where to start: numbers, an array of any shape, or a pytree of arrays. If no array of it is a JAX array, as
      with SciPy, the solve is in double precision, whatever JAX's default.
    - `args`: passed on; the solution can be differentiated with respect to them.
    - `method`: a name that SciPy knows, the name of one of our methods, a `Method`, or `None` for the one that
      `optimand.advise` names. See the table.
    - `jac`, `hess`, `hessp`: not needed. Where they are functions of JAX they are used for the derivatives of `fun`;
      `jac=True` means that `fun` returns the pair of value and gradient. Strings of SciPy such as "2-point" mean: automatic.
    - `bounds`: a `scipy.optimize.Bounds`, or a sequence of pairs `(low, high)` with `None` for no bound; with an `x0`
      that is not one array, a pair `(lower, upper)` of numbers or pytrees like `x0`.
    - `constraints`: a dictionary (`{"type": "ineq", "fun": c}` is c(x) >= 0), a `LinearConstraint`, a
      `NonlinearConstraint`, or a sequence of them. A `LinearConstraint` is on the numbers of `x0` in a row.
    - `tol`: of the method: the size of the gradient, or of the residual of the KKT conditions. By default 1e-6, in
      single precision 1e-4.
    - `callback`: `callback(intermediate_result=...)` or `callback(xk)`, as its signature says; raise `StopIteration` to
      end. It is called about ten times a second and at the end, not after each iteration.
    - `options`: `maxiter`, `maxfun`, `disp`, `gtol` (the same as `tol`), and the fields of the method (`{"memory": 20}`).
      Others of SciPy are passed over with an `OptimizeWarning`.
    - `key`, `budget`, `adjoint`: those of `solve`.

    **Returns:** an `OptimizeResult` with `x` (like `x0`), `fun`, `jac` (the gradient of `fun`), `nit`, `nfev`, `njev`,
    `nhev`, `success`, `status` (0 if converged, else the code of the `Result`), `message`, `method`; `solution`, the
    `Solution`; with bounds or constraints also `maxcv`, the largest violation, `multipliers`, the `PrimalDual` of our
    conventions, and `v`, one array for each constraint and one for the bounds, with SciPy's sign: the gradient of `fun`
    plus the Jacobians transposed times `v` is zero. Inside `jit`, `vmap` or `grad` its numbers are traced; return
    those of them that you want, since an `OptimizeResult` is no pytree.

    **Raises:** `ArgumentError`, `GuessError` and `ObjectiveError`, naming what is wrong, before anything is compiled. A
    solve that ends without an answer does not raise: look at `success`.

    | `method` | ours | bounds, constraints |
    |---|---|---|
    | `None`, up to 1000 unknowns | `TrustRegion` | bounds |
    | `None`, more unknowns | `LBFGS`, with bounds `LBFGSB` | bounds |
    | `None`, constraints | `InteriorPoint`; in single precision `AugmentedLagrangian` | both |
    | "BFGS" | `BFGS` | |
    | "CG" | `NonlinearCG` | |
    | "L-BFGS-B" | `LBFGSB` | bounds |
    | "Newton-CG", "trust-exact", "trust-ncg", "trust-krylov", "dogleg" | `TrustRegion` | bounds |
    | "TNC" | `TrustRegion` | bounds |
    | "SLSQP" | `SQP` | both |
    | "trust-constr", "ipopt" | `InteriorPoint`; in single precision `AugmentedLagrangian` | both |
    | "Nelder-Mead", "Powell", "COBYLA", "COBYQA" | SciPy's, by `Scipy` | SciPy's |

    The field `method` of the result says what was run. SciPy's own of each is `method=om.smooth.Scipy("L-BFGS-B")`.

    ```python
    rosenbrock = lambda x: jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)
    om.minimize(rosenbrock, [0.5, 2.0]).x                                               # [1., 1.]
    om.minimize(rosenbrock, [0.5, 0.2], bounds=[(0.0, 0.8), (None, None)]).x            # [0.8, 0.64]
    ```

    Source: the conventions are those of SciPy (Virtanen et al. 2020).
    """
    need_right_types(fun, method, callback, options)
    args = args if isinstance(args, tuple) else (args,)
    start, as_given, double = _start(x0)

    pose = lambda: _posed(fun, start(), args, jac, hess, hessp, bounds, constraints)
    try:
        posed = pose()
    except _UNTRACEABLE as error:
        if isinstance(method, Method):
            message = f"or a constraint cannot be traced by JAX, which {type(method).__name__} needs: {_first_line(error)}"
            raise ArgumentError("fun", message, "Write it with jax.numpy, or name a method of SciPy.") from error
        asked = dict(args=args, method=method, jac=jac, hess=hess, hessp=hessp, constraints=constraints, tol=tol)
        with jax.enable_x64(True):
            return _on_host(fun, start(), as_given, bounds, callback, options, **asked)
    rest = (as_given, method, tol, dict(options or {}), callback, key, budget, adjoint)
    if not double or jnp.zeros(()).dtype == jnp.float64 or _inside_transformation(start(), posed[0]):
        return _solved(*posed, start(), *rest)
    with jax.enable_x64(True):
        return _solved(*pose(), start(), *rest)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _inside_transformation(x0: PyTree, problem: Problem) -> bool:
    """Whether something here is traced, be it captured by a function: then the precision cannot be changed any more."""
    if inside_transformation(x0, problem):
        return True
    guess = problem.start(x0)
    return inside_transformation(problem.traced(guess))


def _posed(fun, x0, args, jac, hess, hessp, bounds, constraints) -> tuple[Minimize | Constrained, Constraints]:
    """The problem. Raises what JAX raises if one of its functions cannot be traced."""
    fn = with_derivatives(fun, x0, args, jac, hess, hessp)
    parts, limits = as_constraints(constraints, x0), as_bounds(bounds, x0)
    if limits is None and not parts.parts:
        return Minimize(fn, *args), parts
    functions = dict(equalities=parts.equalities, inequalities=parts.inequalities)
    return Constrained(_Objective(fn), args, **functions, bounds=limits), parts


def _solved(problem, parts, x0, as_given, method, tol, options, callback, key, budget, adjoint):
    """The result of the solve."""
    double = all(leaf.dtype == jnp.float64 for leaf in jtu.tree_leaves(x0))
    tol = options.pop("gtol", None) if tol is None else tol
    tol = 1e-4 if tol is None and not double else tol
    budget = _budget(budget, options)
    callbacks: list[Callable] = [Progress()] if options.pop("disp", False) else []
    chosen = _method(method, problem, x0, tol, options, double)
    if isinstance(problem, Minimize) and not isinstance(problem, chosen.problem):
        # a method for constraints, which has none to deal with
        problem = Constrained(_Objective(problem.fn), problem.args)
    if not isinstance(problem, chosen.problem):  # SciPy warns, and then ignores them
        hint = "Use method=None, or one of the table."
        raise ArgumentError("method", f"{type(chosen).__name__} takes no bounds and no constraints.", hint)
    if callback is not None:
        callbacks.append(_Callback(callback, as_given))
    solution = solve(problem, chosen, x0, key=key, budget=budget, adjoint=adjoint, callbacks=callbacks, throw=False)
    return _result(problem, chosen, solution, parts, as_given)


class _Objective(eqx.Module):
    """`fn(x, *args)` with the arguments in one tuple, as the constraints, which close over theirs, take it."""

    fn: Callable

    def __call__(self, x, args):
        return self.fn(x, *args)


def need_right_types(fun, method, callback, options) -> None:
    """The arguments that are looked at before anything else."""
    for name, function in (("fun", fun), ("callback", callback)):
        if not callable(function) and not (name == "callback" and function is None):
            raise ArgumentError(name, f"must be a function, not {type(function).__name__}.")
    if not (options is None or isinstance(options, dict)):
        raise ArgumentError("options", f"must be a dictionary, not {type(options).__name__}.")
    if method is not None and not isinstance(method, str | Method):
        raise ArgumentError("method", f"must be a name or a Method, not {type(method).__name__}.", f"Names: {_names()}.")


def _names() -> str:
    return ", ".join(sorted(METHODS))


def _start(x0: PyTree) -> tuple[Callable[[], PyTree], Callable[[PyTree], PyTree], bool]:
    """How to make the guess (in the precision of the solve), how to give a point back, and whether double is meant."""
    if isinstance(x0, int | float | np.number) or (isinstance(x0, list | tuple) and _numbers(x0)):
        x0 = np.atleast_1d(np.asarray(x0, np.float64))
    leaves = jtu.tree_leaves(x0)
    if not leaves:
        raise ArgumentError("x0", "holds no numbers.")
    ours = any(isinstance(leaf, jax.Array) for leaf in leaves)
    for leaf in leaves:
        kind = getattr(leaf, "dtype", None) if not isinstance(leaf, int | float) else np.dtype(float)
        if kind is None or not (jnp.issubdtype(kind, np.integer) or jnp.issubdtype(kind, np.floating)):
            raise ArgumentError("x0", f"must hold real numbers, not {leaf!r}.")
    double = not ours and not any(getattr(leaf, "dtype", None) == np.float32 for leaf in leaves)

    def make():
        to_float = lambda leaf: leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.asarray(leaf, float)
        return jtu.tree_map(lambda leaf: jnp.asarray(to_float(leaf)), x0)

    def as_given(x):
        return x if ours or any(is_tracer(leaf) for leaf in jtu.tree_leaves(x)) else jtu.tree_map(np.array, x)

    return make, as_given, double


def _numbers(x0) -> bool:
    return len(x0) > 0 and all(
        isinstance(leaf, int | float | np.number) or (isinstance(leaf, list | tuple) and _numbers(leaf)) for leaf in x0
    )


def _budget(budget: Budget | None, options: dict[str, Any]) -> Budget:
    steps = options.pop("maxiter", None)
    evaluations = options.pop("maxfun", options.pop("maxfev", None))
    if budget is not None:
        if steps is not None or evaluations is not None:
            raise ArgumentError("options", "give a budget, and so does `budget`.", "Use one of them.")
        return budget
    return Budget(steps=1000 if steps is None else steps, evaluations=evaluations)


def _method(method, problem: Problem, x0, tol, options: dict[str, Any], double: bool) -> Method:
    if isinstance(method, Method):
        if options:
            raise ArgumentError("options", f"cannot change a method that is given: {', '.join(options)}.")
        return method
    if method is None:
        chosen = advise(problem, x0, tolerance=tol).method
    else:
        lower = method.lower()
        if lower in METHODS:
            names = METHODS[lower]
        elif known_method(method) is not None:
            names = (method,)
        else:
            raise ArgumentError("method", f"is not known: {method!r}.", f"Names: {_names()}, and those of om.smooth.")
        chosen = first_suitable(names, double, tol)
    cls = type(chosen)
    if isinstance(chosen, Scipy):
        return eqx.tree_at(lambda m: m.options, chosen, options or None, is_leaf=lambda x: x is None)
    known = [field.name for field in dataclasses.fields(cls)]
    fields = {name: options.pop(name) for name in list(options) if name in known}
    if options:
        message = f"Unknown solver options: {', '.join(options)}; {cls.__name__} has {', '.join(known)}."
        warnings.warn(message, scipy.optimize.OptimizeWarning, stacklevel=5)
    if not fields:
        return chosen
    if tol is not None:
        fields.setdefault("tolerance", tol)
    return cls(**fields)


class _Callback:
    """A callback of SciPy's as one of ours."""

    def __init__(self, callback: Callable, as_given: Callable):
        self.callback, self.as_given = callback, as_given
        try:
            self.wants_result = set(inspect.signature(callback).parameters) == {"intermediate_result"}
        except (TypeError, ValueError):
            self.wants_result = False

    def __call__(self, event) -> bool:
        value = event.value
        x = self.as_given(value.primal if isinstance(value, PrimalDual) else value)
        try:
            if self.wants_result:
                fun = event.metrics.get("value", np.nan)
                self.callback(intermediate_result=scipy.optimize.OptimizeResult(x=x, fun=fun, nit=event.step))
            else:
                self.callback(x)
        except StopIteration:
            return True
        return False


_MESSAGES = {
    "converged": "Converged: the conditions of optimality hold to the tolerance.",
    "budget_spent": "The budget of iterations, evaluations or seconds is spent.",
    "nonfinite": "A value, gradient or constraint was not finite.",
    "infeasible": "No feasible point was found.",
    "diverged": "The iterates diverged, or the problem is unbounded below.",
    "stopped": "Stopped: by the callback, or because no further progress is possible at this precision.",
}


def _result(problem: Any, method: Method, solution: Solution, parts: Any, as_given: Callable) -> scipy.optimize.OptimizeResult:
    value = solution.value
    x = value.primal if isinstance(value, PrimalDual) else value
    fun, gradient, violation = _value_and_gradient(problem, x)
    counters, code = solution.counters, solution.result.code
    traced = any(is_tracer(leaf) for leaf in jtu.tree_leaves((x, fun, code)))
    success = code == 1
    result = scipy.optimize.OptimizeResult(
        x=as_given(x),
        fun=fun if traced else float(fun),
        jac=as_given(gradient),
        nit=solution.steps if traced else int(solution.steps),
        nfev=counters.values if traced else int(counters.values),
        njev=counters.gradients if traced else int(counters.gradients),
        nhev=counters.jacobians + counters.hessian_products,
        success=success if traced else bool(success),
        status=jnp.where(success, 0, code) if traced else 0 if success else int(code),
        message="See `status`." if traced else _MESSAGES[str(solution.result)],
        method=f"SciPy's {method.method}" if isinstance(method, Scipy) else type(method).__name__,
        solution=solution,
    )
    if not traced:
        result.nhev = int(result.nhev)
    if isinstance(value, PrimalDual):
        result.maxcv = violation if traced else float(violation)
        result.multipliers = value
        result.v = [as_given(part) for part in parts.multipliers(value)]
        if value.lower is not None or value.upper is not None:
            zero = jtu.tree_map(jnp.zeros_like, x)
            lower, upper = (zero if side is None else side for side in (value.lower, value.upper))
            result.v.append(as_given(jtu.tree_map(lambda high, low: high - low, upper, lower)))
    return result


@eqx.filter_jit
def _value_and_gradient(problem: Any, x: PyTree):
    value, gradient = jax.value_and_grad(problem.value)(x)
    violation = problem.violation(x) if isinstance(problem, Constrained) else jnp.zeros(())
    return value, gradient, violation


def _on_host(fun, x0, as_given, bounds, callback, options, *, args, method, jac, hess, hessp, constraints, tol):
    """SciPy on functions that JAX cannot trace, as they are; x0 is flattened for it."""
    if any(is_tracer(leaf) for leaf in jtu.tree_leaves((x0, args))):
        raise ArgumentError("fun", "cannot be traced by JAX, and so not be minimised inside jit, vmap or grad.")
    flat, unravel = ravel_pytree(x0)
    one_vector = jnp.ndim(x0) == 1 if isinstance(x0, jax.Array) else False
    as_point = (lambda v: v) if one_vector else (lambda v: jtu.tree_map(np.asarray, unravel(jnp.asarray(v, flat.dtype))))
    as_vector = lambda tree: np.asarray(ravel_pytree(tree)[0])
    if jac is True:
        function = lambda v, *a: (lambda value, slope: (float(value), as_vector(slope)))(*fun(as_point(v), *a))
    else:
        function = lambda v, *a: float(np.reshape(fun(as_point(v), *a), ()))
    gradient = (lambda v, *a: as_vector(jac(as_point(v), *a))) if callable(jac) else jac
    if constraints and not one_vector and not isinstance(constraints, scipy.optimize.LinearConstraint):
        raise ArgumentError("constraints", "that JAX cannot trace need an x0 that is one vector.")
    if (isinstance(method, str) and method.lower() not in METHODS) or method == "ipopt":
        raise ArgumentError("method", f"is {method!r}, which needs functions that JAX can trace.", "Name one of SciPy.")
    limits = as_bounds(bounds, x0)
    if limits is not None:
        low, high = (as_vector(side) for side in limits)
        limits = scipy.optimize.Bounds(low, high)  # pyright: ignore[reportArgumentType]
    result = scipy.optimize.minimize(
        function, np.asarray(flat, np.float64), args=args, method=method, jac=gradient, hess=hess, hessp=hessp,
        bounds=limits, constraints=constraints, tol=tol, callback=callback, options=options or None,
    )  # fmt: skip
    result.x = as_given(jtu.tree_map(jnp.asarray, unravel(jnp.asarray(result.x, flat.dtype))))
    result.method = f"SciPy's {method or 'default'}, because JAX cannot trace the functions"
    result.solution = None
    return result
