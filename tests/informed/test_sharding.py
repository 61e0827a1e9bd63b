"""Experts divided over devices, of one process and of two: the same fields and gradients."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import optimand as om
from informed_cases import PointwiseNet, eikonal, fields_and_gradients
from optimand.informed import ConstrainedBasis, ExpertGrid

pytestmark = pytest.mark.xdist_group("sharding")  # one worker, which finds the answer of one device once
WORKER = Path(__file__).parents[1] / "informed_worker.py"


def start(processes, number, port, devices):
    source = Path(om.__file__).parents[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(source), str(WORKER.parent)]),
    }
    command = [sys.executable, str(WORKER), str(processes), str(number), str(port)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    try:
        printed, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, said[-3000:]
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def alone():
    """Fields and gradients on one device."""
    with jax.enable_x64(True):
        return fields_and_gradients(None)


def agrees(found, alone):
    field, *gradient = (
        np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))
        for ours, theirs in zip(found["found"], alone, strict=True)
    )
    assert field < 1e-10 and len(gradient) == 2 and max(gradient) < 1e-8


def test_four_devices_of_one_process_agree_with_one(alone):
    found = finish(start(1, 0, 0, devices=4))
    assert found["devices"] == 4
    agrees(found, alone)


def test_two_processes_of_two_devices_agree_with_one(alone):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(2, number, port, devices=2) for number in range(2)]
    for found in [finish(process) for process in processes]:
        assert (found["devices"], found["processes"]) == (4, 2)
        agrees(found, alone)


def test_a_mesh_needs_an_axis_for_experts_that_divides_them():
    net, pde = PointwiseNet(3, 3, jax.random.key(0)), eikonal()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(om.core.errors.ArgumentError, match="axis 'experts'"):
        ConstrainedBasis(net, pde, experts=ExpertGrid((1, 2)), mesh=mesh)
    devices = np.array(jax.devices()[:1] * 3)
    with pytest.raises(om.core.errors.ArgumentError, match=r"3 devices along 'experts'.*4 experts"):
        ConstrainedBasis(net, pde, experts=ExpertGrid((1, 4)), mesh=jax.sharding.Mesh(devices, ("experts",)))
