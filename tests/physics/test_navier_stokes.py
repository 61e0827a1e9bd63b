"""Flow on a torus: exact solutions, conservation, second order in time, and derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import optimand as om
from optimand.physics import NavierStokes2D, gaussian_field, rollout, subsample, taylor_green


@pytest.fixture(autouse=True, scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def vorticity(double):
    return jax.jit(lambda: gaussian_field(jr.key(0), (16, 16), scale=7**4))()


@pytest.mark.parametrize(("n", "length"), [(16, 1.0), (15, 2.0)])
def test_taylor_green_vortices_decay_as_they_should(n, length):
    flow = NavierStokes2D(n, reynolds=50.0, dt=0.05, substeps=20, length=length)
    start = taylor_green(n, length=length)
    final = jax.jit(lambda w: rollout(flow, flow.initial(w), steps=4).final)(start)
    np.testing.assert_allclose(final.time, 0.2)
    exact = taylor_green(n, 0.2, reynolds=50.0, length=length)
    np.testing.assert_allclose(final.vorticity, exact, atol=2e-5 * float(start.max()))
    assert exact.max() < 0.95 * start.max()


def test_it_is_of_second_order_in_time(vorticity):
    def final(substeps):
        flow = NavierStokes2D(16, reynolds=200.0, dt=1.0, substeps=substeps)
        return np.asarray(jax.jit(lambda w: flow.step(flow.initial(w)).vorticity)(vorticity))

    exact, coarse, fine = final(256), final(8), final(16)
    assert 1.8 < np.log2(np.abs(coarse - exact).max() / np.abs(fine - exact).max()) < 2.3


def test_without_viscosity_energy_and_enstrophy_are_kept(vorticity):
    low = np.fft.rfft2(vorticity)  # only waves that the 2/3 rule keeps, so that the truncated system conserves both
    low[6:11], low[:, 6:] = 0, 0
    flow = NavierStokes2D(16, reynolds=1e12, dt=0.5, substeps=100)
    start = flow.initial(jnp.asarray(np.fft.irfft2(low)))
    before, after = jax.jit(lambda s: (flow.invariants(s), flow.invariants(flow.step(s))))(start)
    for name in ("energy", "enstrophy"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5)
    np.testing.assert_allclose(after["vorticity"], 0, atol=1e-15)
    assert float(jnp.abs(flow.step(start).vorticity - start.vorticity).max()) > 0.1 * float(start.vorticity.std())


def test_forcing_balances_diffusion():
    w = taylor_green(12)
    kappa = 2 * np.pi
    flow = NavierStokes2D(12, reynolds=10.0, dt=0.1, forcing=2 * kappa**2 / 10.0 * w + 3.0)
    state = flow.step(flow.initial(w))
    np.testing.assert_allclose(state.vorticity, w, atol=1e-10)
    bare = NavierStokes2D(12, reynolds=10.0, dt=0.1)
    np.testing.assert_allclose(bare.step(bare.initial(w), flow.forcing).vorticity, w, atol=1e-10)


def test_a_batch_is_as_many_flows(vorticity):
    flow = NavierStokes2D(16, dt=0.1, substeps=2)
    both = jnp.stack([vorticity, -2 * vorticity])
    leading = jax.jit(lambda w: flow.step(flow.initial(w)).vorticity)(both)
    mapped = jax.jit(jax.vmap(lambda w: flow.step(flow.initial(w)).vorticity))(both)
    np.testing.assert_allclose(leading, mapped, atol=1e-12)


def test_derivatives_with_respect_to_state_and_reynolds_number(vorticity):
    flow = NavierStokes2D(16, reynolds=100.0, dt=0.2, substeps=4)

    @jax.jit
    def loss(theta):
        changed = eqx.tree_at(lambda f: f.reynolds, flow, 100 * theta[0])
        final = rollout(changed, changed.initial(theta[1] * vorticity), steps=2).final
        return jnp.sum(final.vorticity[:4] ** 2)

    gradient = jax.jit(jax.grad(loss))(jnp.ones(2))
    step = 1e-5
    for i in range(2):
        up, down = jnp.ones(2).at[i].add(step), jnp.ones(2).at[i].add(-step)
        np.testing.assert_allclose(gradient[i], (loss(up) - loss(down)) / (2 * step), rtol=1e-6)


def test_the_safe_step_is_stable_where_a_far_longer_one_is_not():
    start = 50 * taylor_green(16) + 40 * jnp.roll(taylor_green(16, waves=2), 1, 0)
    speed = NavierStokes2D(16).safe_dt(NavierStokes2D(16).initial(start))
    for factor, stable in ((1, True), (50, False)):
        flow = NavierStokes2D(16, reynolds=1e6, dt=float(factor * speed), substeps=1)
        run = jax.jit(lambda w, flow=flow: rollout(flow, flow.initial(w), steps=60))(start)
        finite = bool(run.finite.all()) and float(jnp.abs(run.final.vorticity).max()) < 1e4
        assert finite == stable


def test_subsampling_takes_points():
    u = jnp.arange(64.0).reshape(8, 8)
    np.testing.assert_array_equal(subsample(u, 4), u[::2, ::2])
    np.testing.assert_array_equal(subsample(u[None], 2, axes=(1,)), u[None, ::4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NavierStokes2D(8).initial(np.ones((8, 9))), r"\(8, 8\)"),
        (lambda: NavierStokes2D(4).initial(np.where(np.eye(4)[1] == 1, np.nan, np.ones((4, 4)))), r"\(0, 1\)"),
        (lambda: NavierStokes2D(8, dt=-1.0), "dt"),
        (lambda: NavierStokes2D(8, forcing=np.ones(8)), "forcing"),
        (lambda: NavierStokes2D(8, substeps=0), "substeps"),
        (lambda: subsample(jnp.ones((8, 8)), 3), "divide"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        call()
