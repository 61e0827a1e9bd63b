"""D. The sensitivity of a packing of soft discs to the diameter of half of them.

The paper takes up the example of JAX-MD (its notebook on meta-optimisation): half of the discs of diameter 1, half smaller, at a
packing fraction of 0.98, relaxed from random positions by FIRE with time steps from 0.1 to 0.4, for 300 iterations. Those are
the defaults, with 64 discs in place of 128. The paper's own script is not published: it may have taken other numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Implicit, Minimize, solve
from optimand.core.adjoint import root_jvp
from optimand.physics import SoftDiscs, bidisperse
from optimand.report import figures, style
from optimand.smooth import FIRE
from optimand.studies.base import Findings, Run, Table

from . import Settings

EVERY = 100  # iterations between two looks at the tangents on the way

NOTE = """\
Tangents are compared with the implicit one at the relaxed packing, which is checked against a central difference of packings
relaxed again. Implicit and unrolled tangents after a given number of iterations are those of the same iterates. Unrolling does not
fail for want of precision: until the contacts are settled FIRE passes saddles, where the Hessian has negative eigenvalues and
neighbouring paths part; the unrolled tangent is how they part, and grows by orders of magnitude. (It does so without the turn of
the velocity as well.) In the basin of the minimum this is forgotten at the rate at which FIRE converges: a packing that is nearly
relaxed has a useless unrolled tangent, and one relaxed to round-off the right one."""


def run(settings: Settings, key, out: Run) -> Findings:
    count, half = settings.discs_count, settings.discs_count // 2
    side = float(bidisperse(count, settings.discs_theta, packing_fraction=settings.discs_packing).side)

    def packing(theta):
        return SoftDiscs(jnp.concatenate([jnp.ones(count - half), jnp.full((half,), theta)]), side)

    method = FIRE(time_step=settings.discs_time_step, max_time_step=4 * settings.discs_time_step, tolerance=1e-12)
    budget = Budget(steps=settings.discs_iterations)
    problem = lambda theta: Minimize(lambda x, theta: packing(theta).energy(x), theta)
    # The mean is fixed: without it translations would make the system singular.
    condition = lambda x, theta: packing(theta).anchored_gradient(x)
    fixed_mean = Implicit(
        condition=lambda x, problem: condition(x, problem.args[0]), symmetric=False, rtol=settings.rtol
    )

    def relax(theta, start):
        return solve(problem(theta), method, start, budget=budget, adjoint=fixed_mean, throw=False).value

    def on_the_way(theta, start):
        """The iterates of FIRE, one of every so many."""
        step = lambda state, _: (method.step(problem(theta), state, key=None), None)

        def stretch(state, _):
            state, _ = jax.lax.scan(step, state, length=EVERY)
            return state, state.x

        return jax.lax.scan(stretch, method.init(problem(theta), start, key=None), length=len(looks))[1]

    def implicit_at(x):
        options = {"symmetric": True, "dense_below": 2 * count, "tolerance": None}
        return root_jvp(condition, x, (theta,), (jnp.ones_like(theta),), **options)

    def lowest_curvature(x):
        flat = lambda y: packing(theta).energy(y.reshape(x.shape))
        return jnp.linalg.eigvalsh(jax.hessian(flat)(x.ravel()))[0]

    theta, h = jnp.asarray(settings.discs_theta), 1e-6
    looks = np.arange(EVERY, settings.discs_iterations + 1, EVERY)
    at = int(np.argmin(np.abs(looks - settings.discs_unrolled)))
    tangent = lambda fn: lambda x: jax.jvp(lambda t: fn(t, x), (theta,), (jnp.ones_like(theta),))
    starts = jax.random.uniform(key, (settings.discs_runs, count, 2)) * side
    starts = starts - jnp.mean(starts, axis=1, keepdims=True)
    packed, implicit = jax.jit(jax.vmap(tangent(relax)))(starts)
    moved = jax.jit(lambda t: jax.vmap(lambda x: relax(t, x))(packed))
    difference = (moved(theta + h) - moved(theta - h)) / (2 * h)
    out.progress("D: implicit tangents done")
    iterates, unrolled = jax.jit(jax.vmap(tangent(on_the_way)))(starts)
    out.progress("D: unrolled tangents done")
    at_each = lambda fn: jax.jit(lambda xs: jax.lax.map(lambda run: jax.lax.map(fn, run), xs))(iterates)
    implicit_there, lowest = at_each(implicit_at), np.asarray(at_each(lowest_curvature))

    norms, error = _norm(implicit), _norm(implicit - difference) / _norm(difference)
    forces = _norm(jax.vmap(jax.vmap(packing(theta).forces))(iterates))
    residual = _norm(jax.vmap(packing(theta).anchored_gradient)(packed))
    finite = lambda ratio: np.where(np.isfinite(ratio), ratio, np.inf)
    ratio = finite(_norm(unrolled) / norms[:, None])
    ratio_there = finite(_norm(implicit_there) / norms[:, None])
    growth, at_saddle = ratio[:, 1:] / ratio[:, :-1], np.minimum(lowest[:, 1:], lowest[:, :-1]) < -1e-9
    moving = forces[:, 1:] > 1e-10
    typical = lambda which: np.median(growth[which]) if which.any() else 1.0
    metrics = {
        "median relative error": np.median(error),
        "divergences": np.sum(~np.isfinite(norms) | (norms > 1e6)),
        "runs with unrolled norm beyond 10 x": np.mean(ratio[:, at] > 10),
        "runs with implicit norm beyond 10 x, at the same iterates": np.mean(ratio_there[:, at] > 10),
        "runs with unrolled norm beyond 10 x, relaxed": np.mean(ratio[:, -1] > 10),
        f"growth of the unrolled norm in {EVERY} iterations, near saddles": typical(at_saddle),
        f"growth of the unrolled norm in {EVERY} iterations, in the basin": typical(~at_saddle & moving),
        "iterations unrolled": looks[at],
        "median norm, implicit": np.median(norms),
        "largest force at the end": residual.max(),
    }
    rows = [
        [i, norms[i], error[i], residual[i], ratio[i, at], ratio_there[i, at], forces[i, at], lowest[i, at],
         ratio[i].max(), ratio[i, -1]]
        for i in range(len(norms))
    ]  # fmt: skip
    table = Table(
        "D. Tangents of packings",
        ["run", "norm", "error", "force", f"unrolled / norm, {looks[at]} iterations", "implicit / norm, there",
         "force there", "lowest curvature there", "unrolled / norm, largest", f"unrolled / norm, {looks[-1]} iterations"],
        rows, NOTE,
    )  # fmt: skip
    middle = int(np.argsort(ratio[:, at])[len(ratio) // 2])
    drawn = {
        "D. How the discs move when the small ones grow": _draw_packing(
            packing(theta),
            {
                "implicit, relaxed": (packed[middle], implicit[middle]),
                f"unrolled, {looks[at]} iterations": (iterates[middle, at], unrolled[middle, at]),
            },
        ),
        "D. Tangents on the way": figures.curves(
            {"unrolled": ratio, "implicit, same iterates": ratio_there}, x=looks, xlabel="iterations of FIRE",
            ylabel="norm of dx/dθ / that when relaxed", title=f"{len(ratio)} packings: median and range",
        ),
    }  # fmt: skip
    return Findings(metrics, [table], drawn)


def _norm(tangents):
    """Norms of vectors of positions."""
    return np.linalg.norm(np.asarray(tangents), axis=(-2, -1))


def _draw_packing(discs: SoftDiscs, shown):
    """Discs with arrows, side by side: name -> (positions, tangent)."""
    with style.house_style():
        import matplotlib.pyplot as plt
        from matplotlib.patches import Circle

        figure, places = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.7))
        side = float(discs.side)
        large = np.asarray(discs.diameters) == 1
        for place, (name, (positions, tangent)) in zip(places, shown.items(), strict=True):
            centre = np.mod(np.asarray(positions), side)
            for x, diameter, big in zip(centre, np.asarray(discs.diameters), large, strict=True):
                colour = style.COLOURS[5] if big else style.COLOURS[4]
                for shift in np.ndindex(3, 3):  # discs that stick out of the box come in on the other side
                    at = x + side * (np.array(shift) - 1)
                    place.add_patch(Circle(at, diameter / 2, facecolor=colour, alpha=0.45, linewidth=0))
            arrows = np.asarray(tangent)
            longest = max(float(np.max(np.linalg.norm(arrows, axis=1))), 1e-30)
            place.quiver(
                *centre.T, *arrows.T, angles="xy", scale_units="xy", scale=longest / (0.15 * side), width=0.006
            )
            place.set_title(f"{name}: |dx/dθ| = {float(np.linalg.norm(arrows)):.3g}")
            place.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
            place.spines[["top", "right"]].set_visible(True)
            place.grid(False)
        return figure
