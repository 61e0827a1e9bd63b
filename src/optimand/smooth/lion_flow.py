r"""The continuous flow of Lion-K, its Lyapunov function, and the score that certifies a stationary point.

$$\dot m = -\alpha \nabla f(x) - \gamma m, \qquad
  \dot x = \nabla K\big(m - \varepsilon (\alpha \nabla f(x) + \gamma m)\big) - \lambda x .$$

For \(\varepsilon \gamma \le 1\), as long as \(\lambda x\) is in the domain of \(K^*\), the function

$$H(x, m) = \alpha f(x) + \tfrac{\gamma}{\lambda} K^*(\lambda x)
  + \tfrac{1 - \varepsilon \gamma}{1 + \varepsilon \lambda} \big( K^*(\lambda x) + K(m) - \lambda \langle m, x \rangle \big)$$

never increases along it; outside, the distance of \(\lambda x\) to that domain decays like \(e^{-\lambda t}\). At its end points
\(x\) is a stationary point of \(\alpha f(x) + \tfrac{\gamma}{\lambda} K^*(\lambda x)\).

Chen, Liu, Liang and Liu (2024), equation 3 and theorem 3.1.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..core.errors import ArgumentError
from ..core.problem import Objective
from ..core.tracing import as_arrays, is_tracer
from .arguments import need_not_negative, need_positive
from .lion_kernels import Kernel
from .vectors import add, dot, scale, subtract, zeros_like

__all__ = ["LionFlow", "kkt_score", "lion_k_flow", "lyapunov"]


def kkt_score(
    kernel: Kernel, gradient: PyTree, x: PyTree, weight_decay: Any, *, alpha: Any = 1.0, gamma: Any = 1.0
) -> Array:
    r"""How far x is from stationary: the gap in Fenchel's inequality between \(\lambda x\) and the gradient.

    $$S(x) = K(v) + K^*(\lambda x) - \lambda \langle v, x \rangle, \qquad v = -\tfrac{\alpha}{\gamma} \nabla f(x) .$$

    Never negative, and zero exactly where \(v \in \partial K^*(\lambda x)\): where x is stationary for
    \(\alpha f + \tfrac{\gamma}{\lambda} K^*(\lambda \cdot)\). Infinite outside the domain of K*. For `L1Kernel` it is
    \(\lVert g \rVert_1 + \lambda \langle g, x \rangle\), which is \(\lambda\) times the gap of Frank and Wolfe on the box, and so
    bounds \(\lambda (f(x) - f^\star)\) for convex f.

    **Arguments:** `gradient`, that of f at `x`, with its structure; `weight_decay`, the \(\lambda\).

    ```python
    gradient = lambda x: 2 * (x - jnp.array([3.0, 0.5]))
    x = jnp.array([1.0, 0.5])  # the nearest point of the box |x| <= 1
    om.smooth.kkt_score(om.smooth.L1Kernel(), gradient(x), x, 1.0)  # 0
    ```
    """
    v = scale(-jnp.asarray(alpha) / gamma, gradient)
    y = scale(weight_decay, x)
    return kernel.value(v) + kernel.conjugate(y) - dot(v, y)


def lyapunov(
    kernel: Kernel,
    value: Any,
    x: PyTree,
    momentum: PyTree,
    weight_decay: Any,
    *,
    alpha: Any = 1.0,
    gamma: Any = 1.0,
    epsilon: Any = 0.0,
) -> Array:
    """H(x, m): what the flow of Lion-K never increases once it is inside the set. Infinite outside.

    **Arguments:** `value`, that of f at `x`; `momentum`, which tracks the *negative* gradient; `weight_decay`, the lambda;
    `alpha`, `gamma`, `epsilon` of the flow.
    """
    coupling = (1 - epsilon * gamma) / (1 + epsilon * weight_decay)
    return energy(kernel, alpha * value, x, momentum, weight_decay, gamma, coupling)


def energy(
    kernel: Kernel, value: Any, x: PyTree, momentum: PyTree, weight_decay: Any, gamma: Any, coupling: Any
) -> Array:
    """value + gamma / lambda K*(lambda x) + coupling (K*(lambda x) + K(m) - lambda <m, x>).

    With lambda = 0 the second term is dropped.
    """
    y = scale(weight_decay, x)
    conjugate = kernel.conjugate(y)
    free = jnp.asarray(weight_decay) == 0
    penalty = jnp.where(free, 0, conjugate / jnp.where(free, 1, weight_decay))
    return value + gamma * penalty + coupling * (conjugate + kernel.value(momentum) - dot(momentum, y))


class LionFlow(eqx.Module):
    """A path of the flow: x and m at the `times` (leading axis), and along it f (`value`) and H (`lyapunov`)."""

    times: Float[Array, " times"]
    x: PyTree
    momentum: PyTree
    value: Float[Array, " times"]
    lyapunov: Float[Array, " times"]


def lion_k_flow(
    problem: Objective,
    kernel: Kernel,
    x: PyTree,
    momentum: PyTree = None,
    *,
    times: Any,
    weight_decay: Any = 1.0,
    alpha: Any = 1.0,
    gamma: Any = 1.0,
    epsilon: Any = 0.0,
    step_size: Any = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    max_steps: int = 100_000,
) -> LionFlow:
    """Integrate the flow of Lion-K, by Diffrax.

    For a smooth kernel (`SmoothL1Kernel`, `HuberKernel`, `L2SquaredKernel`). The right-hand side of the others jumps, and a
    step size that adapts itself crawls along the jump: give them a fixed `step_size`, and expect its accuracy.

    **Arguments:**

    - `problem`: the objective f, e.g. a `Minimize`. `x`, `momentum`: where it starts; the momentum is zero by default.
    - `times`: increasing; the flow starts at the first.
    - `weight_decay`, `alpha`, `gamma`, `epsilon`: the constants of the flow; epsilon gamma must be at most 1.
    - `step_size`: of fixed steps. By default the steps adapt themselves to `rtol` and `atol`.

    **Returns:** a `LionFlow`. **Raises:** `ArgumentError` for constants out of their range, and times that do not increase.

    ```python
    problem = om.Minimize(lambda x: jnp.sum((x - 2.0) ** 2))
    path = om.smooth.lion_k_flow(problem, om.smooth.SmoothL1Kernel(0.1), jnp.zeros(3), times=jnp.linspace(0.0, 5.0, 20))
    path.lyapunov[-1] < path.lyapunov[0]
    ```
    """
    import diffrax  # takes a second to load, and only this needs it

    if not isinstance(kernel, Kernel):
        raise ArgumentError("kernel", f"must be a kernel of Lion-K, not {type(kernel).__name__}.", "L1Kernel()")
    if not isinstance(problem, Objective):
        raise ArgumentError("problem", f"must have an objective, not be a {type(problem).__name__}.", "Minimize(fn)")
    for name, number in (("weight_decay", weight_decay), ("alpha", alpha), ("gamma", gamma), ("step_size", step_size)):
        need_positive(name, number)
    need_not_negative("epsilon", epsilon)
    if not (is_tracer(epsilon) or is_tracer(gamma)) and np.any(np.asarray(epsilon) * np.asarray(gamma) > 1):
        raise ArgumentError("epsilon", f"times gamma must be at most 1, not {epsilon!r} * {gamma!r}.")
    times = jnp.asarray(times)
    if times.ndim != 1 or len(times) < 2 or (not is_tracer(times) and bool(np.any(np.diff(np.asarray(times, float)) <= 0))):
        raise ArgumentError("times", "must be a vector of at least two increasing times.")
    x = problem.start(x)
    problem.check(x)
    kernel.check(x)
    momentum = zeros_like(x) if momentum is None else as_arrays(momentum)

    def rhs(t, state, args):
        x, m = state
        change = jtu.tree_map(lambda g, m: -alpha * g - gamma * m, problem.gradient(x), m)  # m'
        return subtract(kernel.subgradient(add(m, change, epsilon)), scale(weight_decay, x)), change

    fixed = step_size is not None
    controller = diffrax.ConstantStepSize() if fixed else diffrax.PIDController(rtol=rtol, atol=atol)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rhs), diffrax.Heun() if fixed else diffrax.Tsit5(), times[0], times[-1], step_size,
        (x, momentum), saveat=diffrax.SaveAt(ts=times), stepsize_controller=controller, max_steps=max_steps,
    )  # fmt: skip
    assert solution.ys is not None  # SaveAt(ts=...) fills them
    xs, ms = solution.ys
    constants = {"alpha": alpha, "gamma": gamma, "epsilon": epsilon}
    value = jax.vmap(problem.value)(xs)
    along = jax.vmap(lambda f, x, m: lyapunov(kernel, f, x, m, weight_decay, **constants))(value, xs, ms)
    return LionFlow(times, xs, ms, value, along)
