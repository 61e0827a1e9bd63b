r"""Methods as Optax transformations.

Optax's loop is the user's: it has the gradient \(g_k\) at \(x_k\) and asks for \(u_k\), to go to \(x_k + u_k\). A method
that is an Optax transformation inside (`Adam`, `Optax`, ...) hands that out. Any other one evaluates the objective where
it likes, in a line search, say; it takes the objective from the argument `value_fn`, which Optax passes to line searches,
makes one step, and \(u_k\) is where that has led, less \(x_k\).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array

from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Minimize, Objective
from ..smooth.optax import OptaxIteration

__all__ = ["as_transformation"]


class TransformationState(eqx.Module):
    """`inner` is the method's state; `fresh` while it is that of a placeholder, before the objective is known."""

    inner: Any
    fresh: Array


def as_transformation(method: Method) -> optax.GradientTransformationExtraArgs:
    """The method as an `optax.GradientTransformationExtraArgs`.

    `update` needs `value_fn`, the objective as a function of the parameters, unless the method needs gradients only. If
    the parameters are not where its last step led, because another transformation changed the update or somebody the
    parameters, the method starts anew there: what it remembers would be wrong. The batch must not change between steps,
    unless the method is for random batches.

    Raises `ArgumentError` for a method that does not minimise an objective, or runs on the host.

    ```python
    fn = lambda x: jnp.sum((x - 1.0) ** 4)
    transformation = om.compat.optax.as_transformation(om.smooth.LBFGS())
    x = jnp.zeros(3)
    state = transformation.init(x)
    for _ in range(10):
        value, gradient = jax.value_and_grad(fn)(x)
        updates, state = transformation.update(gradient, state, x, value_fn=fn)
        x = optax.apply_updates(x, updates)
    ```
    """
    if not isinstance(method, Method):
        raise ArgumentError("method", f"must be an optimand Method, not {type(method).__name__}.")
    kinds = method.problem if isinstance(method.problem, tuple) else (method.problem,)
    name = type(method).__name__
    if not any(issubclass(Minimize, kind) for kind in kinds):
        raise ArgumentError("method", f"{name} does not minimise an objective, which is what Optax is for.")
    if method.host:
        raise ArgumentError("method", f"{name} runs on the host, and an Optax update is compiled.", "Use solve.")
    if isinstance(method, OptaxIteration):
        return optax.with_extra_args_support(method.transformation())

    def init(params: Any) -> Any:
        zero = lambda x: sum((jnp.sum(0 * leaf) for leaf in jtu.tree_leaves(x)), jnp.zeros(()))
        dtype = jnp.result_type(*jtu.tree_leaves(params))
        placeholder = Minimize(lambda x: zero(x).astype(dtype)).traced(params)
        inner = jtu.tree_map(jnp.asarray, method.init(placeholder, params, key=jax.random.key(0)))
        return TransformationState(inner, jnp.array(True))

    def update(updates: Any, state: Any, params: Any = None, *, value_fn: Any = None, **extra: Any) -> tuple[Any, Any]:
        del updates, extra
        if params is None or value_fn is None:
            missing = "params" if params is None else "value_fn"
            raise ArgumentError(missing, f"is needed: {name} evaluates the objective where it likes.", "Pass it to update.")
        problem: Objective = Minimize(value_fn).traced(params)
        arrays, static = eqx.partition(state.inner, eqx.is_array)

        def begin():
            return eqx.filter(method.init(problem, params, key=jax.random.key(0)), eqx.is_array)

        def like(new):
            return jtu.tree_map(lambda new, old: jnp.asarray(new, old.dtype), new, arrays)

        there = jtu.tree_leaves(method.answer(problem, state.inner))
        moved = [jnp.any(a != b) for a, b in zip(there, jtu.tree_leaves(params), strict=True)]
        anew = state.fresh | jnp.any(jnp.stack(moved))
        inner = eqx.combine(jax.lax.cond(anew, lambda: like(begin()), lambda: arrays), static)
        inner = method.step(problem, inner, key=jax.random.key(0))
        difference = jtu.tree_map(lambda new, old: new - old, method.answer(problem, inner), params)
        after = eqx.combine(like(eqx.filter(inner, eqx.is_array)), static)
        return difference, TransformationState(after, jnp.array(False))

    return optax.GradientTransformationExtraArgs(init, update)
