r"""Steps of a trust-region method: minimisers of a quadratic model in a ball, on a face of a box.

$$\min_w\; q(w) = r^\top w + \tfrac12 w^\top H w \quad\text{s.t.}\quad \lVert w \rVert \le \Delta,\; w_i = 0 \text{ where not free}.$$

With the matrix at hand the minimiser is found exactly: \(w = -(H + \lambda I)^{-1} r\) with \(\lambda \ge \max(0, -\lambda_{\min})\) from the
secular equation, and along the eigenvector of \(\lambda_{\min}\) in the hard case (Moré and Sorensen 1983). Eigenvalues are only asked for
where Newton's step does not exist or, with few unknowns, leaves the ball; while it exists, shorter steps follow the dogleg. With products alone the
conjugate gradients are followed until they leave the ball or find negative curvature (Steihaug 1983).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.dense import in_turn
from .bounded import BoundedProgram
from .vectors import norm

__all__ = ["Factors", "curvature_noise", "factorise", "minimise_in_ball", "minimise_on_faces", "steihaug"]


class Factors(NamedTuple):
    """What is known of H on a face. `definite`: Newton's step exists and is the one to take, and there are no eigenvalues.

    `values` and `vectors` are those of D^{-1} H D^{-1}, with the diagonal D in `scale`.
    """

    definite: Array
    newton: Array
    steepest: Array  # the minimiser along -r
    residual: Array
    scale: Array
    values: Array
    vectors: Array


@in_turn
def factorise(hessian: Array, residual: Array, free: Array, radius: Array) -> Factors:
    """H on the face as factors: Cholesky's, tried first, and eigenvalues where those lead to no step in the ball; with many unknowns
    only where they lead to no step at all.

    Where the unknowns have so different units that rounding hides the sign of the least eigenvalue, the eigenvalues are those
    of the matrix scaled to a diagonal of ones, and the ball is an ellipsoid that touches it.
    """
    eps = jnp.finfo(hessian.dtype).eps
    straight = eps * norm(residual) / radius  # curvature below this is none, as far as the ball goes
    typical = jnp.maximum(jnp.max(jnp.abs(hessian), initial=0), jnp.maximum(straight, jnp.finfo(hessian.dtype).tiny))
    both = (free[:, None] > 0) & (free > 0)
    hessian = jnp.where(both, hessian, typical * jnp.eye(free.size, dtype=hessian.dtype))
    residual = jnp.where(free > 0, residual, 0)
    units = jnp.sqrt(jnp.maximum(jnp.abs(jnp.diagonal(hessian)), eps**2 * typical))
    scaled = hessian / units[:, None] / units
    factor = jnp.linalg.cholesky(scaled, symmetrize_input=False)
    newton = -jax.scipy.linalg.cho_solve((factor, True), residual / units) / units
    sound = jnp.min(jnp.diagonal(factor), initial=jnp.inf) ** 2 > residual.size * eps
    exists = jnp.all(jnp.isfinite(newton)) & (sound | (norm(newton) == 0))
    definite = exists & ((norm(newton) <= radius) | (residual.size > _MANY))

    def eigenvalues():
        values, vectors = jnp.linalg.eigh(hessian, symmetrize_input=False)
        hidden = (jnp.abs(values[0]) <= curvature_noise(values)) & (jnp.max(jnp.abs(values), initial=0) > straight)
        plain = lambda: (jnp.ones_like(units), values, vectors)
        return jax.lax.cond(hidden, lambda: (units, *jnp.linalg.eigh(scaled, symmetrize_input=False)), plain)

    none = jnp.ones_like(residual), jnp.zeros_like(residual), jnp.zeros_like(hessian)
    scale, values, vectors = jax.lax.cond(definite, lambda: none, eigenvalues)
    along = residual @ (hessian @ residual)
    steepest = -residual * (residual @ residual) / jnp.where(along > 0, along, 1)
    return Factors(definite, newton, steepest, residual, scale, values, vectors)


_MANY = 100  # unknowns, from which on the dogleg is cheaper than what eigenvalues would gain


def curvature_noise(values: Array) -> Array:
    """How far below zero an eigenvalue of a singular Hessian may come out, since the Hessian itself is rounded."""
    return jnp.finfo(values.dtype).eps ** (2 / 3) * jnp.max(jnp.abs(values), initial=0)


def _rounding(values: Array) -> Array:
    """What rounding may add to an eigenvalue."""
    tiny, eps = jnp.finfo(values.dtype).tiny, jnp.finfo(values.dtype).eps
    return jnp.maximum(values.size * eps * jnp.max(jnp.abs(values), initial=0), tiny / eps)


def minimise_in_ball(factors: Factors, radius: Array) -> tuple[Array, Array]:
    """The minimiser in the ball, and whether no negative curvature was seen."""
    definite, newton, steepest, *_ = factors
    exact, seen = _exact(factors, radius)
    w = jnp.where(definite, _dogleg(newton, steepest, radius), exact)
    return w, definite | ~seen


def _dogleg(newton: Array, steepest: Array, radius: Array) -> Array:
    """Down the gradient to the minimiser, then towards Newton's step, as far as the ball goes."""
    short = steepest * jnp.minimum(1, radius / jnp.maximum(norm(steepest), jnp.finfo(radius.dtype).tiny))
    bend = newton - steepest
    bent = steepest + to_boundary(steepest, bend, radius) * bend
    first = norm(steepest) >= radius
    return jnp.where(norm(newton) <= radius, newton, jnp.where(first, short, bent))


def to_boundary(start: Array, direction: Array, radius: Array) -> Array:
    """The t >= 0 with |start + t * direction| = radius, for a start in the ball."""
    a, b, c = direction @ direction, start @ direction, radius**2 - start @ start
    root = jnp.sqrt(jnp.maximum(b**2 + a * jnp.maximum(c, 0), 0))
    t = jnp.where(b > 0, c / jnp.where(b + root > 0, b + root, 1), (root - b) / jnp.where(a > 0, a, 1))
    return jnp.maximum(t, 0)


def _exact(factors: Factors, radius: Array) -> tuple[Array, Array]:
    """By the secular equation 1 / |w(lambda)| = 1 / radius, from the left, where Newton's iterates increase to the zero.

    w(lambda) = -(H + lambda D^2)^{-1} r.
    """
    _, _, _, residual, scale, values, vectors = factors
    g = vectors.T @ (residual / scale)
    straight = jnp.finfo(values.dtype).eps * norm(g) / radius
    least, guard = values[0], jnp.maximum(_rounding(values), straight.astype(values.dtype))
    negative = least < -curvature_noise(values)
    start = jnp.where(least > guard, 0.0, guard - least).astype(values.dtype)
    shifted = lambda shift: jnp.where(values + shift > 0, values + shift, guard)
    back = lambda y: (vectors @ y) / scale

    def step(shift):
        y = -g / shifted(shift)
        w = back(y)
        return y, w, norm(w)

    def improve(carry):
        shift, y, w, size, low, high, rounds = carry
        low, high = jnp.where(size > radius, shift, low), jnp.where(size > radius, high, shift)
        slope = w @ back(y / shifted(shift))
        newton = shift + size**2 / slope * (size - radius) / radius
        middle = origin + jnp.sqrt((low - origin) * (high - origin))
        shift = jnp.where((newton > low) & (newton < high), newton, jnp.where(jnp.isfinite(high), middle, 10 * shift))
        return shift, *step(shift), low, high, rounds + 1

    def astray(carry):  # in an ellipsoid |w| need not fall with lambda, and Newton's iterates may overshoot
        shift, _, _, size, _, _, rounds = carry
        return ((size > 1.01 * radius) | ((size < 0.9 * radius) & (shift > start))) & (rounds < 60)

    infinite, origin = jnp.full_like(start, jnp.inf), start - guard
    shift, _, w, size, *_ = jax.lax.while_loop(astray, improve, (start, *step(start), start, infinite, jnp.int32(0)))
    w = w * jnp.minimum(1, 1.01 * radius / jnp.maximum(size, jnp.finfo(w.dtype).tiny))
    downhill = back(jnp.where(g[0] > 0, -1.0, 1.0) * (jnp.arange(values.size) == 0).astype(w.dtype))
    downhill = downhill / jnp.maximum(norm(downhill), jnp.finfo(w.dtype).tiny)
    hard = negative & (shift == start) & (norm(w) < radius)
    return w + jnp.where(hard, to_boundary(w, downhill, radius), 0) * downhill, negative


def steihaug(product: Callable, residual: Array, free: Array, radius: Array, most: int) -> tuple[Array, Array, Array]:
    """The end of the conjugate gradients in the ball, whether no negative curvature was seen, and how many products they took.

    They end at a residual of at most min(1/10, |r|^(1/2)) |r|: superlinear convergence of the method they serve.
    """
    r = jnp.where(free > 0, residual, 0)
    size = norm(r)
    enough = jnp.minimum(0.1, jnp.sqrt(size)) * size

    def turn(carry):
        w, r, p, rr, count, _, positive = carry
        image = jnp.where(free > 0, product(p), 0)
        curvature = p @ image
        bent = ~(curvature > jnp.finfo(r.dtype).eps * (p @ p))
        t = rr / jnp.where(bent, 1, curvature)
        leaves = bent | ~(norm(w + t * p) < radius)
        t = jnp.where(leaves, to_boundary(w, p, radius), t)
        w, r = w + t * p, r + t * image
        new = r @ r
        p = -r + new / rr * p
        return w, r, p, new, count + 1, leaves | ~jnp.isfinite(new), positive & ~(curvature < 0)

    going = lambda carry: ~carry[5] & (jnp.sqrt(carry[3]) > enough) & (carry[4] < most)
    begin = (jnp.zeros_like(r), r, -r, r @ r, jnp.int32(0), jnp.array(False), jnp.array(True))
    w, _, _, _, count, _, positive = jax.lax.while_loop(going, turn, begin)
    plain = -r * (radius / jnp.maximum(size, jnp.finfo(r.dtype).tiny))
    return jnp.where(jnp.all(jnp.isfinite(w)), w, plain), positive, count


_FACES = 8


def minimise_on_faces(
    program: BoundedProgram, x: Array, g: Array, product: Callable, solve: Callable, radius: Array
) -> tuple[Array, Array, Array]:
    """A step s in the box that gains at least a fraction of what the Cauchy point gains (Lin and Moré 1999, section 3).

    From the Cauchy point on, the model is minimised on one face after the other, each time followed by a projected search; until a
    face's minimiser stays in the box. `solve(residual, free, radius)` returns the minimiser on a face, whether no negative curvature
    was seen, and the products it took. Returned are s, whether none was seen on the last face, and the number of products.
    """
    size = jnp.where(program.room(x, -g) > 0, g, 0)
    along = size @ product(size)
    length = norm(size)
    tiny = jnp.finfo(x.dtype).tiny
    best = jnp.where(along > 0, length**2 / jnp.where(along > 0, along, 1), jnp.inf)
    first = jnp.where(length > 0, jnp.minimum(best, radius / jnp.maximum(length, tiny)), 0)

    def search(base, residual, direction, first):
        """Shorten a step along the projected path until the model has gained enough: a hundredth of what is predicted."""

        def look(carry):
            t, *_, count, _ = carry
            t = jnp.where(count == 0, t, jnp.maximum(t / 4, jnp.minimum(least, t)))
            move = program.snap(base + t * direction) - base
            image = product(move)
            linear = residual @ move
            gain = linear + (move @ image) / 2
            return t, move, image, count + 1, gain <= 0.01 * linear

        room = program.room(base, direction)
        least = jnp.min(jnp.where(room > 0, room, jnp.inf), initial=jnp.inf)  # up to there nothing is projected
        going = lambda carry: ~carry[4] & (carry[3] < 30)
        none = jnp.zeros_like(x)
        _, move, image, count, good = jax.lax.while_loop(going, look, (first, none, none, jnp.int32(0), jnp.array(False)))
        good = good & jnp.all(jnp.isfinite(image))
        return jnp.where(good, move, 0), jnp.where(good, image, 0), count

    s, image, products = search(x, g, -size, first)
    target = 0.1 * norm(size)

    def visit(carry):
        s, image, products, faces, _, _ = carry
        y, r = x + s, g + image
        free = jnp.where((program.room(y, jnp.ones_like(y)) > 0) & (program.room(y, -jnp.ones_like(y)) > 0), 1, 0)
        free = free.astype(x.dtype)
        w, positive, spent = solve(r, free, radius)
        move, moved, looks = search(y, r, w, jnp.ones((), x.dtype))
        kept = jnp.all(move == program.snap(y + w) - y) & jnp.all((y + w >= program.lower) & (y + w <= program.upper))
        s, image = s + move, image + moved
        reached = norm(s) >= radius
        left = norm((g + image) * free) <= target * 1e-2
        return s, image, products + spent + looks, faces + 1, positive, kept | reached | left

    visiting = lambda carry: ~carry[5] & (carry[3] < _FACES)
    begin = (s, image, products + 1, jnp.int32(0), jnp.array(True), jnp.array(False))
    s, _, products, _, positive, _ = jax.lax.while_loop(visiting, visit, begin)
    return s, positive, products
