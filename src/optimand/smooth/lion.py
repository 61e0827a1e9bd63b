r"""Lion-K: Lion and its family, which solve constrained problems without projections.

$$\begin{aligned}
c_k &= \beta_1 m_k - (1 - \beta_1) \nabla f(x_k), \\
x_{k+1} &= x_k + \eta_k (u_k - \lambda x_k), \qquad u_k \in \partial K(c_k), \\
m_{k+1} &= \beta_2 m_k - (1 - \beta_2) \nabla f(x_k),
\end{aligned}$$

with \(m_0 = 0\) (m tracks the negative gradient), or with the decay taken implicitly,
\(x_{k+1} = (x_k + \eta_k u_k) / (1 + \eta_k \lambda)\), which is the explicit step of length \(\eta_k / (1 + \eta_k \lambda)\).

The stationary points are those of \(f(x) + \tfrac{1}{\lambda} K^*(\lambda x)\). With \(K = \lVert c \rVert_1\) the step is a
sign, the iteration is Lion, and the problem is \(\min f(x)\) over the box \(\lVert x \rVert_\infty \le 1 / \lambda\). Outside
the set the distance to it shrinks by \(1 - \eta \lambda\) a step; inside, x_{k+1} is a convex combination of x_k and
\(u_k / \lambda\) and never leaves.

Chen, Liu, Liang and Liu, "Lion secretly solves constrained optimization: as Lyapunov predicts" (2024), algorithm 1 and
section 4; Lion itself: Chen et al. (2023). Frank and Wolfe's method is the case of \(\beta_1 = \beta_2 = 0\).
"""

import warnings
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Objective
from ..core.tracing import is_tracer
from .arguments import need_between, need_not_negative, need_positive
from .lion_flow import energy, kkt_score
from .lion_kernels import Kernel, L1Kernel
from .optax import samples_of

__all__ = ["LionK", "lion_k"]


class LionKState(eqx.Module):
    """`point` and `momentum` in the coordinates of the iteration, in which a box is |y| <= 1; `value` and `gradient` of
    the objective in those of the problem. `step` counts the steps taken."""

    point: PyTree
    momentum: PyTree
    value: Array
    gradient: PyTree
    step: Array
    counters: Counters


class LionK(Method):
    r"""Lion with any kernel: an optimiser for large models that is a projection-free constrained solver.

    One gradient and one copy of the unknowns (the momentum) a step. Pick it to train networks whose weights have to stay
    bounded, and where a projection is dear; a small smooth problem with bounds is solved faster and more accurately by
    methods that use curvature. A constant learning rate stalls at an error of its order: give a schedule.

    On an `Objective` the set is that of the kernel and of `weight_decay` (see `lion_kernels`). A solution on its boundary is
    not a stationary point of f alone, so that the derivative of a solve there needs `adjoint=Unrolled()` with a smooth
    kernel, or the problem stated as `Constrained`.

    On a `Constrained` problem the set is the box of its bounds, and the answer has their multipliers. The box is mapped
    to |y| <= 1 by x = c + h y, and the learning rate is measured so that `weight_decay * learning_rate` is the share
    of the distance to the boundary that a step closes; `LionK.for_bounds` chooses the `weight_decay` with which it is also
    the length of the step. Both bounds of every unknown must be finite. A start outside is allowed: see `violation` below.

    **Arguments:**

    - `kernel`: the K; `L1Kernel()` is Lion.
    - `learning_rate`: the \(\eta\), a number or an Optax schedule (step number -> number).
    - `weight_decay`: the \(\lambda\). Zero imposes no constraint.
    - `b1`, `b2`: \(\beta_1, \beta_2\), at least 0 and less than 1.
    - `decay`: "explicit", which needs \(\eta \lambda < 1\), or "implicit".
    - `tolerance`: converged when the `kkt_score` is at most this; `None` never looks. A problem with random batches
      never says so.
    - `monitor`: record `kkt_score`, `violation` and `lyapunov` beside the value after every step. By default if the
      kernel is cheap: not for `SpectralKernel`.

    Metrics: `kkt_score` (infinite outside the set; on a `Constrained` the gap of Frank and Wolfe), `violation` (how far the
    point is outside, as a multiple of the set less one, in units of x; for bounds the largest violation), `lyapunov` (H of
    `lyapunov`, in the discrete form of the paper: infinite outside the set, then falling but for terms of the order of the
    learning rate).

    Raises `ArgumentError`, naming the argument, for numbers out of their range, \(\eta \lambda \ge 1\), a kernel that does
    not suit the unknowns, and constraints it cannot impose. Warns if `weight_decay` is zero with a kernel that constrains.

    ```python
    method = om.smooth.LionK(learning_rate=optax.linear_schedule(1e-1, 0.0, 500), weight_decay=1.0)
    problem = om.Minimize(lambda x: jnp.sum((x - jnp.array([3.0, 0.5])) ** 2))
    solution = om.solve(problem, method, jnp.zeros(2), budget=om.Budget(steps=500))
    solution.value, solution.history["kkt_score"][-1]  # (1, 0.5): the best point of |x| <= 1
    ```
    """

    problem = (Objective, Constrained)
    reference: ClassVar[str] = "chen2024lion"

    kernel: Any = L1Kernel()
    learning_rate: Any = 1e-3
    weight_decay: Any = 0.1
    b1: Any = 0.9
    b2: Any = 0.99
    decay: str = eqx.field(static=True, default="explicit")
    tolerance: Any = 1e-6
    monitor: Any = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check(self.kernel, self.learning_rate, self.weight_decay, self.b1, self.b2, self.decay)
        need_not_negative("tolerance", self.tolerance)
        if self.monitor not in (None, True, False):
            raise ArgumentError("monitor", f"must be True, False or None, not {self.monitor!r}.")

    @classmethod
    def for_bounds(cls, bounds: Any, **options: Any) -> "LionK":
        r"""The method for the box of these bounds: its `weight_decay` is one over the largest half-width.

        **Arguments:** `bounds`: a number b, for \([-b, b]\), or a pair `(lower, upper)` as `Constrained` takes it. `options`:
        the other arguments of `LionK`. With a symmetric box the method also solves the plain objective.

        **Raises:** `ArgumentError` for bounds that are missing, infinite, NaN or crossed, and for a kernel other than
        `L1Kernel`: those bound another set, or add a penalty in the box.

        ```python
        box = (jnp.array([0.0, -1.0]), jnp.array([4.0, 1.0]))
        problem = om.Constrained(lambda x: jnp.sum((x - 3.0) ** 2), bounds=box)
        method = om.smooth.LionK.for_bounds(box, learning_rate=optax.linear_schedule(0.1, 0.0, 500))
        solution = om.solve(problem, method, jnp.zeros(2), budget=om.Budget(steps=500))
        solution.value.primal, solution.value.upper  # (3, 1) and the multipliers (0, 4)
        ```
        """
        if "weight_decay" in options:
            raise ArgumentError("weight_decay", "follows from the bounds.", "LionK(...) takes one.")
        kernel = options.get("kernel", L1Kernel())
        if isinstance(kernel, Kernel):
            _need_box(kernel)
        if isinstance(bounds, tuple | list):
            if len(bounds) != 2:
                raise ArgumentError("bounds", "must be a number or a pair (lower, upper).")
            lower, upper = bounds
        else:
            need_positive("bounds", bounds)
            lower, upper = -bounds, bounds
        _need_finite_box(lower, upper)
        half = _largest_half_width(lower, upper)
        if not is_tracer(half) and half == 0:
            raise ArgumentError("bounds", "leave nothing free: lower = upper everywhere.")
        return cls(weight_decay=1 / half, **options)

    def check(self, problem: Objective | Constrained, guess: PyTree) -> None:
        if isinstance(problem, Constrained):
            x = eqx.filter(guess.primal, eqx.is_inexact_array)
            _need_bounds_only(problem, self.kernel)
            _need_finite_box(problem.lower(x), problem.upper(x))
            need_positive("weight_decay", self.weight_decay)
        else:
            x = eqx.filter(guess, eqx.is_inexact_array)
        self.kernel.check(x)

    def init(self, problem: Objective | Constrained, guess: PyTree, *, key: Array | None) -> LionKState:
        if isinstance(problem, Constrained):
            _need_bounds_only(problem, self.kernel)
            x = guess.primal
            point = _Box(problem, x).to_unit(x)
        else:
            point = x = guess
        self.kernel.check(x)
        value, gradient = _value_and_gradient(problem, x, key)
        counters = Counters.zero().add(values=1, gradients=1, samples=_samples_of(problem))
        momentum = jtu.tree_map(jnp.zeros_like, point)
        return LionKState(point, momentum, value, gradient, jnp.zeros((), jnp.int32), counters)

    def step(self, problem: Objective | Constrained, state: LionKState, *, key: Array | None) -> LionKState:
        length, weight = self._scales(problem, self._rate(state.step))
        gradient = self._gradient(problem, state)
        c, momentum = _momenta(state.momentum, gradient, self.b1, self.b2)
        u = self.kernel.subgradient(c)
        point = jtu.tree_map(lambda y, u: (y + length * (u - weight * y)).astype(y.dtype), state.point, u)
        value, gradient = _value_and_gradient(problem, self._x(problem, point), key)
        counters = state.counters.add(values=1, gradients=1, samples=_samples_of(problem))
        return LionKState(point, momentum, value, gradient, state.step + 1, counters)

    def done(self, problem: Objective | Constrained, state: LionKState):
        if self.tolerance is None or (isinstance(problem, Objective) and problem.stochastic):
            return jnp.array(False)
        return self._score(problem, state) <= self.tolerance

    def answer(self, problem: Objective | Constrained, state: LionKState) -> PyTree:
        x = self._x(problem, state.point)
        if not isinstance(problem, Constrained):
            return x
        # The multiplier of a bound that is active: nearer, in these units, than the gradient is long.
        pulled = lambda slack, g: jnp.where(slack <= g, jnp.maximum(g, 0), 0).astype(g.dtype)
        low = jtu.tree_map(lambda x, l, g: pulled(x - l, g), x, problem.lower(x), state.gradient)
        high = jtu.tree_map(lambda x, u, g: pulled(u - x, -g), x, problem.upper(x), state.gradient)
        return PrimalDual(x, lower=low, upper=high)

    def metrics(self, problem: Objective | Constrained, state: LionKState) -> dict[str, Any]:
        metrics: dict[str, Any] = {"value": state.value}
        if not (self.kernel.cheap if self.monitor is None else self.monitor):
            return metrics
        length, weight = self._scales(problem, self._rate(state.step))
        if isinstance(problem, Constrained):
            violation = problem.violation(self._x(problem, state.point))
        else:
            outside = jnp.maximum(self.kernel.gauge(jtu.tree_map(lambda y: weight * y, state.point)) - 1, 0)
            violation = outside / jnp.where(jnp.asarray(weight) == 0, 1, weight)
        # alpha = gamma = (1 - b2) / length and epsilon gamma = 1 - b1 make the flow of the iteration; H / gamma is in
        # units of f, and finite for a length of zero
        coupling = self.b1 * length / ((1 - self.b2) + (1 - self.b1) * length * weight)
        monitored = energy(self.kernel, state.value, state.point, state.momentum, weight, 1.0, coupling)
        return {**metrics, "kkt_score": self._score(problem, state), "violation": violation, "lyapunov": monitored}

    def _rate(self, step: Array) -> Any:
        rate = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        return rate if self.decay == "explicit" else rate / (1 + rate * self.weight_decay)

    def _scales(self, problem: Objective | Constrained, rate: Any) -> tuple[Any, Any]:
        """The length of the step and the weight decay, in the coordinates of the iteration."""
        return (rate * self.weight_decay, 1.0) if isinstance(problem, Constrained) else (rate, self.weight_decay)

    def _x(self, problem: Objective | Constrained, point: PyTree) -> PyTree:
        return _Box(problem, point).from_unit(point) if isinstance(problem, Constrained) else point

    def _gradient(self, problem: Objective | Constrained, state: LionKState) -> PyTree:
        """The gradient in the coordinates of the iteration."""
        if not isinstance(problem, Constrained):
            return state.gradient
        return jtu.tree_map(lambda g, h: g * h, state.gradient, _Box(problem, state.point).half)

    def _score(self, problem: Objective | Constrained, state: LionKState) -> Array:
        _, weight = self._scales(problem, 1.0)
        return kkt_score(self.kernel, self._gradient(problem, state), state.point, weight)


def lion_k(
    kernel: Kernel,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    decay: str = "explicit",
    mu_dtype: Any = None,
    mask: Any = None,
) -> optax.GradientTransformation:
    r"""Lion-K as an Optax transformation; with `L1Kernel()` it is `optax.lion`, bit for bit.

    To be put in a training loop written with Optax, or chained with clipping and the like. The decay `weight_decay` is applied
    in `update`, which so needs the parameters.

    **Arguments:** `kernel`, `learning_rate`, `weight_decay`, `b1`, `b2`, `decay`: as for `LionK`. `mu_dtype`: the dtype the
    momentum is kept in. `mask`: as for `optax.add_decayed_weights`.

    **Raises:** as `LionK`.

    ```python
    tx = om.smooth.lion_k(om.smooth.HuberKernel(0.1), 3e-4, weight_decay=0.1)
    state = tx.init(jnp.zeros(3))
    updates, state = tx.update(jnp.ones(3), state, jnp.zeros(3))
    ```
    """
    _check(kernel, learning_rate, weight_decay, b1, b2, decay)
    rate = learning_rate
    if decay == "implicit":
        shorter = lambda rate: rate / (1 + rate * weight_decay)
        rate = (lambda step: shorter(learning_rate(step))) if callable(learning_rate) else shorter(learning_rate)
    return optax.chain(
        _scale_by_lion_k(kernel, b1, b2, mu_dtype),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


class ScaleByLionKState(NamedTuple):
    """`count` steps taken, and `mu`, which tracks the gradient as Optax's moments do: -m."""

    count: Any
    mu: Any


def _scale_by_lion_k(kernel: Kernel, b1: Any, b2: Any, mu_dtype: Any) -> optax.GradientTransformation:
    def init(params):
        kernel.check(params)
        return ScaleByLionKState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params, dtype=mu_dtype))

    def update(updates, state, params=None):
        del params
        c, m = _momenta(jtu.tree_map(jnp.negative, state.mu), updates, b1, b2)
        mu = optax.tree.cast(jtu.tree_map(jnp.negative, m), mu_dtype)
        moved = jtu.tree_map(jnp.negative, kernel.subgradient(c))  # Optax descends along what it is given
        return moved, ScaleByLionKState(optax.safe_increment(state.count), mu)

    return optax.GradientTransformation(init, update)


def _momenta(momentum: PyTree, gradient: PyTree, b1: Any, b2: Any) -> tuple[PyTree, PyTree]:
    """c, from which the step is made, and the next m."""
    wide = lambda m, g: jnp.result_type(m.dtype, g.dtype)  # a momentum kept in low precision is not computed in it
    mixed = lambda b: jtu.tree_map(lambda m, g: (b * m - (1 - b) * g).astype(wide(m, g)), momentum, gradient)
    return mixed(b1), mixed(b2)


class _Box:
    """The map x = c + h y between a box and |y| <= 1. A made-up view; `half` is h."""

    def __init__(self, problem: Constrained, like: PyTree):
        self.lower, self.upper = problem.lower(like), problem.upper(like)
        self.half = jtu.tree_map(lambda l, u: (u - l) / 2, self.lower, self.upper)

    def to_unit(self, x: PyTree) -> PyTree:
        def one(x, l, u, h):
            fixed = h == 0  # y = 0 then gives back the only point there is
            return jnp.where(fixed, 0, ((x - l) - (u - x)) / (2 * jnp.where(fixed, 1, h))).astype(x.dtype)

        return jtu.tree_map(one, x, self.lower, self.upper, self.half)

    def from_unit(self, y: PyTree) -> PyTree:
        # From the nearer bound: y = 1 is that bound exactly, and no |y| < 1 is rounded to beyond it
        def one(y, l, u, h):
            return jnp.where(y > 0, u - h * (1 - y), l + h * (1 + y)).astype(y.dtype)

        return jtu.tree_map(one, y, self.lower, self.upper, self.half)


def _value_and_gradient(problem: Objective | Constrained, x: PyTree, key: Array | None) -> tuple[Array, PyTree]:
    if isinstance(problem, Constrained):
        return jax.value_and_grad(problem.value)(x)
    return problem.value_and_gradient(x, key=key)


def _samples_of(problem: Objective | Constrained) -> int:
    return samples_of(problem) if isinstance(problem, Objective) else 0


# What can be wrong.


def _check(kernel: Any, learning_rate: Any, weight_decay: Any, b1: Any, b2: Any, decay: Any) -> None:
    """The arguments that `LionK` and `lion_k` share."""
    if not isinstance(kernel, Kernel):
        raise ArgumentError("kernel", f"must be a kernel of Lion-K, not {type(kernel).__name__}.", "L1Kernel() is Lion.")
    need_positive("learning_rate", learning_rate)
    need_not_negative("weight_decay", weight_decay)
    for name, number in (("b1", b1), ("b2", b2)):
        need_between(name, number, -1e-30, 1)
    if decay not in ("explicit", "implicit"):
        raise ArgumentError("decay", f'must be "explicit" or "implicit", not {decay!r}.')
    if is_tracer(weight_decay):
        return
    if kernel.constrains and np.all(np.asarray(weight_decay) == 0):
        warnings.warn(
            f"weight_decay is 0: no constraint is imposed, whatever the set of {type(kernel).__name__}.",
            UserWarning,
            stacklevel=4,
        )
    largest = _largest_rate(learning_rate)
    if decay == "explicit" and largest is not None and np.any(largest * np.asarray(weight_decay) >= 1):
        raise ArgumentError(
            "learning_rate",
            f"times weight_decay must be less than 1, not {largest:g} * {weight_decay!r}: steps would leave the set.",
            'Lower one of them, or use decay="implicit", which takes any.',
        )


_LOOKED_AT = np.unique(np.geomspace(1, 1e6, 200).astype(np.int32)) - 1


def _largest_rate(learning_rate: Any) -> float | None:
    """The largest learning rate, of a schedule among some of its first million steps; None if it cannot be known here."""
    if not callable(learning_rate):
        return None if is_tracer(learning_rate) else float(np.max(learning_rate))
    with jax.ensure_compile_time_eval():
        rates: Any = jax.vmap(learning_rate)(jnp.asarray(_LOOKED_AT))
    return None if is_tracer(rates) else float(np.max(rates))


def _largest_half_width(lower: PyTree, upper: PyTree) -> Any:
    single = lambda bound: isinstance(bound, int | float) or (eqx.is_array_like(bound) and jnp.ndim(bound) == 0)
    if single(lower):
        widths = [upper_leaf - lower for upper_leaf in jtu.tree_leaves(upper)]
    elif single(upper):
        widths = [upper - lower_leaf for lower_leaf in jtu.tree_leaves(lower)]
    else:
        widths = jtu.tree_leaves(jtu.tree_map(lambda low, high: jnp.subtract(high, low), lower, upper))
    half = jnp.max(jnp.stack([jnp.max(width) for width in widths])) / 2
    return half if is_tracer(half) else float(half)


def _need_box(kernel: Kernel) -> None:
    if not kernel.imposes_bounds:
        raise ArgumentError(
            "kernel",
            f"{type(kernel).__name__} does not impose bounds: it holds x to another set, or adds a penalty.",
            "Use L1Kernel(). Or map the box, x = (lower + upper) / 2 + y (upper - lower) / 2, and minimise over y with "
            "weight_decay=1, if the set of this kernel inside |y| <= 1 is meant.",
        )


def _need_bounds_only(problem: Constrained, kernel: Kernel) -> None:
    if problem.equality_fn is not None or problem.inequality_fn is not None:
        name = "equalities" if problem.equality_fn is not None else "inequalities"
        raise ArgumentError("problem", f"has {name}: LionK imposes bounds only.", "Scipy('SLSQP') takes all.")
    if problem.bounds[0] is None or problem.bounds[1] is None:
        side = "lower" if problem.bounds[0] is None else "upper"
        raise ArgumentError("bounds", f"lack the {side} side: LionK needs a box.", "Minimize(fn) has no bounds at all.")
    _need_box(kernel)


def _need_finite_box(lower: PyTree, upper: PyTree) -> None:
    for side, bound in (("lower", lower), ("upper", upper)):
        leaves = jtu.tree_leaves_with_path(bound)
        if not leaves:
            raise ArgumentError("bounds", f"lack the {side} side: LionK needs a box.")
        for path, leaf in leaves:
            if is_tracer(leaf):
                continue
            bad = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))
            if len(bad):
                where = jtu.keystr(path) + (str(bad[0].tolist()) if np.ndim(leaf) else "")
                raise ArgumentError(
                    "bounds",
                    f"must be finite: the {side} one{where} is {np.asarray(leaf)[tuple(bad[0])]}.",
                    "LionK steps towards the corners of the box; give each unknown a wide but finite one.",
                )
    if jtu.tree_structure(lower) == jtu.tree_structure(upper):
        for low, high in zip(jtu.tree_leaves(lower), jtu.tree_leaves(upper), strict=True):
            if not (is_tracer(low) or is_tracer(high)) and np.any(np.asarray(low) > np.asarray(high)):
                raise ArgumentError("bounds", "cross: a lower one is above its upper one.")
