"""A bowl with its lowest point somewhere."""

import time
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

import optimand as om
from optimand.studies import Claim

TARGET = 2.0
SIZE: int = 3
STEPS = 60
PAUSE = 0.0  # seconds a step waits
DATA: Path | None = None
KIND: Literal["plain", "broken", "vector", "nan", "report"] = "plain"


class State(eqx.Module):
    x: jax.Array
    gradient: jax.Array
    value: jax.Array
    counters: om.Counters


class Descent(om.Method):
    host = True

    def init(self, problem, guess, *, key):
        value, gradient = problem.value_and_gradient(guess)
        return State(guess, gradient, value, om.Counters.zero())

    def step(self, problem, state, *, key):
        time.sleep(PAUSE)
        x = state.x - 0.1 * state.gradient
        value, gradient = problem.value_and_gradient(x)
        return State(x, gradient, value, state.counters.add(gradients=1))

    def done(self, problem, state):
        return False

    def answer(self, problem, state):
        return state.x

    def metrics(self, problem, state):
        return {"value": state.value}


def bowl(x):
    if KIND == "broken":
        return x["nothing"]
    distance = (x - TARGET) ** 2
    if KIND == "nan":
        return jnp.where(jnp.sum(x) > 1.0, jnp.nan, jnp.sum(distance))
    return distance if KIND == "vector" else jnp.sum(distance)


problem = om.Minimize(bowl)
method = Descent()
guess = jnp.zeros(SIZE)
budget = om.Budget(steps=STEPS)


def report(solution):
    if KIND == "report":
        raise RuntimeError("no ink")
    return {"distance": jnp.max(jnp.abs(solution.value - TARGET))}


def claims(metrics):
    return [Claim.at_most("distance to the target", metrics["distance"], 1e-3)]
