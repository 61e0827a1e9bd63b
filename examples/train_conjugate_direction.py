"""Train the networks that come with the package, `optimand.linear.ConjugateDirectionNet.pretrained(2)` and `(3)`.

    python examples/train_conjugate_direction.py --dim 2 [--steps 1000] [--seed 0] [--out conjugate_direction_2d.eqx]

Pressure systems on grids of a few sizes, in boxes that are open to air or closed on some sides, empty or with solids in them: discs, bars and what random fields are above a
level. No solutions are used. Printed is the loss on right-hand sides that are kept aside, the mean over all systems: what one step along the direction leaves of a unit
vector, squared. The numbers follow from the seed and the steps, up to rounding that differs between machines.
"""

import argparse
import time

import jax
import numpy as np
import scipy.ndimage

from optimand.linear import ConjugateDirectionNet, RitzSampler, train_inverse
from optimand.physics import PoissonGrid

__all__: list[str] = []

SIZES = {2: [(32, 32), (48, 48)], 3: [(12, 12, 12), (16, 16, 16)]}
GEOMETRIES = {2: 6, 3: 6}  # of each size
NETWORKS = {
    2: {"width": 16, "levels": 4, "pairs": 1, "bottom_pairs": 3},
    3: {"width": 12, "levels": 3, "pairs": 1, "bottom_pairs": 2},
}


def systems(dim: int, seed: int) -> list[PoissonGrid]:
    """Grids of all sizes, in turn, each with as many geometries; the first of each size is an empty box."""
    rng = np.random.default_rng(seed)
    return [_geometry(shape, number, rng) for number in range(GEOMETRIES[dim]) for shape in SIZES[dim]]


def _geometry(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> PoissonGrid:
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij"), -1)
    solid = np.zeros(shape, bool)
    kind = number % 4
    if kind == 1:  # balls
        for _ in range(rng.integers(1, 4)):
            solid |= np.sum((places - rng.uniform(0.1, 0.9, len(shape))) ** 2, axis=-1) < rng.uniform(0.06, 0.22) ** 2
    if kind == 2:  # bars
        for _ in range(rng.integers(1, 4)):
            low, size = rng.uniform(0, 0.8, len(shape)), rng.uniform(0.06, 0.5, len(shape))
            solid |= np.all((places > low) & (places < low + size), axis=-1)
    if kind == 3:  # where a smooth random field is high
        field = scipy.ndimage.gaussian_filter(rng.normal(size=shape), min(shape) / 12)
        solid = field > np.quantile(field, rng.uniform(0.7, 0.9))
    air = np.zeros(shape, bool)
    boundary = "air"
    if number >= 4:  # walls, but for the top
        boundary = "solid"
        air[..., -1] = True
    return PoissonGrid(shape, solid=solid & ~air, air=air, boundary=boundary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam at first")
    parser.add_argument("--n-ritz", type=int, default=200)
    parser.add_argument("--out", help="file for the network")
    options = parser.parse_args()
    begun = time.perf_counter()

    def report(step: int, loss: float) -> None:
        print(f"step {step:6d}   loss {loss:.5f}   {time.perf_counter() - begun:5.0f} s", flush=True)

    net = ConjugateDirectionNet(options.dim, **NETWORKS[options.dim], mask_channel=True, key=jax.random.key(options.seed))
    net = train_inverse(
        net,
        systems(options.dim, options.seed),
        RitzSampler(options.n_ritz),
        steps=options.steps,
        batch=options.batch,
        learning_rate=options.rate,
        key=jax.random.key(options.seed + 1),
        every=max(1, options.steps // 5),
        report=report,
    )
    net.save(options.out or f"conjugate_direction_{options.dim}d.eqx")


if __name__ == "__main__":
    main()
