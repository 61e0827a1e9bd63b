"""`Progress`: a callback that shows how far a solve is, on standard error."""

import sys
import time

from .arguments import need_not_negative

__all__ = ["Progress"]


class Progress:
    """One line that renews itself on a terminal; a line now and then elsewhere.

    **Arguments:** `label` stands in front; `seconds` is the shortest time between two lines where there is no terminal.
    """

    def __init__(self, label: str = "solve", seconds: float = 10.0, file=None):
        need_not_negative("seconds", seconds)
        self.label = label
        self.seconds = seconds
        self.file = sys.stderr if file is None else file
        self.shown = -float("inf")

    def __call__(self, event) -> None:
        """Show where the solve is."""
        terminal = self.file.isatty()
        now = time.monotonic()
        if not event.final and now - self.shown < (0.1 if terminal else self.seconds):
            return
        self.shown = now
        numbers = "".join(f"  {name} {x:.4g}" for name, x in event.metrics.items() if name != "step")
        total = event.budget.steps
        line = f"{self.label}: {event.step}/{total}{numbers}  {event.seconds:.1f} s"
        if event.final:
            line += f"  {event.result}"
        start, end = ("\r\x1b[K", "\n" if event.final else "") if terminal else ("", "\n")
        print(start + line, end=end, file=self.file, flush=True)
