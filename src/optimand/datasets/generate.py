"""Data sets of solutions of linear systems: solved in a good order, in parallel, and taken up where they were stopped."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ..core.arguments import need_count
from ..core.budget import Budget
from ..core.checkpoint import Checkpoint
from ..core.errors import ArgumentError, OptimandError
from ..core.executor import Executor, Failure, SerialExecutor
from ..core.solve import solve
from .fields import LAYOUTS, FieldData, write_fields, write_whole

__all__ = ["Generated", "generate_dataset"]


class Generated(NamedTuple):
    """The samples, in the order of the parameters, and of each the iterations, products with the matrix, relative residual and whether the solver failed;
    and the order in which they were solved."""

    data: FieldData
    iterations: np.ndarray
    products: np.ndarray
    residuals: np.ndarray
    failed: np.ndarray
    order: np.ndarray


def generate_dataset(
    path: str | os.PathLike,
    family: Any,
    parameters: PyTree,
    method: Any,
    *,
    order: Any = None,
    groups: int = 1,
    executor: Executor | None = None,
    layout: str = "pdebench",
    every: int = 20,
    seed: int = 0,
) -> Generated:
    """Solve one system for each parameter, and write the solutions and what made them to a file.

    **Arguments:**

    - `path`: an `.h5` or `.hdf5` file.
    - `family`: an `optimand.physics.EllipticFamily`, or what has its `system`, `field`, `inputs` and `points`.
    - `parameters`: arrays whose leading axis counts the samples.
    - `method`: for an `optimand.linear.LinearSequence`: `RecycledSequence(GCRODR(1e-8))`, ...
    - `order`: as for `LinearSequence`. With several groups it is found first for all, which is then cut, and again in each group.
    - `groups`: so many chains, solved each by itself. `executor`: where they are solved, `ProcessPool()` for workers on this machine; by default here.
    - `layout`: `"pdebench"` or `"the_well"`.
    - `every`: samples between checkpoints.
    - `seed`: for methods that draw random numbers.

    The file is there whole or not at all. Until then the chains lie in a folder beside it, `PATH.parts`; the same call after it was stopped, by an error, Ctrl-C or
    the end of the process, goes on there and ends with the same numbers. A sample on which the solver failed is kept with its best iterate, and marked in
    `solver/failed`.

    Raises `ArgumentError`, naming the argument, also if the folder belongs to another data set, and `OptimandError` if a chain could not be solved; the others
    are kept.

    ```python
    import tempfile

    family = om.physics.Darcy(8)
    parameters = family.sample(jax.random.key(0), 4)
    method = om.linear.RecycledSequence(om.linear.GCRODR(1e-5, restart=12, recycle=4))
    with tempfile.TemporaryDirectory() as folder:
        made = om.datasets.generate_dataset(f"{folder}/darcy.h5", family, parameters, method, order=om.linear.greedy_order)
        made.data.fields["u"], made.iterations
    ```
    """
    path = Path(path)
    if path.suffix not in (".h5", ".hdf5"):
        raise ArgumentError("path", f"must end in .h5 or .hdf5; it is {path}.")
    if not path.parent.is_dir():
        raise ArgumentError("path", f"lies in {path.parent}, which is not a folder.", "Create it first.")
    need_count("groups", groups)
    need_count("every", every)
    parameters = jtu.tree_map(np.asarray, parameters)
    count = len(jtu.tree_leaves(parameters)[0])
    if groups > count:
        raise ArgumentError("groups", f"must be at most the number of parameters, {count}, not {groups}.")
    if layout not in LAYOUTS:
        raise ArgumentError("layout", f"must be one of {', '.join(LAYOUTS)}, not {layout!r}.")
    take = lambda indices: jtu.tree_map(lambda leaf: leaf[indices], parameters)
    coarse = np.arange(count) if order is None else np.asarray(order(parameters) if callable(order) else order)
    if not np.array_equal(np.sort(coarse, axis=None), np.arange(count)):
        raise ArgumentError("order", f"must hold each number from 0 to {count - 1} once.")
    chains = []
    for indices in np.array_split(coarse, groups):
        again = np.asarray(order(take(indices))) if groups > 1 and callable(order) else np.arange(len(indices))
        chains.append(indices[again])
    folder = path.with_name(path.name + ".parts")
    _claim(folder, _digest(family, parameters, method, chains, seed))
    precision = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    tasks = [_Chain(folder, number, take(indices), family, method, every, precision) for number, indices in enumerate(chains)]
    results = dict((SerialExecutor(retries=0) if executor is None else executor).map_unordered(_solve_chain, tasks, seed=seed))
    lost = [result for _, result in sorted(results.items()) if isinstance(result, Failure)]
    if lost:
        text = f"{len(lost)} of {groups} chains could not be solved; the others are kept in {folder}. The first: {lost[0].error}"
        raise OptimandError(text)
    order_of_all = np.concatenate(chains)
    columns = {name: [] for name in ("values", "iterations", "products", "residuals", "failed")}
    for number in range(groups):
        with np.load(folder / _name(number, "npz")) as part:
            for name, column in columns.items():
                column.append(part[name])
    back = np.argsort(order_of_all)
    solved = {name: np.concatenate(column)[back] for name, column in columns.items()}
    values = solved.pop("values")
    inputs = jax.lax.map(family.inputs, jtu.tree_map(jnp.asarray, parameters))
    fields = {"u": np.asarray(family.field(jnp.asarray(values))), **{name: np.asarray(field) for name, field in inputs.items()}}
    x, y = family.points()
    data = FieldData(fields, (np.asarray(x[:, 0]), np.asarray(y[0])))
    write_fields(path, data, layout=layout, solver={**solved, "order": order_of_all})
    shutil.rmtree(folder)
    return Generated(data, **solved, order=order_of_all)


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Systems that are solved one after the other; the parameters stand in their order."""

    folder: Path
    number: int
    parameters: PyTree
    family: Any
    method: Any
    every: int
    precision: bool


def _name(number: int, suffix: str) -> str:
    return f"chain-{number:04d}.{suffix}"


def _solve_chain(chain: _Chain, seed: tuple[int, int]) -> None:
    from ..linear import LinearSequence

    done, checkpoint = (chain.folder / _name(chain.number, suffix) for suffix in ("npz", "ckpt"))
    if done.exists():
        return
    with jax.enable_x64(chain.precision):
        sequence = LinearSequence(chain.family.system, chain.parameters)
        key = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
        solution = solve(
            sequence,
            chain.method,
            key=key,
            budget=Budget(steps=sequence.count),
            callbacks=[Checkpoint(checkpoint, every=chain.every)],
            resume=checkpoint if checkpoint.exists() else None,
            throw=False,
        )
    state = solution.state
    columns = {"iterations": state.iterations, "products": state.products, "residuals": state.residuals, "failed": state.failed}
    columns = {name: np.asarray(column) for name, column in columns.items()}

    def write(file: str):
        with open(file, "wb") as stream:
            np.savez(stream, allow_pickle=False, values=np.asarray(solution.value), **columns)

    write_whole(done, write)
    checkpoint.unlink(missing_ok=True)


def _digest(family: Any, parameters: PyTree, method: Any, chains: list[np.ndarray], seed: int) -> str:
    summary = hashlib.blake2b(f"{type(family).__name__} {eqx.tree_pformat((family, method))} {seed}".encode(), digest_size=16)
    for leaf in [*jtu.tree_leaves((parameters, eqx.filter((family, method), eqx.is_array_like))), *chains]:
        summary.update(np.ascontiguousarray(leaf).tobytes())
    return summary.hexdigest()


def _claim(folder: Path, digest: str) -> None:
    """Make the folder, or find it made for the same data set."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        if json.loads(manifest.read_text())["digest"] != digest:
            text = f"has a half-made data set beside it, in {folder}, of another family, parameters, method, order or number of groups."
            raise ArgumentError("path", text, "Go on with those, or delete the folder.")
        return
    folder.mkdir(exist_ok=True)

    def write(file: str):
        Path(file).write_text(json.dumps({"digest": digest}))

    write_whole(manifest, write)
