"""jaxopt's decorators for implicit differentiation, on `optimand.implicit`."""

import warnings
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from ...core import adjoint
from ...core.optimality import fixed_point
from ...core.tracing import as_arrays

__all__ = ["custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]


def custom_root(
    optimality_fun: Callable, has_aux: bool = False, solve: Any = None, reference_signature: Any = None
) -> Callable:
    """A decorator for `solver(init_params, *args)` whose result is a root of `optimality_fun(params, *args)`.

    Unlike jaxopt's, arguments are bound by position: there is no `reference_signature`, and the linear solver is chosen
    from the Jacobian.
    """
    _pass_over(solve=solve, reference_signature=reference_signature)
    return adjoint.implicit(optimality_fun, has_aux=has_aux)


def custom_fixed_point(
    fixed_point_fun: Callable, has_aux: bool = False, solve: Any = None, reference_signature: Any = None
) -> Callable:
    """The same for a fixed point of `fixed_point_fun(params, *args)`."""
    _pass_over(solve=solve, reference_signature=reference_signature)
    return adjoint.implicit(fixed_point(fixed_point_fun), has_aux=has_aux)


def root_vjp(optimality_fun: Callable, sol: PyTree, args: tuple, cotangent: PyTree, solve: Any = None) -> Any:
    """`optimand.root_vjp`."""
    _pass_over(solve=solve)
    return adjoint.root_vjp(optimality_fun, *as_arrays((sol, args, cotangent)))


def root_jvp(optimality_fun: Callable, sol: PyTree, args: tuple, tangents: tuple, solve: Any = None) -> PyTree:
    """`optimand.root_jvp`."""
    _pass_over(solve=solve)
    return adjoint.root_jvp(optimality_fun, *as_arrays((sol, args, tangents)))


def _pass_over(**settings: Any) -> None:
    given = [name for name, value in settings.items() if value is not None]
    if given:
        warnings.warn(f"{', '.join(given)} of jaxopt is passed over.", UserWarning, stacklevel=3)
