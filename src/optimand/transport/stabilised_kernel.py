r"""Soft minima by products with a matrix: the plan at potentials nearby takes up what would overflow.

With the plan \(P^0\) at potentials \((f^0, g^0)\),

$$\log \sum_j b_j e^{(g_j - C_{ij}) / \varepsilon} = \log \big( P^0 e^{(g - g^0) / \varepsilon} \big)_i - f^0_i / \varepsilon - \log a_i,$$

so as long as no potential has moved far, a sweep of Sinkhorn's method takes two products instead of 2 n m exponentials; where one has, \(P^0\) is made anew
(Schmitzer 2019, section 3). All terms are positive, so nothing is lost to cancellation; and where the marginals of \(P^0\) are near a and b, what underflows in
it is negligible in any sum of a sweep.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .problem import Coupling, Potentials

__all__ = ["StabilisedKernel", "is_moderate"]


class StabilisedKernel(eqx.Module):
    """`plan` is that of the problem at `centre`; a centre that is not finite says that there is none yet."""

    plan: Float[Array, "n m"]
    centre: Potentials

    @staticmethod
    def none(problem: Coupling) -> "StabilisedKernel":
        """No plan yet: soft minima are taken in logarithms."""
        nowhere = Potentials(jnp.full_like(problem.a, jnp.inf), jnp.full_like(problem.b, jnp.inf))
        return StabilisedKernel(jnp.zeros(problem.cost.shape, problem.a.dtype), nowhere)

    @staticmethod
    def at(problem: Coupling, x: Potentials) -> "StabilisedKernel":
        """That of x, if its marginals say that it can be used: they are sums of the plan, so that no pass in logarithms comes first."""
        arrays, static = eqx.partition((problem, x), eqx.is_array)
        problem, x = eqx.combine(jax.lax.stop_gradient(arrays), static)
        plan = problem.plan(x)
        ready = is_moderate(jnp.log(jnp.sum(plan, 1) / problem.a)) & is_moderate(jnp.log(jnp.sum(plan, 0) / problem.b))
        return StabilisedKernel(plan, Potentials(jnp.where(ready, x.f, jnp.inf), jnp.where(ready, x.g, jnp.inf)))

    def soft_rows(self, problem: Coupling, g: Float[Array, " m"], epsilon: Float[Array, ""]) -> Float[Array, " n"]:
        """`problem.soft_rows(g, epsilon)`, where epsilon is the problem's own if there is a plan."""
        return _soft_rows(problem, g, epsilon, jax.lax.stop_gradient(self))

    def soft_columns(self, problem: Coupling, f: Float[Array, " n"], epsilon: Float[Array, ""]) -> Float[Array, " m"]:
        """`problem.soft_columns(f, epsilon)`."""
        return _soft_columns(problem, f, epsilon, jax.lax.stop_gradient(self))

    def near(self, problem: Coupling, x: Potentials, ready: Any = True, exact: Any = False) -> "StabilisedKernel":
        """The kernel for what follows at x: this one, or if x is far from its centre and `ready` a new one.

        Ready is x if the marginals of its plan are a and b up to moderate factors, so that no row or column of it is lost to underflow. With `exact` the
        plan is that of x in any case; sums are taken in logarithms all the same if x is not ready.
        """
        arrays, static = eqx.partition((problem, x, self), eqx.is_array)
        problem, x, kernel = eqx.combine(jax.lax.stop_gradient(arrays), static)
        near = _near(problem, x.f, kernel.centre.f) & _near(problem, x.g, kernel.centre.g)

        def make(_):
            centre = Potentials(jnp.where(ready, x.f, jnp.inf), jnp.where(ready, x.g, jnp.inf))
            return StabilisedKernel(problem.plan(x), centre), jnp.array(False)

        # A conditional would copy the plan that it keeps.
        return jax.lax.while_loop(lambda carry: carry[1], make, (kernel, exact | (ready & ~near)))[0]


def is_moderate(logarithms: Array) -> Bool[Array, ""]:
    """Whether their exponentials are far from overflow, and the squares of those too."""
    farthest = 150 if logarithms.dtype == jnp.float64 else 20
    return jnp.max(jnp.abs(logarithms)) <= farthest


def _near(problem: Coupling, potential: Array, centre: Array) -> Bool[Array, ""]:
    return is_moderate((potential - centre) / problem.epsilon)


# The derivative is that in logarithms: the one through the plan is the same, but takes a second matrix to know.


@eqx.filter_custom_jvp
def _soft_rows(problem: Coupling, g: Array, epsilon: Array, kernel: StabilisedKernel) -> Array:
    def by_product(g):
        mass = kernel.plan @ jnp.exp((g - kernel.centre.g) / epsilon)
        return jnp.log(mass) - kernel.centre.f / epsilon - jnp.log(problem.a)

    return jax.lax.cond(_near(problem, g, kernel.centre.g), by_product, lambda g: problem.soft_rows(g, epsilon), g)


@_soft_rows.def_jvp
def _soft_rows_jvp(primals, tangents):
    of_logarithms = lambda problem, g, epsilon: problem.soft_rows(g, epsilon)
    _, slope = eqx.filter_jvp(of_logarithms, primals[:3], tangents[:3])
    return _soft_rows(*primals), slope


@eqx.filter_custom_jvp
def _soft_columns(problem: Coupling, f: Array, epsilon: Array, kernel: StabilisedKernel) -> Array:
    def by_product(f):
        mass = jnp.exp((f - kernel.centre.f) / epsilon) @ kernel.plan
        return jnp.log(mass) - kernel.centre.g / epsilon - jnp.log(problem.b)

    return jax.lax.cond(_near(problem, f, kernel.centre.f), by_product, lambda f: problem.soft_columns(f, epsilon), f)


@_soft_columns.def_jvp
def _soft_columns_jvp(primals, tangents):
    of_logarithms = lambda problem, f, epsilon: problem.soft_columns(f, epsilon)
    _, slope = eqx.filter_jvp(of_logarithms, primals[:3], tangents[:3])
    return _soft_columns(*primals), slope
