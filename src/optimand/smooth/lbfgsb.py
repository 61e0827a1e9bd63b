r"""L-BFGS-B: limited-memory BFGS under bounds.

With the last m pairs \(s_i, y_i\) the model \(m(x) = g^\top (x - x_k) + \tfrac12 (x - x_k)^\top B (x - x_k)\) has the Hessian

$$B = \theta I - W M W^\top, \quad W = [Y\;\; \theta S], \quad
  M^{-1} = \begin{bmatrix} -D & L^\top \\ L & \theta S^\top S \end{bmatrix}, \quad \theta = \frac{y_m^\top y_m}{s_m^\top y_m},$$

where D is the diagonal and L the strictly lower triangle of \(S^\top Y\) (Byrd, Lu, Nocedal and Zhu 1995, eq. 3.2-3.4). A step is

1. the generalised Cauchy point: a minimiser of m along \(P(x_k - t g)\) (section 4);
2. the minimiser of m over the entries that are free there (section 5.1, by the Sherman-Morrison-Woodbury formula), projected on the
   box (Morales and Nocedal 2011), or shortened until it is in the box if the projection does not descend;
3. a line search for the strong Wolfe conditions towards it, no further than the bounds allow.

The published search for the Cauchy point visits the breakpoints of the path one after the other, up to the first minimiser. Here
the derivative of m is evaluated at any t of the path in one pass over the pairs, and a zero of it is found by Newton's method on this
piecewise linear function, kept in a bracket: a handful of passes for a path with a million breakpoints. It is exact where no breakpoint
lies between the last evaluation and the zero of its piece, and else ends where the slope has become small. That may be a later
minimiser than the first, with at least a hundredth of the decrease that the gradient predicts: enough for what the Cauchy point is
there for (Conn, Gould and Toint 1988).
"""

from typing import Any, ClassVar, NamedTuple

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
from .arguments import need_count, need_not_negative
from .bounded import BoundedProgram
from .ending import status
from .line_search import constant, evaluated, need_line_search
from .strong_wolfe import StrongWolfe
from .vectors import norm

__all__ = ["LBFGSB"]


class LBFGSBState(eqx.Module):
    """`pairs` are all s, then all y, in rings, each scaled to s'y = 1; `ss`, `sy`, `yy` their products, `pairs_kept` how many there are, and the next one goes
    to number `slot`."""

    x: PyTree
    value: Array
    gradient: Float[Array, " n"]
    pairs: Float[Array, "twice_memory n"]
    ss: Float[Array, "memory memory"]
    sy: Float[Array, "memory memory"]
    yy: Float[Array, "memory memory"]
    theta: Array
    slot: Array
    pairs_kept: Array
    residual: Array
    stuck: Array
    counters: Counters


class _Products(NamedTuple):
    """S'S, S'Y and Y'Y, of all entries or of those that are free."""

    ss: Array
    sy: Array
    yy: Array


class _Model(NamedTuple):
    """B, for W = [Y, theta S]. `middle` is M; it and the products are zero at the places where no pair is `there`. `newer[i, j]`: pair i is newer than j."""

    pairs: Array
    theta: Array
    products: _Products
    there: Array
    newer: Array
    middle: Array

    @staticmethod
    def of(pairs: Array, theta: Array, products: _Products, age: Array, kept: Array) -> "_Model":
        """That of the pairs kept, the newest of which has age zero; whatever stands in the other places has no weight."""
        there = age < kept
        both = there[:, None] & there
        products = _Products(*(jnp.where(both, part, 0) for part in products))
        model = _Model(pairs, theta, products, there, both & (age[:, None] < age[None, :]), pairs[:0])
        weight = model.weight
        return model._replace(middle=_balanced(model.core(), jnp.eye(weight.size, dtype=weight.dtype)) * (weight[:, None] * weight))

    def core(self, free: _Products | None = None) -> Array:
        """M^{-1} - W'ZZ'W / theta, or M^{-1} where no entry is free.

        Block by block from the products: where all entries are free L - S'Y is exactly triangular and the last block exactly zero, as in the
        formula for the inverse of B. Formed from M, both would be what rounding left of numbers that may be larger by all the figures there are.
        """
        none = jnp.zeros_like(self.products.ss)
        ss, sy, yy = (none, none, none) if free is None else free
        alone = jnp.where(self.there, 0, 1).astype(none.dtype)
        diagonal = jnp.where(self.there, jnp.diagonal(self.products.sy), 1)
        corner = jnp.where(self.newer, self.products.sy, 0) - sy
        return _blocks(-jnp.diag(diagonal) - yy / self.theta, corner.T, corner, self.theta * (self.products.ss - ss) + jnp.diag(alone))

    @property
    def weight(self) -> Array:
        """One for each entry of w that belongs to a pair."""
        return jnp.concatenate([self.there, self.there]).astype(self.theta.dtype)

    def onto(self, vector: Array) -> Array:
        """W' v."""
        memory = self.pairs.shape[0] // 2
        products = self.pairs @ vector
        return jnp.concatenate([products[memory:], self.theta * products[:memory]])

    def back(self, weights: Array) -> Array:
        """W w."""
        memory = self.pairs.shape[0] // 2
        return jnp.concatenate([self.theta * weights[memory:], weights[:memory]]) @ self.pairs

    def products_of(self, free: Array) -> _Products:
        """The products of what is free."""
        memory = self.pairs.shape[0] // 2
        products = _gram(self.pairs, free)
        both = self.there[:, None] & self.there
        parts = products[:memory, :memory], products[:memory, memory:], products[memory:, memory:]
        return _Products(*(jnp.where(both, part, 0) for part in parts))

    def times_gram(self, free: _Products, weights: Array) -> Array:
        """W' Z Z' W w."""
        (first, second), theta = jnp.split(weights, 2), self.theta
        return jnp.concatenate([free.yy @ first + theta * free.sy.T @ second, theta * (free.sy @ first + theta * free.ss @ second)])

    def woodbury(self, free: _Products, onto: Array) -> Array:
        """w with (Z'BZ)^{-1} r = r / theta + Z'W w, for W'Z r given: eq. 5.11, without M."""
        return self.weight * _balanced(self.core(free), self.weight * onto) / self.theta**2


class LBFGSB(Method):
    """L-BFGS-B: quasi-Newton under bounds, for up to millions of unknowns at a cost of O(memory * unknowns) a step.

    The first choice for a smooth objective with bounds and many unknowns; with few, `TrustRegion`. Without bounds it is L-BFGS with a
    strong Wolfe search. The answer to a `Constrained` problem is a `PrimalDual` with the multipliers of its bounds.

    **Arguments:**

    - `memory`: pairs to remember.
    - `line_search`: a `LineSearch` that keeps to its `most`; by default `StrongWolfe()`. If it finds nothing the memory is dropped, and
      if that does not help the solve ends as `stopped`: it can get no nearer at this precision.
    - `tolerance`: converged when no entry of the projected gradient, and no multiplier times slack, is larger than this.

    An objective that falls without bound ends the solve as `diverged`. A guess outside the bounds is moved to them. Unrolled, the
    derivative of a step holds the model constant, and is right in the limit.

    Raises `ArgumentError`, naming the argument, for a number out of its range, a problem with equalities or inequalities, and one with
    random batches.

    ```python
    problem = om.Constrained(lambda x: jnp.sum((x - jnp.arange(4.0)) ** 2), bounds=(0.5, 2.0))
    om.solve(problem, om.smooth.LBFGSB(), jnp.ones(4)).value.upper
    ```
    """

    problem = (Objective, Constrained)
    reference: ClassVar[str] = "byrd1995limited"

    memory: int = eqx.field(static=True, default=10)
    line_search: Any = None
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_count("memory", self.memory)
        need_line_search(self.line_search)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective | Constrained, guess: PyTree, *, key: Array | None) -> LBFGSBState:
        point = BoundedProgram.start(guess)
        program = BoundedProgram.of(problem, point, "LBFGSB")
        x = program.project(ravel_pytree(point)[0])
        value, gradient = program.value_and_gradient(x)
        square = jnp.zeros((self.memory, self.memory), x.dtype)
        pairs = jnp.zeros((2 * self.memory, x.size), x.dtype)
        none = jnp.int32(0)
        return LBFGSBState(
            program.unflatten(x), value, gradient, pairs, square, square, square, jnp.ones((), x.dtype), none, none,
            program.residual(x, gradient), jnp.array(False), Counters.zero().add(values=1, gradients=1),
        )  # fmt: skip

    def step(self, problem: Objective | Constrained, state: LBFGSBState, *, key: Array | None) -> LBFGSBState:
        program = BoundedProgram.of(problem, state.x, "LBFGSB")
        moving, _ = ravel_pytree(state.x)
        still, (x, value, g) = constant(program), constant((moving, state.value, state.gradient))
        pairs, ss, sy, yy, theta = constant((state.pairs, state.ss, state.sy, state.yy, state.theta))
        age = (state.slot - 1 - jnp.arange(self.memory)) % self.memory
        model = _Model.of(pairs, theta, _Products(ss, sy, yy), age, state.pairs_kept)
        if program.bounded:
            target, free, products = _minimise_model(still, x, g, model)
        else:
            free, products = jnp.ones_like(x), model.products
            target = x - g / theta - model.back(model.woodbury(products, model.onto(g)))
        direction = target - x
        slope = g @ direction
        line = StrongWolfe() if self.line_search is None else self.line_search
        # Without pairs a step has length one at most, unless one without curvature has made theta smaller.
        first = jnp.where((state.pairs_kept == 0) & (theta >= 1), jnp.minimum(1, 1 / norm(direction)), 1)
        most = jnp.min(program.room(x, direction)) if program.bounded else None
        found = line.search(still, x, value, slope.astype(value.dtype), direction, first, most=most)

        new = still.snap(jnp.where(found.length == 1, target, found.x))
        keep = lambda new, old: jnp.where(found.accepted, new, old)
        new, new_value, new_g = keep(new, x), keep(found.value, value), keep(found.gradient, g)
        s, y = new - x, new_g - g
        curvature, yy_new = s @ y, y @ y
        useful = found.accepted & (curvature > jnp.finfo(x.dtype).eps * yy_new)
        # B does not change when a pair is scaled: with s'y = 1 the matrices of products stay of one order of magnitude.
        unit = jnp.where(useful, 1 / jnp.sqrt(jnp.where(useful, curvature, 1)), 1).astype(x.dtype)
        s, y = unit * s, unit * y

        slot, memory = state.slot, self.memory
        take = lambda rows, at: jax.lax.dynamic_index_in_dim(rows, at, 0, keepdims=False)
        put = lambda rows, row, at: jax.lax.dynamic_update_index_in_dim(rows, row, at, 0)
        pairs = put(pairs, jnp.where(useful, s, take(pairs, slot)), slot)
        pairs = put(pairs, jnp.where(useful, y, take(pairs, memory + slot)), memory + slot)
        with_s, with_y = pairs @ s, pairs @ y
        new_place = jnp.arange(memory) == slot
        rows = lambda old, row, column: jnp.where(new_place[:, None], row, jnp.where(new_place, column[:, None], old))
        renew = lambda old, row, column: jnp.where(useful, rows(old, row, column), old)
        dropped = ~found.accepted  # begin again with the gradient
        kept = jnp.where(dropped, 0, jnp.minimum(state.pairs_kept + useful, memory)).astype(jnp.int32)
        straight = found.accepted & (jnp.sqrt(yy_new) <= jnp.finfo(x.dtype).eps * norm(new_g))  # a pair that only asks for longer steps
        longer = jnp.minimum(theta, norm(new_g) / jnp.maximum(norm(s), jnp.finfo(x.dtype).tiny)) / 10
        theta_new = jnp.where(useful, yy_new / jnp.where(useful, curvature, 1), jnp.where(straight, longer, theta))

        # What follows from x and the gradient by differentiation: with the model held constant.
        step = (model, free, products, still.held(new, new_g) if program.bounded else None, found.accepted)
        new = evaluated(_model_step, (program, moving, state.gradient, step), new)
        new_value, new_g = evaluated(_value_and_gradient, (program, new), (new_value, new_g))
        return LBFGSBState(
            program.unflatten(new), new_value, new_g, pairs,
            renew(ss, with_s[:memory], with_s[:memory]),
            renew(sy, with_s[memory:], with_y[:memory]),
            renew(yy, with_y[memory:], with_y[memory:]),
            jnp.where(dropped, 1, theta_new).astype(theta.dtype),
            jnp.where(useful, (slot + 1) % memory, slot).astype(jnp.int32), kept,
            program.residual(new, new_g), dropped & (state.pairs_kept == 0),
            state.counters.add(values=found.trials, gradients=found.trials),
        )  # fmt: skip

    def done(self, problem: Objective | Constrained, state: LBFGSBState):
        return status(state.residual <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective | Constrained, state: LBFGSBState) -> PyTree:
        program = BoundedProgram.of(problem, state.x, "LBFGSB")
        return program.answer(ravel_pytree(state.x)[0], state.gradient)

    def metrics(self, problem: Objective | Constrained, state: LBFGSBState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}


def _minimise_model(program: BoundedProgram, x: Array, g: Array, model: _Model) -> tuple[Array, Array, _Products]:
    """The projected minimiser of the model over the face of the Cauchy point; what was free, and the products of that."""
    breaks = program.room(x, -g)
    t, onto_d, onto_z = _cauchy(breaks, g, model)
    cauchy = program.snap(x - jnp.minimum(t, breaks) * g)  # t = 0 moves nothing, even where g is not finite
    free = jnp.where(breaks > t, 1, 0).astype(x.dtype)
    products = jax.lax.cond(jnp.all(breaks > t), lambda: model.products, lambda: model.products_of(free))
    # With r = -Z'(g + theta z - W M W'z) and z = -t g on the face, W'Z r needs no further pass: W'd = -W'Zg.
    weights = model.middle @ onto_z
    onto_r = (1 - model.theta * t) * onto_d + model.times_gram(products, weights)
    inner = weights / model.theta + model.woodbury(products, onto_r)
    d = free * ((t - 1 / model.theta) * g + model.back(inner))

    projected = program.project(cauchy + d)
    inside = jnp.min(jnp.where(free > 0, program.room(cauchy, d), jnp.inf), initial=jnp.inf)
    truncated = program.project(cauchy + jnp.minimum(1, inside) * d)
    move = projected - x
    descends = g @ move < -1e-12 * norm(g) * norm(move)
    target = jnp.where(descends, projected, truncated)
    target = jnp.where(jnp.all(jnp.isfinite(target)) & (g @ (target - x) < 0), target, cauchy)
    return target, free, products


_PASSES = 20


class _Path(NamedTuple):
    """Where the search on the path is: the trial `t`, its bracket, and what the last trial found."""

    t: Array
    low: Array
    high: Array
    found: Array
    onto_d: Array
    onto_z: Array
    passes: Array
    exact: Array


def _cauchy(breaks: Array, g: Array, model: _Model) -> tuple[Array, Array, Array]:
    """t of the generalised Cauchy point, with W'd for the direction of the path there and W'z for the way to it."""
    start_slope = -jnp.sum(jnp.where(breaks > 0, g * g, 0))

    def look(t):
        """Slope, curvature and value of the model on the piece of the path that begins at or before t, and where that ends."""
        d = jnp.where(breaks > t, -g, 0)
        z = -jnp.where(g == 0, 0, g) * jnp.minimum(t, breaks)
        onto_d = model.onto(d)
        onto_z = jax.lax.cond(t > 0, model.onto, lambda _: jnp.zeros_like(onto_d), z)
        bent = model.middle @ onto_z
        dd = d @ d
        slope = -dd + model.theta * (d @ z) - onto_d @ bent
        curvature = model.theta * dd - onto_d @ (model.middle @ onto_d)
        linear = g @ z
        value = linear + (model.theta * (z @ z) - onto_z @ bent) / 2
        begins = jnp.max(jnp.where(breaks <= t, breaks, 0), initial=0)
        ends = jnp.min(jnp.where(breaks > t, breaks, jnp.inf), initial=jnp.inf)
        return slope, curvature, linear, value, onto_d, onto_z, begins, ends

    def advance(path: _Path) -> _Path:
        t, low, high, *_, passes, _ = path
        slope, curvature, linear, value, onto_d, onto_z, begins, ends = look(t)
        newton = t - slope / jnp.maximum(curvature, jnp.finfo(g.dtype).tiny)
        descends = (slope < 0) & ((t == 0) | (value <= 1e-2 * linear))
        low, high = jnp.where(descends, t, low), jnp.where(descends, high, t)
        exact = (newton >= begins) & (newton <= ends) & (newton >= low) & (newton <= high)
        flat = descends & (t > 0) & (slope >= 0.02 * start_slope)
        inside = (newton > low) & (newton < high)
        middle = jnp.where(jnp.isfinite(high), (low + high) / 2, 2 * jnp.maximum(t, jnp.where(jnp.isfinite(ends), ends, t)))
        following = jnp.where(inside, newton, middle)
        found = jnp.where(exact, newton, t)
        onto_z = jnp.where(exact, onto_z + (newton - t) * onto_d, onto_z)
        return _Path(following, low, high, found, onto_d, onto_z, passes + 1, exact | flat)

    zero, none = jnp.zeros((), g.dtype), jnp.zeros((model.pairs.shape[0],), g.dtype)
    begin = _Path(zero, zero, zero + jnp.inf, zero, none, none, jnp.int32(0), jnp.array(False))
    end = jax.lax.while_loop(lambda path: ~path.exact & (path.passes < _PASSES), advance, begin)
    return end.found, end.onto_d, end.onto_z


def _model_step(program: BoundedProgram, x: Array, g: Array, step: tuple) -> Array:
    """x - Z (Z'BZ)^{-1} Z'g, and the bounds where they hold: what is differentiated in place of the step."""
    model, free, products, held, accepted = step
    moved = g * free
    moved = free * (moved / model.theta + model.back(model.woodbury(products, model.onto(moved))))
    new = x - jnp.where(accepted, moved, 0)
    if program.lower is None or program.upper is None:
        return new
    return jnp.where(held, jnp.where(g > 0, program.lower, program.upper), new)


_LONG, _BLOCK = 50_000, 4096  # unknowns from which on the pairs do not fit into a cache, and so many that a part of them does


def _gram(rows: Array, weights: Array) -> Array:
    """The products of the rows with one another, sum_i w_i r_i s_i."""
    at_once = lambda rows, weights: (rows * weights) @ rows.T

    def in_blocks(rows, weights):
        def add(i, total):
            cut = lambda array: jax.lax.dynamic_slice_in_dim(array, i * _BLOCK, _BLOCK, -1)
            return total + at_once(cut(rows), cut(weights))

        whole = rows.shape[1] // _BLOCK
        rest = at_once(rows[:, whole * _BLOCK :], weights[whole * _BLOCK :])
        return jax.lax.fori_loop(0, whole, add, rest)

    if rows.shape[1] < _LONG:
        return at_once(rows, weights)
    return jax.lax.platform_dependent(rows, weights, cpu=in_blocks, default=at_once)


def _balanced(matrix: Array, rhs: Array) -> Array:
    """Solve a small symmetric system whose rows may differ by many orders of magnitude: balanced first (Ruiz 2001)."""
    scale = jnp.ones_like(matrix[0])
    for _ in range(3):
        largest = jnp.max(jnp.abs(matrix) * scale[:, None] * scale, axis=1)
        scale = scale / jnp.sqrt(jnp.where(largest > 0, largest, 1))
    down = scale if rhs.ndim == 1 else scale[:, None]
    return down * solve(matrix * scale[:, None] * scale, down * rhs)


def _blocks(a: Array, b: Array, c: Array, d: Array) -> Array:
    return jnp.concatenate([jnp.concatenate([a, b], 1), jnp.concatenate([c, d], 1)])


def _value_and_gradient(program, x):
    return program.value_and_gradient(x)
