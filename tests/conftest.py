"""Fixtures for all tests."""

import jaxtyping
import pytest


@pytest.fixture
def as_a_user():
    """Switch the run-time checks of annotations off, as they are for users: then our own errors have to be there."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
