"""What is called solved: points judged apart from the solver that found them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optimand.bench.entry import Entry
from optimand.bench.judge import judge


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


class Source:
    """A problem as the collection states it: inequalities are at least zero there."""

    args = None

    def __init__(self, objective, y0, constraint=None, bounds=None):
        self.objective = lambda y, args: objective(y)
        self.y0 = y0
        if constraint is not None:
            self.constraint = constraint
        if bounds is not None:
            self.bounds = bounds


def disc(y):
    """In the disc of radius sqrt 2, with y_0 = y_1."""
    return y[0] - y[1], 2 - jnp.sum(y**2)


def test_a_kkt_point_is_solved_and_its_neighbours_are_not():
    entry = Entry(Source(jnp.sum, jnp.array([0.5, 0.5]), disc), "disc", "constrained")
    assert (entry.equality_count, entry.inequality_count) == (1, 1)
    assert judge(entry, [-1.0, -1.0]).solved
    assert judge(entry, [-1.0 - 1e-9, -1.0]).solved
    assert not judge(entry, [-0.99, -0.99]).solved  # feasible, and not stationary
    assert not judge(entry, [1.0, 1.0]).solved  # stationary for a multiplier of the wrong sign
    assert judge(entry, [-2.0, -2.0]).violation > 1  # infeasible


def test_bounds_hold_a_gradient_that_pushes_against_them_only():
    bounds = (jnp.zeros(2), jnp.array([jnp.inf, 1e20]))
    entry = Entry(Source(lambda y: y[0] + (y[1] - 1) ** 2, jnp.ones(2), bounds=bounds), "corner", "bounded")
    assert np.all(np.isinf(entry.upper))
    assert judge(entry, [0.0, 1.0]).solved
    assert judge(entry, [1e-7, 1.0]).solved  # as an interior method leaves it
    assert not judge(entry, [0.1, 1.0]).solved
    assert not judge(entry, [0.0, 0.0]).solved
    assert not judge(entry, [-0.1, 1.0]).solved


def test_constraints_and_bounds_share_the_gradient():
    """min -y0 - 2 y1 on y0 + y1 <= 1, y >= 0: at (0, 1) the multipliers are 2 of the constraint and 1 of a bound."""
    source = Source(lambda y: -y[0] - 2 * y[1], jnp.ones(2), lambda y: (None, 1 - y[0] - y[1]), (jnp.zeros(2), None))
    entry = Entry(source, "simplex", "constrained")
    assert judge(entry, [0.0, 1.0]).solved
    assert not judge(entry, [1.0, 0.0]).solved


def test_what_is_not_a_point_is_not_solved():
    entry = Entry(Source(lambda y: jnp.log(y[0]), jnp.ones(1)), "log", "unconstrained")
    for nowhere in ([np.nan], [-1.0], [1.0, 2.0]):
        assert not judge(entry, nowhere).solved


def test_the_entry_states_the_problem_to_us_as_to_the_others():
    entry = Entry(Source(jnp.sum, jnp.array([0.5, 0.5]), disc, (None, jnp.array([3.0, jnp.inf]))), "disc", "constrained")
    problem = entry.problem()
    x = jnp.array([-1.0, -1.5])
    np.testing.assert_allclose(problem.inequalities(x), entry.constraints_on_host(np.asarray(x))[1:])
    np.testing.assert_allclose(problem.inequalities(x), [1.25])
    np.testing.assert_allclose(problem.upper(x), [3.0, np.inf])
    assert problem.lower(x) is None
