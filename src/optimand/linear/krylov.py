r"""What Krylov solvers have in common: tolerance, preconditioner, the residual that is reported, and why a solve ended.

A solver iterates on its own recurrences, and those drift: what it says is left is not always what b - A x is. So each run of
iterations is followed by that product; if more is left than was asked for, another run begins from there, until the tolerance is met, the
steps are spent, or runs no longer help. The same loop makes restarted methods: for them a run is a cycle.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from ..core.errors import ArgumentError
from .preconditioners import Preconditioner

__all__ = ["KrylovSolver", "KrylovState", "Piece", "System"]


class KrylovState(NamedTuple):
    """The operator, and the operator M that is close to its inverse, or None; -1 as `sign` where the operator is tagged as negative; what
    the solver remembers of other systems, and the products that it took to make that fit."""

    operator: lx.AbstractLinearOperator
    preconditioner: lx.AbstractLinearOperator | None
    sign: eqxi.Static
    memory: PyTree = None
    products: Any = 0


class System(NamedTuple):
    """What iterations see of a system: flat vectors, the norm of the residual at which they may stop, and whether A M is tagged as symmetric."""

    matvec: Any
    precondition: Any
    limit: Float[Array, ""]
    sign: int
    symmetric: bool = False


class Piece(NamedTuple):
    """What a run of iterations adds to x; how many steps and products with the matrix it took; whether it broke down; what it remembers."""

    move: Inexact[Array, " n"]
    steps: Int[Array, ""]
    products: Int[Array, ""]
    broken: Bool[Array, ""]
    memory: PyTree = None


class _Progress(NamedTuple):
    x: Array
    residual: Array
    left: Array
    steps: Array
    products: Array
    broken: Array
    idle: Array  # runs in a row that left nearly all of the residual
    memory: PyTree


class KrylovSolver(lx.AbstractLinearSolver[KrylovState]):
    """A lineax solver by products with the matrix: abstract.

    It ends where |b - A x| <= max(rtol |b|, atol), Euclidean norms of the true residual. Else the result is `max_steps_reached`, `breakdown` (a
    division by zero in the recurrences, a direction without curvature, a preconditioner that is not positive definite where it
    must be), `stagnation`, or `nonfinite_input` (the matrix, the preconditioner or b holds a number that is none). The value is the x with
    the least residual. `stats` has `num_steps`, `products` with the matrix, and the relative true `residual`.

    The preconditioner M may be given to the solver or, as lineax does it, as `options={"preconditioner": M}`: a `Preconditioner`, which is
    made for the operator, or a lineax operator that is close to the inverse. Derivatives solve the transposed system with
    the transpose of M. `options={"y0": x}` is a first guess.
    """

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]
    max_steps: eqx.AbstractVar[int | None]
    preconditioner: eqx.AbstractVar[Any]

    patience = 1  # runs without progress before a solve counts as stagnant

    def __check_init__(self):
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ArgumentError(name, f"must be a finite number that is not negative, not {value!r}.")
        if self.max_steps is not None and (not isinstance(self.max_steps, int) or self.max_steps < 1):
            raise ArgumentError("max_steps", f"must be a whole number above zero, or None, not {self.max_steps!r}.")
        if not isinstance(self.preconditioner, Preconditioner | lx.AbstractLinearOperator | None):
            raise ArgumentError(
                "preconditioner", f"must be a Preconditioner or a lineax operator, not {type(self.preconditioner).__name__}.", "Jacobi()"
            )

    @abc.abstractmethod
    def run(
        self, system: System, residual: Inexact[Array, " n"], left: Float[Array, ""], steps: Int[Array, ""], memory: PyTree
    ) -> Piece:
        """Iterations for A d = residual, with d = 0 first: at most `steps`. `left` is the norm of the residual, `memory` that of the run before."""

    def report(self, memory: PyTree) -> dict[str, Any]:
        """What of the memory stands in `stats`."""
        return {}

    def suits(self, operator: lx.AbstractLinearOperator) -> None:
        """Raise if the operator is not one for this solver."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> KrylovState:
        name = type(self).__name__
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jtu.tree_leaves(side())] for side in (operator.in_structure, operator.out_structure)]
        if shapes[0] != shapes[1]:
            raise ArgumentError("operator", f"must be square for {name}: it takes {shapes[0]} to {shapes[1]}.", "lineax.Normal(lineax.CG(...))")
        self.suits(operator)
        chosen = options.get("preconditioner", self.preconditioner)
        if isinstance(chosen, Preconditioner):
            chosen = chosen.of(operator)
        sign = -1 if lx.is_negative_semidefinite(operator) else 1
        return KrylovState(lx.linearise(operator), None if chosen is None else lx.linearise(chosen), eqxi.Static(sign))

    def compute(self, state: KrylovState, vector: PyTree[Array], options: dict[str, Any]):
        b, unravel = ravel_pytree(vector)
        apply = lambda operator: lambda v: ravel_pytree(operator.mv(unravel(v)))[0]
        matvec = apply(state.operator)
        precondition = None if state.preconditioner is None else apply(state.preconditioner)
        size = jnp.linalg.norm(b)
        symmetric = precondition is None and lx.is_symmetric(state.operator)
        system = System(matvec, precondition, jnp.maximum(self.rtol * size, self.atol), state.sign.value, symmetric)
        most = jnp.int32(10 * b.size if self.max_steps is None else self.max_steps)

        def going(at: _Progress):
            return (at.left > system.limit) & (at.steps < most) & ~at.broken & (at.idle < self.patience)

        def go_on(at: _Progress) -> _Progress:
            piece = self.run(system, at.residual, at.left, most - at.steps, at.memory)
            x = at.x + piece.move
            residual = b - matvec(x)
            left = jnp.linalg.norm(residual)
            better = left < at.left  # also where it is not a number
            x, residual, left_now = (jnp.where(better, new, old) for new, old in ((x, at.x), (residual, at.residual), (left, at.left)))
            idle = jnp.where(left < 0.999 * at.left, 0, at.idle + 1)
            products = at.products + piece.products + 1
            return _Progress(x, residual, left_now, at.steps + piece.steps, products, piece.broken, idle, piece.memory)

        none = jnp.int32(0)
        start, residual, products = jnp.zeros_like(b), b, none + state.products
        if "y0" in options:
            start = jnp.where(size > 0, ravel_pytree(options["y0"])[0], start)
            residual, products = b - matvec(start), products + 1
        begin = _Progress(start, residual, jnp.linalg.norm(residual), none, products, jnp.array(False), none, state.memory)
        end = jax.lax.while_loop(going, go_on, begin)
        relative = end.left / jnp.where(size > 0, size, 1)
        stats = {"num_steps": end.steps, "max_steps": most, "products": end.products, "residual": relative}
        stats |= self.report(end.memory)
        return unravel(end.x), self._result(end, system, most), stats

    def _result(self, end: _Progress, system: System, most: Array) -> lx.RESULTS:
        choose, results, limit = lx.RESULTS.where, lx.RESULTS, system.limit

        def sound():  # every entry has a part in what is made of ones
            ones = jnp.ones_like(end.x)
            images = [system.matvec(ones), *([] if system.precondition is None else [system.precondition(ones)])]
            return jnp.all(jnp.isfinite(jnp.stack(images)))

        finite = jax.lax.cond(end.left <= limit, lambda: jnp.array(True), sound)
        failed = choose(end.broken, results.breakdown, choose(end.steps >= most, results.max_steps_reached, results.stagnation))
        failed = choose(jnp.isfinite(end.left) & finite, failed, results.nonfinite_input)
        return choose(end.left <= limit, results.successful, failed)

    def transpose(self, state: KrylovState, options: dict[str, Any]):
        turned = None if state.preconditioner is None else state.preconditioner.transpose()
        return state._replace(operator=state.operator.transpose(), preconditioner=turned), {}

    def conj(self, state: KrylovState, options: dict[str, Any]):
        turned = None if state.preconditioner is None else lx.conj(state.preconditioner)
        return state._replace(operator=lx.conj(state.operator), preconditioner=turned), {}

    def assume_full_rank(self) -> bool:
        return True
