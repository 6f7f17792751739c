"""The commands as a user types them: help, exit codes, Ctrl-C, and one long way through all of them."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import ase.io
import numpy as np
import pytest

import lrpot
from lrpot import LRCalculator, load
from lrpot.cli.main import repeat_set
from lrpot.config import make_config
from lrpot.model_file import ModelInfo
from tests.helpers_cli import (
    FIT_SETTINGS,
    PATIENCE,
    call_cli,
    listing,
    one_error_line,
    rock_salt,
    run_cli,
    save_model,
    start_cli,
    write_crystals,
)
from tests.unit.training_data import write_ionic_rows

HELP_SECONDS = 1.0  # of CPU, so that other work on the machine does not count
SHARED_TOLERANCE = 1e-6  # eV and eV/A, of numbers that went through a table

# What the help of a command has to say: options, units and defaults.
HELP = {
    "": ("config", "charges", "fit", "evaluate", "predict", "md", "info", "data", "--version", "--debug"),
    "config": ("show", "check"),
    "config show": ("--config", "--backbone", "--set", "[default: (painn)]"),
    "fit": (
        "--from",
        "--new-elements",
        "--device",
        "--dtype",
        "--seed",
        "--resume",
        "--skip-bad-rows",
        "eV/A^3",
        "(A)",
        "[default: (float32)]",
    ),
    "charges": ("--out", "--pair-cutoff", "--molecules", "A. [default: (where", "[default: auto]", "eV/A"),
    "evaluate": ("--device", "--dtype", "eV/atom", "eV/A^3", "[default: float64]", "[default: cpu]"),
    "predict": ("--device", "--dtype", "eV", "eV/A", "GPa", "[default: float64]", "[default: (none)]"),
    "md": (
        "--device",
        "--dtype",
        "--seed",
        "--resume",
        "K. [default: 300.0]",
        "fs. [default: 1.0]",
        "1/fs. [default: 0.01]",
    ),
    "info": ("Model file, or the name of one that comes with lrpot",),
    "data": ("nacl",),
    "data nacl": ("--seed", "eV/A", "displacement, A. [default: 0.1]", "[default: 1000]", "--overwrite"),
}


# --- help and usage


@pytest.mark.parametrize("command", HELP)
def test_help_is_quick_and_says_units_and_defaults(command: str) -> None:
    words = [sys.executable, "-c", "from lrpot.cli.main import main; main()", *command.split(), "--help"]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_utime + usage.ru_stime < HELP_SECONDS
    shown = " ".join(text.split())
    for expected in HELP[command]:
        assert expected in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("--version") == 0
    assert capsys.readouterr().out == f"lrpot {lrpot.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "data",
        "config",
        "config check",
        "fly",
        "fit --colour red",
        "fit --schedule slow",
        "fit --set",
        "fit a.extxyz b.extxyz",
        "info",
        "predict m.pt",
        "md m.pt a.cif --steps many",
        "md m.pt a.cif --supercell 2",
        "evaluate m.pt",
        "predict m.pt a.cif --dtype float16",
        "data nacl",
        "data nacl --out a.extxyz --defect interstitial",
    ],
)
def test_wrong_usage_is_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli(*command.split()) == 2
    printed = capsys.readouterr()
    assert "Usage: lrpot" in printed.out + printed.err or "─ Error ─" in printed.err
    assert "Traceback" not in printed.err
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("fit d --set a=1 b=2 --out x", "fit d --set a=1 --set b=2 --out x"),
        ("fit --set a=1 --set b=2 c=3 d", "fit --set a=1 --set b=2 --set c=3 d"),
        ("fit --set a=1 d.extxyz", "fit --set a=1 d.extxyz"),
        ("fit --set a d", "fit --set a d"),
        ("fit --set", "fit --set"),
        ("fit --out a=1 b=2", "fit --out a=1 b=2"),
    ],
)
def test_settings_may_be_given_in_a_row(typed: str, meant: str) -> None:
    assert repeat_set(typed.split()) == meant.split()


# --- the long way


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which data were computed and a model was fitted, by commands."""
    folder = tmp_path_factory.mktemp("work")
    data = ("data", "nacl", "--n", 12, "--supercell", 2, "--rattle", 0.05, "--seed", 1)
    assert run_cli(*data, "--out", folder / "nacl.extxyz") == 0
    words = ("fit", folder / "nacl.extxyz", "--out", folder / "run", "--set", *FIT_SETTINGS)
    assert run_cli(*words, "--dtype", "float64", "--seed", 3) == 0
    return folder


def test_data(work: Path) -> None:
    rows = ase.io.read(work / "nacl.extxyz", ":")
    assert len(rows) == 12
    assert {len(atoms) for atoms in rows} == {16}
    assert {"energy", "forces"} <= rows[0].calc.results.keys()


def test_fit_leaves_a_model_and_its_story(work: Path) -> None:
    run = work / "run"
    pictures = {"parity.png", "learning_curves.png", "kernel.png"}
    assert {"model.pt", "config.yaml", "metrics.csv", "results.json"} | pictures <= set(listing(run))
    for name in pictures:
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    config = make_config(run / "config.yaml")
    assert config.data.train == str(work / "nacl.extxyz")
    assert config.model.backbone.features == 8
    assert config.training.seed == 3
    results = json.loads((run / "results.json").read_text())
    assert [stage["stage"] for stage in results["stages"]] == [0, 1, 2, 3]
    for stage in results["stages"]:
        assert stage["validation"]["forces"].keys() == {"mae", "rmse", "max", "unit"}
        assert stage["charges"].keys() == {"Na", "Cl"}
    assert results["test"]["n_structures"] == 1
    with open(run / "metrics.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert {"stage", "epoch", "lr", "loss", "energy", "forces"} <= records[0].keys()
    assert [(r["stage"], r["epoch"]) for r in records] == [(str(s), str(e)) for s in (1, 2, 3) for e in (0, 1, 2)]
    info = load(run / "model.pt").info
    assert isinstance(info, ModelInfo)
    assert info.elements == ["Na", "Cl"]
    assert [stage["stage"] for stage in info.stages] == [0, 1, 2, 3]
    assert info.data["train"] == str(work / "nacl.extxyz")


def test_fit_again_into_the_same_directory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = (work / "run" / "model.pt").read_bytes()
    assert run_cli("fit", work / "nacl.extxyz", "--out", work / "run") == 1
    assert "--resume" in capsys.readouterr().err
    assert (work / "run" / "model.pt").read_bytes() == model


def test_info(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("info", work / "run" / "model.pt") == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["elements"].strip() == "Na, Cl"
    assert f"lrpot {lrpot.__version__}" in lines["made by"]
    assert "energy eV" in lines["units"]
    assert "features 8" in lines["backbone"]
    assert "form coulomb" in lines["kernel"]
    assert lines["k_cutoff"].endswith(" 1/A")
    assert int(lines["parameters"]) > 1000
    assert lines["precision"].strip() == "float64"
    assert "structures (train 10, valid 1, test 1)" in lines["training data"]
    assert " start; " in lines["stage 0"]
    assert " 2 epochs; " in lines["stage 3"]
    assert "eV/atom" in lines["stage 3"]


def test_evaluate(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("evaluate", work / "run" / "model.pt", work / "nacl.extxyz", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    for words in ("12 structures, 192 atoms", "energy (eV/atom)", "forces (eV/A)", "MAE", "RMSE"):
        assert words in shown
    assert listing(tmp_path) == ["charge-scale-nacl.png", "evaluation-nacl.json", "parity-nacl.png"]
    found = json.loads((tmp_path / "evaluation-nacl.json").read_text())
    assert found["n_structures"] == 12
    assert found["n_atoms"] == 192
    assert found["model"] == str(work / "run" / "model.pt")
    rows = ase.io.read(work / "nacl.extxyz", ":")
    errors = []
    for atoms in rows:
        labelled = atoms.get_forces()
        atoms.calc = LRCalculator(work / "run" / "model.pt")
        errors.append(np.abs(atoms.get_forces() - labelled))
    assert found["forces"]["mae"] == pytest.approx(np.mean(errors), rel=1e-6)
    assert found["forces"]["max"] == pytest.approx(np.max(errors), rel=1e-6)
    assert found["forces"]["unit"] == "eV/A"
    assert "charges (e)" in shown
    assert "a share of" in shown
    assert list(found["charges"]) == ["Na", "Cl"]
    charge = float(np.mean(atoms.calc.results["charges"][rows[0].numbers == 11]))
    assert found["charges"]["Na"]["mean"] == pytest.approx(charge, abs=1e-9)
    assert f"{charge:+.4f}" in shown
    assert found["long_range"]["energy_long"] > 0.1


def test_evaluate_writes_beside_the_model_unless_told(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models" / "m.pt")
    write_ionic_rows(tmp_path / "rows.extxyz", n=2, stress=True)
    assert run_cli("evaluate", tmp_path / "models" / "m.pt", tmp_path / "rows.extxyz", "--dtype", "float32") == 0
    assert listing(tmp_path / "models") == ["charge-scale-rows.png", "evaluation-rows.json", "m.pt", "parity-rows.png"]
    found = json.loads((tmp_path / "models" / "evaluation-rows.json").read_text())
    assert found["stress"]["unit"] == "eV/A^3"


def test_evaluations_of_other_data_or_another_model_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of one name from several folders, and models in one folder, would write the same results."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.pt", "none")
    save_model(tmp_path / "other.pt", "none")
    for name in ("one", "two"):
        Path(name).mkdir()
        write_ionic_rows(Path(name) / "rows.extxyz", n=1)
    results = Path("evaluation-rows.json")
    assert run_cli("evaluate", "m.pt", "one/rows.extxyz") == 0
    assert run_cli("evaluate", tmp_path / "m.pt", "two/../one/rows.extxyz") == 0, "the same again"
    before = results.read_bytes()
    for words in (("m.pt", "two/rows.extxyz"), ("other.pt", "one/rows.extxyz")):
        capsys.readouterr()
        assert run_cli("evaluate", *words) == 1
        told = ("evaluation-rows.json: holds results of", "rows.extxyz", "--overwrite")
        one_error_line(capsys.readouterr().err, told)
        assert results.read_bytes() == before
    assert run_cli("evaluate", "m.pt", "two/rows.extxyz", "--overwrite") == 0
    assert json.loads(results.read_text())["data"] == "two/rows.extxyz"
    results.write_text("notes of mine")
    capsys.readouterr()
    assert run_cli("evaluate", "m.pt", "two/rows.extxyz") == 1
    one_error_line(capsys.readouterr().err, ("holds results that cannot be read", "--overwrite"))


@pytest.fixture
def crystals(tmp_path: Path) -> list[Path]:
    """The formats that `lrpot predict` promises; five crystals in all."""
    write_crystals(tmp_path / "one.cif", 1)
    write_crystals(tmp_path / "two.extxyz", 2)
    write_crystals(tmp_path / "POSCAR", 1, format="vasp")
    plain = write_crystals(tmp_path / "packed.extxyz", 1)
    (tmp_path / "packed.extxyz.gz").write_bytes(gzip.compress(plain.read_bytes()))
    return [tmp_path / name for name in ("one.cif", "two.extxyz", "POSCAR", "packed.extxyz.gz")]


def test_predict_to_a_table(crystals: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "m.pt")
    assert run_cli("predict", model, *crystals, "--out", tmp_path / "out" / "p.csv") == 0
    assert "P (GPa)" in capsys.readouterr().out
    with open(tmp_path / "out" / "p.csv", newline="") as file:
        header, *lines = csv.reader(file)
    expected = ["file", "row", "formula", "energy (eV)", "eV/atom", "long range (eV)", "max |F| (eV/A)", "P (GPa)"]
    assert header == [*expected, "charges (e)"]
    assert [(line[0], line[1]) for line in lines] == [
        (str(crystals[0]), "0"),
        (str(crystals[1]), "0"),
        (str(crystals[1]), "1"),
        (str(crystals[2]), "0"),
        (str(crystals[3]), "0"),
    ]
    atoms = rock_salt(seed=1)
    atoms.calc = LRCalculator(model)
    second = dict(zip(header, lines[2], strict=True))
    assert second["formula"] == "Cl8Na8"
    assert float(second["energy (eV)"]) == pytest.approx(atoms.get_potential_energy(), abs=SHARED_TOLERANCE)
    assert float(second["eV/atom"]) == pytest.approx(atoms.get_potential_energy() / 16, abs=SHARED_TOLERANCE)
    assert float(second["long range (eV)"]) == pytest.approx(atoms.calc.results["energy_long"], abs=SHARED_TOLERANCE)
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    assert float(second["max |F| (eV/A)"]) == pytest.approx(largest, abs=SHARED_TOLERANCE)
    assert float(second["P (GPa)"]) == pytest.approx(-atoms.get_stress()[:3].mean() * 160.2176634, abs=1e-3)
    assert second["charges (e)"] == "Na +0.800, Cl -0.800"


def test_predict_to_crystals(crystals: list[Path], tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.pt")
    assert run_cli("predict", model, *crystals, "--out", tmp_path / "p.extxyz") == 0
    found = ase.io.read(tmp_path / "p.extxyz", ":")
    assert len(found) == 5
    for atoms in found:
        results = atoms.calc.results
        assert results.keys() >= {"energy", "forces", "stress", "charges"}
        assert atoms.info["energy_short"] + atoms.info["energy_long"] == pytest.approx(results["energy"])
        again = atoms.copy()
        again.calc = LRCalculator(model)
        assert results["energy"] == pytest.approx(again.get_potential_energy(), abs=SHARED_TOLERANCE)
        np.testing.assert_allclose(results["forces"], again.get_forces(), atol=SHARED_TOLERANCE)
        np.testing.assert_allclose(atoms.get_stress(), again.get_stress(), atol=SHARED_TOLERANCE)
        np.testing.assert_allclose(results["charges"], np.where(again.numbers == 11, 0.8, -0.8), atol=SHARED_TOLERANCE)


def test_predict_ignores_labels_and_mixes_periodicities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [rock_salt(seed=seed) for seed in range(4)]
    rows[1].pbc = False
    rows[2].pbc = [True, False, True]
    ase.io.write(tmp_path / "rows.extxyz", rows)
    text = (tmp_path / "rows.extxyz").read_text().replace("pbc=", "energy=nan pbc=")
    (tmp_path / "rows.extxyz").write_text(text)
    model = save_model(tmp_path / "m.pt", "none")
    assert run_cli("predict", model, tmp_path / "rows.extxyz", "--out", tmp_path / "p.csv") == 0
    assert capsys.readouterr().err == ""
    with open(tmp_path / "p.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["0", "1", "2", "3"]
    assert [line["P (GPa)"] == "" for line in lines] == [False, True, True, False]
    for line, atoms in zip(lines, rows, strict=True):
        atoms.calc = LRCalculator(model)
        assert float(line["energy (eV)"]) == pytest.approx(atoms.get_potential_energy(), abs=SHARED_TOLERANCE)


@pytest.mark.parametrize(("ensemble", "name"), [("nve", "md.traj"), ("nvt", "md.extxyz")])
def test_md(ensemble: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, start = save_model(tmp_path / "m.pt"), write_crystals(tmp_path / "start.extxyz", 2)
    words = ("md", model, start, "--ensemble", ensemble, "--steps", 5, "--interval", 1, "--temperature", 100)
    out = tmp_path / "new" / name
    assert run_cli(*words, "--out", out, "--seed", 4) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("5 steps of 1 fs, 16 atoms, ")
    assert ("energy drift" in shown) == (ensemble == "nve")
    assert (tmp_path / "new" / "md.energy.png").read_bytes().startswith(b"\x89PNG")
    frames = ase.io.read(out, ":")
    assert len(frames) == 6
    np.testing.assert_allclose(frames[0].positions, rock_salt(seed=1).positions, atol=1e-7)  # the last row
    for one, next_one in pairwise(frames):
        assert np.abs(one.positions - next_one.positions).max() > 1e-4
    if ensemble == "nve":
        energies = [frame.get_total_energy() for frame in frames]
        assert np.ptp(energies) / 16 < 1e-4
    again = tmp_path / "again" / name
    assert run_cli(*words, "--out", again, "--seed", 4) == 0
    np.testing.assert_array_equal(ase.io.read(again, -1).positions, frames[-1].positions)


def test_md_of_a_supercell_and_over_an_older_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, start = save_model(tmp_path / "m.pt", "none"), write_crystals(tmp_path / "start.cif", 1)
    words = ("md", model, start, "--steps", 2, "--interval", 1, "--out", tmp_path / "md.traj", "--dtype", "float32")
    assert run_cli(*words) == 0
    assert run_cli(*words, "--supercell", 2, 1, 1) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert {len(frame) for frame in ase.io.read(tmp_path / "md.traj", ":")} == {16}
    assert run_cli(*words, "--supercell", 2, 1, 1, "--overwrite") == 0
    assert [len(frame) for frame in ase.io.read(tmp_path / "md.traj", ":")] == [32, 32, 32]


def test_md_of_a_charged_supercell(tmp_path: Path) -> None:
    """The whole has the charge of all its cells."""
    atoms = rock_salt(1)
    atoms.info["charge"] = 1.0
    ase.io.write(tmp_path / "one.extxyz", atoms)
    words = ("md", save_model(tmp_path / "m.pt"), tmp_path / "one.extxyz", "--steps", 1, "--interval", 1)
    assert run_cli(*words, "--supercell", 2, 1, 3, "--out", tmp_path / "md.extxyz") == 0
    assert [frame.info["charge"] for frame in ase.io.read(tmp_path / "md.extxyz", ":")] == [6.0, 6.0]


@pytest.mark.parametrize("command", ["data", "evaluate", "predict", "md"])
def test_long_work_shows_a_bar_on_a_terminal(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, crystals = save_model(tmp_path / "m.pt"), write_ionic_rows(tmp_path / "rows.extxyz", n=3)
    words = {
        "data": ("data", "nacl", "--n", 3, "--supercell", 1, "--out", tmp_path / "d.extxyz"),
        "evaluate": ("evaluate", model, crystals),
        "predict": ("predict", model, crystals),
        "md": ("md", model, crystals, "--steps", 3, "--interval", 1, "--out", tmp_path / "md.traj"),
    }[command]
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    assert run_cli(*words) == 0
    assert "3/3" in capsys.readouterr().err


# --- Ctrl-C


def interrupt(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[str, str]:
    """Press Ctrl-C once something is so; gives output and errors."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=PATIENCE)


def test_ctrl_c_in_data(tmp_path: Path) -> None:
    out = tmp_path / "d.extxyz"
    partial = tmp_path / "d.extxyz.partial"
    with start_cli("data", "nacl", "--n", 100_000, "--supercell", 1, "--out", out) as process:
        _, errors = interrupt(process, lambda: partial.exists() and partial.stat().st_size > 0)
    assert process.returncode == 130
    assert errors.startswith(f"lrpot: {out}: stopped after ")
    assert errors.endswith("run the same command again to go on\n")
    assert errors.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_ctrl_c_in_md(tmp_path: Path) -> None:
    model, start = save_model(tmp_path / "m.pt", "none"), write_crystals(tmp_path / "start.extxyz", 1)
    out = tmp_path / "md.traj"
    words = ("md", model, start, "--steps", 1_000_000, "--interval", 1, "--timestep", 0.1, "--out", out)
    with start_cli(*words) as process:
        _, errors = interrupt(process, lambda: out.exists() and out.stat().st_size > 10_000)
    assert process.returncode == 130
    asked, told = errors.splitlines()
    assert asked == "warning: stopping after this step (Ctrl-C again: at once)"
    frames = ase.io.read(out, ":")
    assert (
        told
        == f"lrpot: stopped by Ctrl-C; {out} holds the {len(frames)} frames so far, and --resume goes on from there"
    )
    assert len(frames) > 1
    assert frames[-1].get_forces().shape == (16, 3)


@pytest.mark.slow
def test_ctrl_c_in_fit_and_resume(tmp_path: Path) -> None:
    data, run = write_ionic_rows(tmp_path / "rows.extxyz", n=12), tmp_path / "run"
    settings = (*FIT_SETTINGS, "training.stages=1", "training.max_epochs=40")
    with start_cli("fit", data, "--out", run, "--set", *settings) as process:
        _, errors = interrupt(process, (run / "checkpoints" / "1" / "newest.ckpt").exists)
    assert process.returncode == 130
    assert f"go on with: lrpot fit --resume --out {run}" in errors.splitlines()[-1]
    assert not (run / "model.pt").exists()
    code, output, errors = call_cli("fit", "--resume", "--out", run)
    assert code == 0, errors
    assert (run / "model.pt").exists()
    assert "wrote" in output
    with open(run / "metrics.csv", newline="") as file:
        epochs = [int(record["epoch"]) for record in csv.DictReader(file)]
    assert epochs == list(range(len(epochs)))  # no epoch twice, none left out
    assert len(epochs) > 2
