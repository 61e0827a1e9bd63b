"""Data sets of solutions: what they hold, in every layout, and that they go on where they were stopped."""

import h5py
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import optimand as om
from optimand.core.executor import ProcessPool
from optimand.datasets import generate, generate_dataset, read_fields
from optimand.linear import CG, GCRODR, RecycledSequence, SolveEach, SparseLU, greedy_order
from optimand.physics import ConvectionDiffusion, Darcy, Helmholtz, Poisson, Thermal


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


FAMILY = Darcy(8)
METHOD = RecycledSequence(GCRODR(1e-9, restart=12, recycle=4))


def parameters(count=7):
    return FAMILY.sample(jax.random.key(0), count)


def exact(family, parameter):
    return family.field(lx.linear_solve(*family.system(parameter), SparseLU()).value)


@pytest.mark.parametrize("layout", ["pdebench", "the_well"])
@pytest.mark.parametrize("groups", [1, 3])
def test_samples_stand_in_the_order_of_the_parameters_whatever_order_they_were_solved_in(tmp_path, layout, groups):
    made = generate_dataset(tmp_path / "darcy.h5", FAMILY, parameters(), METHOD, order=greedy_order, groups=groups, layout=layout)
    np.testing.assert_array_equal(np.sort(made.order), np.arange(7))
    assert not made.failed.any() and np.all(made.residuals <= 1.0001e-9) and np.all(made.iterations > 0)
    for i, parameter in enumerate(parameters()):
        np.testing.assert_allclose(made.data.fields["u"][i], exact(FAMILY, parameter), rtol=1e-6)
        np.testing.assert_allclose(made.data.fields["nu"][i], FAMILY.permeability(parameter)[1:-1, 1:-1])
    read = read_fields(tmp_path / "darcy.h5", 2)
    bound = 1e-6 if layout == "the_well" else 0
    for name, field in made.data.fields.items():
        np.testing.assert_allclose(read.fields[name], field, rtol=bound)
    np.testing.assert_allclose(read.grid[0], np.arange(1, 9) / 9, rtol=1e-6)
    with h5py.File(tmp_path / "darcy.h5") as file:
        np.testing.assert_array_equal(file["solver/iterations"], made.iterations)
        np.testing.assert_array_equal(file["solver/order"], made.order)
    assert [entry.name for entry in tmp_path.iterdir()] == ["darcy.h5"]


@pytest.mark.parametrize("family", [Poisson(6), Helmholtz(6), Thermal(6), ConvectionDiffusion(6), Darcy(6, rough=True)], ids=lambda f: type(f).__name__)
def test_every_family_makes_a_data_set(tmp_path, family):
    given = family.sample(jax.random.key(1), 3)
    made = generate_dataset(tmp_path / "set.hdf5", family, given, SolveEach(SparseLU()))
    read = read_fields(tmp_path / "set.hdf5", 2)
    assert set(read.fields) == {"u", *family.inputs(given[0])}
    np.testing.assert_allclose(made.data.fields["u"][2], exact(family, given[2]), rtol=1e-9)


class Stopped(BaseException):
    """Stands for the end of the process."""


def test_a_set_that_was_stopped_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    whole = generate_dataset(tmp_path / "whole.h5", FAMILY, parameters(), METHOD, groups=2, every=1)
    saved = []

    class StopsLater(generate.Checkpoint):
        def __call__(self, event):
            super().__call__(event)
            saved.append(event.step)
            if len(saved) == 6:  # in the second chain
                raise Stopped

    monkeypatch.setattr(generate, "Checkpoint", StopsLater)
    with pytest.raises(Stopped):
        generate_dataset(tmp_path / "half.h5", FAMILY, parameters(), METHOD, groups=2, every=1)
    monkeypatch.undo()
    assert not (tmp_path / "half.h5").exists() and (tmp_path / "half.h5.parts").is_dir()
    with pytest.raises(om.errors.ArgumentError, match="half-made"):
        generate_dataset(tmp_path / "half.h5", FAMILY, 2 * parameters(), METHOD, groups=2, every=1)
    half = generate_dataset(tmp_path / "half.h5", FAMILY, parameters(), METHOD, groups=2, every=1)
    for name in ("iterations", "products", "residuals"):
        np.testing.assert_array_equal(getattr(half, name), getattr(whole, name))
    np.testing.assert_array_equal(half.data.fields["u"], whole.data.fields["u"])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["half.h5", "whole.h5"]


def test_a_sample_that_could_not_be_solved_is_marked(tmp_path):
    made = generate_dataset(tmp_path / "set.h5", FAMILY, parameters(3), SolveEach(CG(1e-9, max_steps=5)))
    assert made.failed.all() and np.all(made.residuals > 1e-9)
    with h5py.File(tmp_path / "set.h5") as file:
        np.testing.assert_array_equal(file["solver/failed"], made.failed)


def test_a_chain_that_fails_loses_no_other(tmp_path):
    class Fails(Darcy):
        def system(self, parameter):
            raise RuntimeError("no such system")

    with pytest.raises(om.errors.OptimandError, match=r"1 of 1 chains.*no such system"):
        generate_dataset(tmp_path / "set.h5", Fails(6), parameters(3), METHOD)


def test_chains_in_other_processes_give_the_same_numbers(tmp_path):
    here = generate_dataset(tmp_path / "here.h5", FAMILY, parameters(), METHOD, groups=2)
    there = generate_dataset(tmp_path / "there.h5", FAMILY, parameters(), METHOD, groups=2, executor=ProcessPool(2))
    np.testing.assert_allclose(there.data.fields["u"], here.data.fields["u"], rtol=1e-9)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"path": "set.npz"}, "path"),
        ({"path": "no/such/folder/set.h5"}, "path"),
        ({"groups": 9}, "groups"),
        ({"groups": 0}, "groups"),
        ({"every": 0}, "every"),
        ({"layout": "zarr"}, "layout"),
        ({"order": np.array([0, 0, 1])}, "order"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, name):
    arguments = {"path": "set.h5", "groups": 1, "every": 5, "layout": "pdebench", "order": None} | changes
    path = tmp_path / arguments.pop("path")
    with pytest.raises(om.errors.ArgumentError, match=name):
        generate_dataset(path, FAMILY, parameters(3), METHOD, **arguments)
    assert not jnp.any(jnp.array([entry.suffix == ".h5" for entry in tmp_path.iterdir()]))
