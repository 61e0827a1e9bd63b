r"""What a table of solvers and problems says.

The performance profile of a solver (Dolan and Moré 2002) is

$$\rho_s(\tau) = \frac{1}{|P|} \, \big| \{p : c_{p,s} \le \tau \min_{s'} c_{p,s'} \} \big| ,$$

the share of problems that it solves at a cost of at most \(\tau\) times the least of all solvers, infinite where it does
not solve. Problems that no solver solves count in |P|.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["costs", "counts", "false_claims", "profile", "reason", "unsolved"]

Row = Mapping[str, Any]


def _results(rows: Iterable[Row], kind: str | None = None) -> list[Row]:
    chosen = [row for row in rows if row["solver"] != "left out" and (kind is None or row["kind"] == kind)]
    return list({(row["problem"], row["solver"]): row for row in chosen}.values())


def _names(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(row["problem"] for row in rows)), list(dict.fromkeys(row["solver"] for row in rows))


def costs(rows: Iterable[Row], measure: str, kind: str | None = None) -> tuple[list[str], list[str], np.ndarray]:
    """Problems, solvers, and what each problem cost each solver: infinite where it did not solve it.

    **Arguments:** `measure` is a column of the table, "seconds" or "evaluations". A solver that never tells it is left out.
    """
    results = _results(rows, kind)
    told = {row["solver"] for row in results if row.get("solved") and row.get(measure) is not None}
    results = [row for row in results if row["solver"] in told]
    problems, solvers = _names(results)
    table = np.full((len(problems), len(solvers)), np.inf)
    for row in results:
        if row.get("solved") and row.get(measure) is not None:
            table[problems.index(row["problem"]), solvers.index(row["solver"])] = max(float(row[measure]), 1e-9)
    return problems, solvers, table


def profile(table: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """rho: a row for each solver, a column for each of `ratios` (tau).

    **Arguments:** `table` has a row for each problem and a column for each solver, infinite where it failed.
    """
    if not len(table):
        return np.zeros((table.shape[1], len(ratios)))
    least = np.min(table, axis=1, keepdims=True)
    relative = np.divide(table, least, out=np.full_like(table, np.inf), where=np.isfinite(table))
    return np.mean(relative[:, :, None] <= ratios, axis=0)


def counts(rows: Iterable[Row], kind: str | None = None) -> dict[str, int]:
    """How many problems each solver solves."""
    results = _results(rows, kind)
    _, solvers = _names(results)
    return {solver: sum(bool(row.get("solved")) for row in results if row["solver"] == solver) for solver in solvers}


def false_claims(rows: Iterable[Row]) -> list[Row]:
    """Rows whose solver says that it converged where the point does not satisfy the conditions."""
    return [row for row in _results(rows) if row.get("claims") and not row.get("solved")]


def unsolved(rows: Iterable[Row], solvers: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Problems that none of these solvers (all by default) solves: problem -> solver -> how it ended."""
    chosen = None if solvers is None else set(solvers)
    results = [row for row in _results(rows) if chosen is None or row["solver"] in chosen]
    solved = {row["problem"] for row in results if row.get("solved")}
    failed: dict[str, dict[str, str]] = {}
    for row in results:
        if row["problem"] not in solved:
            failed.setdefault(row["problem"], {})[row["solver"]] = reason(row)
    return failed


def reason(row: Row) -> str:
    """How a solver ended, and the largest residual of its point."""
    worst = {
        part: row[part] for part in ("stationarity", "complementarity", "violation") if row.get(part) is not None
    }
    text = str(row.get("message", ""))
    if worst:
        part = max(worst, key=lambda name: worst[name])
        text += f" ({part} {worst[part]:.1e})"
    return text
