"""Newton's method with a sparse Hessian for entropic transport, beside Sinkhorn's, its acceleration by Anderson's, and Newton's with the whole Hessian.

Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao and Ying (ICLR 2024). Cases:

- `assignment`: random costs between 0 and 1, equal weights, for several eta = 1 / epsilon.
- `digits, squared` and `digits, absolute`: two images, enlarged three times, with the squared distance of pixels or the sum of absolute differences, divided by its maximum.
- `points`: two Gaussian clouds in the plane, squared distance.

All are in double precision. Sums are products with the plan at potentials nearby, in sweeps as in Newton steps; those of Anderson's map are in logarithms. A step is a sweep or a Newton step; the error is |P 1 - a| + |P' 1 - b|, sums of absolute
values. Seconds are those of compiled steps; measuring Anderson's error, which its steps do not need, is not counted. What did not get to an error within its limits has no
number there; where it enters a ratio, all it spent counts, which is less than it needs.
"""

import dataclasses
import time
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError, MissingExtra

from .base import Claim, Findings, Run, Table

SLUG = "sinkhorn-newton"
TITLE = "Sinkhorn-Newton-Sparse"
REFERENCE = "tang2024accelerating"

CaseName = Literal["assignment", "digits, squared", "digits, absolute", "points"]
ERRORS = (1e-6, 1e-8, 1e-9, 1e-12)
METHODS = ("Sinkhorn", "Anderson", "SinkhornNewton", "SinkhornNewtonSparse")


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    cases: tuple[CaseName, ...] = _setting(("assignment", "digits, squared", "digits, absolute", "points"), "cases to run")
    n: int = _setting(500, "points of the assignment", least=2)
    etas: tuple[float, ...] = _setting((100.0, 400.0, 1200.0), "of the assignment", least=1e-3)
    eta: float = _setting(1200.0, "of the other cases", least=1e-3)
    pair: tuple[int, ...] = _setting((0, 1), "two images of the digits", least=0, most=1796)
    enlarged: int = _setting(3, "pixels for each pixel of an image, along an axis", least=1)
    points: int = _setting(400, "points of each cloud", least=2)
    warmup: int = _setting(20, "sweeps before Newton steps", least=0)
    warmup_absolute: int = _setting(700, "the same for absolute differences", least=0)
    density: float = _setting(15.0, "entries of the plan to keep, for each row", least=1e-3)
    density_absolute: float = _setting(30.0, "the same for absolute differences", least=1e-3)
    tolerance: float = _setting(1e-12, "error at which a solve ends", least=1e-15)
    newton_steps: int = _setting(200, "Newton steps at most", least=1)
    sweeps: int = _setting(5000, "sweeps of Sinkhorn's method at most", least=1)
    seconds: float = _setting(60.0, "of Sinkhorn's method at most", least=0.01)
    anderson_sweeps: int = _setting(1500, "sweeps of the accelerated method at most", least=1)
    memory: int = _setting(5, "of the acceleration", least=1)
    mark: int = _setting(1500, "sweeps after which Sinkhorn's error is looked at", least=1)

    def __post_init__(self):
        if not self.cases:
            raise ArgumentError("cases", "must not be empty.")
        if len(self.pair) != 2:
            raise ArgumentError("pair", f"must be two numbers, not {len(self.pair)}.")


QUICK = {
    "n": 40, "etas": (50.0, 200.0), "cases": ("assignment", "digits, squared", "points"), "eta": 200.0, "enlarged": 1, "points": 30, "sweeps": 200, "anderson_sweeps": 60,
    "mark": 100, "seconds": 5.0, "newton_steps": 60,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Path:
    """Errors after each step, and the seconds until then; the potentials at the end."""

    errors: np.ndarray
    seconds: np.ndarray
    newton_steps: int
    potentials: Any

    def steps_to(self, error: float) -> int | None:
        there = np.flatnonzero(self.errors <= error)
        return int(there[0]) + 1 if there.size else None

    def seconds_to(self, error: float) -> float | None:
        steps = self.steps_to(error)
        return None if steps is None else float(self.seconds[steps - 1])


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed, in double precision."""
    import jax

    from optimand.report import figures

    metrics: dict[str, float] = {}
    rows: list[list[Any]] = []
    drawn: dict[str, Any] = {}
    with jax.enable_x64(True):
        for name, problem, absolute in _cases(settings, key):
            paths = {method: _path(settings, problem, method, absolute) for method in METHODS}
            for method, path in paths.items():
                metrics |= _of_path(settings, f"{name}: {method}", path)
                reached = [None if steps is None else f"{steps}, {path.seconds_to(error):.3g} s" for error in ERRORS for steps in (path.steps_to(error),)]
                rows.append([name, method, *reached, path.newton_steps or None, float(np.min(path.errors))])
            sparse, sinkhorn = paths["SinkhornNewtonSparse"], paths["Sinkhorn"]
            plan = problem.plan(sparse.potentials)
            if np.min(sinkhorn.errors) <= settings.tolerance and np.min(sparse.errors) <= settings.tolerance:
                metrics[f"{name}: plans, largest difference"] = float(np.max(np.abs(plan - problem.plan(sinkhorn.potentials))))
            metrics[f"{name}: part of the plan above a millionth of its largest entry"] = float(np.mean(plan > 1e-6 * plan.max()))
            below, above = _linear_program(problem, sparse.potentials)
            metrics[f"{name}: cost above that of the linear program, relative"] = float(problem.transport_cost(sparse.potentials) / below - 1)
            metrics[f"{name}: gap of the bounds of the linear program, relative"] = float(above / below - 1)
            lines = {method: (path.seconds, path.errors) for method, path in paths.items()}
            drawn[f"{name}: error against time"] = figures.curves(lines, xlabel="seconds", ylabel="error of the marginals", log="xy", title=f"{name[0].upper()}{name[1:]}")
            out.progress(name)
    columns = ["case", "method", *[f"to {error:g}" for error in ERRORS], "Newton steps", "least error"]
    note = f"Steps, and seconds of compiled steps; at most {settings.sweeps} sweeps or {settings.seconds:g} s of Sinkhorn's method."
    return Findings(metrics, [Table("Steps and seconds to an error of the marginals", columns, rows, note)], drawn)


def _of_path(settings: Settings, title: str, path: Path) -> dict[str, float]:
    found = {
        f"{title}, steps": len(path.errors),
        f"{title}, Newton steps": path.newton_steps,
        f"{title}, seconds": float(path.seconds[-1]),
        f"{title}, least error": float(np.min(path.errors)),
        f"{title}, error after {settings.mark} steps": float(path.errors[min(settings.mark, len(path.errors)) - 1]),
    }
    for error in ERRORS:
        steps, seconds = path.steps_to(error), path.seconds_to(error)
        if steps is not None and seconds is not None:
            found |= {f"{title}, steps to {error:g}": steps, f"{title}, seconds to {error:g}": seconds}
    return {name: float(value) for name, value in found.items()}


def _cases(settings: Settings, key: Any) -> list[tuple[str, Any, bool]]:
    """(name, problem, whether the cost is of absolute differences)."""
    import jax
    import jax.numpy as jnp

    from optimand.transport import Coupling

    keys = jax.random.split(key, 2)
    found = []
    if "assignment" in settings.cases:
        cost = jax.random.uniform(keys[0], (settings.n, settings.n))
        found += [(f"assignment, eta {eta:g}", Coupling(cost, epsilon=1 / eta), False) for eta in settings.etas]
    for name in ("digits, squared", "digits, absolute"):
        if name in settings.cases:
            a, b, cost = _digits(settings, squared=name.endswith("squared"))
            found.append((name, Coupling(jnp.asarray(cost), jnp.asarray(a), jnp.asarray(b), epsilon=1 / settings.eta), name.endswith("absolute")))
    if "points" in settings.cases:
        x, y = jax.random.normal(keys[1], (2, settings.points, 2)) + jnp.array([0.0, 1.0])[:, None, None]
        cost = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
        found.append(("points", Coupling(cost / jnp.max(cost), epsilon=1 / settings.eta), False))
    return found


def _digits(settings: Settings, *, squared: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights of two images, with a hundredth of their maximum added, and the cost between pixels of the unit square."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None
    images: Any = load_digits(return_X_y=True)[0]
    weights = []
    for number in settings.pair:
        image = np.kron(images[number].reshape(8, 8), np.ones((settings.enlarged, settings.enlarged))).ravel()
        image = image + 0.01 * image.max()
        weights.append(image / image.sum())
    side = 8 * settings.enlarged
    places = np.stack(np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    apart = places[:, None] - places[None]
    cost = np.sum(apart**2 if squared else np.abs(apart), axis=-1)
    return weights[0], weights[1], cost / cost.max()


def _path(settings: Settings, problem: Any, name: str, absolute: bool) -> Path:
    from optimand.transport import Sinkhorn, SinkhornNewton, SinkhornNewtonSparse

    if name == "Anderson":
        return _anderson(settings, problem)
    warmup = settings.warmup_absolute if absolute else settings.warmup
    most, method = warmup + settings.newton_steps, Sinkhorn(settings.tolerance)
    if name == "Sinkhorn":
        most = settings.sweeps
    elif name == "SinkhornNewton":
        method = SinkhornNewton(settings.tolerance, warmup, "dense")
    else:
        method = SinkhornNewtonSparse(settings.tolerance, warmup, settings.density_absolute if absolute else settings.density)
    return _walk(method, problem, None, most, settings.seconds if name == "Sinkhorn" else np.inf, lambda state: state.error)


def _anderson(settings: Settings, problem: Any) -> Path:
    """Anderson's acceleration of the map from one potential to itself that a sweep is."""
    import jax

    from optimand import FixedPoint
    from optimand.smooth import Anderson
    from optimand.transport import Potentials

    f_of = lambda g: -problem.epsilon * problem.soft_rows(g)
    swept = FixedPoint(lambda g, problem: -problem.epsilon * problem.soft_columns(-problem.epsilon * problem.soft_rows(g)), problem)
    error = jax.jit(lambda g: problem.marginal_error(Potentials(f_of(g), g)))
    guess = problem.b * 0
    path = _walk(Anderson(settings.memory, tolerance=0.0), swept, guess, settings.anderson_sweeps, np.inf, lambda state: error(state.value), settings.tolerance)
    return dataclasses.replace(path, potentials=Potentials(f_of(path.potentials), path.potentials))


def _walk(method: Any, problem: Any, guess: Any, most: int, seconds: float, error_of: Any, tolerance: float | None = None) -> Path:
    """The steps of a method, one by one, compiled; its own end, or that of the error."""
    import equinox as eqx
    import jax

    from optimand.transport import Potentials

    guess = Potentials(problem.a * 0, problem.b * 0) if guess is None else guess
    state = eqx.filter_jit(lambda guess: method.init(problem, guess, key=None))(guess)

    @eqx.filter_jit
    def step(state):
        state = method.step(problem, state, key=None)
        return state, method.done(problem, state)

    jax.block_until_ready(step(state))  # compiles
    errors, times, spent = [], [], 0.0
    while len(errors) < most and spent < seconds:
        begun = time.perf_counter()
        state, code = jax.block_until_ready(step(state))
        spent += time.perf_counter() - begun
        errors.append(float(error_of(state)))
        times.append(spent)
        if int(code) != 0 or (tolerance is not None and errors[-1] <= tolerance):
            break
    return Path(np.array(errors), np.array(times), int(getattr(state, "newton_steps", 0)), method.answer(problem, state))


def _linear_program(problem: Any, potentials: Any) -> tuple[float, float]:
    """Bounds of the cost without entropy: the solution of the assignment, where it is one, else a bracket."""
    from scipy.optimize import linear_sum_assignment

    a, b = np.asarray(problem.a), np.asarray(problem.b)
    if a.size == b.size and np.ptp(a) == 0 and np.ptp(b) == 0:
        cost = np.asarray(problem.cost.matrix())
        best = float(cost[linear_sum_assignment(cost)].sum() * a[0])
        return best, best
    below, above = problem.bracket(potentials)
    return float(below), float(above)


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars. Each seed has to keep them, so the worst counts."""
    said: list[Claim] = []
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])

    def ratio(case: str, what: str, error: float) -> float:
        """The largest over seeds of SinkhornNewtonSparse's number over Sinkhorn's, or over all that Sinkhorn spent if it did not get there."""
        sinkhorn = every(f"{case}: Sinkhorn, {what} to {error:g}")
        return float(np.max(every(f"{case}: SinkhornNewtonSparse, {what} to {error:g}") / np.where(np.isnan(sinkhorn), every(f"{case}: Sinkhorn, {what}"), sinkhorn)))

    strong, weak = f"assignment, eta {max(settings.etas):g}", f"assignment, eta {min(settings.etas):g}"
    after = f"error after {settings.mark} steps"
    if "assignment" in settings.cases:
        note = f"{settings.n} points, {settings.warmup} sweeps, {settings.density:g} entries a row"
        steps = float(np.max(every(f"{strong}: SinkhornNewtonSparse, steps to 1e-12"))) - settings.warmup
        said.append(Claim.at_most(f"{strong}: Newton steps to 1e-12", steps, 30.0, "9", note))
        said.append(Claim.at_least(f"{strong}: error of Sinkhorn's method after {settings.mark} sweeps", float(np.min(every(f"{strong}: Sinkhorn, {after}"))), 1e-9, note=note))
        said.append(Claim.at_least(f"{strong}: seconds to 1e-6, Sinkhorn / SinkhornNewtonSparse", 1 / ratio(strong, "seconds", 1e-6), 10.0, "686, to the end", note))
        said.append(Claim.at_most(f"{weak}: seconds to 1e-12, SinkhornNewtonSparse / Sinkhorn", ratio(weak, "seconds", 1e-12), 2.0, note=note))
    if "digits, squared" in settings.cases:
        said.append(Claim.at_most("digits, squared: steps to 1e-8, SinkhornNewtonSparse / Sinkhorn", ratio("digits, squared", "steps", 1e-8), 0.05, "53 / 2041, to the end"))
        said.append(Claim.at_most("digits, squared: seconds to 1e-8, SinkhornNewtonSparse / Sinkhorn", ratio("digits, squared", "seconds", 1e-8), 0.1, "0.12, to the end"))
    if "digits, absolute" in settings.cases:
        steps = float(np.max(every("digits, absolute: SinkhornNewtonSparse, steps to 1e-09")))
        said.append(Claim.at_most("digits, absolute: steps to 1e-9", steps, 900.0, "777, to the end"))
        said.append(Claim.at_least(f"digits, absolute: error of Sinkhorn's method after {settings.mark} sweeps", float(np.min(every(f"digits, absolute: Sinkhorn, {after}"))), 1e-3))
    apart = [value for seed in seeds for name, value in seed.items() if name.endswith("plans, largest difference")]
    if apart:
        said.append(Claim.at_most("plans beside Sinkhorn's, where both converged: largest difference", float(np.max(apart)), 1e-9))
    return said
