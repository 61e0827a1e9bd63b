"""Sorting Krylov Recycling beside GMRES, deflated restarting, recycling in the given order, and SciPy's recycling.

Wang, Hao, Wang, Geng, Wang, Li and Wu (ICLR 2024). Each family is a sequence of systems on one grid, drawn at random. Methods with the same memory of
`restart` vectors:

- `GMRES`: each system by itself, restarted.
- `GMRES-DR`: GCRO-DR without anything carried from system to system: deflated restarting alone.
- `recycled`: GCRO-DR with its space carried on, in the order in which the systems were drawn.
- `SKR`: the same, in the greedy order of the parameters.
- `gcrotmk`: SciPy's, with its vectors carried on, in the greedy order.

The four columns of products say apart what deflation, recycling and sorting save. Products with the matrix are all counted, those that fit the space to
each new matrix and those of the residual that is checked at the end too. Times are those of all solves without compilation; sorting is timed apart.
"""

import dataclasses
import time
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError

from .base import Claim, Findings, Run, Table

SLUG = "krylov-recycling"
TITLE = "Sorting Krylov Recycling for sequences of linear systems"
REFERENCE = "wang2024accelerating"

Name = Literal["darcy", "darcy-rough", "helmholtz", "convection", "thermal"]
Kind = Literal["none", "jacobi", "ilu"]
METHODS = ("GMRES", "GMRES-DR", "recycled", "SKR", "gcrotmk")


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    families: tuple[Name, ...] = _setting(("darcy", "darcy-rough", "helmholtz", "convection", "thermal"), "families of systems")
    count: int = _setting(60, "systems of a sequence", least=2)
    side: int = _setting(32, "points inside along an axis", least=4)
    kappa0: float = _setting(12.0, "wave number of Helmholtz's equation", least=0)
    tolerances: tuple[float, ...] = _setting((1e-5, 1e-8), "relative residuals, without preconditioner", least=1e-14)
    preconditioners: tuple[Kind, ...] = _setting(("jacobi", "ilu"), "further preconditioners, at the last of the tolerances")
    sweep: tuple[float, ...] = _setting((1e-3, 1e-5, 1e-7, 1e-9, 1e-11), "tolerances of the figure of speed-ups", least=1e-14)
    sweep_count: int = _setting(20, "systems of its sequences", least=2)
    restart: int = _setting(30, "vectors of a cycle", least=2)
    recycle: int = _setting(10, "vectors that are carried on", least=1)
    cap: int = _setting(4000, "iterations at most for a system", least=1)
    drop: float = _setting(0.01, "entries that the incomplete factorisation leaves out", least=0)

    def __post_init__(self):
        for name in ("families", "tolerances"):
            if not getattr(self, name):
                raise ArgumentError(name, "must not be empty.")
        if self.recycle >= self.restart:
            raise ArgumentError("recycle", f"must be below `restart`, {self.restart}, not {self.recycle}.")


QUICK = {
    "families": ("darcy", "helmholtz"), "count": 5, "side": 12, "kappa0": 8.0, "tolerances": (1e-8,), "preconditioners": ("ilu",),
    "sweep": (1e-3, 1e-8), "sweep_count": 3, "restart": 12, "recycle": 4,
}  # fmt: skip


def family_of(settings: Settings, name: str) -> Any:
    """The family of this name."""
    from optimand.physics import ConvectionDiffusion, Darcy, Helmholtz, Thermal

    side = settings.side
    return {
        "darcy": lambda: Darcy(side),
        "darcy-rough": lambda: Darcy(side, rough=True),
        "helmholtz": lambda: Helmholtz(side, kappa0=settings.kappa0),
        "convection": lambda: ConvectionDiffusion(side),
        "thermal": lambda: Thermal(side),
    }[name]()


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a method took for each system, in the order of the parameters; `values` are its solutions."""

    products: np.ndarray
    residuals: np.ndarray
    failed: np.ndarray
    seconds: float
    values: np.ndarray


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed, in double precision."""
    import jax

    from optimand.report import figures

    metrics: dict[str, float] = {}
    rows: list[list[Any]] = []
    speed_ups: dict[str, Any] = {"products": {}, "seconds": {}}
    with jax.enable_x64(True):
        for number, name in enumerate(settings.families):
            family = family_of(settings, name)
            parameters = family.sample(jax.random.fold_in(key, number), settings.count)
            begun = time.perf_counter()
            order = _greedy(parameters)
            metrics[f"{name}: seconds of sorting"] = time.perf_counter() - begun
            cases = [("none", rtol) for rtol in settings.tolerances]
            cases += [(kind, settings.tolerances[-1]) for kind in settings.preconditioners]
            for kind, rtol in cases:
                case = f"{name}, {kind}, {rtol:g}"
                found = {method: _measured(settings, family, parameters, order, kind, rtol, method) for method in METHODS}
                for method, one in found.items():
                    metrics[f"{case}: {method} products"] = one.products.mean()
                    metrics[f"{case}: {method} seconds"] = one.seconds
                    metrics[f"{case}: {method} failures"] = one.failed.sum()
                solved = [one for method, one in found.items() if method != "gcrotmk"]
                metrics[f"{case}: largest residual / rtol"] = max(float(np.max(one.residuals[~one.failed], initial=0)) / rtol for one in solved)
                metrics[f"{case}: distance to a direct solve"] = max(_distance(family, parameters, one) for one in solved)
                rows.append([name, kind, rtol, *[f"{one.products.mean():.0f}" + _marked(one) for one in found.values()], *[one.seconds for one in found.values()]])
                out.progress(case)
            metrics[f"{name}: angle between spaces that follow"] = _angle(settings, family, parameters, order)
            ratios = {"products": [], "seconds": []}
            few = parameters[: settings.sweep_count]
            for rtol in settings.sweep:
                plain, sorted_ = (_measured(settings, family, few, _greedy(few), "none", rtol, method) for method in ("GMRES", "SKR"))
                for what, theirs, ours in (("products", plain.products.sum(), sorted_.products.sum()), ("seconds", plain.seconds, sorted_.seconds)):
                    ratios[what].append(theirs / ours)
                    metrics[f"{name}, sweep {rtol:g}: GMRES / SKR {what}"] = theirs / ours
            for what, ratio in ratios.items():
                speed_ups[what][name] = (np.array(settings.sweep), np.array(ratio))
            out.progress(f"{name}: tolerances")
    columns = ["family", "preconditioner", "tolerance", *[f"{method}: products" for method in METHODS], *[f"{method}: seconds" for method in METHODS]]
    note = (
        f"{settings.count} systems of {settings.side}^2 unknowns; mean products a system, with the number of systems on which the method failed within {settings.cap} iterations, "
        f"if any; seconds for all systems, compiled."
    )
    drawn = {}
    for what, lines in speed_ups.items():
        figure = figures.scaling(lines, xlabel="relative residual", ylabel=f"GMRES / SKR, {what}", title=f"Speed-up in {what} against the tolerance")
        figure.axes[0].invert_xaxis()
        drawn[f"Speed-up over restarted GMRES in {what}, without preconditioner"] = figure
    return Findings(metrics, [Table("Products and seconds", columns, rows, note)], drawn)


def _greedy(parameters: Any) -> np.ndarray:
    from optimand.linear import greedy_order

    return greedy_order(parameters)


def _marked(one: Measured) -> str:
    return f" ({int(one.failed.sum())} failed)" if one.failed.any() else ""


def _preconditioner(settings: Settings, kind: str) -> Any:
    from optimand.linear import IncompleteLU, Jacobi

    return {"none": None, "jacobi": Jacobi(), "ilu": IncompleteLU(settings.drop)}[kind]


def _measured(settings: Settings, family: Any, parameters: Any, order: np.ndarray, kind: str, rtol: float, method: str) -> Measured:
    import optimand as om
    from optimand.linear import GCRODR, GMRES, LinearSequence, RecycledSequence, SolveEach

    if method == "gcrotmk":
        return _by_scipy(settings, family, parameters, order, kind, rtol)
    shared: dict[str, Any] = {"preconditioner": _preconditioner(settings, kind), "max_steps": settings.cap, "restart": settings.restart}
    deflated = GCRODR(rtol, recycle=settings.recycle, **shared)
    solver = {"GMRES": SolveEach(GMRES(rtol, **shared)), "GMRES-DR": SolveEach(deflated)}.get(method, RecycledSequence(deflated))
    sequence = LinearSequence(family.system, parameters, order if method == "SKR" else None)
    for _ in range(2):  # the first compiles
        solution = om.solve(sequence, solver, budget=om.Budget(steps=len(order)), throw=False)
    state = solution.state
    seconds = solution.stats["seconds"] - solution.stats["compile_seconds"]
    products, residuals, failed = map(np.asarray, (state.products, state.residuals, state.failed))
    return Measured(products, residuals, failed, seconds, np.asarray(solution.value))


def _by_scipy(settings: Settings, family: Any, parameters: Any, order: np.ndarray, kind: str, rtol: float) -> Measured:
    """SciPy's gcrotmk: `recycle` vectors carried on, and as many new ones in a cycle as ours has."""
    import scipy.sparse
    import scipy.sparse.linalg as sparse

    count = len(order)
    products, residuals, failed = np.zeros(count, int), np.zeros(count), np.zeros(count, bool)
    values = np.zeros((count, settings.side**2))
    carried: list[Any] = []
    inner = settings.restart - settings.recycle
    systems = {i: family.system(parameters[i]) for i in order}
    matrices = {i: (operator.to_scipy(), np.asarray(b)) for i, (operator, b) in systems.items()}
    begun = time.perf_counter()
    for i in order:
        matrix, b = matrices[i]
        seen = [0]

        def product(v, matrix=matrix, seen=seen):
            seen[0] += 1
            return matrix @ v

        operator: Any = sparse.LinearOperator
        counted = operator(matrix.shape, matvec=product, dtype=float)
        if kind == "ilu":
            factors = sparse.spilu(matrix.tocsc(), drop_tol=settings.drop, fill_factor=10.0)
            m = operator(matrix.shape, matvec=factors.solve, dtype=float)
        else:
            m = scipy.sparse.diags_array(1 / matrix.diagonal() if kind == "jacobi" else np.ones(len(b)))
        rounds = max(1, settings.cap // inner)
        x, status = sparse.gcrotmk(counted, b, rtol=rtol, M=m, m=inner, k=settings.recycle, CU=carried, discard_C=True, maxiter=rounds)
        values[i], products[i], failed[i] = x, seen[0], status != 0
        residuals[i] = np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)
    return Measured(products, residuals, failed, time.perf_counter() - begun, values)


def _distance(family: Any, parameters: Any, one: Measured) -> float:
    """The largest relative difference, over a few systems that the method solved, to a direct solve."""
    import scipy.sparse.linalg as sparse

    worst = 0.0
    for i in np.flatnonzero(~one.failed)[:5]:
        operator, b = family.system(parameters[i])
        exact = np.asarray(sparse.spsolve(operator.to_scipy().tocsc(), np.asarray(b)))
        worst = max(worst, float(np.linalg.norm(one.values[i] - exact) / np.linalg.norm(exact)))
    return worst


def _angle(settings: Settings, family: Any, parameters: Any, order: np.ndarray) -> float:
    """The mean over the sorted sequence of the largest principal angle between the space before a system and after it, in degrees."""
    import equinox as eqx
    import scipy.linalg

    from optimand.linear import GCRODR, RecycledSequence

    method = RecycledSequence(GCRODR(settings.tolerances[-1], restart=settings.restart, recycle=settings.recycle, max_steps=settings.cap))

    @eqx.filter_jit
    def one(memory, parameter):
        return method.solve_next(memory, *family.system(parameter))[1]

    memory, angles = method.begin(family.system(parameters[0])[0]), []
    for i in order[: settings.sweep_count]:
        after = one(memory, parameters[i])
        rows = [np.asarray(space.vectors) for space in (memory, after)]
        bases = [vectors[np.any(vectors != 0, axis=1)].T for vectors in rows]
        if all(basis.shape[1] for basis in bases):
            angles.append(np.degrees(scipy.linalg.subspace_angles(*bases).max()))
        memory = after
    return float(np.mean(angles)) if angles else float("nan")


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars. Each seed has to keep them, so the worst counts."""
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    rtol = settings.tolerances[-1]
    note = f"rtol {rtol:g}, {settings.count} systems of {settings.side}^2 unknowns"
    said: list[Claim] = []

    def worst(name: str, kind: str, theirs: str, ours: str, what: str = "products") -> float:
        case = f"{name}, {kind}, {rtol:g}"
        return float(np.min(every(f"{case}: {theirs} {what}") / every(f"{case}: {ours} {what}")))

    if "helmholtz" in settings.families:
        title = "helmholtz: products, GMRES / SKR"
        said.append(Claim.at_least(title, worst("helmholtz", "none", "GMRES", "SKR"), 8.0, "up to about 30", note))
        failures = float(np.max(every(f"helmholtz, none, {rtol:g}: SKR failures")))
        said.append(Claim.at_most("helmholtz: systems on which SKR fails", failures, 0.0, note=note))
        title = "helmholtz: wall time, GMRES / SKR"
        said.append(Claim.at_least(title, worst("helmholtz", "none", "GMRES", "SKR", "seconds"), 3.0, "up to 13.9", note))
    if "darcy" in settings.families:
        said.append(Claim.at_least("darcy: products, GMRES / SKR", worst("darcy", "none", "GMRES", "SKR"), 2.5, note=note))
    for name in settings.families:
        if name in ("darcy", "helmholtz"):
            title = f"{name}: products, recycled in the given order / sorted"
            said.append(Claim.at_least(title, worst(name, "none", "recycled", "SKR"), 1.08, note=note))
    cases = [f"{name}, none, {tolerance:g}" for name in settings.families for tolerance in settings.tolerances]
    cases += [f"{name}, {kind}, {rtol:g}" for name in settings.families for kind in settings.preconditioners]
    largest = max(float(np.max(every(f"{case}: largest residual / rtol"))) for case in cases)
    said.append(Claim.at_most("true relative residual / rtol, of every solution", largest, 1.0001, note="all families, tolerances and preconditioners; GMRES and GCRO-DR"))
    if "darcy" in settings.families:
        far = float(np.max(every(f"darcy, none, {rtol:g}: distance to a direct solve")))
        said.append(Claim.at_most("darcy: relative distance to a direct solve", far, 1e-5, note=note))
    for name in settings.families:
        said.append(Claim.at_most(f"{name}: products, SKR / SciPy's gcrotmk", 1 / worst(name, "none", "gcrotmk", "SKR"), 1.1, note=note))
    return said
