"""A network that proposes directions, as a preconditioner."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from ..core.errors import ArgumentError
from .grid_cells import GridCells
from .preconditioners import Preconditioner
from .tags import answer_by_tags

__all__ = ["NetworkPreconditioner"]


class NetworkPreconditioner(Preconditioner):
    """What a network that proposes directions makes of a residual, r -> |r| f(r / |r|): for `FlexibleCG` and `FGMRES`.

    It is no linear map: a solver that takes it for one, as `CG` does, may break down.

    **Arguments:** `net`: as for `DeepConjugateDirection`, and for the same operators.
    """

    net: Any

    def __check_init__(self):
        if not callable(self.net):
            raise ArgumentError("net", f"must be callable, not {type(self.net).__name__}.")

    def of(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        structure = operator.in_structure()
        return _Proposing(self.net, GridCells.of(operator).with_components(operator), structure.shape)


class _Proposing(lx.AbstractLinearOperator):
    """|r| f(r / |r|), an operator in name only."""

    net: Any
    cells: GridCells
    shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, vector: Array) -> Array:
        flat = vector.ravel()
        size = jnp.linalg.norm(flat)
        unit = flat / jnp.where(size > 0, size, 1)
        return (size * self.cells.projected(self.cells.propose(self.net, unit))).reshape(self.shape)

    def as_matrix(self) -> Array:
        raise ArgumentError("preconditioner", "is a network, which is not linear and has no matrix.", "FlexibleCG and FGMRES take it as it is.")

    def transpose(self) -> "_Proposing":
        return self  # it stands for the inverse of a symmetric matrix

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.cells.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.in_structure()


answer_by_tags(_Proposing, lambda _: frozenset())


@lx.linearise.register(_Proposing)
@lx.conj.register(_Proposing)
def _(operator):
    return operator
