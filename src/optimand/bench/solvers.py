"""Our methods and those of other libraries, behind one function: an `Entry` in, an `Outcome` out.

All are asked for a tolerance of `ASKED` (of the gradient, or of the KKT conditions, in each library's own norm), may take `STEPS`
iterations and `seconds` of wall-clock time, and are given exact derivatives by JAX as far as they take them. Solvers that
are not traced get compiled functions, and what is compiled before the first step is counted apart for all.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..core.errors import ArgumentError
from .entry import Entry

__all__ = ["ASKED", "STEPS", "Outcome", "default", "defaults", "run", "takes"]

ASKED = 1e-6
STEPS = 3000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a solver ended.

    - `claims`: whether it says that it converged. `message`: how it says it ended.
    - `seconds`: of the solve; `compile_seconds`: of what was compiled for this solver alone.
    - `evaluations`: values, gradients, and Hessian products of the objective, a dense Hessian counting as one for each
      variable; NaN if the solver does not tell.
    """

    x: Any
    claims: bool
    message: str
    steps: float
    evaluations: float
    seconds: float
    compile_seconds: float = 0.0


_OURS = {
    "unconstrained": ("BFGS", "LBFGS", "NonlinearCG", "TrustRegion", "LBFGSB"),
    "bounded": ("LBFGSB", "TrustRegion", "InteriorPoint"),
    "constrained": ("InteriorPoint", "SQP", "AugmentedLagrangian"),
}
_PEERS = {
    "unconstrained": (
        "scipy.BFGS", "scipy.L-BFGS-B", "scipy.Newton-CG", "scipy.trust-exact", "optimistix.BFGS",
        "optimistix.LBFGS", "jaxopt.LBFGS", "jaxopt.BFGS",
    ),
    "bounded": ("scipy.L-BFGS-B", "scipy.TNC", "scipy.trust-constr", "ipopt", "jaxopt.LBFGSB"),
    "constrained": ("ipopt", "scipy.SLSQP", "scipy.trust-constr"),
}  # fmt: skip


def defaults(kind: str) -> tuple[str, ...]:
    """The solvers that a kind of problem is given to if nobody chooses: ours by their names, peers as library.name."""
    from .. import smooth

    ours = tuple(f"smooth.{name}" for name in _OURS[kind] if hasattr(smooth, name))
    return (*ours, *_PEERS[kind])


def default(entry: Entry) -> str:
    """The method that `optimand.minimize` picks for a problem if nobody chooses: its name."""
    from ..smooth import advise

    return type(advise(entry.problem(), jax.numpy.asarray(entry.guess)).method).__name__


def takes(solver: str, kind: str) -> bool:
    """Whether this method of ours solves problems of this kind.

    **Raises:** `ArgumentError` if there is no such method.
    """
    from .. import smooth
    from ..core import Constrained, Minimize

    library, _, name = solver.partition(".")
    if library != "smooth":
        if solver not in {solver for peers in _PEERS.values() for solver in peers}:
            raise ArgumentError("solver", f"{solver!r} is not known.", "Ours are named smooth.NAME.")
        return False
    if name not in smooth.__all__ or not hasattr(getattr(smooth, name), "problem"):
        raise ArgumentError("solver", f"{solver!r} is not known.", "Methods are listed by `optimand list smooth`.")
    return issubclass(Minimize if kind == "unconstrained" else Constrained, getattr(smooth, name).problem)


def run(solver: str, entry: Entry, seconds: float) -> Outcome:
    """Solve.

    **Raises:** `ArgumentError` for a solver that is not known; what the solver itself raises.
    """
    library, _, name = solver.partition(".")
    libraries: dict[str, Callable[[Entry, str, float], Outcome]] = {
        "smooth": _ours, "scipy": _scipy, "ipopt": _ipopt, "jaxopt": _jaxopt, "optimistix": _optimistix,
    }  # fmt: skip
    if library not in libraries:
        raise ArgumentError("solvers", f"holds {solver!r}, of no library known here.", f"{', '.join(libraries)}.")
    return libraries[library](entry, name, seconds)


def _ours(entry: Entry, name: str, seconds: float) -> Outcome:
    from .. import smooth
    from ..core import Budget, PrimalDual, solve

    if not hasattr(smooth, name):
        raise ArgumentError("solvers", f"holds smooth.{name}, which does not exist.")
    method, problem = getattr(smooth, name)(tolerance=ASKED), entry.problem()

    def solve_it(guess):
        found = solve(problem, method, guess, budget=Budget(steps=STEPS), record=0, throw=False)
        value = found.value.primal if isinstance(found.value, PrimalDual) else found.value
        return value, found.result, found.steps, found.counters

    (x, result, steps, counters), spent, compiled = _timed(solve_it, jax.numpy.asarray(entry.guess))
    evaluations = counters.values + counters.gradients + counters.hessian_products
    return Outcome(np.asarray(x), str(result) == "converged", str(result), float(steps), float(evaluations), spent, compiled)


class _OutOfTime(Exception):
    pass


class _Watched:
    """A function of the last point and value on the way, which ends the solve when its time is over."""

    def __init__(self, entry: Entry, seconds: float):
        self.entry, self.deadline = entry, time.perf_counter() + seconds
        self.best, self.calls = entry.guess, 0

    def __call__(self, x):
        if time.perf_counter() > self.deadline:
            raise _OutOfTime
        self.calls += 1
        self.best = np.array(x)
        return self.entry.value_and_gradient(x)


def _scipy(entry: Entry, name: str, seconds: float) -> Outcome:
    import scipy.optimize as so

    options: dict[str, Any] = {
        "BFGS": {"gtol": ASKED},
        "L-BFGS-B": {"gtol": ASKED, "ftol": 1e-16, "maxfun": 100 * STEPS},
        "TNC": {"gtol": ASKED, "ftol": 1e-16, "xtol": 0, "maxfun": 100 * STEPS},
        "Newton-CG": {"xtol": 1e-10},
        "trust-exact": {"gtol": ASKED},
        "SLSQP": {"ftol": 1e-12},
        # It ends where its Lagrangian has a small gradient, whatever is left of the barrier: so it is asked for much more.
        "trust-constr": {"gtol": 1e-4 * ASKED, "xtol": 1e-12, "barrier_tol": 1e-8},
    }[name]
    more: dict[str, Any] = {}
    if name in ("trust-exact", "trust-constr"):
        more["hess"] = entry.hessian
    if name == "Newton-CG":
        more["hessp"] = entry.hessian_product
    if entry.kind != "unconstrained" and entry.bounded:
        sides: Any = (entry.lower, entry.upper)
        more["bounds"] = so.Bounds(*sides)
    if entry.kind == "constrained":
        more["constraints"] = _scipy_constraints(entry, name)
    _warm(entry, name)
    watched = _Watched(entry, seconds)
    started = time.perf_counter()
    limit = {} if name == "TNC" else {"maxiter": STEPS}
    try:
        found = so.minimize(watched, entry.guess, jac=True, method=name, options={**options, **limit}, **more)
    except _OutOfTime:
        spent = time.perf_counter() - started
        return Outcome(watched.best, False, "time limit", np.nan, 2 * watched.calls, spent)
    spent = time.perf_counter() - started
    hessians = float(found.get("nhev", 0) or 0) * (1 if name == "Newton-CG" else entry.size)
    message = str(found.message)
    claims = bool(found.success) if name != "trust-constr" else found.status in (1, 2)
    return Outcome(found.x, claims, message, float(found.get("nit", np.nan)), 2 * watched.calls + hessians, spent)


def _scipy_constraints(entry: Entry, name: str) -> Any:
    import scipy.optimize as so

    if name == "trust-constr":
        upper = np.zeros(entry.equality_count + entry.inequality_count)
        lower = np.where(np.arange(len(upper)) < entry.equality_count, 0.0, -np.inf)
        curvature = lambda x, v: entry.lagrangian_hessian(x, v, 0.0)
        derivatives: dict[str, Any] = {"jac": entry.jacobian, "hess": curvature}
        return so.NonlinearConstraint(entry.constraints_on_host, lower, upper, **derivatives)
    count = entry.equality_count
    equal = {
        "type": "eq",
        "fun": lambda x: entry.constraints_on_host(x)[:count],
        "jac": lambda x: entry.jacobian(x)[:count],
    }
    positive = {
        "type": "ineq",
        "fun": lambda x: -entry.constraints_on_host(x)[count:],
        "jac": lambda x: -entry.jacobian(x)[count:],
    }
    return [*([equal] if count else []), *([positive] if entry.inequality_count else [])]


def _warm(entry: Entry, name: str) -> None:
    """Compile what this solver will call."""
    x = entry.guess
    entry.value_and_gradient(x)
    if name == "Newton-CG":
        entry.hessian_product(x, x)
    if name in ("trust-exact", "trust-constr"):
        entry.hessian(x)
    if entry.kind == "constrained":
        entry.constraints_on_host(x)
        entry.jacobian(x)
        if name in ("trust-constr", "ipopt"):
            entry.lagrangian_hessian(x, np.zeros(entry.equality_count + entry.inequality_count), 0.0)


def _ipopt(entry: Entry, name: str, seconds: float) -> Outcome:
    import cyipopt  # pyright: ignore[reportMissingImports]

    rows, count = entry.equality_count + entry.inequality_count, entry.size
    below = np.tril_indices(count)
    calls = {"values": 0, "gradients": 0, "hessians": 0}

    class Program:
        def objective(self, x):
            calls["values"] += 1
            return entry.value_and_gradient(x)[0]

        def gradient(self, x):
            calls["gradients"] += 1
            return entry.value_and_gradient(x)[1]

        def constraints(self, x):
            return entry.constraints_on_host(x)

        def jacobian(self, x):
            return entry.jacobian(x).ravel()

        def jacobianstructure(self):
            return np.nonzero(np.ones((rows, count)))

        def hessianstructure(self):
            return below

        def hessian(self, x, multipliers, weight):
            calls["hessians"] += 1
            return entry.lagrangian_hessian(x, multipliers, weight)[below]

    _warm(entry, "ipopt")
    entry.lagrangian_hessian(entry.guess, np.zeros(rows), 1.0)
    clip = lambda side: np.clip(np.nan_to_num(side, posinf=2e19, neginf=-2e19), -2e19, 2e19)
    upper = np.zeros(rows)
    lower = np.where(np.arange(rows) < entry.equality_count, 0.0, -2e19)
    program = cyipopt.Problem(
        n=count, m=rows, problem_obj=Program(), lb=clip(entry.lower), ub=clip(entry.upper), cl=lower, cu=upper
    )
    for option, setting in (
        ("tol", ASKED), ("max_iter", STEPS), ("max_wall_time", float(seconds)), ("print_level", 0), ("sb", "yes"),
        ("bound_relax_factor", 0.0), ("constr_viol_tol", ASKED), ("dual_inf_tol", ASKED), ("compl_inf_tol", ASKED),
    ):  # fmt: skip
        program.add_option(option, setting)
    started = time.perf_counter()
    x, about = program.solve(entry.guess)
    spent = time.perf_counter() - started
    message = about["status_msg"]
    message = message.decode() if isinstance(message, bytes) else str(message)
    evaluations = calls["values"] + calls["gradients"] + count * calls["hessians"]
    return Outcome(x, about["status"] == 0, message, float(calls["hessians"]), float(evaluations), spent)


def _timed(solve: Callable[[Any], Any], guess: Any) -> tuple[Any, float, float]:
    """What a traced solver found, the seconds of its run, and those of its compilation."""
    clock = time.perf_counter()
    compiled = jax.jit(solve).lower(guess).compile()
    compile_seconds = time.perf_counter() - clock
    clock = time.perf_counter()
    found = jax.block_until_ready(compiled(guess))
    return found, time.perf_counter() - clock, compile_seconds


def _jaxopt(entry: Entry, name: str, seconds: float) -> Outcome:
    import jaxopt  # pyright: ignore[reportMissingImports]

    bounds = (entry.lower, entry.upper) if name == "LBFGSB" else None
    solver = getattr(jaxopt, name)(entry.objective, tol=ASKED, maxiter=STEPS, implicit_diff=False)

    def solve(guess):
        step = solver.run(guess) if bounds is None else solver.run(guess, bounds=bounds)
        return step.params, step.state.error, step.state.iter_num

    (x, error, steps), spent, compiled = _timed(solve, jax.numpy.asarray(entry.guess))
    claims = bool(error <= ASKED)
    message = "converged" if claims else f"error {float(error):.2g}"
    return Outcome(np.asarray(x), claims, message, float(steps), np.nan, spent, compiled)


def _optimistix(entry: Entry, name: str, seconds: float) -> Outcome:
    import optimistix as optx

    if not hasattr(optx, name):
        raise ArgumentError("solvers", f"holds optimistix.{name}, which this version of Optimistix does not have.")
    solver = getattr(optx, name)(rtol=1e-8, atol=1e-8)

    def solve(guess):
        found = optx.minimise(lambda x, _: entry.objective(x), solver, guess, max_steps=STEPS, throw=False)
        return found.value, found.result == optx.RESULTS.successful, found.stats["num_steps"]

    (x, claims, steps), spent, compiled = _timed(solve, jax.numpy.asarray(entry.guess))
    message = "converged" if claims else "not converged"
    return Outcome(np.asarray(x), bool(claims), message, float(steps), np.nan, spent, compiled)
