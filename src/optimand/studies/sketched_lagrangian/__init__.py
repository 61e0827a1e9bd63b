r"""Equality constraints by an exact augmented Lagrangian and randomised sketching: Hong et al. 2023 at the size of two cores.

a. **Hock-Schittkowski.** Eighteen small problems with equalities, standard guesses, multipliers from zero.
b. **Logistic regression.** Breast cancer data, ten random linear equations and the unit sphere as constraints.
c. **Elliptic control.** States and controls on a grid: small, where it is sketched, and large, without a matrix.

`AdaSketchNewton` with each of its sketches (Gaussian vector, random rows, Gaussian block, none) against inexact SQP with GMRES and
an l1 merit, plain and adaptive, and against an augmented Lagrangian with Newton-GMRES; SLSQP for orientation. Counted are outer
iterations, evaluations of objective and constraints, evaluations of their gradients, and sketches. Randomised methods run with
several keys, and enter a comparison with their median over them. The published comparison restarted GMRES after two iterations;
the same rivals with all of GMRES stand beside them, and are held against the method too.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from optimand.core.errors import ArgumentError
from optimand.smooth.hock_schittkowski import HOCK_SCHITTKOWSKI
from optimand.studies.base import Claim, Findings, Run, Table

SLUG = "sketched-lagrangian"
TITLE = "Exact augmented Lagrangian with sketched Newton systems, for equality constraints"
REFERENCE = "hong2023constrained"


_SKETCHES = ("gaussian_vector", "kaczmarz", "gaussian_block", "exact")
_RIVALS = ("strict", "gmres", "adaptive", "gmres-full", "adaptive-full", "augmented-lagrangian")


def _setting(default: Any, text: str, **bounds: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    parts: str = _setting("abc", "which experiments to run")
    problems: str = _setting(",".join(HOCK_SCHITTKOWSKI), "a: names of problems, separated by commas")
    repeats: int = _setting(5, "keys that each randomised method runs with", least=1)
    sketches: str = _setting("gaussian_vector,kaczmarz,gaussian_block,exact", "sketches of the relative rule, separated by commas")
    rivals: str = _setting(
        "strict,gmres,adaptive,gmres-full,adaptive-full,augmented-lagrangian", "the methods beside them, separated by commas"
    )
    block: int = _setting(10, "columns of a Gaussian block", least=1)
    relative: float = _setting(0.1, "relative accuracy of the linear solves")
    theta: float = _setting(1.0, "factor of the accuracy")
    theta_schedule: bool = _setting(False, "divide theta by the number of the iteration, for superlinear convergence")
    tolerance: float = _setting(1e-4, "of the norm of the KKT residual")
    violation: float = _setting(1.0, "first weight of the constraints in the merit, eta_1")
    stationarity: float = _setting(0.1, "first weight of the gradient of the Lagrangian in the merit, eta_2")
    delta: float = _setting(0.1, "first delta of the adaptive rule")
    growth: float = _setting(1.5, "nu, by which weights and accuracies are adapted")
    shift: float = _setting(0.1, "xi_B, of Hessians that are not positive definite")
    decrease: float = _setting(0.1, "beta of Armijo's condition")
    most_sketches: int = _setting(100_000, "a: sketches of one linear solve", least=1)
    most_sketches_large: int = _setting(1_000_000, "b and c: sketches of one linear solve", least=1)
    steps: int = _setting(500, "most outer iterations", least=1)
    gmres_restart: int = _setting(2, "iterations after which GMRES begins anew in the published rivals", least=1)
    logistic_equations: int = _setting(10, "b: linear equations", least=1)
    grid: int = _setting(3, "c: points a side of the grid that is sketched", least=2)
    large_grid: int = _setting(32, "c: points a side of the grid without a matrix", least=2)
    large_sketches: int = _setting(1000, "c: block sketches of one linear solve on the large grid", least=1)
    large_steps: int = _setting(20, "c: most outer iterations on the large grid", least=1)

    def __post_init__(self):
        if not self.parts or not set(self.parts) <= set("abc"):
            raise ArgumentError("parts", f"must be letters of abc, not {self.parts!r}.")
        allow = {"problems": HOCK_SCHITTKOWSKI, "sketches": _SKETCHES, "rivals": _RIVALS}
        for name, allowed in allow.items():
            unknown = set(split(getattr(self, name))) - set(allowed)
            if unknown or not split(getattr(self, name)):
                raise ArgumentError(name, f"has {', '.join(sorted(unknown)) or 'nothing'}.", f"There are: {', '.join(allowed)}.")


QUICK = {
    "parts": "ab",
    "problems": "HS28",
    "repeats": 1,
    "sketches": "gaussian_vector",
    "rivals": "gmres,adaptive",
    "steps": 60,
    "most_sketches": 20_000,
    "most_sketches_large": 20_000,
    "logistic_equations": 2,
    "large_grid": 4,
    "large_sketches": 50,
}


def split(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run(settings: Settings, key: jax.Array, out: Run) -> Findings:
    """One seed: all parts, in double precision."""
    from . import control, hock, logistic  # each needs Settings

    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    figures: dict[str, Any] = {}
    with jax.enable_x64(True):
        for number, (letter, part) in enumerate((("a", hock), ("b", logistic), ("c", control))):
            if letter not in settings.parts:
                continue
            found = part.run(settings, jax.random.fold_in(key, number), out)
            metrics |= {f"{letter} {name}": value for name, value in found.metrics.items()}
            tables += found.tables
            figures |= found.figures
    if set("ab") <= set(settings.parts):
        metrics |= _together(metrics, settings)
    return Findings(metrics, tables, figures)


def _together(metrics: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Medians over the problems of both parts, of each method that all of them were given to."""
    problems = (*(f"a {name}" for name in split(settings.problems)), "b logistic")
    found = {}
    for method in ("gaussian_vector", *(set(_RIVALS) & set(split(settings.rivals)))):
        for what in ("evaluations", "iterations", "kkt"):
            numbers = [metrics.get(f"{problem}: {method}: {what}", np.nan) for problem in problems]
            found[f"median {what}, {method}"] = np.median(numbers)
    return found


def claims(seeds: list[dict[str, float]], settings: Settings) -> list[Claim]:
    """The bars of the study; the worst seed counts."""
    found: list[Claim] = []
    every = lambda name: np.array([seed.get(name, np.nan) for seed in seeds])
    sketches = split(settings.sketches)
    problems, rivals = split(settings.problems), split(settings.rivals)
    if "a" in settings.parts:
        bar = float(len(problems) - 1)  # 17 of 18
        note = "KKT <= 1e-4, |f - f*| <= 1e-3 max(1, |f*|); least over keys and seeds"
        for sketch in ("gaussian_vector", "gaussian_block"):
            if sketch in sketches:
                solved = every(f"a {sketch}: solved, least").min()
                found.append(Claim.at_least(f"1. {sketch}: problems solved of {len(problems)}", solved, bar, "45 of 47", note))
    if set("ab") <= set(settings.parts) and "gaussian_vector" in sketches:
        published = f"rivals restart GMRES after {settings.gmres_restart} iterations, as published; medians over (a) and (b)"
        for suffix, text, note in (("", "", published), ("-full", ", with all of GMRES", "more than was published")):
            for name, what, rival, bar, paper in (
                ("evaluations / those of GMRES-SQP", "evaluations", "gmres", 0.5, "0.15"),
                ("evaluations / those of adaptive GMRES-SQP", "evaluations", "adaptive", 1.3, "1.12"),
                ("outer iterations / those of adaptive GMRES-SQP", "iterations", "adaptive", 1.0, "0.83"),
                ("KKT residual / that of adaptive GMRES-SQP", "kkt", "adaptive", 0.1, "0.002"),
            ):
                if rival + suffix in rivals:
                    ratio = (every(f"median {what}, gaussian_vector") / every(f"median {what}, {rival}{suffix}")).max()
                    found.append(Claim.at_most(f"2. {name}{text}", ratio, bar, paper, note))
        if {"strict", "adaptive"} <= set(rivals):
            ratio = (every("median kkt, strict") / every("median kkt, adaptive")).max()
            note = "the accuracy rule that was published, which solves each linear system far more accurately"
            found.append(Claim.at_most("2. KKT residual, adaptive accuracy / that of adaptive GMRES-SQP", ratio, 0.1, "0.002", note))
    if "a" in settings.parts and "gaussian_vector" in sketches:
        share = every("a gaussian_vector: share with unit steps at the end").min()
        found.append(Claim.at_least("3. share of problems with unit steps in the last two iterations", share, 0.8))
    if "a" in settings.parts and "strict" in rivals and "exact" in sketches:
        alike = every("a strict: as many iterations as exact Newton, within 2").min()
        note = "the adaptive rule, which is that of the reference implementation"
        bar = float(np.ceil(15 / 18 * len(problems)))
        found.append(Claim.at_least(f"4. problems of {len(problems)} with the iterations of exact Newton +- 2", alike, bar, None, note))
    if "b" in settings.parts and "gaussian_vector" in sketches:
        worst = every("b logistic: gaussian_vector: iterations, most").max()
        found.append(Claim.at_most("5. logistic: outer iterations to KKT <= 1e-4", worst, 15.0, "7-10"))
    return found
