"""Networks that propose directions: Ritz vectors, the loss, training, files, and what the networks of the package save."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.linear import (
    CG,
    ConjugateDirectionNet,
    DeepConjugateDirection,
    RitzSampler,
    StencilOperator,
    train_inverse,
)
from optimand.linear.lanczos import ritz_pairs
from optimand.linear.train_inverse import step_loss
from optimand.physics import PoissonGrid


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def spectrum(n):
    line = 2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))
    return np.sort((line[:, None] + line).ravel())


def test_ritz_vectors_are_orthonormal_and_their_values_lie_within_the_spectrum():
    operator, exact = StencilOperator.laplacian((16, 16)), spectrum(16)
    ritz = RitzSampler(60, key=jax.random.key(1)).of(operator)
    np.testing.assert_allclose(ritz.vectors @ ritz.vectors.T, np.eye(60), atol=1e-10)
    assert exact[0] - 1e-10 <= ritz.values[0] and ritz.values[-1] <= exact[-1] + 1e-10 and jnp.all(jnp.diff(ritz.values) > 0)
    np.testing.assert_allclose(ritz.values[np.array([0, -1])], exact[[0, -1]], rtol=1e-6)
    images = jax.vmap(lambda v: operator.mv(v.reshape(16, 16)).ravel())(ritz.vectors)
    np.testing.assert_allclose(jnp.sum(images * ritz.vectors, axis=1), ritz.values, atol=1e-10)
    with jax.enable_x64(False):
        single = RitzSampler(60).of(StencilOperator.laplacian((16, 16)))
        np.testing.assert_allclose(single.vectors @ single.vectors.T, np.eye(60), atol=1e-5)


def test_a_space_that_is_exhausted_has_as_many_ritz_vectors_as_it_has_dimensions():
    diagonal = jnp.array([1.0, 1.0, 2.0, 5.0, 0.0])
    found = ritz_pairs(lambda v: diagonal * v, jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]), 5)
    assert found.there == 3
    np.testing.assert_allclose(found.values[:3], [1, 2, 5], atol=1e-12)
    np.testing.assert_allclose(found.vectors[:3] @ found.vectors[:3].T, np.eye(3), atol=1e-12)
    assert not jnp.any(found.vectors[3:])


def test_samples_are_unit_vectors_whose_lower_half_has_81_times_the_power():
    ritz = RitzSampler(240, theta=0).of(PoissonGrid((23, 24)))
    samples = ritz.draw(jax.random.key(0), 3000)
    np.testing.assert_allclose(jnp.linalg.norm(samples, axis=1), 1, rtol=1e-12)
    power = jnp.mean((samples @ ritz.vectors.T) ** 2, axis=0)
    np.testing.assert_allclose(jnp.mean(power[:120]) / jnp.mean(power[120:]), 81, rtol=0.05)
    more = RitzSampler(80, amplitude=3.0).of(PoissonGrid((16, 16)))
    assert list(np.unique(more.amplitudes[:44])) == [3.0] and list(np.unique(more.amplitudes[44:])) == [1.0]


def test_samples_are_zero_outside_of_the_fluid():
    solid = np.zeros((12, 12), bool)
    solid[3:6, 4:9] = True
    samples = RitzSampler(30).of(PoissonGrid((12, 12), solid=solid)).draw(jax.random.key(0), 3)
    assert not jnp.any(samples.reshape(-1, 12, 12)[:, solid])


def test_the_loss_knows_no_scale_and_is_zero_for_the_inverse():
    operator = PoissonGrid((8, 8))
    samples = RitzSampler(30).of(operator).draw(jax.random.key(2), 4)
    inverse = jnp.linalg.inv(operator.as_matrix())
    exact = lambda scale: lambda r, mask: scale * (inverse @ r.ravel()).reshape(r.shape)
    net = ConjugateDirectionNet(2, width=4, levels=1, bottom_pairs=1, key=jax.random.key(0))
    of_net = step_loss(net, operator, samples)
    assert 0 < of_net <= 1
    for scale in (1.0, -3.0, 1e-3):
        assert step_loss(exact(scale), operator, samples) < 1e-20
        np.testing.assert_allclose(step_loss(lambda r, mask, scale=scale: scale * net(r, mask), operator, samples), of_net, rtol=1e-10)


def test_the_gradient_of_the_loss_is_that_of_differences():
    operator = PoissonGrid((8, 8))
    samples = RitzSampler(30).of(operator).draw(jax.random.key(2), 4)
    loss = lambda weights: step_loss(lambda r, mask: (weights @ r.ravel()).reshape(r.shape), operator, samples)
    rng = np.random.default_rng(0)
    weights, toward = jnp.eye(64) + 0.05 * jnp.asarray(rng.normal(size=(64, 64))), jnp.asarray(rng.normal(size=(64, 64)))
    difference = (loss(weights + 1e-6 * toward) - loss(weights - 1e-6 * toward)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(weights), toward), difference, rtol=1e-6)


def small(key=0, **changes):
    return ConjugateDirectionNet(**{"dim": 2, "width": 6, "levels": 1, "bottom_pairs": 2, "key": jax.random.key(key), **changes})


def test_training_lowers_the_loss_and_saves_iterations_on_an_obstacle_it_never_saw():
    losses = {}
    operator = PoissonGrid((8, 8))
    arguments = {"steps": 150, "every": 50, "learning_rate": 4e-3}
    net = train_inverse(small(), operator, RitzSampler(60), report=losses.__setitem__, **arguments)
    assert list(losses) == [0, 50, 100, 150] and losses[150] < 0.4 * losses[0]
    solid = np.zeros((8, 8), bool)
    solid[3:5, 2:4] = True
    unseen, b = PoissonGrid((8, 8), solid=solid), jnp.where(solid.ravel(), 0, jnp.cos(jnp.arange(64.0)))
    steps = [int(lx.linear_solve(unseen, b, DeepConjugateDirection(net, 1e-4)).stats["num_steps"]) for net in (small(), net)]
    assert steps[1] < 0.7 * steps[0]
    again = {}
    train_inverse(small(), operator, RitzSampler(60), report=again.__setitem__, **arguments)
    assert again == losses


def test_operators_have_their_turns_and_ctrl_c_keeps_the_best():
    solid = np.zeros((8, 8), bool)
    solid[2:4] = True
    operators = [PoissonGrid((8, 8)), PoissonGrid((8, 8), solid=solid), PoissonGrid((6, 9))]
    seen = []

    def report(step, loss):
        seen.append(loss)
        if step == 20:
            raise KeyboardInterrupt

    net = train_inverse(small(), operators, RitzSampler(20), steps=1000, every=10, report=report)
    kept = train_inverse(small(), operators, RitzSampler(20), steps=1000, every=10, report=lambda step, loss: None, seconds=0.0)
    assert len(seen) == 3 and seen[1] < seen[0]
    same = lambda one, other: all(bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True) if hasattr(a, "dtype"))
    assert not same(net, small()) and same(kept, small())


def test_the_number_of_weights_is_that_of_the_plan():
    net = ConjugateDirectionNet(2, width=12, levels=3, key=jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(net) if hasattr(leaf, "dtype")) == 26_292


@pytest.mark.parametrize("levels", [1, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("mask_channel", [False, True])
def test_a_grid_that_does_not_divide_is_padded_and_no_point_is_lost(levels, mask_channel):
    net = small(levels=levels, mask_channel=mask_channel)
    field = jnp.sin(jnp.arange(11 * 13.0)).reshape(11, 13)
    assert net(field).shape == (11, 13)
    reach = jax.jacobian(lambda corner: net(field.at[-1, -1].set(corner))[-1, -1])(field[-1, -1])
    assert reach != 0
    # What lies beyond is air, as outside of any box.
    larger = jnp.zeros((16, 16)).at[:11, :13].set(field)
    mask = jnp.zeros((16, 16)).at[:11, :13].set(1)
    if mask_channel:  # the same numbers, but for what the features are beyond the box
        assert net(larger, mask).shape == (16, 16)
    scaled = net(7 * field)
    np.testing.assert_allclose(scaled, net(field), rtol=1e-4, atol=1e-5)  # the residual's length plays no part
    np.testing.assert_allclose(net(-field), -net(field), rtol=1e-6)  # nor does its sign


def test_a_network_is_the_same_after_a_file(tmp_path):
    net = small(levels=2, mask_channel=True)
    net.save(tmp_path / "net.eqx")
    again = ConjugateDirectionNet.load(tmp_path / "net.eqx")
    field = jnp.cos(jnp.arange(80.0)).reshape(8, 10)
    assert jnp.all(net(field) == again(field)) and len(again.levels) == 2 and again.mask_channel
    (tmp_path / "other.eqx").write_bytes(b"no network\n")
    with pytest.raises(om.errors.ArgumentError, match="path"):
        ConjugateDirectionNet.load(tmp_path / "other.eqx")


def ball(shape, centre, radius):
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij"), -1)
    return np.sum((places - np.array(centre)) ** 2, axis=-1) < radius**2


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(48, 40), (12, 14, 10)])
def test_the_networks_of_the_package_save_iterations(shape):
    solid = ball(shape, [0.4] * len(shape), 0.21)
    operator = PoissonGrid(shape, solid=solid)
    b = jnp.asarray((np.random.default_rng(0).normal(size=shape) * ~solid).ravel())
    net = ConjugateDirectionNet.pretrained(len(shape))
    count = lambda solver: int(lx.linear_solve(operator, b, solver).stats["num_steps"])
    assert count(DeepConjugateDirection(net, 1e-6)) < (0.25 if len(shape) == 2 else 0.5) * count(CG(1e-6))


BAD = {
    "dim": lambda: ConjugateDirectionNet(4, key=jax.random.key(0)),
    "width": lambda: small(width=0),
    "levels": lambda: small(levels=0),
    "pairs": lambda: small(pairs=0),
    "bottom_pairs": lambda: small(bottom_pairs=1.5),
    "residual": lambda: small()(jnp.ones(8)),
    "mask": lambda: small()(jnp.ones((8, 8)), jnp.ones((8, 9))),
    "n_ritz": lambda: RitzSampler(1),
    "amplitude": lambda: RitzSampler(amplitude=0.0),
    "theta": lambda: RitzSampler(theta=-1),
    "Ritz value": lambda: RitzSampler(5).of(StencilOperator(jnp.zeros(1), [(0, 0)], (3, 3))),
    "steps": lambda: train_inverse(small(), PoissonGrid((8, 8)), steps=-1),
    "batch": lambda: train_inverse(small(), PoissonGrid((8, 8)), batch=0),
    "learning_rate": lambda: train_inverse(small(), PoissonGrid((8, 8)), learning_rate=0.0),
    "operators": lambda: train_inverse(small(), []),
    "`dim`": lambda: ConjugateDirectionNet.pretrained(4),
}


@pytest.mark.parametrize("match", BAD)
def test_bad_arguments_are_named(match, as_a_user):
    with pytest.raises(om.errors.ArgumentError, match=match):
        BAD[match]()
