"""A. Precision of Jacobians: ridge and logistic ridge regression at the iterates of gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Minimize, solve
from optimand.core import optimality
from optimand.report import figures
from optimand.smooth import GradientDescent, Newton
from optimand.studies.base import Findings, Run

from . import Settings
from .measuring import iterates_of, sklearn


def run(settings: Settings, key, out: Run) -> Findings:

    data = sklearn("datasets").load_diabetes()
    features = jnp.asarray(data.data)
    start = 0.1 * jax.random.normal(key, (features.shape[1],))
    theta = jnp.asarray(settings.ridge_theta)
    targets = jnp.asarray((data.target - data.target.mean()) / data.target.std())

    def ridge(x, theta):
        return 0.5 * jnp.sum((features @ x - targets) ** 2) + 0.5 * theta * jnp.sum(x**2)

    def logistic(x, theta):
        margins = jnp.sign(targets) * (features @ x)
        return jnp.sum(jax.nn.softplus(-margins)) + 0.5 * theta * jnp.sum(x**2)

    metrics, drawn = {}, {}
    curvature = float(jnp.linalg.norm(features, 2) ** 2)
    for name, fn, bound in (("ridge", ridge, curvature), ("logistic", logistic, curvature / 4)):
        method = GradientDescent(step_size=1 / (bound + settings.ridge_theta), tolerance=0.0)
        path = jax.jit(
            lambda theta, fn=fn, method=method: iterates_of(
                method, Minimize(fn, theta), start, settings.ridge_iterations
            )
        )
        iterates, unrolled = jax.jvp(path, (theta,), (jnp.ones_like(theta),))
        exact = solve(Minimize(fn, theta), Newton(tolerance=1e-12), start, budget=Budget(steps=100)).value
        closed_form = -jnp.linalg.solve(jax.hessian(fn)(exact, theta), exact)  # H J = -d(grad)/d(theta) = -x
        curve = optimality.jacobian_precision(
            optimality.stationary(fn), iterates, exact, (theta,), jacobian=closed_form[:, None]
        )
        unrolled_error = np.asarray(jnp.linalg.norm(unrolled - closed_form, axis=1))
        error, implicit_error = np.asarray(curve.iterate_error), np.asarray(curve.jacobian_error)
        relative = error / float(jnp.linalg.norm(exact))
        near = (relative <= 1e-2) & (relative > 1e-11)  # below is round-off
        slope = np.polyfit(np.log(error[near]), np.log(implicit_error[near]), 1)[0] if near.sum() > 2 else np.nan
        ratios = implicit_error[near] / unrolled_error[near]
        metrics |= {
            f"{name} slope": slope,
            f"{name} worst implicit / unrolled": np.max(ratios) if near.any() else np.nan,
            f"{name} iterates compared": near.sum(),
            f"{name} last relative error": relative[-1],
        }
        scale = float(jnp.linalg.norm(closed_form))
        drawn[f"A. Error of the Jacobian against error of the iterate: {name} regression"] = figures.curves(
            {
                "implicit": (relative, implicit_error / scale),
                "unrolled": (relative, unrolled_error / scale),
            },
            xlabel="relative error of the iterate",
            ylabel="relative error of the Jacobian",
            title=f"{name}: {settings.ridge_iterations} iterates of gradient descent",
            log="xy",
        )
    return Findings(metrics, [], drawn)
