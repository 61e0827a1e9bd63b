"""Every method of the room, put through the conformance suite of the core.

Methods that decide by comparing (line searches, trust in a model) run in double precision: in single precision the
eager and the jitted driver, which round differently, may decide differently near the end.
"""

import jax
import jax.numpy as jnp
import pytest

from optimand.core.checks import CHECKS, standard_case
from optimand.smooth import LBFGS, GradientDescent

SINGLE = {
    "gradient descent, fixed step": (GradientDescent(0.3, tolerance=1e-5), {}),
}
DOUBLE = {
    "gradient descent, searching": (GradientDescent(), {}),
    "lbfgs": (LBFGS(memory=4), {}),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SINGLE)
def test_conforms(name, check):
    method, changes = SINGLE[name]
    check(standard_case(method, **{"steps": 100, **changes}))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", DOUBLE)
def test_conforms_in_double_precision(name, check):
    method, changes = DOUBLE[name]
    with jax.enable_x64(True):
        data = {"theta": jnp.array([0.5, -0.25, 1.0]), "guess": jnp.array([0.3, 0.2, 0.1])}
        check(standard_case(method, **{"steps": 100, **data, **changes}))
