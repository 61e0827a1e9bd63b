"""Our FNO against that of `neuraloperator`, with the same weights, in one process.

    python benchmarks/fno_vs_neuraloperator.py [--rounds 15]

Needs torch and neuraloperator (the extra `peers`) beside optimand. For each case: the largest difference of the outputs
relative to the largest output, and the times of a forward pass and of a forward and backward pass (the gradient of the
mean square of the output with respect to all weights) of both, on the same threads. Compiling and warming up are kept
apart; the libraries take turns in rounds, each round is the median of its calls, and the medians over rounds are
compared.
"""

import argparse
import os
import statistics
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import record
import torch
from neuralop.models import FNO as PeerFNO

import optimand as om

CASES = {  # n_modes of theirs, grid, batch, width, layers, channel network
    "2d 64x64, width 32, batch 4": ((16, 16), (64, 64), 4, 32, 4, False),
    "2d 64x64, width 32, batch 4, channel network": ((16, 16), (64, 64), 4, 32, 4, True),
    "2d 64x64, width 32, batch 4, 24 modes": ((24, 24), (64, 64), 4, 32, 4, False),
    "3d 16x32x32, width 16, batch 2": ((12, 16, 14), (16, 32, 32), 2, 16, 4, False),
}


def median_seconds(call, calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, rounds: int, calls: int) -> list[dict]:
    """A row for each pass."""
    modes, grid, batch, width, layers, mlp = CASES[name]
    torch.manual_seed(0)
    theirs = PeerFNO(modes, 1, 1, width, n_layers=layers, use_channel_mlp=mlp)
    state = {key: value.detach().numpy() for key, value in theirs.state_dict().items() if hasattr(value, "detach")}
    ours = om.operators.from_neuraloperator(state, in_channels=1)
    x = np.random.default_rng(0).normal(size=(batch, 1, *grid)).astype(np.float32)
    x_torch, x_jax = torch.from_numpy(x), jnp.asarray(x)

    forward = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
    backward = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2)))

    def their_forward():
        with torch.no_grad():
            return theirs(x_torch)

    def their_backward():
        theirs.zero_grad()
        (theirs(x_torch) ** 2).mean().backward()

    start = time.perf_counter()
    output = np.asarray(forward(ours, x_jax))
    jax.block_until_ready(backward(ours, x_jax))
    compile_seconds = time.perf_counter() - start
    expected = their_forward().numpy()
    pairs = {
        "forward": (lambda: jax.block_until_ready(forward(ours, x_jax)), their_forward),
        "forward and backward": (lambda: jax.block_until_ready(backward(ours, x_jax)), their_backward),
    }
    difference = float(np.abs(output - expected).max() / np.abs(expected).max())
    rows = []
    for what, (our_call, their_call) in pairs.items():
        median_seconds(our_call, calls), median_seconds(their_call, calls)  # warm up
        both = [(median_seconds(our_call, calls), median_seconds(their_call, calls)) for _ in range(rounds)]
        our_seconds, their_seconds = (statistics.median(times) for times in zip(*both, strict=True))
        rows.append({
            "case": name, "what": what, "milliseconds, ours": 1e3 * our_seconds,
            "milliseconds, neuraloperator": 1e3 * their_seconds, "ratio": our_seconds / their_seconds,
            "difference of the outputs": difference, "seconds to compile": compile_seconds,
        })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--only", choices=CASES, help="one case; writes no file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="neuralop")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    names = [options.only] if options.only else list(CASES)
    rows = [row for name in names for row in measure(name, options.rounds, options.calls)]
    difference = max(row["difference of the outputs"] for row in rows)
    claims = [("copied weights: largest relative difference of the outputs", difference, 1e-5)]
    claims += [
        (f"{row['what']}, over neuraloperator's time ({row['case']})", row["ratio"], 1.0)
        for row in rows
        if row["what"] == "forward and backward"
    ]
    if options.only:
        print(rows, claims)
    else:
        record.write("fno_vs_neuraloperator", "The Fourier neural operator against neuraloperator", rows, claims,
                     conditions={"threads of torch": torch.get_num_threads()})  # fmt: skip


if __name__ == "__main__":
    main()
