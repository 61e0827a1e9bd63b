"""Batches of solves on a CPU: some tens of instances at a time.

Under `vmap` a loop goes on until its slowest instance has ended, and each of its operations passes through the memory of the whole
batch. In tiles, one after the other, an instance waits for the slowest of its tile only, and what a step needs stays in the cache.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

__all__ = ["in_tiles"]

TILE = 32  # instances at most


def in_tiles(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, of which a batch is made in tiles.

    Not where there is no CPU, or more than one device, over which a batch may be spread, nor where instances of a named axis speak
    with each other. It cannot be differentiated: give what contains it a rule of its own.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return fn(*args)
    closed: Any = eqx.filter_closure_convert(lambda *args: fn(*args), *args)  # a lambda, of which Equinox makes a jaxpr
    if any(type(effect).__name__ == "NamedAxisEffect" for effect in closed.jaxpr.effects):
        return closed(*args)
    arrays, static = eqx.partition((closed, args), eqx.is_array)
    leaves, structure = jtu.tree_flatten(arrays)
    still: list[Any] = []

    def call(*leaves):
        closed, args = eqx.combine(jtu.tree_unflatten(structure, leaves), static)
        out, rest = eqx.partition(closed(*args), eqx.is_array)
        still.append(rest)
        return out

    out = _tiled(call)(*leaves)
    return eqx.combine(out, still[0])


def _tiled(call: Callable[..., Any]) -> Callable[..., Any]:
    one = jax.custom_batching.custom_vmap(call)

    @one.def_vmap
    def _(size, moves, *leaves):
        axes = tuple(0 if moving else None for moving in moves)
        whole = jax.vmap(call, axes)
        tiles = math.ceil(size / TILE)
        if tiles <= 1:
            out = _tiled(whole)(*leaves)  # this batch may be one of many
        else:
            width = math.ceil(size / tiles)
            place = jnp.minimum(jnp.arange(tiles * width), size - 1).reshape(tiles, width)  # the last one fills up
            moving = [leaf[place] for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]

            def tile(moving):
                rows = iter(moving)
                return whole(*(leaf if axis is None else next(rows) for leaf, axis in zip(leaves, axes, strict=True)))

            folded = jax.lax.map(tile, moving)
            out = jtu.tree_map(lambda leaf: leaf.reshape(tiles * width, *leaf.shape[2:])[:size], folded)
        return out, jtu.tree_map(lambda _: True, out)

    return one
