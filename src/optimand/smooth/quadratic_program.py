r"""Quadratic programs.

$$\min_x \tfrac12 x^\top P x + q^\top x \quad\text{s.t.}\quad A x = b,\; G x \le h,\; l \le x \le u .$$

A quadratic program is a `Constrained` problem whose functions are known and whose data are arrays. Its solution is a
`PrimalDual`, its optimality condition are the KKT conditions, and so derivatives with respect to P, q, A, b, G, h, l and u
follow as they do for any other problem (Amos and Kolter 2017). Every method for `Constrained` takes it; those for quadratic
programs (`ADMM`, `QuadraticInteriorPoint`) read its arrays.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..core.constrained import Constrained
from ..core.errors import ArgumentError
from ..core.tracing import is_tracer

__all__ = ["QuadraticProgram"]


class QuadraticProgram(Constrained):
    """Minimise `x'Px / 2 + q'x` subject to `A x = b`, `G x <= h` and `lower <= x <= upper`.

    **Arguments:**

    - `P`: (n, n), symmetric; `None` is zero, a linear program.
    - `q`: (n,).
    - `A`, `b`: (m, n) and (m,), the equalities; `None` if there are none.
    - `G`, `h`: (p, n) and (p,), the inequalities; an infinite entry of h is no constraint.
    - `bounds`: `(lower, upper)` as those of `Constrained`: numbers, arrays like x or `None`; infinite entries are no bounds.
    - `convex`: that P is positive semidefinite, which is checked. With `False` it is not, and methods for convex programs
      refuse the problem; `SQP` takes it and finds a local solution.

    x is a vector of n numbers, or any pytree that holds n numbers, in the order of `jax.flatten_util.ravel_pytree`; then
    bounds are pytrees like it. The value of a solution is a `PrimalDual` with multipliers `equality` (m,), `inequality`
    (p,), `lower` and `upper`.

    Raises `ArgumentError`, naming the argument, for shapes that do not fit, numbers that are NaN, a P that is not symmetric
    or, if `convex`, has a negative eigenvalue, and crossed bounds. Inside `jit` or `vmap` only shapes can be looked at: there
    a method for convex programs ends as `diverged` on a P that is not. Equalities that contradict each other are no error:
    the solve ends as `infeasible`.

    ```python
    covariance, returns = jnp.diag(jnp.array([1.0, 2.0, 4.0])), jnp.array([0.1, 0.2, 0.3])
    portfolio = om.smooth.QuadraticProgram(covariance, -returns, A=jnp.ones((1, 3)), b=jnp.ones(1), bounds=(0.0, None))
    om.solve(portfolio, om.smooth.ADMM(tolerance=1e-4), jnp.ones(3) / 3).value.primal
    ```

    Source: Amos and Kolter 2017 for the derivatives; Nocedal and Wright 2006, chapter 16.
    """

    convex: bool = eqx.field(static=True)

    def __init__(
        self,
        P: Any,
        q: Any,
        A: Any = None,
        b: Any = None,
        G: Any = None,
        h: Any = None,
        bounds: tuple[PyTree, PyTree] | None = None,
        *,
        convex: bool = True,
    ):
        q = _floats("q", q)
        if q.ndim != 1:
            raise ArgumentError("q", f"must be a vector, not an array of shape {q.shape}.")
        n = q.shape[0]
        P = jnp.zeros((n, n), q.dtype) if P is None else _floats("P", P)
        if P.shape != (n, n):
            raise ArgumentError("P", f"must have shape {(n, n)}, as q has {n} entries; it has {P.shape}.")
        A, b = _pair("A", A, "b", b, n)
        G, h = _pair("G", G, "h", h, n)
        for name, array in {"P": P, "q": q, "A": A, "b": b, "G": G}.items():
            if array is not None and not is_tracer(array) and not np.all(np.isfinite(array)):
                raise ArgumentError(name, "holds a number that is not finite.")
        if h is not None and not is_tracer(h) and not np.all(np.asarray(h) > -np.inf):  # NaN compares false
            raise ArgumentError("h", "holds NaN or -inf: such a constraint has no solution.")
        _need_curvature(P, convex)
        super().__init__(
            _objective, P, q, A, b, G, h,
            equalities=None if A is None else _equalities,
            inequalities=None if G is None else _inequalities,
            bounds=bounds,
        )  # fmt: skip
        self.convex = convex
        lower, upper = self.bounds
        for name, bound, forbidden in (("lower", lower, jnp.inf), ("upper", upper, -jnp.inf)):
            for leaf in jax.tree_util.tree_leaves(bound):
                if not is_tracer(leaf) and (np.any(np.isnan(leaf)) or np.any(np.asarray(leaf) == forbidden)):
                    raise ArgumentError("bounds", f"({name}) hold NaN or {forbidden}, which no x satisfies.")
        if eqx.is_array(lower) and eqx.is_array(upper) and not is_tracer(lower) and not is_tracer(upper):
            crossed = np.argwhere(np.asarray(lower) > np.asarray(upper))
            if len(crossed):
                raise ArgumentError("bounds", f"cross: lower > upper at x{crossed[0].tolist()}.")

    @property
    def P(self) -> Float[Array, "n n"]:
        return self.args[0]

    @property
    def q(self) -> Float[Array, " n"]:
        return self.args[1]

    @property
    def A(self) -> Float[Array, "m n"] | None:
        return self.args[2]

    @property
    def b(self) -> Float[Array, " m"] | None:
        return self.args[3]

    @property
    def G(self) -> Float[Array, "p n"] | None:
        return self.args[4]

    @property
    def h(self) -> Float[Array, " p"] | None:
        return self.args[5]

    @staticmethod
    def two_sided(P: Any, q: Any, C: Any, lower: Any, upper: Any, **options: Any) -> "QuadraticProgram":
        """min x'Px / 2 + q'x s.t. lower <= C x <= upper: the form of OSQP.

        Rows whose sides are equal become equalities, in their order; of the others those with a finite upper side and then
        those with a finite lower side become inequalities. The sides must be known, not traced. `options` are those of
        `QuadraticProgram`. Raises `ArgumentError` for sides that cross.
        """
        C, lower, upper = _floats("C", C), _floats("lower", lower), _floats("upper", upper)
        if C.ndim != 2 or lower.shape != C.shape[:1] or upper.shape != C.shape[:1]:
            raise ArgumentError("C", f"has shape {C.shape}, and its sides have {lower.shape} and {upper.shape}.")
        if is_tracer(lower) or is_tracer(upper):
            raise ArgumentError("lower", "is traced: which rows are equalities has to be known.", "Give A, b, G, h.")
        low, up = np.asarray(lower), np.asarray(upper)
        if not np.all(low <= up):
            raise ArgumentError("lower", f"exceeds `upper` or is NaN in row {int(np.argmin(low <= up))}.")
        tied, above, below = low == up, (low < up) & np.isfinite(up), (low < up) & np.isfinite(low)
        return QuadraticProgram(
            P, q, C[tied], lower[tied],
            jnp.concatenate([C[above], -C[below]]), jnp.concatenate([upper[above], -lower[below]]), **options,
        )  # fmt: skip

    @staticmethod
    def least_squares(matrix: Any, target: Any, **constraints: Any) -> "QuadraticProgram":
        """min |M x - y|^2 / 2 subject to `A`, `b`, `G`, `h` and `bounds`, as in non-negative or constrained least squares."""
        matrix, target = _floats("matrix", matrix), _floats("target", target)
        if matrix.ndim != 2 or target.shape != matrix.shape[:1]:
            raise ArgumentError("matrix", f"has shape {matrix.shape}, and the target {target.shape}.")
        return QuadraticProgram(matrix.T @ matrix, -matrix.T @ target, **constraints)

    @staticmethod
    def projection(point: Any, **constraints: Any) -> "QuadraticProgram":
        """min |x - point|^2 / 2: the projection of a point on the polyhedron that `A`, `b`, `G`, `h` and `bounds` describe."""
        point = _floats("point", point)
        return QuadraticProgram(jnp.eye(point.size, dtype=point.dtype), -point, **constraints)

    @staticmethod
    def model(problem: Constrained, x: PyTree, *, convex: bool = True) -> "QuadraticProgram":
        """The objective of `problem` to second order and its constraints to first order, at x; in x itself, not in a step.

        The problem itself, as arrays, if it is a quadratic program written as functions. x must be a vector.
        """
        x = _floats("x", x)
        if x.ndim != 1:
            raise ArgumentError("x", f"must be a vector, not an array of shape {x.shape}.")
        curvature = jax.hessian(problem.value)(x)
        gradient = jax.grad(problem.value)(x)

        def linear(constraint):
            flat = lambda x: ravel_pytree(constraint(x))[0]
            rows = jax.jacobian(flat)(x)
            return rows, rows @ x - flat(x)

        A, b = (None, None) if problem.equality_fn is None else linear(problem.equalities)
        G, h = (None, None) if problem.inequality_fn is None else linear(problem.inequalities)
        curvature = (curvature + curvature.T) / 2
        return QuadraticProgram(curvature, gradient - curvature @ x, A, b, G, h, problem.bounds, convex=convex)


# The functions of every quadratic program: one object each, so that solves share what was compiled.


def _vector(x: PyTree) -> Array:
    return ravel_pytree(x)[0]


def _objective(x, P, q, A, b, G, h):
    x = _vector(x)
    return 0.5 * x @ (P @ x) + q @ x


def _equalities(x, P, q, A, b, G, h):
    return A @ _vector(x) - b


def _inequalities(x, P, q, A, b, G, h):
    return G @ _vector(x) - h


def _floats(name: str, array: Any) -> Array:
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, f"is not an array: {error}") from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ArgumentError(name, "is complex.", "Split it into real and imaginary parts.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _pair(name: str, matrix: Any, side_name: str, side: Any, n: int) -> tuple[Array | None, Array | None]:
    """The rows of linear constraints and their right-hand side."""
    if matrix is None and side is None:
        return None, None
    if matrix is None or side is None:
        missing, given = (name, side_name) if matrix is None else (side_name, name)
        raise ArgumentError(missing, f"is missing: `{given}` was given.")
    matrix, side = _floats(name, matrix), _floats(side_name, side)
    if matrix.ndim != 2 or matrix.shape[1] != n:
        raise ArgumentError(name, f"must have shape (rows, {n}), as q has {n} entries; it has {matrix.shape}.")
    if side.shape != matrix.shape[:1]:
        raise ArgumentError(side_name, f"must have shape {matrix.shape[:1]}, a number for each row of `{name}`; it has {side.shape}.")
    return (None, None) if len(matrix) == 0 else (matrix, side)


def _need_curvature(P: Array, convex: bool) -> None:
    """Symmetric, and positive semidefinite to rounding if it is said to be convex."""
    if is_tracer(P) or P.size == 0:
        return
    matrix = np.asarray(P, np.float64)
    size, eps = np.max(np.abs(matrix)), float(jnp.finfo(P.dtype).eps)
    worst = np.unravel_index(np.argmax(np.abs(matrix - matrix.T)), matrix.shape)
    if np.abs(matrix - matrix.T)[worst] > len(matrix) * 10 * eps * size:
        i, j = map(int, worst)
        raise ArgumentError(
            "P", f"is not symmetric: P[{i}, {j}] = {matrix[i, j]:.6g} and P[{j}, {i}] = {matrix[j, i]:.6g}.",
            "x'Px knows only (P + P.T) / 2: pass that.",
        )  # fmt: skip
    if not convex or size == 0:
        return
    shift = 100 * len(matrix) * eps * size
    try:
        np.linalg.cholesky(matrix + shift * np.eye(len(matrix)))  # several times faster than eigenvalues
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(matrix)[0])
        raise ArgumentError(
            "P", f"is not positive semidefinite: its least eigenvalue is {least:.4g}.",
            "With convex=False the program is taken as it is, for a method that finds local solutions, such as SQP.",
        ) from None  # fmt: skip
