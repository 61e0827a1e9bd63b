"""Layers that several models share: the spectral convolution and maps that act on the channels of each point alone.

A field is an array `(channels, n_1, ..., n_d)` on a regular grid, without a batch axis: batches are `jax.vmap`. A layer
is an `equinox.Module` whose array leaves are real numbers, so that every method that trains anything trains it.
"""

from .matmul import per_sample
from .pointwise import Pointwise, PointwiseMLP, gelu
from .spectral import SpectralConv

__all__ = ["Pointwise", "PointwiseMLP", "SpectralConv", "gelu", "per_sample"]
