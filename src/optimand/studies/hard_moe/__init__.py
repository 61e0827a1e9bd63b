"""Physics-informed hard constraints, one for the whole domain or one for each of several experts, beside a soft penalty.

Chalapathi, Du and Krishnapriyan (ICLR 2024): a network emits basis fields, and a differentiable nonlinear least-squares
solve combines them so that the equation holds (PI-HC); with experts there is one solve for each box of the domain
(PI-HC-MoE); PI-SC has the same network and loss, and no solve. Three parts, each of which can be run alone:

- `ds`: 1-D diffusion-sorption, trained on initial conditions only, tested on eight others. Once with the paper's rows, of
  which two things are wrong at this scale. In the corner where initial and boundary condition contradict each other they
  have a residual that no field can avoid, eight times that of the exact solution everywhere else, and a constraint that
  minimises the sum bends the whole field to lower it. And time is in seconds, of which there are 500: the rest of the
  equation weighs so little beside the conditions that a field 16 % off has the loss of the exact one. So once more with
  "sound rows": none in that corner, the others weighted; there such a field has three times the residual of the exact one.
- `ns`: 2-D Navier-Stokes, likewise, with "persistence" (the field stays as it was) as a further rival.
- `scaling`: the time of the constraint alone, on a frozen random basis, against points and experts.

Every variant of a part starts from the same network and takes the same steps with the same batches. PI-HC is run twice:
with as many points in all as the experts together have ("equal total": the rival in the claims), and with as many as one
expert has ("equal per solve"). All train with two schedules of the learning rate: the paper's, which is for twenty times
the steps, and a short one; "tuned" takes, for each variant, that with the lower training loss. References come from
`optimand.physics`; no variant sees one while it is trained.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError
from optimand.datasets.fields import SUFFIXES

from ..base import Claim, Findings, Run, Table

SLUG = "hard-moe"
TITLE = "Hard physical constraints with a mixture of experts"
REFERENCE = "chalapathi2024scaling"

Part = Literal["ds", "ns", "scaling"]
Variant = Literal["soft", "hc", "hc_per_solve", "moe"]
Schedule = Literal["paper", "short"]
Stencil = Literal["paper", "compact"]


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
    max_steps: int = _setting(30, "most steps of a local solve", least=1)
    ridge: float = _setting(1e-4, "row ridge * w of the constraint", least=0)
    schedules: tuple[Schedule, ...] = _setting(("paper", "short"), "of the learning rate; each variant trains with each")
    learning_rate: float = _setting(1e-3, "of Adam, the paper's", least=0)
    halve_every: int = _setting(800, "steps after which the paper's learning rate is halved", least=1)
    short_rate: float = _setting(4e-3, "learning rate of the short schedule, halved after each fifth of the steps, as in the paper", least=0)
    learning_rate_floor: float = _setting(1e-4, "smallest learning rate", least=0)
    weight_gain: float = _setting(
        6**0.5, "of initial pointwise weights: root 6 keeps the variance through gelu", least=0
    )
    clip: float = _setting(1.0, "largest norm of a gradient", least=0)
    sampler_seed: int = _setting(0, "of the points at inference")

    ds_steps: int = _setting(300, "training steps, diffusion-sorption", least=1)
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
    ds_pde_weight: float = _setting(1.0, "of the residual rows, the paper's", least=0)
    ds_diffusion: float = _setting(5e-4, "D", least=0)
    ds_t_end: float = _setting(500.0, "last time, s", least=0)
    ds_sound: tuple[Stencil, ...] = _setting(("paper", "compact"), "stencils to train with on sound rows, too")
    ds_corner: tuple[int, ...] = _setting((3, 8), "times and points of the corner that sound rows leave out")
    ds_sound_weight: float = _setting(20.0, "of the residual rows, sound rows", least=0)
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

    def __post_init__(self):
        if self.predictions is not None and self.predictions.suffix not in SUFFIXES:
            raise ArgumentError("predictions", f"must end in {', '.join(SUFFIXES)}, not {str(self.predictions)!r}.")
        if self.initial_conditions is not None:
            if self.predictions is None:
                raise ArgumentError("predictions", "must name the file for predictions from `initial_conditions`.")
            if len({"ds", "ns"} & set(self.parts)) != 1:
                text = f"must be the one equation that `initial_conditions` are for, ds or ns, not {', '.join(self.parts)}."
                raise ArgumentError("parts", text)

    def steps(self, part: str) -> int:
        """Training steps of a part in this profile."""
        steps = getattr(self, f"{part}_steps")
        return max(1, steps // 2) if self.profile == "fast" else steps


QUICK = {
    "variants": ("moe",), "schedules": ("paper",),
    "ds_steps": 3, "ds_nt": 8, "ds_nx": 16, "ds_width": 4, "ds_layers": 1, "ds_modes": 4, "ds_basis": 4,
    "ds_batch": 2, "ds_inputs": 4, "ds_test": 2, "ds_sound": (),
    "ns_steps": 2, "ns_nt": 4, "ns_nx": 8, "ns_t_end": 0.5, "ns_width": 4, "ns_layers": 1, "ns_modes": (2, 4, 4),
    "ns_soft_modes": (2, 4, 4), "ns_basis": 4, "ns_batch": 2, "ns_inputs": 2, "ns_test": 2, "ns_resolution": 16,
    "scaling_points": (64,), "scaling_experts": (1, 4), "scaling_basis": 4, "scaling_repeats": 2,
    "scaling_optimistix": False, "scaling_devices": 1,
}  # fmt: skip


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed of every part that was asked for."""
    import jax

    from . import diffusion_sorption, navier_stokes, scaling

    studies = {"ds": diffusion_sorption, "ns": navier_stokes, "scaling": scaling}
    with jax.enable_x64(True):
        found = [
            study.run(settings, jax.random.fold_in(key, number), out)
            for number, (name, study) in enumerate(studies.items())
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



def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """Section by section what the paper says, at this scale: means over seeds, bars fixed beforehand."""
    del settings

    def mean(name):
        return float(np.mean([seed[name] for seed in seeds]))

    def deviation(name):
        return float(np.std([seed[name] for seed in seeds]))

    def have(*names):
        return all(name in seed for seed in seeds for name in names)

    note = f"mean over {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, equal steps"
    said = []
    for case, label in (("ds", "DS"), ("ds/tuned", "DS, tuned"), ("ds_sound/tuned", "DS, sound rows, tuned"),
                        ("ds_sound_compact/tuned", "DS, sound rows, compact stencil, tuned")):  # fmt: skip
        if not have(f"{case}/soft/error", f"{case}/hc/error"):
            continue
        hc, soft, moe = (mean(f"{case}/{name}/error") for name in ("hc", "soft", "moe"))
        worst = mean(f"{case}/moe/worst") / mean(f"{case}/hc/worst")
        said += [
            Claim.at_most(f"{label}: error of MoE / PI-HC (equal total points)", moe / hc, 0.90, note=note),
            Claim.at_most(f"{label}: error of MoE / PI-SC", moe / soft, 0.65, note=note),
            Claim.at_most(f"{label}: worst error of MoE / PI-HC", worst, 1.0, note=note),
        ]
        if len(seeds) > 1:
            spread = deviation(f"{case}/moe/error") / (deviation(f"{case}/hc/error") or float("nan"))
            said.append(Claim.at_most(f"{label}: deviation over seeds of MoE / PI-HC", spread, 1.0, note=note))
    if have("ds/local_excess"):
        worst = max(seed["ds/local_excess"] for seed in seeds)
        said.append(
            Claim.at_most("DS: squared residual, (experts - one solve) / start", worst, 1e-6, note="same basis")
        )
    for case, label in (("ns", "NS"), ("ns/tuned", "NS, tuned")):
        if not have(f"{case}/soft/error", f"{case}/hc/error"):
            continue
        hc, soft, moe = (mean(f"{case}/{name}/error") for name in ("hc", "soft", "moe"))
        said += [
            Claim.at_most(f"{label}: error of MoE / PI-HC (equal total points)", moe / hc, 1.03, note=note),
            Claim.at_most(f"{label}: error of MoE / PI-SC", moe / soft, 0.75, note=note),
            Claim.at_most(f"{label}: error of MoE / persistence", moe / mean("ns/persistence/error"), 0.45, note=note),
        ]
    if have("ns/hc/solve_seconds"):
        solve = mean("ns/moe/solve_seconds") / mean("ns/hc/solve_seconds")
        said.append(Claim.at_most("NS: solve time of MoE (slowest expert) / PI-HC", solve, 0.5, note="at inference"))
    if have("ns/local_excess"):
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
