r"""What is known about the relaxation parameter: the best one, and bounds of the number of sweeps and of the steps of conjugate gradients.

Let \(\beta\) be the spectral radius of Jacobi's matrix \(I - D^{-1} A\), whose eigenvalues are real. If A is consistently ordered
(five-point stencils
in the natural and in the red-black order, tridiagonal matrices), the spectral radius of successive over-relaxation is

$$\rho(\omega) = \begin{cases} \tfrac14 \left(\omega \beta + \sqrt{\omega^2 \beta^2 - 4 (\omega - 1)}\right)^2 & \omega < \omega^* \\
  \omega - 1 & \omega \ge \omega^* \end{cases}, \qquad
  \omega^* = 1 + \left(\frac{\beta}{1 + \sqrt{1 - \beta^2}}\right)^2$$

(Young 1954). For the matrix M of `SSOR`, with L in a given order, no such order is needed:

$$(2 - \omega) M = A + \frac{(2 - \omega)^2}{4 \omega} D + \omega \left(L D^{-1} L^\top - \tfrac14 D\right), \qquad
  M - A = \frac{1}{\omega (2 - \omega)} ((1 - \omega) D - \omega L) D^{-1} ((1 - \omega) D - \omega L)^\top,$$

so the spectrum of \(M^{-1} A\) lies between \(q(\omega)\) and 1 (Axelsson 1994, theorem 7.17):

$$q(\omega) = \frac{2 - \omega}{1 + a (2 - \omega)^2 / (4 \omega) + m \omega}, \qquad
  a = \lambda_{\max}(D A^{-1}), \quad m = \lambda_{\max}((L D^{-1} L^\top - \tfrac14 D) A^{-1}).$$

To find \(\beta\), a and m costs more than the solves that it speeds up: these functions are yardsticks for methods that do without.
"""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, ArrayLike, Float

from ..core.errors import ArgumentError
from ..core.tracing import is_tracer
from .preconditioners import as_sparse
from .sparse import SparseOperator
from .ssor import need_diagonal, need_omega
from .sweeps import Sweeps

__all__ = ["conjugate_gradient_bound", "optimal_omega", "sor_iteration_bound"]

_DENSE = 500  # unknowns up to which all eigenvalues are computed


def optimal_omega(operator: SparseOperator) -> float:
    """The relaxation parameter at which `SOR` converges fastest, for a consistently ordered matrix.

    It is computed from the spectrum, by ARPACK for more than a few hundred unknowns, so not under `jit`.

    **Raises:** `ArgumentError` for an operator that is traced or not a `SparseOperator`, for an entry of the diagonal that is zero or
    negative, with its row, and where Jacobi's matrix has complex eigenvalues or a spectral radius of one or more: there is no formula then.

    **Source:** Young (1954).

    ```python
    import lineax as lx

    places = [0, 0, 1, 1], [0, 1, 0, 1]
    om.linear.optimal_omega(om.linear.SparseOperator.from_entries([2.0, -1.0, -1.0, 2.0], *places, (2, 2), lx.symmetric_tag))
    ```
    """
    operator = _known(operator, "optimal_omega")
    beta = _jacobi_radius(operator)
    if not beta < 1:
        raise ArgumentError("operator", f"has a Jacobi matrix of spectral radius {beta}; the formula is for less than one.")
    return float(1 + (beta / (1 + np.sqrt(1 - beta**2))) ** 2)


def _known(operator: lx.AbstractLinearOperator, who: str) -> SparseOperator:
    operator = as_sparse(operator, who)
    if is_tracer(operator.data):
        raise ArgumentError("operator", "is traced, but the spectrum is computed outside of JAX.", f"Call {who} outside.")
    need_diagonal(operator)
    return operator


def _jacobi_radius(operator: SparseOperator) -> float:
    matrix = operator.to_scipy()
    size = operator.shape[0]
    scale = scipy.sparse.diags_array(1 / np.sqrt(matrix.diagonal()))
    jacobi = (scipy.sparse.eye_array(size) - scale @ matrix @ scale).tocsr()  # similar to I - D^{-1} A
    start = np.random.default_rng(0).normal(size=size)
    if lx.is_symmetric(operator):
        if size <= _DENSE:
            return float(np.abs(scipy.linalg.eigvalsh(jacobi.toarray())).max())
        ends = scipy.sparse.linalg.eigsh(jacobi, k=2, which="BE", v0=start, return_eigenvectors=False)
        return float(np.abs(ends).max())
    if size <= _DENSE:
        values = scipy.linalg.eigvals(jacobi.toarray())
    else:
        values = scipy.sparse.linalg.eigs(jacobi, k=6, which="LM", v0=start, return_eigenvectors=False)
    radius = float(np.abs(values).max())
    if np.abs(np.imag(values)).max() > 1e-6 * radius:
        raise ArgumentError("operator", "has a Jacobi matrix with complex eigenvalues; the formula is for real ones.")
    return radius


def sor_iteration_bound(omega: ArrayLike, beta: ArrayLike, rtol: ArrayLike = 1e-8, tau: ArrayLike = 0.0) -> Float[Array, "..."]:
    r"""A bound of the number of sweeps of `SOR` to a relative residual: \(1 + \log \epsilon / \log(\rho + \tau (1 - \rho))\).

    **Arguments:** `omega`; `beta`, the spectral radius of Jacobi's matrix, in [0, 1); `rtol`, the residual \(\epsilon\) in (0, 1); `tau`, in
    [0, 1): how much slower than its limit the iteration converges before it gets there. All may be arrays, and traced.

    **Raises:** `ArgumentError` for numbers that are known and out of these ranges.

    **Source:** Khodak, Chow, Balcan and Talwalkar (2024), section 2; with Young (1954) for \(\rho\).
    """
    if np.ndim(omega) == 0:
        need_omega(omega)
    for name, value, least in (("beta", beta, 0.0), ("rtol", rtol, np.finfo(float).tiny), ("tau", tau, 0.0)):
        if not is_tracer(value) and not np.all((least <= np.asarray(value)) & (np.asarray(value) < 1)):
            raise ArgumentError(name, f"must be {'above' if name == 'rtol' else 'at least'} 0 and below 1, not {value}.")
    omega, beta = jnp.asarray(omega), jnp.asarray(beta)
    inside = (omega * beta) ** 2 - 4 * (omega - 1)
    below = inside > 0  # as long as omega is below the best one
    root = jnp.where(below, jnp.sqrt(jnp.where(below, inside, 1)), 0)
    rho = jnp.where(below, (omega * beta + root) ** 2 / 4, omega - 1)
    return 1 + jnp.log(rtol) / jnp.log(rho + tau * (1 - rho))


def conjugate_gradient_bound(
    operator: SparseOperator, omega: ArrayLike, rtol: float = 1e-8, ordering: str = "natural"
) -> Float[np.ndarray, "..."]:
    r"""A bound of the steps of `CG` with `SSOR(omega, ordering)`, from zero to a relative residual.

    With \(\sigma = (1 - \sqrt q) / (1 + \sqrt q)\) the error, in the norm of A, falls to \(2 / (\sigma^k + \sigma^{-k})\) of itself in k
    steps, and the residual to
    \(\sqrt{\kappa}\) times that, where \(\kappa\) is the condition number of A; hence

    $$k \le 1 + \log\left(\sqrt\kappa / \epsilon + \sqrt{\kappa / \epsilon^2 - 1}\right) / \log(1 / \sigma).$$

    It is computed from the spectrum, by ARPACK for more than a few hundred unknowns, so not under `jit`.

    **Arguments:** `operator`, symmetric and positive definite; `omega`, or an array of them; `rtol`, the residual \(\epsilon\) in (0, 1);
    `ordering`: as for `SSOR`.

    **Raises:** `ArgumentError` for an operator that is traced, not a `SparseOperator`, not tagged as positive semidefinite, or not positive
    definite, with an entry of the diagonal
    that is zero or negative, with its row, and for numbers out of these ranges.

    **Source:** Axelsson (1994), theorem 7.17; used by Khodak, Chow, Balcan and Talwalkar (2024).

    ```python
    import lineax as lx

    places = [0, 0, 1, 1], [0, 1, 0, 1]
    operator = om.linear.SparseOperator.from_entries([2.0, -1.0, -1.0, 2.0], *places, (2, 2), lx.positive_semidefinite_tag)
    om.linear.conjugate_gradient_bound(operator, jnp.array([1.0, 1.5]))
    ```
    """
    operator = _known(operator, "conjugate_gradient_bound")
    if not lx.is_positive_semidefinite(operator):
        raise ArgumentError("operator", "must be tagged as positive semidefinite.", "lineax.positive_semidefinite_tag")
    omega = np.asarray(omega, float)
    for one in omega.ravel():
        need_omega(one)
    if not 0 < rtol < 1:
        raise ArgumentError("rtol", f"must be above 0 and below 1, not {rtol}.")
    kappa, a, m = _ssor_spectrum(operator, ordering)
    q = (2 - omega) / (1 + a * (2 - omega) ** 2 / (4 * omega) + m * omega)
    with np.errstate(divide="ignore"):  # q = 1: M is A, and one step is enough
        rate = -np.log((1 - np.sqrt(q)) / (1 + np.sqrt(q)))
    return np.asarray(1 + np.log(np.sqrt(kappa) / rtol + np.sqrt(kappa / rtol**2 - 1)) / rate)


def _ssor_spectrum(operator: SparseOperator, ordering: str) -> tuple[float, float, float]:
    """The condition number of A, a and m."""
    rows, columns = np.asarray(operator.pattern.rows), np.asarray(operator.pattern.columns)
    below = np.asarray(Sweeps.of(operator.pattern, ordering).side) < 0
    data = np.asarray(operator.data)
    matrix = operator.to_scipy()
    lower = scipy.sparse.coo_array((data[below], (rows[below], columns[below])), shape=matrix.shape).tocsr()
    diagonal = matrix.diagonal()
    own = scipy.sparse.diags_array(diagonal).tocsr()
    excess = (lower @ scipy.sparse.diags_array(1 / diagonal) @ lower.T - own / 4).tocsr()
    size = len(diagonal)
    if size <= _DENSE:
        values = scipy.linalg.eigvalsh(matrix.toarray())
        least, most = values[0], values[-1]
        _need_definite(float(least))
        a, m = (scipy.linalg.eigvalsh(one.toarray(), matrix.toarray(), subset_by_index=[size - 1, size - 1])[0] for one in (own, excess))
        return float(most / least), float(a), float(m)
    start = np.random.default_rng(0).normal(size=size)
    try:
        solve = scipy.sparse.linalg.splu(matrix.tocsc()).solve
    except RuntimeError as error:
        raise ArgumentError("operator", "must be positive definite, but it is singular.") from error
    inverse = scipy.sparse.linalg.LinearOperator(matrix.shape, solve)
    end = lambda one, **settings: float(scipy.sparse.linalg.eigsh(one, k=1, v0=start, return_eigenvectors=False, **settings)[0])
    least = 1 / end(inverse, which="LM")
    _need_definite(least)
    a, m = (end(one, M=matrix, Minv=inverse, which="LA") for one in (own, excess))
    return end(matrix, which="LA") / least, a, m


def _need_definite(least: float) -> None:
    if not least > 0:
        raise ArgumentError("operator", f"must be positive definite, but its least eigenvalue is {least:.3g}.")
