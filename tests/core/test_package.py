"""The package loads lazily, and its names are there."""

import subprocess
import sys

import pytest

import optimand as om


def test_every_public_name_is_there():
    for name in dir(om):
        assert getattr(om, name) is not None
    for name in om.core.__all__:
        assert getattr(om, name) is getattr(om.core, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'solvr'"):
        om.solvr  # noqa: B018


def test_importing_the_package_imports_no_room_and_no_jax():
    code = "import sys, optimand; print([m for m in sys.modules if m.startswith(('jax', 'equinox', 'optimand.'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_library_never_imports_torch():
    rooms = ", ".join(f"optimand.{room}" for room in om.ROOMS)
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
