r"""The deep conjugate direction method: conjugate directions that a network proposes.

From x = 0, r = b, until the residual is small:

1. d = f(r / |r|)
2. for the last q directions p: d = d - (d' A p) / (p' A p) p
3. x = x + alpha d, r = r - alpha A d, with alpha = (r' d) / (d' A d)

(Kaneda, Akar, Chen, Kala, Hyde and Teran 2023, algorithm 1.) The network f proposes only; the step along d is the one that minimises the error in the norm of A, which
therefore never grows. With f linear, symmetric and positive definite, q = 1 makes these the preconditioned conjugate gradients, with f(r) = r the plain
ones; a network is neither, so that more directions help, and the method is flexible conjugate gradients (Notay 2000) with the network as the preconditioner.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .grid_cells import GridCells, flat_product
from .krylov import KrylovSolver, KrylovState, Piece, System

__all__ = ["DeepConjugateDirection"]


class _Memory(NamedTuple):
    """The cells of the grid; whether the matrix passed its test, and whether right-hand sides must fit it; the last directions with their images and curvatures; what is counted."""

    cells: GridCells
    sound: Bool[Array, ""]
    strict: Bool[Array, ""]
    directions: Float[Array, "q n"]
    images: Float[Array, "q n"]
    curvatures: Float[Array, " q"]
    step: Int[Array, ""]
    fallbacks: Int[Array, ""]
    nonfinite: Int[Array, ""]
    residuals: Float[Array, " history"]


class DeepConjugateDirection(KrylovSolver):
    """Conjugate directions that a network proposes, for symmetric and positive definite matrices on grids: few iterations, each of which evaluates the network.

    Any network will do as far as the answer is concerned: the residual is the true one, and where a proposal is not finite, has no curvature, is nearly orthogonal to the
    residual (a cosine below `least_cosine`), or gains less than the residual itself would, the residual takes its place for that step, as in conjugate gradients; at worst
    this is steepest descent. `stats` counts those steps as `fallbacks`, and those of them where the proposal was not finite as `nonfinite`. How many iterations it takes does depend on the network: one that was trained
    on like matrices, and whose levels span the grid, needs a small part of those of `CG`. An evaluation costs as much as some hundreds of products with a
    stencil, so that time is saved on devices on which convolutions are cheap, or where products are dear.

    **Arguments:**

    - `net`: a `ConjugateDirectionNet`, or what is called as one: `net(residual, mask)`, fields of the shape of the grid. The residual has unit length; the mask is 1 in
      fluid cells, 0 in air and -1 in solids.
    - `rtol`, `atol`, `max_steps` as for every `KrylovSolver`.
    - `q`: how many directions a new one is made conjugate to: a whole number or `"all"`, for which there must be memory for two times `max_steps` vectors.
    - `safeguard`: whether proposals are compared with the residual, at the price of one more product a step. Without it, as in the paper, a network that is far from the
      inverse can make next to no progress.
    - `least_cosine`: see above.
    - `history`: of so many steps `stats["residuals"]` keeps the relative residual, by recurrence; not a number where there was no step.

    For an operator that says which grid it is on, as `PoissonGrid` and `StencilOperator` do, tagged as positive semidefinite. On fluid that no air touches the right-hand side
    must have the mean zero, and so has the solution; in cells that are not fluid both are zero. Derivatives use the same network; for them what does not fit is left out.

    Raises `ArgumentError`, naming the argument, for a number out of its range, for an operator of another kind, and for one that a product with random vectors shows not to
    be symmetric or positive definite; for a right-hand side that is not zero outside of the fluid, or whose mean, which is given, is not zero where it must be.
    Inside of `lineax.linear_solve` neither operator nor right-hand side is known, so there the result is `breakdown`; `check` says why.

    ```python
    import lineax as lx

    operator = om.linear.StencilOperator.laplacian((24, 24))
    solver = om.linear.DeepConjugateDirection(om.linear.ConjugateDirectionNet.pretrained(2), 1e-4)
    lx.linear_solve(operator, jnp.ones((24, 24)), solver).stats["num_steps"]
    ```
    """

    reference: ClassVar[str] = "kaneda2023deep"

    net: Callable
    rtol: Any = 1e-4
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    q: int | Literal["all"] = eqx.field(static=True, default=2)
    safeguard: bool = eqx.field(static=True, default=True)
    least_cosine: Any = 1e-8
    history: int = eqx.field(static=True, default=0)

    preconditioner: ClassVar[None] = None  # the network is

    def __check_init__(self):
        if not callable(self.net):
            raise ArgumentError("net", f"must be callable, not {type(self.net).__name__}.")
        if self.q != "all" and (not isinstance(self.q, int) or self.q < 0):
            raise ArgumentError("q", f'must be a whole number that is not negative, or "all", not {self.q!r}.')
        if not isinstance(self.history, int) or self.history < 0:
            raise ArgumentError("history", f"must be a whole number that is not negative, not {self.history!r}.")
        if isinstance(self.least_cosine, int | float) and not 0 <= self.least_cosine < 1:
            raise ArgumentError("least_cosine", f"must be a number from 0 to below 1, not {self.least_cosine!r}.")
        net_dim = getattr(self.net, "dim", None)
        if net_dim is not None and not isinstance(net_dim, int):
            raise ArgumentError("net", f"has a `dim` that is no whole number, {net_dim!r}.")

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if not lx.is_positive_semidefinite(operator):
            hint = "MINRES takes symmetric matrices, GMRES any."
            raise ArgumentError("operator", "must be tagged as positive semidefinite for DeepConjugateDirection.", hint)
        shape, dim = GridCells.of(operator).shape, getattr(self.net, "dim", None)
        if dim is not None and dim != len(shape):
            raise ArgumentError("net", f"is for {dim} dimensions, but the grid of the operator has the shape {shape}.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> KrylovState:
        if options.get("preconditioner") is not None:
            raise ArgumentError("options", "must not have a preconditioner for DeepConjugateDirection: the network is one.")
        state = super().init(operator, options)
        cells = GridCells.of(operator).with_components(operator)
        asymmetry, curvature = _tested(cells, flat_product(operator))
        if not is_tracer(asymmetry):
            _need_sound(asymmetry, curvature, cells.dtype)
        sound = (asymmetry <= _tolerance(cells.dtype)) & (curvature > 0)
        most = 10 * cells.size if self.max_steps is None else self.max_steps
        kept = min(most, cells.size) if self.q == "all" else self.q
        vectors = jnp.zeros((kept, cells.size), cells.dtype)
        none = jnp.int32(0)
        residuals = jnp.full(self.history, jnp.nan, cells.dtype)
        memory = _Memory(cells, sound, jnp.array(True), vectors, vectors, jnp.ones(kept, cells.dtype), none, none, none, residuals)
        return state._replace(memory=memory, products=jnp.int32(3))

    def check(self, operator: lx.AbstractLinearOperator, b: PyTree) -> None:
        """Raise `ArgumentError` where this solver cannot solve A x = b, with the reason."""
        state = self.init(operator, {})
        _need_fitting(state.memory.cells, ravel_pytree(b)[0])

    def compute(self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]):
        memory: _Memory = state.memory
        b, unravel = ravel_pytree(vector)
        if not is_tracer(b) and not is_tracer(memory.strict) and memory.strict:
            _need_fitting(memory.cells, b)
        size = jnp.linalg.norm(b)
        fits = _defect(memory.cells, b) <= jnp.sqrt(jnp.finfo(b.dtype).eps) * size
        sound = memory.sound & (fits | ~memory.strict)
        rest = memory.cells.projected(b)
        scale = jnp.where(size > 0, size, 1)
        memory = memory._replace(sound=sound, residuals=memory.residuals * scale)
        answer, result, stats = super().compute(state._replace(memory=memory), unravel(rest), options)
        result = lx.RESULTS.where(sound, result, lx.RESULTS.breakdown)
        return answer, result, stats | {"residuals": stats["residuals"] / scale}

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: _Memory
    ) -> Piece:
        cells, kept = memory.cells, len(memory.directions)

        def conjugate(d, memory):
            for _ in range(2):  # the second pass takes off what rounding left
                d = d - (memory.images @ d / memory.curvatures) @ memory.directions
            return d

        def measured(d, r):
            image = system.matvec(d)
            return d, image, jnp.vdot(d, image), jnp.vdot(r, d)

        def going(carry):
            _, _, left, step, _, broken, _ = carry
            return (left > system.limit) & (step < steps) & ~broken

        def iterate(carry):
            move, r, left, step, products, _, memory = carry
            proposal = cells.projected(cells.propose(self.net, r / left))
            finite = jnp.all(jnp.isfinite(proposal))
            tried = measured(conjugate(jnp.where(finite, proposal, 0), memory), r)
            d, _, curvature, inner = tried
            good = finite & (curvature > 0) & (jnp.abs(inner) > self.least_cosine * left * jnp.linalg.norm(d))
            plain = lambda: measured(conjugate(r, memory), r)
            if self.safeguard:
                other = plain()
                good = good & ~(_gain(*other[2:]) > _gain(*tried[2:]))
                chosen = jax.tree.map(lambda a, b: jnp.where(good, a, b), tried, other)
                used = 2
            else:
                chosen = jax.lax.cond(good, lambda: tried, plain)
                used = jnp.where(good, 1, 2)
            d, image, curvature, inner = chosen
            broken = ~(curvature > 0) | ~memory.sound
            length = jnp.where(broken, 0, inner / jnp.where(broken, 1, curvature))
            move, r = move + length * d, r - length * image
            left = jnp.linalg.norm(r)
            memory = memory._replace(
                step=memory.step + 1,
                fallbacks=memory.fallbacks + ~good,
                nonfinite=memory.nonfinite + ~finite,
            )
            if self.history:
                memory = memory._replace(residuals=memory.residuals.at[memory.step - 1].set(left, mode="drop"))
            if kept:
                at = (memory.step - 1) % kept
                memory = memory._replace(
                    directions=memory.directions.at[at].set(jnp.where(broken, 0, d)),
                    images=memory.images.at[at].set(jnp.where(broken, 0, image)),
                    curvatures=memory.curvatures.at[at].set(jnp.where(broken, 1, curvature)),
                )
            return move, r, left, step + 1, products + used, broken, memory

        none = jnp.int32(0)
        begin = (jnp.zeros_like(residual), residual, left, none, none, jnp.array(False), memory)
        move, _, _, step, products, broken, memory = jax.lax.while_loop(going, iterate, begin)
        return Piece(move, step, products, broken, memory)

    def report(self, memory: _Memory) -> dict[str, Any]:
        return {"fallbacks": memory.fallbacks, "nonfinite": memory.nonfinite, "residuals": memory.residuals}

    def transpose(self, state: KrylovState, options: dict[str, Any]):
        turned, options = super().transpose(state, options)
        return turned._replace(memory=state.memory._replace(strict=jnp.array(False))), options


def _gain(curvature: Float[Array, ""], inner: Float[Array, ""]) -> Float[Array, ""]:
    """By how much the best step along a direction reduces the square of the error's norm."""
    return jnp.where(curvature > 0, inner**2 / jnp.where(curvature > 0, curvature, 1), 0)


def _tolerance(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** 0.75


def _tested(cells: GridCells, product: Callable) -> tuple[Array, Array]:
    """Of random vectors u, v in the fluid: |u' A v - v' A u| over its terms, and the least of u' A u and v' A v, which are positive."""
    keys = jax.random.split(jax.random.key(0))
    u, v = (cells.projected(jax.random.normal(key, (cells.size,), cells.dtype)) for key in keys)
    au, av = product(u), product(v)
    size = jnp.linalg.norm(u) * jnp.linalg.norm(av) + jnp.linalg.norm(v) * jnp.linalg.norm(au)
    asymmetry = jnp.abs(jnp.vdot(u, av) - jnp.vdot(v, au)) / jnp.where(size > 0, size, 1)
    return asymmetry, jnp.minimum(jnp.vdot(u, au), jnp.vdot(v, av))


def _need_sound(asymmetry: Array, curvature: Array, dtype: Any) -> None:
    if not asymmetry <= _tolerance(dtype):
        raise ArgumentError("operator", f"is not symmetric: u' A v and v' A u of random vectors differ by {float(asymmetry):.2g} of their size.", "GMRES takes any matrix.")
    if not curvature > 0:
        raise ArgumentError("operator", f"is not positive definite: u' A u of a random vector is {float(curvature):.3g}.", "MINRES takes symmetric matrices.")


def _defect(cells: GridCells, b: Float[Array, " n"]) -> Float[Array, ""]:
    """The length of what the right-hand side has outside of the range of the matrix."""
    return jnp.linalg.norm(b - cells.projected(b))


def _need_fitting(cells: GridCells, b: Float[Array, " n"]) -> None:
    limit = jnp.sqrt(jnp.finfo(b.dtype).eps) * jnp.linalg.norm(b)
    outside = jnp.where(cells.fluid, 0, b)
    if jnp.linalg.norm(outside) > limit:
        place = tuple(int(i) for i in jnp.unravel_index(jnp.argmax(jnp.abs(outside)), cells.shape))
        raise ArgumentError("b", f"must be zero in cells that are not fluid; in {place} it is {float(outside[jnp.argmax(jnp.abs(outside))]):.3g}.")
    means = cells.means(b)
    if _defect(cells, b) > limit:
        mean = float(means[jnp.argmax(jnp.abs(means))])
        raise ArgumentError("b", f"must have the mean zero on fluid that no air touches; on one such component it is {mean:.6g}.", "Subtract it.")
