"""SIGKILL in the middle of writing a checkpoint: half a file, or the newest already moved away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrpot import fit
from lrpot.training.checkpoint import NEWEST, PREVIOUS
from tests.reliability.interruption import assert_same
from tests.unit.training_data import SMALL, write_ionic_rows

SETTINGS = SMALL | {"training.max_epochs": 3, "training.stages": 1}

# A fit that ends itself at the third checkpoint of stage 1, by what stands in the place of PATCH.
KILLED = """
import os, signal, sys
from pathlib import Path
from lrpot import files, fit
saves = []
def die():
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
fit(sys.argv[1], out=sys.argv[2], settings={settings!r}, verbose=False)
"""
HALF_WRITTEN = """
whole = Path.write_bytes
def half(path, content):
    if path.suffix == ".ckpt":
        saves.append(path)
        if len(saves) == 3:
            whole(path, bytes(content)[: len(content) // 2])
            die()
    return whole(path, content)
Path.write_bytes = half
"""
MOVED_AWAY = """
sync = files._sync
def before_the_name(path):
    if path.suffix == ".ckpt":
        saves.append(path)
        if len(saves) == 3:
            die()
    sync(path)
files._sync = before_the_name
"""


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "left"), [(HALF_WRITTEN, NEWEST), (MOVED_AWAY, PREVIOUS)])
def test_kill_9_while_a_checkpoint_is_written(patch: str, left: str, tmp_path: Path) -> None:
    data = write_ionic_rows(tmp_path / "rows.extxyz", n=12)
    whole, out = tmp_path / "whole", tmp_path / "run"
    fit(data, out=whole, settings=SETTINGS, verbose=False)
    code = KILLED.format(patch=patch, settings=SETTINGS)
    # the uninterrupted run computed in this process; threads must agree for equal bits
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", code, str(data), str(out)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = out / "checkpoints" / "1"
    names = [path.name for path in folder.iterdir()]
    assert left in names
    assert (NEWEST in names) == (left == NEWEST)
    assert any(name.startswith(".newest-") for name in names), "it was not killed inside a save"
    assert not (out / "model.pt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(whole, out)
    assert not any(path.name.startswith(".") for path in out.rglob("*"))
