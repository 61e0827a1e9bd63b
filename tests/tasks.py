"""Tasks for worker processes, which have to be able to import them."""

import os
from pathlib import Path


def seeded(item, seed):
    return item * 10 + seed[0] + seed[1]


def fails_on_two(item, seed):
    if item == 2:
        raise ValueError("two")
    return item


def fails_once(item, seed):
    marker = Path(item) / str(seed[1])
    if not marker.exists():
        marker.touch()
        raise OSError("not yet")
    return seed[1]


def dies_once(item, seed):
    marker = Path(item) / f"died{seed[1]}"
    if seed[1] == 1 and not marker.exists():
        marker.touch()
        os._exit(1)
    return seed[1]


def one_always_dies(item, seed):
    if seed[1] == 1:
        os._exit(1)
    return seed[1]
