r"""Implicit differentiation: five experiments of Blondel et al. 2022 at the size of two cores, and a parity suite.

A. **Precision.** The Jacobian of ridge and logistic ridge regression (diabetes data) at the iterates of gradient
   descent: the error of the implicit one is proportional to that of the iterate, that of the unrolled one lags behind.
B. **Hyperparameters.** The derivative of a validation loss in the regularisation of a multiclass support vector machine,
   through its dual on a product of simplices: time and memory, implicit against unrolled.
C. **Distillation.** Ten images from which a classifier learns to read the digits: bilevel, gradient by either route.
D. **Discs.** How a jammed packing of soft discs moves when half of them grow: implicit against unrolled tangents.
E. **Dictionary.** Task-driven dictionary learning on the breast cancer data against its rivals.
P. **Parity.** Every method of `optimand.smooth`: implicit gradients agree with finite differences and with unrolling.

The unrolled rivals run the same method for the same iterations. Reverse mode is given its fastest form: a scan that
stores all it needs, or a loop with checkpoints, whichever is quicker.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimand import Budget, Composite, Implicit, Minimize, Unrolled, solve
from optimand import checks as conformance
from optimand.core import optimality
from optimand.core.errors import ArgumentError, MissingExtra
from optimand.core.method import Method
from optimand.physics import SoftDiscs, bidisperse
from optimand.report import figures
from optimand.smooth import projections, proximal
from optimand.studies.base import Claim, Findings, Run, Table

SLUG = "implicit-diff"
TITLE = "Implicit differentiation: precision, cost, and five problems"
REFERENCE = "blondel2022efficient"


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: str = _setting("ABCDEP", "which experiments to run")
    rtol: float = _setting(1e-8, "relative tolerance of the linear solves of implicit derivatives")
    ridge_iterations: int = _setting(2000, "A: iterations of gradient descent")
    ridge_theta: float = _setting(0.01, "A: weight of the ridge")
    svm_features: str = _setting("50,200,1000,4000", "B: numbers of features, separated by commas")
    svm_samples: int = _setting(300, "B: training samples; as many for validation")
    svm_classes: int = _setting(5, "B: classes")
    svm_theta: float = _setting(30.0, "B: regularisation")
    svm_iterations: int = _setting(1000, "B: iterations of mirror descent and projected gradient")
    svm_block_iterations: int = _setting(300, "B: iterations of block coordinate descent")
    svm_block_largest: int = _setting(1000, "B: most features for block coordinate descent, which is slow")
    distil_steps: int = _setting(200, "C: outer steps")
    distil_theta: float = _setting(1e-3, "C: l2 regularisation of the classifier")
    distil_rate: float = _setting(0.02, "C: outer learning rate, with momentum 0.9")
    distil_unrolled: str = _setting(
        "30,100,300,1000", "C: inner iterations the unrolled rival may use; the best counts"
    )
    discs_count: int = _setting(64, "D: discs")
    discs_theta: float = _setting(0.6, "D: diameter of the small half")
    discs_packing: float = _setting(1.0, "D: packing fraction")
    discs_runs: int = _setting(20, "D: random starts")
    discs_iterations: int = _setting(4000, "D: most iterations of FIRE")
    dictionary_data: str = _setting("", "E: an .npz file with arrays X and y; breast cancer data by default")
    dictionary_atoms: int = _setting(10, "E: atoms")
    dictionary_splits: int = _setting(10, "E: random splits")
    dictionary_steps: int = _setting(150, "E: outer steps of Adam")
    parity_methods: str = _setting("", "P: names of methods, separated by commas; all of them by default")

    def __post_init__(self):
        if not set(self.parts) <= set("ABCDEP") or not self.parts:
            raise ArgumentError("parts", f"must be letters of ABCDEP, not {self.parts!r}.")
        for name in ("svm_features", "distil_unrolled"):
            if not all(part.strip().isdigit() and int(part) > 0 for part in getattr(self, name).split(",")):
                raise ArgumentError(name, f"must be whole numbers separated by commas, not {getattr(self, name)!r}.")


QUICK = {
    "svm_features": "20",
    "svm_samples": 24,
    "svm_iterations": 300,
    "svm_block_largest": 1,
    "distil_steps": 3,
    "distil_unrolled": "10",
    "discs_count": 12,
    "discs_runs": 2,
    "discs_iterations": 1500,
    "dictionary_splits": 1,
    "dictionary_steps": 3,
    "parity_methods": "FixedPointIteration",
}


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    """One seed: all parts, in double precision."""
    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    parts = {"A": _precision, "B": _support_vectors, "C": _distillation, "D": _discs, "E": _dictionary, "P": _parity}
    with jax.enable_x64(True):
        for number, (letter, part) in enumerate(parts.items()):
            if letter in settings.parts:
                out.progress(f"part {letter}")
                found = part(settings, jax.random.fold_in(key, number), out)
                metrics |= {f"{letter} {name}": float(value) for name, value in found.metrics.items()}
                tables += found.tables
                drawn |= found.figures
    return Findings(metrics, tables, drawn)


def _sklearn(name: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None


def _timed(fn, *args, repeats: int = 2):
    """The output of jit(fn), the least of a few run times in seconds, and its working memory in bytes."""
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > 1.0:
            break
    return value, min(seconds), _memory(compiled)


def _memory(compiled) -> int:
    """The working memory of a compiled function in bytes."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def _iterates(method: Method, problem: Any, guess: Any, steps: int) -> Any:
    """All answers of a method on the way: `solve` keeps the last only."""

    def step(state, _):
        state = method.step(problem, state, key=None)
        return state, method.answer(problem, state)

    return jax.lax.scan(step, method.init(problem, guess, key=None), length=steps)[1]


def _last(method: Method, problem: Any, guess: Any, steps: int) -> Any:
    """The answer after so many steps by a plain scan, of which reverse mode stores everything: unrolling at its fastest."""
    step = lambda state, _: (method.step(problem, state, key=None), None)
    return method.answer(problem, jax.lax.scan(step, method.init(problem, guess, key=None), length=steps)[0])


# A. Precision of Jacobians.


def _precision(settings: Settings, key, out: Run) -> Findings:
    from optimand.smooth import GradientDescent, Newton

    data = _sklearn("datasets").load_diabetes()
    features = jnp.asarray(data.data)
    start = 0.1 * jax.random.normal(key, (features.shape[1],))
    theta = jnp.asarray(settings.ridge_theta)
    targets = jnp.asarray((data.target - data.target.mean()) / data.target.std())

    def ridge(x, theta):
        return 0.5 * jnp.sum((features @ x - targets) ** 2) + 0.5 * theta * jnp.sum(x**2)

    def logistic(x, theta):
        margins = jnp.sign(targets) * (features @ x)
        return jnp.sum(jax.nn.softplus(-margins)) + 0.5 * theta * jnp.sum(x**2)

    metrics, drawn = {}, {}
    curvature = float(jnp.linalg.norm(features, 2) ** 2)
    for name, fn, bound in (("ridge", ridge, curvature), ("logistic", logistic, curvature / 4)):
        method = GradientDescent(step_size=1 / (bound + settings.ridge_theta), tolerance=0.0)
        path = jax.jit(
            lambda theta, fn=fn, method=method: _iterates(method, Minimize(fn, theta), start, settings.ridge_iterations)
        )
        iterates, unrolled = jax.jvp(path, (theta,), (jnp.ones_like(theta),))
        exact = solve(Minimize(fn, theta), Newton(tolerance=1e-12), start, budget=Budget(steps=100)).value
        closed_form = -jnp.linalg.solve(jax.hessian(fn)(exact, theta), exact)  # H J = -d(grad)/d(theta) = -x
        curve = optimality.jacobian_precision(
            optimality.stationary(fn), iterates, exact, (theta,), jacobian=closed_form[:, None]
        )
        unrolled_error = np.asarray(jnp.linalg.norm(unrolled - closed_form, axis=1))
        error, implicit_error = np.asarray(curve.iterate_error), np.asarray(curve.jacobian_error)
        relative = error / float(jnp.linalg.norm(exact))
        near = (relative <= 1e-2) & (relative > 1e-11)  # below is round-off
        slope = np.polyfit(np.log(error[near]), np.log(implicit_error[near]), 1)[0] if near.sum() > 2 else np.nan
        ratios = implicit_error[near] / unrolled_error[near]
        metrics |= {
            f"{name} slope": slope,
            f"{name} worst implicit / unrolled": np.max(ratios) if near.any() else np.nan,
            f"{name} iterates compared": near.sum(),
            f"{name} last relative error": relative[-1],
        }
        scale = float(jnp.linalg.norm(closed_form))
        drawn[f"A. Error of the Jacobian against error of the iterate: {name} regression"] = figures.curves(
            {
                "implicit": (relative, implicit_error / scale),
                "unrolled": (relative, unrolled_error / scale),
            },
            xlabel="relative error of the iterate",
            ylabel="relative error of the Jacobian",
            title=f"{name}: {settings.ridge_iterations} iterates of gradient descent",
            log="xy",
        )
    return Findings(metrics, [], drawn)


# B. Regularisation of a multiclass support vector machine.


def _classification(key, samples: int, features: int, classes: int):
    """Normal clouds around class centres that differ in at most 20 coordinates, scaled to norm about one."""
    informative = min(20, features)
    centre_key, label_key, noise_key = jax.random.split(key, 3)
    centres = (
        jnp.zeros((classes, features))
        .at[:, :informative]
        .set(0.5 * jax.random.normal(centre_key, (classes, informative)))
    )
    labels = jax.random.randint(label_key, (2 * samples,), 0, classes)
    points = (centres[labels] + jax.random.normal(noise_key, (2 * samples, features))) / jnp.sqrt(features)
    onehot = jax.nn.one_hot(labels, classes, dtype=points.dtype)
    return points[:samples], onehot[:samples], points[samples:], onehot[samples:]


def _dual(x, log_theta, points, onehot):
    """The dual objective of Crammer and Singer's machine; x is a distribution over classes for each sample."""
    x = x.reshape(onehot.shape)  # block coordinate descent groups the samples
    theta = jnp.exp(log_theta)
    weights = points.T @ (onehot - x) / theta
    return 0.5 * theta * jnp.sum(weights**2) + jnp.sum(x * onehot)


def _rows_on_simplex(x, step_size):
    del step_size
    return jax.vmap(projections.simplex)(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _svm_problem(log_theta, data):
    return Composite(_dual, _rows_on_simplex, log_theta, data[0], data[1])


def _validation_loss(x, log_theta, data):
    points, onehot, held_out, held_out_onehot = data
    weights = points.T @ (onehot - x.reshape(onehot.shape)) / jnp.exp(log_theta)
    return 0.5 * jnp.mean(jnp.sum((held_out @ weights - held_out_onehot) ** 2, axis=1))


def _blocks(samples: int) -> int:
    """The number of blocks, six at the most, that divides the samples evenly: one compiled visit then does for all."""
    return max(number for number in range(1, 7) if samples % number == 0)


def _svm_solvers(settings: Settings, data, features: int):
    """name -> (method, condition to differentiate, guess, iterations)."""
    from optimand.smooth import BlockCoordinateDescent, MirrorDescent, ProximalGradient

    curvature = float(jnp.linalg.norm(data[0] @ data[0].T, 2)) / settings.svm_theta
    value = lambda x, problem: problem.smooth.value(x)
    uniform = jnp.full(data[1].shape, 1 / settings.svm_classes)
    rate, length = 3.0 / curvature, 1.8 / curvature  # both nearly as long as is stable
    euclidean = optimality.projected_gradient(value, lambda y, problem: problem.prox(y, 1.0), step_size=length)
    solvers = {
        "mirror descent": (
            MirrorDescent(step_size=rate, tolerance=0.0),
            optimality.mirror_descent(value, step_size=rate),
            uniform,
            settings.svm_iterations,
        ),
        "projected gradient": (
            ProximalGradient(step_size=length, acceleration=False, tolerance=0.0),
            euclidean,
            uniform,
            settings.svm_iterations,
        ),
    }
    if features <= settings.svm_block_largest:
        solvers["block coordinate descent"] = (
            BlockCoordinateDescent(step_size=length, tolerance=0.0),
            euclidean,
            uniform.reshape(_blocks(len(uniform)), -1, settings.svm_classes),
            settings.svm_block_iterations,
        )
    return solvers


def _support_vectors(settings: Settings, key, out: Run) -> Findings:
    from optimand.smooth import ProximalGradient

    log_theta = jnp.log(jnp.asarray(settings.svm_theta))
    sizes = [int(part) for part in settings.svm_features.split(",")]
    metrics, rows = {}, []
    times: dict[str, list[tuple[int, float]]] = {}
    memory: dict[str, tuple[list[int], list[float]]] = {}
    for features in sizes:
        data = _classification(jax.random.fold_in(key, features), settings.svm_samples, features, settings.svm_classes)
        guess = jnp.full(data[1].shape, 1 / settings.svm_classes)

        def exact(log_theta, data, guess=guess):
            accurate = ProximalGradient(tolerance=1e-11)
            x = solve(_svm_problem(log_theta, data), accurate, guess, budget=Budget(steps=20_000)).value
            return _validation_loss(x, log_theta, data)

        exact, h = jax.jit(exact), 1e-4
        reference = float((exact(log_theta + h, data) - exact(log_theta - h, data)) / (2 * h))
        for name, (method, condition, start, iterations) in _svm_solvers(settings, data, features).items():

            def loss(log_theta, data, adjoint, steps, method=method, start=start):
                problem = _svm_problem(log_theta, data)
                x = (
                    _last(method, problem, start, steps)
                    if adjoint is None
                    else solve(problem, method, start, budget=Budget(steps=steps), adjoint=adjoint, throw=False).value
                )
                return _validation_loss(x, log_theta, data)

            def hypergradient(adjoint, steps, loss=loss, data=data):
                return _timed(jax.grad(lambda t, d: loss(t, d, adjoint, steps)), log_theta, data)

            implicit = Implicit(condition=condition, rtol=settings.rtol)
            gradient, seconds, used = hypergradient(implicit, iterations)
            checkpointed = hypergradient(Unrolled(), iterations)
            stored = hypergradient(None, iterations)
            fastest = min(stored[1], checkpointed[1])
            error = abs(float(gradient) - reference) / abs(reference)
            unrolled_error = abs(float(stored[0]) - reference) / abs(reference)
            label = f"{name}, p = {features}"
            metrics |= {f"{label}: unrolled / implicit time": fastest / seconds, f"{label}: relative error": error}
            rows.append(
                [name, features, seconds, stored[1], checkpointed[1], used / 1e6, stored[2] / 1e6,
                 checkpointed[2] / 1e6, error, unrolled_error]
            )  # fmt: skip
            for route, amount in (("implicit", seconds), ("unrolled", fastest)):
                times.setdefault(f"{name}, {route}", []).append((features, amount))
            out.progress(f"B: {label}: implicit {seconds:.2f} s, unrolled {fastest:.2f} s, error {error:.1e}")
            if features == sizes[0] and name == "projected gradient":
                few, many = max(1, (3 * iterations) // 10), 3 * iterations

                def working_memory(adjoint, steps, loss=loss, data=data):
                    fn = jax.jit(jax.grad(lambda t, d: loss(t, d, adjoint, steps)))
                    return _memory(fn.lower(log_theta, data).compile())

                low, high = working_memory(implicit, few), working_memory(implicit, many)
                memory["implicit"] = ([few, iterations, many], [low / 1e6, used / 1e6, high / 1e6])
                for route, adjoint, known in (
                    ("unrolled, stored", None, stored[2]),
                    ("unrolled, checkpoints", Unrolled(), checkpointed[2]),
                ):
                    memory[route] = ([iterations, many], [known / 1e6, working_memory(adjoint, many) / 1e6])
                metrics["memory of implicit, ten times the iterations"] = high / low
    last = sizes[-1]
    table = Table(
        "B. One hypergradient of the support vector machine",
        ["method", "p", "implicit s", "unrolled s (stored)", "unrolled s (checkpoints)", "implicit MB",
         "unrolled MB (stored)", "unrolled MB (checkpoints)", "implicit error", "unrolled error"],
        rows,
        "Errors are relative, against a central difference of accurate solves. Memory is the compiled working memory. "
        "Step sizes: 3 / L for mirror descent, 1.8 / L for projected gradient and for each block, with L the largest "
        "eigenvalue of the dual's Hessian. They and the regularisation were chosen, after trials, so that the inner "
        "solver converges within its iterations; the implicit and the unrolled route run the same solver with the same.",
    )  # fmt: skip
    drawn = {
        "B. Time of one hypergradient": figures.scaling(
            {name: ([p for p, _ in pairs], [cost for _, cost in pairs]) for name, pairs in times.items()},
            xlabel="features p", ylabel="seconds", title="One hypergradient",
        ),
        "B. Memory of one hypergradient": figures.scaling(
            memory, xlabel="inner iterations", ylabel="working memory, MB", title=f"Projected gradient, p = {sizes[0]}"
        ),
    }  # fmt: skip
    metrics["features at the bar"] = last
    return Findings(metrics, [table], drawn)


# C. Distillation.


def _cross_entropy(weights, images, onehot):
    return -jnp.mean(jnp.sum(onehot * jax.nn.log_softmax(images @ weights), axis=1))


def _distillation(settings: Settings, key, out: Run) -> Findings:
    from optimand.smooth import LBFGS, GradientDescent, Optax

    digits = _sklearn("datasets").load_digits()
    images, labels = jnp.asarray(digits.data / 16.0), jax.nn.one_hot(digits.target, 10, dtype=float)
    classes = jnp.eye(10)
    start = 0.1 * jax.random.normal(key, (10, images.shape[1]))

    def inner(weights, prototypes):
        return _cross_entropy(weights, prototypes, classes) + 0.5 * settings.distil_theta * jnp.sum(weights**2)

    def trained(prototypes, method, adjoint, steps):
        problem, guess = Minimize(inner, prototypes), jnp.zeros((images.shape[1], 10))
        if adjoint is None:
            return _last(method, problem, guess, steps)
        return solve(problem, method, guess, budget=Budget(steps=steps), adjoint=adjoint, throw=False).value

    def outer(prototypes, method, adjoint, steps):
        return _cross_entropy(trained(prototypes, method, adjoint, steps), images, labels)

    accurate = (LBFGS(tolerance=1e-7), Implicit(rtol=settings.rtol), 1000)

    @jax.jit
    def judge(prototypes):
        weights = trained(prototypes, *accurate)
        right = jnp.argmax(images @ weights, axis=1) == digits.target
        return _cross_entropy(weights, images, labels), jnp.mean(right)

    def distil(route):
        momentum = Optax(tx=optax.sgd(settings.distil_rate, momentum=0.9))

        def learn(start):
            problem = Minimize(lambda prototypes: outer(prototypes, *route))
            budget = Budget(steps=settings.distil_steps)
            found = solve(problem, momentum, start, budget=budget, record=settings.distil_steps, throw=False)
            return found.value, found.history["value"]

        (prototypes, history), seconds, _ = _timed(learn, start, repeats=1)
        return prototypes, np.asarray(history), seconds, *map(float, judge(prototypes))

    implicit = distil(accurate)
    out.progress(f"C: implicit {implicit[2]:.1f} s, loss {implicit[3]:.4f}")
    forms = (Unrolled(), None)
    rivals, rows = [], [["implicit, L-BFGS", "-", implicit[2], implicit[3]]]
    for steps in (int(part) for part in settings.distil_unrolled.split(",")):
        found = [distil((GradientDescent(), form, steps)) for form in forms]
        rival = min(found, key=lambda one: one[2])
        if found[0][2] <= found[-1][2] or rival[3] <= 1.01 * implicit[3]:
            forms = forms[:1]  # the plain scan does not stop at convergence: from here on it only gets slower
        rivals.append(rival)
        rows.append(["unrolled, gradient descent", steps, rival[2], rival[3]])
        out.progress(f"C: unrolled {steps} iterations {rival[2]:.1f} s, loss {rival[3]:.4f}")
    as_good = [rival for rival in rivals if rival[3] <= 1.01 * implicit[3]]
    best = min(as_good, key=lambda rival: rival[2]) if as_good else min(rivals, key=lambda rival: rival[3])
    side = images.shape[1] // 8
    pictures = {f"{digit}": np.asarray(implicit[0][digit]).reshape(8, side)[::-1] for digit in range(10)}
    drawn = {
        "C. The ten images learnt": figures.fields(
            {"first five": {name: pictures[name] for name in list(pictures)[:5]}}, axes=("", ""), signed=True
        ),
        "C. The other five": figures.fields(
            {"last five": {name: pictures[name] for name in list(pictures)[5:]}}, axes=("", ""), signed=True
        ),
        "C. Outer loss": figures.curves(
            {"implicit": implicit[1], "unrolled": best[1]}, xlabel="outer step", ylabel="loss on all digits",
            title="Distillation",
        ),
    }  # fmt: skip
    metrics = {
        "loss, implicit": implicit[3],
        "loss, unrolled": best[3],
        "unrolled / implicit loss": best[3] / implicit[3],
        "unrolled / implicit time": best[2] / implicit[2],
        "most unrolled iterations / implicit time": rivals[-1][2] / implicit[2],
        "accuracy of ten images": implicit[4],
    }
    note = (
        f"The outer learning rate is {settings.distil_rate:g} for both routes. The default is the largest of those tried "
        "on one seed (1, 0.5, 0.25, 0.1, 0.05, 0.02) at which the outer loss falls steadily; at the others it swings up "
        "and down by either route, and the last losses cannot be compared. Inner gradient descent searches its steps. "
        "The claim takes the fastest unrolled form whose loss is within 1% of the implicit one, which need not solve the "
        "inner problem; with more iterations it comes nearer to doing what the implicit route does."
    )
    table = Table("C. Distillation", ["route", "inner iterations", "seconds", "loss"], rows, note)
    return Findings(metrics, [table], drawn)


# D. Sensitivity of a packing.


def _discs(settings: Settings, key, out: Run) -> Findings:
    from optimand.smooth import FIRE

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
    from optimand.report import style

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


# E. Task-driven dictionary learning.


def _table_of_samples(path: str):
    if not path:
        data = _sklearn("datasets").load_breast_cancer()
        return np.asarray(data.data, float), np.asarray(data.target, float)
    if not Path(path).is_file():
        raise ArgumentError("dictionary_data", f"is no file: {path}.")
    with np.load(path, allow_pickle=False) as stored:
        if not {"X", "y"} <= set(stored.files):
            raise ArgumentError("dictionary_data", f"must hold arrays X and y, not {sorted(stored.files)}.")
        return np.asarray(stored["X"], float), np.asarray(stored["y"], float)


def _code(sample, atoms, rtol):
    """The elastic-net code of a sample; differentiable in the atoms."""
    from optimand.smooth import ProximalGradient

    fit = lambda code, atoms, sample: 0.5 * jnp.sum((code @ atoms - sample) ** 2)
    problem = Composite(fit, proximal.elastic_net, atoms, sample, prox_args=(0.1, 0.1))
    step_size = 1 / jnp.sum(atoms**2)  # the Frobenius norm bounds the curvature
    method = ProximalGradient(step_size=jax.lax.stop_gradient(step_size), tolerance=1e-6)
    adjoint = Implicit(rtol=rtol, tolerance=None)
    return solve(problem, method, jnp.zeros(len(atoms)), budget=Budget(steps=1000), adjoint=adjoint, throw=False).value


def _dictionary(settings: Settings, key, out: Run) -> Findings:
    from optimand.smooth import Adam

    decomposition, linear = _sklearn("decomposition"), _sklearn("linear_model")
    auc = _sklearn("metrics").roc_auc_score
    samples, labels = _table_of_samples(settings.dictionary_data)
    codes = jax.jit(lambda atoms, x: jax.vmap(lambda sample: _code(sample, atoms, settings.rtol))(x))

    def loss(parts, x, y):
        atoms, weights, bias = parts
        margins = (2 * y - 1) * (codes(atoms, x) @ weights + bias)
        return jnp.mean(jax.nn.softplus(-margins)) + 1e-3 * (jnp.sum(weights**2) + jnp.sum(atoms**2) / len(atoms))

    learn = jax.jit(
        lambda start, x, y: solve(
            Minimize(loss, x, y), Adam(learning_rate=0.02), start,
            budget=Budget(steps=settings.dictionary_steps), throw=False,
        ).value
    )  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in ("task-driven", "unsupervised", "L2 logistic", "L1 logistic")}
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for split in range(settings.dictionary_splits):
        order = rng.permutation(len(labels))
        train, test = order[: int(0.6 * len(order))], order[int(0.6 * len(order)) :]
        mean, deviation = samples[train].mean(0), samples[train].std(0) + 1e-12
        x, y = (samples - mean) / deviation / np.sqrt(samples.shape[1]), labels
        unsupervised = decomposition.DictionaryLearning(
            settings.dictionary_atoms, alpha=0.1, max_iter=30, random_state=split, fit_algorithm="cd",
            transform_algorithm="lasso_cd",
        ).fit(x[train])  # fmt: skip
        atoms = jnp.asarray(unsupervised.components_)
        fixed = np.asarray(codes(atoms, jnp.asarray(x)))
        first = linear.LogisticRegression(C=10.0, max_iter=2000).fit(fixed[train], y[train])
        found["unsupervised"].append(auc(y[test], first.decision_function(fixed[test])))
        start = (atoms, jnp.asarray(first.coef_[0]), jnp.asarray(first.intercept_[0]))
        atoms, weights, bias = learn(start, jnp.asarray(x[train]), jnp.asarray(y[train]))
        scores = codes(atoms, jnp.asarray(x[test])) @ weights + bias
        found["task-driven"].append(auc(y[test], np.asarray(scores)))
        for name, penalty in (("L2 logistic", 0.0), ("L1 logistic", 1.0)):
            rival = linear.LogisticRegression(C=10.0, solver="saga", l1_ratio=penalty, max_iter=5000)
            if penalty == 1.0 and "penalty" in rival.get_params():
                rival.set_params(penalty="elasticnet")
            found[name].append(auc(y[test], rival.fit(x[train], y[train]).decision_function(x[test])))
        out.progress(f"E: split {split}: " + ", ".join(f"{name} {v[-1]:.4f}" for name, v in found.items()))
    rows = [[name, 100 * np.mean(values), 100 * np.std(values)] for name, values in found.items()]
    drawn = {
        "E. Area under the curve": figures.bars(
            {name: {"AUC": 100 * np.asarray(values)} for name, values in found.items()}, ylabel="AUC, %",
            title=f"{settings.dictionary_splits} splits",
        )
    }  # fmt: skip
    for figure in drawn.values():
        low = min(min(values) for values in found.values())
        figure.axes[0].set_ylim(100 * low - 1, 100.2)
    metrics = {f"AUC, {name}": 100 * np.mean(values) for name, values in found.items()}
    note = "For information: the order of the four on the paper's gene data is not a bar here, where all are near 100."
    return Findings(metrics, [Table("E. AUC in per cent", ["method", "mean", "deviation"], rows, note)], drawn)


# P. Parity.


def _parity_case(cls: type[Method]) -> conformance.Case:
    """A method on the standard case of its problem; where that does not suit it, on one that does."""
    import optimistix

    import optimand.smooth as smooth

    theta, guess = jnp.array([0.5, -0.25, 1.0]), jnp.array([0.3, 0.2, 0.5])
    energy = lambda x, theta: jnp.sum((x - theta) ** 2) + 0.3 * x[0] * x[1]
    if cls is smooth.Optax:
        return conformance.standard_case(smooth.Optax(tx=optax.sgd(0.2)), theta=theta, guess=guess)
    if cls is smooth.Optimistix:
        solver = optimistix.BFGS(rtol=1e-9, atol=1e-9)
        return conformance.standard_case(smooth.Optimistix(solver), kind=Minimize, theta=theta, guess=guess)
    if cls is smooth.MirrorDescent:  # its set is the simplex
        on_simplex = lambda x, step_size: projections.simplex(x)
        build = lambda theta: Composite(energy, on_simplex, theta)
        return conformance.Case(smooth.MirrorDescent(step_size=0.4), build, theta, guess)
    if cls is smooth.ProjectedGradient:
        in_box = lambda x, step_size: jnp.clip(x, -0.1, 0.6)
        return conformance.Case(
            smooth.ProjectedGradient(), lambda theta: Composite(energy, in_box, theta), theta, guess
        )
    return conformance.standard_case(cls(), theta=theta, guess=guess)


def _parity(settings: Settings, key, out: Run) -> Findings:
    """Implicit gradients of every method against finite differences and against unrolling."""
    import optimand.smooth  # noqa: F401 - so that its methods are known

    known = {cls.__name__: cls for cls in _concrete(Method) if cls.__module__.startswith("optimand.")}
    names = [name.strip() for name in settings.parity_methods.split(",") if name.strip()] or sorted(known)
    if not set(names) <= set(known):
        unknown = ", ".join(sorted(set(names) - set(known)))
        raise ArgumentError("parity_methods", f"has {unknown}.", f"Methods: {', '.join(sorted(known))}.")
    rows, passed, tried = [], 0, 0
    suite = (conformance.check_implicit_gradient, conformance.check_unrolled_gradient)
    for cls in (known[name] for name in names):
        outcome = "agrees"
        tried += 1
        try:
            case = _parity_case(cls)
            for check in suite:
                check(case)
            passed += 1
        except Exception as error:
            outcome = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        out.progress(f"P: {cls.__name__}: {outcome}")
        rows.append([cls.__name__, cls.reference, outcome])
    table = Table(
        "P. Gradients of every method: implicit, finite differences, unrolled", ["method", "source", "outcome"], rows
    )
    return Findings({"methods": tried, "methods that agree": passed}, [table], {})


def _concrete(cls: type) -> list[type]:
    import inspect

    found = [] if inspect.isabstract(cls) else [cls]
    return found + [sub for child in cls.__subclasses__() for sub in _concrete(child)]


# Claims.


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars, over all seeds: the worst seed counts, except where a claim says median."""
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    found: list[Claim] = []
    if "A" in settings.parts:
        for name in ("ridge", "logistic"):
            worst = every(f"A {name} worst implicit / unrolled").max()
            found.append(Claim.at_most(f"A: {name}: largest implicit error / unrolled error", worst, 1.0))
            slopes = every(f"A {name} slope")
            far = slopes[np.argmax(np.abs(slopes - 1))]
            found.append(
                Claim.between(f"A: {name}: slope of log error of J against log error of x", far, 0.9, 1.1, "1")
            )
    if "B" in settings.parts:
        last = settings.svm_features.split(",")[-1].strip()
        for name in ("mirror descent", "projected gradient"):
            label = f"B {name}, p = {last}"
            ratio = np.median(every(f"{label}: unrolled / implicit time"))
            found.append(
                Claim.at_least(f"{label}: unrolled time / implicit time", ratio, 1.5, "faster at all sizes",
                               "the fastest unrolled form; median of seeds")
            )  # fmt: skip
        errors = [
            value for seed in seeds for key, value in seed.items() if key.startswith("B") and "relative error" in key
        ]
        found.append(Claim.at_most("B: relative error of implicit hypergradients", np.max(errors), 1e-4))
        growth = every("B memory of implicit, ten times the iterations")
        found.append(
            Claim.between("B: memory at ten times the iterations", growth[np.argmax(abs(growth - 1))], 0.9, 1.1)
        )
    if "C" in settings.parts:
        gaps = every("C unrolled / implicit loss")
        gap = gaps[np.argmax(np.abs(gaps - 1))]
        note = "the fastest unrolled form that does as well, or the best"
        found.append(Claim.between("C: loss of unrolled / loss of implicit", gap, 0.99, 1.01, "same", note))
        ratio = np.median(every("C unrolled / implicit time"))
        found.append(Claim.at_least("C: unrolled time / implicit time", ratio, 2.0, "about 4", note))
    if "D" in settings.parts:
        error = every("D median relative error").max()
        found.append(Claim.at_most("D: median relative error of implicit tangents", error, 1e-3))
        found.append(Claim.at_most("D: implicit tangents that diverge", every("D divergences").sum(), 0.0))
        beyond = every("D runs with unrolled norm beyond 10 x").mean()
        found.append(Claim.at_least("D: fraction of unrolled tangents beyond 10 x", beyond, 0.2, "blow up"))
    if "P" in settings.parts:
        share = (every("P methods that agree") / every("P methods")).min()
        found.append(Claim.at_least("P: fraction of methods whose gradients agree", share, 1.0))
    return found
