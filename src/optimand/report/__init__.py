"""Reports: the run folder, figures in the house style, a self-contained HTML page, and the table of results.

- `record`: what a run folder holds, and how it is written whole.
- `style` and `figures`: colours that the colour-blind tell apart; fields side by side on one scale, training curves with
  their spread, scaling plots. Studies draw with these.
- `html`: `report.html`. `markdown`: `docs/results.md`. `compare`: two runs side by side.

Everything is imported when it is used: the command line reads run folders without JAX or matplotlib.
"""

import importlib

_WHERE = {
    "bars": "figures",
    "curves": "figures",
    "fields": "figures",
    "histories": "figures",
    "house_style": "style",
    "scaling": "figures",
    "compare_runs": "compare",
    "read_run": "record",
    "results_page": "markdown",
    "write_report": "html",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
