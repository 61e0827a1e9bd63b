"""The conformance suite accepts a right method and finds each kind of wrong one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.checks import CHECKS, ConformanceError, standard_case
from toys import Descent, DescentState, HostDescent, NoisyDescent, Picard


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=type(method).__name__, marks=pytest.mark.xdist_group(f"checks {type(method).__name__}"))
        for method in (Descent(), HostDescent(), Picard())
    ],
)
def test_a_right_method_conforms(method, check):
    check(standard_case(method, steps=200))


@pytest.mark.xdist_group("checks of a stochastic method")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_stochastic_method_conforms(check):
    check(standard_case(NoisyDescent(tolerance=0.0), steps=50, converges=False))


class Impure(Descent):
    def step(self, problem, state, *, key):
        state = super().step(problem, state, key=key)
        return eqx.tree_at(lambda s: s.x, state, state.x + np.random.default_rng().normal())


class Growing(Descent):
    def step(self, problem, state, *, key):
        state = super().step(problem, state, key=key)
        return DescentState(jnp.concatenate([state.x, state.x]), state.value, state.gradient, state.counters)


class Lying(Descent):
    def done(self, problem, state):
        return jnp.array(True)


class Optimist(Descent):
    """Keeps the gradient of the first point, and so never arrives."""

    def step(self, problem, state, *, key):
        new = super().step(problem, state, key=key)
        return eqx.tree_at(lambda s: s.gradient, new, state.gradient)


class Wasteful(Descent):
    def counters(self, state):
        return super().counters(state).add(values=1000)


class Forgetful(Descent):
    """Its state holds a Python number."""

    def init(self, problem, guess, *, key):
        return super().init(problem, guess, key=key), 3


WRONG = {
    "check_state_is_arrays": [Growing(), Forgetful()],
    "check_is_pure": [Impure()],
    "check_solves": [Lying(), Optimist()],
}


@pytest.mark.parametrize("name, method", [(n, m) for n, ms in WRONG.items() for m in ms])
def test_a_wrong_method_is_found_out(name, method):
    check = next(check for check in CHECKS if check.__name__ == name)
    with pytest.raises((ConformanceError, om.errors.OptimandError)):
        check(standard_case(method, steps=50))


def test_a_wrong_derivative_is_found_out():
    check = next(check for check in CHECKS if check.__name__ == "check_implicit_gradient")

    class Wrong(om.Minimize):
        def optimality(self, value):
            return 2 * self.gradient(value) + 0.1 * value * jnp.sum(self.args[0])

    case = standard_case(Descent(), steps=200)
    fn = case.problem(case.theta).fn
    wrong = om.core.checks.Case(Descent(), lambda t: Wrong(fn, t), case.theta, case.guess, steps=200)
    with pytest.raises(ConformanceError, match="finite differences"):
        check(wrong)


def test_a_type_without_a_standard_case_is_named():
    class Odd(om.Problem):
        def optimality(self, value):
            return value

        def traced(self, guess):
            return self

    class Solver(Descent):
        problem = Odd

    with pytest.raises(om.errors.ArgumentError, match="kind"):
        standard_case(Solver())


def test_the_whole_suite_runs_in_one_call():
    with jax.enable_x64(False):
        om.core.checks.check_method(Picard(), steps=100)
