"""A process with several host devices: solves a small problem of four experts on one device and on all, and compares.

Arguments: the number of processes, the number of this one, and the port of the first. Prints the largest relative differences
of fields and gradients as JSON.
"""

import json
import sys

import jax

processes, number, port = map(int, sys.argv[1:])
jax.config.update("jax_enable_x64", True)
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from informed_cases import PointwiseNet, eikonal  # noqa: E402
from optimand.informed import ConstrainedBasis, ExpertGrid, NLLSConstraint  # noqa: E402

devices = np.array(jax.devices())
mesh = jax.sharding.Mesh(devices, ("experts",))
pde = eikonal()
constraint = NLLSConstraint(points=8, solver="normal")
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def replicate(leaf):
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, everywhere, lambda index: whole[index])


def field_and_gradient(mesh):
    model = ConstrainedBasis(
        PointwiseNet(3, 3, jax.random.key(0), jnp.float64),
        pde,
        experts=ExpertGrid((1, 4)),
        constraint=constraint,
        mesh=mesh,
        dtype=np.float64,
    )
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    samples = jnp.asarray([1.2, 0.8])
    if mesh is not None:
        weights, samples = jax.tree.map(replicate, (weights, samples))

    def loss(weights, samples):
        model = eqx.combine(weights, rest)
        fields = jax.vmap(lambda data: model(data, key=jax.random.key(5)))(samples)
        return jnp.mean(jax.vmap(pde.loss)(fields, samples)), fields

    options = {} if mesh is None else {"out_shardings": everywhere}
    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), **options)
    (_, fields), gradient = compiled(weights, samples)
    return [np.asarray(leaf.addressable_data(0)) for leaf in (fields, *jax.tree.leaves(gradient))]


alone, spread = field_and_gradient(None), field_and_gradient(mesh)
gaps = [float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in zip(alone, spread, strict=True)]
print(
    json.dumps({"devices": len(devices), "processes": jax.process_count(), "field": gaps[0], "gradient": max(gaps[1:])})
)
