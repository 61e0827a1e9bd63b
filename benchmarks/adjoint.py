"""The implicit derivative alone, against JAXopt's `custom_root` and Optimistix' `ImplicitAdjoint`; and its memory.

    python benchmarks/adjoint.py [--seconds 2]

Needs jaxopt (the extra `peers`). Bars: the derivatives agree to 1e-6; our vector-Jacobian product takes at most 1.1 times
JAXopt's; the memory of the implicit gradient does not grow with the iterations.

All three are wrapped around a solver that returns its start, which is the solution, so that nothing but the derivative is
timed: `om.implicit` and `custom_root` around a function, `ImplicitAdjoint` around a root finder that stops at once. Linear
systems are solved to 1e-8, by conjugate gradients where they are symmetric and by the fastest of the others where not. Ours is
timed with its checks (that F is zero, that the system was solved) and without; the rivals have none.

Memory is what the compiled program of a gradient asks for beside its arguments and results, as the compiler tells it.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
import problems
import record
from jaxopt import implicit_diff, linear_solve
from timing import interleaved, median

import optimand as om
from optimand import smooth

RTOL = 1e-8


class Found(optx.AbstractRootFinder):
    """A root finder that is at the root already."""

    rtol: float = 0.0
    atol: float = 0.0
    norm: object = staticmethod(optx.max_norm)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return jnp.array(True)

    def step(self, fn, y, args, options, state, tags):
        return y, state, None

    def terminate(self, fn, y, args, options, state, tags):
        return state, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


def contenders(condition, symmetric: bool):
    """Functions of (start, parameter) that return the start, with implicit derivatives."""
    stay = lambda start, theta: start
    solvers = {"normal CG, the default": functools.partial(linear_solve.solve_normal_cg, tol=RTOL)}
    if symmetric:
        solvers["CG"] = functools.partial(linear_solve.solve_cg, tol=RTOL)
    else:
        solvers["BiCGSTAB"] = functools.partial(linear_solve.solve_bicgstab, tol=RTOL)
    tags = frozenset({lx.positive_semidefinite_tag}) if symmetric else frozenset()
    adjoint = optx.ImplicitAdjoint(lx.CG(RTOL, 0.0) if symmetric else lx.BiCGStab(RTOL, 0.0))
    return {
        "optimand": om.implicit(condition, symmetric=symmetric)(stay),
        "optimand, without checks": om.implicit(condition, symmetric=symmetric, tolerance=None)(stay),
        **{f"jaxopt, {name}": implicit_diff.custom_root(condition, solve=s)(stay) for name, s in solvers.items()},
        "optimistix": lambda start, theta: optx.root_find(
            condition, Found(), start, theta, adjoint=adjoint, tags=tags, throw=False
        ).value,
    }


def compare(seconds):
    """Rows and claims of the product."""
    rows, claims = [], []
    cases = {
        "stationary, 100 unknowns": (problems.logistic(), True),
        "stationary, 10,000 unknowns": (problems.smoothing(), True),
        "fixed point, 100 unknowns": (problems.contraction(False), False),
        "fixed point, 10,000 unknowns": (problems.contraction(True), False),
    }
    for name, (case, symmetric) in cases.items():
        if symmetric:
            condition, problem, method = jax.grad(case.fn), om.Minimize, smooth.LBFGS(tolerance=1e-11)
        else:
            condition = lambda x, theta, case=case: case.fn(x, theta) - x
            problem, method = om.FixedPoint, smooth.Anderson(tolerance=1e-11)
        found = om.solve(problem(case.fn, case.theta), method, case.guess, throw=False).value
        products = {
            who: jax.jit(jax.grad(lambda theta, start, stay=stay: jnp.sum(jnp.sin(stay(start, theta)))))
            for who, stay in contenders(condition, symmetric).items()
        }
        calls = {who: functools.partial(product, case.theta, found) for who, product in products.items()}
        times = median(interleaved(calls, seconds=seconds))
        derivatives = {who: float(call()) for who, call in calls.items()}
        gap = {who: abs(d / derivatives["optimand"] - 1) for who, d in derivatives.items()}
        for who, time in times.items():
            rows.append({"case": name, "contender": who, "milliseconds": 1e3 * time, "difference": gap[who]})
        jaxopt = min(time for who, time in times.items() if who.startswith("jaxopt"))
        claims.append((f"vector-Jacobian product over JAXopt's: {name}", times["optimand"] / jaxopt, 1.1))
        claims.append((f"largest difference of the derivatives: {name}", max(gap.values()), 1e-6))
    return rows, claims


def memory():
    """Rows and a claim of the memory of a gradient, for budgets of 100 to 10,000 iterations."""
    case = problems.smoothing()
    method = smooth.GradientDescent(case.step_size, tolerance=1e-6)
    kinds = {
        "implicit": lambda steps: om.Implicit(),
        "unrolled, checkpoints of the order of the root": lambda steps: om.Unrolled(),
        "unrolled, every state kept": lambda steps: om.Unrolled(checkpoints=steps),
    }
    rows, implicit = [], []
    for steps in (100, 1000, 10_000):
        row = {"case": "memory of a gradient, 10,000 unknowns", "iterations allowed": steps}
        for kind, adjoint in kinds.items():

            def loss(theta, steps=steps, adjoint=adjoint):
                solution = om.solve(
                    om.Minimize(case.fn, theta), method, case.guess,
                    budget=om.Budget(steps=steps), adjoint=adjoint(steps), throw=False,
                )  # fmt: skip
                return jnp.sum(jnp.sin(solution.value))

            compiled = jax.jit(jax.grad(loss)).lower(case.theta).compile()
            row[f"{kind} [MB]"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        implicit.append(row["implicit [MB]"])
        rows.append(row)
    return rows, [("memory of the implicit gradient, 10,000 iterations over 100", implicit[-1] / implicit[0], 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each comparison")
    options = parser.parse_args()
    rows, claims = compare(options.seconds)
    more_rows, more_claims = memory()
    record.write("adjoint", "The implicit derivative alone", rows + more_rows, claims + more_claims)


if __name__ == "__main__":
    main()
