r"""Sketch and project: a linear system solved through random combinations of its rows.

$$x \leftarrow x - A^\top S\, (S^\top A A^\top S)^{+}\, S^\top (A x - b) ,$$

the projection of x on the solutions of \(S^\top A x = S^\top b\) (Gower and Richtárik 2015, with the Euclidean norm). S is a
Gaussian vector, a Gaussian block of p columns, or a unit vector, which is Kaczmarz' method with random rows. The error of a
consistent system contracts in expectation: with one vector by about \(1 - \sigma_{\min}^2(A) / \lVert A \rVert_F^2\).

Vectors are drawn, and multiplied with A and its transpose, a hundred at a time; then a projection costs a few operations on
vectors. \(A A^\top\) is never formed.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Linear
from .arguments import need_count, need_not_negative
from .line_search import constant, evaluated
from .vectors import size

__all__ = ["SKETCHES", "Rows", "SketchProject", "draw", "project"]

SKETCHES = ("gaussian_vector", "kaczmarz", "gaussian_block")


class Rows(NamedTuple):
    """A matrix through products: `combine(S)` = S A and `apply(V)` = V A', for vectors in the rows of S and of V.

    `scale` divides the rows: the system is that of A / scale, and its residual times `scale` is the one that is measured.
    """

    combine: Callable
    apply: Callable
    scale: Array

    @staticmethod
    def dense(matrix: Float[Array, "n n"], equilibrate: bool) -> "Rows":
        """Of a matrix; its rows are divided by their lengths, if `equilibrate`."""
        lengths = jnp.linalg.norm(matrix, axis=1)
        scale = jnp.where(lengths > 0, lengths, 1) if equilibrate else jnp.ones_like(lengths)
        return Rows(lambda s: (s / scale) @ matrix, lambda v: (v @ matrix.T) / scale, scale)

    @staticmethod
    def products(product: Callable, transposed: Callable, like: Array, key: Array, equilibrate: bool) -> "Rows":
        """Of functions that multiply one vector; the lengths of rows are estimated from 50 Gaussian probes."""
        many, many_transposed = jax.vmap(product), jax.vmap(transposed)
        scale = jnp.ones_like(like)
        if equilibrate:
            probes = jax.random.normal(key, (_PROBES, like.size), like.dtype)
            lengths = jnp.sqrt(jnp.mean(many(probes) ** 2, axis=0))
            scale = jnp.where(lengths > 0, lengths, 1)
        return Rows(lambda s: many_transposed(s / scale), lambda v: many(v) / scale, scale)


FOR_PROBES = 2**32 - 1  # what is folded into a key for them: no number of sketches comes so far
_PROBES = 50
_AT_ONCE = 100  # sketches that are drawn together; the residual is computed anew after as many
_NUMBERS = 2_000_000  # most numbers in them


def draw(key: Array, count: int, length: int, sketch: str, dtype: Any) -> Float[Array, "count length"]:
    """`count` sketching vectors: Gaussian ones, or for "kaczmarz" unit vectors of random rows."""
    if sketch == "kaczmarz":
        return jax.nn.one_hot(jax.random.randint(key, (count,), 0, length), length, dtype=dtype)
    single = jax.random.normal(key, (count, length), jnp.float32)  # drawn, and compiled, in half the time
    return single.astype(dtype)


def project(
    rows: Rows,
    rhs: Float[Array, " n"],
    x: Float[Array, " n"],
    key: Array,
    *,
    tolerance: Any,
    most: Any,
    sketch: str,
    block: int,
    spent: Any = 0,
) -> tuple[Array, Array, Array]:
    """Project x until |A x - b| <= `tolerance`, or `spent` has grown to `most`.

    **Arguments:** `key` and `spent` fix the sketches: a call that goes on where another stopped draws others.

    **Returns:** x, A x - b, and the number of sketches, those spent before included.
    """
    length = rhs.size
    scaled = rhs / rows.scale
    residual_of = lambda x: rows.apply(x[None])[0] - scaled
    size_of = lambda r: jnp.linalg.norm(r * rows.scale)
    going = lambda carry: (size_of(carry[1]) > tolerance) & (carry[2] < most)
    block = min(block, length)
    at_once = min(_AT_ONCE, max(1, _NUMBERS // length))

    def by_block(carry):
        x, r, count = carry
        s = draw(jax.random.fold_in(key, count), block, length, sketch, rhs.dtype)
        q, triangle = jnp.linalg.qr(rows.combine(s).T)
        x = x - q @ jax.scipy.linalg.solve_triangular(triangle, s @ r, trans=1)
        return x, residual_of(x), count + 1

    def by_vectors(carry):
        x, r, count = carry
        s = draw(jax.random.fold_in(key, count), at_once, length, sketch, rhs.dtype)
        combined = rows.combine(s)
        images = rows.apply(combined)
        squares = jnp.sum(combined**2, axis=1)
        inverse = jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1), 0)

        def one(carry):
            x, r, i = carry
            factor = (s[i] @ r) * inverse[i]
            return x - factor * combined[i], r - factor * images[i], i + 1

        more = lambda carry: (carry[2] < at_once) & going((carry[0], carry[1], count + carry[2]))
        x, _, taken = jax.lax.while_loop(more, one, (x, r, jnp.int32(0)))
        return x, residual_of(x), count + taken

    start = (x, residual_of(x), jnp.asarray(spent, jnp.int32))
    x, r, count = jax.lax.while_loop(going, by_block if sketch == "gaussian_block" else by_vectors, start)
    return x, r * rows.scale, count


class SketchProjectState(eqx.Module):
    """`residual` is |b - A x|."""

    x: PyTree
    residual: Array
    counters: Counters


class SketchProject(Method):
    """Solve `Linear` by random projections on combinations of its rows.

    It needs one row, or one combination of rows, at a time, and no property of the matrix but that the system has a solution.
    On a well-conditioned system of many rows that is cheap; `LinearSolve` with a Krylov solver needs far fewer operations on an
    ill-conditioned one.

    **Arguments:**

    - `sketch`: "gaussian_vector", "kaczmarz" (random rows) or "gaussian_block" (of `block` columns).
    - `sketches`: how many a step takes; counted as `linear_iterations`.
    - `equilibrate`: divide each row by its length first.
    - `dense_below`: up to so many unknowns the matrix is formed; above it products with it and with its transpose are used.
    - `tolerance`: converged when |b - A x| is at most this times |b|.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    import lineax as lx

    system = om.Linear(lx.MatrixLinearOperator(jnp.array([[2.0, 1.0], [0.0, 1.0]])), jnp.array([3.0, 1.0]))
    om.solve(system, om.smooth.SketchProject("gaussian_block", tolerance=1e-4), key=jax.random.key(0)).value    # (1, 1)
    ```
    """

    problem = Linear
    reference: ClassVar[str] = "gower2015randomized"
    stochastic: ClassVar[bool] = True

    sketch: str = eqx.field(static=True, default="gaussian_vector")
    block: int = eqx.field(static=True, default=10)
    sketches: int = eqx.field(static=True, default=100)
    equilibrate: bool = eqx.field(static=True, default=False)
    dense_below: int = eqx.field(static=True, default=2000)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_sketch(self.sketch, SKETCHES)
        need_count("block", self.block)
        need_count("sketches", self.sketches)
        need_count("dense_below", self.dense_below, least=0)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Linear, guess: PyTree, *, key: Array | None) -> SketchProjectState:
        residual = jnp.linalg.norm(ravel_pytree(problem.optimality(guess))[0])
        return SketchProjectState(guess, residual, Counters.zero().add(residuals=1))

    def step(self, problem: Linear, state: SketchProjectState, *, key: Array) -> SketchProjectState:
        x, unravel = ravel_pytree(state.x)
        rhs, unravel_rhs = ravel_pytree(constant(problem.rhs))
        x, operator = constant((x, problem.operator))
        if size(state.x) <= self.dense_below:
            rows = Rows.dense(operator.as_matrix().astype(x.dtype), self.equilibrate)
        else:
            product = lambda v: ravel_pytree(operator.mv(unravel(v)))[0]
            transposed = lambda v: ravel_pytree(operator.transpose().mv(unravel_rhs(v)))[0]
            rows = Rows.products(product, transposed, x, jax.random.fold_in(key, FOR_PROBES), self.equilibrate)
        x, r, count = project(
            rows, rhs, x, key, tolerance=self.tolerance * jnp.linalg.norm(rhs), most=self.sketches,
            sketch=self.sketch, block=self.block,
        )  # fmt: skip
        x = evaluated(_solution, (problem.operator, problem.rhs), x)
        return SketchProjectState(unravel(x), jnp.linalg.norm(r), state.counters.add(residuals=1, linear_iterations=count))

    def done(self, problem: Linear, state: SketchProjectState):
        return state.residual <= self.tolerance * jnp.linalg.norm(ravel_pytree(problem.rhs)[0])

    def answer(self, problem: Linear, state: SketchProjectState) -> PyTree:
        return state.x

    def metrics(self, problem: Linear, state: SketchProjectState) -> dict[str, Any]:
        return {"residual": state.residual}


def _solution(operator: Any, rhs: PyTree) -> Array:
    """What the projections are differentiated as, when a solve is unrolled."""
    return jnp.linalg.solve(operator.as_matrix(), ravel_pytree(rhs)[0])


def need_sketch(sketch: Any, known: tuple[str, ...]) -> None:
    """A sketch is one of the known."""
    if sketch not in known:
        raise ArgumentError("sketch", f"must be one of {', '.join(known)}, not {sketch!r}.")
