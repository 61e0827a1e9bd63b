"""The part on 2-D Navier-Stokes: trained on initial vorticities, held against the pseudo-spectral simulator."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import NavierStokes2DVorticity
from optimand.physics import NavierStokes2D, gaussian_field, rollout
from optimand.report import figures as draw

from ..base import Findings, Run, Table
from . import Settings
from .measuring import local_against_global, solve_seconds
from .training import (
    COLUMNS,
    NAMES,
    Case,
    compare,
    errors_of,
    jump_of,
    network,
    own_inputs,
    sweep,
    variants,
    write_predictions,
)


def run(settings: Settings, key: Any, out: Run) -> Findings:
    net_key, data_key, train_key = jax.random.split(key, 3)
    pde = NavierStokes2DVorticity(
        settings.ns_nx, nt=settings.ns_nt, t_end=settings.ns_t_end, reynolds=settings.ns_reynolds,
        derivatives=settings.ns_derivatives, residual_power=settings.ns_residual_power,
    )  # fmt: skip
    own = own_inputs(pde, settings)
    data = _flows(settings, data_key, out)

    def net(channels, activated, soft):
        modes = settings.ns_soft_modes if soft else settings.ns_modes
        return network(
            settings, 4, channels, settings.ns_width, modes, settings.ns_layers, activate_output=activated,
            key=net_key,
        )  # fmt: skip

    case = Case(
        "ns", pde, jnp.asarray(data["train"]), jnp.asarray(data["test"]), data["references"], net, settings.ns_basis,
        settings.ns_experts, settings.ns_points, settings.ns_batch, settings.steps("ns"),
    )  # fmt: skip
    found = compare(case, variants(case, settings), settings, train_key, out)
    metrics, trained = found.metrics, found.trained
    still = errors_of(np.repeat(data["test"][:, None], settings.ns_nt, axis=1), case.references)
    metrics["ns/persistence/error"] = still.mean()
    found.rows.append(["persistence", None, 100 * still.mean(), 100 * still.max(), None, None])
    times = []
    for name in (name for name in trained if name != "soft"):
        seconds, iterations = solve_seconds(trained[name], case.test)
        metrics[f"ns/{name}/solve_seconds"] = seconds
        times.append([NAMES[name], trained[name].constraint.points, 1e3 * seconds, iterations])
    metrics["ns/local_excess"] = local_against_global(trained["moe"], case.test)
    jump = jump_of(trained["moe"], case.test)
    metrics["ns/moe/jump"] = jump
    note = (
        f"{case.steps} steps of batch {case.batch}, {len(case.test)} unseen initial conditions; "
        f"the experts' fields differ by {100 * jump:.1f} % at their borders"
    )
    shown = {
        "t = T": {
            "reference": case.references[0, -1].T,
            **{NAMES[name]: found.fields[name][0, -1].T for name in ("soft", "hc", "moe") if name in found.fields},
        }
    }
    write_predictions("ns", case, trained["moe"], own, settings, out)
    return Findings(
        metrics,
        [
            Table("Navier-Stokes", COLUMNS, found.rows, note),
            Table("Navier-Stokes: the constraint at inference", ("variant", "points of a solve", "ms, slowest expert", "iterations"), times),
            *sweep(case, trained["moe"], settings),
        ],
        {
            "Navier-Stokes: vorticity at the last time": draw.fields(
                shown, reference="reference", extent=(0.0, 1.0, 0.0, 1.0), label="vorticity", signed=True
            ),
            "Navier-Stokes: training": draw.curves(found.curves, ylabel="loss"),
        },
    )  # fmt: skip


def _flows(settings: Settings, key: Any, out: Run) -> dict[str, np.ndarray]:
    """Initial vorticities to train and test on, and the simulator's fields (test, nt, nx, nx) from the latter."""
    fine, coarse = settings.ns_resolution, settings.ns_nx
    if fine % coarse:
        raise ValueError(f"ns_resolution = {fine} must be a multiple of ns_nx = {coarse}")
    every = fine // coarse
    count = settings.ns_inputs + settings.ns_test
    simulator = NavierStokes2D(
        n=fine, reynolds=settings.ns_reynolds, dt=settings.ns_t_end / (settings.ns_nt - 1), substeps=20
    )

    @jax.jit
    def simulate(initial):
        states = rollout(simulator, simulator.initial(initial), steps=settings.ns_nt - 1).observations
        return jnp.concatenate([initial[None], states.vorticity])[:, ::every, ::every]

    def compute():
        keys = jax.random.split(key, count)
        draw = jax.jit(jax.vmap(lambda key: gaussian_field(key, (fine, fine), scale=settings.ns_field_scale)))
        initial = draw(keys)
        coarse = initial[:, ::every, ::every]
        coarse = coarse - coarse.mean(axis=(1, 2), keepdims=True)
        references = np.stack([simulate(field) for field in initial[settings.ns_inputs :]])
        return {"train": coarse[: settings.ns_inputs], "test": coarse[settings.ns_inputs :], "references": references}

    out.progress("ns: references")
    return out.once("ns references", compute)
