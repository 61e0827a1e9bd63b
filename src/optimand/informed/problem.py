"""Training a field model on the residual of an equation: no labels, only inputs."""

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..core.fit import Fit
from .pde import LinearTermsPDE

__all__ = ["ResidualLoss", "ResidualProblem"]


class ResidualLoss(eqx.Module):
    """The loss of one sample: the norm of the residual of the model's assembled field, and the penalties of the equation."""

    pde: LinearTermsPDE

    def __call__(self, model: PyTree, data: PyTree, key: Array) -> Float[Array, ""]:
        return self.pde.loss(model(data, key=key), data)


class ResidualProblem(Fit):
    """Minimise the mean over inputs of |R(u)| and of what the conditions miss, where u is the model's field.

    It is a `Fit`, so every method that trains models trains this one. `Adam(..., skip_nonfinite=True)` leaves out steps
    whose gradient is not finite, and counts them.

    **Arguments:**

    - `pde`: the equation.
    - `inputs`: a pytree with a leading axis of samples: initial conditions, parameters. No solutions.
    - `model`: `ConstrainedBasis`, `SoftField`, or anything with `model(data, key=key)` -> field (*grid).
    - `batch_size`, `chunk`: as for `Fit`. With a key, points are drawn afresh in every step.

    **Raises:** `ArgumentError` for inputs that are not finite (with the sample and the index) or that the equation refuses.

    ```python
    with jax.enable_x64(True):                                      # of the constraint; the network stays in float32
        key = jax.random.key(0)
        pde = om.informed.DiffusionSorption1D(nt=9, nx=16)          # small, to end in seconds
        network = om.operators.FNO(3, 6, width=4, modes=(2, 3), layers=2, dtype=jnp.float32, key=key)
        model = om.informed.ConstrainedBasis(network, pde, constraint=om.informed.NLLSConstraint(points=40))
        problem = om.informed.ResidualProblem(pde, pde.sample_inputs(key, 4), model, batch_size=2)
        adam = om.smooth.Adam(1e-3, clip=1.0, skip_nonfinite=True)
        train = lambda: om.solve(problem, adam, key=key, budget=om.Budget(steps=200))
    ```

    Source: Chalapathi et al. 2024, section 3; the loss is the norm, neither squared nor averaged over points.
    """

    def __init__(
        self,
        pde: LinearTermsPDE,
        inputs: PyTree,
        model: PyTree,
        *,
        batch_size: int | None = None,
        chunk: int | None = None,
    ):
        super().__init__(ResidualLoss(pde), model, inputs, batch_size=batch_size, chunk=chunk)
        for sample in range(self.count):
            try:
                pde.check(jtu.tree_map(lambda leaf, sample=sample: np.asarray(leaf[sample]), self.data))
            except ArgumentError as error:
                raise ArgumentError("inputs", f"sample {sample}: {error.problem}", error.hint) from error
