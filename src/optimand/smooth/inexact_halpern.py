r"""Halpern's iteration on an inexact resolvent: algorithm 2 of Cai, Alacaoglu and Diakonikolas 2024.

$$u_{k+1} = \lambda_k u_0 + (1 - \lambda_k)\, \tilde J_k, \qquad \tilde J_k \approx J_{\eta (F + G)}(u_k), \qquad
  \lambda_k = \frac1{k+2}, \quad \eta = \frac{\sqrt n}{L} .$$

The resolvent of the whole operator is firmly nonexpansive for every monotone F, cocoercive or not. It solves
\(0 \in \eta (F + G)(z) + z - u_k\), which is 1-strongly monotone and \((1 + \eta L)\)-Lipschitz: the
forward-reflected-backward method with variance reduction converges linearly on it, at about n component calls a digit.

The residual is small at \(\tilde J_k\), where \((u_k - \tilde J_k) / \eta\) is nearly in F + G, and not at \(u_{k+1}\), which
the anchor pulls away; so the answer is the last \(\tilde J_k\), and the inner solver goes on from there.
"""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from .arguments import need_between, need_positive
from .inclusion_method import Checked, InclusionMethod, first_check, full_evaluation
from .inclusions import MonotoneInclusion
from .vectors import add, dtype_of, norm, scale, select, subtract
from .vr_forward_reflected_backward import default_probability, reflected_move

__all__ = ["InexactHalpern"]


class InexactHalpernState(eqx.Module):
    """`centre` is u_k, `number` k and `anchor` u_0. `z`, `w`, `previous` and `operator` are those of the inner solver,
    `inner` its steps so far; `close`, that it may end."""

    z: PyTree
    w: PyTree
    previous: PyTree
    operator: PyTree
    inner: Array
    close: Array
    centre: PyTree
    anchor: PyTree
    number: Array
    checked: Checked
    counters: Counters


class InexactHalpern(InclusionMethod):
    r"""Halpern's iteration on resolvents that an inner solver approximates: for monotone, Lipschitz operators.

    The method with the guarantee where F need not be cocoercive, as in a game: about \(n + \sqrt n L / \epsilon\) component
    calls, up to logarithms, for a residual \(\epsilon\) of the last iterate. A step of `solve` is one of the inner solver;
    the answer is the last approximate resolvent.

    **Arguments:**

    - `lipschitz`: the average constant L, see `MonotoneInclusion`. The outer step size eta is
      `step_scale * sqrt(n) / lipschitz`, the inner one \(\sqrt p / (2 (1 + \eta L))\).
    - `tolerance`: converged when the residual `operator_residual(problem, u)` is at most this, at an approximate resolvent.
    - `inner`: "budget" takes `inner_factor * n * log(k + 2)` inner steps; "residual" goes on until the residual of the
      inner problem is at most \(\lVert u_k - \tilde J_k \rVert / (k + 2)^2\), looked at when the inner solver evaluates F.
      Both are this library's: the rule in the paper needs the distance to the solution.
    - `probability`: p of the inner solver; 1 / n by default.

    A residual that grows tenfold over 50 outer steps ends the solve as `diverged`.

    Raises `ArgumentError`, naming the argument, for a number out of its range.

    ```python
    game = om.smooth.matrix_game("symmetric-1", 20)
    uniform = jnp.full(20, 1 / 20)
    method = om.smooth.InexactHalpern(lipschitz=1.3, tolerance=3e-2)
    om.solve(game, method, (uniform, uniform), key=jax.random.key(0)).value
    ```
    """

    reference: ClassVar[str] = "cai2024variance"
    stochastic: ClassVar[bool] = True

    inner: Literal["budget", "residual"] = eqx.field(static=True, default="budget")
    inner_factor: Any = 2.0
    probability: Any = None

    def __check_init__(self):
        if self.inner not in ("budget", "residual"):
            raise ArgumentError("inner", f"must be 'budget' or 'residual', not {self.inner!r}.")
        need_positive("inner_factor", self.inner_factor)
        need_between("probability", self.probability, 0, 1 + 1e-9)

    def init(self, problem: MonotoneInclusion, guess: PyTree, *, key: Array | None) -> InexactHalpernState:
        operator = problem.operator(guess)
        counters = Counters.zero().add(**full_evaluation(problem))
        checked = first_check(problem, guess, operator)
        zero, no = jnp.int32(0), jnp.array(False)
        return InexactHalpernState(guess, guess, guess, operator, zero, no, guess, guess, zero, checked, counters)

    def step(self, problem: MonotoneInclusion, state: InexactHalpernState, *, key: Any) -> InexactHalpernState:
        dtype = dtype_of(state.z)
        coin, sample = jax.random.split(key)
        n = problem.total / problem.sums
        p = jnp.asarray(default_probability(problem) if self.probability is None else self.probability, dtype)
        eta = self.step_size(n**0.5, dtype)
        tau = jnp.sqrt(p) / (2 * (1 + eta * self.lipschitz))
        z = reflected_move(
            problem, state.z, state.w, state.previous, state.operator, problem.draw(sample, 1),
            tau.astype(dtype), 1 - p, eta, state.centre,
        )  # fmt: skip

        rounds = (state.number + 2).astype(dtype)
        if self.inner == "budget":
            ends = state.inner + 1 >= jnp.ceil(self.inner_factor * n * jnp.log(rounds))
        else:
            ends = state.close
        weight = 1 / rounds  # lambda_k
        centre = select(ends, add(scale(1 - weight, z), state.anchor, weight), state.centre)
        renewed = ends | (jax.random.uniform(coin, dtype=dtype) < p)

        def renew():
            operator = problem.operator(z)
            checked = select(ends, state.checked.again(problem, z, operator), state.checked)
            close = jnp.array(False)
            if self.inner == "residual":
                left = norm(subtract(z, problem.forward_backward(state.centre, operator, eta)))
                close = ~ends & (left <= norm(subtract(state.centre, z)) / rounds**2)
            return z, operator, checked, close

        kept = lambda: (state.w, state.operator, state.checked, state.close)
        w, operator, checked, close = jax.lax.cond(renewed, renew, kept)
        looked = jnp.where(renewed, 2 if self.inner == "residual" else 1, 0)
        counters = state.counters.add(
            calls=problem.difference_calls(1) + jnp.where(renewed, problem.total, 0),
            residuals=jnp.where(renewed, 1, 0),
            proximal=1 + looked,
        )
        return InexactHalpernState(
            z=z,
            w=w,
            previous=select(ends, z, state.w),
            operator=operator,
            inner=jnp.where(ends, 0, state.inner + 1),
            close=close,
            centre=centre,
            anchor=state.anchor,
            number=state.number + jnp.where(ends, 1, 0),
            checked=checked,
            counters=counters,
        )
