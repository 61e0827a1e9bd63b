"""The kernels of Lion-K: subgradients, conjugates and sets belong together."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from lion_cases import KERNELS, draw
from optimand.core.errors import ArgumentError
from optimand.smooth import (
    GroupKernel,
    HuberKernel,
    L1Kernel,
    LpKernel,
    SmoothL1Kernel,
    SpectralKernel,
    ThresholdKernel,
    TopKKernel,
)

NORMS = ("l1", "lp 1.5", "lp 2", "lp 4", "top-k", "groups of 2", "groups by number", "spectral")


def inner(x, y):
    return sum(jnp.vdot(a, b) for a, b in zip(jtu.tree_leaves(x), jtu.tree_leaves(y), strict=True))


def scaled(factor, x):
    return jtu.tree_map(lambda leaf: factor * leaf, x)


def largest(x):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jtu.tree_leaves(x)]))


@pytest.mark.parametrize("name", KERNELS)
def test_subgradient_conjugate_and_set_belong_to_the_kernel(name):
    kernel = KERNELS[name]

    @jax.jit
    @jax.vmap
    def at(c):
        value, slope = jax.value_and_grad(kernel.value)(c)
        u = kernel.subgradient(c)
        difference = jtu.tree_map(jnp.subtract, u, slope)
        return {"value": value, "u": u, "derivative": largest(difference), "step": largest(u), "slope": largest(slope)}

    @jax.jit
    @jax.vmap
    def of_dual(y, c, value):
        return kernel.gauge(y), value + kernel.conjugate(y) - inner(c, y)

    with jax.enable_x64(True):
        c, z = draw(0, 3), draw(1, 3)
        stack = lambda *trees: jtu.tree_map(lambda *leaves: jnp.concatenate(leaves), *trees)
        found = at(stack(c, scaled(-1.0, c), scaled(2.5, c), scaled(0.0, c)))
        value, negative, larger, zero = np.split(np.asarray(found["value"]), 4)
        u = jtu.tree_map(lambda leaf: leaf[:3], found["u"])
        gauge, gap = of_dual(stack(u, z), stack(c, c), np.tile(value, 2))
        size = np.where(gauge[3:] > 0, gauge[3:], 1)
        onto = lambda factor: jtu.tree_map(lambda z: z * (factor / size).reshape(-1, *[1] * (z.ndim - 1)), z)
        _, slack = of_dual(stack(onto(0.999), onto(1.001)), stack(c, c), np.tile(value, 2))
        inside, outside = np.split(np.asarray(slack), 2)
    assert np.all(found["derivative"][:9] < 1e-12)  # away from kinks
    np.testing.assert_allclose(gap[:3], 0, atol=1e-12)  # Fenchel's equality
    assert np.all(inside >= 0)  # and Young's inequality
    assert np.all(np.isinf(outside)) if kernel.constrains else np.all(outside >= 0)
    assert np.all(gauge[:3] <= 1 + 1e-12)
    np.testing.assert_allclose(negative, value, rtol=1e-13)
    assert np.all(zero == 0) and np.all(found["step"][9:] == 0) and np.all(np.isfinite(found["slope"]))
    if name in NORMS:
        np.testing.assert_allclose(larger, 2.5 * value, rtol=1e-13)


def test_a_step_at_a_kink_is_a_subgradient_and_always_the_same():
    ties = jnp.array([1.0, -1.0, 0.0, 1.0])
    np.testing.assert_array_equal(TopKKernel(2).subgradient(ties), [1, -1, 0, 0])
    np.testing.assert_array_equal(ThresholdKernel(1.0).subgradient(ties), 0)
    np.testing.assert_array_equal(L1Kernel().subgradient(ties), [1, -1, 0, 1])
    singular = jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0, 0.0])) / 5
    np.testing.assert_allclose(SpectralKernel().subgradient(singular), singular, atol=1e-6)


@pytest.mark.parametrize("p", [1.1, 4.0])
def test_no_power_overflows_or_underflows(p):
    for size in (1e-30, 1e30):
        c = jnp.array([size, -2 * size])
        assert np.isfinite(LpKernel(p).value(c)) and LpKernel(p).value(c) >= 2 * size
        np.testing.assert_allclose(LpKernel(p).subgradient(c), LpKernel(p).subgradient(c / size), rtol=1e-5)


def test_newton_schulz_comes_near_the_orthogonal_factor_from_inside():
    c = jax.random.normal(jax.random.key(0), (2, 6, 3))  # a stack of tall matrices
    factor = SpectralKernel(newton_schulz=20).subgradient(c)
    np.testing.assert_allclose(factor, SpectralKernel().subgradient(c), atol=1e-4)
    rough = SpectralKernel(newton_schulz=4).subgradient(c)
    assert 0.5 < SpectralKernel().gauge(rough) <= 1 + 1e-6
    np.testing.assert_array_equal(SpectralKernel(newton_schulz=3).subgradient(0 * c), 0)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LpKernel(1.0), "p"),
        (lambda: LpKernel(float("inf")), "p"),
        (lambda: LpKernel("two"), "p"),
        (lambda: ThresholdKernel(0.0), "e"),
        (lambda: HuberKernel(-1.0), "e"),
        (lambda: SmoothL1Kernel(float("nan")), "e"),
        (lambda: TopKKernel(0), "k"),
        (lambda: TopKKernel(2).check(jnp.zeros(1)), "k"),
        (lambda: GroupKernel(0), "groups"),
        (lambda: GroupKernel(jnp.array([0.5])), "groups"),
        (lambda: GroupKernel(jnp.array([-1, 0])), "groups"),
        (lambda: GroupKernel(3).check(jnp.zeros(4)), "groups"),
        (lambda: GroupKernel(jnp.array([0, 1])).check(jnp.zeros(3)), "groups"),
        (lambda: SpectralKernel(newton_schulz=0), "newton_schulz"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == name
