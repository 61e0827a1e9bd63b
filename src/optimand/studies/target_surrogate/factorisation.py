r"""B. A linear network of two layers on an ill-conditioned map: the loss against oracle calls.

\(Y = A X\) with \(X \in \mathbb{R}^6\) and a matrix \(A \in \mathbb{R}^{10 \times 6}\) whose rows are scaled from 1 to the condition; the
network \(W_2 W_1 x\) can express it. Its loss is not convex in the weights, and quadratic in the targets: with \(\eta = 1/L\) the
surrogate is the loss itself, of which m steps are taken for each call.

The start is that of the authors' programs, weights uniform within one over the root of the inputs of a layer. With weights of three
times that variance ("normal") every method spends most of its calls near a saddle, and the gain of m is small.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import figures
from optimand.smooth import TargetProblem
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .measuring import Rival, adam, loss_on_all, rows, sgd, sls, sso_rival, sweep

NOTE = """\
Squared error, summed over the outputs, mean over {samples} samples. "Best" is the best of a grid, chosen for this seed by the loss after
the calls of the column: learning rates {rates}; longest steps {longest} for SLS. SSO is not tuned: its step size in target space is 1/L = {eta:g}."""


def network(weights, example):
    first, second = weights
    return second @ (first @ example[0])


def loss(target, example):
    return jnp.sum((target - example[1]) ** 2)


def problem_of(settings: Settings, key):
    """The data, and the weights to begin with."""
    of_matrix, of_inputs, of_first, of_second = jax.random.split(key, 4)
    scales = jnp.linspace(1.0, settings.condition, 10)
    matrix = scales[:, None] * jax.random.uniform(of_matrix, (10, 6))
    inputs = jax.random.normal(of_inputs, (settings.samples, 6))
    hidden = settings.hidden_linear
    draw = jax.random.normal if settings.start == "normal" else lambda key, shape: jax.random.uniform(key, shape, minval=-1.0)
    first = draw(of_first, (hidden, 6)) / jnp.sqrt(6.0)
    second = draw(of_second, (10, hidden)) / jnp.sqrt(float(hidden))
    return (inputs, inputs @ matrix.T), (first, second)


def run(settings: Settings, key, out: Run) -> Findings:
    examples, weights = problem_of(settings, jax.random.fold_in(key, 0))
    metrics: dict[str, float] = {}
    lines, drawn = [], {}
    columns = [at for at in (10, 50, 100) if at <= settings.calls]
    for size in settings.factorisation_batches:
        batch = min(size, settings.samples) if size else settings.samples
        label = "full" if batch == settings.samples else f"batch {batch}"
        out.progress(f"B: {label}")
        problem = TargetProblem(network, loss, examples, batch_size=batch)
        curves = {}
        rivals = [
            (Rival("GD", sgd), rows(settings.factorisation_rates, [0.0])),
            *([(Rival("Adam", adam), rows(settings.factorisation_rates, [0.0]))] if "Adam" in settings.rivals else []),
            *([(Rival("SLS", sls), rows(settings.longest))] if "SLS" in settings.rivals else []),
            *((sso_rival(settings, m, settings.calls), rows([settings.factorisation_eta], [0.0])) for m in settings.factorisation_inner_steps),
        ]  # fmt: skip
        for rival, grid in rivals:
            found = sweep(problem, rival, grid, weights, key, calls=settings.calls, measure=loss_on_all)
            tuned = not rival.name.startswith("SSO")
            short = rival.name if tuned else f"SSO {dict(rival.fixed)['inner_steps']}"
            if not tuned:
                metrics[f"{label}, {short}, calls per step"] = found.calls_per_step(settings.calls)
            best = {at: found.best(at) for at in columns}
            metrics |= {f"{label}, {at} calls, {short}": found.figures[best[at], at] for at in columns}
            lines.append([label, f"{rival.name}, best" if tuned else rival.name, *(found.figures[best[at], at] for at in columns)])
            curves[rival.name] = np.maximum(found.figures[found.best()], 1e-20)
        at = np.arange(settings.calls + 1)
        drawn[f"B. {label}"] = figures.curves(
            {name: (at, curve) for name, curve in curves.items()}, xlabel="oracle calls", ylabel="loss", title=label
        )
    note = NOTE.format(
        samples=settings.samples, eta=settings.factorisation_eta,
        rates=", ".join(f"{rate:g}" for rate in settings.factorisation_rates),
        longest=", ".join(f"{step:g}" for step in settings.longest),
    )  # fmt: skip
    return Findings(metrics, [Table("B. Factorisation", ["batch", "method", *(f"{at} calls" for at in columns)], lines, note)], drawn)
