"""Fits that are stopped or killed, and what must be the same in the end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpot import fit, load
from lrpot.errors import TrainingError
from lrpot.training import checkpoint
from tests.unit.training_data import metrics


def assert_same_weights(a: Path, b: Path) -> None:
    """Models of two runs are equal to the last bit."""
    left, right = (load(out / "model.pt").state_dict() for out in (a, b))
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def assert_same(a: Path, b: Path) -> None:
    """Weights equal to the last bit, and the same history."""
    assert_same_weights(a, b)
    assert metrics(a) == metrics(b)


def fit_until(monkeypatch: pytest.MonkeyPatch, saves: int, *data: Path, **kwargs: Any) -> list[Path]:
    """Fit, and stop after so many checkpoints; the folders that they are in."""
    save = checkpoint.SaveEveryEpoch.on_train_epoch_end
    folders: list[Path] = []

    def save_and_stop(self: checkpoint.SaveEveryEpoch, *args: object) -> None:
        save(self, *args)  # type: ignore[arg-type]
        folders.append(self.folder)
        if len(folders) == saves:
            raise TrainingError("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.SaveEveryEpoch, "on_train_epoch_end", save_and_stop)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(*data, verbose=False, **kwargs)
    return folders


def kill_when(sign: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command, and kill it with SIGKILL as soon as a file is there."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "ended before it could be killed"
    process.kill()
    process.wait()
