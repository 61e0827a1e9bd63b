"""Files of fields: what is written is read again, and a bad file is told from a good one, with where and why."""

import sys

import numpy as np
import pytest

import optimand as om
from optimand.core.errors import ArgumentError, MissingExtra
from optimand.datasets import FieldData, read_fields, write_fields

h5py = pytest.importorskip("h5py")


def data(dimensions=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    space = (5, 4, 3)[:dimensions]
    fields = {"tensor": rng.normal(size=(3, 6, *space)).astype(dtype), "nu": rng.normal(size=(3, *space)).astype(dtype)}
    return FieldData(fields, tuple(np.linspace(0, 1, n) for n in space), np.arange(6.0))


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_what_is_written_is_read(tmp_path, suffix, dimensions):
    before = data(dimensions)
    after = read_fields(write_fields(tmp_path / f"fields{suffix}", before), dimensions)
    assert set(after.fields) == set(before.fields) and len(after) == 3
    for name, field in before.fields.items():
        np.testing.assert_array_equal(after.fields[name], field)
        assert after.fields[name].dtype == field.dtype
    np.testing.assert_array_equal(after.times, before.times)
    for a, b in zip(after.grid, before.grid, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == [f"fields{suffix}"]


def test_files_with_one_group_a_sample_are_read(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 6, 5, 4, 2))
    with h5py.File(tmp_path / "samples.h5", "w") as file:
        for i in range(2):
            file[f"000{i}/data"] = values[i]
            for name, n in (("t", 6), ("x", 5), ("y", 4)):
                file[f"000{i}/grid/{name}"] = np.arange(float(n))
    read = read_fields(tmp_path / "samples.h5", 2)
    np.testing.assert_array_equal(read.fields["data_1"], values[..., 1])
    with h5py.File(tmp_path / "samples.h5", "a") as file:
        del file["0001/grid/t"]
    with pytest.raises(ArgumentError, match=r"'0001'.*grid/t"):
        read_fields(tmp_path / "samples.h5", 2)


def test_quirks_of_pdebench_are_read(tmp_path):
    x = np.linspace(0, 1, 5)
    np.savez(tmp_path / "a.npz", tensor=np.ones((2, 6, 5)), **{"x-coordinate": x, "t-coordinate": np.arange(7.0)})
    assert read_fields(tmp_path / "a.npz", 1).times.size == 6
    flow = {"nu": np.ones((2, 5, 5)), "tensor": np.ones((2, 1, 5, 5)), "x-coordinate": x, "y-coordinate": x}
    np.savez(tmp_path / "b.npz", **flow)
    darcy = read_fields(tmp_path / "b.npz", 2)
    assert darcy.times is None and darcy.fields["tensor"].shape == (2, 5, 5)


def test_samples_can_be_chosen():
    some = data()[1:]
    assert len(some) == 2
    np.testing.assert_array_equal(some.fields["nu"], data().fields["nu"][1:])
    with pytest.raises(ArgumentError, match=r"\[1:2\]"):
        data()[1]


def broken(**changes):
    entries = {"tensor": np.ones((2, 6, 5)), "x-coordinate": np.arange(5.0), "t-coordinate": np.arange(6.0)}
    entries |= {name.replace("_c", "-c"): value for name, value in changes.items()}
    return {name: value for name, value in entries.items() if value is not None}


NOT_A_NUMBER = np.ones((2, 6, 5))
NOT_A_NUMBER[1, 2, 3] = np.nan


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (broken(x_coordinate=None), "x-coordinate.*missing"),
        (broken(t_coordinate=None), "no t-coordinate"),
        (broken(tensor=np.ones(2)), "rank 1"),
        (broken(tensor=np.ones((2, 6, 4))), r"\(2, 6, 4\)"),
        (broken(tensor=NOT_A_NUMBER), r"nan at index \(1, 2, 3\)"),
        (broken(tensor=np.ones((2, 6, 5), int)), "int64"),
        (broken(tensor=None), "empty"),
        (broken(other=np.ones((3, 5))), "as many samples"),
        (broken(x_coordinate=np.zeros(5)), "increasing"),
    ],
)
def test_malformed_files_are_refused_with_the_reason(tmp_path, entries, words, suffix):
    path = tmp_path / f"bad{suffix}"
    if suffix == ".npz":
        np.savez(path, **entries)
    else:
        with h5py.File(path, "w") as file:
            for name, value in entries.items():
                file[name] = value
    with pytest.raises(ArgumentError, match=words) as caught:
        read_fields(path, 1)
    assert "bad" in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, part):
    path = write_fields(tmp_path / f"fields{suffix}", data())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_fields(path, 2)


def test_paths_and_names_are_checked(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="names no file"):
        read_fields(tmp_path / "none.npz", 1)
    with pytest.raises(ArgumentError, match="must end in"):
        read_fields(tmp_path / "fields.csv", 1)
    with pytest.raises(ArgumentError, match="dimensions"):
        read_fields(tmp_path / "none.npz", 4)
    with pytest.raises(ArgumentError, match="coordinates"):
        write_fields(tmp_path / "a.npz", FieldData({"q-coordinate": np.ones((1, 2))}, (np.arange(2.0),)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"optimand\[data\]"):
        write_fields(tmp_path / "fields.h5", data())
    assert om.datasets.FieldData is FieldData
