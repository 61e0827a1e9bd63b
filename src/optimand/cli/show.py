"""What the commands print: claims, tables, numbers."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimand.report.record import strict
from optimand.report.text import bar_text, holds_text, number_text

__all__ = ["Out"]


class Out:
    """Where a command prints: on standard output, or with `--json` on standard error but for the last line."""

    def __init__(self, as_json: bool):
        from rich.console import Console

        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=False)
        if not self.console.is_terminal:
            self.console.width = 140  # a log or a pipe, not a window

    def line(self, text: str = "") -> None:
        """A line of plain text."""
        self.console.print(text, markup=False, soft_wrap=True)

    def result(self, content: Mapping[str, Any]) -> None:
        """With `--json`, the last line of standard output."""
        if self.as_json:
            self.console.file.flush()
            sys.stdout.write(json.dumps(strict(content), ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def claims(self, claims: Iterable[Mapping[str, Any]], title: str = "") -> None:
        """Each claim with its figure, its bar, the paper's figure, and whether it holds."""
        claims = list(claims)
        if not claims:
            return
        rows = [
            (
                claim["name"],
                number_text(_number(claim["measured"])),
                bar_text(claim["bar"]),
                claim.get("paper") or "",
                f"[{'green' if claim['holds'] else 'bold red'}]{holds_text(claim['holds'])}[/]",
            )
            for claim in claims
        ]
        self.table(title, ("claim", "measured", "bar", "paper", ""), rows, right=(1, 2), markup_last=True)

    def metrics(self, metrics: Mapping[str, Any], spread: Mapping[str, Any] | None = None) -> None:
        """Numbers by name, with their spread over seeds if there is one."""
        if metrics:
            rows = [
                (name, number_text(_number(value)), f"± {number_text(_number(spread[name]))}" if spread else "")
                for name, value in metrics.items()
            ]
            self.table("", ("metric", "mean" if spread else "", "over seeds" if spread else ""), rows, right=(1,))

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        right: Sequence[int] = (),
        markup_last: bool = False,
    ) -> None:
        """A plain table."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_header=any(columns),
        )
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number in right else "left", overflow="fold")
        for row in rows:
            cells = [escape(number_text(cell)) for cell in row]
            if markup_last:
                cells[-1] = row[-1]
            table.add_row(*cells)
        self.console.print(table)


def _number(value: Any) -> Any:
    """A metric as it stands in a file: "nan" is a number there."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
