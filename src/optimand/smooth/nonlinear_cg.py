r"""Nonlinear conjugate gradients.

$$x_{k+1} = x_k + t_k d_k, \qquad d_{k+1} = -g_{k+1} + \beta_k d_k, \qquad d_0 = -g_0 ,$$

with, for \(y_k = g_{k+1} - g_k\), one of

$$\beta^{FR} = \frac{\lVert g_{k+1} \rVert^2}{\lVert g_k \rVert^2}, \quad
  \beta^{PR+} = \max\Big(0, \frac{g_{k+1}^\top y_k}{\lVert g_k \rVert^2}\Big), \quad
  \beta^{HS} = \frac{g_{k+1}^\top y_k}{d_k^\top y_k}, \quad
  \beta^{DY} = \frac{\lVert g_{k+1} \rVert^2}{d_k^\top y_k},$$

$$\beta^{HZ} = \max\bigg(\frac{1}{d_k^\top y_k}\Big(y_k - 2 d_k \frac{\lVert y_k \rVert^2}{d_k^\top y_k}\Big)^{\!\top} g_{k+1},\;
  \frac{-1}{\lVert d_k \rVert \min(\eta, \lVert g_k \rVert)}\bigg)$$

(Fletcher and Reeves 1964; Polak and Ribière 1969, cut off at zero; Hestenes and Stiefel 1952; Dai and Yuan 1999; Hager and
Zhang 2005, eq. 1.3 and 1.4; see Nocedal and Wright 2006, section 5.2). The direction is restarted as \(-g\) where it does not descend,
where successive gradients are far from orthogonal (Powell 1977; not for HZ, which needs none), and where a search finds nothing.
"""

from typing import Any, ClassVar, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..core.budget import Counters
from ..core.errors import ArgumentError
from ..core.method import Method
from ..core.problem import Objective
from .arguments import need_not_negative, need_positive
from .ending import status
from .hager_zhang import HagerZhang
from .line_search import LineSearch, need_line_search, stay
from .strong_wolfe import StrongWolfe
from .vectors import add, dot, norm, scale, select, subtract

__all__ = ["NonlinearCG"]

Variant = Literal["fletcher-reeves", "polak-ribiere", "hestenes-stiefel", "dai-yuan", "hager-zhang"]


class NonlinearCGState(eqx.Module):
    """`length` is the first step size that the next search tries; `fresh`, that the direction is that of steepest descent."""

    x: PyTree
    value: Array
    gradient: PyTree
    direction: PyTree
    slope: Array
    length: Array
    fresh: Array
    stuck: Array
    counters: Counters


class NonlinearCG(Method):
    """Nonlinear conjugate gradients: three vectors of memory, for very large smooth problems.

    `LBFGS` usually needs fewer evaluations; this needs less memory, and on a quadratic it is the linear method of conjugate
    gradients up to how exact the search is.

    **Arguments:**

    - `variant`: `"hager-zhang"`, `"polak-ribiere"`, `"hestenes-stiefel"`, `"dai-yuan"` or `"fletcher-reeves"`.
    - `line_search`: a `LineSearch`. By default `HagerZhang()` for the variant of that name and `StrongWolfe(curvature=0.1)` for the
      others, which need a sharper search to descend.
    - `first_step`: the length of the first move that is tried, at most.
    - `powell`: restart where |g_{k+1} . g_k| is at least this times |g_{k+1}|^2.
    - `eta`: the constant of the lower bound on beta of Hager and Zhang.
    - `tolerance`: converged when the norm of the gradient is at most this.

    An objective that falls without bound ends the solve as `diverged`, a search that finds nothing along -g as `stopped`.
    Raises `ArgumentError`, naming the argument, for a number out of its range, and for a problem with random batches.

    ```python
    om.solve(om.Minimize(lambda x: jnp.sum((x - 1) ** 4 + x**2)), om.smooth.NonlinearCG("polak-ribiere"), jnp.zeros(5)).value
    ```
    """

    problem = Objective
    reference: ClassVar[str] = "hager2005new"

    variant: str = eqx.field(static=True, default="hager-zhang")
    line_search: Any = None
    first_step: Any = 1.0
    powell: Any = 0.2
    eta: Any = 0.01
    tolerance: Any = 1e-6

    def __check_init__(self):
        if self.variant not in get_args(Variant):
            raise ArgumentError("variant", f"must be one of {', '.join(get_args(Variant))}, not {self.variant!r}.")
        need_line_search(self.line_search)
        need_positive("first_step", self.first_step)
        need_positive("powell", self.powell)
        need_positive("eta", self.eta)
        need_not_negative("tolerance", self.tolerance)

    def _search(self) -> LineSearch:
        if self.line_search is not None:
            return self.line_search
        return HagerZhang() if self.variant == "hager-zhang" else StrongWolfe(curvature=0.1)

    def init(self, problem: Objective, guess: PyTree, *, key: Array | None) -> NonlinearCGState:
        if problem.stochastic:
            raise ArgumentError("problem", "has random batches, between which NonlinearCG cannot compare.", "Try Adam.")
        value, gradient = problem.value_and_gradient(guess)
        size = norm(gradient)
        length = jnp.asarray(self.first_step / jnp.maximum(1.0, size), value.dtype)
        counters = Counters.zero().add(values=1, gradients=1)
        yes = jnp.array(True)
        direction = scale(-1, gradient)
        return NonlinearCGState(guess, value, gradient, direction, -(size**2), length, yes, ~yes, counters)

    def step(self, problem: Objective, state: NonlinearCGState, *, key: Array | None) -> NonlinearCGState:
        g, d = state.gradient, state.direction
        slope = state.slope.astype(state.value.dtype)
        found = self._search().search(problem, state.x, state.value, slope, d, state.length)
        x, value, g_new = stay(found.accepted, found, state.x, state.value, g)
        gg, gg_new, overlap = dot(g, g), dot(g_new, g_new), dot(g_new, g)
        beta = self._beta(g, g_new, d, gg, gg_new, overlap, slope)
        beta = jnp.where(found.accepted & jnp.isfinite(beta), beta, 0)
        if self.variant != "hager-zhang":
            beta = jnp.where(jnp.abs(overlap) >= self.powell * gg_new, 0, beta)
        steepest = scale(-1, g_new)
        direction = add(steepest, d, beta)
        new_slope = dot(g_new, direction)
        fresh = ~(new_slope <= -1e-10 * gg_new) | (beta == 0)
        direction, new_slope = select(fresh, (steepest, -gg_new), (direction, new_slope))
        # The first trial predicts the same first-order change as the last step (Nocedal and Wright 2006, section 3.5).
        again = found.length * jnp.clip(slope / jnp.where(new_slope < 0, new_slope, -1), 1e-3, 1e3)
        cold = self.first_step / jnp.maximum(1.0, jnp.sqrt(gg_new))
        length = jnp.where(found.accepted & (again > 0) & jnp.isfinite(again), again, cold)
        return NonlinearCGState(
            x, value, g_new, direction, new_slope.astype(state.slope.dtype), length.astype(state.length.dtype), fresh,
            ~found.accepted & state.fresh,
            state.counters.add(values=found.trials, gradients=found.trials),
        )  # fmt: skip

    def _beta(self, g, g_new, d, gg, gg_new, overlap, slope) -> Array:
        if self.variant == "fletcher-reeves":
            return gg_new / gg
        if self.variant == "polak-ribiere":
            return jnp.maximum(0, (gg_new - overlap) / gg)
        dy = dot(g_new, d) - slope
        if self.variant == "dai-yuan":
            return gg_new / dy
        if self.variant == "hestenes-stiefel":
            return (gg_new - overlap) / dy
        y = subtract(g_new, g)
        beta = (dot(y, g_new) - 2 * dot(y, y) / dy * dot(d, g_new)) / dy
        return jnp.maximum(beta, -1 / (norm(d) * jnp.minimum(self.eta, jnp.sqrt(gg))))

    def done(self, problem: Objective, state: NonlinearCGState):
        return status(norm(state.gradient) <= self.tolerance, state.value, state.stuck)

    def answer(self, problem: Objective, state: NonlinearCGState) -> PyTree:
        return state.x

    def metrics(self, problem: Objective, state: NonlinearCGState) -> dict[str, Any]:
        return {"value": state.value, "residual": norm(state.gradient)}
