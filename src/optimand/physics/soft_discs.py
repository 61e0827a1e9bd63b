r"""Soft discs in a periodic box: the standard model of a jammed solid in two dimensions.

Two discs repel each other where they overlap, and do not feel each other where they do not:

$$E(x) = \sum_{i < j} \frac{\epsilon}{\alpha} \left(1 - \frac{r_{ij}}{\sigma_{ij}}\right)_+^{\alpha},
  \qquad \sigma_{ij} = \frac{d_i + d_j}{2},$$

where \(r_{ij}\) is the distance of the centres through the nearest periodic image and \(d_i\) the diameter of disc i;
\(\alpha = 2\) is a harmonic, \(\alpha = 5/2\) a Hertzian contact. Above a packing fraction of about 0.84 no arrangement is
free of overlap. Discs that touch nothing, and translations of everything, cost no energy: the Hessian is singular there.

Source: O'Hern, Silbert, Liu and Nagel 2003; its use for sensitivities is Blondel et al. 2022, section 4.4.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer

__all__ = ["SoftDiscs", "bidisperse"]


class SoftDiscs(eqx.Module):
    """Discs of given diameters in a square periodic box.

    **Arguments:** `diameters`, one for each disc; `side`, the length of the box in the same unit; `stiffness` (epsilon),
    in units of energy; `exponent` (alpha), at least 2 for forces that are continuous.

    ```python
    discs = om.physics.SoftDiscs(jnp.array([1.0, 1.0, 0.6]), side=2.0)
    discs.energy(jnp.array([[0.5, 0.5], [1.2, 0.5], [1.0, 1.5]]))
    ```
    """

    diameters: Float[Array, " n"]
    side: Any
    stiffness: Any = 1.0
    exponent: float = eqx.field(static=True, default=2.0)

    def __check_init__(self):
        if self.exponent < 1:
            raise ArgumentError("exponent", f"must be at least 1, not {self.exponent!r}.")
        for name, number in (("diameters", self.diameters), ("side", self.side)):
            known = isinstance(number, int | float | np.ndarray | jax.Array) and not is_tracer(number)
            if known and not np.all(np.asarray(number) > 0):
                raise ArgumentError(name, "must be positive.")

    def displacements(self, positions: Float[Array, "n 2"]) -> Float[Array, "n n 2"]:
        """x_i - x_j through the nearest periodic image."""
        difference = positions[:, None, :] - positions[None, :, :]
        return difference - self.side * jax.lax.stop_gradient(jnp.round(difference / self.side))

    def overlaps(self, positions: Float[Array, "n 2"]) -> Float[Array, "n n"]:
        """1 - r_ij / sigma_ij; positive where two discs overlap, and -1 on the diagonal."""
        difference = self.displacements(positions)
        squared = jnp.sum(difference**2, axis=-1)
        other = ~jnp.eye(len(positions), dtype=bool)
        apart = other & (squared > 0)
        distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
        reach = 0.5 * (self.diameters[:, None] + self.diameters[None, :])
        return jnp.where(other, 1 - distance / reach, -1.0)

    def energy(self, positions: Float[Array, "n 2"]) -> Float[Array, ""]:
        """The energy of all overlaps; each pair counts once."""
        overlaps = self.overlaps(positions)
        touching = overlaps > 0
        pair = jnp.where(touching, jnp.where(touching, overlaps, 1.0) ** self.exponent, 0.0)
        return 0.5 * self.stiffness / self.exponent * jnp.sum(pair)

    def forces(self, positions: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
        """Minus the gradient of the energy. They sum to zero."""
        return -jax.grad(self.energy)(positions)

    def anchored_gradient(self, positions: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
        """The gradient of the energy, plus the mean position: zero at a minimum whose centre is the origin.

        The Jacobian is symmetric, and regular along translations, which the gradient's own is not.
        """
        return -self.forces(positions) + jnp.mean(positions, axis=0)

    def contacts(self, positions: Float[Array, "n 2"]) -> Bool[Array, "n n"]:
        """Which pairs overlap."""
        return self.overlaps(positions) > 0

    def packing_fraction(self) -> Float[Array, ""]:
        """The area of the discs, overlaps counted twice, over that of the box."""
        return jnp.sum(jnp.pi * self.diameters**2 / 4) / self.side**2


def bidisperse(count: int, small: Any, *, packing_fraction: float = 1.0, large: Any = 1.0) -> SoftDiscs:
    """Half of the discs with diameter `large`, half with `small`, in the box that gives the packing fraction.

    The box is that of the values given: it does not change when the solution is differentiated in the diameters.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ArgumentError("count", f"must be a whole number, at least 2, not {count!r}.")
    if not packing_fraction > 0:
        raise ArgumentError("packing_fraction", f"must be positive, not {packing_fraction!r}.")
    half = count // 2
    small, large = jnp.asarray(small, float), jnp.asarray(large, float)
    diameters = jnp.concatenate([jnp.full((count - half,), large), jnp.full((half,), small)])
    side = jnp.sqrt(jnp.sum(jnp.pi * diameters**2 / 4) / packing_fraction)
    return SoftDiscs(diameters, jax.lax.stop_gradient(side))
