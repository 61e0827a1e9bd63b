"""Training on residuals: no labels, skipped steps, interruption and resumption."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimand as om
from informed_cases import PointwiseNet, eikonal
from optimand.informed import ConstrainedBasis, DiffusionSorption1D, ExpertGrid, NLLSConstraint, ResidualProblem

ArgumentError = om.core.errors.ArgumentError
METHOD = om.smooth.Adam(1e-2, clip=1.0, skip_nonfinite=True)


def problem():
    net = PointwiseNet(3, 3, jax.random.key(0))
    model = ConstrainedBasis(
        net, eikonal(), experts=ExpertGrid((1, 2)), constraint=NLLSConstraint(points=12, solver="normal")
    )
    return ResidualProblem(model.pde, jnp.linspace(0.8, 1.2, 6), model, batch_size=2)


def test_training_lowers_the_residual_and_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    fit, key = problem(), jax.random.key(1)
    run = lambda **options: om.solve(fit, METHOD, key=key, budget=om.Budget(steps=12), **options)
    whole = run()
    assert whole.counters.samples == 13 * 2

    class Killed(BaseException):
        pass

    def die(event):
        if event.step >= 5:
            raise Killed

    path = tmp_path / "run.ckpt"
    with pytest.raises(Killed):
        run(callbacks=[om.Checkpoint(path, every=1), die])
    again = run(resume=path)
    for ours, theirs in zip(*(jax.tree.leaves(eqx.filter(s.value, eqx.is_array)) for s in (whole, again)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(whole.history["value"], again.history["value"])
    arrays = lambda model: eqx.filter(model, eqx.is_array)
    start, static = fit.model, eqx.filter(fit.model, eqx.is_array, inverse=True)
    full = jax.jit(lambda model: fit.losses(eqx.combine(model, static), fit.data).mean())
    assert float(full(arrays(whole.value))) < float(full(arrays(start)))


class SometimesNaN(eqx.Module):
    """A model that fails on the largest inputs."""

    size: jax.Array

    def __call__(self, data, *, key=None):
        field = jnp.broadcast_to(self.size * data, (6, 8))
        return jnp.where(data > 1.1, jnp.nan, 1.0) * field


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted():
    fit = ResidualProblem(eikonal(), jnp.linspace(0.8, 1.2, 6), SometimesNaN(jnp.ones(())), batch_size=1)
    solution = om.solve(fit, METHOD, key=jax.random.key(2), budget=om.Budget(steps=20))
    assert 0 < solution.history["skipped"][-1] < 20
    assert bool(jnp.isfinite(solution.value.size))


def test_inputs_that_are_not_finite_are_refused_with_sample_and_index():
    pde = DiffusionSorption1D(nx=8, nt=5)
    inputs = np.full((3, 8), 0.1)
    inputs[1, 4] = np.inf
    with pytest.raises(ArgumentError, match=r"sample 1.*not finite at index \(4,\)"):
        ResidualProblem(pde, inputs, None)
    with pytest.raises(ArgumentError, match=r"sample 0.*u0 = 0"):
        ResidualProblem(pde, np.zeros(2), None)
