"""Checkpoints: everything the next step needs, on disk, whole or not at all.

A file is one line of JSON (what it is, what it belongs to, a digest of the rest) and the leaves of the carry as
`equinox.tree_serialise_leaves` writes them, together with the history. It is written beside its final name, flushed to
the disk and renamed: a run that is killed while it writes leaves the checkpoint before.
"""

import dataclasses
import hashlib
import io
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .arguments import need_count, need_not_negative
from .errors import ArgumentError, CheckpointError
from .solution import Result
from .tracing import Traced

__all__ = ["Checkpoint"]

FORMAT = 1


class Checkpoint:
    """A callback that saves a solve so that it can be resumed: `solve(..., resume=path)` gives the same bits.

    **Arguments:**

    - `path`: the file. It is replaced whole, never half.
    - `every`: save after so many steps; and also
    - `seconds`: when so much time has passed since the last time (default 10 s), and at the end.

    A disk that is full does not end the solve: the last good checkpoint stays, and a warning says so.
    """

    def __init__(self, path: str | os.PathLike, every: int | None = None, seconds: float = 10.0):
        if every is not None:
            need_count("every", every)
        need_not_negative("seconds", seconds)
        self.path = Path(path)
        self.every = every
        self.seconds = seconds
        self.saved = time.monotonic()
        if not self.path.parent.is_dir():
            raise ArgumentError("path", f"lies in {self.path.parent}, which is not a folder.", "Create it first.")

    def __call__(self, event) -> None:
        """Save, if it is time."""
        due = event.final or (self.every and event.step % self.every == 0)
        if due or time.monotonic() - self.saved >= self.seconds:
            self.saved = time.monotonic()
            try:
                write_checkpoint(self.path, event.carry, event.history, event.fingerprint)
            except OSError as error:
                warnings.warn(
                    f"checkpoint at step {event.step} was not written ({error}); the one before is kept",
                    RuntimeWarning,
                    stacklevel=2,
                )


def write_checkpoint(path: Path, carry: PyTree, history: dict[str, np.ndarray], identity: dict[str, str]) -> None:
    """Write atomically. Raises `OSError` when the disk will not have it, leaving the old file as it was."""
    payload = io.BytesIO()
    leaves = io.BytesIO()
    eqx.tree_serialise_leaves(leaves, _storable(carry))
    columns: dict[str, Any] = {f"history/{name}": column for name, column in history.items()}
    np.savez(payload, leaves=np.frombuffer(leaves.getvalue(), np.uint8), **columns)
    data = payload.getvalue()
    header = {
        "optimand": "checkpoint",
        "format": FORMAT,
        "step": int(carry.step),
        "digest": hashlib.sha256(data).hexdigest(),
        **identity,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Any, like: PyTree, identity: dict[str, str]) -> tuple[PyTree, dict[str, np.ndarray]]:
    """The carry and the history; refused with a `CheckpointError` if damaged or of something else."""
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError("resume", f"must be the path of a checkpoint, not {path!r}.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError("resume", f"cannot be read: {error}.") from None
    line, _, data = content.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        header = None
    if not isinstance(header, dict) or header.get("optimand") != "checkpoint":
        raise CheckpointError("resume", f"({path}) is not an optimand checkpoint.")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            "resume",
            f"({path}) has format {header.get('format')}; this version reads {FORMAT}.",
            "Start anew.",
        )
    if hashlib.sha256(data).hexdigest() != header.get("digest"):
        raise CheckpointError("resume", f"({path}) is truncated or damaged.", "Use an older one, or start anew.")
    for part, wanted in identity.items():
        if header.get(part) != wanted:
            raise CheckpointError(
                "resume",
                f"({path}) was written by a solve with another {part}.",
                f"Give the same {part}, or start anew.",
            )
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        history = {name.removeprefix("history/"): stored[name] for name in stored.files if name != "leaves"}
        leaves = io.BytesIO(stored["leaves"].tobytes())
    try:
        carry = eqx.tree_deserialise_leaves(leaves, _storable(like))
    except Exception as error:
        raise CheckpointError("resume", f"({path}) does not fit the state of this method: {error}") from None
    carry = jtu.tree_map(
        lambda old, new: jax.random.wrap_key_data(new) if _is_key(old) else new, like, carry, is_leaf=_is_key
    )
    cut_short = (Result.budget_spent, Result.interrupted, Result.stopped)  # and can go on
    if any(int(carry.code) == result.code for result in cut_short):
        carry = eqx.tree_at(lambda c: c.code, carry, jnp.asarray(Result.running.code))
    return carry, history


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(tree):
    return jtu.tree_map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def fingerprint(problem: PyTree, method: PyTree, key: Any) -> dict[str, str]:
    """Digests of a problem, a method and a key: their types, functions, shapes and numbers."""
    return {"problem": _digest(problem), "method": _digest(method), "key": _digest(key)}


_SAMPLED_ABOVE = 1 << 16  # numbers; of a larger array an evenly spaced sample and the sum of all bits are digested


def _digest(tree: PyTree) -> str:
    digest = hashlib.sha256()
    digest.update(type(tree).__qualname__.encode())
    is_leaf = lambda node: isinstance(node, Traced)
    for path, leaf in jtu.tree_leaves_with_path(_storable(tree), is_leaf=is_leaf):
        digest.update(jtu.keystr(path).encode())
        if isinstance(leaf, Traced):
            digest.update(leaf.describe().encode())
            arrays = jtu.tree_leaves(eqx.filter(leaf, eqx.is_array))
        else:
            arrays = [leaf] if eqx.is_array(leaf) else []
            if not arrays:
                digest.update(getattr(leaf, "__qualname__", "" if callable(leaf) else repr(leaf)).encode())
        for array in arrays:
            array = np.asarray(array)
            digest.update(f"{array.shape}{array.dtype}".encode())
            flat = array.reshape(-1)
            if flat.size > _SAMPLED_ABOVE:
                digest.update(_sum_of_bits(flat))
                flat = flat[:: flat.size // _SAMPLED_ABOVE + 1]
            digest.update(np.ascontiguousarray(flat).tobytes())
    digest.update(_static_fields(tree).encode())
    return digest.hexdigest()[:32]


def _sum_of_bits(flat: np.ndarray) -> bytes:
    """The sum of an array's words: it notices one number that has changed, at the speed of the memory."""
    octets = np.ascontiguousarray(flat).view(np.uint8)
    whole = len(octets) // 8 * 8
    return octets[:whole].view(np.uint64).sum(dtype=np.uint64).tobytes() + octets[whole:].tobytes()


def _static_fields(tree) -> str:
    """The static fields of a module that are plain numbers and strings, which are not leaves."""
    if not dataclasses.is_dataclass(tree):
        return ""
    plain = (bool, int, float, str, tuple, type(None))
    fields = [field for field in dataclasses.fields(tree) if field.metadata.get("static", False)]
    return repr([(f.name, getattr(tree, f.name)) for f in fields if isinstance(getattr(tree, f.name), plain)])
