"""Metrics while a fit runs: what each logger is told, once for each epoch, and what is missing is told first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrpot import fit
from lrpot.config import FitConfig, make_config
from lrpot.errors import ConfigError, TrainingError
from lrpot.training import checkpoint
from lrpot.training.loggers import check_loggers, open_loggers
from lrpot.training.summary import csv_text, progress_note
from tests.unit.training_data import metrics, write_ionic_rows

SMALL: dict[str, Any] = {
    "model.backbone.features": 8,
    "model.backbone.interactions": 1,
    "model.backbone.radial_basis": 6,
    "model.backbone.cutoff": 4.0,
    "model.kernel.form": "none",
    "training.max_epochs": 4,
}


def config(*loggers: str) -> FitConfig:
    return make_config(None, SMALL | {"training.logger": list(loggers)})


def records(n: int) -> list[dict[str, float]]:
    """Of n epochs, the first of which has no training."""
    first: dict[str, float] = {"stage": 1, "epoch": 0, "lr": 1e-3, "loss": 2.0, "forces": 0.3, "seconds": 0.1}
    others = [first | {"epoch": n, "train_loss": 1.0 / n, "loss": 2.0 / n} for n in range(1, n)]
    return [first, *others]


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each curve as TensorBoard shows it."""
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


# --- CSV


def test_csv_has_the_columns_of_the_fullest_record(tmp_path: Path) -> None:
    with open_loggers(config("csv"), tmp_path) as log:
        for n in (1, 2, 3):
            log(records(n))
            assert len(metrics(tmp_path)) == n
    assert (tmp_path / "metrics.csv").read_bytes().decode() == csv_text(records(3))
    assert list(metrics(tmp_path)[0]) == ["stage", "epoch", "lr", "loss", "forces", "train_loss"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_without_loggers_there_are_no_files(tmp_path: Path) -> None:
    with open_loggers(config(), tmp_path) as log:
        log(records(1))
    assert list(tmp_path.iterdir()) == []


# --- TensorBoard


def test_tensorboard_shows_every_epoch_once_also_of_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the metrics of an epoch and before its checkpoint, so that the epoch is done and told again."""
    data, out = write_ionic_rows(tmp_path / "rows.extxyz", n=8), tmp_path / "run"
    save = checkpoint.SaveEveryEpoch.on_train_epoch_end

    def stop_in_the_third(self: checkpoint.SaveEveryEpoch, *args: Any) -> None:
        if len(metrics(out)) == 4:
            raise TrainingError("stopped by the test")
        save(self, *args)

    settings = SMALL | {"training.logger": ["csv", "tensorboard"]}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.SaveEveryEpoch, "on_train_epoch_end", stop_in_the_third)
        with pytest.raises(TrainingError, match="stopped by the test"):
            fit(data, out=out, settings=settings, verbose=False)
    assert [step for step, _ in curves(out)["lr"]] == [0, 1, 2, 3]
    fit(out=out, resume=True, verbose=False)
    assert len(list((out / "tensorboard").iterdir())) == 2
    found, told = curves(out), metrics(out)
    assert found.keys() == {
        "stage", "epoch", "lr", "loss/training", "loss/validation", "error/energy", "error/forces", "seconds"
    }  # fmt: skip
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3, 4]
    for curve, column in (("loss/validation", "loss"), ("error/forces", "forces"), ("lr", "lr")):
        expected = [(step, pytest.approx(float(record[column]), rel=1e-6)) for step, record in enumerate(told)]
        assert found[curve] == expected


# --- wandb


class Wandb(ModuleType):
    """What lrpot uses of wandb: runs by name, where a step that a run has is dropped."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.finished = 0
        self.refuses = False

    def init(self, *, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]) -> Wandb:
        if self.refuses:
            raise self.Error("api_key not configured")
        assert (project, resume) == ("lrpot", "allow")
        assert config["training"]["logger"] == ["wandb"]
        self.current = self.runs.setdefault(id, {})
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        if step >= len(self.current):
            self.current[step] = values

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    return sys.modules["wandb"]  # type: ignore[return-value]


def test_wandb_goes_on_with_the_run_that_a_fit_began(tmp_path: Path, wandb: Wandb) -> None:
    def told(lengths: Sequence[int]) -> None:
        with open_loggers(config("wandb"), tmp_path) as log:
            for n in lengths:
                log(records(n))

    told([1, 2, 3])
    told([3, 4])  # the third epoch again
    assert wandb.finished == 2
    (run,) = wandb.runs.values()
    assert [run[step]["epoch"] for step in range(4)] == [0, 1, 2, 3]
    assert run[3].keys() == {"stage", "epoch", "lr", "loss/validation", "loss/training", "error/forces", "seconds"}


def test_a_stopped_run_is_finished_too(tmp_path: Path, wandb: Wandb) -> None:
    with pytest.raises(TrainingError), open_loggers(config("wandb"), tmp_path):
        raise TrainingError("stopped by the test")
    assert wandb.finished == 1


def test_wandb_that_refuses_is_told_in_a_line(tmp_path: Path, wandb: Wandb) -> None:
    wandb.refuses = True
    with (
        pytest.raises(ConfigError, match=r"wandb cannot be used \(api_key not configured\); log in with `wandb login`"),
        open_loggers(config("wandb"), tmp_path),
    ):
        pass


# --- what is missing


@pytest.mark.parametrize(
    ("logger", "module", "cure"),
    [
        ("wandb", "wandb", "pip install wandb"),
        ("tensorboard", "torch.utils.tensorboard", r"pip install 'lrpot\[loggers\]'"),
    ],
)
def test_a_missing_package_is_told_before_work_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str, module: str, cure: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    data = write_ionic_rows(tmp_path / "rows.extxyz", n=2)
    with pytest.raises(ConfigError, match=rf"training.logger: {logger} is not installed; {cure}, or choose csv"):
        fit(data, out=tmp_path / "run", settings={"training.logger": ["csv", logger]}, verbose=False)
    assert not (tmp_path / "run").exists()


def test_csv_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("wandb", "torch.utils.tensorboard", "tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    check_loggers(config("csv"))


@pytest.mark.parametrize(
    ("given", "found"),
    [("tensorboard", ["tensorboard"]), (["csv", "wandb"], ["csv", "wandb"]), ([], [])],
)
def test_one_logger_or_a_list(given: object, found: list[str]) -> None:
    assert make_config(None, {"training.logger": given}).training.logger == found


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"= 'tb': Input should be 'csv', 'tensorboard' or 'wandb'"):
        make_config(None, {"training.logger": "tb"})


# --- beside a progress bar


def test_note_of_an_epoch_has_units_and_the_learning_rate() -> None:
    last = {"loss": 0.0123, "energy": 8.3e-4, "forces": 0.0123, "stress": 2.5e-4, "charges": 0.021, "lr": 4.5e-3}
    assert progress_note([{}, last]) == (
        "loss 1.23e-02, energy 0.83 meV/atom, forces 12.3 meV/A, stress 0.25 meV/A^3, charges 0.021 e, lr 4.5e-03"
    )
