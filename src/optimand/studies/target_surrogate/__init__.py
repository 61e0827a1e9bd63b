r"""Target-based surrogates: many parameter steps for each call of an oracle, beside methods that call it for every step.

Lavington, Vaswani, Babanezhad, Schmidt and Le Roux (ICML 2023): the gradient of a loss in the outputs of a model, asked once, makes
a surrogate on which the parameters take m steps (SSO). Three parts, each of which can be run alone, and a count:

- `A`: logistic regression on breast cancer and digits data, in batches of 25 and 125 and on all data.
- `B`: a linear network of two layers on an ill-conditioned map.
- `C`: online imitation of an expert that balances a pole on a cart, on the states that the policy itself visits.
- `O`: how often an oracle on the host is really called.

The rivals are tuned on grids, each of which runs as one program, and the best of a grid is chosen with the figure that is then
reported; SSO has its theoretical step size 1/L in target space and is not tuned. All methods see the same batches.

The authors' programs minimise the mean of \(g f / e + (f - z)^2\) and call \(1/e\) the step size: theirs is twice the \(\eta\) here.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from optimand.core.errors import ArgumentError

from ..base import Claim, Findings, Run, Table

SLUG = "target-surrogate"
TITLE = "Target-based surrogates: fewer oracle calls"
REFERENCE = "lavington2023target"

Part = Literal["A", "B", "C", "O"]
DataSet = Literal["breast_cancer", "digits"]
RivalName = Literal["SLS", "Adam", "AdaGrad"]


def _setting(default: Any, about: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: tuple[Part, ...] = _setting(("A", "B", "C", "O"), "parts to run")
    rivals: tuple[RivalName, ...] = _setting(("SLS", "Adam", "AdaGrad"), "methods beside SGD, which always runs")
    rule: Literal["constant", "exponential", "armijo", "adagrad"] = _setting(
        "constant", "of SSO, in target space; A runs 1/sqrt(t) beside a constant step"
    )
    inner: Literal["armijo", "gd", "adam"] = _setting("armijo", "what takes the inner steps of SSO")
    inner_rate: float = _setting(1e-3, "learning rate of gd and adam as inner methods", least=0)
    decrease: float = _setting(0.5, "c of the inner line search", least=0, most=1)
    longest: tuple[float, ...] = _setting((1.0, 10.0, 100.0), "grid of SLS: longest steps", least=0)

    datasets: tuple[DataSet, ...] = _setting(("breast_cancer", "digits"), "A: data sets")
    batches: tuple[int, ...] = _setting((25, 125, 0), "A: examples in a batch; 0 is all", least=0)
    epochs: int = _setting(50, "A: passes over the data", least=1)
    eta: float = _setting(4.0, "A: step size of SSO in target space", least=0)
    inner_steps: tuple[int, ...] = _setting((1, 5, 10, 20), "A: m of SSO", least=1)
    rates: tuple[float, ...] = _setting((1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0), "A: grid of learning rates", least=0)

    factorisation_batches: tuple[int, ...] = _setting((0, 100), "B: examples in a batch; 0 is all", least=0)
    calls: int = _setting(100, "B: oracle calls", least=1)
    samples: int = _setting(1000, "B: examples", least=1)
    condition: float = _setting(1e-10, "B: scale of the last row of the map, where the first has 1", least=0)
    hidden_linear: int = _setting(6, "B: width of the hidden layer", least=1)
    start: Literal["uniform", "normal"] = _setting("uniform", "B: weights to begin with, of one or three times the variance")
    factorisation_eta: float = _setting(0.5, "B: step size of SSO in target space", least=0)
    factorisation_inner_steps: tuple[int, ...] = _setting((1, 10, 50), "B: m of SSO", least=1)
    factorisation_rates: tuple[float, ...] = _setting(
        (3e-3, 1e-2, 3e-2, 0.1, 0.15, 0.2, 0.3, 1.0), "B: grid of learning rates", least=0
    )

    rounds: int = _setting(40, "C: rollouts", least=1)
    horizon: int = _setting(100, "C: steps of a rollout, and calls of the expert", least=2)
    hidden: int = _setting(64, "C: width of both hidden layers of the policy", least=1)
    episodes: int = _setting(16, "C: fresh rollouts that judge a policy", least=1)
    imitation_eta: float = _setting(0.5, "C: step size of SSO in target space", least=0)
    imitation_inner_steps: tuple[int, ...] = _setting((1, 10, 100), "C: m of SSO", least=1)
    imitation_rates: tuple[float, ...] = _setting(
        (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0), "C: grid of learning rates", least=0
    )

    def __post_init__(self):
        for name in ("parts", "datasets", "batches", "inner_steps", "rates", "longest"):
            if not getattr(self, name):
                raise ArgumentError(name, "must not be empty.")
        for name in ("eta", "factorisation_eta", "imitation_eta", "inner_rate"):
            if not getattr(self, name) > 0:
                raise ArgumentError(name, f"must be positive, not {getattr(self, name)!r}.")


QUICK = {
    "rivals": ("Adam",),
    "datasets": ("breast_cancer",),
    "batches": (125,),
    "epochs": 3,
    "inner_steps": (1, 5),
    "rates": (0.1, 1.0),
    "longest": (10.0,),
    "factorisation_batches": (0,),
    "calls": 10,
    "samples": 100,
    "factorisation_inner_steps": (1, 10),
    "factorisation_rates": (0.1,),
    "rounds": 4,
    "horizon": 20,
    "hidden": 8,
    "episodes": 2,
    "imitation_inner_steps": (1, 10),
    "imitation_rates": (1e-2,),
}


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    """One seed: all parts, in double precision, but for the count."""
    from . import factorisation, imitation, logistic, oracle  # each needs Settings

    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    drawn: dict[str, Any] = {}
    for number, (letter, part) in enumerate({"A": logistic, "B": factorisation, "C": imitation, "O": oracle}.items()):
        if letter in settings.parts:
            out.progress(f"part {letter}")
            with jax.enable_x64(letter != "O"):
                found = part.run(settings, jax.random.fold_in(key, number), out)
            metrics |= {f"{letter} {name}": float(value) for name, value in found.metrics.items()}
            tables += found.tables
            drawn |= found.figures
    return Findings(metrics, tables, drawn)


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars: means over seeds, SSO as it comes against the best of each seed's grid."""

    def mean(name: str) -> float:
        return float(np.mean([seed.get(name, np.nan) for seed in seeds]))

    def have(*names: str) -> bool:
        return all(name in seed for seed in seeds for name in names)

    note = f"mean over {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, equal oracle calls"
    found: list[Claim] = []
    for name in settings.datasets:
        batch, full = f"A {name}, batch 25", f"A {name}, full"
        for rival, who in (("SGD decades", "best SGD of powers of ten"), ("SGD", "best SGD of all rates")):
            if have(f"{batch}, SSO 5", f"{batch}, {rival}"):
                ratio = mean(f"{batch}, SSO 5") / mean(f"{batch}, {rival}")
                found.append(Claim.at_most(f"A: {name}, batch 25: SSO, m = 5 / {who}", ratio, 1.0, note=note))
            if have(f"{full}, SSO 20", f"{full}, {rival}"):
                ratio = mean(f"{full}, SSO 20") / mean(f"{full}, {rival}")
                found.append(Claim.at_most(f"A: {name}, full batch: SSO, m = 20 / {who}", ratio, 1.06, note=note))
        if have(f"{full}, SSO 20"):
            ratio = mean(f"{full}, SSO 20") / mean(f"{full}, SGD 1/L")
            found.append(Claim.at_most(f"A: {name}, full batch: SSO, m = 20 / SGD with 1/L", ratio, 0.6, note=note))
    if have("B full, 50 calls, SSO 10", "B full, 50 calls, SSO 1"):
        ten = mean("B full, 50 calls, SSO 10")
        ratio = ten / mean("B full, 50 calls, SSO 1")
        found.append(Claim.at_most("B: full batch, 50 calls: SSO, m = 10 / m = 1", ratio, 1e-2, note=note))
        ratio = ten / mean("B full, 50 calls, GD")
        found.append(Claim.at_most("B: full batch, 50 calls: SSO, m = 10 / best GD", ratio, 1e-3, note=note))
    if have("B full, 10 calls, SSO 50", "B full, 10 calls, SSO 1"):
        ratio = mean("B full, 10 calls, SSO 50") / mean("B full, 10 calls, SSO 1")
        found.append(Claim.at_most("B: full batch, 10 calls: SSO, m = 50 / m = 1", ratio, 1e-3, note=note))
    if have("C SSO 100 calls", "C Adam calls"):
        ours = mean("C SSO 100 calls")  # NaN if a seed never comes so low: then the claim does not hold
        most = settings.rounds * settings.horizon  # a rival that never does needs more than it was given
        theirs = float(np.mean([most if np.isnan(seed["C Adam calls"]) else seed["C Adam calls"] for seed in seeds]))
        text = "calls until the loss is twice the least of all; a rival that never comes so low counts with what it was given"
        found.append(Claim.at_most("C: calls of the expert: SSO, m = 100 / best Adam", ours / theirs, 0.5, note=text))
    counted = {name: seed[name] for seed in seeds for name in seed if name.endswith("calls per step")}
    if counted:
        worst = max((seed[name] for seed in seeds for name in counted), key=lambda ratio: abs(ratio - 1))
        found.append(Claim.between("Calls of the oracle for each outer step, whatever m", worst, 1.0, 1.0))
    return found
