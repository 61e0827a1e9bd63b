"""Fixtures for all tests, and how they are compiled."""

import gc
import importlib.metadata
import os

import equinox as eqx
import jax
import jaxtyping
import psutil
import pytest

# Tests compile far longer than they compute, and a fourth of that does where code is not optimised. Another version may not
# know these flags, and would end the process. `XLA_FLAGS= pytest ...` tests what users run.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )


gc.set_threshold(10_000, 20, 10)  # tracing makes many objects and little garbage
GROWTH = 3 * 2**29  # bytes by which a process may grow before it lets go of what it has compiled
grown_from = [psutil.Process().memory_info().rss]


def pytest_runtest_teardown(item, nextitem):
    """Thousands of tests compile more than a machine has room for, and those that come late would wait for memory."""
    memory = psutil.Process().memory_info
    if memory().rss > grown_from[0] + GROWTH and (nextitem is None or nextitem.path != item.path):
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()
        grown_from[0] = memory().rss


@pytest.fixture
def as_a_user():
    """Switch the run-time checks of annotations off, as they are for users: then our own errors have to be there."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
