r"""AdaSketch-Newton: Newton's method for equality constraints, its systems solved by sketching as accurately as descent needs.

$$K_k\, d = -F(z_k), \qquad z_{k+1} = z_k + \alpha_k d, \qquad z = (x, \lambda),$$

(`equality_kkt`), by projections on random combinations of rows (`sketch_project`), up to a residual r with

$$\lVert K \rVert_F\, \Psi\, \lVert r \rVert \le \theta_k \delta_k \lVert F \rVert, \qquad
  \Psi = 20 \max(\lVert B \rVert^2, 1) / (\min(\xi_G, 1) \min(\xi_B, 1)), \quad \xi_G = \sigma_{\min}^2(G).$$

The direction must descend on the exact augmented Lagrangian: \(\nabla L_\eta^\top d \le -\frac{\eta_2}{2} \lVert F \rVert^2\).
If it does not, \(\eta_1\) grows by \(\nu^2\), \(\eta_2\) shrinks by \(\nu\), \(\delta\) by \(\nu^4\), and the projections go on
from where they were. The length \(\alpha\) is halved from 1 until Armijo's condition holds for \(L_\eta\), in x and
\(\lambda\) together (Hong, Na, Mahoney and Kolar 2023, algorithm 1).
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.dense import solve
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative, need_positive
from .equality_kkt import KKTMatrix, Point, equality_program, evaluate, kkt_matrix, pack, unpack
from .exact_augmented_lagrangian import ExactAugmentedLagrangian
from .line_search import constant, evaluated
from .sketch_project import FOR_PROBES, SKETCHES, Rows, need_sketch, project
from .vectors import norm, select

__all__ = ["AdaSketchNewton"]


class Adaptive(NamedTuple):
    """What is adapted: eta_1 and eta_2 of the merit, delta, and the relative accuracy."""

    violation: Array
    stationarity: Array
    accuracy: Array
    relative: Array


class AdaSketchNewtonState(eqx.Module):
    """`residual` is F, `length` the last step length, `merit_change` what it did to the merit.

    `smallest` is the smallest singular value of the Jacobian (NaN if it is not known), `capped`, that the last linear solve
    ended by its limit on sketches, `stuck`, that no direction or no length was found.
    """

    value: PrimalDual
    objective: Array
    residual: Array
    adaptive: Adaptive
    length: Array
    merit_change: Array
    smallest: Array
    iteration: Array
    capped: Array
    stuck: Array
    counters: Counters


class _System(NamedTuple):
    """A Newton system: products with K, those with B in it for a shift of H, and what the rules of accuracy need to know.

    `solve(shift)` is the exact direction, `rows(shift)` what is sketched; `hessian_norm` is |H|_F, `strictness` is
    |K|_F Psi, `bound` is Upsilon^2 Psi^2 (both 1 if they are not known).
    """

    product: Callable
    rows: Callable
    solve: Callable
    hessian_norm: Array
    strictness: Array
    bound: Array


class _Direction(NamedTuple):
    """What the inner loop carries: d, the slope along it, sketches, linear solves, and whether it is over and of use."""

    d: Array
    adaptive: Adaptive
    shift: Array
    slope: Array
    sketches: Array
    solves: Array
    ended: Array
    useful: Array


class AdaSketchNewton(Method):
    """Newton's method for smooth equality constraints, on a differentiable merit function, with sketched linear systems.

    Pick it where the KKT system is seen a combination of rows at a time, or where a line search on x alone refuses good steps
    (the Maratos effect). For inequalities and bounds take `AugmentedLagrangian`.

    **Arguments:**

    - `sketch`: "gaussian_vector", "kaczmarz", "gaussian_block" (of `block` columns), or "exact": no sketch, a factorisation (GMRES
      if `matrix_free`).
    - `tolerance`: converged when |F|, the Euclidean norm of the KKT residual, is at most this.
    - `accuracy`: "relative" ends a linear solve at |r| <= theta `relative` |F|, where `relative` is halved whenever the
      direction does not descend; "adaptive" is the rule above, which is far stricter.
    - `theta`: theta, a number or a function of the iteration: one that goes to zero makes convergence superlinear.
    - `violation`, `stationarity`: the first weights eta_1, eta_2 of the merit. `delta`: the first delta, never below
      `least_delta`. `growth`: nu.
    - `shift`: xi_B; `least_curvature`: the eigenvalue on the null space of the Jacobian below which the Hessian is shifted. If
      `matrix_free` it is compared with the curvature along the direction, by default with `shift`.
    - `most_sketches`: of one linear solve. When they are spent the direction is used only if it descends.
    - `equilibrate`: divide the rows by their lengths before they are sketched: for badly scaled systems.
    - `matrix_free`: never form K. Needs `accuracy="relative"`.
    - `regularisation`: of the zero block of K; with it, dependent constraints do not end the solve.
    - `decrease`: beta of Armijo's condition; `max_trials` of the search.

    Counts sketches as `linear_iterations`. Ends as `stopped` where constraints are dependent (the metric
    `smallest_singular_value` says so), or where no direction or length descends at this precision. Raises `ArgumentError` for
    a number out of its range, and for a problem with inequalities, bounds, or more equalities than unknowns. Warns in single
    precision if the tolerance is below 1e-4.

    ```python
    circle = om.Constrained(lambda x: jnp.sum(x), equalities=lambda x: jnp.sum(x**2) - 2.0)
    om.solve(circle, om.smooth.AdaSketchNewton(), jnp.array([-1.5, -0.5]), key=jax.random.key(0)).value.primal    # (-1, -1)
    ```

    Source: Hong et al. 2023, algorithm 1.
    """

    problem = Constrained
    reference: ClassVar[str] = "hong2023constrained"
    stochastic: ClassVar[bool] = True

    sketch: str = eqx.field(static=True, default="gaussian_vector")
    tolerance: Any = 1e-4
    accuracy: str = eqx.field(static=True, default="relative")
    relative: Any = 0.1
    theta: Any = 1.0
    violation: Any = 1.0
    stationarity: Any = 0.1
    delta: Any = 0.1
    least_delta: Any = 1e-6
    growth: Any = 1.5
    shift: Any = 0.1
    least_curvature: Any = None
    decrease: Any = 0.1
    block: int = eqx.field(static=True, default=10)
    most_sketches: int = eqx.field(static=True, default=100_000)
    equilibrate: bool = eqx.field(static=True, default=False)
    matrix_free: bool = eqx.field(static=True, default=False)
    regularisation: Any = 0.0
    max_trials: int = eqx.field(static=True, default=40)

    def __check_init__(self):
        need_sketch(self.sketch, (*SKETCHES, "exact"))
        if self.accuracy not in ("relative", "adaptive"):
            raise ArgumentError("accuracy", f"must be 'relative' or 'adaptive', not {self.accuracy!r}.")
        if self.matrix_free and self.accuracy != "relative":
            raise ArgumentError("accuracy", "'adaptive' needs norms and singular values, which a matrix-free solve has not.")
        need_not_negative("tolerance", self.tolerance)
        need_not_negative("regularisation", self.regularisation)
        for name in ("theta", "violation", "stationarity", "delta", "least_delta", "shift", "least_curvature"):
            need_positive(name, getattr(self, name))
        need_between("relative", self.relative, 0, 1)
        need_between("growth", self.growth, 1, float("inf"))
        need_between("decrease", self.decrease, 0, 0.5)
        for name in ("block", "most_sketches", "max_trials"):
            need_count(name, getattr(self, name))

    def init(self, problem: Constrained, guess: PrimalDual, *, key: Array | None) -> AdaSketchNewtonState:
        program = equality_program(problem, guess, type(self).__name__)
        if program.dtype == jnp.float32 and isinstance(self.tolerance, float) and self.tolerance < _SINGLE:
            text = f"single precision may not reach a tolerance of {self.tolerance:g}; {_SINGLE:g} is about the least."
            warnings.warn(text, stacklevel=2)
        z = unpack(program, guess)
        point = evaluate(z, (problem, guess))
        numbers = (self.violation, self.stationarity, self.delta, self.relative)
        adaptive = Adaptive(*(jnp.asarray(number, z.dtype) for number in numbers))
        zero, no = jnp.zeros((), z.dtype), jnp.array(False)
        counters = Counters.zero().add(values=1, gradients=1)
        return AdaSketchNewtonState(
            guess, point.objective, point.residual, adaptive, zero, zero, jnp.full((), jnp.nan, z.dtype), jnp.int32(0), no, no, counters
        )  # fmt: skip

    def step(self, problem: Constrained, state: AdaSketchNewtonState, *, key: Array) -> AdaSketchNewtonState:
        like = state.value
        program = equality_program(problem, like, type(self).__name__)
        size, z = program.size, unpack(program, like)
        smallest, dependent = jnp.full_like(state.smallest, jnp.nan), jnp.array(False)
        if self.matrix_free:
            newton, fixed = _by_products, constant((problem, like, z))
            system = self._products(fixed[0], fixed[1], fixed[2], jax.lax.stop_gradient(state.residual), size, key)
        else:
            least = 1e-6 if self.least_curvature is None else self.least_curvature
            kkt = kkt_matrix(problem, like, z, least=least, shift=self.shift, regularisation=self.regularisation)
            newton, fixed = _by_factors, (kkt.matrix,)
            system = self._dense(kkt, jax.lax.stop_gradient(state.residual))
            smallest = kkt.smallest
            rounding = 100 * jnp.finfo(z.dtype).eps * jnp.maximum(1, kkt.jacobian_norm)
            dependent = (smallest <= rounding) & (jnp.asarray(self.regularisation) == 0)
        found = self._direction(constant(state), system, size, dependent, key)
        adaptive, works = found.adaptive, found.useful & ~dependent
        d = evaluated(newton, (*fixed, state.residual), found.d)

        weights = _merit(adaptive)
        fixed, origin, heading, here = constant(((problem, like), z, d, Point(state.objective, state.residual)))
        merit, slope = weights.of(origin, here, size), jnp.minimum(found.slope, 0)
        allowance = 10 * jnp.finfo(z.dtype).eps * jnp.abs(merit)

        def trial(carry):  # Armijo's condition
            length, _, trials, _ = carry
            length = jnp.where(trials == 0, length, length / 2)
            moved = origin + length * heading
            new = evaluate(moved, fixed)
            value = weights.of(moved, new, size)
            enough = value <= merit + length * self.decrease * slope
            hidden = (value <= merit + allowance) & (norm(new.residual) <= 0.5 * norm(here.residual))  # by rounding
            return length, new, trials + 1, jnp.isfinite(value) & (enough | hidden)

        searching = lambda carry: works & ~carry[3] & (carry[2] < self.max_trials)
        start = (jnp.ones_like(merit), here, jnp.int32(0), jnp.array(False))
        length, new, trials, accepted = jax.lax.while_loop(searching, trial, start)
        moved = z + length * d
        new = evaluated(evaluate, (moved, (problem, like)), new)
        z, new = select(accepted, (moved, new), (z, Point(state.objective, state.residual)))
        new = Point(*new)
        change = weights.of(jax.lax.stop_gradient(z), constant(new), size) - merit
        spent = {"hessian_products": self._products_spent(found)} if self.matrix_free else {"jacobians": 1}
        counters = state.counters.add(
            values=trials, gradients=trials, linear_solves=found.solves, linear_iterations=found.sketches, **spent
        )
        return AdaSketchNewtonState(
            pack(program, z), new.objective, new.residual, adaptive, jnp.where(accepted, length, 0), change, smallest, state.iteration + 1,
            (found.sketches >= self.most_sketches) & (self.sketch != "exact"), ~accepted, counters,
        )  # fmt: skip

    def _dense(self, kkt: KKTMatrix, residual: Array) -> _System:
        rows = Rows.dense(kkt.matrix, self.equilibrate)
        independence = jnp.minimum(kkt.smallest**2, 1) * jnp.minimum(self.shift, 1)
        psi = 20 * jnp.maximum(kkt.modified_norm**2, 1) / independence
        upsilon = jnp.maximum(jnp.maximum(kkt.jacobian_norm, kkt.hessian_norm), 1)
        return _System(
            lambda v: kkt.unmodified @ v, lambda shift: rows, lambda shift: _by_factors(kkt.matrix, residual),
            kkt.hessian_norm, jnp.linalg.norm(kkt.matrix) * psi, upsilon**2 * psi**2,
        )  # fmt: skip

    def _products(self, problem: Constrained, like: PrimalDual, z: Array, residual: Array, size: int, key: Array) -> _System:
        _, product = jax.linearize(lambda z: evaluate(z, (problem, like)).residual, z)
        inside = jnp.arange(z.size) < size

        def shifted(shift):
            diagonal = jnp.where(inside, shift, -self.regularisation).astype(z.dtype)
            return lambda v: product(v) + diagonal * v

        def rows(shift):
            return Rows.products(shifted(shift), shifted(shift), z, jax.random.fold_in(key, FOR_PROBES), self.equilibrate)

        probes = jnp.where(inside, jax.random.normal(jax.random.fold_in(key, FOR_PROBES - 1), (_PROBES, z.size), z.dtype), 0)
        squares = jnp.sum(jnp.where(inside, jax.vmap(product)(probes), 0) ** 2, axis=1)
        one = jnp.ones((), z.dtype)
        return _System(product, rows, lambda shift: _krylov(shifted(shift), residual), jnp.sqrt(jnp.mean(squares)), one, one)

    def _products_spent(self, found: _Direction) -> Array:
        each = min(self.block, found.d.size) + 1 if self.sketch == "gaussian_block" else 2
        rows = (50 if self.equilibrate else 0) + 2
        sketched = each * found.sketches if self.sketch != "exact" else _KRYLOV * found.solves
        return sketched + rows * found.solves + _PROBES

    def _direction(
        self, state: AdaSketchNewtonState, system: _System, size: int, dependent: Array, key: Array
    ) -> _Direction:
        """Sketch until the residual is small, look whether the direction descends; adapt and go on until it does."""
        residual = state.residual
        theta: Any = self.theta(state.iteration) if callable(self.theta) else self.theta
        length = norm(residual)
        least = self.shift if self.least_curvature is None else self.least_curvature

        def bounded(delta, adaptive):
            most = (0.5 - self.decrease) * adaptive.stationarity
            most = most / ((1 + adaptive.violation + adaptive.stationarity) * system.bound)
            return jnp.maximum(jnp.minimum(delta, most), self.least_delta)

        def attempt(carry: _Direction) -> _Direction:
            d, adaptive, shift, _, count, solves, _, _ = carry
            if self.sketch == "exact":
                d = system.solve(shift)
            else:
                rule = adaptive.relative if self.accuracy == "relative" else adaptive.accuracy / system.strictness
                d, _, count = project(
                    system.rows(shift), -residual, d, key, tolerance=theta * rule * length, most=self.most_sketches,
                    sketch=self.sketch, block=self.block, spent=count,
                )  # fmt: skip
            slope = _merit(adaptive).gradient_of(residual, system.product, size) @ d
            bent = jnp.array(False)
            if self.matrix_free:
                dx = jnp.where(jnp.arange(d.size) < size, d, 0)
                bent = (shift == 0) & (dx @ system.product(dx) < least * (dx @ dx))
            descends = slope <= -adaptive.stationarity / 2 * length**2
            last = (adaptive.violation > 1e8) | (adaptive.stationarity < 1e-8)
            capped = (count >= self.most_sketches) & (self.sketch != "exact")
            stricter = Adaptive(
                adaptive.violation * self.growth**2,
                adaptive.stationarity / self.growth,
                adaptive.accuracy,
                adaptive.relative / 2,
            )
            stricter = stricter._replace(accuracy=bounded(adaptive.accuracy / self.growth**4, stricter))
            adaptive = select(bent | descends | last, adaptive, stricter)
            shift = jnp.where(bent, self.shift + system.hessian_norm, shift).astype(d.dtype)
            ended = ~bent & (descends | last)
            useful = ended & (descends | ~capped)
            return _Direction(d, adaptive, shift, slope, count, solves + 1, ended, useful)

        adaptive = state.adaptive._replace(accuracy=bounded(state.adaptive.accuracy, state.adaptive))
        none, zero = jnp.int32(0), jnp.zeros_like(length)
        start = _Direction(jnp.zeros_like(residual), adaptive, zero, zero, none, none, dependent, jnp.array(False))
        return jax.lax.while_loop(lambda carry: ~carry.ended, attempt, start)

    def done(self, problem: Constrained, state: AdaSketchNewtonState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.residual) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Constrained, state: AdaSketchNewtonState) -> PrimalDual:
        return state.value

    def metrics(self, problem: Constrained, state: AdaSketchNewtonState) -> dict[str, Any]:
        return {
            "value": state.objective,
            "residual": norm(state.residual),
            "sketches": state.counters.linear_iterations,
            "step_length": state.length,
            "merit_change": state.merit_change,
            "capped": state.capped,
            "smallest_singular_value": state.smallest,
        }


_SINGLE = 1e-4
_PROBES = 10  # of the norm of a Hessian that is not formed
_KRYLOV = 200


def _merit(adaptive: Adaptive) -> ExactAugmentedLagrangian:
    return ExactAugmentedLagrangian(adaptive.violation, adaptive.stationarity)


def _by_factors(matrix: Array, residual: Array) -> Array:
    """The Newton direction."""
    return -solve(matrix, residual)


def _by_products(problem: Constrained, like: PrimalDual, z: Array, residual: Array) -> Array:
    """The Newton direction without K, as which a matrix-free one is differentiated when a solve is unrolled."""
    _, product = jax.linearize(lambda z: evaluate(z, (problem, like)).residual, z)
    return _krylov(product, residual)


def _krylov(product: Callable, residual: Array) -> Array:
    steps = min(_KRYLOV, residual.size)
    return jax.scipy.sparse.linalg.gmres(product, -residual, tol=1e-8, restart=steps, maxiter=10)[0]
