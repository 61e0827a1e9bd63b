"""The constructors of jaxopt, for code that is not to be rewritten at once.

```python
from optimand.compat.jaxopt import LBFGS

LBFGS(fun=lambda x, data: jnp.sum((x - data) ** 2), tol=1e-5).run(jnp.zeros(3), jnp.arange(3.0)).params
```

`run(init_params, *args)` gives `(params, state)`, differentiable in the arguments. The methods behind are ours, so that
iterates differ and solutions agree; settings of algorithms that ours do not have are passed over with a warning.
jaxopt's functions (projections, proximal operators, losses, ...) have equals under names of our own, which the
page "Coming from jaxopt, Optimistix, SciPy, Ipopt" lists.
"""

from . import implicit_diff as implicit_diff
from .equations import AndersonAcceleration, Bisection, Broyden, FixedPointIteration
from .minimisers import (
    BFGS,
    LBFGS,
    LBFGSB,
    ArmijoSGD,
    BlockCoordinateDescent,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    MirrorDescent,
    NonlinearCG,
    OptaxSolver,
    PolyakSGD,
    ProjectedGradient,
    ProximalGradient,
    ScipyBoundedMinimize,
    ScipyMinimize,
)
from .quadratic import OSQP, BoxCDQP, BoxOSQP, EqualityConstrainedQP, KKTSolution
from .solver import OptStep, absent

CvxpyQP = absent("CvxpyQP", "Use OSQP, or optimand.smooth.Scipy for a problem with constraints.")
AndersonWrapper = absent("AndersonWrapper", "Use AndersonAcceleration on the map of one step.")
IterativeRefinement = absent("IterativeRefinement", "Use a lineax solver in double precision.")
ScipyLeastSquares = absent("ScipyLeastSquares", "Use LevenbergMarquardt.")
ScipyBoundedLeastSquares = absent("ScipyBoundedLeastSquares", "Use LBFGSB on half the sum of squares.")
ScipyRootFinding = absent("ScipyRootFinding", "Use optimand.smooth.Newton on a Root.")
BacktrackingLineSearch = absent("BacktrackingLineSearch", "A search is a setting of a method: line_search.")
HagerZhangLineSearch = absent("HagerZhangLineSearch", "A search is a setting of a method: line_search.")
ZoomLineSearch = absent("ZoomLineSearch", "A search is a setting of a method: line_search.")

__all__ = [
    "BFGS",
    "LBFGS",
    "LBFGSB",
    "OSQP",
    "AndersonAcceleration",
    "AndersonWrapper",
    "ArmijoSGD",
    "BacktrackingLineSearch",
    "Bisection",
    "BlockCoordinateDescent",
    "BoxCDQP",
    "BoxOSQP",
    "Broyden",
    "CvxpyQP",
    "EqualityConstrainedQP",
    "FixedPointIteration",
    "GaussNewton",
    "GradientDescent",
    "HagerZhangLineSearch",
    "IterativeRefinement",
    "KKTSolution",
    "LevenbergMarquardt",
    "MirrorDescent",
    "NonlinearCG",
    "OptStep",
    "OptaxSolver",
    "PolyakSGD",
    "ProjectedGradient",
    "ProximalGradient",
    "ScipyBoundedLeastSquares",
    "ScipyBoundedMinimize",
    "ScipyLeastSquares",
    "ScipyMinimize",
    "ScipyRootFinding",
    "ZoomLineSearch",
    "implicit_diff",
]
