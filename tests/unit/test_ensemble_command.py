"""Ensembles on the command line: joined, described, evaluated, predicted with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lrpot import load, plots
from lrpot.ensemble import Ensemble
from lrpot.model_file import save
from tests.helpers_cli import FIT_SETTINGS, listing, one_error_line, run_cli, small_model, write_crystals
from tests.unit.training_data import write_ionic_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.pt, b.pt and c.pt: models of other seeds; abc.pt: their ensemble; rows.extxyz: labelled."""
    folder = tmp_path_factory.mktemp("ensemble")
    for seed, name in enumerate("abc"):
        save(small_model(seed=seed), folder / f"{name}.pt")
    save(Ensemble(load(folder / f"{name}.pt") for name in "abc"), folder / "abc.pt")
    write_ionic_rows(folder / "rows.extxyz", n=40)
    return folder


def test_join_and_calibrate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("ensemble", *(folder / f"{name}.pt" for name in "abc"), "--out", tmp_path / "m.pt")
    assert run_cli(*words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"wrote {tmp_path / 'm.pt'}\n"
    assert "plain spread of the members" in printed.err
    assert (tmp_path / "m.pt").read_bytes() == (folder / "abc.pt").read_bytes()
    assert run_cli(*words, "--calibrate", folder / "rows.extxyz") == 1
    one_error_line(capsys.readouterr().err, ("m.pt: exists already", "--overwrite"))
    assert run_cli(*words, "--calibrate", folder / "rows.extxyz", "--overwrite") == 0
    printed = capsys.readouterr()
    model = load(tmp_path / "m.pt")
    assert model.calibration.n_structures == 40
    assert f"spread of 3 models, calibrated on 40 structures: energy x {model.calibration.factors['energy']:.3f}" in (
        printed.out
    )
    assert printed.err == ""


def test_an_ensemble_may_be_joined_with_more(folder: Path, tmp_path: Path) -> None:
    save(small_model(seed=9), tmp_path / "d.pt")
    assert run_cli("ensemble", folder / "abc.pt", tmp_path / "d.pt", "--out", tmp_path / "m.pt") == 0
    assert len(load(tmp_path / "m.pt").members) == 4


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        (["a.pt"], [], ("an ensemble of 1 model has no spread", "two or more", "0 ")),
        (["a.pt", "b.pt", "a.pt"], [], ("models 0 and 2 of the ensemble are the same", "a.pt")),
        (["a.pt", "nowhere.pt"], [], ("nowhere.pt: no such file", "check the path")),
        (["a.pt", "rows.extxyz"], [], ("rows.extxyz: is not a model", "lrpot fit")),
        (["a.pt", "b.pt"], ["--calibrate", "bare.extxyz"], ("bare.extxyz: the uncertainties cannot", "give labelled")),
        (["a.pt", "b.pt"], ["--calibrate", "none.extxyz"], ("none.extxyz: no such file",)),
    ],
)
def test_refusals(
    models: list[str],
    options: list[str],
    words: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_crystals(tmp_path / "bare.extxyz")
    monkeypatch.chdir(tmp_path)
    assert run_cli("ensemble", *(folder / name for name in models), "--out", "m.pt", *options) == 1
    one_error_line(capsys.readouterr().err, words)
    assert listing(tmp_path) == ["bare.extxyz"]


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("info", folder / "abc.pt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file:", str(folder / "abc.pt")]
    assert lines[1] == "ensemble:       3 models; uncertainties are the plain spread, not calibrated"
    assert [line.split(":")[1].strip() for line in lines if line.startswith("model:")] == ["1 of 3", "2 of 3", "3 of 3"]
    assert sum(line.startswith("elements:") for line in lines) == 3


def test_evaluate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", folder / "abc.pt", folder / "rows.extxyz", "--out", tmp_path) == 0
    printed = capsys.readouterr()
    for words in ("uncertainties beside errors", "within 1 (expected)", "miscalibration"):
        assert words in printed.out
    assert "plain spread of the members" in printed.err
    assert "calibration-rows.png" in listing(tmp_path)
    found = json.loads((tmp_path / "evaluation-rows.json").read_text())["uncertainty"]
    assert found.keys() == {"energy", "forces"}
    assert 0.0 <= found["forces"]["miscalibration"] <= 0.5
    assert found["forces"]["rmse"] > found["forces"]["uncertainty"] / found["forces"]["factor"] > 0


def test_evaluating_a_single_model_says_nothing_of_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("evaluate", folder / "a.pt", folder / "rows.extxyz", "--out", tmp_path) == 0
    assert "uncertaint" not in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation-rows.json").read_text())["uncertainty"] == {}


def test_predict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crystals = write_crystals(tmp_path / "crystals.extxyz", 2)
    assert run_cli("predict", folder / "abc.pt", crystals, "--out", tmp_path / "p.csv") == 0
    assert "plain spread of the members" in capsys.readouterr().err
    with open(tmp_path / "p.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        assert float(line["energy_uncertainty (eV/atom)"]) > 0
        assert float(line["max_force_uncertainty (eV/A)"]) > 0


def test_a_picture_of_one_kernel_needs_one_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("plot", "kernel", folder / "abc.pt") == 1
    one_error_line(capsys.readouterr().err, ("an ensemble of 3 models", "give the file of one of them"))


def test_fit_an_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("learning_curves", "kernel"):  # of the members; drawing takes longer than fitting
        monkeypatch.setattr(plots, name, lambda *arguments: arguments[-1])
    data, run = write_ionic_rows(tmp_path / "rows.extxyz", n=12), tmp_path / "run"
    settings = (*FIT_SETTINGS, "training.stages=1", "data.test_fraction=0")
    assert run_cli("fit", data, "--out", run, "--ensemble", 2, "--set", *settings) == 0
    printed = capsys.readouterr()
    for words in (
        "member-1 of 2, seed 0",
        "member-2 of 2, seed 1",
        "spread of the members, calibrated on 1 validation",
    ):
        assert words in printed.out
    doubts = printed.err.splitlines()
    assert doubts[0] == "warning: 2 members say little about their spread; four are usual"
    assert doubts[1].startswith("warning: uncertainties calibrated on 1 structures: their size is known to about 141%")
    assert {"member-1", "member-2", "model.pt", "results.json", "parity.png", "calibration.png"} <= set(listing(run))
    assert json.loads((run / "results.json").read_text())["uncertainty"]["structures"] == "validation"
    assert run_cli("fit", data, "--out", run, "--ensemble", 2) == 1
    one_error_line(capsys.readouterr().err, ("already holds files", "--resume"))
    assert run_cli("fit", data, "--out", tmp_path / "other", "--ensemble", 0) == 1
    one_error_line(capsys.readouterr().err, ("training.ensemble = 0", "greater than or equal to 1"))
    assert not (tmp_path / "other").exists()
