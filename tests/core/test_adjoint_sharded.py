"""Implicit derivatives of an unknown that is divided over devices: the same numbers, and divided like it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optimand as om

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np, optimand as om

jax.config.update("jax_enable_x64", True)
size = 128  # above the dense limit
places = jax.sharding.Mesh(np.array(jax.devices()), ("parts",))
divided = jax.sharding.NamedSharding(places, jax.sharding.PartitionSpec("parts"))

def neighbours(x, theta):  # a symmetric system that couples all parts
    return 3 * x + 0.1 * x**3 - jnp.roll(x, 1) - jnp.roll(x, -1) - theta

def tilted(x, theta):  # and one that is not symmetric
    return neighbours(x, theta) + 0.5 * jnp.roll(x, 1)

found = {"devices": len(jax.devices())}
for condition, symmetric in ((neighbours, True), (tilted, False)):
    def newton(guess, theta):
        step = lambda _, x: x - jnp.linalg.solve(jax.jacfwd(condition)(x, theta), condition(x, theta))
        return jax.lax.fori_loop(0, 8, step, guess)

    solver = om.implicit(condition, symmetric=symmetric)(newton)
    gradient = jax.jit(jax.grad(lambda theta: jnp.sum(jnp.sin(solver(jnp.zeros(size), theta)))))
    theta = np.sin(np.arange(1.0, size + 1))
    alone, spread = gradient(theta), jax.jit(gradient, out_shardings=divided)(jax.device_put(theta, divided))
    x = newton(jnp.zeros(size), theta)
    matvec = jax.jit(lambda u: jax.jvp(lambda x: condition(x, theta), (x,), (u,))[1], in_shardings=divided)
    found[condition.__name__] = {
        "gap": float(np.max(np.abs(np.asarray(spread) - np.asarray(alone))) / np.max(np.abs(alone))),
        "shards": [shard.data.shape[0] for shard in spread.addressable_shards],
        "product": [shard.data.shape[0] for shard in matvec(jax.device_put(theta, divided)).addressable_shards],
    }
print(json.dumps(found))
"""


def test_on_two_devices_the_gradient_is_that_on_one_and_divided_like_its_unknown():
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(om.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 2 and len(found) == 2
    for case in found.values():
        assert case["gap"] < 1e-7
        assert case["shards"] == case["product"] == [64, 64]
