"""The deep conjugate direction method beside conjugate gradients with and without preconditioner, deflation, and multigrid.

Kaneda, Akar, Chen, Kala, Hyde and Teran (ICML 2023). A network is trained in the run, without solutions, on one matrix: Poisson's equation in an empty box that is open to air, on
`n_train` points along each axis. It is then asked for directions in systems it never saw: other right-hand sides, solids in the box, frames of a smoke simulation, and finer
grids. Right-hand sides are white noise, smooth modes, a dipole, and those of the simulation. Methods:

- `CG`, `Jacobi-CG`, `IC(0)-CG`: conjugate gradients, by themselves and preconditioned.
- `DeflatedCG`: without the lowest `deflated` Ritz vectors of the matrix at hand, which are found before and not counted.
- `DCDM q=...`: the network's directions, made conjugate to the last q.
- `FCG network`: flexible conjugate gradients with the network as a preconditioner; q=1 without the safeguard.
- `DCDM pretrained`: with the network of the package, which has one more level and was trained for longer.
- `CG multigrid`: conjugate gradients with a geometric V-cycle, which knows the stencil: what to use on a CPU.

In three dimensions, where a network takes ten times as long, only the most directions are kept, and with the safeguard. On the grid `n_far` the network of the run does not see from one side
of the domain to the other, which the table says; whatever it proposes there, the fallback and the line search leave the method convergent. An iteration with a network costs as much as many
products, so seconds stand beside iterations: on a CPU fewer iterations are not less time. All residuals are true ones.
"""

import dataclasses
import functools
import time
from typing import Any, Literal

import numpy as np

from optimand.core.errors import ArgumentError

from .base import Claim, Findings, Run, Table

SLUG = "deep-conjugate-direction"
TITLE = "Deep conjugate directions for pressure systems"
REFERENCE = "kaneda2023deep"

SceneName = Literal["empty", "disk", "bars", "smoke"]


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    n_train: int = _setting(32, "points along an axis, in training", least=4)
    n_test: tuple[int, ...] = _setting((32, 64), "points along an axis, in tests", least=4)
    n_far: int = _setting(128, "points along an axis of the grid that is too fine for the network, 0 for none", least=0)
    scenes: tuple[SceneName, ...] = _setting(("empty", "disk", "bars", "smoke"), "what is in the box; `smoke` in two dimensions only")
    width: int = _setting(12, "channels of the network", least=1)
    levels: int = _setting(3, "levels of the network", least=1)
    steps: int = _setting(800, "steps of training", least=1)
    train_seconds: float = _setting(150.0, "seconds of training at most", least=1)
    learning_rate: float = _setting(1e-3, "of Adam at first", least=1e-8)
    n_ritz: int = _setting(400, "Ritz vectors of the right-hand sides in training", least=2)
    amplitude: float = _setting(9.0, "of the lower ones", least=1e-3)
    theta: int = _setting(20, "vectors beyond half of them that count as lower", least=0)
    mask: bool = _setting(False, "whether the network sees which cells are solid")
    q: tuple[int, ...] = _setting((0, 1, 2), "directions that a new one is made conjugate to; in three dimensions the most of them only", least=0)
    rtol: tuple[float, ...] = _setting((1e-4, 1e-6), "relative residuals", least=1e-12)
    deflated: int = _setting(16, "Ritz vectors of DeflatedCG", least=1)
    smoke_steps: int = _setting(60, "steps of the smoke simulation", least=1)
    smoke_every: int = _setting(10, "one system of it in so many steps is solved", least=1)
    cap: int = _setting(3000, "iterations at most", least=1)
    dim: tuple[int, ...] = _setting((2, 3), "dimensions", least=2, most=3)
    n_train_3d: int = _setting(16, "the same in three dimensions", least=4)
    n_test_3d: tuple[int, ...] = _setting((16, 24), "the same in three dimensions", least=4)
    steps_3d: int = _setting(400, "the same in three dimensions", least=1)

    def __post_init__(self):
        for name in ("n_test", "q", "rtol", "dim", "n_test_3d", "scenes"):
            if not getattr(self, name):
                raise ArgumentError(name, "must not be empty.")
        if self.scenes == ("smoke",) and 3 in self.dim:
            raise ArgumentError("scenes", "must have one besides smoke in three dimensions.")
        if any(q >= 10 for q in self.q):
            raise ArgumentError("q", f"must be below 10, not {self.q}.")


QUICK = {
    "n_train": 12, "n_test": (12, 20), "n_far": 0, "width": 6, "levels": 1, "steps": 60, "n_ritz": 60, "theta": 3, "q": (0, 2), "rtol": (1e-4,), "deflated": 4,
    "smoke_steps": 4, "smoke_every": 2, "dim": (2,), "scenes": ("empty", "disk", "smoke"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scene:
    """Systems with matrices on one grid, all of them of one shape."""

    name: str
    systems: list[tuple[Any, np.ndarray]]


def run(settings: Settings, key: Any, out: Run) -> Findings:
    """One seed, in double precision; networks are in single precision."""
    import jax

    metrics: dict[str, float] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    with jax.enable_x64(True):
        for dim in settings.dim:
            found = _in_dimensions(settings, dim, jax.random.fold_in(key, dim), out)
            metrics |= dict(found.metrics)
            tables += found.tables
            drawn |= found.figures
    return Findings(metrics, tables, drawn)


def _in_dimensions(settings: Settings, dim: int, key: Any, out: Run) -> Findings:
    import jax

    from optimand.linear import ConjugateDirectionNet
    from optimand.report import figures

    metrics: dict[str, float] = {}
    net, losses, seconds = _trained(settings, dim, jax.random.fold_in(key, 0), out)
    metrics[f"{dim}-D: loss of training"], metrics[f"{dim}-D: seconds of training"] = min(losses.values()), seconds
    methods = _methods(settings, net, ConjugateDirectionNet.pretrained(dim))
    if dim == 3:  # what fewer directions and no safeguard are worth is shown in two
        left_out = {f"DCDM q={q}" for q in settings.q if q < max(settings.q)} | {"FCG network"}
        methods = {name: method for name, method in methods.items() if name not in left_out}
    rows: list[list[Any]] = []
    sizes = settings.n_test if dim == 2 else settings.n_test_3d
    drawn: dict[str, Any] = {}
    for n in sizes:
        scenes = _scenes(settings, dim, n, jax.random.fold_in(key, n))
        for rtol in settings.rtol:
            for scene in scenes:
                rows += _measured(scene, methods, n, rtol, metrics, f"{dim}-D {n} {scene.name} {rtol:g}")
            out.progress(f"{dim}-D: {n}, {rtol:g}")
        if n == sizes[-1]:
            lines = {name: _curve(method, scenes[-1].systems[-1], min(settings.rtol)) for name, method in methods.items()}
            drawn[f"{dim}-D: relative residuals, {scenes[-1].name}, {n} points along an axis"] = figures.curves(
                lines, xlabel="iterations", ylabel="relative residual", log="y", title=f"Residuals, {n}^{dim} cells"
            )
    if dim == 2 and settings.n_far:
        far = [Scene(f"{scene.name}, outside receptive field", scene.systems[:1]) for scene in _scenes(settings, dim, settings.n_far, key, smoke=False)]
        few = {name: method for name, method in methods.items() if not name.startswith("DCDM q") or name == f"DCDM q={max(settings.q)}"}
        for scene in far:
            rows += _measured(scene, few, settings.n_far, settings.rtol[0], metrics, f"{dim}-D {settings.n_far} {scene.name} {settings.rtol[0]:g}")
        out.progress(f"{dim}-D: {settings.n_far}")
    steps = np.array(list(losses))
    drawn[f"{dim}-D: loss in training"] = figures.curves({"loss": (steps, np.array(list(losses.values())))}, xlabel="steps", ylabel="loss", log="y", title="What a step leaves, squared")
    columns = ["points", "scene", "rtol", "method", "iterations, median", "iterations, most", "fallbacks", "ms a solve, median"]
    note = "Iterations of the solves of a scene; fallbacks in all of them; milliseconds of a compiled solve on this machine, with what a solver makes of the matrix first."
    return Findings(metrics, [Table(f"{dim}-D: iterations and time", columns, rows, note)], drawn)


def _trained(settings: Settings, dim: int, key: Any, out: Run) -> tuple[Any, dict[int, float], float]:
    """The network of the run, its losses by step, and the seconds it took."""
    import jax

    from optimand.linear import ConjugateDirectionNet, RitzSampler, train_inverse
    from optimand.physics import PoissonGrid

    n, steps = (settings.n_train, settings.steps) if dim == 2 else (settings.n_train_3d, settings.steps_3d)
    levels = settings.levels if dim == 2 else max(1, settings.levels - 1)
    keys = jax.random.split(key, 3)
    losses: dict[int, float] = {}
    begun = time.perf_counter()
    with jax.enable_x64(False):
        net = ConjugateDirectionNet(dim, width=settings.width, levels=levels, mask_channel=settings.mask, key=keys[0])
        sampler = RitzSampler(settings.n_ritz, settings.amplitude, settings.theta, keys[1])
        net = train_inverse(
            net,
            PoissonGrid((n,) * dim),
            sampler,
            steps=steps,
            learning_rate=settings.learning_rate,
            seconds=settings.train_seconds,
            key=keys[2],
            report=losses.__setitem__,
        )
    out.progress(f"{dim}-D: trained, loss {min(losses.values()):.4f}")
    return net, losses, time.perf_counter() - begun


def _methods(settings: Settings, net: Any, pretrained: Any) -> dict[str, Any]:
    """name -> function of a system and a tolerance that returns iterations, the true relative residual and the fallbacks; what is found beforehand is found outside of it."""
    from optimand.linear import (
        CG,
        DeepConjugateDirection,
        DeflatedCG,
        FlexibleCG,
        IncompleteCholesky,
        Jacobi,
        Multigrid,
        NetworkPreconditioner,
    )

    cap = settings.cap
    solvers: dict[str, Any] = {
        "CG": lambda rtol: CG(rtol, max_steps=cap),
        "Jacobi-CG": lambda rtol: CG(rtol, max_steps=cap, preconditioner=Jacobi()),
        "IC(0)-CG": lambda rtol: CG(rtol, max_steps=cap, preconditioner=IncompleteCholesky()),
        "DeflatedCG": lambda rtol: DeflatedCG(rtol, max_steps=cap, count=settings.deflated, lanczos=4 * settings.deflated),
        "CG multigrid": lambda rtol: CG(rtol, max_steps=cap, preconditioner=Multigrid()),
    }
    for q in settings.q:
        solvers[f"DCDM q={q}"] = lambda rtol, q=q: DeepConjugateDirection(net=net, rtol=rtol, max_steps=cap, q=q)
    solvers["FCG network"] = lambda rtol: FlexibleCG(rtol, max_steps=cap, preconditioner=NetworkPreconditioner(net))
    solvers["DCDM pretrained"] = lambda rtol: DeepConjugateDirection(net=pretrained, rtol=rtol, max_steps=cap, q=max(settings.q))
    return {name: Method(name, solver, settings.deflated) for name, solver in solvers.items()}


class Method:
    """A solver as a compiled function of a system."""

    def __init__(self, name: str, solver: Any, deflated: int):
        import equinox as eqx

        self.name, self.solver, self.deflated = name, solver, deflated
        self._solve = eqx.filter_jit(self._answer)
        self._made: dict[int, tuple[Any, Any, Any]] = {}

    def _answer(self, operator, b, rtol, space):
        import lineax as lx

        solver = self.solver(rtol)
        state = solver.init(operator, {} if space is None else {"space": space})
        return lx.linear_solve(operator, b, solver, state=state, throw=False)

    def prepared(self, operator: Any) -> tuple[Any, Any]:
        """The operator in the form that the solver takes, and the space that it is given; made once for each operator."""
        if id(operator) not in self._made:
            self._made[id(operator)] = (operator, *self._prepared(operator))  # holding the operator, so that no other one has its number
        return self._made[id(operator)][1:]

    def _prepared(self, operator: Any) -> tuple[Any, Any]:
        if self.name == "IC(0)-CG":
            return operator.to_sparse(), None
        if self.name == "CG multigrid":
            return operator.to_stencil(), None
        if self.name == "DeflatedCG":
            return operator, _lowest(operator, self.deflated)
        return operator, None

    def __call__(self, prepared: tuple[Any, Any], b: Any, rtol: float) -> tuple[int, Any, int, bool]:
        """Iterations, the solution, fallbacks, and whether it converged."""
        import jax
        import jax.numpy as jnp

        operator, space = prepared
        answer = jax.block_until_ready(self._solve(operator, jnp.reshape(b, operator.in_structure().shape), jnp.asarray(rtol), space))
        stats = answer.stats
        return int(stats["num_steps"]), answer.value, int(stats.get("fallbacks", 0)), bool(jnp.all(answer.result == _successful()))


@functools.cache
def _successful() -> Any:
    import lineax as lx

    return lx.RESULTS.successful


def _lowest(operator: Any, count: int) -> Any:
    """The Ritz vectors of the lowest values, of enough steps that they are close to eigenvectors."""
    from optimand.linear import RitzSampler

    return RitzSampler(max(20 * count, 100)).of(operator).vectors[:count]


def _measured(scene: Scene, methods: dict[str, Any], n: int, rtol: float, metrics: dict[str, float], case: str) -> list[list[Any]]:
    """Solve each system of the scene with each method; a row for each method."""
    rows = []
    for name, method in methods.items():
        counts, seconds, fallbacks, worst, failures = [], [], 0, 0.0, 0
        for operator, b in scene.systems:
            prepared = method.prepared(operator)
            if not counts:
                method(prepared, b, rtol)  # compiles
            begun = time.perf_counter()
            count, value, fell_back, converged = method(prepared, b, rtol)
            seconds.append(time.perf_counter() - begun)
            left = np.linalg.norm(b - np.asarray(operator.mv(value.ravel()))) / np.linalg.norm(b)
            counts.append(count)
            fallbacks, failures, worst = fallbacks + fell_back, failures + (not converged), max(worst, float(left))
        metrics[f"{case}: {name} iterations"] = float(np.median(counts))
        metrics[f"{case}: {name} seconds"] = float(np.median(seconds))
        metrics[f"{case}: {name} residual / rtol"] = worst / rtol
        if "DCDM" in name:
            metrics[f"{case}: {name} fallbacks"] = fallbacks
        failed = f" ({failures} failed)" if failures else ""
        rows.append([n, scene.name, rtol, name, f"{np.median(counts):g}{failed}", int(np.max(counts)), fallbacks if "DCDM" in name else None, 1e3 * float(np.median(seconds))])
    return rows


def _curve(method: Any, system: tuple[Any, Any], lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """How many iterations it takes to each of several tolerances."""
    operator, b = system
    prepared = method.prepared(operator)
    tolerances = np.logspace(0, np.log10(lowest), 13)[1:]
    return np.array([0] + [method(prepared, b, float(rtol))[0] for rtol in tolerances]), np.concatenate([[1.0], tolerances])


# Scenes.


def _places(n: int, dim: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n] * dim, indexing="ij"), -1)


def solid_of(name: str, n: int, dim: int) -> np.ndarray:
    """The cells of the solid of a scene: a ball of radius 0.2, or two bars."""
    places = _places(n, dim)
    if name == "bars":
        left = (places[..., 0] > 0.25) & (places[..., 0] < 0.35) & (places[..., 1] < 0.6)
        return left | ((places[..., 0] > 0.65) & (places[..., 0] < 0.75) & (places[..., 1] > 0.4))
    if name in ("disk", "smoke"):
        return np.sum((places - 0.5) ** 2, axis=-1) < 0.2**2
    return np.zeros((n,) * dim, bool)


def _scenes(settings: Settings, dim: int, n: int, key: Any, *, smoke: bool = True) -> list[Scene]:
    import jax

    from optimand.physics import PoissonGrid

    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    scenes = []
    for name in settings.scenes:
        solid = solid_of(name, n, dim)
        if name == "smoke":
            continue
        operator = PoissonGrid((n,) * dim, solid=solid)
        scenes.append(Scene(name, [(operator, b) for b in _right_hand_sides(rng, n, dim, ~solid)]))
    if smoke and dim == 2 and "smoke" in settings.scenes:
        from optimand.physics import smoke_systems

        solid = solid_of("smoke", n, dim)
        frames = smoke_systems((n,) * dim, settings.smoke_steps, settings.smoke_every, solid, key=key)
        systems = [(operator, np.asarray(b, float).ravel()) for operator, b in frames]
        scenes.append(Scene("smoke", [(operator, b) for operator, b in systems if np.any(b)]))
    return scenes


def _right_hand_sides(rng: np.random.Generator, n: int, dim: int, fluid: np.ndarray) -> list[np.ndarray]:
    """White noise, a few smooth modes, and a dipole; zero outside of the fluid."""
    places = _places(n, dim)
    smooth = np.zeros(fluid.shape)
    for _ in range(6):
        waves = rng.integers(1, 5, dim)
        smooth += rng.normal() * np.prod(np.sin(np.pi * waves * places), axis=-1)
    dipole = np.zeros(fluid.size)
    dipole[rng.choice(np.flatnonzero(fluid.ravel()), 2, replace=False)] = 1.0, -1.0
    return [(b * fluid.ravel()) for b in (rng.normal(size=fluid.size), smooth.ravel(), dipole)]


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars, for medians over the right-hand sides of a scene. Each scene and each seed has to keep them, so the worst counts."""
    said: list[Claim] = []
    rtol, q = settings.rtol[0], f"DCDM q={max(settings.q)}"
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    iterations = lambda n, scene, method: every(f"2-D {n} {scene} {rtol:g}: {method} iterations")

    def worst(n: int, scenes: tuple[str, ...], over: str, under: str) -> float:
        """The largest ratio of iterations."""
        return float(np.max([iterations(n, scene, over) / iterations(n, scene, under) for scene in scenes]))

    if 2 in settings.dim:
        note = f"rtol {rtol:g}, trained on {settings.n_train}^2, empty"
        solids = tuple(scene for scene in settings.scenes if scene != "empty") or settings.scenes
        few = "8 to 12 against 62 to 71 iterations in a prototype"
        near, finer = settings.n_test[0], settings.n_test[-1]
        said.append(Claim.at_least(f"{near}^2, solids: iterations, CG / DCDM", 1 / worst(near, solids, q, "CG"), 4.0, note=f"{note}; {few}"))
        if finer > near:
            said.append(Claim.at_least(f"{finer}^2, solids: iterations, CG / DCDM", 1 / worst(finer, solids, q, "CG"), 4.0, note=note))
            growth = np.max([iterations(finer, scene, q) / iterations(near, scene, q) for scene in settings.scenes])
            said.append(Claim.at_most(f"iterations of DCDM, {finer}^2 / {near}^2", growth, 2.6, note=note))
        said.append(Claim.at_most(f"{finer}^2: iterations, DCDM / DeflatedCG", worst(finer, settings.scenes, q, "DeflatedCG"), 0.8, note=note))
        said.append(Claim.at_most(f"{finer}^2: iterations, DCDM / IC(0)-CG", worst(finer, settings.scenes, q, "IC(0)-CG"), 1.0, note=note))
        if 0 in settings.q:
            said.append(Claim.at_most(f"{finer}^2: iterations, {q} / q=0", worst(finer, settings.scenes, q, "DCDM q=0"), 0.9, note=note))
    largest = max((value for seed in seeds for name, value in seed.items() if name.endswith("residual / rtol")), default=np.nan)
    said.append(Claim.at_most("true relative residual / rtol, of every solution", largest, 1.0001, note="all scenes, sizes, tolerances and methods"))
    return said
