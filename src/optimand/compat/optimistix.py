"""Methods as Optimistix minimisers.

`optimistix.minimise` has a loop, an adjoint and a bound on steps of its own; a minimiser for it is a method whose `init`,
`step` and `done` are called there.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, PyTree

from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Minimize
from ..core.solution import Result, status_code

__all__ = ["Minimiser", "as_minimiser"]


class MinimiserState(eqx.Module):
    """The method's state, and the number of steps, which makes the keys of a random method."""

    inner: Any
    steps: Array


class Minimiser(optx.AbstractMinimiser[Any, Any, Any]):
    """One of our methods as an `optimistix.AbstractMinimiser`: made by `as_minimiser`.

    The tolerance is that of the method; `rtol`, `atol` and `norm`, which Optimistix wants to see, are not used.
    """

    method: Method
    rtol: float
    atol: float
    norm: Callable
    key: Any

    def _problem(self, fn, y, args):
        # closed over, as they are: Optimistix has traced `fn` for these very arguments, Python numbers among them
        return Minimize(lambda y: fn(y, args)[0]).traced(y)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> MinimiserState:
        inner = self.method.init(self._problem(fn, y, args), y, key=self.key)
        return MinimiserState(jtu.tree_map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, inner),
                              jnp.int32(0))  # fmt: skip

    def step(self, fn, y, args, options, state, tags) -> tuple[PyTree, MinimiserState, PyTree]:
        problem = self._problem(fn, y, args)
        key = None if self.key is None else jax.random.fold_in(self.key, state.steps)
        inner = self.method.step(problem, state.inner, key=key)
        inner = jtu.tree_map(lambda new, old: jnp.asarray(new, old.dtype), inner, state.inner)
        value = self.method.answer(problem, inner)
        aux_struct = jax.eval_shape(lambda y: fn(y, args), y)[1]
        aux = fn(value, args)[1] if jtu.tree_leaves(aux_struct) else None
        return value, MinimiserState(inner, state.steps + 1), aux

    def terminate(self, fn, y, args, options, state, tags) -> tuple[Array, optx.RESULTS]:
        code = status_code(self.method.done(self._problem(fn, y, args), state.inner))
        failed = (code != Result.converged.code) & (code != Result.running.code)
        result = optx.RESULTS.where(failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)
        return code != Result.running.code, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        counters = self.method.counters(state.inner)
        return y, aux, {name: getattr(counters, name) for name in ("values", "gradients", "jacobians")}


def as_minimiser(method: Method, *, key: Array | None = None) -> Minimiser:
    """The method as a solver for `optimistix.minimise`, under `jit`, `vmap` and `grad` as any of Optimistix.

    The solve ends by the method's own `tolerance`, or at `max_steps` of `optimistix.minimise`. A method that can get no
    further ends as a divergence there; pass `throw=False` to have the point all the same.

    **Arguments:** `key`: for a method that is stochastic.

    Raises `ArgumentError` for a method that does not minimise an objective, or runs on the host.

    ```python
    import optimistix

    solver = om.compat.optimistix.as_minimiser(om.smooth.LBFGS(tolerance=1e-5))
    optimistix.minimise(lambda y, args: jnp.sum((y - args) ** 2), solver, jnp.zeros(2), jnp.arange(2.0)).value
    ```
    """
    if not isinstance(method, Method):
        raise ArgumentError("method", f"must be an optimand Method, not {type(method).__name__}.")
    kinds = method.problem if isinstance(method.problem, tuple) else (method.problem,)
    name = type(method).__name__
    if not any(issubclass(Minimize, kind) for kind in kinds):
        raise ArgumentError("method", f"{name} does not minimise an objective.", "optimand.solve takes it.")
    if method.host:
        raise ArgumentError("method", f"{name} runs on the host, and Optimistix compiles its loop.", "Use solve.")
    if method.stochastic and key is None:
        raise ArgumentError("key", f"is needed: {name} draws random numbers.", "Pass key=jax.random.key(0).")
    tolerance = getattr(method, "tolerance", 0.0)
    return Minimiser(method=method, rtol=tolerance, atol=tolerance, norm=optx.max_norm, key=key)
