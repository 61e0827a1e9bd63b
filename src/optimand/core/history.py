"""`History`: a callback that writes what the method reports, one JSON object a step, to a file."""

import json
import os
from pathlib import Path

from .arguments import need_count
from .errors import ArgumentError

__all__ = ["History"]


class History:
    """Append the metrics of every step to a JSON-lines file: `{"step": 12, "value": 0.5}`.

    **Arguments:**

    - `path`: the file. Rows of steps that will be done again after a resume are dropped, so that each step stands in it
      once.
    - `label`: written into each row, where several solves share a file.
    - `every`: keep one step in so many.
    """

    def __init__(self, path: str | os.PathLike, label: str | None = None, every: int = 1):
        need_count("every", every)
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ArgumentError("path", f"lies in {self.path.parent}, which is not a folder.", "Create it first.")
        self.label = label
        self.keep = every
        self.opened = False

    def __call__(self, event) -> None:
        """Append the new rows."""
        rows = [row for row in event.rows if row["step"] % self.keep == 0 or (event.final and row is event.rows[-1])]
        if not self.opened:
            self._forget_from(min((row["step"] for row in event.rows), default=event.step + 1))
            self.opened = True
        if rows:
            head = {} if self.label is None else {"label": self.label}
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps({**head, **row}) + "\n" for row in rows)

    def _forget_from(self, step: int) -> None:
        """Drop rows of this label at and after `step`: they belong to a run that went on past its checkpoint."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the half-written last line of a killed run
                continue
            if row.get("label") != self.label or row["step"] < step:
                kept.append(line)
        temporary = self.path.with_name(f".{self.path.name}.part")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)
