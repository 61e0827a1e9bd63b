"""What it costs to import optimand, and to ask for help: whole processes, interleaved, medians.

    python benchmarks/start_up.py

Bars: `import optimand` at most 0.15 s over importing jax and equinox; `optimand --help` under 0.5 s, without JAX. Python
may keep its bytecode, as an installer does: a first round that does not count writes it.
"""

import os
import statistics
import subprocess
import sys
import time

from record import write

COMMANDS = {
    "jax and equinox": "import jax, equinox",
    "jax, equinox and optimand": "import jax, equinox, optimand",
    "jax, equinox and optimand.solve": "import jax, equinox, optimand; optimand.solve",
    "optimand --help": "import sys; sys.argv = ['optimand', '--help']; from optimand.cli import main; main()",
}


def seconds(code: str) -> float:
    """One process from start to end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    clock = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - clock


def main(repeats: int = 15) -> None:
    times = {name: [] for name in COMMANDS}
    for code in COMMANDS.values():
        seconds(code)
    for _ in range(repeats):
        for name, code in COMMANDS.items():
            times[name].append(seconds(code))
    median = {name: statistics.median(values) for name, values in times.items()}
    base = median["jax and equinox"]
    rows = [
        {"what": name, "median seconds": value, "over jax and equinox": value - base} for name, value in median.items()
    ]
    write(
        "start_up",
        "Import and help",
        rows,
        [
            ("import optimand, over jax and equinox [s]", median["jax, equinox and optimand"] - base, 0.15),
            (
                "import optimand and touch the core, over jax and equinox [s]",
                median["jax, equinox and optimand.solve"] - base,
                0.15,
            ),
            ("optimand --help [s]", median["optimand --help"], 0.5),
        ],
    )


if __name__ == "__main__":
    main()
