"""Samples of fields on a grid, and the files that hold them.

The layouts read (n samples, t times, then the axes of space):

| file | entries |
|---|---|
| `.npz`, and HDF5 as PDEBench writes most of its problems | each field `(n, t, x[, y[, z]])`, or `(n, x, ...)` if it does not change in time; `x-coordinate`, ... and `t-coordinate` |
| HDF5 as The Well has it, scalar fields only | `t0_fields`, `dimensions/x`, ..., `dimensions/time`: see `the_well` |
| HDF5 as PDEBench writes its reaction-diffusion and sorption problems | a group for each sample, with `data` `(t, x[, y], channels)` and `grid/x`, ..., `grid/t` |

Written are the layouts of the first two rows. A group called `solver`, in which `generate_dataset` says how each sample was solved, is passed over. A `t-coordinate` with one entry more than there are times, which some files of
PDEBench have, is taken without its last; a time axis of length one without a `t-coordinate` is dropped.
"""

import dataclasses
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, MissingExtra
from .the_well import read_the_well, write_the_well

__all__ = ["FieldData", "read_fields", "write_fields", "write_whole"]

AXES = ("x", "y", "z")
SUFFIXES = (".npz", ".h5", ".hdf5")
LAYOUTS = ("pdebench", "the_well")
SOLVER = "solver"


@dataclasses.dataclass(frozen=True, eq=False)
class FieldData:
    """Samples of one or several fields on one grid.

    **Arguments:**

    - `fields`: name to array, `(samples, times, n_1, ..., n_d)`, or `(samples, n_1, ..., n_d)` for one without time.
    - `grid`: the coordinates on each axis of space, d increasing vectors.
    - `times`: the times, an increasing vector; `None` if no field has any.

    Raises `ArgumentError`, naming the field and the index, for shapes that do not fit and values that are not finite.
    """

    fields: Mapping[str, np.ndarray]
    grid: tuple[np.ndarray, ...]
    times: np.ndarray | None = None

    def __post_init__(self):
        if not 1 <= len(self.grid) <= 3:
            raise ArgumentError("grid", f"must have 1 to 3 axes; it has {len(self.grid)}.")
        if not self.fields:
            raise ArgumentError("fields", "is empty.")
        axes = [(f"grid[{i}] ({AXES[i]})", x) for i, x in enumerate(self.grid)]
        for name, x in axes + ([] if self.times is None else [("times", self.times)]):
            if x.ndim != 1 or not np.all(np.isfinite(x)) or np.any(np.diff(x) <= 0):
                raise ArgumentError(name, "must be a vector of finite, increasing numbers.")
        space = tuple(x.size for x in self.grid)
        static, moving = space, None if self.times is None else (self.times.size, *space)
        counts = {name: field.shape[0] if field.ndim else 0 for name, field in self.fields.items()}
        for name, field in self.fields.items():
            if not np.issubdtype(field.dtype, np.floating):
                raise ArgumentError(f"fields[{name!r}]", f"must hold floating-point numbers; it holds {field.dtype}.")
            if field.shape[1:] not in (static, moving):
                wanted = f"(samples, {', '.join(map(str, static))})"
                if moving is not None:
                    wanted += f" or (samples, {', '.join(map(str, moving))})"
                raise ArgumentError(f"fields[{name!r}]", f"must have the shape {wanted}; it has {field.shape}.")
            if not np.isfinite(field).all():
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(field))[0])
                raise ArgumentError(f"fields[{name!r}]", f"is {field[where]} at index {where}.")
        if len(set(counts.values())) > 1:
            raise ArgumentError("fields", f"must have as many samples each; they have {counts}.")

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: slice | np.ndarray | int) -> "FieldData":
        """Some of the samples."""
        if isinstance(index, int | np.integer):
            raise ArgumentError("index", f"must be a slice or an array; it is {index}.", f"Use [{index}:{index + 1}].")
        return dataclasses.replace(self, fields={name: field[index] for name, field in self.fields.items()})


def read_fields(path: str | os.PathLike, dimensions: int) -> FieldData:
    """Read samples of fields from a file.

    **Arguments:**

    - `path`: a `.npz`, `.h5` or `.hdf5` file. HDF5 needs `h5py`.
    - `dimensions`: of space, 1 to 3: so that an axis of time is never taken for one of space.

    Raises `ArgumentError` for a file that is missing, truncated, lacks an entry, or holds shapes that do not fit or values
    that are not finite, and `MissingExtra` if `h5py` is not installed.
    """
    if dimensions not in (1, 2, 3):
        raise ArgumentError("dimensions", f"must be 1, 2 or 3; it is {dimensions}.")
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise ArgumentError("path", f"names no file: {path}.")
    try:
        return _from_entries(*(_read_npz(path) if suffix == ".npz" else _read_hdf5(path, dimensions)), dimensions)
    except ArgumentError as error:
        if error.argument == "path":
            raise
        raise ArgumentError("path", f"is {path}, in which {error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise ArgumentError(
            "path", f"is {path}, which cannot be read ({error}).", "It may be truncated, or no such file at all."
        ) from error


def write_fields(
    path: str | os.PathLike, data: FieldData, *, layout: str = "pdebench", solver: Mapping[str, np.ndarray] | None = None
) -> Path:
    """Write samples of fields, as `read_fields` reads them: `.npz`, or HDF5.

    **Arguments:**

    - `path`: where; the file is there whole or not at all.
    - `layout`: of HDF5, `"pdebench"` or `"the_well"`, which is in single precision.
    - `solver`: vectors with one number for each sample, which go into the group `solver` of HDF5.

    Raises `ArgumentError` for another kind of file or layout and for a name that is a coordinate's, and `MissingExtra` if `h5py` is needed and not
    installed. Returns the path.
    """
    path = Path(path)
    suffix = _suffix(path)
    if layout not in LAYOUTS:
        raise ArgumentError("layout", f"must be one of {', '.join(LAYOUTS)}, not {layout!r}.")
    if suffix == ".npz" and (layout != "pdebench" or solver):
        raise ArgumentError("path", f"must end in .h5 or .hdf5 for the layout of The Well and for `solver`; it is {path}.")
    entries = {f"{axis}-coordinate": x for axis, x in zip(AXES, data.grid, strict=False)}
    if data.times is not None:
        entries["t-coordinate"] = data.times
    for name, field in data.fields.items():
        if name.endswith("-coordinate") or "/" in name or name == SOLVER:
            raise ArgumentError("data", f"has a field called {name!r}; such names are for coordinates and groups.")
        entries[name] = field
    if suffix == ".npz":

        def write(file: str):
            with open(file, "wb") as stream:
                np.savez_compressed(stream, **entries)  # pyright: ignore[reportArgumentType]
    else:
        h5py = _h5py()

        def write(file: str):
            with h5py.File(file, "w") as out:
                if layout == "the_well":
                    write_the_well(out, path.stem, data.fields, data.grid, data.times)
                else:
                    for name, array in entries.items():
                        out.create_dataset(name, data=array)
                for name, array in (solver or {}).items():
                    out.create_dataset(f"{SOLVER}/{name}", data=array)

    write_whole(path, write)
    return path


def write_whole(path: Path, write: Callable[[str], None]):
    """Write to a temporary name in the same folder, then rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise ArgumentError("path", f"must end in {', '.join(SUFFIXES)}; it is {path}.")
    return path.suffix


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("data", "h5py") from error
    return h5py


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, False


def _read_hdf5(path: Path, dimensions: int) -> tuple[dict[str, np.ndarray], bool]:
    h5py = _h5py()
    opened: Any = h5py.File(path, "r")
    with opened as file:
        if "t0_fields" in file:
            return read_the_well(file, dimensions), False
        groups = [name for name in sorted(file) if isinstance(file[name], h5py.Group) and name != SOLVER]
        if not groups:
            return {name: np.asarray(file[name]) for name in file if name != SOLVER}, False
        samples, entries = [], {}
        for group in groups:
            names = ["data", *(f"grid/{axis}" for axis in (*AXES[:dimensions], "t"))]
            for name in names:
                if name not in file[group]:
                    raise ArgumentError(f"group {group!r}", f"lacks {name!r}; it holds {sorted(file[group])}.")
            sample = np.asarray(file[group]["data"])
            if samples and sample.shape != samples[0].shape:
                raise ArgumentError(f"group {group!r}", f"holds {sample.shape}, and the first {samples[0].shape}.")
            samples.append(sample)
            for name in names[1:]:
                axis, coordinate = name.removeprefix("grid/"), np.asarray(file[group][name])
                if not np.array_equal(entries.setdefault(f"{axis}-coordinate", coordinate), coordinate):
                    raise ArgumentError(f"group {group!r}", f"has another {name} than the first.")
        if samples[0].ndim != dimensions + 2:
            raise ArgumentError(
                f"group {groups[0]!r}",
                f"has data of rank {samples[0].ndim}; (t, space, channels) has {dimensions + 2}.",
            )
        stack = np.stack(samples)
        channels = stack.shape[-1]
        names = ["data"] if channels == 1 else [f"data_{i}" for i in range(channels)]
        return {**entries, **{name: stack[..., i] for i, name in enumerate(names)}}, True


def _from_entries(entries: dict[str, np.ndarray], grouped: bool, dimensions: int) -> FieldData:
    grid = []
    for axis in AXES[:dimensions]:
        if f"{axis}-coordinate" not in entries:
            raise ArgumentError(f"{axis}-coordinate", f"is missing; there are {sorted(entries)}.")
        grid.append(entries[f"{axis}-coordinate"])
    times = entries.get("t-coordinate")
    fields = {name: array for name, array in entries.items() if not name.endswith("-coordinate")}
    for name, field in fields.items():
        if times is None and field.ndim == dimensions + 2 and field.shape[1] == 1:
            fields[name] = field = field[:, 0]
        least = 1 + dimensions
        if field.ndim not in ((least,) if times is None else (least, least + 1)):
            hint = "It has no t-coordinate, so no axis of time." if times is None else ""
            raise ArgumentError(
                f"fields[{name!r}]", f"has rank {field.ndim}, which is none of {dimensions} dimensions.", hint
            )
        if times is not None and field.ndim == least + 1 and times.ndim == 1 and field.shape[1] == times.size - 1:
            times = times[:-1]
    return FieldData(fields, tuple(grid), times)
