"""The house style of figures: sizes, colours and type, set for a `with` block and never globally.

The colours are those of Okabe and Ito (2008), which people with any common colour blindness tell apart, in an order that
also differs in lightness; fields use `viridis`, signed fields a diverging map, errors `magma`.
"""

import sys
from contextlib import AbstractContextManager

__all__ = ["COLOURS", "house_style"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, PALE = "#1f2933", "#d5dbe1"
LINES = ("-", "--", "-.", ":")

FIELD, SIGNED, ERROR = "viridis", "RdBu_r", "magma"

PANEL = 3.4  # inches: the width of one panel
HEIGHT = 2.7


def house_style() -> AbstractContextManager:
    """A context in which figures are drawn in the house style, without a display."""
    import matplotlib
    from cycler import cycler

    if "matplotlib.pyplot" not in sys.modules:  # nobody has chosen a display yet, and none is needed
        matplotlib.use("Agg")
    return matplotlib.rc_context(
        {
            "figure.figsize": (PANEL * 1.5, HEIGHT * 1.25),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=COLOURS),
            "grid.color": PALE,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "image.cmap": FIELD,
            "image.origin": "lower",
            "svg.fonttype": "path",
            "svg.hashsalt": "optimand",
        }
    )
