"""B. The regularisation of a multiclass support vector machine: one hypergradient, implicit against unrolled."""

import jax
import jax.numpy as jnp

from optimand import Budget, Composite, Implicit, Unrolled, solve
from optimand.core import optimality
from optimand.report import figures
from optimand.smooth import BlockCoordinateDescent, MirrorDescent, ProximalGradient, projections
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import last_of, memory_of, timed


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


def run(settings: Settings, key, out: Run) -> Findings:

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
                    last_of(method, problem, start, steps)
                    if adjoint is None
                    else solve(problem, method, start, budget=Budget(steps=steps), adjoint=adjoint, throw=False).value
                )
                return _validation_loss(x, log_theta, data)

            def hypergradient(adjoint, steps, loss=loss, data=data):
                return timed(jax.grad(lambda t, d: loss(t, d, adjoint, steps)), log_theta, data)

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
                    return memory_of(fn.lower(log_theta, data).compile())

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
