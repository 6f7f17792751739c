"""fit.log: whatever a fit tells stands there, however it was run and however it ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lrpot import fit
from lrpot.errors import TrainingError
from lrpot.training.run_log import LOG, RunLog
from tests.unit.training_data import write_ionic_rows

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  "
QUICK = {
    "model.backbone.features": 8,
    "model.backbone.interactions": 1,
    "model.kernel.form": "none",
    "training.max_epochs": 1,
    "data.valid_fraction": 0.1,
}


def test_a_quiet_fit_and_its_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_ionic_rows(tmp_path / "rows.extxyz", n=20)
    settings = {**QUICK, "training.pretrain_epochs": 3}
    fit(rows, out=tmp_path / "run", settings=settings, verbose=False)
    said = capsys.readouterr()
    assert said.out == said.err == ""
    first = (tmp_path / "run" / LOG).read_text()
    lines = first.splitlines()
    assert re.match(TIME + "warning: training.pretrain_epochs: no effect", lines[0])
    assert any(re.fullmatch(TIME + r"\d+ training, .* structures.*", line) for line in lines)
    assert any(line.endswith(str(tmp_path / "run" / "model.pt")) for line in lines)
    fit(out=tmp_path / "run", resume=True, verbose=False)
    again = (tmp_path / "run" / LOG).read_text()
    assert again.startswith(first)
    assert len(again) > len(first)


def test_what_was_said_on_a_terminal_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(write_ionic_rows(tmp_path / "rows.extxyz", n=20), out=tmp_path / "run", settings=QUICK)
    log = (tmp_path / "run" / LOG).read_text()
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    kept = [re.sub(f"^(?:{TIME}|  )", "", line) for line in log.splitlines()]
    assert said == [line for line in kept if not line.startswith("warning: ")]


def test_the_end_of_a_fit_that_failed(tmp_path: Path) -> None:
    log = RunLog()
    log.add("before there is a directory")

    def fails() -> None:
        with log.written(tmp_path / LOG):
            log.add("warning: large\nwith a second line")
            raise TrainingError("the loss is not a number")

    with pytest.raises(TrainingError):
        fails()
    log.add("after it is given back")
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [re.sub(TIME, "", line) for line in lines] == [
        "before there is a directory",
        "warning: large",
        "  with a second line",
        "stopped: the loss is not a number",
    ]


def test_a_log_that_cannot_be_written_ends_no_fit(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    log, done = RunLog(), False
    with log.written(tmp_path / LOG):
        log.add("unheard")
        done = True
    assert done
    assert not any((tmp_path / LOG).iterdir())
