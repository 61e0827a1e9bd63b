"""Train the networks that come with the package, `optimand.linear.ConjugateDirectionNet.pretrained(2)` and `(3)`.

    python examples/train_conjugate_direction.py --dim 2 [--steps N] [--seed 0] [--out conjugate_direction_2d.eqx]

Poisson's equation in an empty box of one size that is open to air; solids and other sizes are left for tests. (With boxes of two sizes, or with solids, in training the loss ended four to ten
times as high, and the networks needed more iterations on solids and on all other sizes.) No solutions are used. Printed is the loss on right-hand sides that are kept aside: what one step along
the direction leaves of a unit vector, squared. The numbers follow from the seed and the steps, up to rounding that differs between machines. Two or three minutes on two cores.
"""

import argparse
import time

import jax

from optimand.linear import ConjugateDirectionNet, RitzSampler, train_inverse
from optimand.physics import PoissonGrid

__all__: list[str] = []

SIZES = {2: 32, 3: 16}
STEPS = {2: 1500, 3: 500}
NETWORKS = {2: {"width": 12, "levels": 4, "bottom_pairs": 4}, 3: {"width": 12, "levels": 3, "bottom_pairs": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, choices=(2, 3), default=2)
    parser.add_argument("--steps", type=int, help=f"{STEPS[2]} in two dimensions and {STEPS[3]} in three, if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam at first")
    parser.add_argument("--n-ritz", type=int, default=400)
    parser.add_argument("--out", help="file for the network")
    options = parser.parse_args()
    steps = options.steps or STEPS[options.dim]
    begun = time.perf_counter()

    def report(step: int, loss: float) -> None:
        print(f"step {step:6d}   loss {loss:.5f}   {time.perf_counter() - begun:5.0f} s", flush=True)

    net = ConjugateDirectionNet(options.dim, **NETWORKS[options.dim], key=jax.random.key(options.seed))
    net = train_inverse(
        net,
        PoissonGrid((SIZES[options.dim],) * options.dim),
        RitzSampler(options.n_ritz),
        steps=steps,
        batch=options.batch,
        learning_rate=options.rate,
        key=jax.random.key(options.seed + 1),
        every=max(1, steps // 7),
        report=report,
    )
    net.save(options.out or f"conjugate_direction_{options.dim}d.eqx")


if __name__ == "__main__":
    main()
