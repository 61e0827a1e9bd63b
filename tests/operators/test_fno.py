"""The Fourier neural operator: against a NumPy transcription, and as a model that can be trained."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import erf

import optimand as om
from optimand.operators import FNO, from_neuraloperator


def numpy_gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def peer_state(modes, in_channels, out_channels, width, layers, *, mlp=True, coordinates=True, seed=0):
    """Random weights under the names and shapes that neuraloperator 2.0 gives an FNO."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32) / 3
    d, lifted = len(modes), in_channels + (len(modes) if coordinates else 0)
    state = {}

    def fcs(prefix, *sizes):
        for i, (a, b) in enumerate(pairwise(sizes)):
            state[f"{prefix}.fcs.{i}.weight"], state[f"{prefix}.fcs.{i}.bias"] = normal(b, a, 1), normal(b)

    fcs("lifting", lifted, 2 * width, width)
    fcs("projection", width, 2 * width, out_channels)
    kept = (*(2 * m for m in modes[:-1]), modes[-1])
    for i in range(layers):
        blocks = "fno_blocks."
        state[f"{blocks}convs.{i}.weight.tensor"] = normal(width, width, *kept) + 1j * normal(width, width, *kept)
        state[f"{blocks}convs.{i}.bias"] = normal(width, *[1] * d)
        state[f"{blocks}fno_skips.{i}.conv.weight"] = normal(width, width, 1)
        if mlp:
            fcs(f"{blocks}channel_mlp.{i}", width, width // 2, width)
            state[f"{blocks}channel_mlp_skips.{i}.weight"] = normal(1, width, *[1] * d)
    state["_metadata"] = {"an entry": "that is no array"}
    return state


def peer(state, x, layers, *, mlp=True, coordinates=True):
    """What neuraloperator's FNO does to one field: weights over centred wave numbers, channels first."""
    grid = x.shape[1:]
    d = len(grid)
    if coordinates:
        axes = [np.arange(n) / n for n in grid]
        x = np.concatenate([x, np.stack(np.meshgrid(*axes, indexing="ij"))])

    def network(prefix, x):
        first, second = (state[f"{prefix}.fcs.{i}.weight"][..., 0] for i in (0, 1))
        bias = [state[f"{prefix}.fcs.{i}.bias"].reshape(-1, *[1] * d) for i in (0, 1)]
        return np.tensordot(second, numpy_gelu(np.tensordot(first, x, 1) + bias[0]), 1) + bias[1]

    x = network("lifting", x)
    for i in range(layers):
        weight = state[f"fno_blocks.convs.{i}.weight.tensor"]
        spectrum = np.fft.fftshift(np.fft.rfftn(x, axes=range(1, d + 1)), axes=range(1, d))
        where = [slice(n // 2 - k // 2, n // 2 + k // 2) for n, k in zip(grid[:-1], weight.shape[2:-1], strict=True)]
        where = (slice(None), *where, slice(weight.shape[-1]))
        out = np.zeros_like(spectrum)
        out[where] = np.einsum("i...,io...->o...", spectrum[where], weight)
        y = np.fft.irfftn(np.fft.ifftshift(out, axes=range(1, d)), s=grid, axes=range(1, d + 1))
        y = y + state[f"fno_blocks.convs.{i}.bias"]
        y = y + np.tensordot(state[f"fno_blocks.fno_skips.{i}.conv.weight"][..., 0], x, 1)
        y = numpy_gelu(y) if i < layers - 1 else y
        if mlp:
            y = network(f"fno_blocks.channel_mlp.{i}", y) + state[f"fno_blocks.channel_mlp_skips.{i}.weight"][0] * x
        x = numpy_gelu(y) if i < layers - 1 else y
    return network("projection", x)


@pytest.mark.parametrize(
    ("modes", "grid", "options"),
    [
        ((3,), (16,), {}),
        ((2, 3), (8, 12), {"mlp": False}),
        ((4, 5), (8, 8), {"coordinates": False}),
        ((1, 2, 3), (4, 6, 8), {}),
    ],
)
def test_weights_taken_over_give_the_same_function(modes, grid, options):
    state = peer_state(modes, 2, 3, 6, 2, **options)
    model = from_neuraloperator(state, in_channels=2)
    assert model.modes == modes
    x = np.random.default_rng(1).normal(size=(2, *grid)).astype(np.float32)
    expected = peer(state, x, 2, **options)
    np.testing.assert_allclose(eqx.filter_jit(model)(x), expected, atol=1e-5 * np.abs(expected).max())


def test_states_of_other_models_are_refused():
    state = peer_state((2, 2), 1, 1, 4, 1)
    with pytest.raises(om.core.errors.ArgumentError, match="lifting takes 3"):
        from_neuraloperator(state, in_channels=2)
    with pytest.raises(om.core.errors.ArgumentError, match="no counterpart"):
        from_neuraloperator({**state, "fno_blocks.norm.0.weight": np.ones(4)}, in_channels=1)
    del state["fno_blocks.fno_skips.0.conv.weight"]
    with pytest.raises(om.core.errors.ArgumentError, match="linear skips"):
        from_neuraloperator(state, in_channels=1)


def test_options_decide_where_activations_stand():
    x = jr.normal(jr.key(1), (1, 8, 8))
    options = dict(lifting=(), projection=(5,), width=3, modes=(2, 2), layers=1, key=jr.key(0))
    last = lambda activated: activated  # any function of a field; here, leave it
    plain = FNO(1, 2, activation=last, **options)
    for where in ("activate_last_layer", "activate_output"):
        zeroed = FNO(1, 2, activation=jnp.zeros_like, **{where: True}, **options)
        assert (zeroed(x) == 0).all() == (where == "activate_output")
    assert len(plain.lifting.layers) == 1 and len(plain.projection.layers) == 2
    assert FNO(1, 2, activate_output=True, **options)(x).min() > -0.2  # gelu is nowhere less


def test_it_maps_batches_and_finer_grids():
    model = FNO(2, 1, width=4, modes=(2, 2), layers=2, coordinates=True, key=jr.key(0))
    x = jr.normal(jr.key(1), (3, 2, 8, 8))
    batch = jax.jit(jax.vmap(model))(x)
    np.testing.assert_allclose(batch[1], eqx.filter_jit(model)(x[1]), atol=1e-6)
    assert jax.eval_shape(model, jnp.ones((2, 16, 12))).shape == (1, 16, 12)


def test_its_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        model = FNO(1, 1, width=3, modes=(2, 3), layers=2, channel_mlp=2, key=jr.key(0))
        x = jr.normal(jr.key(1), (1, 6, 8))
        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), model)
        loss = jax.jit(lambda h: jnp.sum(jnp.sin(jax.tree.map(lambda p, v: p + h * v, model, direction)(x))))
        gradient = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(x)))))(model)
        slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
        np.testing.assert_allclose(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-6)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_parameters_have_the_dtype_asked_for_and_are_all_real():
    model = FNO(1, 1, width=2, modes=(2,), layers=1, channel_mlp=2, dtype=jnp.float32, key=jr.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    assert eqx.tree_equal(jax.tree.map(lambda leaf: leaf, model), model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 0}, "layers"),
        ({"width": -1}, "width"),
        ({"modes": (4, 0)}, "modes"),
        ({"channel_mlp": 0}, "channel_mlp"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(om.core.errors.ArgumentError, match=words):
        FNO(1, 1, key=jr.key(0), **options)
    with pytest.raises(om.core.errors.ArgumentError, match="vmap"):
        FNO(1, 1, width=2, layers=1, key=jr.key(0))(jnp.ones((4, 1, 16, 16)))
