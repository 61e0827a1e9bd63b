"""The figures that studies share. Each returns a matplotlib `Figure`; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import style

__all__ = ["bars", "curves", "fields", "histories", "scaling"]


def fields(
    rows: Mapping[str, Mapping[str, Any]],
    *,
    reference: str | None = None,
    extent: tuple[float, float, float, float] | None = None,
    axes: tuple[str, str] = ("x", "y"),
    label: str = "",
    signed: bool = False,
) -> Any:
    """Fields side by side on one colour scale a row, each with a map of its error below on another.

    **Arguments:**

    - `rows`: name of the sample -> {name of the field: 2-D array `[y, x]`}; every sample has the same fields.
    - `reference`: the field that the others are compared with; without one there are no error maps.
    - `extent`: `(left, right, bottom, top)` of the domain. `axes`: names of its axes. `label`: of the colour bar.
    - `signed`: use diverging colours centred on zero.

    **Returns:** the figure. The relative L2 error stands over each error map.
    """
    with style.house_style():
        import matplotlib.pyplot as plt

        samples = {
            row: {name: np.asarray(array) for name, array in row_fields.items()} for row, row_fields in rows.items()
        }
        names = list(next(iter(samples.values())))
        lines = len(samples) * (1 if reference is None else 2)
        first = next(iter(samples.values()))[names[0]]
        left, right, bottom, top = extent or (0.0, float(first.shape[1]), 0.0, float(first.shape[0]))
        square = 0.5 < (right - left) / (top - bottom) < 2
        figure, grid = plt.subplots(
            lines,
            len(names),
            figsize=(2.35 * len(names) + 0.9, 2.15 * lines + 0.3),
            squeeze=False,
            sharex=True,
            sharey=True,
        )
        shown = {
            "extent": (left, right, bottom, top),
            "aspect": "equal" if square else "auto",
            "interpolation": "nearest",
        }
        line = 0
        for row, arrays in samples.items():
            low, high = _range(arrays.values(), signed)
            colours = {"cmap": style.SIGNED if signed else style.FIELD, "vmin": low, "vmax": high}
            for place, name in zip(grid[line], names, strict=True):
                image = place.imshow(arrays[name], **shown, **colours)
                place.set_title(name if len(samples) == 1 else f"{name} · {row}")
            figure.colorbar(image, ax=list(grid[line]), label=label, shrink=0.9, pad=0.02)
            line += 1
            if reference is not None:
                line = _error_maps(figure, grid, line, arrays, names, reference, shown)
        for place in grid.ravel():
            place.grid(False)
            place.label_outer()
        for place in grid[-1]:
            place.set_xlabel(axes[0])
        for place in grid[:, 0]:
            place.set_ylabel(axes[1])
        return figure


def _error_maps(figure, grid, line, arrays, names, reference, shown) -> int:
    truth = arrays[reference]
    errors = {name: np.abs(arrays[name] - truth) for name in names if name != reference}
    high = max((float(np.nanmax(error)) for error in errors.values()), default=1.0) or 1.0
    image = None
    for place, name in zip(grid[line], names, strict=True):
        if name == reference:
            place.set_visible(False)
            continue
        image = place.imshow(errors[name], cmap=style.ERROR, vmin=0, vmax=high, **shown)
        size = float(np.linalg.norm(truth)) or 1.0
        place.set_title(f"error {100 * float(np.linalg.norm(errors[name])) / size:.1f} %", fontweight="normal")
    if image is not None:
        figure.colorbar(image, ax=list(grid[line]), label="|error|", shrink=0.9, pad=0.02)
    return line + 1


def _range(arrays, signed: bool) -> tuple[float, float]:
    low = min(float(np.nanmin(array)) for array in arrays)
    high = max(float(np.nanmax(array)) for array in arrays)
    if signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    return low, high if high > low else low + 1.0


def curves(
    lines: Mapping[str, Any],
    *,
    x: Any = None,
    xlabel: str = "step",
    ylabel: str = "",
    title: str = "",
    log: str = "y",
) -> Any:
    """Curves over steps, with the range over repetitions shaded.

    **Arguments:**

    - `lines`: name -> one curve `[step]` or several `[repetition, step]`, or a pair `(x, y)` of one curve.
    - `x`: the steps, if they are not 1, 2, 3, ...
    - `log`: "y", "x", "xy" or "" for logarithmic axes; y stays linear where the values lie within a factor of three.
    """
    with style.house_style():
        import matplotlib.pyplot as plt
        import matplotlib.ticker

        figure, place = plt.subplots()
        for number, (name, line) in enumerate(lines.items()):
            if isinstance(line, tuple) and len(line) == 2:
                at, line = np.asarray(line[0]), np.atleast_2d(np.asarray(line[1], float))
            else:
                line = np.atleast_2d(np.asarray(line, float))
                at = np.arange(1, line.shape[1] + 1) if x is None else np.asarray(x)
            look = _look(number)
            middle = np.median(line, axis=0)
            place.plot(at, middle, label=name, **look, marker="o" if len(at) < 12 else None)
            if len(line) > 1:
                place.fill_between(at, line.min(axis=0), line.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)
        low, high = place.dataLim.intervaly
        if low > 0 and high < 3 * low:  # within so little a logarithmic axis has no readable ticks
            log = log.replace("y", "")
        if xlabel == "step" and "x" not in log:
            place.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        return _dress(figure, place, xlabel, ylabel, title, log, len(lines))


def scaling(
    lines: Mapping[str, tuple[Any, Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    slope: float | None = None,
) -> Any:
    """Cost against size, both logarithmic: name -> (sizes, costs). `slope` adds a line of that power to compare with."""
    with style.house_style():
        import matplotlib.pyplot as plt

        figure, place = plt.subplots()
        for number, (name, (sizes, costs)) in enumerate(lines.items()):
            place.plot(sizes, costs, marker="o", label=name, **_look(number))
        if slope is not None and lines:
            sizes, costs = next(iter(lines.values()))
            ends = np.array([min(sizes), max(sizes)], float)
            place.plot(ends, costs[0] * (ends / ends[0]) ** slope, color=style.INK, linewidth=1, linestyle=":")
            middle = float(np.sqrt(ends[0] * ends[1]))
            height = costs[0] * (middle / ends[0]) ** slope
            offset = {"xytext": (6, -4), "textcoords": "offset points", "ha": "left", "va": "top"}
            place.annotate(f"slope {slope:g}", (middle, height), fontsize=9, color=style.INK, **offset)
        return _dress(figure, place, xlabel, ylabel, title, "xy", len(lines))


def bars(groups: Mapping[str, Mapping[str, Any]], *, ylabel: str, title: str = "", log: bool = False) -> Any:
    """Bars of each group's entries with each repetition as a dot: group -> {entry: number or numbers}."""
    with style.house_style():
        import matplotlib.pyplot as plt

        entries = list(dict.fromkeys(entry for group in groups.values() for entry in group))
        width = 0.8 / max(len(entries), 1)
        figure, place = plt.subplots(figsize=(max(5.1, 0.5 * len(groups) * len(entries) + 1.5), 3.4))
        for number, entry in enumerate(entries):
            look = {"color": _look(number)["color"], "alpha": 0.8, "linewidth": 0}
            for at, group in enumerate(groups.values()):
                if entry in group:
                    values = np.atleast_1d(np.asarray(group[entry], float))
                    spot = at + (number - (len(entries) - 1) / 2) * width
                    place.bar(spot, values.mean(), width * 0.92, label=entry if at == 0 else None, **look)
                    if len(values) > 1:
                        place.scatter(np.full(len(values), spot), values, s=12, color=style.INK, zorder=3)
        place.set_xticks(range(len(groups)), list(groups))
        place.grid(axis="x", visible=False)
        return _dress(figure, place, "", ylabel, title, "y" if log else "", len(entries))


def histories(rows: Sequence[Mapping[str, Any]], *, most: int = 8) -> Any | None:
    """The value (or else the first metric) of each labelled solve of a `history.jsonl`; None if there is nothing."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(str(row.get("label", "solve")), []).append(row)
    names = [name for row in rows[:1] for name in row if name not in ("label", "step")]
    wanted = next((name for name in ("value", "loss", "residual", *names) if any(name in row for row in rows)), None)
    if wanted is None:
        return None
    drawn = {}
    for label, of_label in list(lines.items())[:most]:
        pairs = [(row["step"], float(row[wanted])) for row in of_label if wanted in row]
        if pairs:
            drawn[label] = tuple(np.asarray(column) for column in zip(*pairs, strict=True))
    if not drawn:
        return None
    positive = all(np.all(y[np.isfinite(y)] > 0) for _, y in drawn.values())
    return curves(drawn, ylabel=wanted, log="y" if positive else "", title=f"{wanted} after each step")


def _look(number: int) -> dict[str, Any]:
    count = len(style.COLOURS)
    return {"color": style.COLOURS[number % count], "linestyle": style.LINES[number // count % len(style.LINES)]}


def _dress(figure, place, xlabel, ylabel, title, log, entries):
    place.set_xlabel(xlabel)
    place.set_ylabel(ylabel)
    if title:
        place.set_title(title)
    if "x" in log:
        place.set_xscale("log")
    if "y" in log:
        place.set_yscale("log")
    if entries > 5:
        legend = place.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        width, height = figure.get_size_inches()  # room for the legend, so that the axes keep theirs
        figure.set_size_inches(width + legend.get_window_extent().width / figure.dpi, height)
    elif entries > 1:
        place.legend(loc="best")
    return figure
