r"""Newton steps in a box: the direction in the free variables, and a search along the projected path.

$$x(t) = P(x + t d), \qquad d_F = -H_{FF}^{-1} g_F, \qquad d_A = -g_A ,$$

where P projects on \(l \le x \le u\), and A holds the variables that are at (or nearly at) a bound and would be pushed
through it by the gradient (Bertsekas 1982). A step is taken if

$$\varphi(x(t)) \le \varphi(x) - c\,\big(-t\, g_F^\top d_F + g_A^\top (x - x(t))_A\big) .$$
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .line_search import constant, evaluated
from .newton import descent

__all__ = ["Direction", "PathStep", "free_direction", "in_box", "projected_gradient", "search_path", "truncated_cg"]


class Direction(NamedTuple):
    """d, the slope g_F' d_F, which variables are held, and the products with the Hessian that it took."""

    d: Array
    slope: Array
    held: Array
    products: Array


def in_box(x: Float[Array, " n"], lower: Float[Array, " n"], upper: Float[Array, " n"]) -> Float[Array, " n"]:
    """The projection on the box, with the derivative of the identity on its faces."""
    return jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))


def projected_gradient(x: Array, gradient: Array, lower: Array, upper: Array) -> Float[Array, " n"]:
    """x - P(x - g): zero where x is stationary in the box."""
    return jnp.clip(gradient, x - upper, x - lower)  # x - P(x - g), also where x is so large that x - g rounds to x


def free_direction(
    gradient_of: Callable,
    x: Float[Array, " n"],
    gradient: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    solver: str,
    steps: int,
) -> Direction:
    """The direction at `x`, where `gradient` is `gradient_of(x)`. It is linear in `gradient` but for what is decided by it.

    **Arguments:** `solver`: "dense" forms the Hessian and factorises it, "cg" truncates conjugate gradients at negative
    curvature, "gmres" runs GMRES; these two multiply with the Hessian at most about `steps` times.
    """
    known = jax.lax.stop_gradient(gradient)
    near = jnp.minimum(jnp.max(jnp.abs(projected_gradient(x, known, lower, upper)), initial=0), 1e-3)
    held = ((x <= lower + near) & (known > 0)) | ((x >= upper - near) & (known < 0)) | (lower == upper)
    g = jnp.where(held, 0, gradient)
    if solver == "dense":
        hessian = jax.jacfwd(gradient_of)(x)
        both_free = ~held[:, None] & ~held
        d = descent(jnp.where(both_free, hessian, jnp.diag(jnp.where(held, 1, 0).astype(g.dtype))), g)[0]
        products = jnp.int32(0)
        curvature_along = lambda v: v @ (hessian @ v)
    else:
        _, product = jax.linearize(gradient_of, x)
        free_product = lambda v: jnp.where(held, v, product(jnp.where(held, 0, v)))
        size = jnp.linalg.norm(jax.lax.stop_gradient(g))
        forcing = jnp.minimum(0.1, jnp.sqrt(size)) * size
        if solver == "gmres":
            count = min(steps, x.size)
            d, _ = jax.scipy.sparse.linalg.gmres(free_product, -g, tol=0.0, atol=forcing, restart=count, maxiter=1)
            products = jnp.int32(count + 1)
        else:
            d, products = _with_derivative(free_product, -g, forcing, steps)
        products, curvature_along = products + 1, lambda v: v @ free_product(v)
    still, way = jax.lax.stop_gradient((g, d))
    steep = jnp.isfinite(still @ way) & (still @ way < -1e-12 * jnp.linalg.norm(still) * jnp.linalg.norm(way))
    d = jnp.where(steep, d, -g)
    way = jax.lax.stop_gradient(d)
    straight = jnp.abs(jax.lax.stop_gradient(curvature_along(way))) < jnp.finfo(d.dtype).eps * jnp.abs(still @ way)
    # Where there is hardly any curvature, a step of this length; where there is none, not a shorter one.
    longest = _LONGEST * jnp.maximum(1, jnp.max(jnp.abs(x)))
    part = longest / jnp.maximum(jnp.max(jnp.abs(way)), jnp.finfo(d.dtype).tiny)
    d = d * jnp.where(straight, part, jnp.minimum(1, part))
    return Direction(jnp.where(held, -gradient, d), g @ d, held, products)


_LONGEST = 10.0  # in units of the largest entry of x (or of 1): the longest step


def truncated_cg(product: Callable, rhs: Array, tolerance: Any, steps: int) -> tuple[Array, Array]:
    """H d = rhs by conjugate gradients from zero, ended at negative curvature, and the number of products.

    There the result is what was found before, or `rhs` itself if that is nothing (Nocedal and Wright 2006, algorithm 7.1).
    """

    def going(carry):
        _, r, _, count, ended = carry
        return ~ended & (count < steps) & (jnp.linalg.norm(r) > tolerance)

    def body(carry):
        d, r, p, count, _ = carry
        image = product(p)
        curvature, rr = p @ image, r @ r
        negative = curvature <= jnp.finfo(rhs.dtype).eps * (p @ p)
        length = rr / jnp.where(negative, 1, curvature)
        d = jnp.where(negative, jnp.where(count == 0, rhs, d), d + length * p)
        after = jnp.where(negative, r, r - length * image)
        return d, after, after + (after @ after / jnp.where(rr > 0, rr, 1)) * p, count + 1, negative

    start = (jnp.zeros_like(rhs), rhs, rhs, jnp.int32(0), jnp.array(False))
    d, _, _, count, _ = jax.lax.while_loop(going, body, start)
    return d, count


def _with_derivative(product: Callable, rhs: Array, tolerance: Array, steps: int) -> tuple[Array, Array]:
    """`truncated_cg`, differentiated as if it had solved the system."""
    tolerance = jax.lax.stop_gradient(tolerance)
    solve = lambda matvec, b: truncated_cg(matvec, b, tolerance, steps)
    return jax.lax.custom_linear_solve(product, rhs, solve, symmetric=True, has_aux=True)


class PathStep(NamedTuple):
    """Where a search along the projected path ended: `known` is what the function returned there."""

    x: Array
    known: Any
    trials: Array
    accepted: Bool[Array, ""]


def search_path(
    evaluate: Callable,
    arguments: PyTree,
    x: Float[Array, " n"],
    known: Any,
    direction: Direction,
    lower: Array,
    upper: Array,
    *,
    forced: Array,
    decrease: Any,
    max_trials: int,
) -> PathStep:
    """Shorten the step from 1 until the value falls enough; `accepted` is False if none did.

    **Arguments:** `evaluate(x, arguments)` returns a tuple that begins with (value, gradient); `known` is what it returns
    at `x`. `forced` takes the first trial whatever its value is, if it is finite, where `known` need not be right.

    Where rounding hides the decrease, a step is taken that does not raise the value and shrinks the projected gradient. The
    length is found with everything held constant; the point it leads to is differentiable.
    """
    fixed, origin, (value0, gradient0), heading, low, high = constant((arguments, x, known[:2], direction, lower, upper))
    allowance = 10 * jnp.finfo(value0.dtype).eps * jnp.abs(value0)
    size0 = jnp.max(jnp.abs(projected_gradient(origin, gradient0, low, high)))

    def trial(carry):
        _, length, _, trials, _ = carry
        new = in_box(origin + length * heading.d, low, high)
        out = evaluate(new, fixed)
        value, gradient = out[:2]
        gain = -length * heading.slope + jnp.sum(jnp.where(heading.held, gradient0 * (origin - new), 0))
        size = jnp.max(jnp.abs(projected_gradient(new, gradient, low, high)))
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        good = (value <= value0 - decrease * gain) & (value < value0)
        flat = (value <= value0 + allowance) & (size < 0.9 * size0)
        parabola = gain / (2 * (value - value0 + gain))  # its minimiser, as a fraction of the length
        shorter = jnp.clip(jnp.where(jnp.isfinite(parabola), parabola, 0.0), 0.1, 0.5) * length
        return length, shorter, out, trials + 1, finite & (forced | good | flat)

    searching = lambda carry: ~carry[4] & (carry[3] < max_trials)
    one = jnp.ones_like(value0)
    length, _, out, trials, accepted = jax.lax.while_loop(
        searching, trial, (one, one, constant(known), jnp.int32(0), jnp.array(False))
    )
    new = in_box(x + length * direction.d, lower, upper)
    return PathStep(new, evaluated(evaluate, (new, arguments), out), trials, accepted)
