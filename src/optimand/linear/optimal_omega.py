r"""What is known about the relaxation parameter: the best one, and a bound of the number of sweeps.

Let \(\beta\) be the spectral radius of Jacobi's matrix \(I - D^{-1} A\), whose eigenvalues are real. If A is consistently ordered (five-point stencils
in the natural and in the red-black order, tridiagonal matrices), the spectral radius of successive over-relaxation is

$$\rho(\omega) = \begin{cases} \tfrac14 \left(\omega \beta + \sqrt{\omega^2 \beta^2 - 4 (\omega - 1)}\right)^2 & \omega < \omega^* \\
  \omega - 1 & \omega \ge \omega^* \end{cases}, \qquad
  \omega^* = 1 + \left(\frac{\beta}{1 + \sqrt{1 - \beta^2}}\right)^2$$

(Young 1954). To find \(\beta\) costs more than the solves that it speeds up: these functions are yardsticks for methods that do without.
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

__all__ = ["optimal_omega", "sor_iteration_bound"]

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
    operator = as_sparse(operator, "optimal_omega")
    if is_tracer(operator.data):
        raise ArgumentError("operator", "is traced, but the spectrum is computed outside of JAX.", "Call optimal_omega outside.")
    need_diagonal(operator)
    beta = _jacobi_radius(operator)
    if not beta < 1:
        raise ArgumentError("operator", f"has a Jacobi matrix of spectral radius {beta}; the formula is for less than one.")
    return float(1 + (beta / (1 + np.sqrt(1 - beta**2))) ** 2)


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
