"""Rows that fail: left out of the file, recorded beside it, and the same after any interruption."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from lrpot.data.builders.rows import HOPELESS, FailedRow, write_rows
from lrpot.errors import DataError, OutputError

ROWS = 12
RECIPE = {"seed": 3}


def row_text(failing: tuple[int, ...], row: int) -> str | FailedRow:
    if row in failing:
        return FailedRow(f"row {row} is bad", {"kind": "test", "size": 0.5})
    return f"1\nrow={row} energy=0.0\nH 0.0 0.0 {row}.0\n"


def build(out: Path, failing: tuple[int, ...], **settings: object) -> dict[int, FailedRow]:
    return write_rows(out, partial(row_text, failing), **{"n": ROWS, "recipe": RECIPE, **settings})


def die_after(rows: int, out: Path, failing: tuple[int, ...]) -> None:
    """A build that ends, as a kill would end it, once so many rows are done."""

    def die(done: int, n: int) -> None:
        if done == rows:
            raise KeyError(done)

    with pytest.raises(KeyError):
        build(out, failing, progress=die)


def rows_in(out: Path) -> list[int]:
    return [int(line.split()[0].removeprefix("row=")) for line in out.read_text().splitlines()[1::3]]


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("failing", [(0,), (2, 3, 7, ROWS - 1)])
def test_rows_that_fail_are_left_out_and_recorded(tmp_path: Path, jobs: int, failing: tuple[int, ...]) -> None:
    out = tmp_path / "rows.extxyz"
    failed = build(out, failing, jobs=jobs)
    assert rows_in(out) == [row for row in range(ROWS) if row not in failing]
    assert list(failed) == list(failing)
    record = json.loads((tmp_path / "rows.extxyz.failed.json").read_text())
    assert record == [
        {"row": row, "reason": f"row {row} is bad", "settings": {"kind": "test", "size": 0.5}} for row in failing
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"rows.extxyz", "rows.extxyz.failed.json"}


@pytest.mark.parametrize("stop", [0, 2, 3, 7, ROWS - 1])
def test_an_interrupted_build_ends_the_same(tmp_path: Path, stop: int) -> None:
    """Also where the failed rows were not on disk yet, or are followed by rows that were cut."""
    failing = (1, 2, 6, ROWS - 1)
    whole, out = tmp_path / "whole.extxyz", tmp_path / "rows.extxyz"
    build(whole, failing)
    die_after(stop, out, failing)
    partial_file = tmp_path / "rows.extxyz.partial"
    content = partial_file.read_bytes()
    partial_file.write_bytes(content[:-4])  # the last row loses its end
    seen: list[int] = []
    failed = build(out, failing, progress=lambda done, n: seen.append(done))
    if content:  # goes on at the row that was cut
        assert seen[0] == max(row for row in range(stop) if row not in failing)
    assert list(failed) == list(failing)
    for ending in ("", ".failed.json"):
        assert (tmp_path / f"rows.extxyz{ending}").read_bytes() == (tmp_path / f"whole.extxyz{ending}").read_bytes()


def test_failed_rows_are_not_computed_again(tmp_path: Path) -> None:
    out = tmp_path / "rows.extxyz"
    die_after(5, out, (3, 4))
    build(out, ())  # would now succeed at 3 and 4
    assert rows_in(out) == [0, 1, 2, *range(5, ROWS)]


def test_a_record_of_a_former_build_goes(tmp_path: Path) -> None:
    out = tmp_path / "rows.extxyz"
    build(out, (1,))
    build(out, (), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.extxyz"]


@pytest.mark.parametrize(("n", "tried"), [(4, 4), (100, HOPELESS)])
def test_a_build_whose_first_rows_all_fail_ends(tmp_path: Path, n: int, tried: int) -> None:
    seen: list[int] = []
    with pytest.raises(DataError, match=f"all of its first {tried} rows failed; row 0: row 0 is bad") as error:
        build(tmp_path / "rows.extxyz", tuple(range(100)), n=n, progress=lambda done, total: seen.append(done))
    assert "\n" not in str(error.value)
    assert seen[-1] == tried - 1
    build(tmp_path / "rows.extxyz", (), n=n)  # once what was wrong is mended, they are tried again
    assert len(rows_in(tmp_path / "rows.extxyz")) == n


def test_a_damaged_record_of_failures_is_not_trusted(tmp_path: Path) -> None:
    out = tmp_path / "rows.extxyz"
    die_after(5, out, (1,))
    (tmp_path / "rows.extxyz.partial.json").write_text(json.dumps(RECIPE | {"failed": [{"row": 1}]}))
    with pytest.raises(OutputError, match=r"delete .+ to start anew"):
        build(out, (1,))
