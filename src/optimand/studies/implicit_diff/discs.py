"""D. The sensitivity of a packing of soft discs to the diameter of half of them."""

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Implicit, Minimize, Unrolled, solve
from optimand.physics import SoftDiscs, bidisperse
from optimand.report import figures, style
from optimand.smooth import FIRE
from optimand.studies.base import Findings, Run, Table

from . import Settings


def run(settings: Settings, key, out: Run) -> Findings:

    side = float(bidisperse(settings.discs_count, settings.discs_theta, packing_fraction=settings.discs_packing).side)
    count, half = settings.discs_count, settings.discs_count // 2

    def packing(theta):
        return SoftDiscs(jnp.concatenate([jnp.ones(count - half), jnp.full((half,), theta)]), side)

    method = FIRE(time_step=0.05, max_time_step=0.2, tolerance=1e-12)
    budget = Budget(steps=settings.discs_iterations)
    problem = lambda theta: Minimize(lambda x, theta: packing(theta).energy(x), theta)
    # The mean is fixed: without it translations would make the system singular. BiCGSTAB's place is taken by GMRES.
    fixed_mean = Implicit(
        condition=lambda x, problem: packing(problem.args[0]).anchored_gradient(x), symmetric=False, rtol=settings.rtol
    )

    def relax(theta, start, adjoint):
        return solve(problem(theta), method, start, budget=budget, adjoint=adjoint, throw=False).value

    starts = jax.random.uniform(key, (settings.discs_runs, count, 2)) * side
    starts = starts - jnp.mean(starts, axis=1, keepdims=True)
    theta, h = jnp.asarray(settings.discs_theta), 1e-6
    tangent_of = lambda adjoint: jax.jit(
        jax.vmap(lambda x: jax.jvp(lambda t: relax(t, x, adjoint), (theta,), (jnp.ones_like(theta),)))
    )
    packed, implicit = tangent_of(fixed_mean)(starts)
    out.progress("D: implicit tangents done")
    _, unrolled = tangent_of(Unrolled(forward=True))(starts)
    out.progress("D: unrolled tangents done")
    moved = jax.jit(lambda t: jax.vmap(lambda x: relax(t, x, fixed_mean))(packed))
    difference = (moved(theta + h) - moved(theta - h)) / (2 * h)
    size = lambda tangents: np.asarray(jnp.linalg.norm(tangents.reshape(len(tangents), -1), axis=1))
    norms = size(implicit)
    error = size(implicit - difference) / size(difference)
    residual = size(jax.vmap(packing(theta).anchored_gradient)(packed))
    ratio = size(unrolled) / norms
    ratio = np.where(np.isfinite(ratio), ratio, np.inf)
    metrics = {
        "median relative error": np.median(error),
        "divergences": np.sum(~np.isfinite(norms) | (norms > 1e6)),
        "runs with unrolled norm beyond 10 x": np.mean(ratio > 10),
        "median norm, implicit": np.median(norms),
        "largest force at the end": residual.max(),
    }
    rows = [[i, n, u, e, r] for i, (n, u, e, r) in enumerate(zip(norms, size(unrolled), error, residual, strict=True))]
    table = Table("D. Tangents of packings", ["run", "implicit norm", "unrolled norm", "implicit error", "force"], rows)
    order = int(np.argsort(ratio)[len(ratio) // 2])
    drawn = {
        "D. How the discs move when the small ones grow": _draw_packing(
            packing(theta), packed[order], {"implicit": implicit[order], "unrolled": unrolled[order]}
        ),
        "D. Norms of tangents": figures.curves(
            {"implicit": np.sort(norms), "unrolled": np.sort(size(unrolled))}, xlabel="run, sorted",
            ylabel="norm of dx / dθ", title="Soft discs",
        ),
    }  # fmt: skip
    return Findings(metrics, [table], drawn)


def _draw_packing(discs: SoftDiscs, positions, tangents):

    with style.house_style():
        import matplotlib.pyplot as plt
        from matplotlib.patches import Circle

        figure, places = plt.subplots(1, len(tangents), figsize=(3.6 * len(tangents), 3.7))
        side = float(discs.side)
        centre = np.mod(np.asarray(positions), side)
        large = np.asarray(discs.diameters) == 1
        for place, (name, tangent) in zip(places, tangents.items(), strict=True):
            for x, diameter, big in zip(centre, np.asarray(discs.diameters), large, strict=True):
                colour = style.COLOURS[5] if big else style.COLOURS[4]
                place.add_patch(Circle(x, diameter / 2, facecolor=colour, alpha=0.45, linewidth=0))
            arrows = np.asarray(tangent)
            norm = float(np.linalg.norm(arrows))
            longest = max(float(np.max(np.linalg.norm(arrows, axis=1))), 1e-30)
            place.quiver(
                *centre.T, *arrows.T, angles="xy", scale_units="xy", scale=longest / (0.12 * side), width=0.005
            )
            place.set_title(f"{name}: |dx/dθ| = {norm:.3g}")
            place.set(xlim=(0, side), ylim=(0, side), aspect="equal", xticks=[], yticks=[])
            place.grid(False)
        return figure
