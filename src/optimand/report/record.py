"""The run folder: its files, what they hold, and how they are written and read.

    RUN/settings.json     what was run: settings, seeds, versions, machine, date
    RUN/metrics.json      what was found: metrics, claims, and where tables and figures are; written last
    RUN/history.jsonl     what methods reported after each step
    RUN/tables/*.csv      RUN/figures/*.png, *.svg      RUN/report.html      RUN/checkpoints/*.ckpt
    RUN/seed-N/           one such folder a seed, if there are several

Names of hosts and users and paths are not recorded. Nothing here imports JAX before it is asked for versions.
"""

import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["machine", "open_folder", "read_json", "read_run", "slugify", "versions", "write_json", "write_whole"]

FORMAT = 1
_RECORDED = ("jax", "jaxlib", "equinox", "optax", "lineax", "optimistix", "diffrax", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Of Python, this library and what it computes with."""
    from optimand import __version__

    found = {"python": platform.python_version(), "optimand": __version__}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What a reader has to know to judge a time: system, processor, cores, memory, devices."""
    import jax

    devices = [f"{device.platform}:{device.device_kind}" for device in jax.devices()]
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": {kind: devices.count(kind) for kind in sorted(set(devices))},
    }
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def today() -> str:
    """The date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def open_folder(path: str | os.PathLike, *, resume: bool = False) -> Path:
    """The folder of a run, made if it is not there.

    **Raises:** `ArgumentError` if it is a file, cannot be written to, or holds something and `resume` is not set.
    """
    from optimand.core.errors import ArgumentError

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("out", f"{folder} is a file, not a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArgumentError("out", f"{folder} cannot be written to: {error.strerror}.") from None
    held = sorted(entry.name for entry in folder.iterdir())
    if held and not resume:
        hint = "Choose another with --out, or go on with what is there with --resume."
        raise ArgumentError("out", f"{folder} is not empty (it holds {held[0]}).", hint)
    if held and not any(name == "settings.json" or name.startswith(".settings.json") for name in held):
        raise ArgumentError("out", f"{folder} holds no settings.json: it is not a run that could be resumed.")
    return folder


def next_folder(parent: str | os.PathLike, name: str, *, resume: bool = False) -> Path:
    """`parent/name-1`, or the next number that is free; the last one that is taken when resuming."""
    taken = [
        int(match[1])
        for entry in (Path(parent).iterdir() if Path(parent).is_dir() else ())
        if (match := re.fullmatch(re.escape(name) + r"-(\d+)", entry.name))
    ]
    last = max(taken, default=0)
    return Path(parent) / f"{name}-{max(last, 1) if resume else last + 1}"


# Files.


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """As strict JSON: numbers that are not finite become "nan", "inf" and "-inf"."""
    write_whole(path, json.dumps(strict(content), indent=1, ensure_ascii=False) + "\n")


def strict(content: Any) -> Any:
    """The same content, with numbers that JSON does not know as text, tuples as lists and paths as text."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, Mapping):
        return {str(name): strict(part) for name, part in content.items()}
    if isinstance(content, tuple | list):
        return [strict(part) for part in content]
    return str(content) if isinstance(content, os.PathLike) else content


def read_json(path: Path) -> Any:
    """**Raises:** `ArgumentError` if it is missing or damaged."""
    from optimand.core.errors import ArgumentError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError("run", f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ArgumentError("run", f"{path} is damaged: {error}.") from None


def read_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a file, with "nan" and "inf" as numbers again."""
    return {name: float(number) for name, number in metrics.items()}


def read_run(folder: str | os.PathLike) -> dict[str, Any]:
    """A run folder: its settings, its metrics (None if it did not end), and its path under "folder"."""
    from optimand.core.errors import ArgumentError

    folder = Path(folder)
    if not (folder / "settings.json").is_file():
        raise ArgumentError("run", f"{folder} is not a run folder: it holds no settings.json.")
    done = folder / "metrics.json"
    return {
        "folder": folder,
        "settings": read_json(folder / "settings.json"),
        "metrics": read_json(done) if done.exists() else None,
    }


def slugify(text: str) -> str:
    """A file name made of the letters and digits of a text: "Error, MoE (K=4)" -> "error-moe-k-4"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def write_tables(folder: Path, tables: Iterable[Any]) -> list[dict[str, str]]:
    """Each as a CSV file in `folder/tables`. Returns what `metrics.json` says of them."""
    index = []
    for number, table in enumerate(tables, start=1):
        (folder / "tables").mkdir(exist_ok=True)
        file = f"tables/{number:02d}-{slugify(table.title)[:60]}.csv"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
        write_whole(folder / file, text.getvalue())
        index.append({"title": table.title, "file": file, "note": table.note})
    return index


def write_figures(folder: Path, figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each as PNG and SVG in `folder/figures`. Returns what `metrics.json` says of them."""
    index = []
    for number, (caption, figure) in enumerate(figures.items(), start=1):
        (folder / "figures").mkdir(exist_ok=True)
        stem = f"figures/{number:02d}-{slugify(caption)[:60]}"
        for kind in ("svg", "png"):
            content = io.BytesIO()
            metadata_ = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(content, format=kind, dpi=160, bbox_inches="tight", metadata=metadata_)
            write_whole(folder / f"{stem}.{kind}", content.getvalue())
        width = float(figure.get_size_inches()[0])
        index.append({"caption": caption, "file": stem, "inches": f"{width:.2f}"})
        _close(figure)
    return index


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)
