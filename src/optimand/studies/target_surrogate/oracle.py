"""O. How often an oracle outside of JAX is called: once an outer step, whatever m, inside a compiled solve too."""

import jax
import jax.numpy as jnp
import numpy as np

from optimand import Budget, Detached, solve
from optimand.smooth import SSO, ConstantTargetStep, TargetProblem
from optimand.studies.base import Findings, Run, Table

from . import Settings
from .logistic import loss, model

STEPS = 20


def run(settings: Settings, key, out: Run) -> Findings:
    of_inputs, of_labels, of_batches = jax.random.split(key, 3)
    inputs = jax.random.normal(of_inputs, (40, 3))
    labels = jnp.where(jax.random.bernoulli(of_labels, 0.5, (40,)), 1.0, -1.0)
    calls = []

    def on_host(targets, labels):
        calls.append(len(targets))
        return np.asarray(-labels / (1 + np.exp(labels * targets)), targets.dtype)

    def oracle(targets, batch):
        shape = jax.ShapeDtypeStruct(targets.shape, targets.dtype)
        return jax.pure_callback(on_host, shape, targets, batch[1], vmap_method="sequential")

    problem = TargetProblem(model, loss, (inputs, labels), batch_size=10, oracle=oracle)
    metrics, lines = {}, []
    for inner_steps in settings.inner_steps:
        method = SSO(ConstantTargetStep(settings.eta), inner_steps=inner_steps)
        for driver, wrap in (("eager", lambda fn: fn), ("compiled", jax.jit)):
            calls.clear()
            run = wrap(
                lambda x, method=method: solve(
                    problem, method, x, key=of_batches, budget=Budget(steps=STEPS), adjoint=Detached()
                ).counters.calls
            )
            counted = int(jax.block_until_ready(run(jnp.zeros(3))))
            metrics[f"{driver}, m = {inner_steps}, calls per step"] = len(calls) / STEPS
            metrics[f"{driver}, m = {inner_steps}, counted calls per step"] = counted / STEPS
            lines.append([driver, inner_steps, STEPS, len(calls), counted])
    columns = ["solve", "m", "outer steps", "calls of the oracle", "calls counted"]
    return Findings(metrics, [Table("O. Calls", columns, lines)])
