"""Solvers for objectives, with and without a proximal operator, a projection or bounds."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from ... import smooth
from ...core.adjoint import Adjoint, Implicit, Unrolled
from ...core.constrained import Constrained
from ...core.errors import ArgumentError
from ...core.method import Method
from ...core.problem import Composite, LeastSquares, Problem
from ...core.tracing import as_arrays
from ...smooth.scipy import Scipy
from ...smooth.vectors import subtract
from .solver import Called, OptStep, Solver, SolverState, objective

__all__ = [
    "BFGS",
    "LBFGS",
    "LBFGSB",
    "ArmijoSGD",
    "BlockCoordinateDescent",
    "GaussNewton",
    "GradientDescent",
    "LevenbergMarquardt",
    "MirrorDescent",
    "NonlinearCG",
    "OptaxSolver",
    "PolyakSGD",
    "ProjectedGradient",
    "ProximalGradient",
    "ScipyBoundedMinimize",
    "ScipyMinimize",
]


@dataclasses.dataclass(eq=False, kw_only=True)
class _OfObjective(Solver):
    """A solver for `fun(params, *args, **kwargs)`: abstract in `method`."""

    fun: Callable = dataclasses.field(kw_only=False)
    value_and_grad: bool = False
    has_aux: bool = False

    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        return objective(self.fun, args, kwargs, value_and_grad=self.value_and_grad, has_aux=self.has_aux)

    def _smooth(self, args, kwargs) -> Callable:
        """The objective alone, as a function of x, args and kwargs."""
        return Called(self.fun, self.value_and_grad, first=self.has_aux)


_SEARCH = ("linesearch_init", "condition", "decrease_factor", "increase_factor", "max_stepsize",
           "min_stepsize", "stop_if_linesearch_fails", "use_gamma")  # fmt: skip


@dataclasses.dataclass(eq=False, kw_only=True)
class _LineSearching(_OfObjective):
    """The settings of jaxopt's line searches, of which we have the name: "backtracking", "zoom" or "hager-zhang"."""

    maxls: int | None = None
    stepsize: float = 0.0
    linesearch: str | None = None
    linesearch_init: Any = None
    condition: Any = None
    decrease_factor: Any = None
    increase_factor: Any = None
    max_stepsize: Any = None
    min_stepsize: Any = None
    stop_if_linesearch_fails: Any = None
    use_gamma: Any = None
    passed_over: ClassVar[tuple[str, ...]] = _SEARCH

    def _search(self) -> dict[str, Any]:
        searches = {None: None, "backtracking": None, "zoom": smooth.StrongWolfe(), "hager-zhang": smooth.HagerZhang()}
        if self.linesearch not in searches:
            known = ", ".join(repr(name) for name in searches if name)
            raise ArgumentError("linesearch", f"must be one of {known}, not {self.linesearch!r}.")
        return {"line_search": searches[self.linesearch]}

    def _trials(self) -> dict[str, Any]:
        return {} if self.maxls is None else {"max_trials": self.maxls}


@dataclasses.dataclass(eq=False, kw_only=True)
class GradientDescent(_LineSearching):
    """`optimand.smooth.GradientDescent`. There is no `acceleration`; with a `prox`, use `ProximalGradient`."""

    acceleration: Any = None
    passed_over: ClassVar[tuple[str, ...]] = (*_SEARCH, "acceleration")

    def as_method(self) -> Method:
        step_size = self.stepsize if not callable(self.stepsize) and self.stepsize > 0 else None
        return smooth.GradientDescent(step_size=step_size, tolerance=self.tol, **self._search(), **self._trials())


@dataclasses.dataclass(eq=False, kw_only=True)
class LBFGS(_LineSearching):
    """`optimand.smooth.LBFGS`."""

    history_size: int = 10

    def as_method(self) -> Method:
        return smooth.LBFGS(memory=self.history_size, tolerance=self.tol, **self._search(), **self._trials())


@dataclasses.dataclass(eq=False, kw_only=True)
class BFGS(_LineSearching):
    """`optimand.smooth.BFGS`."""

    def as_method(self) -> Method:
        search = self._search()["line_search"]
        if search is None and self.maxls is not None:
            search = smooth.Backtracking(max_trials=self.maxls)
        return smooth.BFGS(search, tolerance=self.tol)


@dataclasses.dataclass(eq=False, kw_only=True)
class NonlinearCG(_LineSearching):
    """`optimand.smooth.NonlinearCG`; `method` is "polak-ribiere", "fletcher-reeves" or "hestenes-stiefel"."""

    maxiter: int = 100
    method: Any = "polak-ribiere"
    passed_over: ClassVar[tuple[str, ...]] = (*_SEARCH, "maxls")

    def as_method(self) -> Method:
        return smooth.NonlinearCG(variant=self.method, tolerance=self.tol, **self._search())


@dataclasses.dataclass(eq=False, kw_only=True)
class LBFGSB(_LineSearching):
    """`optimand.smooth.LBFGSB`: `run(init_params, bounds, *args)`, with `bounds` the pair (lower, upper)."""

    maxiter: int = 50
    theta: Any = None
    history_size: int = 10
    passed_over: ClassVar[tuple[str, ...]] = (*_SEARCH, "maxls", "theta")

    def as_problem(self, bounds: Any = None, *args: Any, **kwargs: Any) -> Problem:
        return Constrained(self._smooth(args, kwargs), args, kwargs, bounds=bounds)

    def as_method(self) -> Method:
        return smooth.LBFGSB(memory=self.history_size, tolerance=self.tol, **self._search())

    def params(self, value: PyTree) -> PyTree:
        return value.primal


@dataclasses.dataclass(eq=False, kw_only=True)
class ProximalGradient(_OfObjective):
    """`optimand.smooth.ProximalGradient`: `run(init_params, hyperparams_prox, *args)`.

    `prox(x, hyperparams_prox, scaling)` as in jaxopt: the hyperparameters before the step size.
    """

    prox: Callable = dataclasses.field(kw_only=False, default=lambda x, hyperparams=None, scaling=1.0: x)
    stepsize: float = 0.0
    maxls: int | None = None
    acceleration: bool = True
    decrease_factor: Any = None
    passed_over: ClassVar[tuple[str, ...]] = ("decrease_factor",)

    def as_problem(self, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> Problem:
        prox = self.prox
        turned = lambda x, step_size, hyperparams: prox(x, hyperparams, step_size)
        return Composite(self._smooth(args, kwargs), turned, args, kwargs, prox_args=(hyperparams_prox,))

    def as_method(self) -> Method:
        trials: dict[str, Any] = {} if self.maxls is None else {"max_trials": self.maxls}
        return smooth.ProximalGradient(
            step_size=self.stepsize if self.stepsize > 0 else None, acceleration=self.acceleration, tolerance=self.tol, **trials
        )  # fmt: skip


@dataclasses.dataclass(eq=False, kw_only=True)
class ProjectedGradient(_OfObjective):
    """`optimand.smooth.ProjectedGradient`: `run(init_params, hyperparams_proj, *args)`.

    `projection(x, hyperparams_proj)` as in jaxopt, or `projection(x)` if there are no hyperparameters. Those of
    `optimand.smooth.projections` with one parameter fit.
    """

    projection: Callable = dataclasses.field(kw_only=False)
    stepsize: Any = None
    maxls: int | None = None
    acceleration: Any = None
    decrease_factor: Any = None
    passed_over: ClassVar[tuple[str, ...]] = ("stepsize", "acceleration", "decrease_factor")

    def as_problem(self, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Problem:
        projection = self.projection
        alone = hyperparams_proj is None and _takes(projection, 1)
        onto = lambda x, step_size, hyperparams: projection(x) if alone else projection(x, hyperparams)
        return Composite(self._smooth(args, kwargs), onto, args, kwargs, prox_args=(hyperparams_proj,))

    def as_method(self) -> Method:
        trials = {} if self.maxls is None else {"max_trials": self.maxls}
        return smooth.ProjectedGradient(tolerance=self.tol, **trials)


def _takes(function: Callable, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


@dataclasses.dataclass(eq=False, kw_only=True)
class BlockCoordinateDescent(_OfObjective):
    """`optimand.smooth.BlockCoordinateDescent`: `run(init_params, hyperparams_prox, *args)`.

    The blocks are the rows of `params`, as in jaxopt; `fun` may be any smooth function, not only a composite linear one.
    """

    block_prox: Callable = dataclasses.field(kw_only=False)
    tol: float = 1e-4

    def as_problem(self, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> Problem:
        block_prox = self.block_prox
        rows = lambda x, step_size, hyperparams: jax.vmap(lambda row: block_prox(row, hyperparams, step_size))(x)
        return Composite(self._smooth(args, kwargs), rows, args, kwargs, prox_args=(hyperparams_prox,))

    def as_method(self) -> Method:
        return smooth.BlockCoordinateDescent(tolerance=self.tol)


@dataclasses.dataclass(frozen=True)
class _ProjectionGrad:
    """x, g -> projection(mapping(x) - step_size g, hyperparams)."""

    projection: Callable
    mapping: Callable

    def __call__(self, x, x_fun_grad, stepsize, hyperparams_proj=None):
        dual = jtu.tree_map(lambda y, g: y - stepsize * g, self.mapping(x), x_fun_grad)
        return self.projection(dual, hyperparams_proj)


@dataclasses.dataclass(eq=False, kw_only=True)
class MirrorDescent(_OfObjective):
    """`optimand.smooth.MirrorDescent`: `run(init_params, hyperparams_proj, *args)`.

    `projection_grad` must come from `MirrorDescent.make_projection_grad(projection, mapping_fun)`.
    """

    projection_grad: Callable = dataclasses.field(kw_only=False)
    stepsize: Any = dataclasses.field(kw_only=False)
    tol: float = 1e-2

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.projection_grad, _ProjectionGrad):
            hint = "Make it with MirrorDescent.make_projection_grad(projection, mapping_fun)."
            raise ArgumentError("projection_grad", "must be known in its two parts.", hint)
        self._hyperparams: Any = None

    @staticmethod
    def make_projection_grad(projection: Callable, mapping_fun: Callable) -> Callable:
        """From `projection(y, hyperparams)`, of a dual point, and `mapping_fun(x)`, the gradient of the mirror map."""
        return _ProjectionGrad(projection, mapping_fun)

    def run(self, init_params: PyTree, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        bound = dataclasses.replace(self)
        bound._hyperparams = hyperparams_proj
        return super(MirrorDescent, bound).run(init_params, hyperparams_proj, *args, **kwargs)

    def as_problem(self, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Problem:
        onto = lambda x, step_size, hyperparams: x  # never called: see `adjoint` for what a solution is
        return Composite(self._smooth(args, kwargs), onto, args, kwargs, prox_args=(hyperparams_proj,))

    def as_method(self) -> Method:
        maps: Any = self.projection_grad
        from_dual = lambda y: maps.projection(y, self._hyperparams)
        return smooth.MirrorDescent(self.stepsize, to_dual=maps.mapping, from_dual=from_dual, tolerance=self.tol)

    def _condition(self, x: PyTree, problem: Any) -> PyTree:
        """x is a fixed point of the step: how a solution is differentiated."""
        moved = self.projection_grad(x, problem.smooth.gradient(x), 1.0, problem.prox_args[0])
        return subtract(moved, x)

    def adjoint(self, *args: Any, **kwargs: Any) -> Adjoint:
        return Implicit(condition=self._condition, tolerance=None) if self.implicit_diff else Unrolled()

    def optimality_fun(self, params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        return self._condition(as_arrays(params), self.as_problem(*args, **kwargs))


@dataclasses.dataclass(eq=False, kw_only=True)
class _OfResiduals(Solver):
    """A solver for half the sum of squares of `residual_fun(params, *args, **kwargs)`: abstract in `method`."""

    residual_fun: Callable = dataclasses.field(kw_only=False)
    has_aux: bool = False
    maxiter: int = 30

    def as_problem(self, *args: Any, **kwargs: Any) -> Problem:
        return LeastSquares(Called(self.residual_fun, first=self.has_aux), args, kwargs)


@dataclasses.dataclass(eq=False, kw_only=True)
class GaussNewton(_OfResiduals):
    """`optimand.smooth.GaussNewton`. `tol` bounds the gradient."""

    tol: float = 1e-5

    def as_method(self) -> Method:
        return smooth.GaussNewton(tolerance=self.tol)


@dataclasses.dataclass(eq=False, kw_only=True)
class LevenbergMarquardt(_OfResiduals):
    """`optimand.smooth.LevenbergMarquardt`. `tol` or, if given, `gtol` bounds the gradient."""

    damping_parameter: Any = None
    gtol: float | None = None
    xtol: Any = None
    stop_criterion: Any = None
    solver: Any = None
    geodesic: Any = None
    jac_fun: Any = None
    materialize_jac: Any = None
    passed_over: ClassVar[tuple[str, ...]] = (
        "damping_parameter", "xtol", "stop_criterion", "solver", "geodesic", "jac_fun", "materialize_jac",
    )  # fmt: skip

    def as_method(self) -> Method:
        return smooth.LevenbergMarquardt(tolerance=self.tol if self.gtol is None else self.gtol)


# Stochastic solvers. Their `update` takes the data of its own step.


@dataclasses.dataclass(eq=False, kw_only=True)
class OptaxSolver(_OfObjective):
    """`optimand.smooth.Optax`. `update(params, state, *args)` takes the gradient of its own arguments, a batch."""

    opt: Any = dataclasses.field(kw_only=False)
    pre_update: Any = None
    implicit_diff: bool = False
    passed_over: ClassVar[tuple[str, ...]] = ("pre_update",)

    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.opt)

    def as_method(self) -> Method:
        return smooth.Optax(tx=self._transformation(), tolerance=self.tol)

    def init_state(self, init_params: PyTree, *args: Any, **kwargs: Any) -> SolverState:
        nan = jnp.asarray(jnp.nan)
        return SolverState(jnp.int32(0), nan, nan, None, self._transformation().init(init_params))

    def update(self, params: PyTree, state: SolverState, *args: Any, **kwargs: Any) -> OptStep:
        problem: Any = self.as_problem(*args, **kwargs)
        value, gradient = problem.value_and_gradient(params)
        updates, inner = self._transformation().update(
            gradient, state.inner, params, value=value, grad=gradient, value_fn=problem.value
        )
        new = optax.apply_updates(params, updates)
        return OptStep(new, SolverState(state.iter_num + 1, optax.tree.norm(gradient), value, None, inner))

    def run_iterator(self, init_params: PyTree, iterator: Any, *args: Any, **kwargs: Any) -> OptStep:
        """One `update` with `data=` each item of the iterator, at most `maxiter`."""
        params, state = init_params, None
        step = jax.jit(self.update)
        for number, data in enumerate(iterator):
            if number >= self.maxiter:
                break
            if state is None:
                state = self.init_state(params, *args, data=data, **kwargs)
            params, state = step(params, state, *args, data=data, **kwargs)
        return OptStep(params, state)


@dataclasses.dataclass(eq=False, kw_only=True)
class PolyakSGD(OptaxSolver):
    """`optimand.smooth.PolyakSGD`."""

    opt: Any = None
    fun_min: float = 0.0
    max_stepsize: float = 1.0
    variant: str = "SPS_max"
    delta: float = 0.0
    momentum: float = 0.0

    def as_method(self) -> Method:
        variant: Any = {"SPS_max": "sps", "SPS+": "sps+"}.get(self.variant)
        if variant is None:
            raise ArgumentError("variant", f"must be 'SPS_max' or 'SPS+', not {self.variant!r}.")
        return smooth.PolyakSGD(
            max_step=self.max_stepsize, minimum=self.fun_min, delta=self.delta, momentum=self.momentum, variant=variant,
            tolerance=self.tol,
        )  # fmt: skip

    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        method: Any = self.as_method()
        return method.transformation()


@dataclasses.dataclass(eq=False, kw_only=True)
class ArmijoSGD(OptaxSolver):
    """`optimand.smooth.SLS`, with the search of each `update` on the batch of its own."""

    opt: Any = None
    aggressiveness: float = 0.9
    decrease_factor: float = 0.8
    increase_factor: float = 1.5
    max_stepsize: float = 1.0
    maxls: int = 15
    reset_option: Any = "increase"
    momentum: float = 0.0

    def as_method(self) -> Method:
        return smooth.SLS(
            max_step=self.max_stepsize, growth=self.increase_factor, shrink=self.decrease_factor,
            decrease=1 - self.aggressiveness, reset=self.reset_option, momentum=self.momentum, max_trials=self.maxls,
            tolerance=self.tol,
        )  # fmt: skip

    def init_state(self, init_params: PyTree, *args: Any, **kwargs: Any) -> SolverState:
        return Solver.init_state(self, init_params, *args, **kwargs)

    def update(self, params: PyTree, state: SolverState, *args: Any, **kwargs: Any) -> OptStep:
        return Solver.update(self, params, state, *args, **kwargs)


# SciPy's.


class ScipyMinimize(_OfObjective):
    """`optimand.smooth.Scipy`: `ScipyMinimize(method="BFGS", fun=fun)`."""

    default_method: ClassVar[str] = "BFGS"
    passed_over: ClassVar[tuple[str, ...]] = ("callback", "dtype")

    def __init__(
        self, method: str | None = None, *, fun: Callable, options: dict[str, Any] | None = None,
        callback: Any = None, dtype: Any = None, tol: float | None = None, **settings: Any,
    ):  # fmt: skip
        self.method, self.options, self.callback, self.dtype = method, options, callback, dtype
        super().__init__(fun, **settings)
        self.scipy_tol = tol

    def as_method(self) -> Method:
        options = {"maxiter": self.maxiter, **(self.options or {})}
        return Scipy(self.method or self.default_method, tolerance=self.scipy_tol, options=options)


class ScipyBoundedMinimize(ScipyMinimize):
    """`optimand.smooth.Scipy`: `run(init_params, bounds, *args)`, with `bounds` the pair (lower, upper)."""

    default_method: ClassVar[str] = "L-BFGS-B"

    def as_problem(self, bounds: Any = None, *args: Any, **kwargs: Any) -> Problem:
        return Constrained(self._smooth(args, kwargs), args, kwargs, bounds=bounds)

    def params(self, value: PyTree) -> PyTree:
        return value.primal
