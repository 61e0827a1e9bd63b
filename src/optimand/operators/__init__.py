"""Neural operators: models that map fields to fields, on grids of any resolution.

A model takes one field `(channels, n_1, ..., n_d)`; batches are `jax.vmap(model)`. To train one, make it the guess of a
`Fit` problem: nothing in this room trains itself.
"""

from .fno import FNO, FNOLayer, from_neuraloperator

__all__ = ["FNO", "FNOLayer", "from_neuraloperator"]
