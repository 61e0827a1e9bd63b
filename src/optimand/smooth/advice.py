"""Which method to choose: `advise(problem)` says, and why. The default of `optimand.minimize` asks it.

The rules are those of the guide "Choosing a method": the type of the problem first, then what constrains it, its size, and
the precision of its numbers.

| problem | method |
|---|---|
| `Minimize`, `Fit` with all data at once; up to 1000 unknowns | `TrustRegion`: Newton's method where curvature is trusted |
| the same, more unknowns | `LBFGS` |
| `Fit` with random batches | `Adam` |
| `LeastSquares` up to 1000 unknowns, more | `LevenbergMarquardt`, `LBFGS` |
| `Constrained` with bounds only; up to 1000 unknowns, more | `TrustRegion`, `LBFGSB` |
| `Constrained` with equalities or inequalities | `InteriorPoint`; in single precision `AugmentedLagrangian` |
| `QuadraticProgram`, convex | `QuadraticInteriorPoint` |
| `Composite` | `ProximalGradient` |
| `Root`, `FixedPoint`, `Linear` | `Newton`, `Anderson`, `LinearSolve` |
"""

import dataclasses
import importlib
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.fit import Fit
from ..core.method import Method
from ..core.problem import Composite, FixedPoint, LeastSquares, Linear, Objective, Problem, Root
from ..core.tracing import as_arrays
from .arguments import need_not_negative
from .quadratic_program import QuadraticProgram
from .target_problem import TargetProblem

__all__ = ["SMALL", "Advice", "advise", "first_suitable", "known_method"]

SMALL = 1000  # unknowns, up to which a dense Hessian is worth its cost


@dataclasses.dataclass(frozen=True)
class Advice:
    """What `advise` answers: the `method`, ready to be passed to `solve`, the `reason`, and names of `alternatives`."""

    method: Method
    reason: str
    alternatives: tuple[str, ...] = ()

    def __str__(self):
        also = f" Also: {', '.join(self.alternatives)}." if self.alternatives else ""
        return f"{type(self.method).__name__}: {self.reason}{also}"


def advise(problem: Problem, guess: PyTree = None, *, tolerance: Any = None) -> Advice:
    """Which method to choose for a problem, and why.

    **Arguments:**

    - `problem`: of one of the types of the core.
    - `guess`: where the solve will start, for the number of unknowns and their precision. Without it the problem is
      taken to be small, in JAX's default precision.
    - `tolerance`: of the method; its own default if `None`.

    **Returns:** an `Advice`. Printed, it reads as a sentence.

    **Raises:** `ArgumentError` if the problem is of a type that only its own room knows.

    ```python
    problem = om.Minimize(lambda x: jnp.sum((x - 1.0) ** 4))
    advice = om.advise(problem, jnp.zeros(3))
    print(advice)
    om.solve(problem, advice.method, jnp.zeros(3)).value
    ```
    """
    if not isinstance(problem, Problem):
        raise ArgumentError("problem", f"must be an optimand Problem, not {type(problem).__name__}.")
    need_not_negative("tolerance", tolerance)
    size, double = _size_and_precision(problem, guess)
    names, reason, alternatives = _rule(problem, size, double)
    method = first_suitable(names, double, tolerance)
    also = dict.fromkeys(name for name in (*names, *alternatives) if name != type(method).__name__)
    return Advice(method, reason, tuple(also))


def first_suitable(names: tuple[str, ...], double: bool, tolerance: Any = None, **settings: Any) -> Method:
    """The first of the named methods that works in this precision, with these settings; "Scipy:SLSQP" is SciPy's."""
    for name in names:
        method = known_method(name)
        if method is not None and (double or not method.requires_x64):
            if tolerance is not None:
                settings["tolerance"] = tolerance
            foreign = name.partition(":")[2]
            return method(*([foreign] if foreign else []), **settings)
    raise ArgumentError("method", f"works in double precision only: {', '.join(names)}.", "Set JAX_ENABLE_X64=1.")


def known_method(name: str) -> type[Method] | None:
    """The method of this room with that name, in capitals or not."""
    room, wanted = importlib.import_module(__package__ or ""), name.partition(":")[0].lower()
    found = next((getattr(room, public) for public in room.__all__ if public.lower() == wanted), None)
    return found if isinstance(found, type) and issubclass(found, Method) else None


def _size_and_precision(problem: Problem, guess: PyTree) -> tuple[int, bool]:
    if guess is None and isinstance(problem, Fit | Linear):
        guess = problem.start(None)
    if isinstance(guess, PrimalDual):
        guess = guess.primal
    default = jnp.zeros(()).dtype == jnp.float64
    leaves = [leaf for leaf in jtu.tree_leaves(as_arrays(guess)) if hasattr(leaf, "dtype")]
    leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not leaves:
        return 1, default
    return sum(leaf.size for leaf in leaves), default and all(leaf.dtype == jnp.float64 for leaf in leaves)


def _rule(problem: Any, size: int, double: bool) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Names of methods, best first, of which the first that suits the precision is taken; the reason; alternatives."""
    small = size <= SMALL
    unknowns = f"{size} unknown{'s' if size != 1 else ''}"
    if isinstance(problem, Constrained):
        return _constrained_rule(problem, small, unknowns, double)
    if isinstance(problem, Objective) and problem.stochastic:
        also = ("SSO",) if isinstance(problem, TargetProblem) else ("Optax", "SLS")
        return ("Adam",), "batches are random, so steps must not compare values.", also
    if isinstance(problem, LeastSquares) and small:
        reason = f"a sum of squares with {unknowns}: products of the Jacobian are a good Hessian."
        return ("LevenbergMarquardt",), reason, ("GaussNewton", "LBFGS")
    if isinstance(problem, Objective):
        if small:
            reason = f"{unknowns}, so a Hessian is affordable; the trust region copes with saddles and bad scaling."
            return ("TrustRegion",), reason, ("BFGS", "LBFGS", "NonlinearCG")
        return ("LBFGS",), f"{unknowns}: products with few vectors, no Hessian.", ("NonlinearCG", "TrustRegion")
    if isinstance(problem, Composite):
        return ("ProximalGradient",), "smooth plus a term with a proximal operator.", ("ProjectedGradient",)
    for kind, name, reason, also in (
        (Root, "Newton", "quadratic convergence near a root.", ("Optimistix",)),
        (FixedPoint, "Anderson", "one application of the map a step.", ("FixedPointIteration",)),
        (Linear, "LinearSolve", "a linear system.", ()),
    ):
        if isinstance(problem, kind):
            return (name,), reason, also
    raise ArgumentError(
        "problem", f"is a {type(problem).__name__}, for which the methods of its own room are meant.",
        "`optimand list` names them.",
    )  # fmt: skip


def _constrained_rule(problem: Constrained, small: bool, unknowns: str, double: bool):
    if isinstance(problem, QuadraticProgram) and problem.convex:
        return ("QuadraticInteriorPoint",), "a convex quadratic program.", ("ADMM", "InteriorPoint")
    if problem.equality_fn is not None or problem.inequality_fn is not None:
        reason = "general constraints." if double else "general constraints in single precision."
        return ("InteriorPoint", "AugmentedLagrangian"), reason, ("SQP",)
    what = "bounds only" if problem.bounds != (None, None) else "no constraint after all"
    if small:
        return ("TrustRegion",), f"{what} and {unknowns}: a projected Newton method.", ("LBFGSB", "InteriorPoint")
    return ("LBFGSB",), f"{what} and {unknowns}: no Hessian.", ("TrustRegion",)
