"""The HDF5 layout of The Well (Ohana et al. 2024), for scalar fields on fixed grids.

Groups `dimensions` (`time`, `x`, `y`, `z`), `boundary_conditions`, `scalars`, and `t0_fields`, `t1_fields`, `t2_fields` for scalars, vectors and tensors, each
`(n_trajectories, n_times, x[, y[, z]])` in single precision, or without the axes along which it does not vary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import ArgumentError

__all__ = ["read_the_well", "write_the_well"]

AXES = ("x", "y", "z")


def write_the_well(file: Any, name: str, fields: Mapping[str, np.ndarray], grid: tuple[np.ndarray, ...], times: np.ndarray | None) -> None:
    """Write into an open file. A field without time has one time, zero; every boundary counts as a wall, which lies outside of the points."""
    axes = AXES[: len(grid)]
    count = len(next(iter(fields.values())))
    file.attrs["dataset_name"] = name
    file.attrs["grid_type"] = "cartesian"
    file.attrs["n_spatial_dims"] = len(grid)
    file.attrs["n_trajectories"] = count
    file.attrs["simulation_parameters"] = []
    dimensions = file.create_group("dimensions")
    dimensions.attrs["spatial_dims"] = list(axes)
    times = np.zeros(1) if times is None else times
    dimensions.create_dataset("time", data=times.astype(np.float32)).attrs["sample_varying"] = False
    for axis, x in zip(axes, grid, strict=True):
        _described(dimensions.create_dataset(axis, data=x.astype(np.float32)), sample=False, time=False)
    walls = file.create_group("boundary_conditions")
    for axis, x in zip(axes, grid, strict=True):
        wall = walls.create_group(f"{axis}_wall")
        wall.attrs["associated_dims"] = [axis]
        wall.attrs["associated_fields"] = []
        wall.attrs["bc_type"] = "wall"
        _described(wall, sample=False, time=False)
        wall.create_dataset("mask", data=np.zeros(x.size, bool))
        wall.create_dataset("values", data=np.zeros(0, np.float32))
    for group in ("scalars", "t1_fields", "t2_fields"):
        file.create_group(group).attrs["field_names"] = []
    group = file.create_group("t0_fields")
    group.attrs["field_names"] = list(fields)
    for name, field in fields.items():
        moving = field.ndim == len(grid) + 2
        stored = group.create_dataset(name, data=(field if moving else field[:, None]).astype(np.float32))
        stored.attrs["dim_varying"] = [True] * len(grid)
        _described(stored, sample=True, time=moving or times.size == 1)


def _described(entry: Any, *, sample: bool, time: bool) -> None:
    entry.attrs["sample_varying"] = sample
    entry.attrs["time_varying"] = time


def read_the_well(file: Any, dimensions: int) -> dict[str, np.ndarray]:
    """The entries of an open file as PDEBench names them: scalar fields, with every axis there."""
    for group in ("t1_fields", "t2_fields"):
        if group in file and len(file[group]):
            raise ArgumentError(f"group {group!r}", f"holds {sorted(file[group])}; only scalar fields are read.")
    axes = AXES[:dimensions]
    entries = {f"{axis}-coordinate": np.asarray(file["dimensions"][axis]) for axis in axes}
    times = np.asarray(file["dimensions"]["time"])
    steady = times.size == 1
    if not steady:
        entries["t-coordinate"] = times
    sizes = [entries[f"{axis}-coordinate"].size for axis in axes]
    count = int(file.attrs["n_trajectories"])
    for name, stored in file["t0_fields"].items():
        varying = [bool(stored.attrs["sample_varying"]), bool(stored.attrs["time_varying"]), *map(bool, stored.attrs["dim_varying"])]
        whole = (count, times.size, *sizes)
        field = np.asarray(stored)
        if field.ndim != len(whole):
            field = field.reshape([n if varies else 1 for n, varies in zip(whole, varying, strict=True)])
        field = np.broadcast_to(field, whole)
        entries[name] = field[:, 0] if steady else field
    return entries
