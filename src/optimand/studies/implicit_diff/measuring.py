"""What several of the experiments measure with: data, time, memory, and methods run step by step."""

import time
from typing import Any

import jax

from optimand.core.errors import MissingExtra
from optimand.core.method import Method


def sklearn(name: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"sklearn.{name}")
    except ImportError:
        raise MissingExtra("data", "scikit-learn") from None


def timed(fn, *args, repeats: int = 2):
    """The output of jit(fn), the least of a few run times in seconds, and its working memory in bytes."""
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > 1.0:
            break
    return value, min(seconds), memory_of(compiled)


def memory_of(compiled) -> int:
    """The working memory of a compiled function in bytes."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


def iterates_of(method: Method, problem: Any, guess: Any, steps: int) -> Any:
    """All answers of a method on the way: `solve` keeps the last only."""

    def step(state, _):
        state = method.step(problem, state, key=None)
        return state, method.answer(problem, state)

    return jax.lax.scan(step, method.init(problem, guess, key=None), length=steps)[1]


def last_of(method: Method, problem: Any, guess: Any, steps: int) -> Any:
    """The answer after so many steps by a plain scan, of which reverse mode stores everything: unrolling at its fastest."""
    step = lambda state, _: (method.step(problem, state, key=None), None)
    return method.answer(problem, jax.lax.scan(step, method.init(problem, guess, key=None), length=steps)[0])
