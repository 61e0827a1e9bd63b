r"""Two-person zero-sum matrix games as monotone inclusions.

$$\min_{x \in \Delta} \max_{y \in \Delta} x^\top A y, \qquad F(x, y) = (A y, -A^\top x) .$$

F is a sum over the columns of A, of which each touches F by one entry of y, and one over its rows. With columns drawn in
proportion to the squares of their norms, and rows likewise, the average Lipschitz constant is the Frobenius norm of A,
while that of F is its spectral norm (Carmon, Jin, Sidford and Tian 2019, section 4; Alacaoglu and Malitsky 2022).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .arguments import need_count, need_not_negative
from .inclusions import MonotoneInclusion
from .projections import simplex

__all__ = ["matrix_game"]

KINDS = ("policeman-burglar", "symmetric-1", "symmetric-2")


def matrix_game(
    game: str | Float[Array, "m n"] | Float[np.ndarray, "m n"],
    size: int = 200,
    *,
    key: Array | None = None,
    sampling: Literal["importance", "uniform"] = "importance",
    regularization: Any = 0.0,
    **options: Any,
) -> MonotoneInclusion:
    r"""min over x, max over y of x'Ay on simplices; the unknown is the pair (x, y), and `args[0]` is A.

    **Arguments:**

    - `game`: the matrix A; or one of three kinds of `size` rows and columns, scaled to spectral norm 1:
      "policeman-burglar", \(A_{ij} = w_i (1 - e^{-0.8 |i - j|})\) with w the absolute values of normal numbers drawn with
      `key`; "symmetric-1", \(((i + j - 1) / (2m - 1))^5\); "symmetric-2", \(((|i - j| + 1) / (2m - 1))^5\).
    - `sampling`: "importance" draws columns and rows in proportion to the squares of their norms: then L is the Frobenius
      norm of A.
    - `regularization`: mu, of \(\tfrac\mu2 \lVert x \rVert^2 - \tfrac\mu2 \lVert y \rVert^2\), which makes the equilibrium
      unique. It is part of the resolvent.
    - `options`: those of `MonotoneInclusion`.

    **Raises:** `ArgumentError` for an unknown kind, a kind that needs a key without one, or something that is no matrix.

    ```python
    paper = jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    game = om.smooth.matrix_game(paper)
    om.solve(game, om.smooth.Extragradient(lipschitz=3**0.5), (jnp.array([1.0, 0, 0]), jnp.array([0, 0, 1.0]))).value
    ```
    """
    if sampling not in ("importance", "uniform"):
        raise ArgumentError("sampling", f"must be 'importance' or 'uniform', not {sampling!r}.")
    need_not_negative("regularization", regularization)
    payoff = jnp.asarray(_payoff(game, size, key)) if isinstance(game, str) else jnp.asarray(game)
    if payoff.ndim != 2 or 0 in payoff.shape or not jnp.issubdtype(payoff.dtype, jnp.floating):
        raise ArgumentError("game", f"must be a matrix of floating-point numbers, or one of {', '.join(KINDS)}.")
    rows, columns = payoff.shape
    probabilities = None
    if sampling == "importance":
        constant = jax.lax.stop_gradient(payoff)
        probabilities = tuple(_proportional(jnp.sum(constant**2, axis=axis)) for axis in (0, 1))
    return MonotoneInclusion(
        (_column, _row), (columns, rows), _onto_simplices, payoff,
        resolvent_args=(jnp.asarray(regularization, payoff.dtype),), operator=_operator, probabilities=probabilities,
        linear=True, **options,
    )  # fmt: skip


def _column(u, j, payoff):
    _, y = u
    return payoff.shape[1] * payoff[:, j] * y[j], jnp.zeros_like(y)


def _row(u, i, payoff):
    x, _ = u
    return jnp.zeros_like(x), -payoff.shape[0] * payoff[i] * x[i]


def _operator(u, payoff):
    x, y = u
    return payoff @ y, -(x @ payoff)


def _onto_simplices(v, step_size, regularization):
    shrink = 1 / (1 + step_size * regularization)
    return tuple(simplex(shrink * part) for part in v)


def _proportional(squares: Float[Array, " n"]) -> Float[Array, " n"]:
    """Probabilities; those of a row of zeros, which never matters, not quite zero."""
    positive = squares + 1e-6 * jnp.mean(squares) + jnp.finfo(squares.dtype).tiny
    return positive / jnp.sum(positive)


def _payoff(kind: str, size: int, key: Array | None) -> np.ndarray:
    need_count("size", size)
    if kind not in KINDS:
        raise ArgumentError("game", f"must be a matrix, or one of {', '.join(KINDS)}, not {kind!r}.")
    i, j = np.arange(1, size + 1)[:, None], np.arange(1, size + 1)[None, :]
    if kind == "policeman-burglar":
        if key is None:
            raise ArgumentError("key", "is needed: the wealth of the houses is random.", "Pass key=jax.random.key(0).")
        wealth = jnp.abs(jax.random.normal(key, (size,)))
        if is_tracer(wealth):
            raise ArgumentError("key", "must be known: this game is made outside of transformations.")
        matrix = np.asarray(wealth, float)[:, None] * (1 - np.exp(-0.8 * np.abs(i - j)))
    else:
        matrix = (((i + j - 1) if kind == "symmetric-1" else (np.abs(i - j) + 1)) / (2 * size - 1)) ** 5
    return matrix / np.linalg.norm(matrix, 2)
