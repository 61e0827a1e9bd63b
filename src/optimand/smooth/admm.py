r"""The alternating direction method of multipliers for quadratic programs: the algorithm of OSQP.

$$\min_x \tfrac12 x^\top P x + q^\top x \quad\text{s.t.}\quad C x = z,\; l \le z \le u, \qquad C = [A;\; G;\; I] .$$

With penalties \(\rho\), a vector, and a small \(\sigma\), an iteration is (Stellato et al. 2020, algorithm 1)

$$\begin{aligned}
(P + \sigma I + C^\top \rho C)\, \tilde x &= \sigma x - q + C^\top (\rho z - y), & \tilde z &= C \tilde x, \\
x^+ &= \alpha \tilde x + (1 - \alpha) x, & z^+ &= \Pi_{[l, u]}\big(\alpha \tilde z + (1 - \alpha) z + y / \rho\big), \\
y^+ &= y + \rho\, (\alpha \tilde z + (1 - \alpha) z - z^+) .
\end{aligned}$$

A step of the method is a block of them with one factorisation, after which residuals and certificates are looked at, the
penalty is adapted (section 5.2), and the solution polished (section 5.4): the constraints that z says are active are taken as
equalities, and their KKT system is solved. OSQP polishes at the end; here every block tries, since a polished point that
satisfies the KKT conditions of the whole program is a solution long before the iteration has converged to one.

The differences \(\delta x\), \(\delta y\) over a block converge even if the iterates do not: to a ray along which the
objective falls for ever, or to multipliers that prove that there is no feasible point (section 3.4).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..core.budget import Counters
from ..core.constrained import PrimalDual
from ..core.dense import in_turn
from ..core.method import Method
from .arguments import need_between, need_count, need_not_negative, need_positive
from .equilibration import Scaling, equilibrate
from .quadratic_program import QuadraticProgram
from .row_program import RowProgram, is_convex, program_status, refuse_concave

__all__ = ["ADMM"]


class ADMMState(eqx.Module):
    """The iterates (of the scaled program), the best answer so far, and what was proven.

    - `inverse`: of P + sigma I + C' rho C, for the `penalty` it was made with.
    - `best`: the answer, and `residual` how far it is from the KKT conditions, relative to the terms in them.
    - `polished`: whether `best` is a polished point.
    - `certificate`: if the solve ended as `infeasible`, multipliers with C'y = 0 for which the sides of the constraints
      add up to less than zero; if it `diverged`, `primal` is a ray along which the objective falls for ever. Zero else.
    - `convex`: whether P was found to be positive semidefinite.
    """

    x: Float[Array, "n"]
    z: Float[Array, "k"]
    y: Float[Array, "k"]
    penalty: Array
    inverse: Float[Array, "n n"]
    scaling: Scaling
    best: PrimalDual
    residual: Array
    polished: Array
    certificate: PrimalDual
    infeasible: Array
    unbounded: Array
    convex: Array
    idle: Array
    counters: Counters


class ADMM(Method):
    """ADMM for convex quadratic programs, with equilibration, adapted penalties, polishing and certificates.

    Pick it for many programs of the same shape at once, under `vmap`: it is matrix-vector products and one factorisation a
    step. For one program, or where the active set is hard to guess, `QuadraticInteriorPoint` needs fewer operations.

    **Arguments:**

    - `iterations`: of ADMM in a step of the method.
    - `penalty`: the first rho; `equality_factor` times it for equalities.
    - `adapt`: the penalty is changed, and the matrix factorised again, when balancing the residuals asks for a factor of
      more than this.
    - `over_relaxation`: alpha. `regularisation`: sigma.
    - `equilibration`: sweeps of Ruiz's scaling; 0 leaves the program as it is.
    - `polish`: how often, after every block, the active constraints are solved for as equalities, each time with a better guess
      of which they are; 0 never.
    - `tolerance`: converged when constraints and stationarity hold to this, absolutely plus relative to their terms.
    - `infeasibility_tolerance`: of a certificate, relative to its size; not less than 100 units of rounding.
    - `patience`: the solve ends as `stopped` when the residual has not fallen by a tenth in so many steps: it can get no
      nearer at this precision.

    Ends as `infeasible` or `diverged` with a certificate in `solution.state.certificate`; as `diverged` with
    `solution.state.convex` false if P turns out not to be positive semidefinite. A guess that is a `PrimalDual` starts
    warm. Raises `ArgumentError`, naming the argument, for a number out of its range and for a program declared not convex.

    ```python
    program = lambda q: om.smooth.QuadraticProgram(2 * jnp.eye(2), q, G=jnp.ones((1, 2)), h=jnp.ones(1))
    solve = lambda q: om.solve(program(q), om.smooth.ADMM(tolerance=1e-4), jnp.zeros(2)).value.primal
    jax.jit(jax.vmap(solve))(jnp.array([[-2.0, 0.0], [-2.0, -2.0], [0.0, 1.0]]))
    ```
    """

    problem = QuadraticProgram
    reference: ClassVar[str] = "stellato2020osqp"

    iterations: int = eqx.field(static=True, default=25)
    penalty: Any = 0.1
    adapt: Any = 5.0
    over_relaxation: Any = 1.6
    regularisation: Any = 1e-6
    equality_factor: Any = 1e3
    equilibration: int = eqx.field(static=True, default=10)
    polish: int = eqx.field(static=True, default=3)
    tolerance: Any = 1e-6
    infeasibility_tolerance: Any = 1e-6
    patience: int = eqx.field(static=True, default=200)

    def __check_init__(self):
        need_count("iterations", self.iterations)
        need_count("equilibration", self.equilibration, least=0)
        need_count("polish", self.polish, least=0)
        need_count("patience", self.patience)
        need_between("over_relaxation", self.over_relaxation, 0, 2)
        for name in ("penalty", "regularisation", "equality_factor"):
            need_positive(name, getattr(self, name))
        need_not_negative("tolerance", self.tolerance)
        need_positive("infeasibility_tolerance", self.infeasibility_tolerance)
        need_between("adapt", self.adapt, 1, jnp.inf)

    def init(self, problem: QuadraticProgram, guess: PrimalDual, *, key: Array | None) -> ADMMState:
        refuse_concave(problem, type(self).__name__)
        program = RowProgram.of(problem, guess)
        scaling = equilibrate(program.P, program.q, program.M, self.equilibration)
        scaled = program.scaled(scaling)
        x, y = program.flatten(guess)
        x, y = x / scaling.columns, y * scaling.cost / scaled.row_scale
        z = jnp.clip(scaled.products(x), scaled.lower, scaled.upper)
        dtype = x.dtype
        penalty = jnp.asarray(self.penalty, dtype)
        zero = jax.tree_util.tree_map(jnp.zeros_like, guess)
        residual = scaled.residual(x, y, z)
        return ADMMState(
            x, z, y, penalty, self._factorise(scaled, penalty), scaling,
            program.pack(x * scaling.columns, y * scaled.row_scale / scaling.cost), residual, jnp.array(False),
            zero, jnp.array(False), jnp.array(False), is_convex(scaled.P), jnp.int32(0),
            Counters.zero().add(values=1, gradients=1, linear_solves=1),
        )  # fmt: skip

    def _penalties(self, program: RowProgram, penalty: Array) -> Array:
        tied = program.lower == program.upper
        free = jnp.isinf(program.lower) & jnp.isinf(program.upper)
        return penalty * jnp.where(tied, self.equality_factor, jnp.where(free, 1e-3, 1.0)).astype(penalty.dtype)

    def _factorise(self, program: RowProgram, penalty: Array) -> Float[Array, "n n"]:
        """The inverse itself: a product with it is one call for a whole batch, and two triangular solves are not."""
        return _inverse(self._matrix(program, penalty))

    def _matrix(self, program: RowProgram, penalty: Array) -> Float[Array, "n n"]:
        identity = jnp.eye(program.q.size, dtype=program.q.dtype)
        return program.P + self.regularisation * identity + program.gram(self._penalties(program, penalty))

    def step(self, problem: QuadraticProgram, state: ADMMState, *, key: Array | None) -> ADMMState:
        program = RowProgram.of(problem, state.best)
        scaling = state.scaling
        scaled = program.scaled(scaling)
        rho = self._penalties(scaled, state.penalty)
        alpha = self.over_relaxation

        def iterate(_, carry):
            x, z, y = carry
            target = self.regularisation * x - scaled.q + scaled.transposed(rho * z - y)
            x_half = state.inverse @ target
            z_half = alpha * scaled.products(x_half) + (1 - alpha) * z
            z_new = jnp.clip(z_half + y / rho, scaled.lower, scaled.upper)
            return alpha * x_half + (1 - alpha) * x, z_new, y + rho * (z_half - z_new)

        start = (state.x, state.z, state.y)
        x, z, y = jax.lax.fori_loop(0, self.iterations, iterate, start)

        # The best of the iterate, its polished version, and what there was before.
        residual = scaled.residual(x, y, z)
        candidate, candidate_residual, polished = (x, y), residual, jnp.array(False)
        if self.polish:
            sharper = _polish(scaled, x, z, y, self.polish)
            sharper_residual = scaled.residual(*sharper)
            polished = sharper_residual < residual  # false if it is NaN
            candidate = tuple(jnp.where(polished, new, old) for new, old in zip(sharper[:2], candidate, strict=True))
            candidate_residual = jnp.where(polished, sharper_residual, residual)
        better = candidate_residual < state.residual  # false if it is NaN
        found = program.pack(candidate[0] * scaling.columns, candidate[1] * scaled.row_scale / scaling.cost)
        best = jax.tree_util.tree_map(lambda new, old: jnp.where(better, new, old), found, state.best)
        idle = jnp.where(candidate_residual <= 0.9 * state.residual, 0, state.idle + 1)
        idle = jnp.where(jnp.isfinite(candidate_residual), idle, self.patience).astype(jnp.int32)

        # Certificates, of the program as it was given.
        dx, dy = (x - state.x) * scaling.columns, (y - state.y) * scaled.row_scale
        smallest = jnp.maximum(self.infeasibility_tolerance, 100 * jnp.finfo(x.dtype).eps)
        infeasible, farkas = program.proves_infeasible(dy, smallest)
        unbounded, ray = program.proves_unbounded(dx, smallest)
        zero_x, zero_y = jnp.zeros_like(dx), jnp.zeros_like(dy)
        certificate = program.pack(jnp.where(unbounded, ray, zero_x), jnp.where(infeasible, farkas, zero_y))

        primal, dual = scaled.residuals(x, y, z)
        tiny = jnp.finfo(x.dtype).tiny
        wanted = state.penalty * jnp.sqrt(jnp.maximum(primal, tiny) / jnp.maximum(dual, tiny))
        wanted = jax.lax.stop_gradient(jnp.clip(wanted, 1e-6, 1e6))
        change = jnp.maximum(wanted / state.penalty, state.penalty / wanted) > self.adapt
        penalty = jnp.where(change, wanted, state.penalty).astype(state.penalty.dtype)
        inverse = _inverse_if(change, self._matrix(scaled, penalty), state.inverse)
        return ADMMState(
            x, z, y, penalty, inverse, scaling, best, jnp.where(better, candidate_residual, state.residual),
            jnp.where(better, polished, state.polished), certificate, infeasible, unbounded, state.convex,
            idle,
            state.counters.add(
                values=1, gradients=1, linear_iterations=self.iterations, linear_solves=self.polish + change.astype(jnp.int32)
            ),
        )  # fmt: skip

    def done(self, problem: QuadraticProgram, state: ADMMState):
        return program_status(state, self.tolerance, self.patience)

    def answer(self, problem: QuadraticProgram, state: ADMMState) -> PyTree:
        return state.best

    def metrics(self, problem: QuadraticProgram, state: ADMMState) -> dict[str, Any]:
        return {"residual": state.residual, "penalty": state.penalty}


@in_turn
def _inverse(matrix):
    """That of a positive definite matrix."""
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    factor = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(matrix), identity, lower=True)
    return factor.T @ factor


@in_turn
def _inverse_if(change, matrix, before):
    return jax.lax.cond(change, lambda: _inverse(matrix), lambda: before)


def _polish(program: RowProgram, x: Array, z: Array, y: Array, rounds: int) -> tuple[Array, Array, Array]:
    """The best x, y and z found with active rows as equalities.

    [P, C_a'; C_a, 0] is solved by iterative refinement with [P + delta I, C_a'; C_a, -delta I], which is regular whatever
    the active rows are and has the Schur complement P + delta I + C_a'C_a / delta. From one round to the next active rows
    with a multiplier of the wrong sign are let go and violated ones taken up: the primal-dual active set iteration of
    Hintermueller, Ito and Kunisch 2003, which mends a guess that is nearly right.
    """
    delta = jnp.finfo(x.dtype).eps ** 0.4
    tied = program.lower == program.upper
    identity = jnp.eye(x.size, dtype=x.dtype)

    def attempt(_, carry):
        best, least, x, y, low, up = carry
        active = low | up | tied
        side = jnp.where(active, jnp.where(low, program.lower, program.upper), 0)
        only = lambda rows: jnp.where(active, rows, 0)
        matrix = program.P + delta * identity + program.gram(only(jnp.ones_like(side)) / delta)
        inverse = _inverse(matrix)
        y = only(y)
        for _ in range(_REFINEMENTS):
            first = -(program.P @ x + program.q + program.transposed(y))
            second = only(side - program.products(x))
            dx = inverse @ (first + program.transposed(second) / delta)
            x, y = x + dx, y + only(program.products(dx) - second) / delta
        rows = program.products(x)
        signed = jnp.where(tied, y, jnp.where(low, jnp.minimum(y, 0), jnp.where(up, jnp.maximum(y, 0), 0)))
        found = (x, signed, jnp.where(active, side, jnp.clip(rows, program.lower, program.upper)))
        residual = program.residual(*found)
        better = residual < least  # false if it is NaN
        best = tuple(jnp.where(better, new, old) for new, old in zip(found, best, strict=True))
        low, up = (rows < program.lower) | (low & (y <= 0)), (rows > program.upper) | (up & (y >= 0))
        return best, jnp.where(better, residual, least), x, y, low & ~tied, up & ~tied

    # Rounding may leave multipliers of the wrong sign, of the order of itself.
    low = (y < 0) & ~tied & jnp.isfinite(program.lower)
    up = (y > 0) & ~tied & jnp.isfinite(program.upper)
    carry = ((x, y, z), program.residual(x, y, z), x, y, low, up)
    best, *_ = jax.lax.fori_loop(0, rounds, attempt, carry)
    return best


_REFINEMENTS = 3
