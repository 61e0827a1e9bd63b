"""P. Parity: implicit gradients of every method agree with finite differences and with unrolling."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optimand import Composite, Constrained, Minimize, smooth
from optimand import checks as conformance
from optimand.core.errors import ArgumentError
from optimand.core.method import Method
from optimand.smooth import projections
from optimand.studies.base import Findings, Run, Table

from . import Settings


def _parity_case(cls: type[Method]) -> conformance.Case:
    """A method on the standard case of its problem; where that does not suit it, on one that does."""
    import optimistix

    theta, guess = jnp.array([0.5, -0.25, 1.0]), jnp.array([0.3, 0.2, 0.5])
    energy = lambda x, theta: jnp.sum((x - theta) ** 2) + 0.3 * x[0] * x[1]
    if cls is smooth.Optax:
        return conformance.standard_case(smooth.Optax(tx=optax.sgd(0.2)), theta=theta, guess=guess)
    if cls is smooth.Optimistix:
        solver = optimistix.BFGS(rtol=1e-9, atol=1e-9)
        return conformance.standard_case(smooth.Optimistix(solver), kind=Minimize, theta=theta, guess=guess)
    if cls is smooth.MirrorDescent:  # its set is the simplex
        on_simplex = lambda x, step_size: projections.simplex(x)
        build = lambda theta: Composite(energy, on_simplex, theta)
        return conformance.Case(smooth.MirrorDescent(step_size=0.4), build, theta, guess)
    if cls is smooth.ProjectedGradient:
        in_box = lambda x, step_size: jnp.clip(x, -0.1, 0.6)
        return conformance.Case(
            smooth.ProjectedGradient(), lambda theta: Composite(energy, in_box, theta), theta, guess
        )
    if cls.problem is smooth.MonotoneInclusion:  # those with an anchor come near as 1/k
        turning = jnp.array([[0.8, 0.3, 0.0], [-0.3, 0.6, 0.2], [0.0, -0.2, 0.7]])
        tilted = lambda u, i, theta: turning @ u + jnp.where(i % 2 == 0, 0.2, -0.2) * jnp.sin(u) - theta
        damped = lambda v, step_size: v / (1 + 0.1 * step_size)
        build = lambda theta: smooth.MonotoneInclusion(tilted, 4, damped, theta)
        options = {"steps": 1500, "tolerance": 5e-3, "key": jax.random.key(7) if cls.stochastic else None}
        fields: dict[str, Any] = {"lipschitz": 1.2, "step_scale": 4.0 if cls.stochastic else 1.0, "tolerance": 0.0}
        return conformance.Case(cls(**fields), build, theta, guess, **options)
    if cls in (smooth.AdaSketchNewton, smooth.GMRESL1SQP, smooth.AdaptiveGMRESL1SQP):  # for equalities alone
        sum_is = lambda x, theta: jnp.sum(x, keepdims=True) - 0.2
        build = lambda theta: Constrained(energy, theta, equalities=sum_is)
        fields = {"tolerance": 1e-6}
        return conformance.Case(cls(**fields), build, theta, guess, key=jax.random.key(7))
    if cls is smooth.LionK:  # with the kernel that leaves a smooth step
        method = smooth.LionK(smooth.L2SquaredKernel(), 0.3, 0.0, b2=0.8, tolerance=1e-11)
        return conformance.standard_case(method, theta=theta, guess=guess)
    if cls is smooth.PolyakSGD:  # its step wants a least value of zero
        weighted = lambda x, theta: jnp.sum(jnp.array([1.0, 2.0, 3.0]) * (x - theta) ** 2)
        return conformance.Case(cls(), lambda theta: Minimize(weighted, theta), theta, guess)
    if cls is smooth.SSO:
        rows = jnp.concatenate([2 * jnp.eye(3), jnp.ones((3, 3)) - jnp.eye(3)])
        loss = lambda target, example: 0.5 * (target - example[1]) ** 2 + 0.1 * jnp.log(jnp.cosh(target))
        model = lambda x, example: example[0] @ x
        build = lambda theta: smooth.TargetProblem(model, loss, (rows, jnp.concatenate([theta, theta])))
        return conformance.Case(cls(smooth.ConstantTargetStep(0.9), inner_steps=4), build, theta, guess)
    if cls.problem is smooth.QuadraticProgram:
        matrix = jnp.array([[2.0, 0.3, 0.0], [0.3, 2.0, 0.5], [0.0, 0.5, 2.0]])
        build = lambda theta: smooth.QuadraticProgram(matrix, -theta, bounds=(-0.05, 0.9))
        return conformance.Case(cls(), build, theta, guess)
    return conformance.standard_case(cls(), theta=theta, guess=guess)


def run(settings: Settings, key, out: Run) -> Findings:
    """Implicit gradients of every method against finite differences and against unrolling."""
    known = {cls.__name__: cls for cls in _concrete(Method) if cls.__module__.startswith("optimand.")}
    names = [name.strip() for name in settings.parity_methods.split(",") if name.strip()] or sorted(known)
    if not set(names) <= set(known):
        unknown = ", ".join(sorted(set(names) - set(known)))
        raise ArgumentError("parity_methods", f"has {unknown}.", f"Methods: {', '.join(sorted(known))}.")
    rows, passed, tried = [], 0, 0
    suite = (conformance.check_implicit_gradient, conformance.check_unrolled_gradient)
    for cls in (known[name] for name in names):
        outcome = "agrees"
        tried += 1
        try:
            case = _parity_case(cls)
            for check in suite:
                check(case)
            passed += 1
        except Exception as error:
            outcome = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
        out.progress(f"P: {cls.__name__}: {outcome}")
        rows.append([cls.__name__, cls.reference, outcome])
    table = Table(
        "P. Gradients of every method: implicit, finite differences, unrolled", ["method", "source", "outcome"], rows
    )
    return Findings({"methods": tried, "methods that agree": passed}, [table], {})


def _concrete(cls: type) -> list[type]:
    found = [] if inspect.isabstract(cls) else [cls]
    return found + [sub for child in cls.__subclasses__() for sub in _concrete(child)]
