"""What a long task tells a person: lines, tables and progress bars; on a terminal or in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


class Update(Protocol):
    """Called with how much is done, and a note beside the bar."""

    def __call__(self, done: int, note: str = "") -> None: ...


class Console:
    """Writes results to standard output and progress to standard error (only if that is a terminal)."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.output = RichConsole(highlight=False, soft_wrap=True, quiet=quiet)
        if not self.output.is_terminal:
            self.output.width = 160  # a log has no width; folding numbers there would only hide them
        self.errors = RichConsole(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)

    def line(self, text: str = "") -> None:
        self.output.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that a person should read, on standard error."""
        self.errors.print(f"warning: {text}", markup=False, style="yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column is text, the others are numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for n, column in enumerate(columns):
            table.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.output.print(table)

    @contextmanager
    def progress(self, title: str, total: int | None, unit: str = "") -> Iterator[Update]:
        """A bar with time elapsed and left; without a terminal, a line at every tenth if it takes long.

        Args:
            title: beside the bar. total: how much is to be done; None if unknown. unit: of what.
        """
        if self.quiet:
            yield lambda done, note="": None
            return
        if not self.errors.is_terminal:
            yield self._lines(title, total, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.errors, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)

    def _lines(self, title: str, total: int | None, unit: str) -> Update:
        """A line at every tenth, but not more than one in ten seconds."""
        last = [0, time.monotonic()]

        def update(done: int, note: str = "") -> None:
            # of an unknown total, every step is worth a line
            step, now = done if total is None else 10 * done // max(total, 1), time.monotonic()
            if step > last[0] and now - last[1] > 10.0:
                last[:] = [step, now]
                counted = f"{done} {unit}" if total is None else f"{done} of {total} {unit}"
                self.errors.print(f"{title}: {counted}  {note}", markup=False)

        return update
