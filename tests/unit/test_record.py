"""record.json: what a run was made with, once for every time it was started, whatever its end."""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpot import fit, load
from lrpot._version import __version__
from lrpot.errors import Interrupted, OutputError, TrainingError
from lrpot.model_file import ModelInfo
from lrpot.training import record as record_module
from lrpot.training.record import PACKAGES, git_state, recorded, versions
from tests.helpers_cli import FIT_SETTINGS, run_cli
from tests.unit.training_data import write_ionic_rows

# Of the package: torch.__version__ may name a build besides, as 2.7.0+cu126 does.
TORCH = version("torch")


def session(out: Path, warnings: list[str] | None = None) -> Any:
    warn = [] if warnings is None else warnings
    return recorded(out, {"seed": 3, "files": []}, device="cpu", warn=warn.append)


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "record.json").read_text())


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the process is."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "a.txt").write_text("one\n")
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "a.txt"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], check=True)
    return folder


def test_a_fit_writes_what_it_was_made_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_ionic_rows(tmp_path / "rows.extxyz", n=10), tmp_path / "run"
    settings = (*FIT_SETTINGS, "training.max_epochs=1", "training.lr_patience=3")
    assert run_cli("fit", data, "--out", out, "--stages", 1, "--set", *settings) == 0
    idle = "warning: training.lr_patience: no effect, since training.lr_schedule is cosine"
    assert idle in capsys.readouterr().err.splitlines()
    content = read(out)
    assert content["seed"] == 0
    assert content["files"] == [
        {"part": "train", "file": str(data), "sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "rows": 10}
    ]
    (entry,) = content["sessions"]
    assert entry["versions"] == versions()
    assert entry["outcome"] == "finished"
    assert (entry["device"], entry["threads"]) == ("cpu", torch.get_num_threads())
    assert datetime.fromisoformat(entry["started"]) <= datetime.fromisoformat(entry["ended"])
    info = load(out / "model.pt").info
    assert isinstance(info, ModelInfo)
    assert info.record == {name: entry[name] for name in ("versions", "git", "device", "threads")} | {"seed": 0}
    fit(out=out, resume=True, verbose=False)
    assert [entry["outcome"] for entry in read(out)["sessions"]] == ["finished", "finished"]
    capsys.readouterr()
    assert run_cli("info", out / "model.pt") == 0
    assert f"torch {TORCH}, " in capsys.readouterr().out


def test_versions_of_everything_that_decides_on_numbers() -> None:
    found = versions()
    assert found.keys() == {"lrpot", "python", *PACKAGES}
    assert found["lrpot"] == __version__
    assert found["torch"] == TORCH


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Interrupted("stopped by Ctrl-C"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingError("the loss is not finite"), "failed: the loss is not finite"),
    ],
)
def test_how_it_ended(tmp_path: Path, error: BaseException, outcome: str) -> None:
    def run() -> None:
        with session(tmp_path) as kept:
            assert read(tmp_path)["sessions"][0]["outcome"] == "running"
            assert kept["seed"] == 3
            raise error

    with pytest.raises(type(error)):
        run()
    (entry,) = read(tmp_path)["sessions"]
    assert entry["outcome"] == outcome
    assert entry["ended"] is not None


def test_every_resume_appends(tmp_path: Path) -> None:
    """What was killed has no end; that is known when the next one begins."""
    with session(tmp_path):
        pass
    content = read(tmp_path)
    content["sessions"][0] |= {"outcome": "running", "ended": None}
    (tmp_path / "record.json").write_text(json.dumps(content))
    warnings: list[str] = []
    with recorded(tmp_path, {"seed": 99}, device="cpu", warn=warnings.append):
        pass
    content = read(tmp_path)
    assert content["seed"] == 3  # of the first start
    assert [entry["outcome"] for entry in content["sessions"]] == ["cut off", "finished"]
    assert warnings == []


def test_other_versions_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(tmp_path):
        pass
    warnings: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "versions", lambda: versions() | {"torch": "9.0", "new": "1"})
        with session(tmp_path, warnings):
            pass
    (line,) = warnings
    assert f"torch {TORCH}, now 9.0, new unknown, now 1" in line
    assert "last digits" in line


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sessions": [{}]}', '{"sessions": 3}'])
def test_a_damaged_record_does_not_stop_a_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    warnings: list[str] = []
    with session(tmp_path, warnings):
        pass
    (line,) = warnings
    assert "record.json: is damaged; a new one is begun" in line
    assert len(read(tmp_path)["sessions"]) == 1


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("record.json: cannot be written")

    def run() -> None:
        with session(tmp_path):
            monkeypatch.setattr(record_module, "write_text", full)
            raise TrainingError("the loss is not finite")

    with pytest.raises(TrainingError, match="the loss"):
        run()


# --- git


def test_the_state_of_a_repository(repository: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert git_state() == {"commit": head, "dirty": False}
    (repository / "untracked.txt").touch()
    assert git_state() == {"commit": head, "dirty": False}
    (repository / "a.txt").write_text("two\n")
    assert git_state() == {"commit": head, "dirty": True}


def test_no_program_of_the_repository_is_run(repository: Path) -> None:
    subprocess.run(["git", "config", "core.fsmonitor", "touch ran; false"], check=True)
    assert git_state() is not None
    assert not (repository / "ran").exists()


def test_no_repository_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert git_state() is None
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert git_state() is None
