"""A fit of an ensemble that was killed, between members or inside one, ends as if nothing had happened."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from lrpot import LRCalculator, fit, load, plots
from lrpot.config import make_config
from lrpot.coverage import OutsideTrainingWarning
from lrpot.ensemble import Ensemble
from lrpot.errors import ConfigError, Interrupted, TrainingError
from lrpot.training import run
from tests.reliability.interruption import assert_same_weights, fit_until, kill_when
from tests.unit.training_data import SMALL, ionic_rows, metrics, write_ionic_rows

ensemble_module = importlib.import_module("lrpot.training.ensemble")

MEMBERS = 2
SETTINGS = SMALL | {
    "training.stages": 1,
    "training.max_epochs": 3,
    "training.batch_size": 4,
    "training.ensemble": MEMBERS,
    "model.charges.init": {"Na": 0.6, "Cl": -0.6},
    "data.valid_fraction": 0.3,
}


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """They take longer than the fits, and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parity", "learning_curves", "kernel", "calibration"):
            patch.setattr(plots, name, lambda *arguments: arguments[-1])
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(data, out=out, settings=SETTINGS, verbose=False)
    return out


def assert_same(a: Path, b: Path) -> None:
    """Weights and calibration equal to the last bit, and the same story of every member."""
    assert load(a / "model.pt").calibration == load(b / "model.pt").calibration
    assert_same_weights(a, b)
    for n in range(1, MEMBERS + 1):
        assert metrics(a / f"member-{n}") == metrics(b / f"member-{n}")
    assert (a / "results.json").read_text() == (b / "results.json").read_text()


def test_members_are_ordinary_fits_of_one_split(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Each is what a fit by its own settings gives; they differ in seed and weights, not in their rows."""
    splits = [json.loads((uninterrupted / f"member-{n}" / "split.json").read_text()) for n in (1, 2)]
    assert splits[0] == splits[1] == json.loads((uninterrupted / "split.json").read_text())
    configs = [make_config(uninterrupted / f"member-{n}" / "config.yaml") for n in (1, 2)]
    assert [config.training.seed for config in configs] == [0, 1]
    assert {config.training.ensemble for config in configs} == {1}
    fit(out=tmp_path / "single", config=configs[1], verbose=False)
    single = load(tmp_path / "single" / "model.pt").state_dict()
    member = load(uninterrupted / "member-2" / "model.pt").state_dict()
    joined = load(uninterrupted / "model.pt").members[1].state_dict()
    first = load(uninterrupted / "member-1" / "model.pt").state_dict()
    for name, value in single.items():
        assert torch.equal(value, member[name]), name
        assert torch.equal(value, joined[name]), name
    assert any(not torch.equal(value, first[name]) for name, value in single.items())


def test_what_a_fit_of_an_ensemble_leaves(data: Path, uninterrupted: Path) -> None:
    model = load(uninterrupted / "model.pt")
    assert isinstance(model, Ensemble)
    split = json.loads((uninterrupted / "split.json").read_text())
    assert model.calibration is not None
    assert model.calibration.n_structures == len(split["valid"])
    results = json.loads((uninterrupted / "results.json").read_text())
    assert [entry["title"] for entry in results["stages"]] == ["member-1", "member-2", "ensemble"]
    assert results["calibration"] == model.calibration.factors
    assert results["uncertainty"]["structures"] == "test"
    resumed = fit(out=uninterrupted, resume=True, ensemble=MEMBERS, verbose=False)
    assert len(resumed.model.members) == MEMBERS
    assert not resumed.model.training
    assert resumed.test == results["test"]
    with pytest.raises(ConfigError, match="started with other settings"):
        fit(out=uninterrupted, resume=True, ensemble=3, verbose=False)


def test_uncertainty_grows_off_the_training_set(uninterrupted: Path) -> None:
    known, rattled, strained = ionic_rows(3)
    rattled.rattle(0.4, seed=1)
    strained.set_cell(strained.cell.array * 0.9, scale_atoms=True)
    found = {}
    for name, atoms in (("known", known), ("rattled", rattled), ("strained", strained)):
        calculator = LRCalculator(uninterrupted / "model.pt")
        with nullcontext() if name == "known" else pytest.warns(OutsideTrainingWarning):
            energy, forces = (
                calculator.get_property(f"{quantity}_uncertainty", atoms) for quantity in ("energy", "forces")
            )
        found[name] = energy, float(np.sqrt((forces**2).mean()))
    assert found["rattled"][0] > 3 * found["known"][0], found
    assert found["strained"][0] > 3 * found["known"][0], found
    assert found["rattled"][1] > 3 * found["known"][1], found  # a strain alone makes no forces to be unsure of


@pytest.mark.parametrize("saves", [1, pytest.param(3, marks=pytest.mark.slow), 5])
def test_resume_after_a_stop_inside_each_member_is_bitwise_equal(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    out = tmp_path / "run"
    fit_until(monkeypatch, saves, data, out=out, settings=SETTINGS)
    assert not (out / "model.pt").exists()
    assert (out / f"member-{(saves - 1) // 3 + 1}" / "checkpoints" / "1" / "newest.ckpt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


@pytest.mark.parametrize("before", [pytest.param("member-2", marks=pytest.mark.slow), "joining"])
def test_resume_after_a_stop_between_members_is_bitwise_equal(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    out = tmp_path / "run"
    hold = ensemble_module.run_directory

    def stop(folder: Path | Ensemble, *args: object, **kwargs: object) -> object:
        if isinstance(folder, Ensemble) or (folder.name == before and (folder / "config.yaml").exists()):
            raise TrainingError("stopped by the test")
        return hold(folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ensemble_module, "calibrate" if before == "joining" else "run_directory", stop)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
    assert (out / "member-1" / "model.pt").exists()
    assert (out / "member-2" / "model.pt").exists() == (before == "joining")
    assert not (out / "model.pt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


def test_members_may_be_finished_by_themselves(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, also one that had not begun."""
    out = tmp_path / "run"

    def stop(*_: object) -> None:
        raise Interrupted(f"stopped by Ctrl-C; go on with: lrpot fit --resume --out {out / 'member-1'}")

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "_stage", stop)
        with pytest.raises(Interrupted, match=rf"lrpot fit --resume --out {out}$"):  # not only the member
            fit(data, out=out, settings=SETTINGS, verbose=False)
    fit(out=out / "member-2", resume=True, verbose=False)
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


@pytest.mark.slow
def test_kill_9_inside_and_between_members(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [f"{name}={value}" for name, value in SETTINGS.items()]
    start = [sys.executable, "-m", "lrpot.cli.main", "fit", str(data), "--out", str(out), "--set", *words]
    resume = [sys.executable, "-m", "lrpot.cli.main", "fit", "--resume", "--out", str(out)]
    # the uninterrupted run computed in this process; threads must agree for equal bits
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    signs = ("member-1/checkpoints/1/newest.ckpt", "member-1/model.pt", "member-2/checkpoints/1/newest.ckpt")
    for command, sign in zip((start, resume, resume), signs, strict=True):
        kill_when(out / sign, command, environment)
    subprocess.run(resume, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same(uninterrupted, out)


def test_members_that_agree_are_a_result_too(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate that changes nothing leaves every member at the baseline."""
    settings = SETTINGS | {"training.lr": 1e-30, "training.lr_long": 1e-30, "training.max_epochs": 1}
    result = fit(data, out=tmp_path / "run", settings=settings)
    assert result.model.calibration is None
    assert "the uncertainties cannot be calibrated" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.pt").exists()
