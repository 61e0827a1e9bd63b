r"""Newton's method in a trust region, without and with bounds.

$$s_k \approx \arg\min_s\; g_k^\top s + \tfrac12 s^\top H_k s \quad\text{s.t.}\quad \lVert s \rVert \le \Delta_k,\; l \le x_k + s \le u ,$$

with the exact Hessian H. The step is taken if the objective falls by a fraction of what the model says; the radius is shortened where it
does not and grows where the model is good (Conn, Gould and Toint 2000, algorithm 6.1.1). Without bounds the subproblem is solved as Moré
and Sorensen (1983) do, so the method leaves saddles; with bounds, as in TRON (Lin and Moré 1999): a projected gradient step to the
Cauchy point, then minimisation on faces. Above `dense_below` unknowns only products with H are used, in conjugate gradients (Steihaug
1983).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.constrained import Constrained
from ..core.dense import solve
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_between, need_count, need_not_negative, need_positive
from .bounded import BoundedProgram
from .ending import bottom, status
from .line_search import constant, evaluated
from .quadratic_model import factorise, minimise_in_ball, minimise_on_faces, steihaug
from .vectors import norm, select

__all__ = ["TrustRegion"]


class TrustRegionState(eqx.Module):
    """`proven`: no negative curvature was found where the last step looked. `residual` is that of `bounded`."""

    x: PyTree
    value: Array
    gradient: Float[Array, " n"]
    radius: Array
    residual: Array
    proven: Array
    stuck: Array
    counters: Counters


class TrustRegion(Method):
    """Newton's method with exact second derivatives in a trust region: robust on nonconvex and badly conditioned problems.

    The first choice up to about a thousand unknowns, with or without bounds; beyond, `LBFGS` or `LBFGSB` unless products with the
    Hessian are cheap and the conditioning is bad. The answer to a `Constrained` problem is a `PrimalDual` with the multipliers of its
    bounds.

    **Arguments:**

    - `radius`: the first one; `None` takes the norm of the guess, at least 1.
    - `dense_below`: up to so many unknowns the Hessian is formed and factorised.
    - `max_products`: Hessian products that conjugate gradients may spend on a face, above that.
    - `acceptance`: the fraction of the predicted decrease at which a step is taken.
    - `max_trials`: evaluations that a step may spend on finding its radius. If none is small enough the solve ends as `stopped`: it can get
      no nearer at this precision.
    - `tolerance`: converged when no entry of the projected gradient, and no multiplier times slack, is larger than this, and no
      negative curvature was found: on the face, and above `dense_below` unknowns by the conjugate gradients.

    A start that is stationary therefore takes a step, to look. An objective that falls without bound ends the solve as `diverged`. A
    guess outside the bounds is moved to them. Unrolled, the derivative of a step holds the Hessian constant, and is right in the limit.

    Raises `ArgumentError`, naming the argument, for a number out of its range, a problem with equalities or inequalities, and one with
    random batches.

    ```python
    rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
    om.solve(om.Constrained(rosenbrock, bounds=(-2.0, 0.5)), om.smooth.TrustRegion(), jnp.array([-1.2, 1.0])).value.primal
    ```
    """

    problem = (Objective, Constrained)
    reference: ClassVar[str] = "lin1999newton"

    radius: Any = None
    dense_below: int = eqx.field(static=True, default=1000)
    max_products: int = eqx.field(static=True, default=500)
    acceptance: Any = 1e-4
    max_trials: int = eqx.field(static=True, default=40)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("radius", self.radius)
        need_count("dense_below", self.dense_below, least=0)
        need_count("max_products", self.max_products)
        need_between("acceptance", self.acceptance, 0, 0.25)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective | Constrained, guess: PyTree, *, key: Array | None) -> TrustRegionState:
        point = BoundedProgram.start(guess)
        program = BoundedProgram.of(problem, point, "TrustRegion")
        x = program.project(ravel_pytree(point)[0])
        value, gradient = program.value_and_gradient(x)
        radius = jnp.maximum(1, norm(x)) if self.radius is None else self.radius
        residual, no = program.residual(x, gradient), jnp.array(False)
        counters = Counters.zero().add(values=1, gradients=1)
        radius = jnp.asarray(radius, x.dtype)
        return TrustRegionState(program.unflatten(x), value, gradient, radius, residual, no, no, counters)

    def step(self, problem: Objective | Constrained, state: TrustRegionState, *, key: Array | None) -> TrustRegionState:
        program = BoundedProgram.of(problem, state.x, "TrustRegion")
        moving, _ = ravel_pytree(state.x)
        still, (x, value, g) = constant(program), constant((moving, state.value, state.gradient))
        radius, residual = constant((state.radius, state.residual))
        subproblem, hessian, formed = self._subproblem(still, x, g, radius)
        eps = jnp.finfo(x.dtype).eps
        noise = 10 * eps * jnp.abs(value)

        def trial(carry):
            radius, *_, trials, products, _, _ = carry
            s, predicted, proven, spent = subproblem(radius)
            new = still.snap(x + s)
            new_value, new_g = still.value_and_gradient(new)
            new_residual = still.residual(new, new_g)
            gain = value - new_value
            # Where rounding hides the gain in the values, it is that of the mean gradient; where it hides that too, the residual tells.
            # A sum of terms that cancel is rounded by more than its own size says.
            same = jnp.abs(gain) <= jnp.sqrt(eps) * jnp.abs(value)
            dull, flat = (predicted <= 100 * noise) & same, (predicted <= noise) & same
            gain = jnp.where(dull, -((g + new_g) @ s) / 2, gain)
            ratio = jnp.where(flat, jnp.where(new_residual < residual, 1.0, -1.0), gain / predicted)
            fell = new_value < bottom(value.dtype)  # even to -inf, where no derivative is finite
            finite = jnp.isfinite(new_value) & jnp.all(jnp.isfinite(new_g))
            accepted = ((ratio > self.acceptance) & finite & (predicted > 0)) | fell
            size = norm(s)
            # The minimiser of the parabola through value, slope and new value says how much shorter.
            slope = g @ s
            parabola = -slope / (2 * (new_value - value - slope))
            parabola = jnp.where(jnp.isfinite(parabola) & finite, parabola, 0.25)
            shorter = jnp.clip(parabola, 0.1, 0.5) * jnp.minimum(size, radius)
            longer = jnp.maximum(radius, jnp.where(jnp.abs(ratio - 1) < 0.1, 4.0, 2.0) * size)
            good = accepted & (ratio > 0.75) & (size >= 0.8 * radius)
            new_radius = jnp.where(~accepted | (ratio < 0.25), shorter, jnp.where(good, longer, radius))
            hopeless = ~accepted & (size <= eps * norm(x)) | (size == 0)
            trials, products = trials + 1, products + spent
            return new_radius.astype(x.dtype), new, new_value, new_g, proven, trials, products, accepted, hopeless

        searching = lambda carry: ~carry[7] & ~carry[8] & (carry[5] < self.max_trials)
        no, none = jnp.array(False), jnp.int32(0)
        carry = jax.lax.while_loop(searching, trial, (radius, x, value, g, no, none, none, no, no))
        new_radius, new, new_value, new_g, proven, trials, products, accepted, _ = carry
        new, new_value, new_g = select(accepted, (new, new_value, new_g), (x, value, g))
        held = still.held(new, new_g) if still.bounded else jnp.zeros_like(x, bool)
        new = evaluated(_newton_step, (program, moving, state.gradient, (still, x, hessian, held, accepted)), new)
        new_value, new_g = evaluated(_value_and_gradient, (program, new), (new_value, new_g))
        counters = state.counters.add(values=trials, gradients=trials, hessian_products=products, linear_solves=trials)
        counters = counters.add(jacobians=1 if formed else 0)
        return TrustRegionState(
            program.unflatten(new), new_value, new_g, new_radius, program.residual(new, new_g), proven, ~accepted, counters
        )

    def _subproblem(self, program: BoundedProgram, x: Array, g: Array, radius: Array):
        """A function of the radius that returns a step, the decrease of the model, whether no negative curvature was found, and the
        products spent; the Hessian if it is formed, else nothing; and whether it is."""
        formed = x.size <= self.dense_below
        if formed:
            hessian = jax.jacfwd(program.gradient)(x)
            hessian = (hessian + hessian.T) / 2
            usable = jnp.all(jnp.isfinite(hessian))  # where there are no second derivatives, a step down the gradient
            plain = jnp.eye(x.size, dtype=x.dtype) * jnp.maximum(norm(g) / radius, 1e-8)
            hessian = jnp.where(usable, hessian, plain)
            product = lambda v: hessian @ v
        else:
            hessian = jnp.zeros((0,), x.dtype)
            _, product = jax.linearize(program.gradient, x)
        none = jnp.int32(0)

        def solve(residual, free, radius):
            if formed:
                return *minimise_in_ball(factorise(hessian, residual, free, radius), radius), none
            return steihaug(product, residual, free, radius, min(self.max_products, x.size))

        def decrease(s):
            return -(g @ s + (s @ product(s)) / 2)

        if program.bounded:

            def on_faces(radius):
                s, positive, products = minimise_on_faces(program, x, g, product, solve, radius)
                return s, decrease(s), positive, none if formed else products + 1

            return on_faces, hessian, formed
        if formed:
            factors = factorise(hessian, g, jnp.ones_like(x), radius)

            def in_ball(radius):
                s, positive = minimise_in_ball(factors, radius)
                return s, decrease(s), positive, none

            return in_ball, hessian, formed

        def by_products(radius):
            s, positive, products = solve(g, jnp.ones_like(x), radius)
            return s, decrease(s), positive, products + 1

        return by_products, hessian, formed

    def done(self, problem: Objective | Constrained, state: TrustRegionState):
        return status((state.residual <= self.tolerance) & state.proven, state.value, state.stuck)

    def answer(self, problem: Objective | Constrained, state: TrustRegionState) -> PyTree:
        program = BoundedProgram.of(problem, state.x, "TrustRegion")
        return program.answer(ravel_pytree(state.x)[0], state.gradient)

    def metrics(self, problem: Objective | Constrained, state: TrustRegionState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}


def _newton_step(program: BoundedProgram, x: Array, g: Array, step: tuple) -> Array:
    """x - Z (Z'HZ)^{-1} Z'g, and the bounds where they hold: what is differentiated in place of the step."""
    still, at, hessian, held, accepted = step
    free = jnp.where(held, 0, 1).astype(x.dtype)
    if hessian.ndim == 2:
        both = (free[:, None] > 0) & (free > 0)
        moved = solve(jnp.where(both, hessian, jnp.eye(x.size, dtype=x.dtype)), g * free)
    else:
        product = lambda v: free * jax.jvp(still.gradient, (at,), (free * v,))[1] + (1 - free) * v
        moved, _ = jax.scipy.sparse.linalg.cg(product, g * free)
    new = x - jnp.where(accepted & jnp.isfinite(moved), moved, 0)
    if program.lower is None or program.upper is None:
        return new
    return jnp.where(held, jnp.where(g > 0, program.lower, program.upper), new)


def _value_and_gradient(program, x):
    return program.value_and_gradient(x)
