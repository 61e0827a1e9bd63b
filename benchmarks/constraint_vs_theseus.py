"""The differentiable local solve against Theseus, and against the Levenberg-Marquardt of JAXopt.

    python benchmarks/constraint_vs_theseus.py [--rounds 15] [--points 1024] [--batch 4]

Needs torch and theseus-ai beside optimand, and jaxopt if it is to be compared (the extra `peers`). The problem is that of
one expert of diffusion-sorption: 16 smooth basis fields, the equation's rows at `points` points and the rows of the initial
and boundary conditions, for a batch of initial conditions, in float64. Compared are the weights, the gradient of the sum of
their sines with respect to all terms of the basis, and the time of solve and gradient together on the same threads.

Theseus' implicit derivative is that of one Gauss-Newton step at the answer, so it has J' J for a Hessian; so has ours with
`adjoint="gauss_newton"`, with which it is compared and timed. The exact adjoint is timed and recorded beside it, and compared
with JAXopt's, which is exact as well. The concentrations are high enough for the field to stay positive: at zero the
retardation has a kink, and no derivative to agree on. Theseus gets its Jacobian from a formula, as ours does from the
structure of the residual; its own automatic differentiation, row by row, takes far longer.

Times are at the same tolerance, 1e-10; values are compared with Theseus at 1e-13, where its gradient has settled.
Compilation is kept apart; the rivals take turns, and medians over rounds count.
"""

import argparse
import math
import os
import statistics
import time
import warnings

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import record  # noqa: E402
import theseus as th  # noqa: E402
import torch  # noqa: E402

from optimand.informed import DiffusionSorption1D, ExpertGrid, LocalProblem, NLLSConstraint, local_problems  # noqa: E402

N = 16
TOLERANCE = 1e-10


def build(points: int, batch: int) -> tuple[DiffusionSorption1D, list[LocalProblem], np.ndarray]:
    """One problem for each initial concentration, and the start."""
    side = math.isqrt(points)
    pde = DiffusionSorption1D(side, side)
    t, x = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    waves = [np.cos(i * np.pi * t) * np.cos(j * np.pi * x) for i in range(4) for j in range(4)]
    basis = jnp.asarray(np.stack(waves, -1))
    problems = []
    for initial in np.linspace(0.4, 0.6, batch):
        stack = local_problems(pde, ExpertGrid((1, 1)), basis, jnp.asarray(initial))
        problems.append(
            eqx.tree_at(
                lambda p: (p.terms, p.offsets, p.points), stack, (stack.terms[0], stack.offsets[0], stack.points[0])
            )
        )
    start = np.zeros(N)
    start[0] = 0.5
    return pde, problems, start


def ours(problems, start, adjoint):
    """(weights, gradient) of the batch, compiled."""
    constraint = NLLSConstraint(
        solver="normal", rtol=TOLERANCE, atol=TOLERANCE, max_steps=50, ridge=0.0, polish=1, adjoint=adjoint
    )
    first = problems[0]
    terms = jnp.stack([p.terms for p in problems])
    matrix, target = (jnp.stack([getattr(p, name) for p in problems]) for name in ("matrix", "target"))
    start = jnp.asarray(start)

    def loss(terms):
        def one(terms, matrix, target):
            problem = eqx.tree_at(lambda p: (p.terms, p.matrix, p.target), first, (terms, matrix, target))
            return constraint(problem, start)[0]

        weights = jax.vmap(one)(terms, matrix, target)
        return jnp.sum(jnp.sin(weights)), weights

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda: (lambda out: (out[0][1], out[1]))(jax.block_until_ready(run(terms)))


def jaxopt_run(problems, start):
    """The same by JAXopt; None if it is not installed."""
    try:
        from jaxopt import LevenbergMarquardt
        from jaxopt.linear_solve import solve_lu
    except ImportError:
        return None
    first = problems[0]
    terms = jnp.stack([p.terms for p in problems])
    matrix, target = (jnp.stack([getattr(p, name) for p in problems]) for name in ("matrix", "target"))

    starts = jnp.broadcast_to(jnp.asarray(start), (len(problems), N))

    def residual(w, terms, matrix, target):
        return eqx.tree_at(lambda p: (p.terms, p.matrix, p.target), first, (terms, matrix, target)).residual(w)

    solver = LevenbergMarquardt(
        residual,
        maxiter=200,
        tol=1e-14,
        xtol=1e-14,
        gtol=1e-15,
        damping_parameter=1e-6,
        solver="cholesky",
        materialize_jac=True,
        implicit_diff_solve=solve_lu,
    )

    def loss(terms):
        weights = jax.vmap(lambda w, s, a, y: solver.run(w, s, a, y).params)(starts, terms, matrix, target)
        return jnp.sum(jnp.sin(weights)), weights

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda: (lambda out: (out[0][1], out[1]))(jax.block_until_ready(run(terms)))


def theseus_run(pde, problems, start, tolerance):
    """The same by Theseus."""
    tensor = lambda name: torch.from_numpy(np.stack([np.array(getattr(p, name)) for p in problems]))
    terms, matrix, target = tensor("terms"), tensor("matrix"), tensor("target")
    batch, count, points, _ = terms.shape
    rows = matrix.shape[1]
    strength = (1 - pde.porosity) / pde.porosity * pde.density * pde.freundlich_k * pde.freundlich_n

    class Rows(th.CostFunction):
        """The rows of the equation and of the conditions, with their Jacobian."""

        def __init__(self, w, auxiliary, weight, name=None):
            super().__init__(weight, name=name)
            self.w, (self.terms, self.matrix, self.target) = w, auxiliary
            self.register_optim_vars(["w"])
            self.register_aux_vars(["terms", "matrix", "target"])

        def _parts(self):
            s = self.terms.tensor.reshape(-1, count, points, N)
            a = self.matrix.tensor.reshape(-1, rows, N)
            q = torch.einsum("bjmn,bn->bjm", s, self.w.tensor)
            positive = q[:, 0] > 0
            u = torch.where(positive, q[:, 0], torch.zeros_like(q[:, 0])) + 1e-6
            power = strength * u ** (pde.freundlich_n - 1)
            slope = torch.where(positive, (pde.freundlich_n - 1) * power / u, torch.zeros_like(u))
            return s, a, q, 1 + power, slope

        def error(self):
            _, a, q, retardation, _ = self._parts()
            equation = q[:, 1] - pde.diffusion / retardation * q[:, 2]
            return torch.cat([equation, torch.einsum("brn,bn->br", a, self.w.tensor) - self.target.tensor], 1)

        def jacobians(self):
            s, a, q, retardation, slope = self._parts()
            by_u = pde.diffusion / retardation**2 * slope * q[:, 2]
            equation = by_u[..., None] * s[:, 0] + s[:, 1] - (pde.diffusion / retardation)[..., None] * s[:, 2]
            return [torch.cat([equation, a], 1)], self.error()

        def dim(self):
            return points + rows

        def _copy_impl(self, new_name=None):
            auxiliary = [variable.copy() for variable in (self.terms, self.matrix, self.target)]
            return Rows(self.w.copy(), auxiliary, self.weight.copy(), name=new_name)

    w = th.Vector(N, name="w", dtype=torch.float64)
    auxiliary = [
        th.Variable(terms.reshape(batch, -1), name="terms"),
        th.Variable(matrix.reshape(batch, -1), name="matrix"),
        th.Variable(target, name="target"),
    ]
    objective = th.Objective(dtype=torch.float64)
    weight = th.ScaleCostWeight(torch.ones(1, 1, dtype=torch.float64))
    cost = Rows(w, auxiliary, weight, name="rows")
    objective.add(cost)
    optimiser = th.LevenbergMarquardt(
        objective, linear_solver_cls=th.CholeskyDenseSolver, max_iterations=50, step_size=1.0,
        abs_err_tolerance=tolerance, rel_err_tolerance=tolerance,
    )  # fmt: skip
    layer = th.TheseusLayer(optimiser)
    begin = torch.from_numpy(np.tile(start, (batch, 1)))

    def run():
        s = terms.reshape(batch, -1).clone().requires_grad_(True)
        values, _ = layer.forward(
            {"w": begin.clone(), "terms": s, "matrix": matrix.reshape(batch, -1), "target": target},
            optimizer_kwargs={"backward_mode": "implicit", "damping": 1e-6, "adaptive_damping": True},
        )
        torch.sin(values["w"]).sum().backward()
        return values["w"].detach().numpy(), s.grad.reshape(terms.shape).numpy()

    return run


def gap(a, b) -> float:
    """The largest difference, relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pde, problems, start = build(options.points, options.batch)
    calls = {
        "ours, Gauss-Newton adjoint": ours(problems, start, "gauss_newton"),
        "ours, exact adjoint": ours(problems, start, "exact"),
        "theseus": theseus_run(pde, problems, start, TOLERANCE),
        "theseus, tolerance 1e-13": theseus_run(pde, problems, start, 1e-13),
    }
    peer = jaxopt_run(problems, start)
    if peer is not None:
        calls["jaxopt"] = peer
    found, first = {}, {}
    for name, call in calls.items():
        clock = time.perf_counter()
        found[name] = call()
        first[name] = time.perf_counter() - clock
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            clock = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - clock)
    rows = [
        {"name": name, "milliseconds": 1e3 * statistics.median(times), "first call, seconds": first[name]}
        for name, times in seconds.items()
    ]
    mine, exact, theirs = (
        found[name] for name in ("ours, Gauss-Newton adjoint", "ours, exact adjoint", "theseus, tolerance 1e-13")
    )
    ratio = statistics.median(seconds["ours, Gauss-Newton adjoint"]) / statistics.median(seconds["theseus"])
    exact_ratio = statistics.median(seconds["ours, exact adjoint"]) / statistics.median(seconds["theseus"])
    claims = [
        ("weights, relative difference from Theseus", gap(mine[0], theirs[0]), 1e-6),
        ("gradient, relative difference from Theseus", gap(mine[1], theirs[1]), 1e-5),
        ("solve and gradient, over Theseus' time", ratio, 1.0),
        ("solve and exact gradient, over Theseus' time", exact_ratio, 1.0),
    ]
    if peer is not None:
        # It stops at the rounding of the value, 1e-8 from the answer: its derivative is compared at the same point.
        at_answer = jaxopt_run(problems, exact[0])()
        claims += [
            ("weights, relative difference from JAXopt", gap(exact[0], found["jaxopt"][0]), 1e-6),
            ("gradient, relative difference from JAXopt", gap(exact[1], at_answer[1]), 1e-6),
        ]
    record.write(
        "constraint_vs_theseus", "The differentiable local solve against Theseus and JAXopt", rows, claims,
        conditions={"points": options.points, "batch": options.batch, "unknowns": N, "rounds": options.rounds,
                    "load_average_at_end": os.getloadavg()[0]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
