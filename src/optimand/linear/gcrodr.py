r"""GCRO-DR: GMRES that keeps a small space from cycle to cycle, and from system to system.

Of B = A M the solver holds rows \(u_i, c_i\) with \(B u_i = c_i\) and orthonormal \(c_i\). A cycle is Arnoldi's process on \((I - C^\top C) B\) from the
residual, s steps; with \(D = \operatorname{diag}(1 / \lVert u_i \rVert)\) and \(E = C B V_s^\top\),

$$B \hat V^\top = W^\top G, \qquad \hat V = \begin{bmatrix} D U \\ V_s \end{bmatrix}, \quad W = \begin{bmatrix} C \\ V_{s+1} \end{bmatrix}, \quad
  G = \begin{bmatrix} D & E \\ 0 & \bar H \end{bmatrix},$$

the move \(\hat V^\top z\) minimises \(\lVert W r - G z \rVert\), and the next U spans harmonic Ritz vectors \(\hat V^\top p\), for the k values of least
modulus of \(G^\top G p = \theta\, G^\top W \hat V^\top p\) (Parks, de Sturler, Mackey, Johnson and Maiti 2006, section 2 and appendix). With G = Q R they are
\(R^{-1} y\) for \(Q^\top W \hat V^\top R^{-1} y = y / \theta\), a matrix that is as symmetric as B, and their images are \(W^\top Q y\). For another matrix
C is made anew from the new B and the old U: k products, without which its answers would be wrong. Whether it is another one is asked of one product, with a random
sum of the rows of U.
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
from .arnoldi import Arnoldi, arnoldi
from .krylov import KrylovSolver, KrylovState, Piece, System

__all__ = ["GCRODR"]


class Space(NamedTuple):
    """Rows u, and the orthonormal rows c that B maps them to; rows that are not there are zero, and stand last."""

    vectors: Float[Array, "recycle n"]
    images: Float[Array, "recycle n"]


class GCRODR(KrylovSolver):
    """GMRES with deflated restarting, whose small space can be carried from one system to the next.

    For sequences of systems that change little: parameters, time steps, Newton's method. `answer.stats["space"]` is what to carry on, with its `"images"`:

    ```python
    import lineax as lx

    solver, b = om.linear.GCRODR(1e-5, restart=5, recycle=2), jnp.ones(20)
    operator, changed = (lx.MatrixLinearOperator(jnp.diag(jnp.arange(1.0, 21.0) + shift)) for shift in (0.0, 0.1))
    answer = lx.linear_solve(operator, b, solver)
    state = solver.init(changed, {name: answer.stats[name] for name in ("space", "images")})
    lx.linear_solve(changed, b, solver, state=state)
    ```

    A space of another matrix costs `recycle` products, which are counted, to be made one of this matrix, and if images are given one to see whether they still are
    its images. With nothing to carry it still restarts
    better than `GMRES`, by keeping the space of the cycle before. Where small eigenvalues of a matrix far from normal move much from one
    system to the next, or more of them lie on both sides of zero than the space holds, the carried space can cost more than it saves. Derivatives use the space for the transposed system where the matrix is
    tagged as symmetric and there is no preconditioner; a cycle takes a tenth less there.

    **Arguments:** `rtol`, `atol`, `max_steps`, `preconditioner` as for every `KrylovSolver`; `restart`: vectors of a cycle, those of the space
    included; `recycle`: vectors of the space.

    Raises `ArgumentError`, naming the argument, for a number out of its range, a complex matrix, and a space that does not fit.
    """

    reference: ClassVar[str] = "parks2006recycling"
    patience = 20

    rtol: Any = 1e-8
    atol: Any = 0.0
    restart: int = eqx.field(static=True, default=30)
    recycle: int = eqx.field(static=True, default=10)
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: Any = None

    def __check_init__(self):
        for name, least in (("restart", 2), ("recycle", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(name, f"must be a whole number of at least {least}, not {value!r}.")
        if self.recycle >= self.restart:
            raise ArgumentError("recycle", f"must be below `restart`, {self.restart}, not {self.recycle}.")

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jtu.tree_leaves(operator.in_structure())):
            raise ArgumentError("operator", "must be real for GCRODR.", "GMRES takes complex matrices.")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> KrylovState:
        state = super().init(operator, options)
        structure = operator.in_structure()
        flat, unravel = ravel_pytree(jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure))
        shape = (self.recycle, flat.size)
        vectors, images = options.get("space"), options.get("images")
        if vectors is None:
            nothing = jnp.zeros(shape, flat.dtype)
            return state._replace(memory=Space(nothing, nothing), products=jnp.int32(0))
        for name, rows in (("space", vectors), ("images", images)):
            if rows is not None and rows.shape != shape:
                raise ArgumentError(name, f"must be of shape {shape}, not {rows.shape}.", f'Pass stats["{name}"] of a solve of this size.')
        apply = lambda operator, v: v if operator is None else ravel_pytree(operator.mv(unravel(v)))[0]
        product = lambda v: apply(state.operator, apply(state.preconditioner, v))
        there = jnp.sum(jnp.any(vectors != 0, axis=1)).astype(jnp.int32)
        anew = lambda: orthonormalised(jax.lax.map(product, vectors), vectors)
        if images is None or not self.recycle:
            return state._replace(memory=anew(), products=there)
        weights = jax.random.normal(jax.random.key(0), (self.recycle,), flat.dtype)
        wrong = jnp.linalg.norm(product(weights @ vectors) - weights @ images)
        same = wrong <= jnp.finfo(flat.dtype).eps ** 0.75 * jnp.linalg.norm(weights @ images)
        memory = jax.lax.cond(same, lambda: Space(vectors, images), anew)
        return state._replace(memory=memory, products=jnp.where(same, 0, there) + (there > 0))

    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: Space
    ) -> Piece:
        precondition = (lambda v: v) if system.precondition is None else system.precondition
        u, c = memory
        inside = c @ residual
        outside = residual - inside @ c
        most = min(self.restart, max(self.recycle, residual.size))
        found = arnoldi(system.matvec, precondition, outside, jnp.linalg.norm(outside), system.limit, steps, most, space=c)
        inside = inside - found.hessenberg[: self.recycle] @ found.weights
        move = jnp.where(jnp.arange(self.recycle) < found.first, inside, 0) @ u + _padded(found.weights) @ found.basis
        memory = harmonic_space(memory, found, system.symmetric) if self.recycle else memory
        return Piece(precondition(move), found.steps, found.steps, jnp.array(False), memory)

    def report(self, memory: Space) -> dict[str, Any]:
        return {"space": memory.vectors, "images": memory.images}

    def transpose(self, state: KrylovState, options: dict[str, Any]):
        turned, options = super().transpose(state, options)
        if state.preconditioner is None and lx.is_symmetric(state.operator):
            return turned, options
        nothing = jnp.zeros_like(state.memory.vectors)
        return turned._replace(memory=Space(nothing, nothing), products=jnp.int32(0)), options


def orthonormalised(images: Array, vectors: Array) -> Space:
    """The images made orthonormal, and the same done to the vectors; what depends on rows before it becomes zero, and goes to the end."""

    def one(i, rows):
        u, c = rows
        image, vector = images[i], vectors[i]
        size = jnp.linalg.norm(image)
        for _ in range(2):
            part = c @ image
            image, vector = image - part @ c, vector - part @ u
        length = jnp.linalg.norm(image)
        there = length > 1e-10 * size
        scale = jnp.where(there, 1 / jnp.where(there, length, 1), 0)
        return u.at[i].set(scale * vector), c.at[i].set(scale * image)

    u, c = jax.lax.fori_loop(0, len(images), one, (jnp.zeros_like(vectors), jnp.zeros_like(images)))
    order = jnp.argsort(~jnp.any(c != 0, axis=1))
    return Space(u[order], c[order])


def harmonic_space(space: Space, found: Arnoldi, symmetric: bool = False) -> Space:
    """The harmonic Ritz vectors of least modulus in what the old space and a cycle span together, which are those of the rows of the basis, the last excepted."""
    u = space.vectors
    recycle, most = len(u), len(found.weights)
    number = jnp.arange(most)
    lengths = jnp.linalg.norm(u, axis=1)
    old = jnp.arange(recycle) < found.first
    d = jnp.where(old, 1 / jnp.where(lengths > 0, lengths, 1), 0)
    there = (number < found.first + found.steps) & ~found.empty
    g = jnp.where(there, found.hessenberg, 0).at[jnp.arange(recycle), jnp.arange(recycle)].add(d)
    q, r = jnp.linalg.qr(g)
    r = jnp.where(there[:, None] & there, r, 0) + jnp.diag(jnp.where(there, 0, 1).astype(u.dtype))
    overlaps = jnp.eye(most + 1, most, dtype=u.dtype).at[:, :recycle].set(jnp.where(old, found.basis @ (d[:, None] * u).T, jnp.eye(most + 1, recycle)))
    pencil = jax.scipy.linalg.solve_triangular(r, jnp.where(there, q.T @ overlaps, 0).T, trans="T").T
    ritz = _symmetric_ritz if symmetric else _ritz
    y = jnp.where(there, ritz(jnp.where(there[:, None] & there, pencil, 0), recycle), 0)
    chosen = orthonormalised(y, y).images
    vectors = jax.scipy.linalg.solve_triangular(r, chosen.T).T
    of_basis = jnp.concatenate([_padded(jnp.where(number < found.first, 0, vectors)), chosen @ q.T]) @ found.basis
    new = Space(vectors[:, :recycle] * d @ u + of_basis[:recycle], of_basis[recycle:])
    return jtu.tree_map(lambda new, old: jnp.where((found.steps > 0) & jnp.all(jnp.isfinite(new)), new, old), new, space)


def _symmetric_ritz(pencil: Array, count: int) -> Array:
    """As rows the eigenvectors of the eigenvalues of largest modulus, 1 / theta, of a matrix that is symmetric but for rounding."""
    values, vectors = jnp.linalg.eigh((pencil + pencil.T) / 2, symmetrize_input=False)
    order = jnp.argsort(-jnp.abs(values))[:count]
    return vectors[:, order].T


def _ritz(pencil: Array, count: int) -> Array:
    """The same for any matrix, of a pair the real part and the imaginary one; zeros at the end where a pair would be cut, and for values that are zero."""
    values, vectors = jnp.linalg.eig(pencil)
    order = jnp.argsort(-jnp.abs(values))[:count]
    values, vectors = values[order], vectors[:, order].T
    rows = jnp.where(values.imag[:, None] < 0, vectors.imag, vectors.real)  # of a pair, which stands in a row
    cut = (jnp.arange(count) == count - 1) & (values.imag > 0)
    return jnp.where(cut[:, None] | (jnp.abs(values)[:, None] == 0), 0, rows).astype(pencil.dtype)


def _padded(weights: Array) -> Array:
    """With nothing of the last row of the basis."""
    return jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, 1)])
