"""Numbers and claims as text, the same in the terminal, in HTML and in Markdown."""

import math
from typing import Any

__all__ = ["bar_text", "number_text"]


def number_text(value: Any) -> str:
    """A number to four figures, grouped if it is large; text as it is; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    value = float(value)
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.4g}"


def bar_text(bar: Any) -> str:
    """A bar with signs for its comparison: "<= 0.9" -> "≤ 0.9"."""
    return str(bar).replace("<=", "≤").replace(">=", "≥")


def holds_text(holds: Any) -> str:
    """In words."""
    return "holds" if holds else "does not hold"
