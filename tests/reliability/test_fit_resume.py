"""A fit that was killed, or whose newest checkpoint was cut short, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch_geometric.data import Batch

from lrpot import fit, load
from lrpot.errors import ConfigError, OutputError, TrainingError
from lrpot.potential import Potential
from lrpot.training import checkpoint, module, potential_run
from tests.reliability.interruption import assert_same, fit_until, kill_when
from tests.unit.training_data import SMALL, metrics, write_ionic_rows

BAD_INPUTS = Path(__file__).parents[1] / "bad_inputs"

SETTINGS = SMALL | {"training.max_epochs": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows of 16 atoms with forces from a pair potential and charges: quick to fit, with something in all stages."""
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(data, out=out, settings=SETTINGS, verbose=False)
    return out


def test_training_changes_weights(uninterrupted: Path) -> None:
    start, end = (load(uninterrupted / "stages" / f"{n}.pt").state_dict() for n in (0, 3))
    changed = [name for name in start if not torch.equal(start[name], end[name])]
    assert any(name.startswith("short.backbone") for name in changed)
    assert "long.charges.values" in changed
    assert any("fcn" in name for name in changed)


def test_repeated_run_is_bitwise_equal(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    fit(data, out=tmp_path / "run", settings=SETTINGS, verbose=False)
    assert_same(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize("saves", [1, 3, 4, 5, 9])
def test_resume_is_bitwise_equal(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Stop after the n-th checkpoint (within a stage, at its end, in each stage), then resume."""
    out = tmp_path / "run"
    fit_until(monkeypatch, saves, data, out=out, settings=SETTINGS)
    assert not (out / "model.pt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


def test_resume_with_every_setting_that_has_a_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averages, steps of several batches that do not go into an epoch, plateaus, bfloat16, other settings by stage."""
    settings = SETTINGS | {
        "training.ema": 0.9,
        "training.batch_size": 3,
        "training.accumulate": 3,
        "training.loss": "huber",
        "training.lr_schedule": "plateau",
        "training.lr_patience": 1,
        "training.precision": "bf16",
        "training.per_stage": {2: {"max_epochs": 2, "lr": 1e-3, "accumulate": 2}, 3: {"loss": "mae"}},
    }
    fit(data, out=tmp_path / "whole", settings=settings, verbose=False)
    out = tmp_path / "run"
    fit_until(monkeypatch, 1, data, out=out, settings=settings)
    folders = fit_until(monkeypatch, 3, out=out, resume=True)
    assert [folder.name for folder in folders] == ["1", "1", "2"]  # the first epoch was not done again
    fit(out=out, resume=True, verbose=False)
    assert_same(tmp_path / "whole", out)


def test_a_stage_that_patience_has_ended_is_not_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop between its last checkpoint and the file of what it has found."""
    settings = SETTINGS | {
        "training.stages": 1,
        "training.max_epochs": 6,
        "training.patience": 1,
        "training.min_improvement": 0.99,
    }
    whole = fit(data, out=tmp_path / "whole", settings=settings, verbose=False)
    assert whole.stages[1]["epochs"] < 6
    keep = potential_run.PotentialRun.keep

    def stop_after_the_stage(self: potential_run.PotentialRun, model: Potential, entry: dict[str, Any]) -> None:
        if entry["stage"] == 1:
            raise TrainingError("stopped by the test")
        keep(self, model, entry)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(potential_run.PotentialRun, "keep", stop_after_the_stage)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=settings, verbose=False)
    fit(out=out, resume=True, verbose=False)
    assert_same(tmp_path / "whole", out)


def test_metrics_are_there_while_a_run_goes_on(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole after every epoch, and also if an epoch that it has is done again."""
    out = tmp_path / "run"
    save = checkpoint.SaveEveryEpoch.on_train_epoch_end

    def stop_before_the_fifth(self: checkpoint.SaveEveryEpoch, *args: object) -> None:
        if len(metrics(out)) == 7:  # three epochs and their start, then the start of the second stage and two more
            raise TrainingError("stopped by the test")
        save(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.SaveEveryEpoch, "on_train_epoch_end", stop_before_the_fifth)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
    whole = metrics(uninterrupted)
    assert metrics(out) == whole[:7]
    fit(out=out, resume=True, verbose=False)
    assert metrics(out) == whole
    assert [(r["stage"], r["epoch"]) for r in whole] == [(str(s), str(e)) for s in (1, 2, 3) for e in range(4)]
    assert all((record["train_loss"] == "") == (record["epoch"] == "0") for record in whole)


def test_truncated_newest_checkpoint_falls_back(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    step = module.StageModule.training_step

    def stop_in_third_epoch(self: module.StageModule, *args: object) -> torch.Tensor:
        if self.current_epoch == 2:
            raise TrainingError("stopped by the test")
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module.StageModule, "training_step", stop_in_third_epoch)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
    newest = out / "checkpoints" / "1" / checkpoint.NEWEST
    newest.write_bytes(newest.read_bytes()[:-1000])
    fit(out=out, resume=True)
    assert "going back to the one before" in capsys.readouterr().err
    assert_same(uninterrupted, out)


@pytest.mark.parametrize("part", ["stage", "state_dict"])
def test_a_checkpoint_of_another_version_is_refused(
    part: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lacks what this version keeps of a stage, or a weight."""
    out = tmp_path / "run"
    (folder,) = fit_until(monkeypatch, 1, data, out=out, settings=SETTINGS)
    content = torch.load(folder / checkpoint.NEWEST, weights_only=True)
    lacking = next(iter(content[part]))
    del content[part][lacking]
    torch.save(content, folder / checkpoint.NEWEST)
    message = f"newest.ckpt: was written by another version of lrpot .*{lacking}.*start the run anew"
    with pytest.raises(TrainingError, match=message):
        fit(out=out, resume=True, verbose=False)
    assert (folder / checkpoint.NEWEST).exists()


@pytest.mark.parametrize("bomb", ["pickle_bomb.pt", "torch_bomb.pt"])
def test_a_hostile_checkpoint_is_not_executed(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bomb: str,
) -> None:
    out = tmp_path / "run"
    fit_until(monkeypatch, 2, data, out=out, settings=SETTINGS)
    shutil.copy(BAD_INPUTS / bomb, out / "checkpoints" / "1" / checkpoint.NEWEST)
    monkeypatch.chdir(tmp_path)  # where it would make a directory
    fit(out=out, resume=True)
    assert "going back to the one before" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same(uninterrupted, out)


def test_a_loss_that_is_no_number_keeps_the_last_good_epoch(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are left as they were, the rows are named, and once the cause is gone the fit goes on."""
    out, weights = tmp_path / "run", []
    loss = module.StageModule._loss

    def not_a_number(self: module.StageModule, batch: Batch, *, create_graph: bool) -> tuple[torch.Tensor, dict]:
        value, errors = loss(self, batch, create_graph=create_graph)
        if create_graph and self.current_epoch == 1:
            weights.append(self.model.short.readout.last.weight.detach().clone())
            value = value * torch.nan
        return value, errors

    with monkeypatch.context() as patch:
        patch.setattr(module.StageModule, "_loss", not_a_number)
        with pytest.raises(TrainingError, match=r"not finite in .*, epoch 1, for rows \d+, \d+, \d+, \d+ of the"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
    kept = torch.load(out / "checkpoints" / "1" / checkpoint.NEWEST, weights_only=True)
    assert torch.equal(kept["state_dict"]["model.short.readout.last.weight"], weights[0])
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


# kB; what then does not fit: the configuration, the start, a first checkpoint, a third, one of stage 2
@pytest.mark.parametrize("room", [4, 20, 60, 200, 300])
def test_a_full_disk_is_reported_and_the_run_goes_on(
    data: Path, uninterrupted: Path, tmp_path: Path, room: int
) -> None:
    """A disk of its own that is full before the fit is done, then has room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        out = disk / "run"
        with pytest.raises(OutputError, match="No space left on device"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
        assert not (out / "model.pt").exists()
        for whole in out.rglob("*.pt"):
            load(whole)
        assert not [path.name for path in out.rglob("*") if path.name.startswith(".")], "a file that is not whole"
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        if (out / "config.yaml").exists():
            fit(out=out, resume=True, verbose=False)
            assert_same(uninterrupted, out)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_limit_on_files_is_reported_and_the_run_goes_on(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """What a user without a disk to spare can try: checkpoints larger than any file may be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"newest.ckpt: cannot be written \(File too large\)"):
            fit(data, out=tmp_path / "run", settings=SETTINGS, verbose=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fit(out=tmp_path / "run", resume=True, verbose=False)
    assert_same(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_kill_9_and_resume(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """A real SIGKILL at two moments, one of them while stage 1 is running."""
    out = tmp_path / "run"
    words = [f"{name}={value}" for name, value in SETTINGS.items()]
    start = [sys.executable, "-m", "lrpot.cli.main", "fit", str(data), "--out", str(out), "--set", *words]
    resume = [sys.executable, "-m", "lrpot.cli.main", "fit", "--resume", "--out", str(out)]
    # the uninterrupted run computed in this process; threads must agree for equal bits
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for command, sign in ((start, "checkpoints/1/newest.ckpt"), (resume, "stages/2.pt")):
        kill_when(out / sign, command, environment)
    subprocess.run(resume, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same(uninterrupted, out)


def test_kill_between_the_end_of_a_stage_and_the_next(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint of a finished stage is not taken for one of the next."""
    out = tmp_path / "run"
    prepare = potential_run.PotentialRun._prepare

    def stop_at_second(self: potential_run.PotentialRun, *args: object) -> object:
        if len(self.done) == 2:
            raise TrainingError("stopped by the test")
        return prepare(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(potential_run.PotentialRun, "_prepare", stop_at_second)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=SETTINGS, verbose=False)
    assert (out / "checkpoints/1/newest.ckpt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(uninterrupted, out)


def test_resume_of_a_finished_run_changes_nothing(uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.csv").read_text(), json.loads((uninterrupted / "results.json").read_text())
    fit(out=uninterrupted, resume=True, verbose=False)
    after = (uninterrupted / "metrics.csv").read_text(), json.loads((uninterrupted / "results.json").read_text())
    assert before == after


def test_second_run_into_one_directory_is_refused(data: Path, uninterrupted: Path) -> None:
    with pytest.raises(OutputError, match="already holds files"):
        fit(data, out=uninterrupted, settings=SETTINGS, verbose=False)


def test_resume_with_other_settings_is_refused(uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match="started with other settings"):
        fit(out=uninterrupted, resume=True, settings={"training.lr": 1.0}, verbose=False)


def test_resume_with_smaller_steps_where_memory_ran_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with other ways to read and to log."""
    out = tmp_path / "run"
    fit_until(monkeypatch, 1, data, out=out, settings=SETTINGS)
    changed = {"training.batch_size": 2, "data.jobs": 1, "training.logger": []}
    result = fit(out=out, resume=True, settings=changed)
    assert [stage["epochs"] for stage in result.stages[1:]] == [3, 3, 3]
    told = " ".join(capsys.readouterr().err.split())
    assert "goes on with other steps (batch_size 2, before 4); the result is that of neither alone" in told
    assert yaml.safe_load((out / "config.yaml").read_text())["training"]["batch_size"] == 2


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run to resume"):
        fit(out=tmp_path / "nothing", resume=True, verbose=False)
    assert not (tmp_path / "nothing").exists()
