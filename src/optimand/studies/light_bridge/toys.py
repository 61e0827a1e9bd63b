"""From a Gaussian to eight Gaussians and to a spiral, in the plane."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimand.report import style
from optimand.transport import EntropicBridge, energy_distance

from ..base import Findings, Run, Table
from . import Settings
from .measuring import fit


def eight(key: Any, count: int) -> Any:
    """Eight narrow Gaussians on a circle of radius two."""
    for_place, for_noise = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.randint(for_place, (count,), 0, 8) / 8
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.1 * jax.random.normal(for_noise, (count, 2))


def spiral(key: Any, count: int) -> Any:
    """The Swiss roll, seen from the side, with a little noise."""
    for_place, for_noise = jax.random.split(key)
    angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(for_place, (count,)))
    return (jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], -1) + 0.8 * jax.random.normal(for_noise, (count, 2))) / 7.5


def run(settings: Settings, key: Any, out: Run) -> Findings:
    metrics: dict[str, float] = {}
    rows, shown = [], {}
    for number, (name, target) in enumerate({"eight Gaussians": eight, "spiral": spiral}.items()):
        keys = jax.random.split(jax.random.fold_in(key, number), 6)
        x0, x1 = jax.random.normal(keys[0], (10_000, 2)), target(keys[1], 10_000)
        fresh, wanted = jax.random.normal(keys[2], (3000, 2)), target(keys[3], 3000)
        for epsilon in settings.toy_epsilons:
            case = f"{name}, epsilon {epsilon:g}"
            found = fit(EntropicBridge(x0, x1, epsilon), settings.toy_components, settings.toy_rate, settings.toy_steps, settings, keys[4], case, out)
            ends = found.bridge.sample(fresh, keys[5])
            metrics[f"{case}: energy distance of the end"] = distance = float(energy_distance(ends, wanted))
            metrics[f"{case}: effective components"] = effective = float(found.bridge.effective_components(fresh))
            rows.append([name, epsilon, distance, effective, found.seconds])
            shown[case] = tuple(np.asarray(part) for part in (wanted, ends, found.bridge.paths(fresh[:12], keys[5])[1]))
    columns = ["end", "epsilon", "energy distance of the end", "effective components", "seconds of the fit"]
    table = Table("From a Gaussian", columns, rows, f"{settings.toy_components} components, 3000 fresh points")
    return Findings(metrics, [table], {"Ends and paths": _figure(shown)})


def _figure(shown: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Any:
    with style.house_style():
        import matplotlib.pyplot as plt

        columns = max(1, len(shown) // 2)
        figure, places = plt.subplots(2, columns, figsize=(3.2 * columns, 6.4), squeeze=False, sharex=True, sharey=True)
        for place, (case, (wanted, ends, paths)) in zip(places.flat, shown.items(), strict=False):
            place.plot(*wanted[:1000].T, ".", markersize=2, color=style.COLOURS[0], alpha=0.4, label="samples")
            place.plot(*ends[:1000].T, ".", markersize=2, color=style.COLOURS[1], alpha=0.4, label="ends of the bridge")
            for number in range(paths.shape[1]):
                place.plot(*paths[:, number].T, color="black", linewidth=0.6, alpha=0.7)
            place.set_title(case)
            place.set_aspect("equal")
        places.flat[0].legend(loc="lower left")
    return figure
