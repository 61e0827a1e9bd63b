"""What is wrong with the input of a bridge is said before anything is fitted, with its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, GuessError
from optimand.transport import EntropicBridge, LightSBFit, MixtureBenchmark, energy_distance

POINTS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def holed(*rows):
    points = POINTS.copy()
    points[list(rows), 1] = np.nan
    return points


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((POINTS, POINTS[:, :1], 1.0), "dimension 1; those of x0 have 2"),
        ((POINTS, POINTS, 0.0), "`epsilon` must be one positive number"),
        ((POINTS, POINTS, -1.0), "`epsilon` must be one positive number"),
        ((POINTS, POINTS, np.ones(2)), "`epsilon` must be one positive number"),
        ((holed(4, 7), POINTS, 1.0), "`x0` has 2 of 20 rows that are not finite; the first is row 4"),
        ((POINTS, holed(9), 1.0), "`x1` has 1 of 20 rows that are not finite; the first is row 9"),
        ((POINTS[:0], POINTS, 1.0), "`x0` must be points in rows"),
        ((POINTS[None], POINTS, 1.0), "`x0` must be points in rows"),
        ((lambda key: jax.random.normal(key, (2, 2)), POINTS, 1.0), "`x0` must be points in rows"),
        ((lambda key: jnp.full((2,), jnp.nan), POINTS, 1.0), "`x0` has 1024 of 1024 rows"),
    ],
)
def test_problems(as_a_user, arguments, text):
    with pytest.raises(ArgumentError, match=text):
        EntropicBridge(*arguments)


def test_a_scale_has_to_be_positive(as_a_user):
    with pytest.raises(ArgumentError, match="`scale`"):
        EntropicBridge(POINTS, POINTS, 1.0, scale=0.0)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"components": 0}, "components"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"spread": -1.0}, "spread"),
        ({"covariance": "low rank"}, "covariance"),
        ({"centres": "clustered"}, "centres"),
        ({"patience": 0}, "patience"),
        ({"memory": -1.0}, "memory"),
    ],
)
def test_methods(as_a_user, changes, name):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        LightSBFit(**changes)


def fitted():
    return om.solve(EntropicBridge(POINTS, POINTS, 1.0), LightSBFit(components=2), key=jax.random.key(0), budget=om.Budget(steps=1)).value


def test_times_and_points(as_a_user):
    model = fitted()
    with pytest.raises(ArgumentError, match="`sample` draws its end"):
        model.drift(POINTS, 1.0)
    for t in (-0.1, 1.1):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            model.sample_at(POINTS, t, jax.random.key(0))
    with pytest.raises(ArgumentError, match="dimension 2"):
        model.log_potential(POINTS[:, :1])
    with pytest.raises(ArgumentError, match="`steps`"):
        model.paths(POINTS, jax.random.key(0), steps=0)


def test_guesses(as_a_user):
    line = EntropicBridge(POINTS[:, 0], POINTS[:, 1], 1.0)
    assert line.dimension == 1
    for guess in (fitted(), jnp.zeros(3)):
        with pytest.raises(GuessError, match="LightSB in 1 dimensions"):
            om.solve(line, LightSBFit(), guess, key=jax.random.key(0))
    with pytest.raises(GuessError, match="only LightSBFit places"):
        om.solve(line, om.smooth.LBFGS())
    with pytest.raises(ArgumentError, match="`key` is needed"):
        om.solve(line, LightSBFit())


def test_a_batch_may_be_larger_than_the_samples():
    problem = EntropicBridge(POINTS[:5], POINTS[:3], 1.0)
    solution = om.solve(problem, LightSBFit(components=2, batch=64), key=jax.random.key(0), budget=om.Budget(steps=5))
    assert jnp.all(jnp.isfinite(solution.value.sample(POINTS, jax.random.key(0))))


def test_metrics_and_benchmark(as_a_user):
    with pytest.raises(ArgumentError, match="`y` has points of dimension 1"):
        energy_distance(POINTS, POINTS[:, :1])
    with pytest.raises(ArgumentError, match="`x` must be two or more"):
        energy_distance(POINTS[:1], POINTS)
    with pytest.raises(ArgumentError, match="`means`"):
        MixtureBenchmark([0.5, 0.5], np.zeros((3, 2)), np.zeros((3, 2, 2)), 1.0)
    with pytest.raises(ArgumentError, match="`dimension`"):
        MixtureBenchmark.random(jax.random.key(0), 0, 1.0)
