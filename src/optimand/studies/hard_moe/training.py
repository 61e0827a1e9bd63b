"""The variants of the comparison, their training, and their errors: the same for both equations."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optimand as om
from optimand.core.errors import ArgumentError
from optimand.datasets import FieldData, read_fields, write_fields
from optimand.informed import ConstrainedBasis, ExpertGrid, NLLSConstraint, SoftField
from optimand.nn import Pointwise
from optimand.operators import FNO

from ..base import Run, Table
from . import Settings
from .measuring import solve_seconds


@dataclasses.dataclass
class Case:
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


def network(settings: Settings, *sizes: Any, **options: Any) -> Any:
    """A Fourier neural operator in single precision whose initial pointwise weights are scaled.

    As initialised, uniform within one over the root of the number of channels, each layer divides what varies by two or
    more: after five a basis is constant to 0.1 %, and combining it is a badly conditioned problem.
    """

    def scale(part):
        if not isinstance(part, Pointwise):
            return part
        return eqx.tree_at(lambda part: part.weight, part, settings.weight_gain * part.weight)

    return jax.tree.map(
        scale, FNO(*sizes, dtype=jnp.float32, **options), is_leaf=lambda part: isinstance(part, Pointwise)
    )


def points_of(case: Case, experts: Any) -> int:
    """Points of each expert: the share of the smallest box."""
    box = np.asarray(experts.split(case.pde.mask(), len(case.pde.grid.shape))).sum(axis=1).min()
    return max(1, int(case.share * box))


def variants(case: Case, settings: Settings) -> dict[str, Any]:
    """PI-SC, PI-HC with the points of all experts and with those of one, and PI-HC-MoE, from one network."""
    experts = ExpertGrid(case.experts)
    points = points_of(case, experts)

    def constrained(router, points):
        return ConstrainedBasis(
            case.net(case.basis, True, False), case.pde, experts=router, seed=settings.sampler_seed,
            constraint=constraint_of(settings, points),
        )  # fmt: skip

    single = ExpertGrid((1,) * len(case.experts))
    every = {
        "soft": lambda: SoftField(case.net(1, False, True), case.pde),
        "hc": lambda: constrained(single, points * experts.count),
        "hc_per_solve": lambda: constrained(single, points),
        "moe": lambda: constrained(experts, points),
    }
    return {name: make() for name, make in every.items() if name in settings.variants or name == "moe"}


def constraint_of(settings: Settings, points: int | None, **changes: Any) -> Any:
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


def schedule_of(name: str, steps: int, settings: Settings) -> Any:
    """The learning rate by step."""
    if name == "paper":
        first, period = settings.learning_rate, settings.halve_every
    else:
        first, period = settings.short_rate, max(1, steps // 5)
    return optax.exponential_decay(first, period, 0.5, staircase=True, end_value=settings.learning_rate_floor)


def train(case: Case, model: Any, schedule: str, label: str, settings: Settings, key: Any, out: Run) -> Any:
    """The solution of training one variant."""
    problem = om.informed.ResidualProblem(case.pde, case.inputs, model, batch_size=case.batch)
    rate = schedule_of(schedule, case.steps, settings)
    method = om.smooth.Adam(rate, clip=settings.clip, skip_nonfinite=True)
    return om.solve(
        problem, method, key=key, budget=om.Budget(steps=case.steps),
        callbacks=out.callbacks(label), resume=out.resume(label),
    )  # fmt: skip


@eqx.filter_jit
def _prediction(model: Any, data: Any) -> tuple[Any, Any]:
    """The field of one sample, and how far experts differ at their borders; compiled once for models of one make."""
    if not isinstance(model, ConstrainedBasis):
        return model(data), None
    info = model.info(data)
    return info.field, info.jump


def predict(model: Any, inputs: Any) -> np.ndarray:
    """The fields of all samples, one after the other."""
    return np.stack([np.asarray(_prediction(model, data)[0]) for data in inputs])


def jump_of(model: Any, inputs: Any) -> float:
    """How far the experts' fields differ at their borders, in the mean over samples."""
    return float(np.mean([float(_prediction(model, data)[1]) for data in inputs]))


def errors_of(fields: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Relative L2 error of each sample."""
    axes = tuple(range(1, fields.ndim))
    return np.sqrt(np.sum((fields - references) ** 2, axis=axes) / np.sum(references**2, axis=axes))


@dataclasses.dataclass
class Comparison:
    """What was found of all variants: `fields` and `trained` are those of the better schedule."""

    metrics: dict[str, float]
    rows: list[list[Any]]
    fields: dict[str, np.ndarray]
    curves: dict[str, Any]
    trained: dict[str, Any]


def compare(case: Case, variants: dict[str, Any], settings: Settings, key: Any, out: Run) -> Comparison:
    """Train every variant with every schedule, and test it. The better schedule is that with the lower training loss."""
    jax.clear_caches()  # a process may hold only so many compiled programs, and no case needs those of another
    found = Comparison({}, [], {}, {}, {})
    for name, model in variants.items():
        lowest = np.inf
        for schedule in settings.schedules[: 1 if name == "hc_per_solve" else None]:
            label = f"{case.name}, {NAMES[name]}, {schedule} schedule"
            out.progress(label)
            fresh = out.resume(label) is None
            solution = train(case, model, schedule, label, settings, key, out)
            fields = predict(solution.value, case.test)
            errors = errors_of(fields, case.references)
            loss = float(np.mean(solution.history["value"][-max(1, case.steps // 10) :]))
            figures = {
                "error": errors.mean(), "worst": errors.max(), "loss": loss, "skipped": solution.history["skipped"][-1],
            }  # fmt: skip
            seconds = None
            if fresh:  # the clock of a solve that went on does not know of the steps before
                seconds = (solution.stats["seconds"] - solution.stats["compile_seconds"]) / max(solution.steps, 1)
                figures["seconds_per_step"] = seconds
            place = f"{case.name}/{name}" if schedule == "paper" else f"{case.name}/{schedule}/{name}"
            found.metrics.update({f"{place}/{what}": value for what, value in figures.items()})
            found.rows.append([NAMES[name], schedule, 100 * errors.mean(), 100 * errors.max(), loss, seconds])
            found.curves[f"{NAMES[name]}, {schedule}"] = (solution.history["step"], solution.history["value"])
            if loss < lowest or name not in found.trained:
                lowest = loss
                found.trained[name], found.fields[name] = solution.value, fields
                found.metrics.update({f"{case.name}/tuned/{name}/{what}": value for what, value in figures.items()})
    return found


COLUMNS = ("variant", "schedule", "mean error, %", "worst error, %", "training loss", "seconds a step")


def sweep(case: Case, model: Any, settings: Settings) -> list[Table]:
    """Error and time of trained experts at other shares of points."""
    if not settings.points_sweep:
        return []
    rows = []
    for share in settings.points_sweep:
        points = points_of(dataclasses.replace(case, share=share), model.experts)
        swept = dataclasses.replace(model.constraint, points=points)
        changed = with_constraint(model, swept)
        errors = errors_of(predict(changed, case.test), case.references)
        rows.append([share, points, 100 * errors.mean(), 1e3 * solve_seconds(changed, case.test[:1])[0]])
    return [Table(f"{case.name}: points at inference", ("share", "points of an expert", "mean error, %", "ms"), rows)]


def with_constraint(model: Any, constraint: Any) -> Any:
    return ConstrainedBasis(
        model.net, model.pde, experts=model.experts, constraint=constraint, seed=model.seed, dtype=model.dtype
    )


def own_inputs(pde: Any, settings: Settings) -> Any:
    """A user's initial conditions to predict from, or None. What is wrong with them is said here, before training."""
    if settings.predictions is not None and not settings.predictions.parent.is_dir():
        raise ArgumentError("predictions", f"lies in a folder that is not there: {settings.predictions.parent}.")
    if settings.initial_conditions is None:
        return None
    dimensions = len(pde.grid.shape) - 1
    try:
        read = read_fields(settings.initial_conditions, dimensions)
    except ArgumentError as error:
        raise ArgumentError("initial_conditions", error.problem, error.hint) from error
    initial = next(iter(read.fields.values()))
    if initial.ndim > dimensions + 1:  # a file of trajectories: their first times are the initial conditions
        initial = initial[:, 0]
    for number, sample in enumerate(initial):
        try:
            pde.check(sample)
        except ArgumentError as error:
            where = f"({settings.initial_conditions}), sample {number}: `{error.argument}` {error.problem}"
            raise ArgumentError("initial_conditions", where, error.hint) from error
    return jnp.asarray(initial)


def write_predictions(part: str, case: Case, model: Any, own: Any, settings: Settings, out: Run) -> None:
    """Predict with the experts, from a user's initial conditions or else the test's, if a file is named for the fields."""
    if settings.predictions is None:
        return
    grid = case.pde.grid
    space = tuple(grid.axis(axis) for axis in range(1, len(grid.shape)))
    fields = predict(model, case.test if own is None else own)
    name = "concentration" if part == "ds" else "vorticity"
    several = len([name for name in settings.parts if name != "scaling"]) > 1
    path = settings.predictions
    path = path.with_stem(f"{path.stem}-{part}") if several else path
    out.progress(f"{part}: predictions in {write_fields(path, FieldData({name: fields}, space, grid.axis(0)))}")
