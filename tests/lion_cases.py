"""Kernels of Lion-K, one of each kind, and unknowns to try them on."""

import jax.numpy as jnp
import numpy as np

from optimand.smooth import (
    GroupKernel,
    HuberKernel,
    L1Kernel,
    L2SquaredKernel,
    LpKernel,
    SmoothL1Kernel,
    SpectralKernel,
    ThresholdKernel,
    TopKKernel,
)

LABELS = {"a": jnp.arange(12).reshape(3, 4) % 5, "b": jnp.array([0, 1, 4, 4])}
KERNELS = {
    "l1": L1Kernel(),
    "lp 1.5": LpKernel(1.5),
    "lp 2": LpKernel(2.0),
    "lp 4": LpKernel(4.0),
    "threshold": ThresholdKernel(0.3),
    "top-k": TopKKernel(5),
    "huber": HuberKernel(0.7),
    "smooth l1": SmoothL1Kernel(0.2),
    "groups of 2": GroupKernel(2),
    "groups by number": GroupKernel(LABELS),
    "spectral": SpectralKernel(),
    "l2 squared": L2SquaredKernel(),
}

def draw(seed, *batch):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(*batch, 3, 4))), "b": jnp.asarray(rng.normal(size=(*batch, 4)))}
