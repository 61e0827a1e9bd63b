"""Physics-informed hard constraints, one for the whole domain or one for each of several experts, beside a soft penalty.

Chalapathi, Du and Krishnapriyan (ICLR 2024): a network emits basis fields, and a differentiable nonlinear least-squares
solve combines them so that the equation holds (PI-HC); with experts there is one solve for each box of the domain
(PI-HC-MoE); PI-SC has the same network and loss, and no solve. Three parts, each of which can be run alone:

- `ds`: 1-D diffusion-sorption, trained on initial conditions only, tested on eight others; the paper's stencil decides,
  the compact one is reported beside it.
- `ns`: 2-D Navier-Stokes, likewise, with "persistence" (the field stays as it was) as a further rival.
- `scaling`: the time of the constraint alone, on a frozen random basis, against points and experts.

Every variant of a part starts from the same network and takes the same steps with the same batches. PI-HC is run twice:
with as many points in all as the experts together have ("equal total": the rival in the claims), and with as many as one
expert has ("equal per solve"). References come from `optimand.physics`; no variant sees one while it is trained.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .base import Claim, Findings, Run, Table

SLUG = "hard-moe"
TITLE = "Hard physical constraints with a mixture of experts"
REFERENCE = "chalapathi2024scaling"

Part = Literal["ds", "ns", "scaling"]
Variant = Literal["soft", "hc", "hc_per_solve", "moe"]


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: tuple[Part, ...] = _setting(("ds", "ns", "scaling"), "parts to run")
    variants: tuple[Variant, ...] = _setting(("soft", "hc", "hc_per_solve", "moe"), "what is trained; moe always is")
    profile: Literal["full", "fast"] = _setting("full", "fast halves the steps")
    solver: Literal["normal", "optimistix"] = _setting("normal", "of the constraint, for every variant")
    adjoint: Literal["exact", "gauss_newton"] = _setting("exact", "derivative of the constraint")
    rtol: float = _setting(1e-4, "tolerance of the constraint", least=0)
    atol: float = _setting(1e-4, "tolerance of the constraint", least=0)
    max_steps: int = _setting(12, "most steps of a local solve", least=1)
    ridge: float = _setting(1e-4, "row ridge * w of the constraint", least=0)
    learning_rate: float = _setting(1e-3, "of Adam", least=0)
    halve_every: int = _setting(800, "steps after which the learning rate is halved", least=1)
    learning_rate_floor: float = _setting(1e-4, "smallest learning rate", least=0)
    weight_gain: float = _setting(
        6**0.5, "of initial pointwise weights: root 6 keeps the variance through gelu", least=0
    )
    clip: float = _setting(1.0, "largest norm of a gradient", least=0)
    sampler_seed: int = _setting(0, "of the points at inference")

    ds_steps: int = _setting(200, "training steps, diffusion-sorption", least=1)
    ds_nt: int = _setting(64, "times", least=4)
    ds_nx: int = _setting(64, "points in space", least=4)
    ds_width: int = _setting(32, "channels of the network", least=1)
    ds_layers: int = _setting(4, "Fourier layers", least=1)
    ds_modes: int = _setting(8, "modes along each axis", least=1)
    ds_basis: int = _setting(16, "basis fields, N", least=1)
    ds_experts: tuple[int, ...] = _setting((1, 4), "boxes along t, x")
    ds_points: float = _setting(0.5, "share of each box that is sampled", least=0, most=1)
    ds_batch: int = _setting(4, "samples in a step", least=1)
    ds_inputs: int = _setting(64, "initial conditions to train on", least=1)
    ds_test: int = _setting(8, "initial conditions to test on", least=1)
    ds_skip_initial: int = _setting(0, "times at the start without residual rows", least=0)
    ds_pde_weight: float = _setting(1.0, "of the residual rows", least=0)
    ds_diffusion: float = _setting(5e-4, "D", least=0)
    ds_t_end: float = _setting(500.0, "last time, s", least=0)
    ds_compact: bool = _setting(True, "also with the compact stencil")
    ds_random_experts: bool = _setting(False, "ablation: also with points dealt to experts at random")
    ds_afterwards: bool = _setting(False, "ablation: also a soft basis that is constrained at inference only")

    ns_steps: int = _setting(120, "training steps, Navier-Stokes", least=1)
    ns_nt: int = _setting(16, "times", least=4)
    ns_nx: int = _setting(32, "points along each side", least=8)
    ns_t_end: float = _setting(3.0, "last time", least=0)
    ns_reynolds: float = _setting(1e3, "Reynolds number", least=0)
    ns_width: int = _setting(16, "channels of the network", least=1)
    ns_layers: int = _setting(4, "Fourier layers", least=1)
    ns_modes: tuple[int, ...] = _setting((6, 8, 8), "modes along t, x, y")
    ns_soft_modes: tuple[int, ...] = _setting((8, 12, 12), "modes of the soft rival, which the paper gives more")
    ns_basis: int = _setting(24, "basis fields, N", least=1)
    ns_experts: tuple[int, ...] = _setting((1, 2, 2), "boxes along t, x, y")
    ns_points: float = _setting(0.5, "share of each box that is sampled", least=0, most=1)
    ns_batch: int = _setting(2, "samples in a step", least=1)
    ns_inputs: int = _setting(24, "initial conditions to train on", least=1)
    ns_test: int = _setting(6, "initial conditions to test on", least=1)
    ns_derivatives: Literal["spectral", "central"] = _setting("spectral", "in space")
    ns_residual_power: int = _setting(1, "2 for the squared rows of the authors' code", least=1, most=2)
    ns_field_scale: float = _setting(
        7.0**3, "of the covariance of initial vorticities: that of the usual generator", least=0
    )
    ns_resolution: int = _setting(64, "points along each side of the reference", least=16)

    points_sweep: tuple[float, ...] = _setting((), "also: error of the trained experts at these shares of points")
    scaling_points: tuple[int, ...] = _setting((1024, 4096, 16384, 65536), "points in all; squares of whole numbers")
    scaling_experts: tuple[int, ...] = _setting((1, 4, 16), "numbers of experts; squares of powers of two")
    scaling_basis: int = _setting(16, "basis fields, N", least=1)
    scaling_repeats: int = _setting(5, "timings of each case; the median counts", least=1)
    scaling_optimistix: bool = _setting(True, "also time Optimistix under vmap (up to 16384 points)")
    scaling_devices: int = _setting(2, "host devices in the subprocess; 1 leaves it out", least=1)

    initial_conditions: Path | None = dataclasses.field(
        default=None, metadata={"help": "own initial conditions (.npz, .h5) to predict from"}
    )
    predictions: Path | None = dataclasses.field(
        default=None, metadata={"help": "where to write the experts' predictions (.npz, .h5)"}
    )

    def steps(self, part: str) -> int:
        """Training steps of a part in this profile."""
        steps = getattr(self, f"{part}_steps")
        return max(1, steps // 2) if self.profile == "fast" else steps


QUICK = {
    "variants": ("moe",),
    "ds_steps": 3, "ds_nt": 8, "ds_nx": 16, "ds_width": 4, "ds_layers": 1, "ds_modes": 4, "ds_basis": 4,
    "ds_batch": 2, "ds_inputs": 4, "ds_test": 2, "ds_compact": False,
    "ns_steps": 2, "ns_nt": 4, "ns_nx": 8, "ns_t_end": 0.5, "ns_width": 4, "ns_layers": 1, "ns_modes": (2, 4, 4),
    "ns_soft_modes": (2, 4, 4), "ns_basis": 4, "ns_batch": 2, "ns_inputs": 2, "ns_test": 2, "ns_resolution": 16,
    "scaling_points": (64,), "scaling_experts": (1, 4), "scaling_basis": 4, "scaling_repeats": 2,
    "scaling_optimistix": False, "scaling_devices": 1,
}  # fmt: skip


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed of every part that was asked for."""
    import jax

    with jax.enable_x64(True):
        found = [
            study(settings, jax.random.fold_in(key, number), out)
            for number, (name, study) in enumerate(
                (("ds", _diffusion_sorption), ("ns", _navier_stokes), ("scaling", _scaling))
            )
            if name in settings.parts
        ]
    metrics: dict[str, float] = {}
    tables: list[Table] = []
    figures: dict[str, Any] = {}
    for findings in found:
        metrics.update(findings.metrics)
        tables.extend(findings.tables)
        figures.update(findings.figures)
    return Findings(metrics, tables, figures)


# What both equations have in common: variants, training, and the comparison with references.


@dataclasses.dataclass
class _Case:
    """An equation with data to train and to test on, and networks: what its variants share."""

    name: str
    pde: Any
    inputs: Any
    test: Any
    references: np.ndarray
    net: Any  # (channels out, activated output, soft) -> network
    basis: int
    experts: tuple[int, ...]
    share: float
    batch: int
    steps: int


def _network(settings: Settings, *sizes: Any, **options: Any) -> Any:
    """A Fourier neural operator in single precision whose initial pointwise weights are scaled.

    As initialised, uniform within one over the root of the number of channels, each layer divides what varies by two or
    more: after five a basis is constant to 0.1 %, and combining it is a badly conditioned problem.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from optimand.nn import Pointwise
    from optimand.operators import FNO

    def scale(part):
        if not isinstance(part, Pointwise):
            return part
        return eqx.tree_at(lambda part: part.weight, part, settings.weight_gain * part.weight)

    return jax.tree.map(
        scale, FNO(*sizes, dtype=jnp.float32, **options), is_leaf=lambda part: isinstance(part, Pointwise)
    )


def _points(case: _Case, experts: Any) -> int:
    """Points of each expert: the share of the smallest box."""
    box = np.asarray(experts.split(case.pde.mask(), len(case.pde.grid.shape))).sum(axis=1).min()
    return max(1, int(case.share * box))


def _variants(case: _Case, settings: Settings) -> dict[str, Any]:
    """PI-SC, PI-HC with the points of all experts and with those of one, and PI-HC-MoE, from one network."""
    from optimand.informed import ConstrainedBasis, ExpertGrid, SoftField

    experts = ExpertGrid(case.experts)
    points = _points(case, experts)

    def constrained(router, points):
        return ConstrainedBasis(
            case.net(case.basis, True, False), case.pde, experts=router, seed=settings.sampler_seed,
            constraint=_constraint(settings, points),
        )  # fmt: skip

    single = ExpertGrid((1,) * len(case.experts))
    every = {
        "soft": lambda: SoftField(case.net(1, False, True), case.pde),
        "hc": lambda: constrained(single, points * experts.count),
        "hc_per_solve": lambda: constrained(single, points),
        "moe": lambda: constrained(experts, points),
    }
    return {name: make() for name, make in every.items() if name in settings.variants or name == "moe"}


def _constraint(settings: Settings, points: int | None, **changes: Any) -> Any:
    from optimand.informed import NLLSConstraint

    options = {
        "points": points, "rtol": settings.rtol, "atol": settings.atol, "max_steps": settings.max_steps,
        "ridge": settings.ridge, "solver": settings.solver, "adjoint": settings.adjoint,
    }  # fmt: skip
    return NLLSConstraint(**{**options, **changes})


NAMES = {
    "soft": "PI-SC",
    "hc": "PI-HC",
    "hc_per_solve": "PI-HC, points of one expert",
    "moe": "PI-HC-MoE",
    "random": "random experts",
    "afterwards": "constrained at inference only",
}


def _train(case: _Case, model: Any, label: str, settings: Settings, key: Any, out: Run) -> Any:
    """The solution of training one variant."""
    import optax

    import optimand as om

    problem = om.informed.ResidualProblem(case.pde, case.inputs, model, batch_size=case.batch)
    rate = optax.exponential_decay(
        settings.learning_rate, settings.halve_every, 0.5, staircase=True, end_value=settings.learning_rate_floor
    )
    method = om.smooth.Adam(rate, clip=settings.clip, skip_nonfinite=True)
    return om.solve(
        problem, method, key=key, budget=om.Budget(steps=case.steps),
        callbacks=out.callbacks(label), resume=out.resume(label),
    )  # fmt: skip


def _predict(model: Any, inputs: Any) -> np.ndarray:
    """The fields of all samples, one after the other."""
    import equinox as eqx

    predict = eqx.filter_jit(lambda model, data: model(data))
    return np.stack([np.asarray(predict(model, data)) for data in inputs])


def _errors(fields: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Relative L2 error of each sample."""
    axes = tuple(range(1, fields.ndim))
    return np.sqrt(np.sum((fields - references) ** 2, axis=axes) / np.sum(references**2, axis=axes))


def _compare(case: _Case, variants: dict[str, Any], settings: Settings, key: Any, out: Run):
    """Train and test every variant: metrics, rows of a table, fields, training curves, trained models."""
    metrics, rows, fields, curves, trained = {}, [], {}, {}, {}
    for name, model in variants.items():
        out.progress(f"{case.name}: {NAMES[name]}")
        solution = _train(case, model, f"{case.name}, {NAMES[name]}", settings, key, out)
        trained[name] = solution.value
        fields[name] = _predict(solution.value, case.test)
        errors = _errors(fields[name], case.references)
        curves[NAMES[name]] = (solution.history["step"], solution.history["value"])
        steps = np.diff(solution.history["step"], prepend=0)
        seconds = (solution.stats["seconds"] - solution.stats["compile_seconds"]) / max(int(steps.sum()), 1)
        metrics.update({
            f"{case.name}/{name}/error": errors.mean(), f"{case.name}/{name}/worst": errors.max(),
            f"{case.name}/{name}/skipped": solution.history["skipped"][-1],
            f"{case.name}/{name}/seconds_per_step": seconds,
        })  # fmt: skip
        rows.append(
            [NAMES[name], 100 * errors.mean(), 100 * errors.max(), float(solution.history["value"][-1]), seconds]
        )
    return metrics, rows, fields, curves, trained


def _seconds(run: Any, repeats: int) -> float:
    """Median wall time of a compiled call, without its compilation."""
    import jax

    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - clock)
    return float(np.median(times))


def _expert_seconds(problems: Any, constraint: Any, start: Any, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and iterations of each expert's solve, alone."""
    import equinox as eqx
    import jax

    solve = eqx.filter_jit(lambda problem, start: constraint(problem, start))
    seconds, iterations = [], []
    for k in range(problems.terms.shape[0]):
        one = dataclasses.replace(
            problems, terms=problems.terms[k], offsets=problems.offsets[k], points=problems.points[k]
        )
        one = jax.tree.map(lambda leaf: jax.device_put(leaf) if eqx.is_array(leaf) else leaf, one)
        seconds.append(_seconds(lambda one=one: solve(one, start), repeats))
        iterations.append(int(solve(one, start)[1].iterations))
    return np.array(seconds), np.array(iterations)


def _basis(model: Any, data: Any) -> Any:
    """The prepared basis fields of a model, in float64."""
    import equinox as eqx
    import jax.numpy as jnp

    @eqx.filter_jit
    def basis(model, data):
        out = model.net(model.pde.inputs(data).astype(model.dtype))
        return model.pde.prepare(jnp.moveaxis(out, 0, -1).astype(float), data)

    return basis(model, data)


def _solve_seconds(model: Any, inputs: Any, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the slowest expert's solve at inference, and iterations, in the mean over samples."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from optimand.informed import local_problems

    slowest, iterations = [], []
    make = eqx.filter_jit(
        lambda model, basis, data: local_problems(
            model.pde, model.experts, basis, data, points=model.constraint.points, key=jax.random.key(model.seed)
        )
    )
    for data in inputs:
        basis = _basis(model, data)
        start = jnp.full((basis.shape[-1],), model.pde.start)
        seconds, counts = _expert_seconds(make(model, basis, data), model.constraint, start, repeats)
        slowest.append(seconds.max())
        iterations.append(counts.mean())
    return float(np.mean(slowest)), float(np.mean(iterations))


def _local_against_global(model: Any, inputs: Any) -> float:
    """What the experts' squared residuals, summed, exceed that of one solve for all by, over that of the start.

    The same basis, and rows of the equation only. At most zero if each solve finds its minimum.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from optimand.informed import ExpertGrid, NLLSConstraint, local_problems, solve_experts

    constraint = NLLSConstraint(solver="normal", ridge=0.0, rtol=1e-10, atol=1e-12, max_steps=100, polish=2)

    @eqx.filter_jit
    def squared_residual(model, basis, data, experts):
        problems = local_problems(model.pde, experts, basis, data, use_rows=False)
        weights, info = solve_experts(problems, constraint, jnp.full((basis.shape[-1],), model.pde.start))
        del weights
        first = jax.vmap(
            lambda t, o, p: (
                2
                * dataclasses.replace(problems, terms=t, offsets=o, points=p).value(
                    jnp.full((basis.shape[-1],), model.pde.start)
                )
            )
        )(problems.terms, problems.offsets, problems.points)
        return jnp.sum(info.residual**2), jnp.sum(first)

    ratios = []
    for data in jax.tree.map(lambda leaf: leaf[:2], inputs):
        basis = _basis(model, data)
        single = ExpertGrid((1,) * len(model.pde.grid.shape))
        (whole, first), (parts, _) = (
            squared_residual(model, basis, data, experts) for experts in (single, model.experts)
        )
        ratios.append((float(parts) - float(whole)) / max(float(first), float(whole)))
    return max(ratios)


COLUMNS = ("variant", "mean error, %", "worst error, %", "last loss", "seconds a step")


def _sweep(case: _Case, model: Any, settings: Settings) -> list[Table]:
    """Error and time of trained experts at other shares of points."""
    if not settings.points_sweep:
        return []
    rows = []
    for share in settings.points_sweep:
        points = _points(dataclasses.replace(case, share=share), model.experts)
        swept = dataclasses.replace(model.constraint, points=points)
        changed = _with_constraint(model, swept)
        errors = _errors(_predict(changed, case.test), case.references)
        rows.append([share, points, 100 * errors.mean(), 1e3 * _solve_seconds(changed, case.test[:1])[0]])
    return [Table(f"{case.name}: points at inference", ("share", "points of an expert", "mean error, %", "ms"), rows)]


def _with_constraint(model: Any, constraint: Any) -> Any:
    from optimand.informed import ConstrainedBasis

    return ConstrainedBasis(
        model.net, model.pde, experts=model.experts, constraint=constraint, seed=model.seed, dtype=model.dtype
    )


# Diffusion-sorption.


def _diffusion_sorption(settings: Settings, key: Any, out: Run) -> Findings:
    import jax
    import jax.numpy as jnp

    from optimand.informed import ConstrainedBasis, DiffusionSorption1D, RandomExperts, SoftField
    from optimand.report import figures as draw

    net_key, data_key, train_key = jax.random.split(key, 3)

    def case(stencil):
        pde = DiffusionSorption1D(
            settings.ds_nx, settings.ds_nt, settings.ds_t_end, stencil=stencil, diffusion=settings.ds_diffusion,
            skip_initial=settings.ds_skip_initial, pde_weight=settings.ds_pde_weight,
        )  # fmt: skip

        def net(channels, activated, soft):
            del soft
            return _network(
                settings, 3, channels, settings.ds_width, (settings.ds_modes,) * 2, settings.ds_layers, activate_last_layer=True,
                activate_output=activated, key=net_key,
            )  # fmt: skip

        return _Case(
            "ds" if stencil == "paper" else "ds_compact", pde, pde.sample_inputs(data_key, settings.ds_inputs), test,
            references, net, settings.ds_basis, settings.ds_experts, settings.ds_points, settings.ds_batch,
            settings.steps("ds"),
        )  # fmt: skip

    test = jnp.linspace(0.01, 0.19, settings.ds_test)
    references = _sorption_references(settings, test, np.linspace(0, 1, settings.ds_nx), out)
    paper = case("paper")
    metrics, rows, fields, curves, trained = _compare(paper, _variants(paper, settings), settings, train_key, out)
    extra = {}
    if settings.ds_random_experts:
        model = trained["moe"]
        router = RandomExperts(model.experts.count)
        extra["random"] = ConstrainedBasis(
            paper.net(paper.basis, True, False), paper.pde, experts=router, seed=settings.sampler_seed,
            constraint=dataclasses.replace(model.constraint, points=_points(paper, router)),
        )  # fmt: skip
    if settings.ds_afterwards:
        extra["afterwards"] = SoftField(paper.net(paper.basis, True, True), paper.pde)
    more = _compare(paper, extra, settings, train_key, out)
    if settings.ds_afterwards:
        hard = ConstrainedBasis(
            more[4]["afterwards"].net, paper.pde, experts=trained["moe"].experts, seed=settings.sampler_seed,
            constraint=trained["moe"].constraint,
        )  # fmt: skip
        errors = _errors(_predict(hard, paper.test), paper.references)
        more[1].append(["the same, once constrained", 100 * errors.mean(), 100 * errors.max(), None, None])
        metrics["ds/afterwards/constrained_error"] = errors.mean()
    metrics.update(more[0])
    metrics["ds/local_excess"] = _local_against_global(trained["moe"], paper.test)
    note = f"{paper.steps} steps of batch {paper.batch}, {len(paper.test)} unseen initial conditions, paper's stencil"
    tables = [Table("Diffusion-sorption", COLUMNS, rows + more[1], note), *_sweep(paper, trained["moe"], settings)]
    if settings.ds_compact:
        compact = case("compact")
        variants = {name: model for name, model in _variants(compact, settings).items() if name != "hc_per_solve"}
        found = _compare(compact, variants, settings, train_key, out)
        metrics.update(found[0])
        tables.append(
            Table("Diffusion-sorption, compact stencil", COLUMNS, found[1], note.replace("paper's", "compact"))
        )
    shown = {
        f"u0 = {float(paper.test[at]):.2f}": {
            "reference": references[at].T,
            **{NAMES[name]: fields[name][at].T for name in ("soft", "hc", "moe") if name in fields},
        }
        for at in (0, len(paper.test) - 1)
    }
    extent = (0.0, settings.ds_t_end, 0.0, 1.0)
    figures = {
        "Diffusion-sorption: reference and predictions": draw.fields(
            shown, reference="reference", extent=extent, axes=("t, s", "x"), label="u"
        ),
        "Diffusion-sorption: training": draw.curves({**curves, **more[3]}, ylabel="loss"),
    }
    _own_data("ds", paper, trained["moe"], settings, out)
    return Findings(metrics, tables, figures)


def _sorption_references(settings: Settings, test: Any, points: np.ndarray, out: Run) -> np.ndarray:
    """Fields (test, nt, nx) of the finite-volume simulator at the points of the grid."""
    import jax
    import jax.numpy as jnp

    from optimand.physics import DiffusionSorption, rollout

    simulator = DiffusionSorption(dt=settings.ds_t_end / (settings.ds_nt - 1), diffusion=settings.ds_diffusion)

    @jax.jit
    def simulate(initial):
        states = rollout(simulator, simulator.initial(initial), steps=settings.ds_nt - 1).observations
        later = jax.vmap(lambda u: simulator.profile(u, points))(states.u)
        return jnp.concatenate([jnp.broadcast_to(initial, (1, len(points))), later])

    out.progress("ds: references")
    return out.once("ds references", lambda: {"fields": np.stack([simulate(u0) for u0 in test])})["fields"]


# Navier-Stokes.


def _navier_stokes(settings: Settings, key: Any, out: Run) -> Findings:
    import jax
    import jax.numpy as jnp

    from optimand.informed import NavierStokes2DVorticity
    from optimand.report import figures as draw

    net_key, data_key, train_key = jax.random.split(key, 3)
    pde = NavierStokes2DVorticity(
        settings.ns_nx, nt=settings.ns_nt, t_end=settings.ns_t_end, reynolds=settings.ns_reynolds,
        derivatives=settings.ns_derivatives, residual_power=settings.ns_residual_power,
    )  # fmt: skip
    data = _flows(settings, data_key, out)

    def net(channels, activated, soft):
        modes = settings.ns_soft_modes if soft else settings.ns_modes
        return _network(
            settings, 4, channels, settings.ns_width, modes, settings.ns_layers, activate_output=activated,
            key=net_key,
        )  # fmt: skip

    case = _Case(
        "ns", pde, jnp.asarray(data["train"]), jnp.asarray(data["test"]), data["references"], net, settings.ns_basis,
        settings.ns_experts, settings.ns_points, settings.ns_batch, settings.steps("ns"),
    )  # fmt: skip
    metrics, rows, fields, curves, trained = _compare(case, _variants(case, settings), settings, train_key, out)
    still = _errors(np.repeat(data["test"][:, None], settings.ns_nt, axis=1), case.references)
    metrics["ns/persistence/error"] = still.mean()
    rows.append(["persistence", 100 * still.mean(), 100 * still.max(), None, None])
    times = []
    for name in (name for name in trained if name != "soft"):
        seconds, iterations = _solve_seconds(trained[name], case.test)
        metrics[f"ns/{name}/solve_seconds"] = seconds
        times.append([NAMES[name], trained[name].constraint.points, 1e3 * seconds, iterations])
    metrics["ns/local_excess"] = _local_against_global(trained["moe"], case.test)
    jump = float(np.mean([float(trained["moe"].info(sample).jump) for sample in case.test]))
    metrics["ns/moe/jump"] = jump
    note = (
        f"{case.steps} steps of batch {case.batch}, {len(case.test)} unseen initial conditions; "
        f"the experts' fields differ by {100 * jump:.1f} % at their borders"
    )
    shown = {
        "t = T": {
            "reference": case.references[0, -1].T,
            **{NAMES[name]: fields[name][0, -1].T for name in ("soft", "hc", "moe") if name in fields},
        }
    }
    _own_data("ns", case, trained["moe"], settings, out)
    return Findings(
        metrics,
        [
            Table("Navier-Stokes", COLUMNS, rows, note),
            Table("Navier-Stokes: the constraint at inference", ("variant", "points of a solve", "ms, slowest expert", "iterations"), times),
            *_sweep(case, trained["moe"], settings),
        ],
        {
            "Navier-Stokes: vorticity at the last time": draw.fields(
                shown, reference="reference", extent=(0.0, 1.0, 0.0, 1.0), label="vorticity", signed=True
            ),
            "Navier-Stokes: training": draw.curves(curves, ylabel="loss"),
        },
    )  # fmt: skip


def _flows(settings: Settings, key: Any, out: Run) -> dict[str, np.ndarray]:
    """Initial vorticities to train and test on, and the simulator's fields (test, nt, nx, nx) from the latter."""
    import jax
    import jax.numpy as jnp

    from optimand.physics import NavierStokes2D, gaussian_field, rollout

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


# Scaling.


def frozen_problems(total: int, experts: int, basis: int, seed: int) -> tuple[Any, Any]:
    """Local problems of diffusion-sorption on a square grid with `total` points, from a random network; and a start."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from optimand.informed import DiffusionSorption1D, ExpertGrid, local_problems
    from optimand.operators import FNO

    side, parts = round(total**0.5), round(experts**0.5)
    pde = DiffusionSorption1D(side, side)
    net = FNO(
        3, basis, 16, (4, 4), 2, activate_last_layer=True, activate_output=True, dtype=jnp.float32,
        key=jax.random.key(seed),
    )  # fmt: skip
    data = jnp.asarray(0.1)

    @eqx.filter_jit
    def make(net):
        fields = jnp.moveaxis(net(pde.inputs(data).astype(jnp.float32)), 0, -1).astype(float)
        return local_problems(pde, ExpertGrid((parts, parts)), fields, data)

    return make(net), jnp.full(basis, pde.start)


def _scaling(settings: Settings, key: Any, out: Run) -> Findings:
    import equinox as eqx
    import jax

    from optimand.informed import solve_experts
    from optimand.report import figures as draw

    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    constraint = _constraint(settings, None, solver="normal")
    metrics, rows = {}, []
    lines: dict[str, tuple[list, list]] = {}
    for experts in settings.scaling_experts:
        for total in settings.scaling_points:
            if total // experts < settings.scaling_basis:
                continue
            out.progress(f"scaling: {total} points, {experts} experts")
            problems, start = frozen_problems(total, experts, settings.scaling_basis, seed)
            every = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start))
            wall = _seconds(lambda p=problems, s=start, f=every: f(p, s), settings.scaling_repeats)
            alone, iterations = _expert_seconds(problems, constraint, start, settings.scaling_repeats)
            bytes_ = problems.terms.shape[2] * settings.scaling_basis * 8
            foreign = None
            if settings.scaling_optimistix and total <= 16384:
                peer = _constraint(settings, None, solver="optimistix", max_steps=100)
                every = eqx.filter_jit(lambda problems, start, peer=peer: solve_experts(problems, peer, start))
                foreign = 1e3 * _seconds(lambda p=problems, s=start, f=every: f(p, s), settings.scaling_repeats)
            name = f"scaling/{experts}/{total}"
            metrics.update({
                f"{name}/wall": wall, f"{name}/critical": alone.max(), f"{name}/iterations": iterations.max(),
                f"{name}/jacobian_bytes": bytes_,
            })  # fmt: skip
            rows.append([total, experts, 1e3 * wall, 1e3 * alone.max(), int(iterations.max()), bytes_ / 2**20, foreign])
            sizes, costs = lines.setdefault(f"{experts} experts, slowest alone", ([], []))
            sizes.append(total)
            costs.append(alone.max())
    if settings.scaling_devices > 1:
        total, experts = max(settings.scaling_points), max(settings.scaling_experts)
        out.progress(f"scaling: {settings.scaling_devices} devices")
        found = out.once("devices", lambda: _on_devices(settings, total, experts, seed))
        metrics.update({f"scaling/devices/{name}": float(value) for name, value in found.items()})
    columns = (
        "points",
        "experts",
        "ms, all (vmap)",
        "ms, slowest alone",
        "iterations",
        "MiB, Jacobian of one",
        "ms, Optimistix",
    )
    table = Table("Scaling of the constraint on a frozen random basis", columns, rows, f"N = {settings.scaling_basis}")
    figure = draw.scaling(lines, xlabel="points in all", ylabel="seconds, critical path", slope=1.0)
    return Findings(metrics, [table], {"Scaling of the constraint": figure})


def _on_devices(settings: Settings, total: int, experts: int, seed: int) -> dict[str, float]:
    """Wall time on one and on several host devices, measured in a process that has them."""
    request = {
        "total": total, "experts": experts, "basis": settings.scaling_basis, "seed": seed,
        "devices": settings.scaling_devices, "repeats": 2 * settings.scaling_repeats,
    }  # fmt: skip
    source = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={settings.scaling_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
    }
    code = "import sys; from optimand.studies.hard_moe import time_devices; time_devices(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)], env=environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"timing on {settings.scaling_devices} devices failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_devices(request: str) -> None:
    """Print the wall times of the experts' solve on one and on several devices of this process, as JSON."""
    import equinox as eqx
    import jax

    from optimand.informed import solve_experts

    asked = json.loads(request)
    with jax.enable_x64(True):
        constraint = _constraint(Settings(), None, solver="normal")
        problems, start = frozen_problems(asked["total"], asked["experts"], asked["basis"], asked["seed"])
        mesh = jax.make_mesh((asked["devices"],), ("experts",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec
        place = lambda leaf, spec: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))
        spread = dataclasses.replace(
            jax.tree.map(lambda leaf: place(leaf, spec()) if eqx.is_array(leaf) else leaf, problems),
            terms=place(problems.terms, spec("experts")),
            offsets=place(problems.offsets, spec("experts")),
            points=place(problems.points, spec("experts")),
        )
        one = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start))
        many = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start, mesh))
        begin = place(start, spec())
        runs = {"one": lambda: one(problems, start), "many": lambda: many(spread, begin)}
        gap = float(abs(np.asarray(runs["one"]()[0]) - np.asarray(runs["many"]()[0])).max())
        times: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(asked["repeats"]):  # in turns, so that both see the same machine
            for name, call in runs.items():
                times[name].append(_seconds(call, 1))
    print(json.dumps({"one": float(np.median(times["one"])), "many": float(np.median(times["many"])), "gap": gap}))


# Own data.


def _own_data(part: str, case: _Case, model: Any, settings: Settings, out: Run) -> None:
    """Predict with the experts: from a user's initial conditions if there are some of this part, else from the test's."""
    if settings.predictions is None:
        return
    import jax.numpy as jnp

    from optimand.datasets import FieldData, read_fields, write_fields

    grid, initial = case.pde.grid, case.test
    space = tuple(grid.axis(axis) for axis in range(1, len(grid.shape)))
    if settings.initial_conditions is not None:
        data = read_fields(settings.initial_conditions, 1 if "ds" in settings.parts else 2)
        if len(data.grid) != len(space):
            return
        initial = jnp.asarray(next(iter(data.fields.values())))
        if initial.ndim > len(space) + 1:  # a file of trajectories: their first times are the initial conditions
            initial = initial[:, 0]
    for sample in initial:
        case.pde.check(sample)
    fields = _predict(model, initial)
    name = "concentration" if part == "ds" else "vorticity"
    several = len([name for name in settings.parts if name != "scaling"]) > 1
    path = settings.predictions
    path = path.with_stem(f"{path.stem}-{part}") if several else path
    out.progress(f"{part}: predictions in {write_fields(path, FieldData({name: fields}, space, grid.axis(0)))}")


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """Section by section what the paper says, at this scale: means over seeds, bars fixed beforehand."""
    del settings

    def mean(name):
        return float(np.mean([seed[name] for seed in seeds]))

    def deviation(name):
        return float(np.std([seed[name] for seed in seeds]))

    def have(*names):
        return all(name in seed for seed in seeds for name in names)

    note = f"mean over {len(seeds)} seeds, equal steps"
    said = []
    if have("ds/soft/error", "ds/hc/error"):
        hc, soft, moe = (mean(f"ds/{name}/error") for name in ("hc", "soft", "moe"))
        said += [
            Claim.at_most("DS: error of MoE / PI-HC (equal total points)", moe / hc, 0.90, note=note),
            Claim.at_most("DS: error of MoE / PI-SC", moe / soft, 0.65, note=note),
            Claim.at_most("DS: worst error of MoE / PI-HC", mean("ds/moe/worst") / mean("ds/hc/worst"), 1.0, note=note),
        ]
        if len(seeds) > 1:
            spread = deviation("ds/moe/error") / (deviation("ds/hc/error") or float("nan"))
            said.append(Claim.at_most("DS: deviation over seeds of MoE / PI-HC", spread, 1.0, note=note))
        worst = max(seed["ds/local_excess"] for seed in seeds)
        said.append(
            Claim.at_most("DS: squared residual, (experts - one solve) / start", worst, 1e-6, note="same basis")
        )
    if have("ns/soft/error", "ns/hc/error"):
        hc, soft, moe = (mean(f"ns/{name}/error") for name in ("hc", "soft", "moe"))
        solve = mean("ns/moe/solve_seconds") / mean("ns/hc/solve_seconds")
        said += [
            Claim.at_most("NS: error of MoE / PI-HC (equal total points)", moe / hc, 1.03, note=note),
            Claim.at_most("NS: error of MoE / PI-SC", moe / soft, 0.75, note=note),
            Claim.at_most("NS: error of MoE / persistence", moe / mean("ns/persistence/error"), 0.45, note=note),
            Claim.at_most("NS: solve time of MoE (slowest expert) / PI-HC", solve, 0.5, note="at inference"),
        ]
        worst = max(seed["ns/local_excess"] for seed in seeds)
        said.append(
            Claim.at_most("NS: squared residual, (experts - one solve) / start", worst, 1e-6, note="same basis")
        )
    if have("scaling/1/65536/critical", "scaling/16/65536/critical", "scaling/1/4096/critical"):
        sixteen = mean("scaling/16/65536/critical")
        said += [
            Claim.at_most("Scaling: 64k points, critical path of 16 experts / 1", sixteen / mean("scaling/1/65536/critical"), 0.2),
            Claim.at_most("Scaling: critical path, 64k on 16 / 4k on 1", sixteen / mean("scaling/1/4096/critical"), 1.5),
        ]  # fmt: skip
    if have("scaling/devices/one"):
        ratio = mean("scaling/devices/many") / mean("scaling/devices/one")
        said.append(Claim.at_most("Scaling: wall time on 2 host devices / 1, 16 experts", ratio, 0.85))
    return said
