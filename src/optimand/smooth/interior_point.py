r"""A primal-dual interior point method with a filter line search, for constrained problems that need not be convex.

$$\min_x f(x) \quad\text{s.t.}\quad h(x) = 0,\; g(x) \le 0,\; l \le x \le u$$

is solved as a sequence of barrier problems with \(\mu \to 0\) (see `barrier`), each by Newton steps on its primal-dual
conditions (`kkt_system`), whose length a filter decides (`filter_search`). Where no length will do, the method turns to
the elastic problem

$$\min_{x, s, p, n} \rho \sum_i (p_i + n_i) + \tfrac{\zeta}{2} \lVert D_R (x - x_R) \rVert^2 \quad\text{s.t.}\quad
  c(x, s) - p + n = 0,\; p, n \ge 0$$

until it finds a point that the filter takes and that is clearly less infeasible than \(x_R\), where it left off; or
until it has solved that problem, which proves that \(x\) is a local minimiser of the violation: `Result.infeasible`.

Waechter and Biegler 2006; departures from it are that the regularisation of the constraints is never zero, that variables
with equal bounds are constants, and that a point counts as solved when the KKT conditions of the problem as it
was given, unscaled, hold to the tolerance.

It is one loop: a step of the method is a step of the main or of the elastic problem, and both evaluate the user's
functions at the same two places, with derivatives where the step starts and without in the line search. So what is
compiled stays small.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_between, need_not_negative, need_positive
from .barrier import Barrier, Iterate, Layout
from .filter_search import Filter, Found, Start, search
from .flat_program import FlatProgram
from .interior_point_parts import RHO, ElasticPart, Errors, Newton, central, derivatives, functions, placed, solved
from .kkt_system import regularised
from .line_search import constant, evaluated
from .vectors import add, select
from .vectors import scale as multiple

__all__ = ["InteriorPoint"]

_START, _REGULAR, _ENTER, _ELASTIC = range(4)  # phases; _ENTER is the first step of the elastic one
_LARGEST_GRADIENT = 100.0  # g_max of the scaling, eq. 38 of section 3.8
_KAPPA_EPSILON, _KAPPA_MU, _THETA_MU = 10.0, 0.2, 1.5
_LEAST_FRACTION = 0.99  # tau_min
_LARGEST_FIRST_MULTIPLIER = 1e3
_RESTORED = 0.9  # kappa_resto
_WARM = 1e-4  # mu, and the push from the bounds, of a warm start
_INFINITE = 1e20
_LEAST_BARRIER = 1e-12
_PATIENCE = 20  # steps with the least barrier before the precision is held to be exhausted


class Outer(eqx.Module):
    """What the main problem left behind when the elastic one began: mu, filter, violation and the point x_R."""

    mu: Array
    pairs: Filter
    theta: Array
    anchor: Float[Array, " n"]


class InteriorPointState(eqx.Module):
    """`previous` is the iterate before; `delta` the last regularisation that was needed; `lingering` counts steps with the
    least barrier, and searches that `failed` at feasible points; `like` shows the structure."""

    like: PrimalDual
    barrier: Barrier
    iterate: Iterate
    previous: Iterate
    mu: Array
    delta: Array
    lingering: Array
    failed: Array
    objective_scale: Array
    constraint_scale: Float[Array, " m"]
    pairs: Filter
    outer: Outer
    phase: Array
    code: Array
    value: Array
    residual: Array
    violation: Array
    counters: Counters


class InteriorPoint(Method):
    """Primal-dual interior point with a filter line search: equalities, inequalities and bounds, convex or not.

    The first choice for `Constrained` problems up to some thousand variables and constraints; its linear algebra is dense.
    It needs the second derivatives of all functions, which JAX finds. A guess with multipliers (a `PrimalDual`) that
    are not all zero starts warm: nearer to the bounds and with a small barrier.

    **Arguments:**

    - `tolerance`: converged when every part of `problem.kkt_residual` is at most this; where rounding lets it come no nearer, and the
      constraints hold to this, also at this times the largest entry of the gradient of the objective.
    - `barrier`: the first barrier parameter mu.
    - `push`: how far the guess is moved away from the bounds, relative to their size and distance.
    - `relaxation`: how far bounds and inequalities are moved outwards, relative to their size, so that they have an interior.
      The answer is moved back.

    The solve ends as `infeasible` where the violation of the constraints has a local minimum that is not zero, which the
    answer is then; as `diverged` where iterates or objective pass all bounds; as `stopped` where no step can be found, as
    at the limits of the precision.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    disc = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.sum(x**2) - 2.0)
    with jax.enable_x64(True):
        om.solve(disc, om.smooth.InteriorPoint(), jnp.array([0.5, 0.0])).value  # (-1, -1), multiplier 1/2
    ```
    """

    problem = Constrained
    reference: ClassVar[str] = "waechter2006implementation"
    requires_x64: ClassVar[bool] = True

    tolerance: Any = 1e-6
    barrier: Any = 0.1
    push: Any = 1e-2
    relaxation: Any = 1e-10

    def __check_init__(self):
        need_positive("tolerance", self.tolerance)
        need_positive("barrier", self.barrier)
        need_between("push", self.push, 0, 0.5)
        need_not_negative("relaxation", self.relaxation)

    def init(self, problem: Constrained, guess: PrimalDual, *, key: Array | None) -> InteriorPointState:
        program = FlatProgram(problem, guess)
        layout = _layout(program)
        x, equality, inequality, lower, upper = program.unpack(guess)
        multipliers = jnp.concatenate([equality, inequality])
        zero = jnp.zeros((), x.dtype)
        barrier = Barrier.of(layout, program.lower, program.upper, self._relaxation(x.dtype))
        rest = jnp.zeros((layout.length - layout.size,), x.dtype)
        of_all = lambda vector: jnp.concatenate([vector, rest])
        iterate = Iterate(of_all(x), multipliers, jnp.stack([of_all(lower), of_all(upper)]))
        warm = _warm(iterate)
        v = barrier.when(jnp.array(False)).inside(of_all(x), jnp.where(warm, _WARM, self.push))
        v = v.at[: layout.size].set(jnp.where(barrier.free[: layout.size], v[: layout.size], program.lower))
        iterate = Iterate(v, iterate.multipliers, iterate.bounds)
        mu = jnp.where(warm, jnp.minimum(_WARM, self.barrier), self.barrier).astype(x.dtype)
        pairs = Filter.at(zero)
        return InteriorPointState(
            guess, barrier, iterate, iterate, mu, zero, jnp.int32(0), jnp.array(False), zero + 1, jnp.ones((layout.rows,), x.dtype), pairs,
            Outer(mu, pairs, zero, x), jnp.int32(_START), jnp.int32(Result.running.code),
            zero + jnp.inf, zero + jnp.inf, zero + jnp.inf, Counters.zero(),
        )  # fmt: skip

    def step(self, problem: Constrained, state: InteriorPointState, *, key: Array | None) -> InteriorPointState:
        new, update = self._advance(*constant((problem, state)))
        # The step is found with everything held constant; its derivative is that of the Newton step it is.
        iterate = evaluated(_updated, (problem, state.iterate, state.like, update, new.iterate), new.iterate)
        return eqx.tree_at(lambda s: s.iterate, new, iterate)

    def done(self, problem: Constrained, state: InteriorPointState):
        return state.code

    def answer(self, problem: Constrained, state: InteriorPointState) -> PrimalDual:
        program = FlatProgram(problem, state.like)
        x, at = state.iterate.variables[: program.size], state.iterate
        y = at.multipliers * state.constraint_scale / state.objective_scale
        equality, inequality = y[: program.equality_count], jnp.maximum(y[program.equality_count :], 0)
        lower, upper = at.bounds[:, : program.size] / state.objective_scale
        return program.pack(jnp.clip(x, program.lower, program.upper), equality, inequality, lower, upper)

    def metrics(self, problem: Constrained, state: InteriorPointState) -> dict[str, Any]:
        """Of the point where the step started: objective, largest part of the KKT residual, violation; and mu after it."""
        return {"value": state.value, "residual": state.residual, "violation": state.violation, "barrier": state.mu}

    def _relaxation(self, dtype: Any) -> Array:
        """Relative to the size of a bound, and small against the tolerance."""
        return jnp.minimum(jnp.asarray(self.relaxation, dtype), jnp.asarray(self.tolerance, dtype) / 10)

    def _advance(self, problem: Constrained, state: InteriorPointState) -> tuple[InteriorPointState, "Update"]:
        program = FlatProgram(problem, state.like)
        layout = _layout(program)
        starts, enters = state.phase == _START, state.phase == _ENTER
        elastic = enters | (state.phase == _ELASTIC)
        relaxation = self._relaxation(program.dtype)
        barrier = state.barrier.when(elastic)

        # The functions at the current point, in the scale that their first gradients fix.
        at = derivatives(program, state.iterate, _weights(state, elastic))
        sound = jnp.all(jnp.isfinite(at.rows)) & jnp.all(jnp.isfinite(at.hessian)) & jnp.all(jnp.isfinite(at.values))
        largest = jnp.max(jnp.abs(at.rows), axis=1)
        scale = jnp.minimum(1.0, _LARGEST_GRADIENT / jnp.where(largest > _LARGEST_GRADIENT, largest, 1))
        objective_scale = jnp.where(starts, jnp.where(scale[0] > 1e-8, scale[0], 1e-8), state.objective_scale)
        constraint_scale = jnp.where(starts, jnp.maximum(scale[1:], 1e-8), state.constraint_scale)
        at = at.scaled(objective_scale, constraint_scale)
        scales = (objective_scale, constraint_scale)
        warm = _warm(state.iterate)
        push = jnp.where(warm, _WARM, self.push) - relaxation
        iterate, mu = placed(layout, barrier, state.iterate, state.mu, at, scales, push, warm, starts, enters)
        elastic_part = ElasticPart(elastic, state.outer.anchor)
        v = iterate.variables
        c = layout.residual(at.constraints, v)
        theta = jnp.sum(layout.violation(at.constraints, v))
        new_filter = Filter.at(theta)
        pairs = select(starts | enters, new_filter, state.pairs)

        # Is this point a solution, and of what?
        iterate, residual, violation = solved(program, layout, at, iterate, scales)
        errors = Errors.at(layout, barrier, elastic_part, at, iterate, mu)
        proven = ~starts & sound
        converged = proven & ~elastic & (residual <= self.tolerance)
        endless = proven & (
            jnp.any(jnp.abs(v[: layout.size]) > _INFINITE) | (at.raw_objective < -_INFINITE)
        )
        locally_best = proven & elastic & (errors.of(jnp.zeros_like(mu)) <= self.tolerance)
        code = jnp.where(locally_best & (violation > self.tolerance), Result.infeasible.code, Result.running.code)
        code = jnp.where(endless, Result.diverged.code, code)
        code = jnp.where(converged, Result.converged.code, code)
        running = code == Result.running.code

        # The barrier parameter falls where its problem is solved well enough (eq. 7).
        least = jnp.where(elastic, 0.01 * self.tolerance, jnp.minimum(_LEAST_BARRIER, 0.01 * self.tolerance))
        lowered = lambda mu: jnp.maximum(least, jnp.minimum(_KAPPA_MU * mu, mu**_THETA_MU))
        good = lambda mu: (errors.of(mu) <= _KAPPA_EPSILON * mu) & (mu > least) & proven & ~enters
        smaller = jax.lax.while_loop(good, lowered, mu)
        pairs = pairs.emptied(smaller < mu)
        mu = smaller
        lingering = jnp.where(running & proven & (mu <= least), state.lingering + 1, jnp.where(state.failed, state.lingering, 0))
        size = jnp.maximum(1, jnp.max(jnp.abs(at.gradient), initial=0) / objective_scale)
        as_near_as_it_gets = (residual <= self.tolerance * size) & (violation <= self.tolerance)
        ending = jnp.where(as_near_as_it_gets, Result.converged.code, Result.stopped.code)
        code = jnp.where(lingering > _PATIENCE, ending, code)
        running = running & (lingering <= _PATIENCE)

        # The step.
        before = state.barrier.when(jnp.array(False))
        update = Update(mu, objective_scale, constraint_scale, before)
        newton = Newton.at(layout, barrier, elastic_part, at, iterate, mu, starts)
        delta, last_delta, factorisations = regularised(newton.system, state.delta)
        factors = newton.system.factorised(delta)
        step, dual_step = factors.solve(newton.right_hand_side, newton.constraint_side)
        fraction = jnp.maximum(_LEAST_FRACTION, 1 - mu)
        gradient = elastic_part.gradient(layout, at.gradient, v, mu) + barrier.gradient(v, mu)
        gradient = jnp.where(barrier.free, gradient, 0)
        phi = elastic_part.value(layout, at.objective, v, mu) + barrier.value(v, mu)

        def evaluate(moved):
            there = v + moved
            values = functions(program, there[: layout.size])
            objective, constraints = objective_scale * values[0], constraint_scale * values[1:]
            value = elastic_part.value(layout, objective, there, mu) + barrier.value(there, mu)
            value = jnp.where(jnp.isfinite(objective), value, jnp.nan)
            theta = jnp.sum(layout.violation(constraints, there))
            return objective, constraints, layout.residual(constraints, there), theta, value

        found = search(
            evaluate, lambda c: factors.solve(newton.right_hand_side, -c), lambda step: barrier.longest(v, step, fraction),
            Start(c, theta, phi, jnp.sum(gradient * step)), step, dual_step, pairs, running & proven,
            (at.objective, at.constraints),
        )  # fmt: skip
        dual_length = barrier.longest_dual(iterate, barrier.dual_step(iterate, found.step, mu), fraction)
        walked = newton.walked(found.step, found.dual_step, found.length, dual_length)
        update = update._replace(
            delta=delta, length=found.length, dual_length=dual_length, moves=found.accepted & ~elastic, correction=found.step - step
        )
        pairs = pairs.extended(theta, phi, found.accepted & ~found.descended)

        # Where to go on.
        fails = running & proven & ~found.accepted
        hopeless = fails & ~elastic & (violation <= 0.1 * self.tolerance)  # the elastic problem has nothing to offer
        leaves = fails & ~elastic & ~hopeless
        pairs = pairs.emptied(hopeless)
        lingering = jnp.where(hopeless, lingering + _PATIENCE // 3, lingering)
        nearly_best = (errors.of(jnp.zeros_like(mu)) <= jnp.sqrt(self.tolerance)) & (violation > self.tolerance)
        ending = jnp.where(nearly_best, Result.infeasible.code, Result.stopped.code)
        code = jnp.where(fails & elastic, ending, code)
        theta_main, phi_main = _main_merit(layout, before, found, walked.variables, state.outer.mu)
        restored = elastic & found.accepted & (theta_main <= _RESTORED * state.outer.theta)
        restored &= state.outer.pairs.accepts(theta_main, phi_main)
        restored |= locally_best & (violation <= self.tolerance)

        left = Iterate(v, jnp.zeros_like(iterate.multipliers), jnp.minimum(iterate.bounds, RHO))
        back = central(layout, before, walked.variables, state.outer.mu)
        first = Iterate(v, _first_multipliers(state, iterate, dual_step), iterate.bounds)
        middle = multiple(0.5, add(state.iterate, state.previous))
        next_iterate = _choose(
            iterate, (found.accepted, walked), (leaves, left), (restored, back), (starts, first), (~sound & ~starts, middle)
        )
        outer = Outer(mu, pairs.extended(theta, phi, leaves), theta, v[: layout.size])
        outer = select(leaves, outer, state.outer)
        pairs = select(restored, state.outer.pairs, pairs)
        phase = jnp.where(elastic, _ELASTIC, _REGULAR)
        phase = jnp.where(restored, _REGULAR, jnp.where(leaves, _ENTER, phase))
        phase = jnp.where(starts & ~sound, _START, phase).astype(jnp.int32)
        code = jnp.where(starts & ~sound, Result.nonfinite.code, code)
        counters = state.counters.add(
            values=found.trials, gradients=1, jacobians=2, linear_solves=factorisations + 1
        )
        new = InteriorPointState(
            state.like, state.barrier, next_iterate, iterate, jnp.where(restored, state.outer.mu, mu), last_delta, lingering,
            hopeless, objective_scale,
            constraint_scale, pairs, outer, phase, code.astype(jnp.int32), at.raw_objective, residual, violation, counters,
        )  # fmt: skip
        return new, update


class Update(NamedTuple):
    """What a step is made of, beside the functions: enough to differentiate it."""

    mu: Array
    objective_scale: Array
    constraint_scale: Array
    barrier: Barrier
    delta: Any = None
    length: Any = None
    dual_length: Any = None
    moves: Any = None
    correction: Any = None


def _updated(problem: Constrained, start: Iterate, like: PrimalDual, update: Update, known: Iterate) -> Iterate:
    """The Newton step of the main problem that `update` tells of; where it was of another kind, as if there were none.

    There it is taken at `known`, where it is finite, since what a reverse pass does not use must be finite all the same.
    """
    at = select(update.moves, start, known)
    program = FlatProgram(problem, like)
    layout, no, barrier = _layout(program), jnp.array(False), update.barrier
    weights = jnp.concatenate([update.objective_scale[None], update.constraint_scale * at.multipliers])
    there = derivatives(program, at, weights).scaled(update.objective_scale, update.constraint_scale)
    part = ElasticPart(no, at.variables[: layout.size])
    newton = Newton.at(layout, barrier, part, there, at, update.mu, no)
    step, dual_step = newton.system.factorised(jnp.where(update.moves, update.delta, 1)).solve(newton.right_hand_side, newton.constraint_side)
    walked = newton.walked(step + update.correction, dual_step, update.length, update.dual_length)
    return _choose(start, (update.moves, walked))


def _first_multipliers(state: InteriorPointState, iterate: Iterate, found: Array) -> Array:
    """Those of the guess if it has some; else those of least squares, unless they are suspiciously large (eq. 36)."""
    sane = jnp.max(jnp.abs(found), initial=0) <= _LARGEST_FIRST_MULTIPLIER
    return jnp.where(_warm(state.iterate), iterate.multipliers, jnp.where(sane, found, 0))


def _main_merit(layout: Layout, barrier: Barrier, found: Found, v: Array, mu: Array) -> tuple[Array, Array]:
    """Violation and barrier function of the main problem at a point of the elastic one."""
    s = v[layout.size : layout.size + layout.inequality_count]
    theta = jnp.sum(jnp.abs(found.constraints + layout.of_inequalities(s)))
    return theta, found.objective + barrier.value(v, mu)


def _layout(program: FlatProgram) -> Layout:
    return Layout(program.size, program.equality_count, program.inequality_count)


def _weights(state: InteriorPointState, elastic: Array) -> Array:
    """Of objective and constraints in the Lagrangian: the elastic one has no objective of the user."""
    objective = jnp.where(elastic, 0, state.objective_scale)
    return jnp.concatenate([objective[None], state.constraint_scale * state.iterate.multipliers])


def _warm(guess: Iterate) -> Array:
    """Whether a guess has multipliers."""
    return jnp.any(guess.multipliers != 0) | jnp.any(guess.bounds != 0)


def _choose(default: Iterate, *others: tuple[Array, Iterate]) -> Iterate:
    """The last of the others whose condition holds."""
    for condition, other in others:
        default = select(condition, other, default)
    return default
