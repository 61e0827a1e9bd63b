r"""Whether a point solves a problem, computed apart from the solver that found it.

With the multipliers that fit best, the point must satisfy

$$\lVert \nabla f + \partial c^\top \lambda - z_l + z_u \rVert_\infty \le \varepsilon \max(1, \lVert \nabla f \rVert_\infty),
  \quad |\lambda_i s_i| \le \varepsilon \max(1, \lVert \nabla f \rVert_\infty), \quad
  \text{violation} \le \varepsilon \max(1, \lVert x \rVert_\infty) ,$$

where multipliers of inequalities and bounds are not negative and s is the slack. They are found by non-negative least
squares over stationarity and complementarity together: so solvers that return no multipliers, or approximate ones, are
judged like the rest. With bounds alone the best multiplier is known: the gradient itself where it pushes against a bound.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize

from .entry import Entry

__all__ = ["TOLERANCE", "Verdict", "judge"]

TOLERANCE = 1e-5  # epsilon; solvers are asked for a tenth of it


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The objective, and the three residuals relative to their scales; `solved` if none is above the tolerance."""

    value: float
    stationarity: float
    complementarity: float
    violation: float

    @property
    def solved(self) -> bool:
        worst = max(self.stationarity, self.complementarity, self.violation)
        return bool(np.isfinite(self.value) and worst <= TOLERANCE)


def judge(entry: Entry, x: Any) -> Verdict:
    """How far `x` (a vector) is from a KKT point of the problem."""
    x = np.asarray(x, np.float64)
    nowhere = Verdict(np.nan, np.inf, np.inf, np.inf)
    if x.shape != (entry.size,) or not np.all(np.isfinite(x)):
        return nowhere
    value, gradient = entry.value_and_gradient(x)
    constraints, jacobian = entry.constraints_on_host(x), entry.jacobian(x)
    if not (np.isfinite(value) and np.all(np.isfinite(gradient)) and np.all(np.isfinite(jacobian))):
        return dataclasses.replace(nowhere, value=value)
    equalities, inequalities = np.split(constraints, [entry.equality_count])
    parts = (np.abs(equalities), inequalities, entry.lower - x, x - entry.upper)
    violation = max(0.0, *(float(np.max(part, initial=-np.inf)) for part in parts))

    scale = max(1.0, float(np.max(np.abs(gradient), initial=0.0)))
    size = max(1.0, float(np.max(np.abs(x), initial=0.0)))
    if len(constraints) == 0:
        scale = scale if entry.bounded else 1.0  # without any constraint the gradient itself has to vanish
        slack = np.where(gradient > 0, x - entry.lower, entry.upper - x)  # to the bound that it pushes against
        left = np.abs(gradient) * np.clip(slack, 0.0, 1.0)
        return Verdict(float(value), float(np.max(left)) / scale, 0.0, violation / size)

    # columns: a multiplier each; rows: stationarity, then multiplier times slack for what has a slack
    finite_lower, finite_upper = np.isfinite(entry.lower), np.isfinite(entry.upper)
    eye = np.eye(entry.size)
    columns = np.hstack([jacobian.T, -eye[:, finite_lower], eye[:, finite_upper]])
    slacks = [np.zeros(entry.equality_count), -inequalities, (x - entry.lower)[finite_lower], (entry.upper - x)[finite_upper]]
    slack = np.maximum(np.concatenate(slacks), 0.0)
    slack[~np.isfinite(slack)] = 1e10  # an inequality that is -inf there
    multipliers = _fit(columns, slack, gradient, entry.equality_count)
    stationarity = gradient + columns @ multipliers
    return Verdict(
        float(value),
        float(np.max(np.abs(stationarity), initial=0.0)) / scale,
        float(np.max(np.abs(multipliers * slack), initial=0.0)) / scale,
        violation / size,
    )


_MANY = 300  # multipliers, beyond which only those of small slacks are looked at


def _fit(columns: np.ndarray, slack: np.ndarray, gradient: np.ndarray, free: int) -> np.ndarray:
    """The multipliers, of which the first `free` may have any sign.

    Free ones are eliminated; what is left is non-negative least squares, which is exact and has no tolerance.
    """
    signed = np.arange(len(slack)) >= free
    near = ~signed | (slack <= (1.0 if len(slack) <= _MANY else 1e-2))  # the multiplier of others is as good as zero
    matrix = np.vstack([columns[:, near], np.diag(slack[near])])
    rhs = np.concatenate([-gradient, np.zeros(int(np.sum(near)))])
    basis, some = matrix[:, ~signed[near]], matrix[:, signed[near]]
    span = scipy.linalg.orth(basis) if basis.shape[1] else basis
    project = lambda b: b - span @ (span.T @ b)
    found, solution = np.zeros(len(slack)), np.zeros(int(np.sum(near)))
    if some.shape[1]:
        try:
            solution[signed[near]], _ = scipy.optimize.nnls(project(some), project(rhs), maxiter=30 * max(some.shape))
        except RuntimeError:  # it can cycle where columns depend on each other
            bounded = scipy.optimize.lsq_linear(project(some), project(rhs), (0.0, np.inf), tol=1e-14, max_iter=500)
            solution[signed[near]] = bounded.x
    if basis.shape[1]:
        rest = rhs - some @ solution[signed[near]]
        solution[~signed[near]] = np.linalg.lstsq(basis, rest, rcond=None)[0]
    found[near] = solution
    return found
