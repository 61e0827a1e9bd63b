"""The part on cost: the constraint alone, on a frozen random basis, against points, experts and devices."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from optimand.informed import DiffusionSorption1D, ExpertGrid, local_problems, solve_experts
from optimand.operators import FNO
from optimand.report import figures as draw

from ..base import Findings, Run, Table
from . import Settings
from .measuring import expert_seconds, seconds_of
from .training import constraint_of


def frozen_problems(total: int, experts: int, basis: int, seed: int) -> tuple[Any, Any]:
    """Local problems of diffusion-sorption on a square grid with `total` points, from a random network; and a start."""
    side, parts = round(total**0.5), round(experts**0.5)
    pde = DiffusionSorption1D(side, side)
    net = FNO(
        3, basis, 16, (4, 4), 2, activate_last_layer=True, activate_output=True, dtype=jnp.float32,
        key=jax.random.key(seed),
    )  # fmt: skip
    data = jnp.asarray(0.1)

    @eqx.filter_jit
    def make(net):
        fields = jnp.moveaxis(net(pde.inputs(data).astype(jnp.float32)), 0, -1).astype(float)
        return local_problems(pde, ExpertGrid((parts, parts)), fields, data)

    return make(net), jnp.full(basis, pde.start)


def run(settings: Settings, key: Any, out: Run) -> Findings:
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    constraint = constraint_of(settings, None, solver="normal")
    metrics, rows = {}, []
    lines: dict[str, tuple[list, list]] = {}
    for experts in settings.scaling_experts:
        for total in settings.scaling_points:
            if total // experts < settings.scaling_basis:
                continue
            out.progress(f"scaling: {total} points, {experts} experts")
            problems, start = frozen_problems(total, experts, settings.scaling_basis, seed)
            every = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start))
            wall = seconds_of(lambda p=problems, s=start, f=every: f(p, s), settings.scaling_repeats)
            alone, iterations = expert_seconds(problems, constraint, start, settings.scaling_repeats)
            bytes_ = problems.terms.shape[2] * settings.scaling_basis * 8
            foreign = None
            if settings.scaling_optimistix and total <= 16384:
                peer = constraint_of(settings, None, solver="optimistix", max_steps=100)
                every = eqx.filter_jit(lambda problems, start, peer=peer: solve_experts(problems, peer, start))
                foreign = 1e3 * seconds_of(lambda p=problems, s=start, f=every: f(p, s), settings.scaling_repeats)
            name = f"scaling/{experts}/{total}"
            metrics.update({
                f"{name}/wall": wall, f"{name}/critical": alone.max(), f"{name}/iterations": iterations.max(),
                f"{name}/jacobian_bytes": bytes_,
            })  # fmt: skip
            rows.append([total, experts, 1e3 * wall, 1e3 * alone.max(), int(iterations.max()), bytes_ / 2**20, foreign])
            sizes, costs = lines.setdefault(f"{experts} expert{'s' * (experts > 1)}, slowest alone", ([], []))
            sizes.append(total)
            costs.append(alone.max())
    if settings.scaling_devices > 1:
        total, experts = max(settings.scaling_points), max(settings.scaling_experts)
        out.progress(f"scaling: {settings.scaling_devices} devices")
        found = out.once("devices", lambda: _on_devices(settings, total, experts, seed))
        metrics.update({f"scaling/devices/{name}": float(value) for name, value in found.items()})
    columns = (
        "points",
        "experts",
        "ms, all (vmap)",
        "ms, slowest alone",
        "iterations",
        "MiB, Jacobian of one",
        "ms, Optimistix",
    )
    table = Table("Scaling of the constraint on a frozen random basis", columns, rows, f"N = {settings.scaling_basis}")
    figure = draw.scaling(lines, xlabel="points in all", ylabel="seconds, critical path", slope=1.0)
    return Findings(metrics, [table], {"Scaling of the constraint": figure})


def _on_devices(settings: Settings, total: int, experts: int, seed: int) -> dict[str, float]:
    """Wall time on one and on several host devices, measured in a process that has them."""
    request = {
        "total": total, "experts": experts, "basis": settings.scaling_basis, "seed": seed,
        "devices": settings.scaling_devices, "repeats": 2 * settings.scaling_repeats,
    }  # fmt: skip
    source = str(Path(__file__).parents[3])
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={settings.scaling_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
    }
    code = "import sys; from optimand.studies.hard_moe.scaling import time_devices; time_devices(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)], env=environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"timing on {settings.scaling_devices} devices failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_devices(request: str) -> None:
    """Print the wall times of the experts' solve on one and on several devices of this process, as JSON."""
    asked = json.loads(request)
    with jax.enable_x64(True):
        constraint = constraint_of(Settings(), None, solver="normal")
        problems, start = frozen_problems(asked["total"], asked["experts"], asked["basis"], asked["seed"])
        mesh = jax.make_mesh((asked["devices"],), ("experts",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec
        place = lambda leaf, spec: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))
        spread = dataclasses.replace(
            jax.tree.map(lambda leaf: place(leaf, spec()) if eqx.is_array(leaf) else leaf, problems),
            terms=place(problems.terms, spec("experts")),
            offsets=place(problems.offsets, spec("experts")),
            points=place(problems.points, spec("experts")),
        )
        one = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start))
        many = eqx.filter_jit(lambda problems, start: solve_experts(problems, constraint, start, mesh))
        begin = place(start, spec())
        runs = {"one": lambda: one(problems, start), "many": lambda: many(spread, begin)}
        gap = float(abs(np.asarray(runs["one"]()[0]) - np.asarray(runs["many"]()[0])).max())
        times: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(asked["repeats"]):  # in turns, so that both see the same machine
            for name, call in runs.items():
                times[name].append(seconds_of(call, 1))
    print(json.dumps({"one": float(np.median(times["one"])), "many": float(np.median(times["many"])), "gap": gap}))
