"""Every method of the room, put through the conformance suite of the core.

Methods that decide by comparing (line searches, trust in a model) run in double precision: in single precision the
eager and the jitted driver, which round differently, may decide differently near the end.
"""

import jax
import jax.numpy as jnp
import optax
import optimistix as optx
import pytest

import optimand as om
from optimand.core.checks import CHECKS, standard_case
from optimand.smooth import (
    ADMM,
    FIRE,
    LBFGS,
    SQP,
    Adam,
    Anderson,
    BlockCoordinateDescent,
    FixedPointIteration,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    LinearSolve,
    MirrorDescent,
    Newton,
    Optax,
    Optimistix,
    ProjectedGradient,
    ProximalGradient,
    QuadraticInteriorPoint,
    QuadraticProgram,
    Scipy,
    projections,
)


def energy(x, theta):
    return jnp.sum((x - theta) ** 2) + 0.3 * x[0] * x[1]


def constrained_to(project, guess):
    """A `Composite` on a set, as a case."""

    def poisoned(x, theta):
        return jnp.where(jnp.sum((x - jnp.asarray(guess)) ** 2) > 1e-6, jnp.nan, energy(x, theta))

    return {
        "problem": lambda t: om.Composite(energy, project, t),
        "poisoned": lambda t: om.Composite(poisoned, project, t),
        "guess": jnp.array(guess),
    }


SIMPLEX = lambda x, step_size: projections.simplex(x)
BOX = lambda x, step_size: jnp.clip(x, -0.1, 0.6)


def quadratic(theta):
    """One equality, one active and one inactive inequality, and bounds of which one is active for the standard theta."""
    curvature = jnp.array([[2.0, 0.5, 0.0], [0.5, 2.0, 0.5], [0.0, 0.5, 2.0]], theta.dtype)
    return QuadraticProgram(
        curvature, -theta, jnp.ones((1, 3)), jnp.array([0.2]), jnp.eye(3)[:2], jnp.array([0.1, 5.0]), bounds=(-1.0, 0.3)
    )


SINGLE = {
    "optax": lambda: (Optax(optax.sgd(0.2)), {"steps": 150}),
    "adam": lambda: (Adam(0.1, clip=1.0), {"steps": 150}),
    "gradient descent, fixed step": lambda: (GradientDescent(0.3, tolerance=1e-5), {}),
    "fixed point iteration": lambda: (FixedPointIteration(tolerance=1e-5), {}),
    "fire": lambda: (FIRE(tolerance=1e-4), {"steps": 300}),
    "linear solve": lambda: (LinearSolve(), {}),
}
DOUBLE = {
    "gradient descent, searching": lambda: (GradientDescent(), {}),
    "lbfgs": lambda: (LBFGS(memory=4), {}),
    "anderson": lambda: (Anderson(memory=3), {}),
    "levenberg-marquardt": lambda: (LevenbergMarquardt(), {}),
    "gauss-newton": lambda: (GaussNewton(), {}),
    "newton, root": lambda: (Newton(), {}),
    "newton, minimum": lambda: (Newton(), {"kind": om.Minimize}),
    "proximal gradient": lambda: (ProximalGradient(), {}),
    "projected gradient": lambda: (ProjectedGradient(), constrained_to(BOX, [0.15, 0.2, 0.1])),
    "mirror descent": lambda: (MirrorDescent(0.4), constrained_to(SIMPLEX, [0.3, 0.3, 0.4])),
    "block coordinate descent": lambda: (BlockCoordinateDescent(), {}),
    "optimistix, minimiser": lambda: (Optimistix(optx.BFGS(1e-8, 1e-8)), {"kind": om.Minimize}),
    "optimistix, root finder": lambda: (Optimistix(optx.Newton(1e-8, 1e-8)), {"kind": om.Root}),
    "scipy": lambda: (Scipy("BFGS"), {}),
    "admm": lambda: (ADMM(), {"problem": quadratic, "poisoned": None, "kind": om.Constrained}),
    "quadratic interior point": lambda: (
        QuadraticInteriorPoint(), {"problem": quadratic, "poisoned": None, "kind": om.Constrained}
    ),
    "sqp": lambda: (SQP(), {}),
    "scipy, constrained": lambda: (Scipy("SLSQP", tolerance=1e-10), {"kind": om.Constrained}),
}


def pairs(methods):
    """Every method in every check. Those of one method go to one worker: they share what is compiled."""
    return [
        pytest.param(name, check, id=f"{name}-{check.__name__}", marks=pytest.mark.xdist_group(f"conformance {name}"))
        for name in methods
        for check in CHECKS
    ]


@pytest.mark.parametrize("name, check", pairs(SINGLE))
def test_conforms(name, check):
    method, changes = SINGLE[name]()
    check(standard_case(method, **{"steps": 100, **changes}))


@pytest.mark.parametrize("name, check", pairs(DOUBLE))
def test_conforms_in_double_precision(name, check):
    with jax.enable_x64(True):
        method, changes = DOUBLE[name]()
        data = {"theta": jnp.array([0.5, -0.25, 1.0]), "guess": jnp.array([0.3, 0.2, 0.1])}
        check(standard_case(method, **{"steps": 100, **data, **changes}))
