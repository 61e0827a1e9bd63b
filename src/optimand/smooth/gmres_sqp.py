r"""Sequential quadratic programming with an l1 merit function, its systems solved by GMRES as far as the merit needs.

$$\varphi(x) = f(x) + \mu \lVert c(x) \rVert_1, \qquad
  \Delta m(d; \mu) = -\nabla f^\top d_x - \max\big(\tfrac12 d_x^\top B d_x, 0\big)
  + \mu \big(\lVert c \rVert_1 - \lVert c + G d_x \rVert_1\big).$$

GMRES works on the Newton system of `equality_kkt`, and is ended at an iterate with residual \(r = (r_x, r_c)\)

- by Byrd, Curtis and Nocedal (2008): if \(\lVert r \rVert \le \kappa \lVert F \rVert\),
  \(\lVert r_c \rVert \le \max(\kappa_1 \lVert \nabla_x L \rVert, \kappa_2 \lVert c \rVert)\) and
  \(\Delta m \ge \sigma \mu \max(\lVert c \rVert, \lVert c + G d_x \rVert - \lVert c \rVert)\), \(\sigma = \tau (1 - \epsilon)\); or if
  \(\lVert r_c \rVert \le \epsilon \lVert c \rVert\) and \(\lVert r_x \rVert \le \beta \lVert c \rVert\), upon which \(\mu\) is raised
  until the reduction is as large;
- in the adaptive variant of Hong et al. (2023): if \(\lVert r \rVert \le \kappa \lVert F \rVert\) and the reduction is as large; where it
  is not, \(\mu\) grows by \(\nu\) and \(\kappa\) shrinks by \(\nu^2\).

All norms are l1 norms. The step is halved from 1 until the merit decreases by the fraction 1e-8 of the predicted slope, in x and
\(\lambda\) together.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.budget import Counters
from ..core.constrained import Constrained, PrimalDual
from ..core.method import Method
from ..core.solution import Result
from .arguments import need_between, need_count, need_not_negative, need_positive
from .equality_kkt import KKTMatrix, Point, equality_program, evaluate, kkt_matrix, pack, unpack
from .line_search import constant, evaluated
from .vectors import norm, select

__all__ = ["GMRESL1SQP", "AdaptiveGMRESL1SQP"]


class GMRESL1SQPState(eqx.Module):
    """`residual` is F; `penalty` is mu, `forcing` kappa and `balance` beta."""

    value: PrimalDual
    objective: Array
    residual: Array
    penalty: Array
    forcing: Array
    balance: Array
    length: Array
    stuck: Array
    counters: Counters


class _Model(NamedTuple):
    """The quadratic model: K, F, the gradient of f, and the number of unknowns."""

    kkt: KKTMatrix
    residual: Array
    gradient: Array
    size: int

    def reduction(self, d: Array) -> tuple[Array, Array, Array, Array]:
        """What the model of the objective loses, -g'd - max(d'Bd/2, 0); |c|; |c + G d|; and g'd."""
        dx, n = d[: self.size], self.size
        slope = self.gradient @ dx
        curvature = jnp.maximum(dx @ (self.kkt.matrix[:n, :n] @ dx) / 2, 0)
        c = self.residual[n:]
        return -slope - curvature, _l1(c), _l1(c + self.kkt.unmodified[n:, :n] @ dx), slope

    def enough(self, d: Array, penalty: Array, sigma: Any) -> Array:
        """Whether the reduction of the model of the merit is."""
        loss, before, after, _ = self.reduction(d)
        return loss + penalty * (before - after) >= sigma * penalty * jnp.maximum(before, after - before)


class _GMRESL1SQP(Method):
    """What the two variants share."""

    problem = Constrained
    reference: ClassVar[str] = "byrd2008inexact"

    tolerance: Any = 1e-4
    penalty: Any = 1.0
    tau: Any = 0.1
    epsilon: Any = 0.1
    shift: Any = 0.1
    decrease: Any = 1e-8
    restart: int | None = eqx.field(static=True, default=None)
    max_trials: int = eqx.field(static=True, default=60)

    def __check_init__(self):
        need_not_negative("tolerance", self.tolerance)
        need_positive("penalty", self.penalty)
        need_positive("shift", self.shift)
        for name in ("tau", "epsilon"):
            need_between(name, getattr(self, name), 0, 1)
        need_between("decrease", self.decrease, 0, 0.5)
        need_count("max_trials", self.max_trials)
        if self.restart is not None:
            need_count("restart", self.restart)

    @abc.abstractmethod
    def _forcing(self) -> Any:
        """The first forcing term, kappa."""

    @abc.abstractmethod
    def _end(self, model: _Model, d: Array, rest: Array, state: Any, penalty: Array, forcing: Array, last: Array) -> Any:
        """Whether GMRES may end at d, with the penalty and the forcing term from here on."""

    def init(self, problem: Constrained, guess: PrimalDual, *, key: Array | None) -> GMRESL1SQPState:
        program = equality_program(problem, guess, type(self).__name__)
        z = unpack(program, guess)
        point = evaluate(z, (problem, guess))
        n = program.size
        balance = jnp.maximum(_l1(point.residual[:n]) / (_l1(point.residual[n:]) + 1), 1)
        penalty, forcing = jnp.asarray(self.penalty, z.dtype), jnp.asarray(self._forcing(), z.dtype)
        counters = Counters.zero().add(values=1, gradients=1)
        return GMRESL1SQPState(
            guess, point.objective, point.residual, penalty, forcing, balance, jnp.zeros((), z.dtype), jnp.array(False), counters
        )  # fmt: skip

    def step(self, problem: Constrained, state: GMRESL1SQPState, *, key: Array | None) -> GMRESL1SQPState:
        like = state.value
        program = equality_program(problem, like, type(self).__name__)
        n, z = program.size, unpack(program, like)
        kkt = kkt_matrix(problem, like, z, least=1e-6, shift=self.shift)
        still = constant(state)
        gradient = still.residual[:n] - jax.lax.stop_gradient(z)[n:] @ kkt.unmodified[n:, :n]
        model = _Model(kkt, still.residual, gradient, n)

        def end(d, rest, carry, last):
            return self._end(model, d, rest, still, carry[0], carry[1], last)

        matrix = model.kkt.matrix
        d, (penalty, forcing), iterations = _gmres(lambda v: matrix @ v, -model.residual, end, (still.penalty, still.forcing), self.restart)
        _, before, after, slope = model.reduction(d)
        predicted = slope - penalty * (before - after)
        d = evaluated(lambda matrix, residual: -jnp.linalg.solve(matrix, residual), (kkt.matrix, state.residual), d)

        fixed, origin, heading, objective = constant(((problem, like), z, d, state.objective))
        merit = objective + penalty * before
        allowance = 10 * jnp.finfo(z.dtype).eps * jnp.abs(merit)

        def trial(carry):
            length, trials, _ = carry
            length = jnp.where(trials == 0, length, length / 2)
            f, c = _values(origin + length * heading, fixed)
            value = f + penalty * _l1(c)
            bound = merit + length * self.decrease * jnp.minimum(predicted, 0) + allowance
            return length, trials + 1, jnp.isfinite(value) & (value <= bound)

        searching = lambda carry: ~carry[2] & (carry[1] < self.max_trials)
        start = (jnp.ones_like(merit), jnp.int32(0), jnp.array(False))
        length, trials, accepted = jax.lax.while_loop(searching, trial, start)
        moved = jnp.where(accepted, z + length * d, z)
        point = evaluate(moved, (problem, like))
        finite = accepted & jnp.all(jnp.isfinite(point.residual))
        z, point = select(finite, (moved, point), (z, Point(state.objective, state.residual)))
        point = Point(*point)
        counters = state.counters.add(
            values=trials, gradients=1, jacobians=1, linear_solves=1, linear_iterations=iterations
        )  # fmt: skip
        return GMRESL1SQPState(
            pack(program, z), point.objective, point.residual, penalty, forcing, state.balance, jnp.where(finite, length, 0), ~finite, counters
        )  # fmt: skip

    def done(self, problem: Constrained, state: GMRESL1SQPState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(norm(state.residual) <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Constrained, state: GMRESL1SQPState) -> PrimalDual:
        return state.value

    def metrics(self, problem: Constrained, state: GMRESL1SQPState) -> dict[str, Any]:
        return {
            "value": state.objective, "residual": norm(state.residual), "step_length": state.length, "penalty": state.penalty
        }  # fmt: skip


class GMRESL1SQP(_GMRESL1SQP):
    """Inexact SQP for equalities with the termination tests of Byrd, Curtis and Nocedal: a baseline for `AdaSketchNewton`.

    **Arguments:**

    - `tolerance`: converged when |F|, the Euclidean norm of the KKT residual, is at most this.
    - `penalty`: the first mu. `forcing`, `gradient_forcing`: kappa and kappa_1; kappa_2 and beta are
      max(|grad L| / (|c| + 1), 1) at the guess. `tau` and `epsilon` as above.
    - `shift`: xi_B. `decrease`, `max_trials`: of the line search; where it finds nothing the solve ends as `stopped`.
    - `restart`: GMRES begins anew after so many iterations, and is tested only then; it does not by default. The published
      comparison used 2.

    Counts iterations of GMRES as `linear_iterations`. Raises `ArgumentError` as `AdaSketchNewton` does.
    """

    forcing: Any = 1.0
    gradient_forcing: Any = 0.1

    def __check_init__(self):
        need_positive("forcing", self.forcing)
        need_positive("gradient_forcing", self.gradient_forcing)

    def _forcing(self) -> Any:
        return self.forcing

    def _end(self, model: _Model, d: Array, rest: Array, state: Any, penalty: Array, forcing: Array, last: Array):
        n = model.size
        rest_x, rest_c = _l1(rest[:n]), _l1(rest[n:])
        grad, c = _l1(model.residual[:n]), _l1(model.residual[n:])
        enough = model.enough(d, penalty, self.tau * (1 - self.epsilon))
        balanced = rest_c <= jnp.maximum(self.gradient_forcing * grad, state.balance * c)
        first = (rest_x + rest_c <= forcing * (grad + c)) & balanced & enough
        second = (rest_c <= self.epsilon * c) & (rest_x <= state.balance * c)
        ended = first | second | last
        loss, before, after, _ = model.reduction(d)
        gained = before - after
        raised = jnp.maximum(-loss / ((1 - self.tau) * jnp.where(gained > 0, gained, 1)), penalty) + 1e-4
        return ended, (jnp.where(ended & ~enough & (gained > 0), raised, penalty), forcing)


class AdaptiveGMRESL1SQP(_GMRESL1SQP):
    """Inexact SQP for equalities that adapts penalty and accuracy together: a baseline for `AdaSketchNewton`.

    **Arguments:** `forcing` is the first kappa, `growth` is nu; the others are those of `GMRESL1SQP`.
    """

    forcing: Any = 0.1
    growth: Any = 1.5

    def __check_init__(self):
        need_positive("forcing", self.forcing)
        need_between("growth", self.growth, 1, float("inf"))

    def _forcing(self) -> Any:
        return self.forcing

    def _end(self, model: _Model, d: Array, rest: Array, state: Any, penalty: Array, forcing: Array, last: Array):
        sigma, size, target = self.tau * (1 - self.epsilon), _l1(rest), _l1(model.residual)
        accurate = lambda forcing: (size <= forcing * target) | last

        def unhappy(carry):
            penalty, forcing = carry
            return accurate(forcing) & ~model.enough(d, penalty, sigma) & (penalty <= _LARGEST)

        adapt = lambda carry: (carry[0] * self.growth, carry[1] / self.growth**2)
        penalty, forcing = jax.lax.while_loop(unhappy, adapt, (penalty, forcing))
        return accurate(forcing), (penalty, forcing)


_LARGEST = 1e8  # penalty
_MOST_ITERATIONS = 10_000  # of GMRES with restarts, which may stagnate


def _l1(vector: Array) -> Array:
    return jnp.sum(jnp.abs(vector))


def _values(z: Array, arguments: tuple) -> tuple[Array, Array]:
    """f and c at z."""
    problem, like = arguments
    program = equality_program(problem, like, "SQP")
    x = z[: program.size]
    return program.value(x), program.equalities(x)


def _gmres(product: Callable, rhs: Array, end: Callable, carry: tuple, restart: int | None) -> tuple[Array, tuple, Array]:
    """GMRES from zero, ended by `end(x, residual, carry, last) -> (whether, carry)` at one of its iterates.

    `last` is True where there can be no better iterate. With `restart` it begins anew after so many iterations, and looks
    whether to end only then. Source: Saad 2003, algorithms 6.9 and 6.11, with the basis orthogonalised twice.
    """
    size = rhs.size
    most = size if restart is None else min(restart, size)
    limit = size if restart is None else _MOST_ITERATIONS
    length = norm(rhs)
    tiny = jnp.finfo(rhs.dtype).eps
    columns = jnp.arange(most)
    unit = jnp.eye(most + 1, most, -1, dtype=rhs.dtype)  # a column that is not used yet determines itself as zero

    def begin(r):
        beta = norm(r)
        basis = jnp.zeros((most + 1, size), rhs.dtype).at[0].set(r / jnp.where(beta > 0, beta, 1))
        return basis, jnp.zeros((most + 1, most), rhs.dtype), beta, jnp.int32(0)

    def iterate(state):
        (basis, hessenberg, beta, j), origin, _, _, carry, count = state
        w = product(basis[j])
        first = basis @ w
        w = w - first @ basis
        second = basis @ w
        w = w - second @ basis
        rest = norm(w)
        column = (first + second).at[j + 1].set(rest)
        hessenberg = hessenberg.at[:, j].set(column)
        broken = rest <= 10 * tiny * norm(column)
        basis = basis.at[j + 1].set(jnp.where(broken, 0, w / jnp.where(broken, 1, rest)))
        used = columns <= j
        q, triangle = jnp.linalg.qr(jnp.where(used, hessenberg, unit))
        y = jax.scipy.linalg.solve_triangular(triangle, beta * q[0])
        x = origin + jnp.where(used, y, 0) @ basis[:most]
        r = rhs - product(x)
        full = j + 1 >= most
        if restart is None:
            last = broken | (count + 1 >= limit)
        else:  # done, or a whole cycle has gained nothing, and so will the next
            gained = norm(r) < (1 - 1e-8) * beta
            last = (norm(r) <= 10 * tiny * length) | ((full | broken) & ~gained) | (count + 1 >= limit)
        ended, tested = end(x, -r, carry, last)
        if restart is not None:
            looks = full | broken | last
            ended, tested = ended & looks, select(looks, tested, carry)
        cycle = select(full | broken, begin(r), (basis, hessenberg, beta, j + 1))
        return cycle, jnp.where(full | broken, x, origin), x, ended, tested, count + 1

    zero = jnp.zeros_like(rhs)
    start = (begin(rhs), zero, zero, length == 0, carry, jnp.int32(0))
    _, _, x, _, carry, count = jax.lax.while_loop(lambda state: ~state[3], iterate, start)
    return x, carry, count
