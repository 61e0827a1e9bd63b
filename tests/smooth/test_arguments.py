"""Every number out of its range is refused by name."""

import jax.numpy as jnp
import optimistix as optx
import pytest

import optimand as om
from optimand import smooth
from optimand.smooth.vectors import norm

TOLERANT = ("Anderson", "BFGS", "BlockCoordinateDescent", "FIRE", "FixedPointIteration", "GaussNewton", "GradientDescent", "LBFGS",
            "LevenbergMarquardt", "LinearSolve", "MirrorDescent", "Newton", "ProjectedGradient", "ProximalGradient", "Scipy")  # fmt: skip


@pytest.mark.parametrize("name", TOLERANT)
def test_a_negative_tolerance_is_refused(name):
    with pytest.raises(om.errors.ArgumentError, match="tolerance"):
        getattr(smooth, name)(tolerance=-1e-3)


@pytest.mark.parametrize(
    "name, argument, wrong",
    [
        ("Anderson", "memory", 0),
        ("Anderson", "damping", 0.0),
        ("BFGS", "line_search", "zoom"),
        ("BlockCoordinateDescent", "growth", 0.5),
        ("FIRE", "alpha", 1.0),
        ("LevenbergMarquardt", "damping", -1.0),
        ("LinearSolve", "solver", "cg"),
        ("MirrorDescent", "to_dual", None),
        ("Newton", "rtol", 2.0),
        ("Optimistix", "solver", 3),
        ("ProjectedGradient", "memory", 0),
        ("ProximalGradient", "step_size", -0.5),
        ("Scipy", "method", "Simplex"),
    ],
)
def test_an_argument_out_of_its_range_is_named(name, argument, wrong):
    values = {"from_dual": jnp.exp} if argument == "to_dual" else {argument: wrong}
    with pytest.raises(om.errors.ArgumentError, match=argument):
        getattr(smooth, name)(**values)


def test_scipy_methods_that_take_no_constraints_say_so():
    problem = om.Constrained(lambda x: jnp.sum(x**2), equalities=lambda x: x[0] - 1)
    with pytest.raises(om.errors.ArgumentError, match="constraints"):
        om.solve(problem, smooth.Scipy("BFGS"), jnp.ones(2))


def test_an_optimistix_solver_of_another_kind_is_refused():
    with pytest.raises(om.errors.PairingError, match="Root"):
        om.solve(om.Minimize(jnp.sum), smooth.Optimistix(optx.Newton(1e-6, 1e-6)), jnp.ones(2))


def test_the_norm_of_nan_is_nan():
    assert jnp.isnan(norm({"a": jnp.array([jnp.nan, 1.0])}))
