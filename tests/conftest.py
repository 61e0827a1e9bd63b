"""Fixtures for all tests, and how they are compiled."""

import importlib.metadata
import os

import jaxtyping
import pytest

# Tests compile far longer than they compute, and a fourth of that does where code is not optimised. Another version may not
# know these flags, and would end the process. `XLA_FLAGS= pytest ...` tests what users run.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )


@pytest.fixture
def as_a_user():
    """Switch the run-time checks of annotations off, as they are for users: then our own errors have to be there."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
