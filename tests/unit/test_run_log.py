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


def test_an_error_of_another_kind_is_kept_with_its_name(tmp_path: Path) -> None:
    def fails() -> None:
        with RunLog().written(tmp_path / LOG):
            raise KeyError("a fault of our own")

    with pytest.raises(KeyError):
        fails()
    assert (tmp_path / LOG).read_text().endswith("stopped: KeyError('a fault of our own')\n")


@pytest.mark.parametrize("place", ["file/fit.log", "folder"], ids=["no folder", "a folder in its place"])
def test_a_log_that_cannot_be_written_ends_no_fit(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    log = RunLog()
    with log.written(tmp_path / place):
        log.add("unheard")
    assert "unheard" in log.text
    assert (tmp_path / "file").read_text() == "precious"
    assert not any((tmp_path / "folder").iterdir())


def test_a_log_that_cannot_be_read_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOG).write_text("of an earlier session\n")

    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError

    log = RunLog()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with log.written(tmp_path / LOG):
            log.add("new")
    assert (tmp_path / LOG).read_text() == "of an earlier session\n"
