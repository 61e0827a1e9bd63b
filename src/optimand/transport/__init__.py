"""Optimal transport with entropy: a `Coupling` of two sets of weighted points, its potentials, and its plan.

The cost is a matrix, a `PointCloud` or a `Grid`; the last two are evaluated as needed when they are large. Which method? `Sinkhorn` for a strong
penalty and moderate accuracy, `SinkhornNewtonSparse` for a weak one or for high accuracy, `SinkhornNewton` where its plans are not sparse or do not
fit into memory. Derivatives follow from the marginal conditions, whatever the method was, and those of the regularised value from the potentials
alone: `Coupling.envelope`.

Masses that need not be equal: `UnbalancedCoupling`. Several measures: `Barycentre`, on given points, and `free_support_barycentre`. Distances: `wasserstein`
between bounds, without entropy, and `sinkhorn_divergence`, smooth and cheap to differentiate.

Between samples of two distributions, in some dimensions, `EntropicBridge` asks for the Schrödinger bridge: a process, of which a coupling has the ends. Its
solution, `LightSB`, extends to points that nobody has seen.
"""

from .barycentre import Barycentre, BarycentrePotentials
from .bregman_projections import BregmanProjections
from .bures import bures_wasserstein, bw_uvp, cbw_uvp, gaussian_plan
from .costs import Cost, CostMatrix, Grid, PointCloud
from .dual_transport import Potentials
from .energy_distance import energy_distance
from .entropic_bridge import EntropicBridge
from .free_support import barycentric_projection, free_support_barycentre
from .light_sb import LightSB
from .light_sb_fit import LightSBFit
from .mixture_benchmark import MixtureBenchmark
from .problem import Coupling, lyapunov_potential
from .rounding import rounded, sparsify_coupling
from .sinkhorn import Sinkhorn
from .sinkhorn_divergence import sinkhorn_divergence
from .sinkhorn_newton import SinkhornNewton
from .sinkhorn_newton_sparse import SinkhornNewtonSparse
from .unbalanced_coupling import UnbalancedCoupling
from .unbalanced_sinkhorn import UnbalancedSinkhorn
from .wasserstein import TransportBounds, transport_bounds, wasserstein

__all__ = [
    "Barycentre",
    "BarycentrePotentials",
    "BregmanProjections",
    "Cost",
    "CostMatrix",
    "Coupling",
    "EntropicBridge",
    "Grid",
    "LightSB",
    "LightSBFit",
    "MixtureBenchmark",
    "PointCloud",
    "Potentials",
    "Sinkhorn",
    "SinkhornNewton",
    "SinkhornNewtonSparse",
    "TransportBounds",
    "UnbalancedCoupling",
    "UnbalancedSinkhorn",
    "barycentric_projection",
    "bures_wasserstein",
    "bw_uvp",
    "cbw_uvp",
    "energy_distance",
    "free_support_barycentre",
    "gaussian_plan",
    "lyapunov_potential",
    "rounded",
    "sinkhorn_divergence",
    "sparsify_coupling",
    "transport_bounds",
    "wasserstein",
]
