"""A process with several host devices: solves a small problem of four experts divided over all of them.

Arguments: the number of processes, the number of this one, and the port of the first. Prints fields and gradients as JSON.
"""

import json
import sys

import jax

processes, number, port = map(int, sys.argv[1:])
jax.config.update("jax_enable_x64", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)

import numpy as np  # noqa: E402

from informed_cases import fields_and_gradients  # noqa: E402

devices = np.array(jax.devices())
found = fields_and_gradients(jax.sharding.Mesh(devices, ("experts",)))
print(
    json.dumps({"devices": len(devices), "processes": jax.process_count(), "found": [leaf.tolist() for leaf in found]})
)
