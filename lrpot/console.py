"""What a long task tells a person: lines, tables and progress bars; on a terminal or in a log, or nothing."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

# Seconds: no two lines of progress in a log are nearer, and none waits longer for the next step of the task.
NEAREST_LINES, FARTHEST_LINES = 10.0, 300.0

# Characters of a line of a table in a log, which has no width of its own.
LOG_WIDTH = 160

# Characters of the bar and of what stands beside it: "---------- 1000/1000 structures 0:00:00 at most 0:00:00 left".
NUMBERS_WIDTH = 62


class Update(Protocol):
    """Called with how much is done, and a note beside the bar."""

    def __call__(self, done: int, note: str = "") -> None: ...


class Console:
    """Writes results to standard output and progress to standard error (only if that is a terminal)."""

    def __init__(self, *, quiet: bool = False, copy: Callable[[str], None] | None = None) -> None:
        """
        Args:
            quiet: write nothing. copy: told all but progress, as plain text, also if quiet.
        """
        self.quiet = quiet
        self.copy = copy
        self.output = RichConsole(highlight=False, soft_wrap=True, quiet=quiet)
        if not self.output.is_terminal:
            self.output.width = LOG_WIDTH  # a log has no width; folding numbers there would only hide them
        self.errors = RichConsole(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)

    def line(self, text: str = "") -> None:
        self.output.print(text, markup=False)
        self._copy(text)

    def warn(self, text: str) -> None:
        """A line that a person should read, on standard error."""
        self.errors.print(f"warning: {text}", markup=False, style="yellow")
        self._copy(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column is text, the others are numbers."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for n, column in enumerate(columns):
            table.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.output.print(table)
        if self.copy is not None:
            plain = io.StringIO()
            RichConsole(file=plain, highlight=False, width=LOG_WIDTH).print(table)
            self._copy(plain.getvalue())

    def _copy(self, text: str) -> None:
        if self.copy is not None:
            self.copy(text)

    @contextmanager
    def progress(self, title: str, total: int | None, unit: str = "", *, at_most: bool = False) -> Iterator[Update]:
        """A bar with time elapsed and left; without a terminal, a line now and then if it takes long.

        Args:
            title: beside the bar. total: how much is to be done; None if unknown. unit: of what.
            at_most: whether it may end before all is done, and the time left is the longest.
        """
        left = _TimeLeft(total, at_most)
        if self.quiet:
            yield lambda done, note="": None
            return
        if not self.errors.is_terminal:
            yield self._lines(title, total, unit, left)
            return
        # on a narrow terminal the note is cut first, then the title, and never the numbers
        room = max(12, self.errors.width - NUMBERS_WIDTH)
        columns = (
            TextColumn("{task.description}", table_column=Column(max_width=room, no_wrap=True)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),
        )
        with Progress(*columns, console=self.errors, transient=True, expand=True) as bar:
            task = bar.add_task(title, total=total, note="", left="")
            yield lambda done, note="": bar.update(task, completed=done, note=note, left=left(done))

    def _lines(self, title: str, total: int | None, unit: str, left: _TimeLeft) -> Update:
        """A line for the first step, at every tenth, and where a tenth takes long."""
        last = [-1, time.monotonic()]

        def update(done: int, note: str = "") -> None:
            # of an unknown total, every step is worth a line
            step, now = done if total is None else 10 * done // max(total, 1), time.monotonic()
            time_left, waited = left(done), now - last[1]
            if (step > last[0] and waited > NEAREST_LINES) or waited > FARTHEST_LINES:
                last[:] = [step, now]
                counted = f"{done} {unit}" if total is None else f"{done} of {total} {unit}"
                told = [f"{title}: {counted}", time_left, note]
                self.errors.print("  ".join(text for text in told if text), markup=False)

        return update


class _TimeLeft:
    """How long the rest of a task takes, from how long it has taken since its first step was told."""

    def __init__(self, total: int | None, at_most: bool) -> None:
        self.total = total
        self.at_most = at_most
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int) -> str:
        """In words; empty as long as nothing is known."""
        now = time.monotonic()
        if self.first is None:
            self.first = done, now  # not zero, where a task was resumed
        began, at = self.first
        if self.total is None or done <= began:
            return ""
        left = timedelta(seconds=round((now - at) / (done - began) * (self.total - done)))
        return f"at most {left} left" if self.at_most else f"{left} left"
