"""Small methods for tests of the core: nothing here is meant to be good."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

import optimand as om


class DescentState(eqx.Module):
    x: object
    value: object
    gradient: object
    counters: om.Counters


class Descent(om.Method):
    """Gradient descent with a fixed step."""

    step_size: float = 0.2
    tolerance: float = 1e-6

    def init(self, problem, guess, *, key):
        value, gradient = problem.value_and_gradient(guess, key=key)
        return DescentState(guess, value, gradient, om.Counters.zero().add(values=1, gradients=1))

    def step(self, problem, state, *, key):
        x = jtu.tree_map(lambda x, g: x - self.step_size * g, state.x, state.gradient)
        value, gradient = problem.value_and_gradient(x, key=key)
        return DescentState(x, value, gradient, state.counters.add(values=1, gradients=1))

    def done(self, problem, state):
        return jnp.sqrt(sum(jnp.sum(g**2) for g in jtu.tree_leaves(state.gradient))) <= self.tolerance

    def answer(self, problem, state):
        return state.x

    def metrics(self, problem, state):
        return {"value": state.value}


class NoisyDescent(Descent):
    """Adds noise that depends on the key of the step."""

    stochastic = True

    def step(self, problem, state, *, key):
        state = super().step(problem, state, key=key)
        noise = 1e-3 * jax.random.normal(key, state.x.shape, state.x.dtype)
        return eqx.tree_at(lambda s: s.x, state, state.x + noise)


class HostDescent(Descent):
    """The same iteration, with a step that leaves JAX."""

    host = True

    def step(self, problem, state, *, key):
        x = jnp.asarray(np.asarray(state.x) - np.asarray(self.step_size * np.asarray(state.gradient)))
        value, gradient = problem.value_and_gradient(x, key=key)
        return DescentState(x, value, gradient, state.counters.add(values=1, gradients=1))


class Picard(om.Method):
    """x <- T(x)."""

    problem = om.FixedPoint
    tolerance: float = 1e-6

    def init(self, problem, guess, *, key):
        return guess, problem.apply(guess)

    def step(self, problem, state, *, key):
        return state[1], problem.apply(state[1])

    def done(self, problem, state):
        return jnp.max(jnp.abs(state[0] - state[1])) <= self.tolerance

    def answer(self, problem, state):
        return state[1]


def quadratic(x, target):
    return 0.5 * jnp.sum((x - target) ** 2) + 0.25 * jnp.sum(x**4)
