r"""Sequential quadratic programming with an exact penalty and elastic subproblems.

At an iterate x with multipliers the step d solves a quadratic program with the constraints linearised,

$$\min_d \; \nabla f^\top d + \tfrac12 d^\top H d + \rho \big(\lVert h + J_h d \rVert_1 + \sum_i \max(0, g_i + J_{g_i} d)\big)
  \quad\text{s.t.}\quad l \le x + d \le u, \quad |d_i| \le r (1 + |x_i|) ,$$

with H the Hessian of the Lagrangian made convex, or its damped BFGS approximation (Powell 1978). This is Fletcher's
\(S\ell_1 QP\): it has a solution even if the linearised constraints contradict each other (the elastic mode), its step
descends on the merit function

$$\varphi(x) = f(x) + \rho \big(\lVert h(x) \rVert_1 + \sum_i \max(0, g_i(x))\big),$$

and for a \(\rho\) above the multipliers its solution is that of the program with hard constraints. \(\rho\) is raised as
long as that lets a step come nearer to the linearised constraints (Byrd, Nocedal and Waltz 2008), and falls again, a few
times at most, where they can be satisfied and it is far above the multipliers. The box of radius r is a trust region: it grows where a step
to its edge keeps what the model promised, and falls to what the search leaves of a step, so that the next one bends within it. The line search backtracks
on \(\varphi\); where the curvature of the constraints is what refuses a whole step, it goes on along an arc that bends back to
them (Mayne and Polak 1982). Where the promised decrease is below the rounding of \(\varphi\), the whole step is taken, and residuals judge it.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.dense import cholesky, cholesky_solve, in_turn
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative, need_positive
from .bounded import snapped
from .ending import bottom
from .flat_program import FlatProgram
from .interior_iteration import Interior, InteriorProgram, advance, begin, minimise, restored
from .line_search import constant, evaluated

__all__ = ["SQP"]


class SQPState(eqx.Module):
    """The iterate with its multipliers, and what the next step needs.

    - `objective`, `violation`: f and the sum of all violations at the point; `residual`: how far the point before was from
      the KKT conditions, with the multipliers that led away from it.
    - `gradient`, `jacobian`, `hessian`: of the point before, and the approximation there, for BFGS.
    - `penalty`: rho. `reductions`: how often it has been made smaller. `shift`: added to the diagonal of H after a search that found nothing.
    - `failures`: searches in a row that found nothing, or nothing better. `radius`: r, of the box around the point.
    - `scale`: sizes of the objective and of the point at the start.
    """

    value: PrimalDual
    before: Float[Array, "n"]
    gradient: Float[Array, "n"]
    jacobian: Float[Array, "k n"]
    hessian: Float[Array, "n n"]
    objective: Array
    violation: Array
    residual: Array
    penalty: Array
    reductions: Array
    shift: Array
    failures: Array
    radius: Array
    number: Array
    infeasible: Array
    unbounded: Array
    scale: Float[Array, "2"]
    counters: Counters


class SQP(Method):
    """Sequential quadratic programming: few evaluations, high accuracy, equalities, inequalities and bounds.

    Pick it for smooth constrained problems with up to some hundred unknowns whose functions are worth their evaluations; the
    linear algebra is dense. The guess need not be feasible; it is moved into the bounds, which every iterate keeps to.

    **Arguments:**

    - `hessian`: "exact", that of the Lagrangian by automatic differentiation, made convex; or "bfgs".
    - `penalty`: the first rho, in units of the largest derivative of the objective at the guess (or one).
    - `decrease`: the fraction of the predicted decrease that a step must achieve. `max_trials`: evaluations of a search.
    - `inner_steps`: interior point steps for a subproblem.
    - `tolerance`: converged when no constraint is violated by more than this, of every multiplier and its slack the smaller or their
      product is at most this, and the gradient of the Lagrangian is at most this times the largest derivative of the objective
      (or one).

    Ends as `infeasible` at a point that is stationary for the violation, which is then the least nearby, in
    `solution.state.violation`; as `diverged` where the objective falls without bound along feasible points; as `stopped`
    where no step makes progress at this precision. Raises `ArgumentError`, naming the argument, for a number out of range.

    Sources: Fletcher 1985; Powell 1978; Byrd, Nocedal and Waltz 2008.

    ```python
    disc = om.Constrained(lambda x: jnp.sum(x), inequalities=lambda x: jnp.sum(x**2) - 2.0)
    om.solve(disc, om.smooth.SQP(), jnp.array([0.5, 0.0])).value     # (-1, -1) and the multiplier 1/2
    ```
    """

    problem = Constrained
    reference: ClassVar[str] = "nocedal2006numerical"

    hessian: str = eqx.field(static=True, default="exact")
    penalty: Any = 1.0
    decrease: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=25)
    inner_steps: int = eqx.field(static=True, default=60)
    tolerance: Any = 1e-6

    def __check_init__(self):
        if self.hessian not in ("exact", "bfgs"):
            raise ArgumentError("hessian", f'must be "exact" or "bfgs", not {self.hessian!r}.')
        need_positive("penalty", self.penalty)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        need_count("inner_steps", self.inner_steps)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Constrained, guess: PrimalDual, *, key: Array | None) -> SQPState:
        view = FlatProgram(problem, guess)
        x, equality, inequality, lower, upper = view.unpack(guess)
        x = jnp.clip(x, view.lower, view.upper)
        n, k = view.size, view.equality_count + view.inequality_count
        number = lambda value: jnp.asarray(value, view.dtype)
        return SQPState(
            view.pack(x, equality, inequality, lower, upper), x, jnp.zeros_like(x), jnp.zeros((k, n), view.dtype),
            jnp.eye(n, dtype=view.dtype), number(0), number(0), number(jnp.inf), number(0), jnp.int32(0), number(0),
            jnp.int32(0), number(_RADIUS), jnp.int32(0), jnp.array(False), jnp.array(False), jnp.ones((2,), view.dtype), Counters.zero(),
        )  # fmt: skip

    def step(self, problem: Constrained, state: SQPState, *, key: Array | None) -> SQPState:
        view = FlatProgram(problem, state.value)
        x, equality, inequality, low, up = view.unpack(state.value)
        multipliers = jnp.concatenate([equality, inequality])
        first = state.number == 0
        f, c, gradient, jacobian = _derivatives(view, x)
        size = jnp.maximum(1.0, jnp.max(jnp.abs(gradient), initial=0.0))
        scale = jnp.where(first, jnp.stack([1 + jnp.abs(f), 1 + jnp.max(jnp.abs(x), initial=0.0)]), state.scale)
        penalty = jnp.where(first, self.penalty * size, state.penalty)
        violation = _violation(view, c)

        stationarity = gradient + multipliers @ jacobian - low + up
        slacks = jnp.concatenate([-c[view.equality_count :], x - view.lower, view.upper - x])
        signed = jnp.concatenate([inequality, low, up])
        natural = jnp.where(jnp.isfinite(slacks), jnp.minimum(signed, slacks), signed)
        # An interior method knows both only to the root of its accuracy where both vanish.
        natural = jnp.where((signed > 0) & (slacks > 0), jnp.minimum(natural, signed * slacks), natural)
        worst = lambda *arrays: jnp.max(jnp.stack([jnp.max(jnp.abs(a), initial=0.0) for a in arrays]))
        residual = jnp.maximum(worst(stationarity) / size, worst(c[: view.equality_count], natural))
        finished = residual <= self.tolerance

        hessian, rows, sigma = self._curvature(view, state, x, multipliers, gradient, jacobian, low + up)
        hessian = hessian + state.shift * jnp.eye(view.size, dtype=view.dtype)
        m = view.equality_count
        reach = jax.lax.stop_gradient(state.radius * (1 + jnp.abs(x)))
        least, most = view.lower - x, view.upper - x
        model = InteriorProgram(
            hessian, gradient, jacobian[:m], -c[:m], jacobian[m:], -c[m:], jnp.maximum(least, -reach), jnp.minimum(most, reach)
        )
        most_penalty = _MOST_PENALTY * size
        solved, penalty, left, spent, pressed = self._subproblem(view, model, penalty, violation, most_penalty)
        d = jnp.clip(solved.x, model.lower, model.upper)
        nu, mu, low_new, up_new = model.multipliers(solved)
        low_new, up_new = jnp.where(least < -reach, 0, low_new), jnp.where(most > reach, 0, up_new)
        edge = jnp.any(jnp.abs(d) >= 0.99 * reach)  # what a step at the edge of its box does not reach says little
        bent = sigma * rows * (jacobian @ d)  # what the convexifying term took over of the multipliers
        holding = mu >= -(c + jacobian @ d)[m:]  # a row that does not hold in the subproblem has no multiplier to be taken over
        limit = jnp.maximum(penalty, jnp.maximum(worst(nu), worst(mu)))  # the penalty's multipliers are not above it
        nu, mu = jnp.clip(nu + bent[:m], -limit, limit), jnp.where(holding, jnp.clip(mu + bent[m:], 0, limit), mu)

        predicted = gradient @ d - penalty * (violation - left)
        eps = jnp.finfo(view.dtype).eps
        noise = 100 * eps * (1 + jnp.abs(f) + penalty * violation)
        dull = (-predicted <= noise) & (predicted <= noise + 0.1 * self.tolerance * penalty)  # the subproblem leaves as much
        found = self._search(view, state.value, x, d, f, c, jacobian, jnp.concatenate([nu, mu]), penalty, violation, predicted, dull)
        x_new, f_new, violation_new, trials, accepted, length = found
        accepted = accepted & ~finished
        pick = lambda new, old: jnp.where(accepted, new, old)
        value = view.pack(
            pick(x_new, x), pick(nu, equality), pick(mu, inequality), pick(low_new, low), pick(up_new, up)
        )
        # Multipliers may be all that is missing: they are those of the subproblem where the step has no length.
        idle = worst(d) <= 10 * eps * (1 + worst(x))
        refreshed = view.pack(x, nu, mu, low_new, up_new)
        value = jax.tree_util.tree_map(
            lambda new, old: jnp.where(idle & ~accepted & ~finished, new, old), refreshed, value
        )
        # Where values no longer tell, or nothing moves, residuals do: those of this point and of the one before.
        better = (residual < 0.9 * state.residual) | (~dull & jnp.any(x_new != x))
        failures = jnp.where(accepted & better, 0, state.failures + 1)
        weight = jnp.maximum(jnp.max(jnp.abs(jnp.diagonal(hessian)), initial=0.0), 1e-2)
        shift = jnp.where(accepted, state.shift / 10, jnp.maximum(10 * state.shift, 1e-3 * weight))
        shift = jnp.where(shift > 1e-12 * weight, shift, 0)
        far = worst(x_new) > 1e6 * scale[1]
        falls = (f_new < -1e6 * scale[0]) & far | (f_new < bottom(view.dtype))
        falls = falls & (violation_new <= 1e-6 * worst(x_new))
        gain = (f - f_new + penalty * (violation - violation_new)) / jnp.maximum(-predicted, jnp.finfo(view.dtype).tiny)
        radius = jnp.where(edge & (length == 1) & (gain > 0.25), 10 * state.radius, state.radius)
        taken = worst(jnp.abs(x_new - x) / (1 + jnp.abs(x)))
        radius = jnp.where(length < 1, jnp.minimum(radius, 2 * taken), radius)
        radius = jnp.where(accepted | dull, radius, 0.1 * jnp.minimum(radius, worst(jnp.abs(d) / (1 + jnp.abs(x)))))
        hopeless = (violation - left <= 1e-4 * violation) & ~edge
        nowhere = (violation > 10 * self.tolerance) & hopeless & (penalty >= most_penalty)
        stuck_infeasible = ~edge & (failures >= _FAILURES) & (violation > 10 * self.tolerance) & (violation - left <= 1e-2 * violation)
        # An elastic step that hardly helps asks for a larger penalty.
        unsatisfied = ~edge & (violation > self.tolerance) & (left > 0.9 * violation) & pressed & (penalty < most_penalty)
        penalty = jnp.where(unsatisfied, 10 * penalty, penalty)
        # The larger it is, the shorter are the steps along curved constraints. To reduce it a few times does not spoil convergence.
        enough = jnp.maximum(self.penalty * size, 2 * worst(nu, mu))
        reduced = (left <= self.tolerance) & (penalty > 10 * enough) & (state.reductions < _REDUCTIONS)
        penalty = jnp.where(reduced, enough, penalty)
        return SQPState(
            value, x, gradient, jacobian, hessian if self.hessian == "bfgs" else state.hessian,
            pick(f_new, f), pick(violation_new, violation), residual, penalty.astype(view.dtype),
            state.reductions + reduced, shift.astype(view.dtype), failures, radius, state.number + 1, nowhere | stuck_infeasible, falls & accepted, scale,
            state.counters.add(
                values=1 + trials, gradients=1, jacobians=1, linear_solves=spent,
                hessian_products=view.size if self.hessian == "exact" else 0,
            ),
        )  # fmt: skip

    def _curvature(self, view, state, x, multipliers, gradient, jacobian, on_bounds):
        """H, positive definite; and sigma and the rows r, if sigma J' diag(r) J is part of it.

        On active constraints this term is constant along feasible steps, so that it changes the multipliers and not the
        step, while a Hessian with positive curvature along the constraints only becomes positive definite by it.
        """
        identity = jnp.eye(view.size, dtype=view.dtype)
        m = view.equality_count
        rows = jnp.where(jnp.arange(len(multipliers)) < m, 1.0, jnp.where(multipliers > 1e-6, 1.0, 0.0)).astype(view.dtype)
        if self.hessian == "bfgs":
            s = x - state.before
            y = gradient - state.gradient + multipliers @ (jacobian - state.jacobian)
            return _damped_update(state.hessian, s, y, state.number), rows, jnp.zeros((), view.dtype)
        exact = view.lagrangian_hessian(x, multipliers)
        exact = (exact + exact.T) / 2
        fixed = jax.lax.stop_gradient(exact)
        gram = jax.lax.stop_gradient((jacobian * rows[:, None]).T @ jacobian)
        # A bound that holds an unknown back is an active constraint as well, along which any curvature will do.
        held = jnp.where((on_bounds > 1e-6) & ((x <= view.lower) | (x >= view.upper)), 1.0, 0.0).astype(view.dtype)
        size = jnp.maximum(jnp.max(jnp.abs(fixed), initial=0.0), 1e-8)
        unit = size / jnp.maximum(jnp.max(jnp.abs(gram), initial=0.0), 1e-8)
        floor = 1e-8 * size

        def definite(matrix):
            return jnp.all(jnp.isfinite(cholesky(matrix - floor * identity)))

        def attempt(carry):
            number, _ = carry
            sigma = jnp.where(number == 0, 0, unit * 10.0 ** (number - 1))
            return number + 1, definite(fixed + sigma * gram + size * jnp.diag(held) * (number > 0))

        number, good = jax.lax.while_loop(lambda carry: ~carry[1] & (carry[0] < 4), attempt, (0, jnp.array(False)))
        sigma = jnp.where(number <= 1, 0, unit * 10.0 ** (number - 2)).astype(view.dtype)
        extra = sigma * gram + size * jnp.diag(held) * (number > 1)

        return exact + _positive(good, fixed, extra, 1e3 * floor), rows, sigma

    def _subproblem(self, view, model: InteriorProgram, penalty, violation, most_penalty):
        """The solution of the elastic program, the penalty it needed, the linearised violation left, the steps spent, and whether
        a multiplier is at the penalty."""
        finest = 1e-12 if view.dtype == jnp.float64 else 1e-6
        tolerance = jax.lax.stop_gradient(jnp.maximum(0.01 * jnp.minimum(self.tolerance, 1e-6), finest))
        model = model.without_fixed()
        enough = jax.lax.stop_gradient(jnp.maximum(1e-6 * violation, 0.1 * self.tolerance))
        still, violation, penalty, most_penalty = jax.lax.stop_gradient((model, violation, penalty.astype(view.dtype), most_penalty))
        linear, base = jnp.concatenate([still.A, still.G]), -jnp.concatenate([still.b, still.h])
        _, scaling = still.scaled(_SWEEPS)

        def attempt(carry):
            kept, _, before, penalty, tried, spent, _ = carry
            rho = jnp.where(tried == 0, penalty, 10 * penalty)
            scaled, _ = still._replace(elastic=rho).scaled_by(scaling)
            z, count = minimise(scaled, jnp.zeros_like(still.q), tolerance=tolerance, most=self.inner_steps)
            left = _violation(view, base + linear @ (z.x * scaling.columns))
            helped = (tried == 0) | (left < 0.9 * before)
            pick = lambda new, old: jnp.where(helped, new, old)
            # Only a multiplier at its limit says that more weight would lead nearer to the constraints.
            there = restored(z, scaling)
            strongest = jnp.maximum(jnp.max(jnp.abs(there.nu), initial=0.0), jnp.max(there.mu[: len(still.h)], initial=0.0))
            pressed = strongest > 0.9 * rho
            kept = jax.tree_util.tree_map(pick, z, kept)
            return kept, helped, pick(left, before), pick(rho, penalty), tried + 1, spent + count, pressed

        def going(carry):
            _, helped, left, penalty, tried, _, pressed = carry
            more = helped & pressed & (left > enough) & (penalty < most_penalty)
            return (tried == 0) | (more & (tried < _RAISES))

        nothing = begin(still._replace(elastic=penalty).scaled_by(scaling)[0], jnp.zeros_like(still.q))
        yes = jnp.array(True)
        start = (nothing, yes, violation, penalty, jnp.int32(0), jnp.int32(0), yes)
        z, _, left, penalty, _, spent, pressed = jax.lax.while_loop(going, attempt, start)
        # The derivative is that of one more Newton step at the solution.
        known = restored(z, scaling)
        return evaluated(_newton_step, (model, penalty, z), known), penalty, left, spent, pressed

    def _search(self, view, like, x, d, f, c, jacobian, multipliers, penalty, violation, predicted, dull):
        """The point, f, the violation, the evaluations, and whether the merit function has fallen enough."""
        m = view.equality_count
        still = FlatProgram(constant(view.problem), constant(like))
        origin, heading, f, c, jacobian, multipliers, penalty, violation, predicted = jax.lax.stop_gradient(
            (x, d, f, c, jacobian, multipliers, penalty, violation, predicted)
        )
        merit = f + penalty * violation
        dull = jax.lax.stop_gradient(dull)
        allowance = 10 * jnp.finfo(view.dtype).eps * (jnp.abs(f) + penalty * violation)
        active = (jnp.arange(len(c)) < m) | (multipliers > 1e-8) | (c + jacobian @ heading > -1e-8)
        rows = jnp.where(active[:, None], jacobian, 0)

        def correction(c_there):
            """The shortest way back to the active constraints, from their values at the end of the step."""
            gram = rows @ rows.T
            weight = jnp.maximum(jnp.max(jnp.abs(jnp.diagonal(gram)), initial=0.0), 1e-12)
            gram = gram + (1e-10 * weight + jnp.where(active, 0, weight)) * jnp.eye(len(c), dtype=view.dtype)
            return -rows.T @ cholesky_solve(cholesky(gram), jnp.where(active, c_there, 0))

        def trial(carry):
            length, bend, number, _, _, _, _, _ = carry
            there = snapped(origin + length * heading + length**2 * bend, view.lower, view.upper)
            f_there, c_there = still.value(there), still.constraints(there)
            v_there = _violation(view, c_there)
            new = f_there + penalty * v_there
            gain = new - merit
            ok = jnp.isfinite(new) & ((gain <= self.decrease * length * predicted + allowance) | (dull & (number == 0)))
            parabola = -predicted * length**2 / (2 * (gain - length * predicted))
            shorter = length * jnp.clip(jnp.where(jnp.isfinite(parabola), parabola / length, 0), 0.1, 0.5)
            bent = (number == 0) & jnp.isfinite(new) & (v_there > 0) & ~ok
            if len(c):
                bend = jnp.where(bent, jax.lax.cond(bent, correction, lambda c: zero, c_there), bend)
            sound = jnp.all(jnp.isfinite(bend)) & (bend @ bend <= heading @ heading)
            bend = jnp.where(sound, bend, 0)
            shorter = jnp.where(bent & sound, length, shorter)  # the same length, bent
            return shorter, bend, number + 1, ok, there, f_there, v_there, length

        def going(carry):
            return ~carry[3] & (carry[2] < self.max_trials)

        zero = jnp.zeros_like(origin)
        start = (jnp.ones((), view.dtype), zero, jnp.int32(0), jnp.array(False), origin, f, violation, jnp.ones((), view.dtype))
        _, _, trials, ok, there, f_there, v_there, last = jax.lax.while_loop(going, trial, start)
        # What was found, as a function of x and d: along d, and across it by what was constant.
        along = jnp.vdot(there - origin, heading) / jnp.maximum(jnp.vdot(heading, heading), jnp.finfo(view.dtype).tiny)
        return evaluated(_moved, (x, d, along), there), f_there, v_there, trials, ok, last

    def done(self, problem: Constrained, state: SQPState):
        code = jnp.where(state.failures >= _FAILURES, Result.stopped.code, Result.running.code)
        code = jnp.where(state.unbounded, Result.diverged.code, code)
        code = jnp.where(state.infeasible, Result.infeasible.code, code)
        code = jnp.where(jnp.isnan(state.residual), Result.nonfinite.code, code)
        return jnp.where(state.residual <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Constrained, state: SQPState) -> PyTree:
        return state.value

    def metrics(self, problem: Constrained, state: SQPState) -> dict[str, Any]:
        return {"value": state.objective, "violation": state.violation, "residual": state.residual}


_SWEEPS = 5  # of the scaling of a subproblem
_RADIUS = 10.0  # of the first box, in units of one plus the size of each unknown
_FAILURES = 8  # searches in a row, each with a larger shift
_REDUCTIONS = 10  # of the penalty
_RAISES = 5  # subproblems in a step, each with a larger penalty
_MOST_PENALTY = 1e8  # in units of the largest derivative of the objective


@in_turn
def _positive(good, matrix, extra, least):
    """What makes the matrix positive definite: `extra` if that is known to, else that with absolute eigenvalues."""

    def flipped():
        values, vectors = jnp.linalg.eigh(jnp.nan_to_num(matrix + extra))
        return (vectors * jnp.maximum(jnp.abs(values), least)) @ vectors.T - matrix

    return jax.lax.cond(good, lambda: extra, flipped)


def _newton_step(model: InteriorProgram, penalty: Array, z: Interior) -> Interior:
    """One more iteration of a subproblem from z, which is that of the scaled program."""
    scaled, scaling = model._replace(elastic=penalty).scaled(_SWEEPS)
    return restored(advance(scaled, z), scaling)


def _derivatives(view: FlatProgram, x: Array) -> tuple[Array, Array, Array, Array]:
    """f, c, the gradient and the Jacobian, with one call of the problem's functions."""

    def both(x):
        values = jnp.concatenate([view.value(x)[None], view.constraints(x)])
        return values, values

    rows = 1 + view.equality_count + view.inequality_count
    jacobian, values = (jax.jacrev if rows <= view.size else jax.jacfwd)(both, has_aux=True)(x)
    return values[0], values[1:], jacobian[0], jacobian[1:]


def _violation(view: FlatProgram, c: Array) -> Array:
    """|h|_1 + sum of max(0, g)."""
    m = view.equality_count
    return jnp.sum(jnp.abs(c[:m])) + jnp.sum(jnp.maximum(c[m:], 0))


def _damped_update(B: Array, s: Array, y: Array, number: Array) -> Array:
    """Powell's damped BFGS update of B; scaled by the first pair; B itself where there is no step."""
    ss, sy, yy = s @ s, s @ y, y @ y
    begin = (number == 1) & (sy > 0)
    B = jnp.where(begin, jnp.clip(yy / jnp.where(begin, sy, 1), 1e-6, 1e8) * jnp.eye(len(s), dtype=s.dtype), B)
    Bs = B @ s
    sBs = s @ Bs
    there = (ss > 0) & (sBs > 0) & jnp.isfinite(sy)
    theta = jnp.where(sy >= 0.2 * sBs, 1.0, 0.8 * sBs / jnp.where(there & (sBs != sy), sBs - sy, 1))
    r = theta * y + (1 - theta) * Bs
    sr = s @ r
    there = there & (sr > 0)
    update = -jnp.outer(Bs, Bs) / jnp.where(there, sBs, 1) + jnp.outer(r, r) / jnp.where(there, sr, 1)
    return jnp.where(there, B + update, B)


def _moved(x: Array, d: Array, along: Array) -> Array:
    return x + along * d
