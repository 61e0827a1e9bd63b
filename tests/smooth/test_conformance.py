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
from optimand.core.checks import CHECKS, Case, standard_case
from optimand.smooth import (
    ADMM,
    BFGS,
    FIRE,
    GDA,
    GMRESL1SQP,
    LBFGS,
    LBFGSB,
    SLS,
    SQP,
    SSO,
    Adam,
    AdaptiveGMRESL1SQP,
    AdaSketchNewton,
    Anderson,
    ArmijoGD,
    AugmentedLagrangian,
    BlockCoordinateDescent,
    Broyden,
    ConstantTargetStep,
    ExtraAnchoredGradient,
    Extragradient,
    FixedPointIteration,
    GaussNewton,
    GradientDescent,
    HagerZhang,
    Halpern,
    InexactHalpern,
    InteriorPoint,
    L2SquaredKernel,
    LevenbergMarquardt,
    LinearSolve,
    LionK,
    MirrorDescent,
    MonotoneInclusion,
    Newton,
    NonlinearCG,
    Optax,
    Optimistix,
    PolyakSGD,
    PopovReflected,
    ProjectedGradient,
    ProximalGradient,
    QuadraticInteriorPoint,
    QuadraticProgram,
    Scipy,
    SketchProject,
    StrongWolfe,
    TargetProblem,
    TrustRegion,
    VRForwardReflectedBackward,
    VRHalpern,
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


def poisoned_energy(x, theta):
    return jnp.where(jnp.sum((x - jnp.array([0.3, 0.2, 0.1])) ** 2) > 1e-6, jnp.nan, energy(x, theta))


def bounded(low, high):
    """A `Constrained` with bounds only, as a case."""
    return {
        "kind": om.Constrained,
        "problem": lambda t: om.Constrained(energy, t, bounds=(low, high)),
        "poisoned": lambda t: om.Constrained(poisoned_energy, t, bounds=(low, high)),
    }


def above_zero(guess):
    """A function whose least value is zero, as Polyak's step wants it, as a case."""

    def fn(x, theta):
        return jnp.sum(jnp.array([1.0, 2.0, 3.0]) * (x - theta) ** 2)

    def poisoned(x, theta):
        return jnp.where(jnp.sum((x - jnp.asarray(guess)) ** 2) > 1e-6, jnp.nan, fn(x, theta))

    return {"problem": lambda t: om.Minimize(fn, t), "poisoned": lambda t: om.Minimize(poisoned, t)}


def at_targets(guess):
    """A regression whose loss is asked at the outputs of a linear model, as a case."""
    rows = jnp.array([[2.0, 0.5, 0.0], [0.5, 2.0, 0.5], [0.0, 0.5, 2.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    def model(x, example):
        return example[0] @ x

    def loss(target, example):
        return 0.5 * (target - example[1]) ** 2 + 0.1 * jnp.log(jnp.cosh(target))

    def poisoned(target, example):
        far = jnp.abs(target - example[0] @ jnp.asarray(guess)) > 1e-4
        return jnp.where(far, jnp.nan, loss(target, example))

    data = lambda t: (rows, jnp.concatenate([t, t]))
    return {
        "kind": om.Minimize,
        "problem": lambda t: TargetProblem(model, loss, data(t)),
        "poisoned": lambda t: TargetProblem(model, poisoned, data(t)),
        "guess": jnp.asarray(guess),
    }


def sum_is(x, theta):
    return jnp.sum(x, keepdims=True) - 0.2


def with_equalities(key=None):
    """A `Constrained` problem with equalities only, as a case."""
    return {
        "problem": lambda t: om.Constrained(energy, t, equalities=sum_is),
        "poisoned": lambda t: om.Constrained(poisoned_energy, t, equalities=sum_is),
        "key": key,
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
    "lion-k, squared norm": lambda: (LionK(L2SquaredKernel(), 0.3, 0.0, b2=0.8, tolerance=1e-11), {"steps": 200}),
}
DOUBLE = {
    "gradient descent, searching": lambda: (GradientDescent(), {}),
    "bfgs": lambda: (BFGS(), {}),
    "lbfgs": lambda: (LBFGS(memory=4), {}),
    "lbfgs, strong wolfe": lambda: (LBFGS(memory=4, line_search=StrongWolfe()), {}),
    "gradient descent, hager-zhang": lambda: (GradientDescent(line_search=HagerZhang()), {}),
    "nonlinear cg": lambda: (NonlinearCG(), {}),
    "nonlinear cg, polak-ribiere": lambda: (NonlinearCG("polak-ribiere"), {}),
    "lbfgsb": lambda: (LBFGSB(memory=4), {"kind": om.Minimize}),
    "lbfgsb, bounds": lambda: (LBFGSB(memory=4), bounded(-0.05, 0.9)),
    "trust region": lambda: (TrustRegion(), {"kind": om.Minimize}),
    "trust region, bounds": lambda: (TrustRegion(), bounded(-0.05, 0.9)),
    "trust region, bounds, by products": lambda: (
        TrustRegion(dense_below=0), bounded(-0.05, 0.9)
    ),
    "broyden, root": lambda: (Broyden(), {}),
    "broyden, fixed point": lambda: (Broyden(), {"kind": om.FixedPoint}),
    "anderson": lambda: (Anderson(memory=3), {}),
    "levenberg-marquardt": lambda: (LevenbergMarquardt(), {}),
    "gauss-newton": lambda: (GaussNewton(), {}),
    "newton, root": lambda: (Newton(), {}),
    "newton, minimum": lambda: (Newton(), {"kind": om.Minimize}),
    "proximal gradient": lambda: (ProximalGradient(), {}),
    "projected gradient": lambda: (ProjectedGradient(), constrained_to(BOX, [0.15, 0.2, 0.1])),
    "mirror descent": lambda: (MirrorDescent(0.4), constrained_to(SIMPLEX, [0.3, 0.3, 0.4])),
    "mirror descent, searching": lambda: (MirrorDescent(None), constrained_to(SIMPLEX, [0.3, 0.3, 0.4])),
    "interior point": lambda: (InteriorPoint(), {}),
    "block coordinate descent": lambda: (BlockCoordinateDescent(), {}),
    "optimistix, minimiser": lambda: (Optimistix(optx.BFGS(1e-8, 1e-8)), {"kind": om.Minimize}),
    "optimistix, root finder": lambda: (Optimistix(optx.Newton(1e-8, 1e-8)), {"kind": om.Root}),
    # a sign has no derivative to unroll: that it solves and its implicit gradient are tested in test_lion.py
    "lion-k, bounds": lambda: (LionK.for_bounds(0.6, learning_rate=0.01), {**bounded(-0.6, 0.6), "converges": False}),
    "augmented lagrangian": lambda: (AugmentedLagrangian(), {}),
    "adasketch-newton": lambda: (AdaSketchNewton(tolerance=1e-8), with_equalities(jax.random.key(7))),
    "gmres sqp": lambda: (GMRESL1SQP(tolerance=1e-8), with_equalities()),
    "adaptive gmres sqp": lambda: (AdaptiveGMRESL1SQP(tolerance=1e-8), with_equalities()),
    "sketch and project": lambda: (SketchProject(), {}),
    "scipy": lambda: (Scipy("BFGS"), {}),
    "sls": lambda: (SLS(), {}),
    "armijo gd": lambda: (ArmijoGD(), {}),
    "polyak sgd": lambda: (PolyakSGD(), above_zero([0.3, 0.2, 0.1])),
    "sso": lambda: (SSO(ConstantTargetStep(0.9), inner_steps=4), at_targets([0.3, 0.2, 0.1])),
    "admm": lambda: (ADMM(), {"problem": quadratic, "poisoned": None, "kind": om.Constrained}),
    "quadratic interior point": lambda: (
        QuadraticInteriorPoint(), {"problem": quadratic, "poisoned": None, "kind": om.Constrained}
    ),
    "sqp": lambda: (SQP(), {}),
    "scipy, constrained": lambda: (Scipy("SLSQP", tolerance=1e-10), {"kind": om.Constrained}),
}


QUICKLY = {
    "optax", "adam", "fixed point iteration", "fire", "linear solve", "gradient descent, searching",
    "bfgs", "lbfgs", "anderson", "levenberg-marquardt", "newton, root", "newton, minimum", "proximal gradient",
    "projected gradient", "mirror descent", "block coordinate descent", "optimistix, minimiser",
    "scipy",
}  # fmt: skip


def pairs(methods):
    """Every method in every check. Those of one method go to one worker: they share what is compiled.

    Only methods named in `QUICKLY` are tried by default: all of them would take longer than a change should wait.
    """
    return [
        pytest.param(
            name, check, id=f"{name}-{check.__name__}",
            marks=[
                pytest.mark.xdist_group(f"conformance {name}"),
                *([] if name in QUICKLY else [pytest.mark.thorough]),
            ],
        )
        for name in methods
        for check in CHECKS
    ]  # fmt: skip


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


# A strongly monotone, cocoercive inclusion that is no minimisation. Iterations with an anchor come near as 1/k even here:
# they take a fixed number of steps, so that finite differences see the same steps, and are held to what that many reach.

TURNING = jnp.array([[0.8, 0.3, 0.0], [-0.3, 0.6, 0.2], [0.0, -0.2, 0.7]])


def component(u, i, theta):
    tilt = jnp.where(i % 2 == 0, 0.2, -0.2)
    return TURNING.astype(u.dtype) @ u + tilt * jnp.sin(u) - theta


def poisoned_component(u, i, theta):
    far = jnp.sum((u - jnp.array([0.3, 0.2, 0.1])) ** 2) > 1e-6
    return jnp.where(far, jnp.nan, component(u, i, theta))


def damp(v, step_size):
    return v / (1 + 0.1 * step_size)


INCLUSIONS = {
    "gda": lambda: (GDA(1.2), {"steps": 150}),
    "extragradient": lambda: (Extragradient(1.2), {"steps": 150}),
    "popov": lambda: (PopovReflected(1.2), {"steps": 150}),
    "extra anchored gradient": lambda: (ExtraAnchoredGradient(1.2, tolerance=0.0), {"steps": 1000, "tolerance": 5e-3}),
    "halpern": lambda: (Halpern(1.2, tolerance=0.0), {"steps": 1000, "tolerance": 5e-3}),
    "halpern with variance reduction": lambda: (
        VRHalpern(1.2, step_scale=4.0, batch=2, adaptive=True, tolerance=0.0), {"steps": 1000, "tolerance": 5e-3}
    ),
    "forward-reflected-backward with variance reduction": lambda: (
        VRForwardReflectedBackward(1.2, tolerance=1e-9), {"steps": 600}
    ),
    "halpern on inexact resolvents": lambda: (
        InexactHalpern(1.2, step_scale=4.0, tolerance=0.0), {"steps": 1500, "tolerance": 5e-3}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name, check", pairs(INCLUSIONS))
def test_inclusion_methods_conform(name, check):
    with jax.enable_x64(True):
        method, changes = INCLUSIONS[name]()
        build = lambda fn: lambda theta: MonotoneInclusion(fn, 4, damp, theta)
        key = jax.random.key(7) if method.stochastic else None
        theta, guess = jnp.array([0.5, -0.25, 1.0]), jnp.array([0.3, 0.2, 0.1])
        check(Case(method, build(component), theta, guess, build(poisoned_component), key, **changes))
