"""Times of compiled functions that are compared: interleaved, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable

import jax

__all__ = ["interleaved", "median"]


def interleaved(calls: dict[str, Callable], *, seconds: float = 2.0, least: int = 15) -> dict[str, list[float]]:
    """Seconds of each call in rounds in which every one has its turn, for about `seconds` altogether.

    Every call is made once before, which compiles it. The order turns from round to round: what runs after what matters.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    clock = time.perf_counter()
    for call in calls.values():
        jax.block_until_ready(call())
    rounds = max(least, min(500, int(seconds / max(time.perf_counter() - clock, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            clock = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - clock)
    return times


def median(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in times.items()}
