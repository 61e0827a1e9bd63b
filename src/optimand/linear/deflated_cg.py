r"""Conjugate gradients without the parts of the spectrum that a small space holds.

For rows W of the space and \(E = W A W^\top\), the start \(x_0 = W^\top E^{-1} W b\) leaves a residual that is orthogonal to W, and directions

$$p = z - W^\top E^{-1} (A W^\top)^\top z + \beta p, \qquad z = M r,$$

keep it so (Saad, Yeung, Erhel and Guyomarc'h 2000, algorithm 3.6). With eigenvectors in W the iterations are those for a matrix without their eigenvalues.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact, Int

from ..core.errors import ArgumentError
from .krylov import KrylovSolver, KrylovState, Piece, System
from .lanczos import ritz_pairs

__all__ = ["DeflatedCG"]


class _Space(NamedTuple):
    """W and its images under A, as rows, and the pseudo-inverse of E."""

    vectors: Float[Array, "count n"]
    images: Float[Array, "count n"]
    inverse: Float[Array, "count count"]


class DeflatedCG(KrylovSolver):
    """Conjugate gradients that are spared the smallest eigenvalues, for real positive definite matrices.

    The space is that of the `count` lowest Ritz vectors, which Lanczos' process finds in `lanczos` steps; their products are counted. For more than one right-hand side
    find them once: `answer.stats["space"]` is what to carry on.

    ```python
    import lineax as lx

    operator = om.linear.StencilOperator.laplacian((16, 16))
    solver = om.linear.DeflatedCG(1e-4, count=4, lanczos=40)
    space = lx.linear_solve(operator, jnp.ones((16, 16)), solver).stats["space"]
    state = solver.init(operator, {"space": space})
    lx.linear_solve(operator, jnp.eye(16), solver, state=state).stats["num_steps"]
    ```

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; `count`: vectors of the space; `lanczos`: steps to find them.

    Raises `ArgumentError`, naming the argument, for a number out of its range, an operator that is complex or not tagged as positive semidefinite, and a space that does not fit.
    """

    reference: ClassVar[str] = "saad2000deflated"

    rtol: Any = 1e-8
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None
    count: int = eqx.field(static=True, default=16)
    lanczos: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        for name in ("count", "lanczos"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(name, f"must be a whole number above zero, not {value!r}.")
        if self.lanczos < self.count:
            raise ArgumentError("lanczos", f"must be at least `count`, {self.count}, not {self.lanczos}.")

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if not lx.is_positive_semidefinite(operator):
            raise ArgumentError("operator", "must be tagged as positive semidefinite for DeflatedCG.", "MINRES takes symmetric matrices, GMRES any.")
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jtu.tree_leaves(operator.in_structure())):
            raise ArgumentError("operator", "must be real for DeflatedCG.", "CG takes complex matrices.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> KrylovState:
        state = super().init(operator, options)
        flat, unravel = ravel_pytree(jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), operator.in_structure()))
        product = lambda v: ravel_pytree(state.operator.mv(unravel(v)))[0]
        vectors, products = options.get("space"), 0
        if vectors is None:
            steps = min(self.lanczos, flat.size)
            start = product(jax.random.normal(jax.random.key(0), flat.shape, flat.dtype))
            vectors, products = ritz_pairs(product, start, steps).vectors[: self.count], steps + 1
        elif vectors.ndim != 2 or vectors.shape[1] != flat.size:
            raise ArgumentError("space", f"must have rows of length {flat.size}, not the shape {vectors.shape}.", 'Pass stats["space"] of a solve of this size.')
        images = jax.lax.map(product, vectors)
        inverse = jnp.linalg.pinv(vectors @ images.T, hermitian=True)
        return state._replace(memory=_Space(vectors, images, inverse), products=jnp.int32(products + len(vectors)))

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: _Space
    ) -> Piece:
        precondition = (lambda r: r) if system.precondition is None else system.precondition
        vectors, images, inverse = memory
        conjugate = lambda z: z - (inverse @ (images @ z)) @ vectors

        def going(carry):
            *_, left, step, broken = carry
            return (left > system.limit) & (step < steps) & ~broken

        def iterate(carry):
            move, r, p, inner, _, step, _ = carry
            image = system.matvec(p)
            curvature = jnp.vdot(p, image)
            broken = ~(curvature > 0) | ~(inner > 0)
            length = inner / jnp.where(broken, jnp.inf, curvature)
            move, r = move + length * p, r - length * image
            z = precondition(r)
            following = jnp.vdot(r, z)
            p = conjugate(z) + following / jnp.where(broken, 1, inner) * p
            return move, r, p, following, jnp.linalg.norm(r), step + 1, broken

        weights = inverse @ (vectors @ residual)
        start, r = weights @ vectors, residual - weights @ images
        z = precondition(r)
        begin = (start, r, conjugate(z), jnp.vdot(r, z), jnp.linalg.norm(r), jnp.int32(0), jnp.array(False))
        move, *_, step, broken = jax.lax.while_loop(going, iterate, begin)
        return Piece(move, step, step, broken, memory)

    def report(self, memory: _Space) -> dict[str, Any]:
        return {"space": memory.vectors}
