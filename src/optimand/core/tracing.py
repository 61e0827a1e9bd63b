"""Trace a user's function once, and never call its Python again.

`trace_once(fn, *args)` returns a function of the same arguments that replays the recorded jaxpr. Everything that `fn`
closes over, tracers of an outer transformation included, becomes a leaf of the result: so a problem whose functions are
traced can be differentiated with respect to what they captured, cross a `custom_jvp` boundary, and be a jit argument.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .errors import ArgumentError, GuessError, ObjectiveError, OptimandError

__all__ = ["Traced", "as_arrays", "inside_transformation", "trace_function", "trace_once"]


def is_tracer(leaf: Any) -> bool:
    """Whether this stands for an array that is not there yet."""
    return isinstance(leaf, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]


class Traced(eqx.Module):
    """A function as a jaxpr. `arrays` are those of the function object itself, for instance a model's weights."""

    arrays: PyTree
    replay: Callable
    structure: Any = eqx.field(static=True)

    def __call__(self, *args):
        return self.replay(self.arrays, *args)

    @property
    def output(self) -> PyTree:
        """The structure of the output: `jax.ShapeDtypeStruct`s where it has arrays."""
        return self.structure.tree

    def describe(self) -> str:
        """The recorded computation as text that is the same in every process."""
        jaxpr = getattr(self.replay, "jaxpr", None)
        return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


def trace_once(fn: Callable, *args: PyTree) -> Traced:
    """Record `fn(*args)`. Arrays (and `jax.ShapeDtypeStruct`s) in `args` are abstract; anything else is fixed.

    Eager solves of the same function object with arguments of the same shapes reuse one recording, so that what was
    compiled for it is reused too.
    """
    arrays, static = eqx.partition(fn, eqx.is_array)

    def call(arrays, *args):
        return eqx.combine(arrays, static)(*args)

    key = _cache_key(static, (arrays, args))
    known = _recordings.find(key)
    if known is not None:
        return Traced(arrays, *known)
    captured = {}

    def recorded(arrays, *args):
        out = call(arrays, *args)
        captured["output"] = jtu.tree_map(_struct, out)
        return out

    replay = eqx.filter_closure_convert(recorded, arrays, *args)
    structure = _Hashable(captured["output"])
    has_tracer = any(is_tracer(leaf) for leaf in jtu.tree_leaves(replay))
    if not has_tracer:
        _recordings.keep(key, (replay, structure))
    return Traced(arrays, replay, structure)


class _Recordings:
    """The last `most` recordings, for several threads. The key None stands for what must not be kept."""

    def __init__(self, most: int):
        self.most = most
        self.kept: OrderedDict = OrderedDict()
        self.lock = threading.Lock()

    def find(self, key):
        with self.lock:
            if key is None or key not in self.kept:
                return None
            self.kept.move_to_end(key)
            return self.kept[key]

    def keep(self, key, recording) -> None:
        with self.lock:
            if key is not None:
                self.kept[key] = recording
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)


_recordings = _Recordings(64)


class _Hashable:
    """A pytree of structs that compares and hashes by value, to be a static field."""

    def __init__(self, tree):
        self.tree = tree
        leaves, self.treedef = jtu.tree_flatten(tree)
        self.leaves = tuple(leaves)

    def __eq__(self, other):
        return isinstance(other, _Hashable) and (self.leaves, self.treedef) == (other.leaves, other.treedef)

    def __hash__(self):
        return hash((self.leaves, self.treedef))


def _struct(leaf):
    if eqx.is_array_like(leaf):
        return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    return leaf


def _cache_key(static, dynamic):
    leaves, treedef = jtu.tree_flatten((static, dynamic))
    if any(is_tracer(leaf) for leaf in leaves) or inside_transformation():
        return None
    parts = tuple(_key_part(leaf) for leaf in leaves)
    config: Any = jax.config
    key = (parts, treedef, config.jax_enable_x64, config.jax_default_matmul_precision)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _key_part(leaf):
    if isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):  # a weakly typed number promotes differently
        return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)
    return type(leaf), repr(leaf) if isinstance(leaf, float) else leaf  # 1 == True and 0.0 == -0.0


def inside_transformation(*trees: PyTree) -> bool:
    """Whether we are being traced: some leaf is a tracer, or an outer `jit` records what is computed here."""
    if any(is_tracer(leaf) for leaf in jtu.tree_leaves(trees)):
        return True
    return is_tracer(jnp.add(np.float32(0), np.float32(0)))


def as_arrays(tree: PyTree) -> PyTree:
    """NumPy arrays and Python floats as JAX arrays; integers, strings and functions stay what they are."""

    def convert(leaf):
        if isinstance(leaf, np.ndarray | np.generic | float | complex) and not isinstance(leaf, np.bool_):
            return jnp.asarray(leaf) if np.asarray(leaf).dtype != object else leaf
        return leaf

    return jtu.tree_map(convert, tree)


# What a user's function is asked to return, found out while it is traced.


def need_callable(fn: Any, name: str) -> Callable:
    """`fn`, if it can be called."""
    if not callable(fn):
        raise ArgumentError(name, f"must be callable, not {type(fn).__name__}.")
    return fn


def trace_function(name: str, fn: Callable, x: PyTree, *args: PyTree) -> Traced:
    """`trace_once(fn, x, *args)` as a function of the inexact arrays of `x` alone (its other leaves are fixed).

    A failure says which function of the problem it was and what it was called with.
    """
    unknown, rest = eqx.partition(x, _is_inexact)
    if jtu.tree_leaves(rest):
        fn = _Recombined(fn, rest)
    try:
        return trace_once(fn, unknown, *args)
    except OptimandError:
        raise
    except Exception as error:
        raise GuessError(
            "guess",
            f"does not suit `{name}`, which raised {type(error).__name__} when called with\n  {show(x)}\n{error}",
        ) from error


class _Recombined(eqx.Module):
    """A function of a whole pytree as one of its inexact arrays."""

    fn: Callable
    rest: PyTree

    def __call__(self, unknown, *args):
        return self.fn(eqx.combine(unknown, self.rest), *args)


def _is_inexact(leaf) -> bool:
    abstract = isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return abstract or eqx.is_inexact_array(leaf)


def need_scalar(name: str, output: PyTree, has_aux: bool = False) -> None:
    """An objective must return one floating-point number."""
    if not isinstance(output, jax.ShapeDtypeStruct) and not isinstance(output, float):
        hint = "" if has_aux else "If it returns (value, aux), say has_aux=True."
        raise ObjectiveError(name, f"must return a scalar; it returns {show(output)}.", hint)
    if isinstance(output, jax.ShapeDtypeStruct):
        if output.shape != ():
            raise ObjectiveError(name, f"must return a scalar; it returns shape {output.shape}.", "Sum or average it.")
        if not jnp.issubdtype(output.dtype, jnp.floating):
            raise ObjectiveError(name, f"must return a real floating-point number; it returns {output.dtype}.")


def need_floating(name: str, output: PyTree) -> None:
    """Residuals must be floating-point arrays."""
    for path, leaf in jtu.tree_leaves_with_path(output):
        if not isinstance(leaf, jax.ShapeDtypeStruct) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jtu.keystr(path)
            raise ObjectiveError(name, f"must return real floating-point arrays; output{where} is {show(leaf)}.")


def need_same_structure(name: str, output: PyTree, x: PyTree, error: type = ObjectiveError) -> None:
    """A map from the unknown to itself must keep its structure, shapes and dtypes."""
    expected = jax.eval_shape(lambda: eqx.filter(x, eqx.is_array_like)) if not _abstract(x) else x
    same = jtu.tree_structure(output) == jtu.tree_structure(expected) and all(
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in zip(jtu.tree_leaves(output), jtu.tree_leaves(expected), strict=True)
    )
    if not same:
        raise error(
            name,
            "must have the structure, shapes and dtypes of the unknown.",
            f"\n  unknown: {show(expected)}\n  {name}: {show(output)}",
        )


def _abstract(x) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jtu.tree_leaves(x))


def show(tree: PyTree) -> str:
    """A pytree in a line or a few: shapes and dtypes of its arrays."""
    return eqx.tree_pformat(tree, struct_as_array=True)
