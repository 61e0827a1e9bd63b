"""Sequences of linear systems: many systems of one kind, which methods see one at a time.

| problem | solution | condition F |
|---|---|---|
| `LinearSequence(system, parameters)` | A(p_i) x_i = b(p_i) for every i | A(p_i) x_i - b(p_i) |
"""

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError, GuessError
from ..core.method import Method
from ..core.problem import Problem
from ..core.solution import Result
from ..core.tracing import as_arrays, is_tracer, need_callable, need_same_structure
from .sparse import SparseOperator, SparsePattern

__all__ = ["LinearSequence", "SequenceMethod", "SequenceState", "SolveEach"]


class LinearSequence(Problem):
    """Solve A(p) x = b(p) for each of many parameters p. Its value is all x, along a leading axis, in the order of the parameters.

    **Arguments:**

    - `system`: takes one parameter to a pair, a square lineax operator and a right-hand side. It is traced once, so the shapes, and the
      pattern of a `SparseOperator`, are the same for all.
    - `parameters`: arrays whose leading axis counts the systems.
    - `order`: in which methods see them: None for that of the parameters, a permutation, or a function that takes the parameters to one
      (`greedy_order`, `projected_order`, `hilbert_order`, `spectral_order`). The order of the solutions does not depend on it.

    `LinearSequence.of_matrices` makes one of matrices and right-hand sides that are there already.

    Raises `ArgumentError`, naming the argument, for parameters of different lengths, an order that is no permutation, and a system that is
    no such pair.

    ```python
    import lineax as lx

    system = lambda shift: (lx.DiagonalLinearOperator(jnp.arange(1.0, 21.0) + shift), jnp.ones(20))
    sequence = om.linear.LinearSequence(system, jnp.linspace(0, 1, 5))
    solution = om.solve(sequence, om.linear.RecycledSequence(om.linear.GCRODR(1e-5, restart=8, recycle=3)))
    solution.value, solution.state.iterations
    ```
    """

    system: Callable
    parameters: PyTree
    order: Int[Array, " count"]

    def __init__(self, system: Callable, parameters: PyTree, order: Any = None):
        self.system = need_callable(system, "system")
        self.parameters = as_arrays(parameters)
        shapes = [leaf.shape for leaf in jtu.tree_leaves(self.parameters)]
        if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes) or not shapes[0][0]:
            raise ArgumentError("parameters", f"must be arrays with one leading axis that counts the systems, not of shapes {shapes}.")
        self.order = _permutation(order(parameters) if callable(order) else order, shapes[0][0])

    @staticmethod
    def of_matrices(matrices: Sequence[Any], rhs: Any, *, tags: object | Iterable[object] = (), order: Any = None) -> "LinearSequence":
        """That of sparse matrices of SciPy and a right-hand side for each, or one for all.

        All are laid out on the places where any of them has an entry. Raises `ArgumentError`, naming the index, for a matrix that is not sparse,
        not square, or of another shape than the first, and for right-hand sides that do not fit.
        """
        if not len(matrices):
            raise ArgumentError("matrices", "is empty.")
        for index, matrix in enumerate(matrices):
            if not scipy.sparse.issparse(matrix):
                raise ArgumentError(f"matrices[{index}]", f"must be a sparse array of SciPy, not {type(matrix).__name__}.")
            if matrix.shape != matrices[0].shape or matrix.shape[0] != matrix.shape[1]:
                raise ArgumentError(f"matrices[{index}]", f"must be square and of the shape of the first, {matrices[0].shape}, not {matrix.shape}.")
        count, size = len(matrices), matrices[0].shape[0]
        rhs = jnp.asarray(rhs)
        if rhs.shape not in ((size,), (count, size)):
            raise ArgumentError("rhs", f"must have the shape {(size,)} or {(count, size)}, not {rhs.shape}.")
        entries = [scipy.sparse.csr_array(matrix).tocoo() for matrix in matrices]  # by way of CSR, which adds up entries at one place
        places = [np.asarray(one.row, np.int64) * size + one.col for one in entries]
        union = np.unique(np.concatenate(places))
        data = np.zeros((count, len(union)), np.result_type(*[one.dtype for one in entries], rhs.dtype))
        for row, where, one in zip(data, places, entries, strict=True):
            row[np.searchsorted(union, where)] = one.data
        pattern = SparsePattern.of(union // size, union % size, (size, size))
        system = lambda p: (SparseOperator(p["data"], pattern, tags), p["rhs"])
        return LinearSequence(system, {"data": jnp.asarray(data), "rhs": jnp.broadcast_to(rhs, (count, size))}, order)

    @property
    def count(self) -> int:
        """How many systems there are."""
        return len(self.order)

    def parameter(self, index: Any) -> PyTree:
        """That of one system."""
        return jtu.tree_map(lambda leaf: leaf[index], self.parameters)

    def one(self, index: Any) -> tuple[lx.AbstractLinearOperator, PyTree]:
        """Operator and right-hand side of one system."""
        pair = self.system(self.parameter(index))
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], lx.AbstractLinearOperator)):
            raise ArgumentError("system", "must return a pair, a lineax operator and a right-hand side.")
        operator, rhs = pair[0], as_arrays(pair[1])
        shapes = [
            [leaf.shape for leaf in jtu.tree_leaves(tree)] for tree in (rhs, operator.out_structure(), operator.in_structure())
        ]
        if shapes[0] != shapes[1] or shapes[1] != shapes[2]:
            text = f"must return a square operator and a right-hand side that fits: it takes {shapes[2]} to {shapes[1]}, and the other is {shapes[0]}."
            raise ArgumentError("system", text)
        return operator, rhs

    @property
    def symmetric(self) -> bool:
        return lx.is_symmetric(eqx.filter_eval_shape(self.one, 0)[0])

    def _structure(self) -> PyTree:
        rhs = jax.eval_shape(lambda: self.one(0)[1])
        return jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape), leaf.dtype), rhs)

    def start(self, guess: PyTree) -> PyTree:
        if guess is None:
            return jtu.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._structure())
        return as_arrays(guess)

    def optimality(self, value: PyTree) -> PyTree:
        def left(index_and_x):
            index, x = index_and_x
            operator, rhs = self.one(index)
            return jtu.tree_map(lambda image, b: image - b, operator.mv(x), rhs)

        return jax.lax.map(left, (jnp.arange(self.count), value))

    def traced(self, guess: PyTree) -> "LinearSequence":
        need_same_structure("guess", jax.eval_shape(lambda: guess), self._structure(), error=GuessError)
        return self


def _permutation(order: Any, count: int) -> Array:
    if order is None:
        return jnp.arange(count)
    order = jnp.asarray(order)
    if order.shape != (count,) or not jnp.issubdtype(order.dtype, jnp.integer):
        raise ArgumentError("order", f"must be {count} whole numbers, not {order.dtype} of shape {order.shape}.")
    if not is_tracer(order) and not np.array_equal(np.sort(np.asarray(order)), np.arange(count)):
        raise ArgumentError("order", f"must hold each number from 0 to {count - 1} once.")
    return order


class SequenceState(eqx.Module):
    """How many systems are solved, their solutions, and what the method remembers; of each system, by its index, the iterations, the
    products with the matrix, the relative residual, whether the solver failed, and the parameter of the solver (or NaN)."""

    solved: Int[Array, ""]
    values: PyTree
    memory: PyTree
    iterations: Int[Array, " count"]
    products: Int[Array, " count"]
    residuals: Float[Array, " count"]
    failed: Bool[Array, " count"]
    chosen: Float[Array, " count"]
    counters: Counters


class Answer(eqx.Module):
    """The solution of one system, iterations and products with the matrix that it took, whether the solver succeeded, and the parameter it
    ran with."""

    value: PyTree
    iterations: Int[Array, ""]
    products: Int[Array, ""]
    successful: Bool[Array, ""]
    chosen: Array


class SequenceMethod(Method):
    """A method that solves the systems of a `LinearSequence` one after the other, and remembers something in between: abstract.

    Each step is one system. A system on which the solver fails keeps its best iterate, is marked as `failed` in the state, and does not end the
    sequence; a solve with such systems ends as `stopped`. The guess is where each system starts from; with `warm` it is the
    solution of the system before.

    In a loop of one's own, where the systems are not there in advance, as in a simulation:

    ```python
    import lineax as lx

    method = om.linear.RecycledSequence(om.linear.GCRODR(1e-5, restart=8, recycle=3))
    operator = lx.DiagonalLinearOperator(jnp.arange(1.0, 21.0))
    memory = method.begin(operator)
    for step in range(3):
        answer, memory = method.solve_next(memory, operator, jnp.ones(20) + step)
    ```
    """

    problem = LinearSequence

    solver: eqx.AbstractVar[Any]
    warm: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def begin(self, operator: lx.AbstractLinearOperator) -> PyTree:
        """What is remembered before the first system; the operator gives the shapes."""

    @abc.abstractmethod
    def solve_next(
        self,
        memory: PyTree,
        operator: lx.AbstractLinearOperator,
        rhs: PyTree,
        *,
        guess: PyTree = None,
        parameter: PyTree = None,
        key: Array | None = None,
    ) -> tuple[Answer, PyTree]:
        """The answer for one more system, and what is remembered after it. `parameter` is that of the system."""

    def init(self, problem: LinearSequence, guess: PyTree, *, key: Array | None) -> SequenceState:
        operator, rhs = problem.one(problem.order[0])
        real = jnp.finfo(jnp.result_type(*jtu.tree_leaves(rhs))).dtype
        unknown = jnp.full((problem.count,), jnp.nan, real)
        none = jnp.zeros((problem.count,), jnp.int32)
        return SequenceState(jnp.int32(0), guess, self.begin(operator), none, none, unknown, none > 0, unknown, Counters.zero())

    def step(self, problem: LinearSequence, state: SequenceState, *, key: Array | None) -> SequenceState:
        at = problem.order[jnp.minimum(state.solved, problem.count - 1)]
        operator, rhs = problem.one(at)
        take = lambda index: jtu.tree_map(lambda leaf: leaf[index], state.values)
        guess = take(at)
        if self.warm:
            before = take(problem.order[jnp.maximum(state.solved - 1, 0)])
            guess = jtu.tree_map(lambda old, new: jnp.where(state.solved > 0, old, new), before, guess)
        answer, memory = self.solve_next(state.memory, operator, rhs, guess=guess, parameter=problem.parameter(at), key=key)
        left = jtu.tree_map(lambda b, image: b - image, rhs, operator.mv(answer.value))
        size = _norm(rhs)
        put = lambda column, entry: column.at[at].set(jnp.asarray(entry).astype(column.dtype))
        return SequenceState(
            state.solved + 1,
            jtu.tree_map(put, state.values, answer.value),
            memory,
            put(state.iterations, answer.iterations),
            put(state.products, answer.products),
            put(state.residuals, _norm(left) / jnp.where(size > 0, size, 1)),
            put(state.failed, ~answer.successful),
            put(state.chosen, answer.chosen),
            state.counters.add(linear_solves=1, linear_iterations=answer.iterations),
        )

    def done(self, problem: LinearSequence, state: SequenceState):
        ended = jnp.where(jnp.any(state.failed), Result.stopped.code, Result.converged.code)
        return jnp.where(state.solved >= problem.count, ended, Result.running.code)

    def answer(self, problem: LinearSequence, state: SequenceState) -> PyTree:
        return state.values

    def metrics(self, problem: LinearSequence, state: SequenceState) -> dict[str, Any]:
        last = problem.order[jnp.maximum(state.solved - 1, 0)]
        return {
            "iterations": state.iterations[last],
            "products": state.products[last],
            "residual": state.residuals[last],
            "chosen": state.chosen[last],
            "failed": jnp.sum(state.failed),
        }


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jtu.tree_leaves(tree)))


def need_solver(solver: Any, kind: type = lx.AbstractLinearSolver, example: str = "optimand.linear.CG(1e-8)") -> None:
    """Raise unless this is a solver of that kind."""
    if not isinstance(solver, kind):
        raise ArgumentError("solver", f"must be a {kind.__name__}, not {type(solver).__name__}.", example)


def solved_by(
    solver: lx.AbstractLinearSolver, operator: lx.AbstractLinearOperator, rhs: PyTree, guess: PyTree, state: Any = None
) -> lx.Solution:
    """What lineax returns, whether the solver succeeded or not. Its derivative does not depend on where the solver began."""
    options = {} if guess is None else {"y0": jax.lax.stop_gradient(guess)}
    state = {} if state is None else {"state": jtu.tree_map(jax.lax.stop_gradient, state)}
    return lx.linear_solve(operator, rhs, solver, options=options, throw=False, **state)


def answer_of(solution: lx.Solution, chosen: Any = jnp.nan) -> Answer:
    """The answer of a solve by lineax; a solver that counts no iterations took one, and one that counts no products as many as iterations."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(solution.value)]))
    iterations = jnp.asarray(solution.stats.get("num_steps", 1), jnp.int32)
    products = jnp.asarray(solution.stats.get("products", iterations), jnp.int32)
    return Answer(solution.value, iterations, products, (solution.result == lx.RESULTS.successful) & finite, jnp.asarray(chosen))


class SolveEach(SequenceMethod):
    """Each system by itself, by any lineax solver: nothing is remembered but, with `warm`, the last solution.

    **Arguments:** `solver`: a lineax solver; `warm`: start each from the solution of the one before.
    """

    reference = "rader2023lineax"

    solver: Any
    warm: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        need_solver(self.solver)

    def begin(self, operator: lx.AbstractLinearOperator) -> PyTree:
        return None

    def solve_next(self, memory, operator, rhs, *, guess=None, parameter=None, key=None):
        return answer_of(solved_by(self.solver, operator, rhs, guess)), None
