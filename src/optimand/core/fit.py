"""Fitting a model to data: the finite-sum problem that training is."""

import inspect
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .arguments import need_count
from .errors import ArgumentError, GuessError
from .problem import Objective
from .tracing import as_arrays, need_callable, need_scalar, trace_function

__all__ = ["Fit"]


class Fit(Objective):
    """Fit a model to data: minimise the mean of `loss(model, example, key)` over the examples.

    **Arguments:**

    - `loss`: the loss of *one* example, a scalar. It is vectorised over examples here, so that per-example gradients
      exist. It may leave out `key`; a key is given during stochastic steps, and a fixed one otherwise.
    - `model`: any pytree with floating-point arrays; where the fit starts if `solve` gets no guess.
    - `data`: a pytree whose arrays share a leading axis of examples.
    - `batch_size`: examples a step, drawn without replacement as a function of the step's key. `None` is all of them.
    - `chunk`: compute at most so many examples at once, to bound memory.
    """

    loss: Callable
    model: PyTree
    data: PyTree
    batch_size: int | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable,
        model: PyTree,
        data: PyTree,
        *,
        batch_size: int | None = None,
        chunk: int | None = None,
    ):
        need_callable(loss, "loss")
        self.loss = loss if _takes_key(loss) else _Keyless(loss)
        self.model = model
        try:
            self.data = jtu.tree_map(jnp.asarray, data)
        except TypeError as error:
            raise ArgumentError("data", f"must hold numeric arrays: {error}") from None
        sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jtu.tree_leaves(self.data)}
        if len(sizes) != 1 or None in sizes or 0 in sizes:
            found = ", ".join(str(leaf.shape) for leaf in jtu.tree_leaves(self.data))
            raise ArgumentError(
                "data", f"needs one leading axis of examples, the same in every array; shapes: {found}."
            )
        count = self.count
        if batch_size is not None:
            need_count("batch_size", batch_size)
            if batch_size > count:
                raise ArgumentError("batch_size", f"must lie between 1 and the {count} examples, not {batch_size}.")
        if chunk is not None:
            need_count("chunk", chunk)
        self.batch_size = batch_size
        self.chunk = chunk

    @property
    def count(self) -> int:
        """The number of examples."""
        return jtu.tree_leaves(self.data)[0].shape[0]

    @property
    def stochastic(self) -> bool:
        return self.batch_size is not None and self.batch_size < self.count

    def batch(self, key: Array | None) -> PyTree:
        """The examples of the step with this key: all of them without a key."""
        if key is None or not self.stochastic:
            return self.data
        chosen = jax.random.choice(key, self.count, (self.batch_size or self.count,), replace=False)
        return jtu.tree_map(lambda leaf: leaf[chosen], self.data)

    def losses(self, x: PyTree, examples: PyTree, *, key: Array | None = None) -> Array:
        """The loss of each of these examples, shape (examples,)."""
        keys = jax.random.split(jax.random.key(0) if key is None else key, jtu.tree_leaves(examples)[0].shape[0])
        one = lambda example_and_key: self.loss(x, *example_and_key)
        if self.chunk is None:
            return jax.vmap(one)((examples, keys))
        return jax.lax.map(one, (examples, keys), batch_size=self.chunk)

    def value(self, x: PyTree, *, key: Array | None = None) -> Array:
        return jnp.mean(self.losses(x, self.batch(key), key=key))

    def start(self, guess: PyTree) -> PyTree:
        guess = self.model if guess is None else guess
        expected, got = jtu.tree_structure(self.model), jtu.tree_structure(guess)
        if expected != got:
            raise GuessError("guess", "has another structure than the model.", f"\n  model: {expected}\n  guess: {got}")
        for (path, new), old in zip(jtu.tree_leaves_with_path(guess), jtu.tree_leaves(self.model), strict=True):
            if eqx.is_array_like(old) and jnp.shape(new) != jnp.shape(old):
                name = f"guess{jtu.keystr(path)}"
                raise GuessError(name, f"has shape {jnp.shape(new)}; that leaf of the model has {jnp.shape(old)}.")
        return as_arrays(guess)

    def check(self, guess: PyTree) -> None:  # a model may well hold integers and flags, which stay as they are
        if not jtu.tree_leaves(eqx.filter(guess, eqx.is_inexact_array)):
            raise GuessError("guess", "holds no floating-point array: there is nothing to fit.")
        for path, leaf in jtu.tree_leaves_with_path(guess):
            if eqx.is_array(leaf) and jnp.iscomplexobj(leaf):
                raise GuessError(f"guess{jtu.keystr(path)}", "is complex.", "Fit its real and imaginary parts.")

    def traced(self, guess: PyTree) -> "Fit":
        example = jtu.tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.data)
        key = jax.eval_shape(lambda: jax.random.key(0))
        loss = trace_function("loss", self.loss, guess, example, key)
        need_scalar("loss", loss.output)
        return eqx.tree_at(lambda p: (p.loss, p.model), self, (loss, None), is_leaf=lambda leaf: leaf is None)


class _Keyless(eqx.Module):
    """A loss that takes no key, as one that does."""

    loss: Callable

    def __call__(self, model, example, key):
        del key
        return self.loss(model, example)


def _takes_key(loss: Callable) -> bool:
    try:
        inspect.signature(loss).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
