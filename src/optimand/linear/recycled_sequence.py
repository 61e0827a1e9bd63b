"""A sequence of systems that hands a small space from each to the next."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx

from .gcrodr import GCRODR, Space
from .sequence import SequenceMethod, answer_of, need_solver, solved_by

__all__ = ["RecycledSequence"]


class RecycledSequence(SequenceMethod):
    """GCRO-DR whose space is carried from system to system; with a sequence in a sorted order, Sorting Krylov Recycling (Wang et al. 2024).

    Sorted so that neighbours are alike, what was slow to converge in one system is so in the next, and the space holds it already. The products that
    fit the space to each new matrix are counted; where the matrix is the one before, it is one. A system on which the solver fails empties the space.

    **Arguments:** `solver`: a `GCRODR`; `warm`: start each from the solution of the one before.

    ```python
    import lineax as lx

    system = lambda p: (lx.DiagonalLinearOperator(1 + p * jnp.arange(30.0)), jnp.ones(30))
    sequence = om.linear.LinearSequence(system, jnp.array([1.0, 3.0, 1.1, 2.9]), order=om.linear.greedy_order)
    om.solve(sequence, om.linear.RecycledSequence(om.linear.GCRODR(1e-5, restart=8, recycle=3))).value
    ```
    """

    reference: ClassVar[str] = "wang2024accelerating"

    solver: Any = GCRODR()
    warm: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        need_solver(self.solver, GCRODR, "optimand.linear.GCRODR(1e-8)")

    def begin(self, operator: lx.AbstractLinearOperator) -> Space:
        leaves = jtu.tree_leaves(operator.in_structure())
        nothing = jnp.zeros((self.solver.recycle, operator.in_size()), jnp.result_type(*[leaf.dtype for leaf in leaves]))
        return Space(nothing, nothing)

    def solve_next(self, memory, operator, rhs, *, guess=None, parameter=None, key=None):
        state = self.solver.init(operator, {"space": memory.vectors, "images": memory.images})
        solution = solved_by(self.solver, operator, rhs, guess, state)
        answer = answer_of(solution)
        space = Space(solution.stats["space"], solution.stats["images"])
        usable = answer.successful & jnp.all(jnp.isfinite(space.vectors)) & jnp.all(jnp.isfinite(space.images))
        return answer, jtu.tree_map(lambda rows: jnp.where(usable, rows, 0), space)
