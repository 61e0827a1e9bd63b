r"""The augmented Lagrangian method of Powell, Hestenes and Rockafellar.

$$\min_{l \le x \le u} \; w f(x) + \sum_i \Big(\nu_i h_i + \tfrac{\rho}{2} h_i^2\Big)
  + \frac{1}{2\rho} \sum_i \Big(\max(0,\, \mu_i + \rho g_i)^2 - \mu_i^2\Big), \qquad w = 1,$$

solved more and more accurately, bounds kept explicitly, by Newton steps in the box (`projected_newton`). When the projected
gradient is within the inner tolerance \(\omega\),

$$\nu \leftarrow \nu + \rho h, \qquad \mu \leftarrow \max(0, \mu + \rho g)$$

(kept below a bound), \(\omega\) shrinks, and \(\rho\) grows if \(\max(|h|, |\max(g, -\mu/\rho)|)\) has not fallen to half
(Nocedal and Wright 2006, section 17.4; Birgin and Martínez 2014, algorithm 4.1). Objective and constraints are scaled by their
gradients at the guess; whether the solve has converged is decided without scales.

If the violation does not fall although \(\rho\) has grown many times, the objective is dropped, \(w = 0\), \(\nu = \mu = 0\),
which leaves \(\tfrac{\rho}{2}(|h|^2 + |g_+|^2)\). A stationary point of that, where constraints are violated, is a certificate
that no point nearby is feasible; a point with far less violation is where the method starts again.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative, need_positive
from .flat_program import FlatProgram
from .line_search import constant
from .projected_newton import Direction, free_direction, in_box, projected_gradient, search_path

__all__ = ["AugmentedLagrangian"]


class Terms(NamedTuple):
    """What stands in the augmented Lagrangian beside x. `scales` are those of the objective and of each constraint."""

    multipliers: Array
    penalty: Array
    weight: Array
    scales: Array


class AugmentedLagrangianState(eqx.Module):
    """`value` is the point with its first-order multipliers, `merit` and `gradient` of the augmented Lagrangian there.

    `measure` is the violation at the last update of the multipliers, `anchor` the point there; `stalls` counts updates since
    which it has not fallen, `jams` those that came because a line search found nothing, `inner` the steps since the last one.
    `entry` is the violation at which the objective was dropped, `restorations` how often it was.
    """

    value: PrimalDual
    terms: Terms
    merit: Array
    gradient: Array
    objective: Array
    constraints: Array
    inner_tolerance: Array
    measure: Array
    anchor: Array
    entry: Array
    stuck: Array
    inner: Array
    stalls: Array
    jams: Array
    restorations: Array
    code: Array
    counters: Counters


class AugmentedLagrangian(Method):
    """The augmented Lagrangian method for equalities, inequalities and bounds.

    The robust choice: it needs no feasible guess, no full-rank constraints and no strict complementarity, tells an infeasible
    problem from a hard one, and takes a million unknowns. Near a solution it converges linearly, where `SQP` and an interior
    point converge faster. One step is one inner iteration, or one update of the multipliers.

    **Arguments:**

    - `tolerance`: converged when the largest absolute value of stationarity, violation, complementarity and sign
      (`Constrained.kkt_residual`), none of them scaled, is at most this.
    - `penalty`: the first rho; by default from the sizes of objective and violation at the guess. `growth`: its factor.
    - `fall`: the fraction to which the violation must fall for rho to stay.
    - `multiplier_bound`: multipliers are kept within this in the subproblems, so that they cannot run away.
    - `penalty_bound`: the largest rho, by default the inverse of the 3/4th power of the machine's rounding error.
    - `inner_solver`: "dense" (a factorised Hessian), "cg" (truncated conjugate gradients), "gmres", or "auto": dense up to
      `dense_below` unknowns and cg above. `krylov_steps`: most products with the Hessian in one direction.
    - `inner_steps`: after so many steps the multipliers are updated all the same.
    - `scale`: divide objective and constraints by their gradients at the guess where these are above 100.
    - `decrease`, `max_trials`: of the line search.

    Ends as `infeasible` with the least violation found (the multipliers are then the violations themselves, which a
    stationary point of the infeasibility makes a certificate), as `diverged` where the objective falls without bound on the
    feasible set, and as `stopped` where no progress is possible at this precision. Raises `ArgumentError`, naming the
    argument, for a number out of its range.

    ```python
    problem = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.sum(x**2) - 2.0, bounds=(-1.2, None))
    om.solve(problem, om.smooth.AugmentedLagrangian(tolerance=1e-4), jnp.array([0.5, 0.0])).value.primal    # (-1, -1)
    ```
    """

    problem = Constrained
    reference: ClassVar[str] = "birgin2014practical"

    tolerance: Any = 1e-6
    penalty: Any = None
    growth: Any = 10.0
    fall: Any = 0.5
    multiplier_bound: Any = 1e10
    penalty_bound: Any = None
    inner_solver: str = eqx.field(static=True, default="auto")
    dense_below: int = eqx.field(static=True, default=500)
    krylov_steps: int = eqx.field(static=True, default=200)
    inner_steps: int = eqx.field(static=True, default=100)
    scale: bool = eqx.field(static=True, default=True)
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=30)

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)
        for name in ("penalty", "penalty_bound", "multiplier_bound"):
            need_positive(name, getattr(self, name))
        need_between("growth", self.growth, 1, float("inf"))
        need_between("fall", self.fall, 0, 1)
        need_between("decrease", self.decrease, 0, 0.5)
        for name in ("krylov_steps", "inner_steps", "max_trials"):
            need_count(name, getattr(self, name))
        need_count("dense_below", self.dense_below, least=0)
        if self.inner_solver not in ("auto", "dense", "cg", "gmres"):
            raise ArgumentError("inner_solver", f"must be auto, dense, cg or gmres, not {self.inner_solver!r}.")

    def init(self, problem: Constrained, guess: PrimalDual, *, key: Array | None) -> AugmentedLagrangianState:
        program = FlatProgram(problem, guess)
        x, equality, inequality, *_ = program.unpack(guess)
        x = in_box(x, program.lower, program.upper)

        values, pullback = jax.vjp(lambda x: _values(program, x), x)
        scales = jax.lax.stop_gradient(_scales(pullback, values)) if self.scale else jnp.ones_like(values)
        multipliers = jnp.concatenate([equality, jnp.maximum(inequality, 0)]) * scales[0] / scales[1:]
        scaled = scales * values
        violations = _violations(program, scaled[1:])
        automatic = 10 * jnp.maximum(1, jnp.abs(scaled[0])) / jnp.maximum(1, violations @ violations / 2)
        penalty = jnp.nan_to_num(jnp.clip(automatic, 1e-3, 1e4), nan=10.0) if self.penalty is None else self.penalty
        terms = Terms(multipliers, jnp.asarray(penalty, x.dtype), jnp.ones((), x.dtype), scales)
        terms = eqx.tree_at(lambda t: t.penalty, terms, jax.lax.stop_gradient(terms.penalty))
        merit, factors = _merit(program, terms, values)
        (gradient,) = pullback(factors)
        size = jnp.max(jnp.abs(projected_gradient(x, gradient, program.lower, program.upper)), initial=0)
        loose = jnp.clip(0.1 * size, 0, 0.1) if scaled.size > 1 else 0.0  # without constraints there is one subproblem
        inner_tolerance = jnp.maximum(loose, self.tolerance * scales[0] / 2)
        infinite, none = jnp.asarray(jnp.inf, x.dtype), jnp.int32(0)
        return AugmentedLagrangianState(
            _first_order(program, terms, x, values[1:], gradient), terms, merit, gradient, values[0], values[1:],
            jax.lax.stop_gradient(jnp.nan_to_num(inner_tolerance, nan=0.1)), infinite, x, infinite, jnp.array(False), none, none,
            none, none, jnp.int32(Result.running.code), Counters.zero().add(values=1, gradients=1, jacobians=int(self.scale)),
        )  # fmt: skip

    def step(self, problem: Constrained, state: AugmentedLagrangianState, *, key: Array | None) -> AugmentedLagrangianState:
        program = FlatProgram(problem, state.value)
        lower, upper = program.lower, program.upper
        x, *_ = program.unpack(state.value)
        outer = self._subproblem_ended(program, x, state)
        state = jax.lax.cond(outer, lambda: self._update(program, x, state), lambda: state)
        x = jnp.where(outer, state.anchor, x)

        def direction():  # with the curvature held constant: where the gradient vanishes, its derivative does not matter
            fixed, terms, here, low, high = constant((problem, state.terms, x, lower, upper))
            still = FlatProgram(fixed, state.value)
            gradient_of = lambda x: jax.grad(lambda x: _merit(still, terms, _values(still, x))[0])(x)
            return free_direction(gradient_of, here, state.gradient, low, high, self._solver(program), self.krylov_steps)

        def stay_put():
            return Direction(jnp.zeros_like(x), jnp.zeros_like(state.merit), jnp.zeros(x.shape, bool), jnp.int32(0))

        toward = jax.lax.cond(outer, stay_put, direction)
        known = (state.merit, state.gradient, state.objective, state.constraints)
        found = search_path(
            _evaluate, (problem, state.value, state.terms), x, known, toward, lower, upper,
            forced=outer, decrease=self.decrease, max_trials=self.max_trials,
        )  # fmt: skip
        choose = lambda new, old: jnp.where(found.accepted, new, old)
        x = choose(found.x, x)
        merit, gradient, objective, constraints = (choose(new, old) for new, old in zip(found.known, known, strict=True))
        hessians = jnp.where(outer, 0, 1) if self._solver(program) == "dense" else 0
        counters = state.counters.add(
            values=found.trials, gradients=found.trials, jacobians=hessians, hessian_products=toward.products,
            linear_solves=jnp.where(outer, 0, 1),
        )  # fmt: skip
        return AugmentedLagrangianState(
            _first_order(program, state.terms, x, constraints, gradient), state.terms, merit, gradient, objective, constraints,
            state.inner_tolerance, state.measure, state.anchor, state.entry, ~found.accepted, state.inner + 1, state.stalls,
            jnp.where(found.accepted & ~outer, 0, state.jams), state.restorations, state.code, counters,
        )  # fmt: skip

    def _solver(self, program: FlatProgram) -> str:
        if self.inner_solver != "auto":
            return self.inner_solver
        return "dense" if program.size <= self.dense_below else "cg"

    def _subproblem_ended(self, program: FlatProgram, x: Array, state: AugmentedLagrangianState) -> Array:
        """Whether the multipliers are to be updated, or while the objective is dropped, whether that is over."""
        size = jnp.max(jnp.abs(projected_gradient(x, state.gradient, program.lower, program.upper)), initial=0)
        restoring = state.terms.weight == 0
        violation = self._violation(program, state)
        stationary = size <= jnp.where(restoring, self._small(violation), state.inner_tolerance)
        feasible = restoring & self._restored(program, state)
        return stationary | state.stuck | feasible | (state.inner >= self.inner_steps) | self._fallen(state)

    def _small(self, violation: Array) -> Array:
        """The gradient of half the squared violations, below which they are stationary."""
        return jnp.maximum(1e-2 * self.tolerance, 100 * jnp.finfo(violation.dtype).eps) * jnp.minimum(1, violation)

    def _fallen(self, state: AugmentedLagrangianState) -> Array:
        return (state.merit < -_UNBOUNDED) & (state.terms.weight > 0)

    def _violation(self, program: FlatProgram, state: AugmentedLagrangianState) -> Array:
        return jnp.max(_violations(program, state.constraints), initial=0)

    def _restored(self, program: FlatProgram, state: AugmentedLagrangianState) -> Array:
        violation = self._violation(program, state)
        return (violation <= self.tolerance) | (violation <= 1e-2 * state.entry)

    def _update(self, program: FlatProgram, x: Array, state: AugmentedLagrangianState) -> AugmentedLagrangianState:
        """New multipliers, penalty and inner tolerance; or drop the objective, or take it up again, or end."""
        terms, tolerance = state.terms, self.tolerance
        restoring, fallen = terms.weight == 0, self._fallen(state)
        violation = self._violation(program, state)
        scaled = terms.scales[1:] * state.constraints
        first_order = _multipliers(program, terms, scaled)
        slack = jnp.maximum(scaled, -terms.multipliers / terms.penalty)
        is_equality = jnp.arange(scaled.size) < program.equality_count
        measures = jnp.abs(jnp.where(is_equality, scaled, slack))
        measure = jnp.max(measures, initial=0)
        tiny = jnp.max(measures / terms.scales[1:], initial=0) <= 0.1 * tolerance
        better = ((measure <= self.fall * state.measure) | tiny) & ~fallen
        most = _most(x.dtype) if self.penalty_bound is None else self.penalty_bound
        at_bound = ~better & ~restoring & (terms.penalty >= most)
        grown = jnp.minimum(jnp.where(fallen, 100, self.growth) * terms.penalty, most)
        stalls = jnp.where(better, 0, state.stalls + 1)
        jams = jnp.where(state.stuck, state.jams + 1, 0)

        hopeless = (stalls >= _MOST_STALLS) | at_bound | (jams >= _MOST_JAMS)
        drop = hopeless & ~restoring & ~fallen & (violation > tolerance) & (state.restorations < _MOST_RESTORATIONS)
        resume = restoring & self._restored(program, state)
        unbounded = fallen & ((violation <= tolerance * (1 + jnp.max(jnp.abs(x)))) | at_bound)
        size = jnp.max(jnp.abs(projected_gradient(x, state.gradient, program.lower, program.upper)), initial=0)
        still = (size <= self._small(violation)) | (state.stuck & (size <= _rounded(x.dtype) * jnp.minimum(1, violation)))
        proven = restoring & ~resume & still
        stopped = ((at_bound | (jams >= _MOST_JAMS)) & ~restoring & ~drop) | (restoring & ~resume & state.stuck)

        bound = self.multiplier_bound
        multipliers = jnp.where(fallen, terms.multipliers, jnp.clip(first_order, -bound, bound))
        multipliers = jnp.where(drop | restoring, 0, multipliers)
        penalty = jnp.where(better, terms.penalty, grown)
        penalty = jnp.where(drop, 1, jnp.where(restoring, terms.penalty, penalty))
        penalty = jnp.where(resume, 1e2, penalty).astype(x.dtype)
        weight = jnp.where(drop | (restoring & ~resume), 0, 1).astype(x.dtype)
        code = jnp.where(stopped, Result.stopped.code, Result.running.code)
        code = jnp.where(proven, Result.infeasible.code, code)
        code = jnp.where(unbounded, Result.diverged.code, code).astype(jnp.int32)
        inner_tolerance = jnp.maximum(0.1 * state.inner_tolerance, tolerance * terms.scales[0] / 2)
        zero = jnp.int32(0)
        changed = {
            "terms": Terms(multipliers, *jax.lax.stop_gradient((penalty, weight)), terms.scales),
            "inner_tolerance": jnp.where(resume, 0.1, inner_tolerance).astype(x.dtype),
            "measure": jnp.where(resume, jnp.inf, jnp.where(fallen, state.measure, measure)).astype(x.dtype),
            "anchor": jnp.where(fallen & ~unbounded, state.anchor, x),
            "entry": jnp.where(drop, violation, state.entry).astype(x.dtype),
            "stuck": jnp.array(False),
            "inner": zero,
            "stalls": jnp.where(drop | resume, zero, stalls),
            "jams": jnp.where(drop | resume, zero, jams),
            "restorations": jnp.where(drop, state.restorations + 1, state.restorations),
            "code": code,
        }
        names = tuple(changed)
        return eqx.tree_at(lambda s: tuple(getattr(s, name) for name in names), state, tuple(changed.values()))

    def residual(self, problem: Constrained, state: AugmentedLagrangianState) -> Float[Array, ""]:
        """The largest of the KKT residuals, unscaled; infinite while the objective is dropped."""
        program = FlatProgram(problem, state.value)
        x, _, inequality, lower, upper = program.unpack(state.value)
        gradient = state.gradient / state.terms.scales[0]
        stationarity = jnp.max(jnp.abs(gradient - lower + upper), initial=0)
        slacks = ((lower, x - program.lower), (upper, program.upper - x), (inequality, state.constraints[program.equality_count :]))
        products = [jnp.max(jnp.abs(m * jnp.where(jnp.isfinite(s), s, 1)), initial=0) for m, s in slacks]
        worst = jnp.max(jnp.stack([stationarity, self._violation(program, state), *products]))
        return jnp.where(state.terms.weight == 0, jnp.inf, worst)

    def done(self, problem: Constrained, state: AugmentedLagrangianState):
        return jnp.where(self.residual(problem, state) <= self.tolerance, Result.converged.code, state.code)

    def answer(self, problem: Constrained, state: AugmentedLagrangianState) -> PrimalDual:
        return state.value

    def metrics(self, problem: Constrained, state: AugmentedLagrangianState) -> dict[str, Any]:
        violation = self._violation(FlatProgram(problem, state.value), state)
        return {
            "value": state.objective, "residual": self.residual(problem, state), "violation": violation,
            "penalty": state.terms.penalty,
        }  # fmt: skip


_UNBOUNDED = 1e15  # of the scaled augmented Lagrangian: below minus this it has no minimum
_MOST_STALLS = 5  # updates in a row without a fall of the violation
_MOST_JAMS = 3
_MOST_RESTORATIONS = 2


def _most(dtype) -> float:
    return float(jnp.finfo(dtype).eps) ** -0.75


def _rounded(dtype) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.5


def _values(program: FlatProgram, x: Array) -> Float[Array, " functions"]:
    """f, h and g in one vector."""
    return jnp.concatenate([program.value(x)[None], program.constraints(x)])


def _multipliers(program: FlatProgram, terms: Terms, scaled: Array) -> Array:
    """nu + rho h and max(0, mu + rho g), of scaled constraints."""
    moved = terms.multipliers + terms.penalty * jnp.maximum(scaled, -_UNBOUNDED)
    is_equality = jnp.arange(scaled.size) < program.equality_count
    return jnp.where(is_equality, moved, jnp.maximum(moved, 0))


def _merit(program: FlatProgram, terms: Terms, values: Array) -> tuple[Array, Array]:
    """The augmented Lagrangian from f, h and g, and its derivatives in them."""
    scaled = terms.scales * values
    c, y, rho = jnp.maximum(scaled[1:], -_UNBOUNDED), terms.multipliers, terms.penalty
    moved = _multipliers(program, terms, c)
    is_equality = jnp.arange(c.size) < program.equality_count
    parts = jnp.where(is_equality, y * c + rho / 2 * c**2, (moved**2 - y**2) / (2 * rho))
    factors = jnp.concatenate([terms.weight[None], moved]) * terms.scales
    return jnp.where(terms.weight == 0, 0, terms.weight * scaled[0]) + jnp.sum(parts), factors


def _evaluate(x: Array, arguments: tuple) -> tuple[Array, Array, Array, Array]:
    """The augmented Lagrangian, its gradient, the objective, and the constraints."""
    problem, like, terms = arguments
    program = FlatProgram(problem, like)

    def merit(x):
        values = _values(program, x)
        return _merit(program, terms, values)[0], values

    (value, values), gradient = jax.value_and_grad(merit, has_aux=True)(x)
    return value, gradient, values[0], values[1:]


def _violations(program: FlatProgram, constraints: Array) -> Array:
    is_equality = jnp.arange(constraints.size) < program.equality_count
    return jnp.where(is_equality, jnp.abs(constraints), jnp.maximum(constraints, 0))


def _first_order(program: FlatProgram, terms: Terms, x: Array, constraints: Array, gradient: Array) -> PrimalDual:
    """x with the multipliers of which `gradient` is that of the Lagrangian, unscaled: what of it pushes against a near bound
    goes into the multiplier of that bound."""
    scale = jnp.where(terms.weight == 0, 1, terms.scales[0])
    y = _multipliers(program, terms, terms.scales[1:] * constraints) * terms.scales[1:] / scale
    count, gradient = program.equality_count, gradient / scale
    lower = jnp.where(x - program.lower < 1, jnp.maximum(gradient, 0), 0)
    upper = jnp.where(program.upper - x < 1, jnp.maximum(-gradient, 0), 0)
    return program.pack(x, y[:count], y[count:], lower, upper)


def _scales(pullback: Any, values: Array) -> Array:
    """What makes the gradient of no function larger than 100 (in the largest entry)."""

    def steepness(i):
        (row,) = pullback(jnp.where(jnp.arange(values.size) == i, 1, 0).astype(values.dtype))
        return jnp.max(jnp.abs(row), initial=0)

    steep = jax.lax.map(steepness, jnp.arange(values.size))
    return jnp.where(jnp.isfinite(steep), jnp.clip(100 / jnp.maximum(steep, 1e-30), 1e-8, 1), 1).astype(values.dtype)
