"""A stage that loses what it has learned goes back to its best weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpot import fit
from lrpot.training.epochs import LAST_LR, EpochModule
from tests.unit.training_data import SMALL, metrics, write_ionic_rows

EPOCHS, RUINED = 6, 4
SETTINGS = SMALL | {
    "model.kernel.form": "none",
    "training.max_epochs": EPOCHS,
    "training.warmup_epochs": 0.0,
    "training.lr": 0.02,
    "training.batch_size": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ionic_rows(tmp_path_factory.mktemp("data") / "rows.extxyz", n=16)


class Crash(Exception):
    pass


@pytest.fixture(params=["dead", "ruined"])
def ruin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The last step of an epoch ruins the network; a fit crashes in the epoch after which it is put into this list."""
    step = EpochModule.optimizer_step
    crashes: list[int] = []

    def ruinous(self: EpochModule, epoch: int, batch: int, *args: Any, **kwargs: Any) -> None:
        step(self, epoch, batch, *args, **kwargs)
        if epoch in crashes:
            raise Crash
        if epoch == RUINED - 1 and batch == self.trainer.num_training_batches - 1:
            readout = self.model.short.readout
            with torch.no_grad():
                if request.param == "dead":
                    readout.first.bias.fill_(-1e4)
                else:
                    readout.last.weight.mul_(100.0)

    monkeypatch.setattr(EpochModule, "optimizer_step", ruinous)
    return crashes


@pytest.mark.usefixtures("ruin")
def test_goes_back_to_the_best_weights_with_half_of_the_rate(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(data, out=tmp_path / "run", settings=SETTINGS)
    records = [{key: float(value) for key, value in record.items() if value} for record in metrics(tmp_path / "run")]
    losses = [record["loss"] for record in records]
    assert losses[RUINED] > 0.999 * losses[0]
    assert losses[RUINED + 1] < 0.7 * losses[0]
    # the last step of an epoch, of six: the cosine, and half of it after the ruin
    last = [0.5 * (1.0 + math.cos(math.pi * (n - 1 / 6) / EPOCHS)) for n in range(EPOCHS + 1)]
    rates = [0.02 * (LAST_LR + (1.0 - LAST_LR) * x) for x in last]
    assert records[RUINED]["lr"] == pytest.approx(rates[RUINED])
    assert records[RUINED + 1]["lr"] == pytest.approx(0.5 * rates[RUINED + 1])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "lost what was learned" in line]
    assert len(warnings) == 1
    assert f"epoch {RUINED}:" in warnings[0]


@pytest.mark.parametrize("ruin", ["ruined"], indirect=True)
@pytest.mark.usefixtures("ruin")
def test_few_rows_that_validate_do_not_decide(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the weights of the last epoch are kept."""
    fit(data, out=tmp_path / "run", settings=SETTINGS | {"training.keep": "last"})
    losses = [float(record["loss"]) for record in metrics(tmp_path / "run")]
    assert losses[RUINED] > 5.0 * min(losses)
    assert "lost what was learned" not in capsys.readouterr().err


@pytest.mark.parametrize("ruin", ["dead"], indirect=True)
@pytest.mark.usefixtures("ruin")
def test_a_dead_network_lives_on_where_the_last_weights_are_kept(data: Path, tmp_path: Path) -> None:
    fit(data, out=tmp_path / "run", settings=SETTINGS | {"training.keep": "last"}, verbose=False)
    losses = [float(record["loss"]) for record in metrics(tmp_path / "run")]
    assert losses[RUINED] == pytest.approx(losses[0])
    assert max(losses[RUINED + 1 :]) < 0.7 * losses[0]


def test_a_resumed_fit_remembers(data: Path, tmp_path: Path, ruin: list[int]) -> None:
    whole = fit(data, out=tmp_path / "whole", settings=SETTINGS, verbose=False).model
    ruin.append(RUINED + 1)
    with pytest.raises(Crash):
        fit(data, out=tmp_path / "crashed", settings=SETTINGS, verbose=False)
    ruin.clear()
    resumed = fit(out=tmp_path / "crashed", resume=True, verbose=False).model
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
