"""Progress of a long task: lines in a log, a bar on a terminal, and how long the rest takes."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console as RichConsole

from lrpot import console
from lrpot.console import Console


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def run(clock: Clock, seconds: float, steps: range, total: int | None, *, at_most: bool = False) -> list[str]:
    """What a log shows of steps that take so many seconds each, the first of them before it is told of any."""
    shown = Console()
    shown.errors = RichConsole(file=io.StringIO(), soft_wrap=True)
    with shown.progress("stage 1/3", total, "epochs", at_most=at_most) as update:
        for step in steps:
            clock.now += seconds
            update(step, f"loss {step}")
    assert isinstance(shown.errors.file, io.StringIO)
    return shown.errors.file.getvalue().splitlines()


def test_a_line_at_every_tenth_with_the_time_left(clock: Clock) -> None:
    lines = run(clock, 20.0, range(1, 101), 100, at_most=True)
    assert lines[0] == "stage 1/3: 1 of 100 epochs  loss 1"  # nothing is known yet of how long one takes
    assert lines[1] == "stage 1/3: 10 of 100 epochs  at most 0:30:00 left  loss 10"
    assert lines[-1] == "stage 1/3: 100 of 100 epochs  at most 0:00:00 left  loss 100"
    assert len(lines) == 11


def test_a_task_that_must_end_later_has_no_at_most(clock: Clock) -> None:
    assert run(clock, 20.0, range(1, 11), 10)[1] == "stage 1/3: 2 of 10 epochs  0:02:40 left  loss 2"


def test_a_slow_task_does_not_keep_quiet_until_a_tenth_is_done(clock: Clock) -> None:
    lines = run(clock, 1000.0, range(1, 6), 1000)
    assert [line.split("  ")[0] for line in lines] == [f"stage 1/3: {n} of 1000 epochs" for n in range(1, 6)]
    assert lines[1].split("  ")[1] == "11 days, 13:13:20 left"


def test_a_quick_task_says_nothing(clock: Clock) -> None:
    assert run(clock, 0.09, range(1, 101), 100) == []


def test_time_left_of_a_resumed_task_counts_from_where_it_goes_on(clock: Clock) -> None:
    lines = run(clock, 30.0, range(50, 53), 100)
    assert lines[-1] == "stage 1/3: 50 of 100 epochs  loss 50"
    lines = run(clock, 30.0, range(50, 61), 100)
    assert lines[-1] == "stage 1/3: 60 of 100 epochs  0:20:00 left  loss 60"


def test_a_task_without_an_end_has_no_time_left(clock: Clock) -> None:
    assert run(clock, 20.0, range(1, 4), None) == [f"stage 1/3: {n} epochs  loss {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("width", "title", "note"),
    [(160, "stage 1/3: real space, long range frozen", "loss 0.1"), (80, "stage 1/3: r", "")],
)
def test_a_bar_on_a_terminal_shows_the_same(clock: Clock, width: int, title: str, note: str) -> None:
    """On a narrow one the title and the note are cut, and the numbers are not."""
    shown = Console()
    shown.errors = RichConsole(file=io.StringIO(), force_terminal=True, width=width)
    with shown.progress("stage 1/3: real space, long range frozen", 100, "epochs", at_most=True) as update:
        for step in (0, 1, 2):
            clock.now += 30.0
            update(step, "loss 0.1")
    assert isinstance(shown.errors.file, io.StringIO)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.errors.file.getvalue())
    last = [line for line in re.split(r"[\r\n]", plain) if line.strip()][-1]
    assert len(last) <= width
    for part in (title, "2/100", "epochs", "at most 0:49:00 left", note):
        assert part in last
