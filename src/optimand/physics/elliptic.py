r"""Families of elliptic equations on the unit square, as linear systems: what data sets for neural operators are made of.

Each family is a module with `system(parameter)`, which gives a `SparseOperator` and a right-hand side for `om.linear.LinearSequence`, and
`sample(key, count)`, which draws parameters. Finite differences on n x n points inside, \(h = 1 / (n + 1)\), five of them in each equation; unknown
\(i\, n + j\) is at \((x, y) = ((i + 1) h, (j + 1) h)\). Second order where the coefficients are smooth, `ConvectionDiffusion` first order.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Key

from ..core.errors import ArgumentError
from ..linear import SparseOperator, SparsePattern

__all__ = ["ConvectionDiffusion", "Darcy", "EllipticFamily", "Helmholtz", "Poisson", "Thermal", "cosine_field", "five_point_pattern"]


def five_point_pattern(side: int) -> SparsePattern:
    """That of a five-point stencil on `side` x `side` points: the diagonal, then the neighbours at smaller and larger x, smaller and larger y."""
    number = np.arange(side * side).reshape(side, side)
    rows = [number, number[1:], number[:-1], number[:, 1:], number[:, :-1]]
    columns = [number, number[:-1], number[1:], number[:, :-1], number[:, 1:]]
    join = lambda parts: np.concatenate([part.ravel() for part in parts])
    return SparsePattern.of(join(rows), join(columns), (side * side, side * side))


def _five_point(centre: Array, west: Array, east: Array, south: Array, north: Array) -> Array:
    """Entries for `five_point_pattern` of fields of coefficients; links across the boundary are left out."""
    parts = (centre, west[1:], east[:-1], south[:, 1:], north[:, :-1])
    return jnp.concatenate([part.ravel() for part in parts])


class EllipticFamily(eqx.Module):
    """One system for each parameter: abstract. `side` is the number of points inside along an axis."""

    side: eqx.AbstractVar[int]
    pattern: eqx.AbstractVar[SparsePattern]

    @property
    def h(self) -> float:
        """The distance of points."""
        return 1 / (self.side + 1)

    def points(self, *, boundary: bool = False) -> tuple[Array, Array]:
        """The coordinates x and y of the points inside, or of all."""
        along = jnp.arange(self.side + 2) * self.h
        x, y = jnp.meshgrid(along, along, indexing="ij")
        return (x, y) if boundary else (x[1:-1, 1:-1], y[1:-1, 1:-1])

    def field(self, solution: Float[Array, "*batch unknowns"]) -> Float[Array, "*batch side side"]:
        """A solution on its grid."""
        return jnp.reshape(solution, (*solution.shape[:-1], self.side, self.side))

    @abc.abstractmethod
    def system(self, parameter: Any) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        """Operator and right-hand side."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], count: int) -> Array:
        """So many parameters."""

    @abc.abstractmethod
    def inputs(self, parameter: Any) -> dict[str, Float[Array, "side side"]]:
        """What a data set holds beside the solution: the fields that make the equation."""


def need_side(side: Any) -> None:
    if not isinstance(side, int) or side < 2:
        raise ArgumentError("side", f"must be a whole number of at least 2, not {side!r}.")


def _waves(x: Array, y: Array) -> Float[Array, "3 n n"]:
    """sin(pi x) sin(pi y), cos(pi x), cos(pi y) sin(pi x)."""
    return jnp.stack([jnp.sin(jnp.pi * x) * jnp.sin(jnp.pi * y), jnp.cos(jnp.pi * x), jnp.cos(jnp.pi * y) * jnp.sin(jnp.pi * x)])


def cosine_field(key: Key[Array, ""], side: int, *, tau: float = 3.0, deviation: float = 1.0) -> Float[Array, "side side"]:
    """A Gaussian random field on side x side points of the closed square, without flux through its boundary.

    Its covariance is a multiple of (pi^2 |k|^2 + tau^2)^-1 on the cosines cos(pi k_1 x) cos(pi k_2 y), without the constant one, such that the mean square
    over the square is deviation^2 on average.
    """
    k = jnp.arange(side)
    spectrum = 1 / (jnp.pi**2 * (k[:, None] ** 2 + k**2) + tau**2)
    spectrum = spectrum.at[0, 0].set(0)
    size = jnp.where(k == 0, 1.0, 0.5)  # the mean square of a cosine
    spectrum = spectrum / jnp.sum(spectrum * size[:, None] * size) * deviation**2
    cosines = jnp.cos(jnp.pi * k[:, None] * jnp.linspace(0, 1, side))
    return cosines.T @ (jnp.sqrt(spectrum) * jr.normal(key, (side, side))) @ cosines


class Darcy(EllipticFamily):
    """-div(K grad u) = 1, u = 0 on the boundary: flow in a porous medium.

    Coefficients on the faces between points are arithmetic means. A parameter is three numbers xi of K = exp(sum_j xi_j phi_j) with
    phi = sin(pi x) sin(pi y), cos(pi x), cos(pi y) sin(pi x), drawn from (-1.5, 1.5); with `rough`, log K itself, (side + 2, side + 2) with the boundary, a
    Gaussian field of deviation 0.8 (`cosine_field`).
    """

    side: int = eqx.field(static=True)
    rough: bool = eqx.field(static=True)
    pattern: SparsePattern

    def __init__(self, side: int = 32, *, rough: bool = False):
        need_side(side)
        self.side, self.rough, self.pattern = side, rough, five_point_pattern(side)

    def permeability(self, parameter: Array) -> Float[Array, "points points"]:
        """K on all points, those of the boundary included."""
        if self.rough:
            return jnp.exp(parameter)
        return jnp.exp(jnp.tensordot(parameter, _waves(*self.points(boundary=True)), 1))

    def system(self, parameter: Array) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        k = self.permeability(parameter)
        across, along = (k[1:] + k[:-1]) / 2, (k[:, 1:] + k[:, :-1]) / 2
        west, east = across[:-1, 1:-1], across[1:, 1:-1]
        south, north = along[1:-1, :-1], along[1:-1, 1:]
        data = _five_point(west + east + south + north, -west, -east, -south, -north) / self.h**2
        return SparseOperator(data, self.pattern, lx.positive_semidefinite_tag), jnp.ones((self.side**2,), data.dtype)

    def inputs(self, parameter: Array) -> dict[str, Float[Array, "side side"]]:
        return {"nu": self.permeability(parameter)[1:-1, 1:-1]}

    def sample(self, key: Key[Array, ""], count: int) -> Array:
        if self.rough:
            return jax.vmap(lambda key: cosine_field(key, self.side + 2, deviation=0.8))(jr.split(key, count))
        return jr.uniform(key, (count, 3), minval=-1.5, maxval=1.5)


class Poisson(EllipticFamily):
    """-Laplace u = f, u = 0 on the boundary. A parameter is f on the points inside, a Gaussian field of deviation 1 (`cosine_field`): only the
    right-hand side differs."""

    side: int = eqx.field(static=True)
    pattern: SparsePattern

    def __init__(self, side: int = 32):
        need_side(side)
        self.side, self.pattern = side, five_point_pattern(side)

    def system(self, parameter: Array) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        return _laplacian(self, parameter.dtype), parameter.ravel()

    def inputs(self, parameter: Array) -> dict[str, Float[Array, "side side"]]:
        return {"f": parameter}

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "count side side"]:
        return jax.vmap(lambda key: cosine_field(key, self.side))(jr.split(key, count))


def _laplacian(family: EllipticFamily, dtype: Any) -> SparseOperator:
    """-Laplace with zero on the boundary."""
    link = jnp.full((family.side, family.side), -1 / family.h**2, dtype)
    return SparseOperator(_five_point(-4 * link, link, link, link, link), family.pattern, lx.positive_semidefinite_tag)


class Helmholtz(EllipticFamily):
    """(Laplace + kappa^2) u = 1, u = 0 on the boundary: indefinite where kappa is above pi sqrt(2).

    kappa = kappa0 (1 + 0.1 sum_j xi_j phi_j) with the three phi of `Darcy`; a parameter is xi, drawn from (-1, 1).

    **Arguments:** `side`; `kappa0`: the wave number; some ten points a wave length, 2 pi / kappa0, are needed.
    """

    side: int = eqx.field(static=True)
    kappa0: float
    pattern: SparsePattern

    def __init__(self, side: int = 32, *, kappa0: float = 12.0):
        need_side(side)
        self.side, self.kappa0, self.pattern = side, kappa0, five_point_pattern(side)

    def system(self, parameter: Array) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        kappa = self.wave_number(parameter)
        link = jnp.full(kappa.shape, 1 / self.h**2, kappa.dtype)
        data = _five_point(kappa**2 - 4 * link, link, link, link, link)
        return SparseOperator(data, self.pattern, lx.symmetric_tag), jnp.ones((self.side**2,), data.dtype)

    def wave_number(self, parameter: Array) -> Float[Array, "side side"]:
        """kappa on the points inside."""
        return self.kappa0 * (1 + 0.1 * jnp.tensordot(parameter, _waves(*self.points()), 1))

    def inputs(self, parameter: Array) -> dict[str, Float[Array, "side side"]]:
        return {"kappa": self.wave_number(parameter)}

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "count 3"]:
        return jr.uniform(key, (count, 3), minval=-1.0, maxval=1.0)


class ConvectionDiffusion(EllipticFamily):
    """-Laplace u + beta . grad u = 1, u = 0 on the boundary, by upwind differences: not symmetric.

    A parameter is (|beta|, angle), drawn from (0, `fastest`) and (0, 2 pi).
    """

    side: int = eqx.field(static=True)
    fastest: float
    pattern: SparsePattern

    def __init__(self, side: int = 32, *, fastest: float = 200.0):
        need_side(side)
        self.side, self.fastest, self.pattern = side, fastest, five_point_pattern(side)

    def system(self, parameter: Array) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        speed, angle = parameter
        b, c = speed * jnp.cos(angle), speed * jnp.sin(angle)
        against = lambda flow: (1 / self.h**2 + jnp.maximum(flow, 0) / self.h)  # the link to where it comes from, and to where it goes
        along = lambda flow: (1 / self.h**2 + jnp.maximum(-flow, 0) / self.h)
        links = [jnp.full((self.side, self.side), link, parameter.dtype) for link in (against(b), along(b), against(c), along(c))]
        data = _five_point(jnp.sum(jnp.stack(links), axis=0), *[-link for link in links])
        return SparseOperator(data, self.pattern), jnp.ones((self.side**2,), data.dtype)

    def inputs(self, parameter: Array) -> dict[str, Float[Array, "side side"]]:
        speed, angle = parameter
        return {name: jnp.full((self.side, self.side), part) for name, part in (("beta_x", speed * jnp.cos(angle)), ("beta_y", speed * jnp.sin(angle)))}

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "count 2"]:
        return jr.uniform(key, (count, 2)) * jnp.array([self.fastest, 2 * jnp.pi])


class Thermal(EllipticFamily):
    """Laplace u = 0 with given temperatures on the boundary: only the right-hand side differs.

    A parameter, (4, 4), has for each side (x = 0, x = 1, y = 0, y = 1) a constant and the coefficients of sin(pi s), sin(2 pi s), sin(3 pi s) along it, all
    drawn from the standard normal distribution. As `inputs`, the points next to the boundary have the temperatures beside them, added up.
    """

    side: int = eqx.field(static=True)
    pattern: SparsePattern

    def __init__(self, side: int = 32):
        need_side(side)
        self.side, self.pattern = side, five_point_pattern(side)

    def system(self, parameter: Array) -> tuple[SparseOperator, Float[Array, " unknowns"]]:
        s = jnp.arange(1, self.side + 1) * self.h
        shapes = jnp.stack([jnp.ones_like(s), *[jnp.sin(k * jnp.pi * s) for k in (1, 2, 3)]])
        west, east, south, north = (parameter @ shapes.astype(parameter.dtype)) / self.h**2
        b = jnp.zeros((self.side, self.side), parameter.dtype)
        b = b.at[0].add(west).at[-1].add(east).at[:, 0].add(south).at[:, -1].add(north)
        return _laplacian(self, parameter.dtype), b.ravel()

    def inputs(self, parameter: Array) -> dict[str, Float[Array, "side side"]]:
        return {"boundary": self.field(self.system(parameter)[1]) * self.h**2}

    def sample(self, key: Key[Array, ""], count: int) -> Float[Array, "count 4 4"]:
        return jr.normal(key, (count, 4, 4))
