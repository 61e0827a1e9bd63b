"""A small study, and a user's own: it is found by its path."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

import optimand as om
from optimand.report import figures
from optimand.studies import Claim, Findings, Run, Table

SLUG = "quadratics"
TITLE = "Two step sizes on a quadratic"
REFERENCE = "nocedal2006numerical"


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = dataclasses.field(default=5, metadata={"help": "unknowns", "least": 1})
    steps: int = dataclasses.field(default=40, metadata={"help": "steps of each", "least": 1})
    step_sizes: tuple[float, ...] = (0.1, 0.5)
    bar: float = 1.0
    shift: float | None = None
    noise: Literal["normal", "uniform"] = "normal"
    loud: bool = False
    fail: str = ""


QUICK = {"steps": 4}


class _State(eqx.Module):
    x: jax.Array
    gradient: jax.Array
    value: jax.Array
    counters: om.Counters


class _Descent(om.Method):
    step_size: float = 0.1

    def init(self, problem, guess, *, key):
        value, gradient = problem.value_and_gradient(guess)
        return _State(guess, gradient, value, om.Counters.zero())

    def step(self, problem, state, *, key):
        x = state.x - self.step_size * state.gradient
        value, gradient = problem.value_and_gradient(x)
        return _State(x, gradient, value, state.counters.add(gradients=1))

    def done(self, problem, state):
        return jnp.max(jnp.abs(state.gradient)) < 1e-12

    def answer(self, problem, state):
        return state.x

    def metrics(self, problem, state):
        return {"value": state.value}


def run(settings: Settings, key, out: Run) -> Findings:
    if settings.fail:
        raise RuntimeError(settings.fail)
    target = out.once("target", lambda: {"target": jax.random.normal(key, (settings.size,))})["target"]
    losses, rows = {}, []
    for step_size in settings.step_sizes:
        label = f"step size {step_size:g}"
        out.progress(label)
        solution = om.solve(
            om.Minimize(lambda x, target: jnp.sum((x - target) ** 2) / 2 + 1e-3, jnp.asarray(target)),
            _Descent(step_size),
            jnp.zeros(settings.size),
            budget=om.Budget(steps=settings.steps),
            callbacks=out.callbacks(label),
            resume=out.resume(label),
        )
        losses[label] = solution.history["value"]
        rows.append((label, solution.history["value"][-1], int(solution.steps)))
    metrics = {"slow": rows[0][1], "fast": rows[-1][1]}
    return Findings(metrics, [Table("Losses", ("method", "loss", "steps"), rows)], {"Losses": figures.curves(losses)})


def claims(seeds, settings) -> list[Claim]:
    ratio = sum(metrics["fast"] for metrics in seeds) / sum(metrics["slow"] for metrics in seeds)
    return [
        Claim.at_most("loss of the longer step / of the shorter", ratio, settings.bar, paper="about 0.1", note="toy"),
    ]
