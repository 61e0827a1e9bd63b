"""Makes `measurements.csv`: concentrations at three ports of a soil column, computed with known parameters and noise.

The column is `optimand.physics.DiffusionSorption` on 256 cells, four times finer than the model that is fitted to the
measurements, with diffusion 5e-4, sorption 3.5e-4 and exponent 0.874. To each concentration is added independent
Gaussian noise of standard deviation 0.01 (relative to the concentration at the inlet), and it is written with four
decimals, as an instrument would.

    python examples/sorption_column/make_measurements.py
"""

import csv
from pathlib import Path

import jax
import numpy as np

import optimand as om

PORTS = (0.15, 0.3, 0.5)  # of the column's length
TIMES = np.arange(100.0, 4001.0, 100.0)  # s
NOISE = 0.01
SEED = 0

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    column = om.physics.DiffusionSorption(cells=256, dt=float(TIMES[0]))
    states = om.physics.rollout(column, column.initial(0.0), steps=len(TIMES)).observations
    profiles = np.asarray(jax.vmap(lambda u: column.profile(u, np.array(PORTS)))(states.u))
    noise = NOISE * np.random.default_rng(SEED).normal(size=profiles.shape)
    path = Path(__file__).with_name("measurements.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["time_s", "port", "concentration"])
        for place, port in enumerate(PORTS):
            for time, value in zip(TIMES, profiles[:, place] + noise[:, place], strict=True):
                table.writerow([f"{time:g}", f"{port:g}", f"{value:.4f}"])
    print(path)
