"""Line searches: the conditions they promise, and methods that take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from optimand.smooth import LBFGS, Backtracking, GradientDescent, HagerZhang, NonlinearCG, StrongWolfe


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


# Test functions of Moré and Thuente (1994), section 5, on the half line; the slope at zero is negative.
BETA = 2.0
FUNCTIONS = {
    "rational": lambda t: -t / (t**2 + BETA),
    "quintic": lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
    "flat": lambda t: jnp.sqrt(0.001**2 + (1 - t) ** 2) + jnp.sqrt(0.01**2 + t**2) * 0.01,
    "bounded domain": lambda t: jnp.where(t < 0.3, -jnp.log1p(-jnp.minimum(t, 0.3) / 0.3) - 5 * t, jnp.nan),
}
SEARCHES = {
    "strong wolfe": StrongWolfe(),
    "sharp strong wolfe": StrongWolfe(curvature=0.1),
    "hager zhang": HagerZhang(),
    "backtracking": Backtracking(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_keeps_what_it_promises_from_any_first_length(search, name):
    line, fn = SEARCHES[search], FUNCTIONS[name]
    problem = om.Minimize(lambda x: fn(x[0]))
    derivative = jax.grad(fn)
    value0, slope0 = fn(0.0), derivative(0.0)

    @jax.jit
    @jax.vmap
    def find(first):
        step = line.search(problem, jnp.zeros(1), jnp.asarray(value0), slope0, jnp.ones(1), first)
        return step.length, step.value, step.gradient[0], step.accepted, step.trials

    lengths, values, slopes, accepted, trials = find(jnp.array([1e-3, 0.1, 1.0, 10.0, 1000.0]))
    assert np.all(accepted) and np.all(lengths > 0)
    np.testing.assert_allclose(values, jax.vmap(fn)(lengths))
    np.testing.assert_allclose(slopes, jax.vmap(derivative)(lengths))
    assert np.all(trials <= line.max_trials)
    armijo = values <= value0 + line.decrease * lengths * slope0
    approximate = (values <= value0) & (slopes <= (2 * line.decrease - 1) * slope0)
    if isinstance(line, StrongWolfe):
        assert np.all(armijo & (np.abs(slopes) <= line.curvature * np.abs(slope0)))
    else:
        assert np.all(armijo | approximate)
    if isinstance(line, HagerZhang):
        assert np.all(slopes >= line.curvature * slope0)


@pytest.mark.parametrize("line", [StrongWolfe(), HagerZhang(), Backtracking()], ids=lambda line: type(line).__name__)
def test_a_search_goes_no_further_than_it_may(line):
    problem = om.Minimize(lambda x: -x[0])
    step = line.search(problem, jnp.zeros(1), jnp.zeros(()), -jnp.ones(()), jnp.ones(1), 1.0, most=0.75)
    assert step.accepted and step.length == 0.75


@pytest.mark.parametrize("line", [StrongWolfe(), HagerZhang()], ids=lambda line: type(line).__name__)
def test_methods_stay_in_the_domain_of_an_objective(line):
    barrier = lambda x: jnp.sum(-jnp.log(x - 1) + x**2 + 1 / (3 - x))  # NaN below 1, another branch above 3
    for method in (LBFGS(line_search=line), NonlinearCG(line_search=line), GradientDescent(line_search=line)):
        solution = om.solve(om.Minimize(barrier), method, jnp.array([1.0001, 2.99]))
        assert solution.result == om.Result.converged
        np.testing.assert_allclose(solution.value, 1.331013, atol=1e-5)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Backtracking(decrease=0.7), "decrease"),
        (lambda: StrongWolfe(curvature=1.0), "curvature"),
        (lambda: StrongWolfe(decrease=0.2, curvature=0.1), "curvature"),
        (lambda: HagerZhang(decrease=0.4, curvature=0.1), "curvature"),
        (lambda: HagerZhang(expansion=1.0), "expansion"),
        (lambda: HagerZhang(max_trials=0), "max_trials"),
        (lambda: LBFGS(line_search="wolfe"), "line_search"),
        (lambda: GradientDescent(line_search=0.5), "line_search"),
        (lambda: NonlinearCG("newton"), "variant"),
        (lambda: NonlinearCG(first_step=0.0), "first_step"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(om.errors.ArgumentError, match=name):
        make()
