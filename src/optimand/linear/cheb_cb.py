r"""ChebCB: the best value of a grid as a function of a context.

What each value i costs is taken as a polynomial of the context, \(1 + S\, \theta_i \cdot f(u)\), with Chebyshev polynomials f and the context moved
to u in [-1, 1]. A value is drawn by inverse gap weighting (SquareCB, Foster and Rakhlin 2020),

$$p_i = \frac{1}{d + \eta (\hat y_i - \hat y_{i^*})}, \quad i \ne i^* = \arg\min_i \hat y_i, \qquad \hat y = \theta f(u), \qquad p_{i^*} = 1 - \sum_{i \ne i^*} p_i,$$

and after its cost the polynomials are fitted again, by least squares with the bounds that functions have whose values and slopes are
those of the costs so far:

$$|\theta_{i0}| \le \frac1N, \quad |\theta_{ij}| \le \frac{2 \Delta}{S j}, \quad S = K N, \quad N = 2 + \frac{4 \Delta}{K} (1 + \log m),$$

K the largest cost, \(\Delta\) the largest less the smallest (Khodak, Chow, Balcan and Talwalkar 2024).

Of the fits of a value only the triangle of a QR factorisation is kept, of features and costs side by side: m + 1 rows, to which another
round is added by another factorisation. It says what the normal equations say, at the accuracy of the data themselves.
"""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..core.errors import ArgumentError
from .learners import ParameterLearner, as_bounds, as_context, as_cost, as_grid

__all__ = ["ChebCB", "bounded_least_squares"]


class ChebCBState(NamedTuple):
    """The fits, what they were made of, and the draw that waits for its cost."""

    theta: Float[Array, "values degree"]
    triangles: Float[Array, "values degree_plus_one degree_plus_one"]  # R of the QR factorisation of [features, costs - 1]
    scale: Float[Array, ""]  # S
    rate: Float[Array, ""]  # eta
    most: Float[Array, ""]  # K
    least: Float[Array, ""]
    squares: Float[Array, "3"]  # sums of predicted^2, predicted * cost, cost^2
    rounds: Int[Array, ""]
    chosen: Int[Array, ""]
    features: Float[Array, " degree"]
    predicted: Float[Array, ""]
    clipped: Int[Array, ""]
    refused: Int[Array, ""]


class ChebCB(ParameterLearner):
    """The best value of a grid for each context, by Chebyshev polynomials that are fitted to the costs.

    **Arguments:**

    - `grid`: the values.
    - `context_bounds`: the range of the context.
    - `degree`: Chebyshev polynomials, \\(T_0\\) to \\(T_{\\text{degree} - 1}\\).

    A round takes as long however many were before. The rate \\(\\eta\\) is that of the paper's program but for one thing: from the squared errors of the
    predictions so far the squared errors of all fits are taken, which makes it their regret; the program takes those of the last fit that
    met a bound.

    Raises `ArgumentError` for a grid that is not a vector of finite numbers, bounds that are not two finite numbers, the lower one first, and
    a degree below one.

    ```python
    learner = om.linear.ChebCB(jnp.linspace(1.0, 1.95, 20), context_bounds=(0.0, 1.0))
    state = learner.init()
    for key, context in zip(jax.random.split(jax.random.key(0), 5), jnp.linspace(0.0, 1.0, 5)):
        index, state = learner.choose(state, context, key)
        state = learner.learn(state, 10 + 100 * (learner.grid[index] - 1.3 - 0.5 * context) ** 2)
    ```
    """

    reference: ClassVar[str] = "khodak2024learning"

    grid: Float[Array, " values"] = eqx.field(converter=as_grid)
    context_bounds: tuple[float, float] = eqx.field(static=True, converter=as_bounds)
    degree: int = eqx.field(static=True, default=6)

    def __check_init__(self):
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ArgumentError("degree", f"must be a whole number above zero, not {self.degree!r}.")

    def init(self) -> ChebCBState:
        values, m, dtype = self.grid.size, self.degree, self.grid.dtype
        zero, none = jnp.zeros((), dtype), jnp.int32(0)
        return ChebCBState(
            theta=jnp.zeros((values, m), dtype), triangles=jnp.zeros((values, m + 1, m + 1), dtype),
            scale=zero, rate=zero, most=zero - jnp.inf, least=zero + jnp.inf, squares=jnp.zeros((3,), dtype),
            rounds=none, chosen=none, features=jnp.zeros((m,), dtype), predicted=zero, clipped=none, refused=none,
        )  # fmt: skip

    def features(self, context: Float[Array, ""]) -> Float[Array, " degree"]:
        """The Chebyshev polynomials at a context."""
        low, high = self.context_bounds
        u = 2 * (context - low) / (high - low) - 1
        polynomials = [jnp.ones_like(u), u]
        while len(polynomials) < self.degree:
            polynomials.append(2 * u * polynomials[-1] - polynomials[-2])
        return jnp.stack(polynomials[: self.degree])

    def probabilities(self, state: ChebCBState, features: Float[Array, " degree"]) -> Float[Array, " values"]:
        """Those of the next draw, at a context of these features."""
        predicted = state.theta @ features
        best = jnp.argmin(predicted)
        p = 1 / (self.grid.size + state.rate * (predicted - predicted[best]))
        return p.at[best].set(1 - (jnp.sum(p) - p[best]))

    def choose(self, state: ChebCBState, context: Any, key: PRNGKeyArray) -> tuple[Int[Array, ""], ChebCBState]:
        context, moved = as_context(context, self.context_bounds)
        features = self.features(context)
        index = jax.random.categorical(key, jnp.log(self.probabilities(state, features))).astype(jnp.int32)
        predicted = state.theta[index] @ features
        return index, state._replace(chosen=index, features=features, predicted=predicted, clipped=state.clipped + moved)

    def learn(self, state: ChebCBState, cost: Any) -> ChebCBState:
        cost, finite = as_cost(cost)
        m, values, chosen, rounds = self.degree, self.grid.size, state.chosen, state.rounds + 1
        row = jnp.append(state.features, cost - 1)
        triangles = state.triangles.at[chosen].set(_with_row(state.triangles[chosen], row))
        most, least = jnp.maximum(state.most, cost), jnp.minimum(state.least, cost)
        spread = most - least
        scale, bounds = _scale_and_bounds(most, spread, m)
        one = lambda: state.theta.at[chosen].set(_fit(triangles[chosen], scale, bounds))
        every = lambda: jax.vmap(lambda triangle: _fit(triangle, scale, bounds))(triangles)
        theta = jax.lax.cond(scale != state.scale, every, one)

        p, c = state.predicted, cost
        squares = state.squares + jnp.stack([p * p, p * c, c * c])
        regret = squares[0] - 2 * squares[1] / scale + squares[2] / scale**2 - jnp.sum(jax.vmap(_misfit, (0, 0, None))(triangles, theta, scale))
        alpha = (math.pi + 2 / math.pi * math.log(2 * m + 1)) * spread / (2 * scale * (m + 1))  # what polynomials leave
        below = jnp.maximum(regret, 0) + 2 * alpha**2 * rounds
        rate = 2 * rounds * jnp.sqrt(values * rounds / jnp.maximum(below, jnp.finfo(below.dtype).eps))
        new = state._replace(
            theta=theta, triangles=triangles, scale=scale, rate=rate, most=most, least=least, squares=squares, rounds=rounds
        )
        new = jtu.tree_map(lambda new, old: jnp.where(finite, new, old), new, state)
        return new._replace(refused=state.refused + (1 - finite.astype(jnp.int32)))


def _scale_and_bounds(most: Array, spread: Array, degree: int) -> tuple[Array, Array]:
    """S = K N, and the bounds of theta."""
    largest = jnp.where(most > 0, most, 1)  # K
    n = 2 + 4 * spread / largest * (1 + math.log(degree))
    scale = largest * n
    slopes = 2 * spread / scale / jnp.arange(1, degree, dtype=scale.dtype)
    return scale, jnp.concatenate([1 / n[None], slopes])


def _with_row(triangle: Array, row: Array) -> Array:
    """The triangle of the QR factorisation with one more row."""
    return jnp.linalg.qr(jnp.concatenate([triangle, row[None]]), mode="r")


def _fit(triangle: Array, scale: Array, bounds: Array) -> Array:
    """theta of least squares; zero where there was no round."""
    return bounded_least_squares(triangle[:-1, :-1], triangle[:-1, -1] / scale, bounds)


def _misfit(triangle: Array, theta: Array, scale: Array) -> Array:
    """The sum of squares that a fit leaves."""
    return jnp.sum((triangle[:, :-1] @ theta - triangle[:, -1] / scale) ** 2)


class _Search(NamedTuple):
    x: Array
    free: Array
    done: Array
    steps: Array


def bounded_least_squares(
    matrix: Float[Array, "rows n"], b: Float[Array, " rows"], bounds: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The x of least |matrix x - b| with |x_i| <= bounds_i; the shortest one where none is at a bound.

    For a few unknowns: an active set, from which the unknown with the largest multiplier is freed, and to which the first one
    that meets its bound is added (Stark and Parker 1995). Singular values below eps^(3/4) of the largest count as zero.
    """
    n = bounds.size
    cutoff = float(jnp.finfo(matrix.dtype).eps) ** 0.75
    largest = jnp.linalg.norm(matrix)

    def shortest(free: Bool[Array, " n"], b: Array) -> Array:
        u, s, vt = jnp.linalg.svd(jnp.where(free, matrix, 0), full_matrices=False)
        there = s > cutoff * largest
        return jnp.where(free, vt.T @ (jnp.where(there, 1 / jnp.where(there, s, 1), 0) * (u.T @ b)), 0)

    def step(at: _Search) -> _Search:
        fixed = jnp.where(at.free, 0, at.x)
        target = shortest(at.free, b - matrix @ fixed) + fixed
        move = target - at.x
        room = jnp.where(move > 0, bounds - at.x, bounds + at.x)
        fractions = jnp.where(at.free & (jnp.abs(target) > bounds), room / jnp.where(move == 0, 1, jnp.abs(move)), jnp.inf)
        blocking = jnp.argmin(fractions)
        blocked = fractions[blocking] < jnp.inf
        # Either up to the first bound, and that unknown stays there, ...
        partway = jnp.clip(at.x + jnp.clip(fractions[blocking], 0, 1) * move, -bounds, bounds)
        partway = partway.at[blocking].set(jnp.sign(target[blocking]) * bounds[blocking])
        # ... or to the least in the free unknowns, and one that would leave its bound inwards is freed.
        push = -jnp.sign(target) * (matrix.T @ (b - matrix @ target))
        push = jnp.where(at.free | (bounds == 0), -jnp.inf, push)
        leaving = jnp.argmax(push)
        done = push[leaving] <= 10 * jnp.finfo(matrix.dtype).eps * largest * jnp.linalg.norm(b)
        free = jnp.where(blocked, at.free.at[blocking].set(False), at.free.at[leaving].set(at.free[leaving] | ~done))
        return _Search(jnp.where(blocked, partway, target), free, ~blocked & done, at.steps + 1)

    start = shortest(jnp.ones((n,), bool), b)
    inside = jnp.all(jnp.abs(start) <= bounds)
    begin = _Search(jnp.clip(start, -bounds, bounds), jnp.abs(start) < bounds, inside, jnp.int32(0))
    return jax.lax.while_loop(lambda at: ~at.done & (at.steps < 20 * n), step, begin).x
