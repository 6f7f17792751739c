"""A fit that starts from a model goes on after a kill, also when that model has meanwhile been removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

from lrpot import fit
from lrpot.errors import ConfigError
from lrpot.model_file import save
from tests.helpers_cli import small_model
from tests.reliability.interruption import assert_same, fit_until, kill_when
from tests.unit.training_data import ionic_rows, no_pictures

pictures = pytest.fixture(no_pictures, scope="module", autouse=True)

SETTINGS = {
    "training.stages": 3,
    "training.max_epochs": 2,
    "training.batch_size": 4,
    "training.lr": 3e-3,
    "training.finetune.layer_decay": 0.7,
    "training.finetune.new_elements": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NaCl and, in the place of sodium, an element that the model does not know."""
    rows = ionic_rows(16)
    for atoms in rows[:8]:
        atoms.symbols[[s == "Na" for s in atoms.symbols]] = "K"
        atoms.calc.atoms = atoms.copy()
    path = tmp_path_factory.mktemp("data") / "rows.extxyz"
    ase.io.write(path, rows, format="extxyz")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_model(), tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def uninterrupted(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(data, from_model=model, out=out, settings=SETTINGS, verbose=False)
    return out


def test_it_changes_weights(uninterrupted: Path) -> None:
    history = (uninterrupted / "metrics.csv").read_text()
    assert len(history.splitlines()) == 1 + 3 * 3
    stages = json.loads((uninterrupted / "results.json").read_text())["stages"]
    assert stages[0]["charges"]["K"] == stages[0]["charges"]["Na"] != stages[-1]["charges"]["K"]


@pytest.mark.parametrize("saves", [1, 4])
def test_resume_is_bitwise_equal_without_the_model(
    data: Path, model: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Stopped after the n-th checkpoint: within the first stage, at the end of the second."""
    out, start = tmp_path / "run", tmp_path / "start.pt"
    shutil.copy(model, start)
    fit_until(monkeypatch, saves, data, from_model=start, out=out, settings=SETTINGS)
    start.unlink()
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


def test_the_same_command_with_resume_goes_on(data: Path, model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Settings that were taken over from the model are no other settings."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    fit(data, from_model=model, out=out, config={}, settings=SETTINGS, resume=True, verbose=False)
    assert_same(uninterrupted, out)
    with pytest.raises(ConfigError, match="other settings"):
        fit(data, from_model=tmp_path / "other.pt", out=out, settings=SETTINGS, resume=True, verbose=False)


@pytest.mark.slow
def test_kill_and_resume(data: Path, model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 before the first epoch is over, and again in the next stage; the model is removed in between."""
    out, start = tmp_path / "run", tmp_path / "start.pt"
    shutil.copy(model, start)
    words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    program = [sys.executable, "-m", "lrpot.cli.main", "fit"]
    resume = [*program, "--resume", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = [*program, str(data), "--from", str(start), "--out", str(out), *words]
    for command, sign in ((first, "stages/0.json"), (resume, "stages/1.pt")):
        kill_when(out / sign, command, environment)
        start.unlink(missing_ok=True)
    subprocess.run(resume, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same(uninterrupted, out)
    outcomes = [session["outcome"] for session in json.loads((out / "record.json").read_text())["sessions"]]
    assert outcomes == ["cut off", "cut off", "finished"]
