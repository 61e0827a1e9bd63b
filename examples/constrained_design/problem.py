"""Design a welded beam for least cost, and see how the design hangs on its specification.

A beam is welded to a wall and loaded at its free end (Ragsdell and Phillips, 1976). Choose the weld's thickness h and
length l, and the beam's depth t and width b (inches) for the least cost of material and labour

    1.10471 h² l + 0.04811 t b (L + l)

such that shear in the weld, bending stress and deflection of the beam stay below what is allowed, the load is below the
one that buckles the bar, and the weld is no thicker than the beam: five nonlinear constraints, and bounds.

The optimum is found by SLSQP, which is no JAX code. Its derivative with respect to every number of the specification
follows from the KKT conditions all the same: what one more pound of load costs, and by how much each dimension moves.

    optimand solve examples/constrained_design/problem.py --out runs/beam
    optimand solve examples/constrained_design/problem.py --set LOAD=8000

Write your own design as `cost`, `limits` (each <= 0) and bounds, with what is specified in one dictionary.
"""

import jax
import jax.numpy as jnp
import numpy as np

import optimand as om
from optimand.report import figures
from optimand.studies import Claim, Findings, Table

jax.config.update("jax_enable_x64", True)  # a program may choose its precision; the library never does

LOAD = 6000.0  # pounds, at the free end
LENGTH = 14.0  # inches, of the beam beyond the weld
SHEAR = 13600.0  # psi allowed in the weld
BENDING = 30000.0  # psi allowed in the beam
DEFLECTION = 0.25  # inches allowed at the free end
YOUNG = 30e6  # psi
RIGIDITY = 12e6  # psi
STEP = 1e-4  # relative, of the finite differences that the sensitivities are checked against

specification = {
    "load": jnp.asarray(LOAD),
    "length": jnp.asarray(LENGTH),
    "shear allowed": jnp.asarray(SHEAR),
    "bending allowed": jnp.asarray(BENDING),
    "deflection allowed": jnp.asarray(DEFLECTION),
}
NAMES = ("weld thickness h", "weld length l", "beam depth t", "beam width b")


def cost(x, spec):
    """In dollars."""
    h, l, t, b = x
    return 1.10471 * h**2 * l + 0.04811 * t * b * (spec["length"] + l)


def limits(x, spec):
    """Each at most zero, as a fraction of what is allowed."""
    h, l, t, b = x
    load, length = spec["load"], spec["length"]
    moment = load * (length + l / 2)
    radius = jnp.sqrt(l**2 / 4 + ((h + t) / 2) ** 2)
    polar = 2 * jnp.sqrt(2.0) * h * l * (l**2 / 12 + ((h + t) / 2) ** 2)
    direct = load / (jnp.sqrt(2.0) * h * l)
    torsion = moment * radius / polar
    shear = jnp.sqrt(direct**2 + direct * torsion * l / radius + torsion**2)
    bending = 6 * load * length / (b * t**2)
    deflection = 4 * load * length**3 / (YOUNG * t**3 * b)
    slender = 1 - t / (2 * length) * jnp.sqrt(YOUNG / (4 * RIGIDITY))
    buckling = 4.013 * YOUNG * jnp.sqrt(t**2 * b**6 / 36) / length**2 * slender
    return {
        "shear": shear / spec["shear allowed"] - 1,
        "bending": bending / spec["bending allowed"] - 1,
        "deflection": deflection / spec["deflection allowed"] - 1,
        "buckling": load / buckling - 1,
        "weld thicker than beam": h - b,
    }


def designed(spec):
    """The problem of this specification."""
    lower, upper = jnp.array([0.1, 0.1, 0.1, 0.1]), jnp.array([2.0, 10.0, 10.0, 2.0])
    return om.Constrained(cost, spec, inequalities=limits, bounds=(lower, upper))


problem = designed(specification)
method = om.smooth.Scipy("SLSQP", tolerance=1e-12)
guess = jnp.array([0.4, 6.0, 9.0, 0.4])
budget = om.Budget(steps=200)


def report(solution):
    """The design, which limits it meets, and its sensitivity, checked against designs of changed specifications."""
    optimum = solution.value.primal

    def design(spec):
        return om.solve(designed(spec), method, optimum, budget=budget).value.primal

    sensitivity = jax.jacobian(design)(specification)
    price = jax.grad(lambda spec: cost(design(spec), spec))(specification)
    checked = {name: difference(design, name) for name in specification}
    off = {name: float(jnp.linalg.norm(sensitivity[name] - checked[name])) for name in specification}
    sizes = {name: float(jnp.linalg.norm(checked[name])) for name in specification}
    error = max(off[name] / (sizes[name] or 1.0) for name in specification)  # a limit that is not met has no influence
    slack = limits(optimum, specification)
    multipliers = solution.value.inequality
    per_cent = {name: float(price[name] * specification[name]) / 100 for name in specification}
    moved = {name: np.asarray(sensitivity[name] * specification[name] / 100) for name in specification}
    return Findings(
        {
            "cost": float(cost(optimum, specification)),
            "worst_limit": float(max(slack.values())),
            "sensitivity_error": error,
            **{name.split(" ", 1)[1].replace(" ", "_"): float(x) for name, x in zip(NAMES, optimum, strict=True)},
        },
        tables=[
            Table(
                "Limits: what is met exactly has a price",
                ("limit", "value / allowed - 1", "multiplier ($)"),
                [(name, float(slack[name]), float(multipliers[name])) for name in slack],
            ),
            Table(
                "What one per cent more in the specification does",
                ("specification", "cost ($)", *(f"{name} (in)" for name in NAMES)),
                [(name, per_cent[name], *map(float, moved[name])) for name in specification],
                note="From the KKT conditions at the optimum, by implicit differentiation through SLSQP.",
            ),
        ],
        figures={
            "Cost of one per cent more in each specification": figures.bars(
                {name.replace(" allowed", "\nallowed"): {"cost": change} for name, change in per_cent.items()},
                ylabel="change of cost ($)",
            )
        },
    )


def difference(design, name):
    """The derivative of the design by one entry of the specification, by central differences."""
    step = STEP * specification[name]
    ahead, behind = (design({**specification, name: specification[name] + sign * step}) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def claims(metrics):
    """The best cost known for the specification as it stands (1.72485), and derivatives that are right."""
    held = [
        Claim.at_most("limits are kept: worst value / allowed - 1", metrics["worst_limit"], 1e-6),
        Claim.at_most("sensitivities against finite differences", metrics["sensitivity_error"], 1e-3),
    ]
    if (LOAD, LENGTH, SHEAR, BENDING, DEFLECTION) == (6000.0, 14.0, 13600.0, 30000.0, 0.25):
        return [Claim.at_most("cost ($)", metrics["cost"], 1.7249, paper="1.72485, the best known"), *held]
    return held
