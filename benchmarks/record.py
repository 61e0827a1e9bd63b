"""Where a benchmark leaves its figures: benchmarks/results/NAME.json, read by `optimand report --markdown`."""

import json
import os
from pathlib import Path
from typing import Any

from optimand.report import record

__all__ = ["write"]

RESULTS = Path(__file__).parent / "results"


def write(
    name: str, title: str, rows: list[dict[str, Any]], claims: list[tuple[str, float, float]], **more: Any
) -> None:
    """Print the figures and write them. Each claim is (name, measured, the most it may be)."""
    judged = [
        {"name": claim, "measured": measured, "bar": f"<= {bar:g}", "holds": bool(measured <= bar)}
        for claim, measured, bar in claims
    ]
    found = {
        "name": name,
        "title": title,
        "date": record.today(),
        "machine": record.machine(),
        "versions": record.versions(),
        "load average at the end": round(os.getloadavg()[0], 2),  # a ratio taken on a busy machine tells little
        "rows": rows,
        "claims": judged,
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{key} {_show(value)}" for key, value in row.items()))
    for claim in judged:
        print(
            f"{'holds' if claim['holds'] else 'DOES NOT HOLD'}: {claim['name']}: {claim['measured']:.4g} {claim['bar']}"
        )


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
