"""Preconditioners: operators that are close to the inverse of a matrix and cheap to apply.

A `Preconditioner` says how to make one; `of(operator)` makes it, a lineax operator. Its transpose is that of the operator, so a
derivative, which solves the transposed system, is preconditioned like the solve.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Inexact

from ..core.errors import ArgumentError
from .sparse import SparseOperator
from .tags import answer_by_tags

__all__ = ["BlockJacobi", "Jacobi", "Preconditioner"]


class Preconditioner(eqx.Module):
    """How to make an operator that is close to the inverse of another: abstract."""

    @abc.abstractmethod
    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        """That operator. Raises `ArgumentError` where there is none for this matrix."""


class Jacobi(Preconditioner):
    """Divide by the diagonal.

    For matrices whose rows differ in size. A zero on the diagonal is left as one.
    """

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        diagonal = lx.diagonal(operator)
        inverse = 1 / jnp.where(diagonal == 0, 1, diagonal)
        return lx.DiagonalLinearOperator(inverse)


class BlockJacobi(Preconditioner):
    """Solve with the blocks on the diagonal, of `size` unknowns in a row each, and leave out what is between them.

    **Arguments:** `size`: of a block; the last one is smaller where the unknowns do not divide by it.

    For a `SparseOperator`. Raises `ArgumentError` for another operator, and for a size below one.
    """

    size: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if not isinstance(self.size, int) or self.size < 1:
            raise ArgumentError("size", f"must be a whole number above zero, not {self.size!r}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        operator = as_sparse(operator, "BlockJacobi")
        count = -(-operator.shape[0] // self.size)
        rows, columns = operator.pattern.rows, operator.pattern.columns
        inside = rows // self.size == columns // self.size
        places = (rows // self.size, rows % self.size, columns % self.size)
        blocks = jnp.zeros((count, self.size, self.size), operator.data.dtype)
        blocks = blocks.at[places].add(jnp.where(inside, operator.data, 0))
        beyond = jnp.arange(count * self.size).reshape(count, self.size) >= operator.shape[0]
        blocks = blocks + jax.vmap(jnp.diag)(beyond.astype(blocks.dtype))
        tags = operator.tags & {lx.symmetric_tag, lx.positive_semidefinite_tag}
        return _Blocks(jnp.linalg.inv(blocks), operator.shape[0], frozenset(tags))


class _Blocks(lx.AbstractLinearOperator):
    """Dense blocks on a diagonal."""

    blocks: Inexact[Array, "blocks size size"]
    unknowns: int = eqx.field(static=True)
    tags: frozenset[object] = eqx.field(static=True)

    def mv(self, vector: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        count, size, _ = self.blocks.shape
        padded = jnp.pad(vector, (0, count * size - self.unknowns)).reshape(count, size)
        return jnp.einsum("bij,bj->bi", self.blocks, padded).reshape(-1)[: self.unknowns]

    def as_matrix(self) -> Inexact[Array, "n n"]:
        return jax.vmap(self.mv, out_axes=1)(jnp.eye(self.unknowns, dtype=self.blocks.dtype))

    def transpose(self) -> "_Blocks":
        return _Blocks(jnp.swapaxes(self.blocks, 1, 2), self.unknowns, self.tags)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.unknowns,), self.blocks.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_Blocks, lambda operator: operator.tags)


@lx.linearise.register(_Blocks)
@lx.materialise.register(_Blocks)
def _(operator):
    return operator


@lx.conj.register(_Blocks)
def _(operator):
    return _Blocks(jnp.conj(operator.blocks), operator.unknowns, operator.tags)


def as_sparse(operator: lx.AbstractLinearOperator, who: str) -> SparseOperator:
    """The operator, if it is a square `SparseOperator`; else an `ArgumentError` that says who needs one."""
    if not isinstance(operator, SparseOperator):
        raise ArgumentError("operator", f"must be a SparseOperator for {who}, not a {type(operator).__name__}.", "SparseOperator.from_scipy(...)")
    if operator.shape[0] != operator.shape[1]:
        raise ArgumentError("operator", f"must be square, not of shape {operator.shape}.")
    return operator
