"""The tensor grid of time and space on which a residual is formed."""

import equinox as eqx
import numpy as np

from ..core.errors import ArgumentError

__all__ = ["SpaceTimeGrid"]


class SpaceTimeGrid(eqx.Module):
    """Coordinates (t, x[, y, ...]) of a tensor grid; time is the first axis.

    Everything in it is static, so that a model which carries a grid has no coordinates among its weights.

    **Arguments:** `axes` are increasing sequences of physical coordinates, one for each axis. **Raises** `ArgumentError`
    for an axis that is not increasing or has fewer than three points.
    """

    axes: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    def __init__(self, *axes):
        for number, axis in enumerate(axes):
            points = np.asarray(axis, float)
            if points.ndim != 1 or len(points) < 3:
                raise ArgumentError("axes", f"axis {number} needs at least three points, and has shape {points.shape}.")
            if not np.all(np.isfinite(points)) or not np.all(np.diff(points) > 0):
                raise ArgumentError("axes", f"axis {number} must increase from point to point.")
        self.axes = tuple(tuple(float(point) for point in axis) for axis in axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(len(axis) for axis in self.axes)

    def axis(self, number: int) -> np.ndarray:
        """The coordinates along one axis."""
        return np.asarray(self.axes[number])

    def uniform(self, number: int) -> bool:
        """Whether the spacing along an axis is constant, to rounding."""
        gaps = np.diff(self.axis(number))
        return bool(np.allclose(gaps, gaps[0], rtol=1e-6, atol=0))

    def spacing(self, number: int) -> float:
        """The distance of neighbours along a uniform axis."""
        axis = self.axis(number)
        return float((axis[-1] - axis[0]) / (len(axis) - 1))

    def coordinates(self) -> np.ndarray:
        """The physical coordinates of every point, shape (*shape, axes)."""
        return np.stack(np.meshgrid(*map(np.asarray, self.axes), indexing="ij"), axis=-1)

    def normalised(self) -> np.ndarray:
        """The coordinates, each divided by its largest value: what a network sees. Shape (axes, *shape)."""
        scaled = [np.asarray(axis) / (np.max(np.abs(axis)) or 1.0) for axis in self.axes]
        return np.stack(np.meshgrid(*scaled, indexing="ij"))
