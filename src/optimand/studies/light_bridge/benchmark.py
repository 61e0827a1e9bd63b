"""Distributions whose plan is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import figures
from optimand.transport import EntropicBridge, MixtureBenchmark, bw_uvp, cbw_uvp, gaussian_plan
from optimand.transport.bures import moments

from ..base import Findings, Run, Table
from . import Settings
from .measuring import discrete_plan, fit

RIVALS = ("discrete plan", "Gaussian bridge", "independent")


def run(settings: Settings, key: Any, out: Run) -> Findings:
    metrics: dict[str, float] = {}
    rows, curves = [], {}
    for number, d in enumerate(settings.dimensions):
        for place, (epsilon, rate) in enumerate(zip(settings.epsilons, settings.learning_rates, strict=True)):
            case = f"d = {d}, epsilon {epsilon:g}"
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, number), place), 8)
            truth = MixtureBenchmark.random(keys[0], d, epsilon)
            x0, x1 = truth.sample_start(keys[1], settings.samples), truth.sample_end(keys[2], settings.samples)
            found = fit(EntropicBridge(x0, x1, epsilon), settings.components, rate, settings.steps, settings, keys[3], case, out)
            test = truth.sample_start(keys[4], settings.n_test)
            exact, variance = truth.conditional_moments(test), jnp.trace(moments(x1)[1])
            score = lambda plan, exact=exact, variance=variance: float(cbw_uvp(plan, exact, variance))
            fresh = truth.sample_start(keys[5], settings.pushed), truth.sample_end(keys[6], settings.pushed)
            discrete = discrete_plan(x0[: settings.plan_points], x1[: settings.plan_points], epsilon, settings.sweeps)
            matrix, vector, covariance = gaussian_plan(*moments(x0), *moments(x1), epsilon)
            mean, spread = moments(x1)
            spread_out = lambda one, test=test: jnp.broadcast_to(one, (len(test), *one.shape))
            rivals = {
                "discrete plan": score(discrete.conditional_moments(test)),
                "Gaussian bridge": score((test @ matrix.T + vector, spread_out(covariance))),
                "independent": score((spread_out(mean), spread_out(spread))),
            }
            measured = {
                "cBW2-UVP": score(found.bridge.conditional_moments(test)),
                "BW2-UVP of the end": float(bw_uvp(found.bridge.sample(fresh[0], keys[7]), fresh[1])),
                "gap of simulated paths": _gap(settings, found.bridge, truth, test, variance, keys[7]),
                "effective components": float(found.bridge.effective_components(test)),
                "seconds of the fit": found.seconds,
                "seconds of compiling": found.compile_seconds,
                "marginal error of the discrete plan": discrete.error,
            }
            metrics |= {f"{case}: {name}": value for name, value in measured.items()}
            metrics |= {f"{case}: {name}: cBW2-UVP": value for name, value in rivals.items()}
            rows.append([d, epsilon, *measured.values(), *rivals.values()])
            curves[case] = _descent(found.history["value"])
    columns = ["d", "epsilon", *measured, *[f"cBW2-UVP: {name}" for name in RIVALS]]
    note = f"{settings.components} components, {settings.samples} samples of each end; the discrete plan is that of {settings.plan_points}. UVP in percent."
    drawn = figures.curves(curves, xlabel="step", ylabel="part of the loss that is left", log="x", title="The fits of the benchmark, means over 50 steps")
    return Findings(metrics, [Table("Plans that are known", columns, rows, note)], {"Losses of the fits": drawn})


def _descent(losses: Any, width: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the running mean of the losses of batches, from 1 at the first to 0 over the last tenth."""
    losses = np.asarray(losses, float)
    width = min(width, len(losses))
    means = np.convolve(losses, np.ones(width) / width, mode="valid")
    end = losses[-max(1, len(losses) // 10) :].mean()
    return np.arange(len(means)) + width, (means - end) / (means[0] - end)


def _gap(settings: Settings, bridge: Any, truth: Any, test: Any, variance: Any, key: Any) -> float:
    """|cBW2-UVP of the ends of simulated paths - that of as many draws of the exact sampler|, from moments of samples both."""
    starts = test[: settings.path_starts]
    many = jnp.repeat(starts[:, None], settings.path_count, 1)
    exact = truth.conditional_moments(starts)
    for_paths, for_draws = jax.random.split(key)

    @jax.jit
    def ends(bridge, many, key):
        return bridge.paths(many, key, settings.path_steps)[1][-1]

    simulated = jax.lax.map(lambda one: ends(bridge, *one), (many, jax.random.split(for_paths, len(starts))))
    scores = [cbw_uvp(jax.vmap(moments)(points), exact, variance) for points in (simulated, bridge.sample(many, for_draws))]
    return float(jnp.abs(scores[0] - scores[1]))
