"""Faces that users of other libraries know, on the methods of this one.

`minimize` is `scipy.optimize.minimize`. `optax.as_transformation` makes a method an `optax.GradientTransformation`, and
`optimistix.as_minimiser` a minimiser for `optimistix.minimise`. `jaxopt` has the constructors of jaxopt, for code that
is not to be rewritten at once.
"""

from . import jaxopt as jaxopt
from . import optax as optax
from . import optimistix as optimistix
from .minimize import minimize

__all__ = ["jaxopt", "minimize", "optax", "optimistix"]
