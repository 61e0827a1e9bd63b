"""What is optimised: problems that know their own optimality conditions.

A problem is an `equinox.Module` of pure functions and arrays. It holds no algorithm, no tolerance and no state. What
makes it a problem is `optimality(value)`: zero exactly where `value` is a solution (a stationary point, at the least).
Methods use the other functions (`value_and_gradient`, `residual`, ...) to get there; the gradient of a solution with
respect to the problem uses the optimality condition only.

| problem | solution | condition F |
|---|---|---|
| `Minimize(f)` | min f(x) | grad f(x) |
| `LeastSquares(r)` | min 1/2 |r(x)|^2 | J(x)' r(x) |
| `Fit(loss, model, data)` | min mean_i loss(model, data_i) | its gradient over all data |
| `Composite(f, prox)` | min f(x) + g(x) | x - prox_g(x - grad f(x)) |
| `Constrained(f, h, g, l, u)` | min f, h = 0, g <= 0, l <= x <= u | the KKT conditions on a `PrimalDual` |
| `Root(r)` | r(x) = 0 | r(x) |
| `FixedPoint(T)` | T(x) = x | T(x) - x |
| `Linear(A, b)` | A x = b | A x - b |
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .errors import ArgumentError, GuessError, ObjectiveError
from .tracing import (
    as_arrays,
    need_callable,
    need_floating,
    need_same_structure,
    need_scalar,
    show,
    trace_function,
)

__all__ = ["Composite", "FixedPoint", "LeastSquares", "Linear", "Minimize", "Objective", "Problem", "Root"]


class Problem(eqx.Module):
    """The abstract problem."""

    @abc.abstractmethod
    def optimality(self, value: PyTree) -> PyTree:
        """F(value), with the structure of `value`; zero at a solution."""

    @abc.abstractmethod
    def traced(self, guess: PyTree) -> "Problem":
        """This problem with each of its functions traced once, at a guess like this one (its arrays may be abstract).

        This is where a function of the wrong kind is found out, before anything is compiled.
        """

    def start(self, guess: PyTree) -> PyTree:
        """The value a method starts from. Most problems take the guess as it is."""
        if guess is None:
            raise GuessError("guess", f"is missing: {type(self).__name__} cannot make one up.")
        return as_arrays(guess)

    def check(self, guess: PyTree) -> None:
        """Raise a `GuessError` if this is not something to start from: before anything is traced."""
        for path, leaf in jtu.tree_leaves_with_path(guess):
            name = f"guess{jtu.keystr(path)}"
            integer = eqx.is_array(leaf) and not jnp.issubdtype(leaf.dtype, jnp.inexact)
            if integer or isinstance(leaf, bool | int):
                kind = getattr(leaf, "dtype", type(leaf).__name__)
                raise GuessError(
                    name, f"has dtype {kind}; only floating-point numbers can be optimised.", "Use floats."
                )
            if eqx.is_array(leaf) and jnp.iscomplexobj(leaf):
                raise GuessError(name, "is complex.", "Optimise its real and imaginary parts.")
        if not jtu.tree_leaves(eqx.filter(guess, eqx.is_inexact_array)):
            raise GuessError("guess", "holds no floating-point array: there is nothing to optimise.")

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian of the optimality condition is symmetric."""
        return False

    def aux(self, value: PyTree) -> PyTree:
        """What the objective returns beside its value."""
        return None

    def preconditioner(self, value: PyTree) -> Callable[[], Callable] | None:
        """What makes a preconditioner for the linear system of a derivative at this solution: a map, symmetric and positive, from a right-hand
        side to an approximate solution.

        Called where the Jacobian of the optimality condition is symmetric and conjugate gradients have not solved the system in a hundred
        steps. None: there is none.
        """
        return None

    def at_guess(self, value: PyTree) -> PyTree:
        """Numbers that must be finite at the guess for the problem to make sense there."""
        return ()


class Objective(Problem):
    """A problem with a scalar objective and its gradient: abstract, what first-order and quasi-Newton methods need."""

    @abc.abstractmethod
    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        """The objective at `x`; an unbiased estimate of it from a batch if the problem is stochastic and `key` given."""

    def value_and_gradient(self, x: PyTree, *, key: Array | None = None) -> tuple[Array, PyTree]:
        """The objective and its gradient at `x`, from the same batch."""
        return jax.value_and_grad(lambda x: self.value(x, key=key))(x)

    def gradient(self, x: PyTree, *, key: Array | None = None) -> PyTree:
        """The gradient at `x`."""
        return jax.grad(lambda x: self.value(x, key=key))(x)

    def optimality(self, value: PyTree) -> PyTree:
        return self.gradient(value)

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def stochastic(self) -> bool:
        """Whether `key` matters."""
        return False

    def at_guess(self, value: PyTree) -> PyTree:
        return self.value(value)


class Minimize(Objective):
    """Minimise `fn(x, *args)`.

    **Arguments:**

    - `fn`: returns a scalar, or a pair (scalar, anything) if `has_aux`.
    - `args`: passed on; a solution can be differentiated with respect to every floating-point array in them, in what
      `fn` closes over, and in `fn` itself if that is a module.
    """

    fn: Callable
    args: tuple
    has_aux: bool = eqx.field(static=True)

    def __init__(self, fn: Callable, *args: PyTree, has_aux: bool = False):
        self.fn = need_callable(fn, "fn")
        self.args = as_arrays(args)
        self.has_aux = has_aux

    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        out = self.fn(x, *self.args)
        return out[0] if self.has_aux else out

    def aux(self, value: PyTree) -> PyTree:
        return self.fn(value, *self.args)[1] if self.has_aux else None

    def traced(self, guess: PyTree) -> "Minimize":
        fn = trace_function("fn", self.fn, guess, *self.args)
        out = fn.output
        if self.has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise ObjectiveError("fn", f"must return (value, aux), because has_aux=True; it returns {show(out)}.")
            out = out[0]
        need_scalar("fn", out, has_aux=self.has_aux)
        return eqx.tree_at(lambda p: p.fn, self, fn)


class LeastSquares(Objective):
    """Minimise half the sum of squares of `fn(x, *args)`, a pytree of residuals."""

    fn: Callable
    args: tuple

    def __init__(self, fn: Callable, *args: PyTree):
        self.fn = need_callable(fn, "fn")
        self.args = as_arrays(args)

    def residual(self, x: PyTree) -> PyTree:
        """The residuals r(x)."""
        return self.fn(x, *self.args)

    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        return jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jtu.tree_leaves(self.residual(x))]).sum() / 2

    def traced(self, guess: PyTree) -> "LeastSquares":
        fn = trace_function("fn", self.fn, guess, *self.args)
        need_floating("fn", fn.output)
        return eqx.tree_at(lambda p: p.fn, self, fn)


class Composite(Problem):
    r"""Minimise \(f(x) + g(x)\): `f` smooth, `g` known through its proximal operator.

    **Arguments:**

    - `fn`: the smooth part, `fn(x, *args)`, a scalar.
    - `prox`: `prox(x, step_size, *prox_args)` = argmin over z of g(z) + |z - x|^2 / (2 step_size). A projection, if `g`
      is the indicator of a set.
    - `penalty`: `penalty(x, *prox_args)` = g(x), if its value matters (for the history, and for line searches).
    """

    smooth: Minimize
    prox_fn: Callable
    prox_args: tuple
    penalty_fn: Callable | None

    def __init__(
        self,
        fn: Callable,
        prox: Callable,
        *args: PyTree,
        prox_args: tuple = (),
        penalty: Callable | None = None,
    ):
        self.smooth = Minimize(fn, *args)
        self.prox_fn = need_callable(prox, "prox")
        self.prox_args = as_arrays(tuple(prox_args))
        self.penalty_fn = None if penalty is None else need_callable(penalty, "penalty")

    def prox(self, x: PyTree, step_size: Any) -> PyTree:
        """The proximal operator of `step_size * g`."""
        return self.prox_fn(x, step_size, *self.prox_args)

    def value(self, x: PyTree) -> Array:
        """The objective, without g if its `penalty` is not known."""
        value = self.smooth.value(x)
        return value if self.penalty_fn is None else value + self.penalty_fn(x, *self.prox_args)

    def optimality(self, value: PyTree) -> PyTree:
        gradient = self.smooth.gradient(value)
        moved = self.prox(jtu.tree_map(lambda x, g: x - g, value, gradient), jnp.ones(()))
        return jtu.tree_map(lambda x, y: x - y, value, moved)

    def at_guess(self, value: PyTree) -> PyTree:
        return self.smooth.value(value)

    def traced(self, guess: PyTree) -> "Composite":
        arrays = eqx.filter(guess, eqx.is_array)
        dtype = jnp.result_type(*(leaf.dtype for leaf in jtu.tree_leaves(arrays)))
        prox = trace_function("prox", self.prox_fn, guess, jax.ShapeDtypeStruct((), dtype), *self.prox_args)
        need_same_structure("prox", prox.output, guess)
        smooth = self.smooth.traced(guess)
        penalty = self.penalty_fn
        if penalty is not None:
            penalty = trace_function("penalty", penalty, guess, *self.prox_args)
            need_scalar("penalty", penalty.output)
        return eqx.tree_at(
            lambda p: (p.smooth, p.prox_fn, p.penalty_fn),
            self,
            (smooth, _Promoting(prox, dtype), penalty),
            is_leaf=lambda leaf: leaf is None,
        )


class _Promoting(eqx.Module):
    """A traced proximal operator that accepts any number as step size."""

    prox: Callable
    dtype: Any = eqx.field(static=True)

    def __call__(self, x, step_size, *args):
        return self.prox(x, jnp.asarray(step_size, self.dtype), *args)


class Root(Problem):
    """Find `x` with `fn(x, *args) = 0`, where `fn` returns the structure of `x`."""

    fn: Callable
    args: tuple

    def __init__(self, fn: Callable, *args: PyTree):
        self.fn = need_callable(fn, "fn")
        self.args = as_arrays(args)

    def residual(self, x: PyTree) -> PyTree:
        """fn(x, *args)."""
        return self.fn(x, *self.args)

    def optimality(self, value: PyTree) -> PyTree:
        return self.residual(value)

    def at_guess(self, value: PyTree) -> PyTree:
        return self.residual(value)

    def traced(self, guess: PyTree) -> "Root":
        fn = trace_function("fn", self.fn, guess, *self.args)
        need_same_structure("fn", fn.output, guess)
        return eqx.tree_at(lambda p: p.fn, self, fn)


class FixedPoint(Problem):
    """Find `x` with `fn(x, *args) = x`."""

    fn: Callable
    args: tuple

    def __init__(self, fn: Callable, *args: PyTree):
        self.fn = need_callable(fn, "fn")
        self.args = as_arrays(args)

    def apply(self, x: PyTree) -> PyTree:
        """fn(x, *args)."""
        return self.fn(x, *self.args)

    def optimality(self, value: PyTree) -> PyTree:
        return jtu.tree_map(lambda image, x: image - x, self.apply(value), value)

    def at_guess(self, value: PyTree) -> PyTree:
        return self.apply(value)

    def traced(self, guess: PyTree) -> "FixedPoint":
        fn = trace_function("fn", self.fn, guess, *self.args)
        need_same_structure("fn", fn.output, guess)
        return eqx.tree_at(lambda p: p.fn, self, fn)


class Linear(Problem):
    """Solve `operator x = rhs`, with a square `lineax` operator.

    Without a guess, the start is zero.
    """

    operator: Any  # lineax is loaded by those who use it
    rhs: PyTree

    def __init__(self, operator: Any, rhs: PyTree):
        import lineax as lx

        if not isinstance(operator, lx.AbstractLinearOperator):
            raise ArgumentError(
                "operator",
                f"must be a lineax operator, not {type(operator).__name__}.",
                "Wrap a matrix in lineax.MatrixLinearOperator.",
            )
        if [leaf.shape for leaf in jtu.tree_leaves(operator.in_structure())] != [
            leaf.shape for leaf in jtu.tree_leaves(operator.out_structure())
        ]:
            shape = f"{operator.out_size()} rows and {operator.in_size()} columns"
            raise ArgumentError("operator", f"must be square, not of {shape}.", "LeastSquares takes any shape.")
        self.operator = operator
        self.rhs = as_arrays(rhs)
        expected, got = jax.eval_shape(lambda: operator.out_structure()), jax.eval_shape(lambda: self.rhs)
        if jtu.tree_structure(operator.out_structure()) != jtu.tree_structure(self.rhs) or [
            leaf.shape for leaf in jtu.tree_leaves(operator.out_structure())
        ] != [leaf.shape for leaf in jtu.tree_leaves(self.rhs)]:
            raise ArgumentError(
                "rhs", f"does not have the shape of the operator's output: {show(got)}.", show(expected)
            )

    @property
    def symmetric(self) -> bool:
        import lineax as lx

        return lx.is_symmetric(self.operator)

    def start(self, guess: PyTree) -> PyTree:
        if guess is None:
            return jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), self.operator.in_structure())
        return as_arrays(guess)

    def optimality(self, value: PyTree) -> PyTree:
        return jtu.tree_map(lambda image, b: image - b, self.operator.mv(value), self.rhs)

    def at_guess(self, value: PyTree) -> PyTree:
        return self.rhs

    def traced(self, guess: PyTree) -> "Linear":
        need_same_structure("guess", jax.eval_shape(lambda: guess), self.operator.in_structure(), error=GuessError)
        return self
