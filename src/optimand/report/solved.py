"""A solution as a file: the arrays of its value, by the path of each in the pytree."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from .record import write_whole

__all__ = ["save_value"]


def save_value(path: Path, value: Any) -> list[str]:
    """Write the array leaves of a pytree as `.npz`: "value" if it is one array, else "primal", "0.weight", ...

    **Returns:** the names.
    """
    import equinox as eqx
    import jax.tree_util as jtu

    arrays: dict[str, Any] = {}
    for where, leaf in jtu.tree_leaves_with_path(eqx.filter(value, eqx.is_inexact_array_like)):
        name = re.sub(r"[\[\]'\"]+", ".", jtu.keystr(where)).strip(".")
        arrays[re.sub(r"\.+", ".", name) or "value"] = np.asarray(leaf)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(path, content.getvalue())
    return list(arrays)
