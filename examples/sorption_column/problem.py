"""Identify the sorption parameters of a soil column from breakthrough measurements.

A solute enters a column of soil at one end; its concentration is measured over time at ports along the column, where it
breaks through the later the more of it sorbs to the grains. The Freundlich coefficient k and the exponent n of

    R(u) u_t = D u_xx,    R(u) = 1 + (1 - φ)/φ ρ_s k n u^(n-1)

are found by Levenberg-Marquardt through the simulator, with the diffusion coefficient D known from a tracer that does not
sorb. The estimate θ* is a function of the measurements y, and the
implicit function theorem gives its derivative, from the Hessian of the misfit H and the Jacobian of the model J:

    dθ*/dy = H⁻¹ Jᵀ,    so that    cov θ* = σ² (dθ*/dy) (dθ*/dy)ᵀ ,

with σ estimated from what is left of the misfit: confidence intervals without a single refit.

    optimand solve examples/sorption_column/problem.py --out runs/column
    optimand solve examples/sorption_column/problem.py --set DATA=mine.csv DIFFUSION=4e-4
    optimand solve examples/sorption_column/problem.py --set FIT=diffusion,sorption,exponent

(The last one shows what such measurements cannot tell: D and k together explain them almost as well tenfold larger, with a
correlation of 0.9997, and intervals that follow from a derivative are then too short.)
`measurements.csv` was computed, by `make_measurements.py` beside it, with noise of standard deviation 0.01. Your own file
has the same three columns: `time_s`, `port` (place as a fraction of the length), `concentration` (relative to the inlet).
"""

import csv
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import optimand as om
from optimand.core.errors import ArgumentError
from optimand.studies import Claim, Findings, Table

jax.config.update("jax_enable_x64", True)  # a program may choose its precision; the library never does

DATA: Path | None = None  # a CSV file; the one beside this file by default
FIT: tuple[str, ...] = ("sorption", "exponent")  # what is unknown
DIFFUSION = 5e-4  # D: what is known, from a test with a tracer that does not sorb; or the guess, if it is to be fitted
SORPTION = 5e-4  # k, likewise
EXPONENT = 0.8  # n, likewise
POROSITY = 0.29
DENSITY = 2880.0  # kg/m3, of the grains
CELLS = 48
PERIODS = 40  # of the simulation, which is linear in time between them
CONFIDENCE = 0.95
COLUMNS = ("time_s", "port", "concentration")
TRUTH = {
    "diffusion": 5e-4,
    "sorption": 3.5e-4,
    "exponent": 0.874,
}  # what the measurements beside this file were made of


def read_measurements(path):
    """Times, ports and concentrations; every line that is not right is named."""

    def wrong(what):
        return ArgumentError("DATA", f"{path}{what}", f"Columns: {', '.join(COLUMNS)}.")

    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise wrong(f" cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise wrong(" is not text in UTF-8.") from None
    if not rows or tuple(name.strip() for name in rows[0]) != COLUMNS:
        raise wrong(f", line 1: the header is {','.join(rows[0]) if rows else 'missing'}.")
    measurements = []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(COLUMNS):
            raise wrong(f", line {number}: {len(row)} cells where there should be {len(COLUMNS)}.")
        for name, cell in zip(COLUMNS, row, strict=True):
            try:
                if not math.isfinite(float(cell)):
                    raise ValueError
            except ValueError:
                raise wrong(f", line {number}: {name} is {cell!r}, which is no number.") from None
        time, port, concentration = map(float, row)
        if time <= 0:
            raise wrong(f", line {number}: time_s is {time:g}; measurements come after time 0.")
        if not 0 <= port <= 1:
            raise wrong(f", line {number}: port is {port:g}; it is a fraction of the length, from 0 to 1.")
        measurements.append((time, port, concentration))
    if len(measurements) <= len(FIT):
        raise wrong(f": {len(measurements)} measurements cannot tell {len(FIT)} parameters.")
    return map(jnp.asarray, zip(*measurements, strict=True))


unknown = [name for name in FIT if name not in TRUTH]
if unknown or not FIT or len(set(FIT)) < len(FIT):
    raise ArgumentError("FIT", f"must name some of {', '.join(TRUTH)}, each once; it is {','.join(FIT)}.")
times, ports, concentrations = read_measurements(DATA or Path(__file__).with_name("measurements.csv"))
period = float(times.max()) / PERIODS
known = {"diffusion": DIFFUSION, "sorption": SORPTION, "exponent": EXPONENT}


def parameters(theta):
    """From unknowns of size one: each is the logarithm of a parameter over its guess, so that all stay positive."""
    return {**known, **{name: known[name] * jnp.exp(theta[name]) for name in FIT}}


def breakthrough(theta, times, ports):
    """The model's concentrations at these times and ports."""
    column = om.physics.DiffusionSorption(
        cells=CELLS, dt=period, substeps=2, early_substeps=2, first_substeps=16, porosity=POROSITY, density=DENSITY,
        **parameters(theta),
    )  # fmt: skip
    u = om.physics.rollout(column, column.initial(0.0), steps=PERIODS).observations.u
    u = jnp.concatenate([jnp.zeros((1, CELLS)), u])
    place = jnp.clip(times / period, 0, PERIODS)
    before = jnp.minimum(place.astype(int), PERIODS - 1)
    at_port = jax.vmap(lambda n, port: column.profile(u[n], port))
    share = place - before
    return (1 - share) * at_port(before, ports) + share * at_port(before + 1, ports)


def misfit(theta, concentrations):
    """What least squares makes small."""
    return breakthrough(theta, times, ports) - concentrations


problem = om.LeastSquares(misfit, concentrations)
method = om.smooth.LevenbergMarquardt(tolerance=1e-9)
guess = {name: jnp.zeros(()) for name in FIT}
budget = om.Budget(steps=40)


def report(solution):
    """The estimates with their confidence intervals, and the fitted curves."""
    theta = solution.value

    def stationary(
        vector, concentrations
    ):  # zero at the estimate; by forward mode, which is cheaper for a few unknowns
        half_square = lambda vector: om.LeastSquares(misfit, concentrations).value(dict(zip(FIT, vector, strict=True)))
        return jax.jacfwd(half_square)(vector)

    @jax.jit
    def implicit(vector):  # dθ*/dy = -(∂F/∂θ)⁻¹ ∂F/∂y of the condition F(θ*, y) = 0
        hessian = jax.jacfwd(stationary)(vector, concentrations)
        return -jnp.linalg.solve(hessian, jax.jacrev(stationary, argnums=1)(vector, concentrations))

    sensitivity = implicit(jnp.stack([theta[name] for name in FIT]))  # (parameters, measurements)
    left = jax.jit(misfit)(theta, concentrations)
    freedom = len(concentrations) - len(FIT)
    sigma = jnp.sqrt(jnp.sum(left**2) / freedom)
    covariance = sigma**2 * sensitivity @ sensitivity.T
    spread = jnp.sqrt(jnp.diagonal(covariance))
    correlation = covariance / jnp.outer(spread, spread)
    factor = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    fitted = parameters(theta)
    made = DATA is None  # then the truth is known
    rows, metrics = [], {"noise": float(sigma)}
    for place, name in enumerate(FIT):
        low, high = (float(fitted[name] * jnp.exp(sign * factor * spread[place])) for sign in (-1, 1))
        rows.append((name, float(fitted[name]), low, high, TRUTH[name] if made else None))
        metrics |= {name: float(fitted[name]), f"{name}_low": low, f"{name}_high": high}
    pairs = [(a, b) for i, a in enumerate(FIT) for b in FIT[i + 1 :]]
    correlations = [(a, b, float(correlation[FIT.index(a), FIT.index(b)])) for a, b in pairs]
    return Findings(
        metrics,
        tables=[
            Table(
                f"Estimates with {CONFIDENCE:.0%} confidence intervals",
                ("parameter", "estimate", "from", "to", "truth"),
                rows,
                note="Intervals from the implicit derivative of the estimate by the measurements.",
            ),
            *([Table("Correlation of the estimates", ("", "", "correlation"), correlations)] if pairs else []),
        ],
        figures={"Measurements, and the fitted model": curves(theta)},
    )


def curves(theta):
    """Measured points on fitted lines, a colour for each port."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.2, 3.8))
    smooth = jnp.linspace(0, times.max(), 200)
    draw = jax.jit(lambda port: breakthrough(theta, smooth, jnp.full(200, port)))
    for port in np.unique(ports):
        (line,) = axes.plot(smooth, draw(port), label=f"at {port:g} of the length")
        here = np.asarray(ports == port)
        axes.scatter(np.asarray(times)[here], np.asarray(concentrations)[here], s=12, color=line.get_color())
    axes.set(xlabel="time (s)", ylabel="concentration / inlet")
    axes.legend()
    return figure


def claims(metrics):
    """Where the truth is known: each interval holds it (one in twenty would not, by chance)."""
    if DATA is not None:
        return []
    return [
        Claim.between(f"true {name} lies in its interval", TRUTH[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
        for name in FIT
    ]
