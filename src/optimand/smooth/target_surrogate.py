r"""Target-based surrogates for stochastic optimisation (SSO).

For a loss whose gradient in the outputs of a model is dear and whose model is cheap. Step t, with parameters \(\theta_t\):

1. \(z_t = f_t(\theta_t)\), \(g_t = \nabla \ell_t(z_t)\): the only call of the oracle;
2. a step size \(\eta_t\) in target space;
3. the surrogate \(S_t(\theta) = \ell_t(z_t) + \langle g_t, f_t(\theta) - z_t \rangle + \frac{1}{2 \eta_t} \lVert f_t(\theta) - z_t \rVert^2\),
   means over the batch, which needs no further call;
4. \(\theta_{t+1}\): m steps of a deterministic method on \(S_t\) from \(\theta_t\).

With \(\eta \le 1/L\) on a full batch \(S_t\) bounds the loss from above, so whatever lowers it lowers the loss. Minimised exactly it
is a projected gradient step in target space, \(z_{t+1} = \mathrm{Proj}(z_t - \eta g_t)\) onto what the model can express; one
step of gradient descent on it is a step of SGD.

Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, "Target-based surrogates for stochastic optimization" (2023), algorithm 1.
Their programs divide the linear term by 1/eta and leave out the 1/2: their step size s is eta = s/2 here.
"""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Objective
from ..core.solution import Result, status_code
from .arguments import need_between, need_count, need_not_negative, need_positive
from .armijo import armijo
from .line_search import constant
from .optax import Optax
from .target_problem import Query, Surrogate, TargetProblem
from .target_steps import TargetStep
from .vectors import add, all_finite, dot, select

__all__ = ["SSO", "ArmijoGD"]


class ArmijoGDState(eqx.Module):
    """`value` belongs to `x`; `residual` is the norm of the gradient where the last step began; `stuck`: it found no way down."""

    x: PyTree
    value: Array
    residual: Array
    length: Array
    number: Array
    stuck: Array
    counters: Counters


class ArmijoGD(Method):
    """Gradient descent by Armijo's condition with a fixed factor: the inner method of `SSO` as published.

    A step costs one gradient and as many values as the search tries. The first search begins at `first_step`, every other at
    `growth` to the power of the share of the data that a batch holds, times the step before.

    `GradientDescent` searches with fewer evaluations of more; this one is for a surrogate whose values are cheap.

    **Arguments:**

    - `first_step`: the first step size that is tried.
    - `growth`, `shrink`: factors before a search, and after a trial that is refused.
    - `decrease`: c of Armijo's condition.
    - `max_trials`: of one search. If it finds nothing the method stays where it is and ends as `stopped`.
    - `tolerance`: converged when the norm of the gradient is at most this.

    Source: Lavington et al. 2023, appendix on experiments (line search on the surrogate).
    """

    problem = Objective
    reference: ClassVar[str] = "lavington2023target"

    first_step: Any = 10.0
    growth: Any = 1.8
    shrink: Any = 0.9
    decrease: Any = 0.5
    max_trials: int = eqx.field(static=True, default=100)
    tolerance: Any = 1e-6

    def __check_init__(self):
        need_positive("first_step", self.first_step)
        need_positive("growth", self.growth)
        need_between("shrink", self.shrink, 0, 1)
        need_between("decrease", self.decrease, 0, 1)
        need_count("max_trials", self.max_trials)
        need_not_negative("tolerance", self.tolerance)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> ArmijoGDState:
        if problem.stochastic:
            raise ArgumentError("problem", "has random batches, between which ArmijoGD cannot compare.", "Try SLS.")
        infinite = jnp.asarray(jnp.inf, jax.eval_shape(lambda x: problem.value(x), guess).dtype)
        length = jnp.asarray(self.first_step, infinite.dtype)
        return ArmijoGDState(guess, infinite, infinite, length, jnp.int32(0), jnp.array(False), Counters.zero())

    def step(self, problem: Objective, state: ArmijoGDState, *, key: Array | None) -> ArmijoGDState:
        value, gradient = problem.value_and_gradient(state.x)
        squared = dot(gradient, gradient).astype(value.dtype)
        residual = jnp.sqrt(jnp.where(squared == 0, 1, squared)) * (squared != 0)
        fixed, origin, heading = constant((problem, state.x, gradient))
        growth = jnp.where(state.number == 0, 1.0, self.growth ** getattr(problem, "fraction", 1.0))
        found = armijo(
            lambda length: fixed.value(add(origin, heading, -length)), value, squared, state.length * growth,
            decrease=self.decrease, shrink=self.shrink, max_trials=self.max_trials,
            allowance=jnp.finfo(value.dtype).eps * jnp.abs(jax.lax.stop_gradient(value)),
        )  # fmt: skip
        moves = found.accepted & (residual > self.tolerance)  # what has converged stays where its gradient was measured
        x = select(moves, add(state.x, gradient, -found.length), state.x)
        counters = state.counters.add(values=1 + found.trials, gradients=1)
        return ArmijoGDState(
            x, jnp.where(moves, found.value, value), residual, found.length, state.number + 1, ~found.accepted, counters
        )

    def done(self, problem: Objective, state: ArmijoGDState):
        code = jnp.where(state.stuck, Result.stopped.code, Result.running.code)
        return jnp.where(state.residual <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: Objective, state: ArmijoGDState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: ArmijoGDState) -> dict[str, Any]:
        return {"value": state.value, "residual": state.residual}


class SSOState(eqx.Module):
    """`value` and `residual` are the loss and the norm of its gradient at the last query, where the last step began; infinite
    until an oracle has said something finite.

    `skipped` counts steps left out because the oracle was not finite, `in_a_row` the last of them; `kept` counts steps after
    which the surrogate was no lower, so that the parameters stayed; `stayed`, whether the last was one.
    """

    x: PyTree
    value: Array
    residual: Array
    step_size: Array
    rule: PyTree
    number: Array
    inner_steps: Array
    skipped: Array
    in_a_row: Array
    kept: Array
    stayed: Array
    counters: Counters


class SSO(Method):
    r"""Many parameter steps for each call of an oracle, on a surrogate in target space.

    Pick it when a call of the oracle (a simulator, an expert, a rollout) costs far more than a pass of the model: a larger
    `inner_steps` then costs little and saves calls. If the model is what costs, use `SLS` or `Adam`.

    **Arguments:**

    - `target_step`: the rule for the step size in target space; `ConstantTargetStep(1 / L)` for a loss of one example that is L-smooth
      in its target.
    - `inner_steps`: m, the most steps on one surrogate.
    - `inner`: what takes them: a method for an `Objective`, or an Optax transformation. It begins afresh at every outer step.
    - `divergence`: "euclidean", or "kl" for targets that are the logits of a softmax: the Kullback-Leibler divergence takes
      the place of the squared distance (a mirror step; for the cross entropy itself L is 1, and the surrogate with a step size of 1
      is the loss).
    - `tolerance`: converged when the norm of the gradient of the loss is at most this. A problem with random batches never
      says so.
    - `skips_in_a_row`: an oracle that is not finite makes a step left out and counted in the metric `skipped`; after so many in a
      row the solve ends as `nonfinite`.

    `solution.counters` has `calls` of the oracle, exactly one a step; `samples`, the examples it was asked about; `gradients` and
    `values`, the passes of the model; and the `cost` that the problem declares for a call. The metric `inner_steps` says how many were
    taken on the last surrogate, `kept` how often it could not be lowered, so that the parameters stayed.

    **Raises:** `ArgumentError`, naming the argument, for a number out of its range, an `inner` that is a host method or neither a method
    nor a transformation, a rule for persistent targets with random batches, or "kl" with a metric that is not a number.
    """

    problem = TargetProblem
    reference: ClassVar[str] = "lavington2023target"

    target_step: TargetStep
    inner_steps: int = eqx.field(static=True, default=10)
    inner: Any = ArmijoGD()
    divergence: Literal["euclidean", "kl"] = eqx.field(static=True, default="euclidean")
    tolerance: Any = 1e-6
    skips_in_a_row: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not isinstance(self.target_step, TargetStep):
            text = f"must be a rule for the step size, not {self.target_step!r}."
            raise ArgumentError("target_step", text, "ConstantTargetStep(1 / L)")
        need_count("inner_steps", self.inner_steps)
        need_count("skips_in_a_row", self.skips_in_a_row)
        need_not_negative("tolerance", self.tolerance)
        if self.divergence not in ("euclidean", "kl"):
            raise ArgumentError("divergence", f"must be 'euclidean' or 'kl', not {self.divergence!r}.")
        if self.divergence == "kl" and self.target_step.kind != "scalar":
            raise ArgumentError("divergence", "'kl' needs a step size that is one number.", "Try ConstantTargetStep.")
        method = self._inner_method()
        kinds = method.problem if isinstance(method.problem, tuple) else (method.problem,)
        if method.host or not any(issubclass(Surrogate, kind) for kind in kinds):
            raise ArgumentError("inner", f"must be a traceable method for an Objective, not {type(method).__name__}.")

    def _inner_method(self) -> Method:
        inner: Any = self.inner
        if isinstance(inner, Method):
            return inner
        if hasattr(inner, "init") and hasattr(inner, "update"):
            return Optax(tx=inner)
        raise ArgumentError("inner", f"must be a method or an optax.GradientTransformation, not {type(inner).__name__}.")

    def init(self, problem: TargetProblem, guess: PyTree, *, key: Array | None) -> SSOState:
        if self.target_step.persistent and problem.stochastic:
            text = "keeps a step size for each target, but the targets change from batch to batch."
            raise ArgumentError("target_step", text, "Use a full batch, or a scalar rule.")
        query = jax.eval_shape(lambda x, key: problem.query(x, key=key), guess, key)
        if self.divergence == "kl" and (query.targets.ndim != 2 or query.targets.shape[1] < 2):
            text = f"'kl' needs targets that are logits, one vector an example, not of shape {query.targets.shape[1:]}."
            raise ArgumentError("divergence", text)
        infinite = jnp.asarray(jnp.inf, query.value.dtype)
        zero = jnp.zeros((), jnp.int32)
        return SSOState(
            guess, infinite, infinite, jnp.zeros((), query.targets.dtype), self.target_step.init(query.targets),
            zero, zero, zero, zero, zero, jnp.array(False), Counters.zero(),
        )  # fmt: skip

    def step(self, problem: TargetProblem, state: SSOState, *, key: Array | None) -> SSOState:
        query = problem.query(state.x, key=key)
        state = eqx.tree_at(lambda s: s.counters, state, state.counters.add(calls=1, values=1).add(**dict(problem.cost)))
        return self._update(problem, state, query, fresh=True)

    def absorb(self, problem: TargetProblem, state: SSOState, query: Query) -> SSOState:
        """One outer step from what an oracle has said before, perhaps at the targets of older parameters.

        For oracles that answer late: states come from `init` and go through here, without `solve`. Calls are those of
        whoever made the query, and are not counted.
        """
        state = eqx.tree_at(lambda s: s.counters, state, state.counters.add(values=1))
        return self._update(problem, state, query, fresh=False)

    def _update(self, problem: TargetProblem, state: SSOState, query: Query, fresh: bool) -> SSOState:
        """What follows the query; a `fresh` one is that of the parameters, where the surrogate is its offset."""
        sound = all_finite((query.value, query.targets, query.gradients))
        chosen = self.target_step.choose(state.rule, query, problem.mean_loss, state.number + 1)
        # without the offset, differences of the surrogate are not lost in the rounding of the loss
        surrogate = Surrogate(
            problem, query, chosen.metric, jnp.zeros_like(query.value), self.divergence, self.target_step.kind,
            problem.fraction,
        )  # fmt: skip
        x, lowered, residual, taken, counters = self._descend(surrogate, state.x, sound)
        start = jnp.zeros_like(lowered) if fresh else surrogate.value(state.x)
        better = all_finite((x, lowered)) & (lowered < start) & sound
        settled = (residual <= self.tolerance) & sound & (not problem.stochastic)
        in_a_row = jnp.where(sound, 0, state.in_a_row + 1).astype(jnp.int32)
        value = jnp.where(sound, query.value, jnp.where(in_a_row < self.skips_in_a_row, state.value, jnp.nan))
        rule = jtu.tree_map(lambda new, old: jnp.where(sound, new, old), chosen.state, state.rule)
        stayed = sound & ~better & ~settled
        return SSOState(
            x=select(better & ~settled, x, state.x),
            value=value.astype(state.value.dtype),
            residual=jnp.where(sound, residual, state.residual).astype(state.residual.dtype),
            step_size=jnp.where(sound, chosen.step_size, state.step_size).astype(state.step_size.dtype),
            rule=rule,
            number=state.number + sound,
            inner_steps=taken,
            skipped=state.skipped + ~sound,
            in_a_row=in_a_row,
            kept=state.kept + stayed,
            stayed=stayed,
            counters=state.counters.add(
                values=chosen.trials + counters.values, gradients=counters.gradients,
                samples=len(query.targets), hessian_products=counters.hessian_products,
            ),
        )  # fmt: skip

    def _descend(self, surrogate: Surrogate, x: PyTree, sound: Array):
        """m steps on the surrogate: the parameters, its value there, the norm of its gradient at the start, steps, and cost."""
        method = self._inner_method()
        first = method.init(surrogate, x, key=None)
        residual_of = lambda state: jnp.asarray(method.metrics(surrogate, state).get("residual", jnp.inf))

        def inner_step(carry, _):  # a scan, which unlike a loop that ends when it may can be differentiated both ways
            state, running = carry
            state = jax.lax.cond(running, lambda s: method.step(surrogate, s, key=None), lambda s: s, state)
            ended = status_code(method.done(surrogate, state)) != Result.running.code
            return (state, running & ~ended), (running, residual_of(state))

        begins = sound & (status_code(method.done(surrogate, first)) == Result.running.code)
        (state, _), (taken, residuals) = jax.lax.scan(inner_step, (first, begins), length=self.inner_steps)
        before = residual_of(first)  # some methods know it before their first step, some after
        residual = jnp.where(jnp.isfinite(before), before, residuals[0])
        lowered = method.metrics(surrogate, state)["value"]
        return method.answer(surrogate, state), lowered, residual, jnp.sum(taken, dtype=jnp.int32), method.counters(state)

    def done(self, problem: TargetProblem, state: SSOState):
        if problem.stochastic:
            return jnp.array(False)
        code = jnp.where(state.stayed, Result.stopped.code, Result.running.code)
        return jnp.where(state.residual <= self.tolerance, Result.converged.code, code)

    def answer(self, problem: TargetProblem, state: SSOState) -> PyTree:
        return state.x

    def metrics(self, problem: TargetProblem, state: SSOState) -> dict[str, Any]:
        return {
            "value": state.value,
            "residual": state.residual,
            "step_size": state.step_size,
            "inner_steps": state.inner_steps,
            "skipped": state.skipped,
            "kept": state.kept,
        }
