"""The part on 1-D diffusion-sorption: trained on initial conditions, held against the finite-volume simulator."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import ConstrainedBasis, DiffusionSorption1D, RandomExperts, SoftField
from optimand.physics import DiffusionSorption, rollout
from optimand.report import figures as draw

from ..base import Findings, Run, Table
from . import Settings
from .measuring import local_against_global
from .training import (
    COLUMNS,
    NAMES,
    Case,
    compare,
    errors_of,
    network,
    own_inputs,
    points_of,
    predict,
    sweep,
    variants,
    write_predictions,
)


def run(settings: Settings, key: Any, out: Run) -> Findings:
    net_key, data_key, train_key = jax.random.split(key, 3)

    def equation(stencil="paper", corner=(0, 0), weight=settings.ds_pde_weight):
        return DiffusionSorption1D(
            settings.ds_nx, settings.ds_nt, settings.ds_t_end, stencil=stencil, diffusion=settings.ds_diffusion,
            skip_initial=settings.ds_skip_initial, skip_corner=corner, pde_weight=weight,
        )  # fmt: skip

    def case(name, pde):
        def net(channels, activated, soft):
            del soft
            return network(
                settings, 3, channels, settings.ds_width, (settings.ds_modes,) * 2, settings.ds_layers, activate_last_layer=True,
                activate_output=activated, key=net_key,
            )  # fmt: skip

        return Case(
            name, pde, pde.sample_inputs(data_key, settings.ds_inputs), test,
            references, net, settings.ds_basis, settings.ds_experts, settings.ds_points, settings.ds_batch,
            settings.steps("ds"),
        )  # fmt: skip

    paper_rows = equation()
    own = own_inputs(paper_rows, settings)
    test = jnp.linspace(0.01, 0.19, settings.ds_test)
    references = _sorption_references(settings, test, np.linspace(0, 1, settings.ds_nx), out)
    paper = case("ds", paper_rows)
    found = compare(paper, variants(paper, settings), settings, train_key, out)
    metrics, trained = found.metrics, found.trained
    extra = {}
    if settings.ds_random_experts:
        model = trained["moe"]
        router = RandomExperts(model.experts.count)
        extra["random"] = ConstrainedBasis(
            paper.net(paper.basis, True, False), paper.pde, experts=router, seed=settings.sampler_seed,
            constraint=dataclasses.replace(model.constraint, points=points_of(paper, router)),
        )  # fmt: skip
    if settings.ds_afterwards:
        extra["afterwards"] = SoftField(paper.net(paper.basis, True, True), paper.pde)
    more = compare(paper, extra, settings, train_key, out)
    if settings.ds_afterwards:
        hard = ConstrainedBasis(
            more.trained["afterwards"].net, paper.pde, experts=trained["moe"].experts, seed=settings.sampler_seed,
            constraint=trained["moe"].constraint,
        )  # fmt: skip
        errors = errors_of(predict(hard, paper.test), paper.references)
        more.rows.append(["the same, once constrained", None, 100 * errors.mean(), 100 * errors.max(), None, None])
        metrics["ds/afterwards/constrained_error"] = errors.mean()
    metrics.update(more.metrics)
    metrics["ds/local_excess"] = local_against_global(trained["moe"], paper.test)
    note = f"{paper.steps} steps of batch {paper.batch}, {len(paper.test)} unseen initial conditions"
    tables = [
        Table("Diffusion-sorption, the paper's rows", COLUMNS, found.rows + more.rows + yardsticks(paper, metrics), note),
        *sweep(paper, trained["moe"], settings),
    ]
    figures = {
        "Diffusion-sorption, the paper's rows: reference and predictions": _drawn(settings, paper, found.fields),
        "Diffusion-sorption, the paper's rows: training": draw.curves({**found.curves, **more.curves}, ylabel="loss"),
    }
    for stencil in settings.ds_sound:
        name, label = ("ds_sound", "sound rows") if stencil == "paper" else ("ds_sound_compact", "sound rows, compact stencil")
        sound = case(name, equation(stencil, settings.ds_corner, settings.ds_sound_weight))
        three = {name: model for name, model in variants(sound, settings).items() if name != "hc_per_solve"}
        sounder = compare(sound, three, settings, train_key, out)
        metrics.update(sounder.metrics)
        times, points = settings.ds_corner
        rows = f"{note}; weight {settings.ds_sound_weight:g}, no rows at the first {times} times within {points} points of x = 0"
        tables.append(Table(f"Diffusion-sorption, {label}", COLUMNS, sounder.rows + yardsticks(sound, metrics), rows))
        figures[f"Diffusion-sorption, {label}: reference and predictions"] = _drawn(settings, sound, sounder.fields)
        figures[f"Diffusion-sorption, {label}: training"] = draw.curves(sounder.curves, ylabel="loss")
    write_predictions("ds", paper, trained["moe"], own, settings, out)
    return Findings(metrics, tables, figures)


def yardsticks(case: Case, metrics: dict[str, float]) -> list[list[Any]]:
    """What the loss can tell: that of the references, and of the same with profiles that reach a fifth less far into x."""
    x = np.asarray(case.pde.grid.axis(1))
    short = np.stack([[np.interp(1.25 * x, x, row) for row in field] for field in case.references])
    rows = []
    for name, label, fields in (
        ("reference", "reference", case.references), ("short_reference", "reference, a fifth too short", short)
    ):  # fmt: skip
        errors = errors_of(fields, case.references)
        loss = np.mean([float(case.pde.loss(jnp.asarray(f), u)) for f, u in zip(fields, case.test, strict=True)])
        metrics[f"{case.name}/{name}/loss"], metrics[f"{case.name}/{name}/error"] = float(loss), float(errors.mean())
        rows.append([label, None, 100 * errors.mean(), 100 * errors.max(), float(loss), None])
    return rows


def _drawn(settings: Settings, case: Case, fields: dict[str, np.ndarray]) -> Any:
    """The first and the last test condition: reference, predictions, errors."""
    shown = {
        f"u0 = {float(case.test[at]):.2f}": {
            "reference": case.references[at].T,
            **{NAMES[name]: fields[name][at].T for name in ("soft", "hc", "moe") if name in fields},
        }
        for at in (0, len(case.test) - 1)
    }
    extent = (0.0, settings.ds_t_end, 0.0, 1.0)
    return draw.fields(shown, reference="reference", extent=extent, axes=("t, s", "x"), label="u")


def _sorption_references(settings: Settings, test: Any, points: np.ndarray, out: Run) -> np.ndarray:
    """Fields (test, nt, nx) of the finite-volume simulator at the points of the grid."""
    simulator = DiffusionSorption(dt=settings.ds_t_end / (settings.ds_nt - 1), diffusion=settings.ds_diffusion)

    @jax.jit
    def simulate(initial):
        states = rollout(simulator, simulator.initial(initial), steps=settings.ds_nt - 1).observations
        later = jax.vmap(lambda u: simulator.profile(u, points))(states.u)
        return jnp.concatenate([jnp.broadcast_to(initial, (1, len(points))), later])

    out.progress("ds: references")
    return out.once("ds references", lambda: {"fields": np.stack([simulate(u0) for u0 in test])})["fields"]
