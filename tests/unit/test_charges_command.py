"""`lrpot charges`: tables, picture and file for data that determine charges; one line for all others."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml

from lrpot.config import make_config
from lrpot.errors import ConfigError
from tests.helpers_cli import FIT_SETTINGS, listing, one_error_line, run_cli
from tests.unit.charge_data import SALT, SAMPLES, crystals, labelled, rock_salt, to_atoms

SAMPLE_TOLERANCE = 1e-5  # e


@pytest.fixture(scope="module")
def ionic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three crystals of charges of one, and nothing else."""
    path = tmp_path_factory.mktemp("data") / "ionic.extxyz"
    ase.io.write(path, ase.io.read(SAMPLES / "sample.extxyz", ":3"), write_results=True)
    return path


@pytest.fixture(scope="module")
def repulsive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Atoms that repel each other and have no charges."""
    path = tmp_path_factory.mktemp("data") / "repulsive.extxyz"
    frames = [labelled(a, {"Na": 0.0, "Cl": 0.0}, SALT) for a in crystals(rock_salt(), 6, 0.1, 0.02)]
    ase.io.write(path, [to_atoms(s) for s in frames], write_results=True)
    return path


def test_charges_are_shown_drawn_and_written(ionic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "charges.yaml"
    assert run_cli("charges", ionic, "--out", out) == 0
    shown = capsys.readouterr().out
    for words in ("+1.0000", "-1.0000", "(chosen)", "rank-one share", "verdict: the data determine these charges"):
        assert words in shown
    assert listing(tmp_path) == ["charges.png", "charges.yaml"]
    assert (tmp_path / "charges.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load(out.read_text())["charges"] == pytest.approx({"Na": 1.0, "Cl": -1.0}, abs=SAMPLE_TOLERANCE)


def test_packed_files_are_read(ionic: Path, tmp_path: Path) -> None:
    with open(ionic, "rb") as plain, gzip.open(tmp_path / "sample.extxyz.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    assert run_cli("charges", tmp_path / "sample.extxyz.gz", "--out", tmp_path / "c.yml", "--pair-cutoff", 4) == 0
    assert yaml.safe_load((tmp_path / "c.yml").read_text())["settings"]["pair_cutoff"] == 4.0


@pytest.mark.slow
def test_a_fit_starts_from_the_file(repulsive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "charges.yaml"
    out.write_text("charges: {Na: 0.9, Cl: -0.9}\n")
    settings = (*FIT_SETTINGS, f"model.charges.init={out}", "training.stages=1", "training.max_epochs=1")
    assert run_cli("fit", repulsive, "--out", tmp_path / "run", "--set", *settings) == 0
    assert f"charges start at Na +0.90000, Cl -0.90000 e from {out}" in capsys.readouterr().out


def test_a_file_that_lacks_an_element_stops_a_fit_before_it_begins(
    ionic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "charges.yaml").write_text("charges: {Na: 0.9}\n")
    settings = (*FIT_SETTINGS, f"model.charges.init={tmp_path / 'charges.yaml'}")
    assert run_cli("fit", ionic, "--out", tmp_path / "run", "--set", *settings) == 1
    one_error_line(capsys.readouterr().err, ["charges.yaml has no charge for Cl; add it to the table"])
    assert not (tmp_path / "run").exists()


def test_refusal_is_a_word_and_leaves_nothing(
    repulsive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("charges", repulsive, "--out", tmp_path / "charges.yaml") == 1
    shown = capsys.readouterr()
    one_error_line(shown.err, [f"{repulsive}: no charges: "])
    assert "(chosen)" in shown.out
    assert "verdict" not in shown.out
    assert "Na" not in shown.out
    assert listing(tmp_path) == []


def test_files_are_replaced_only_when_asked(ionic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "charges.yaml"
    (tmp_path / "charges.png").write_text("mine")
    assert run_cli("charges", ionic, "--out", out) == 1
    one_error_line(capsys.readouterr().err, ["charges.png: is already there; add --overwrite to replace it"])
    assert listing(tmp_path) == ["charges.png"]
    assert run_cli("charges", ionic, "--out", out, "--overwrite") == 0
    assert (tmp_path / "charges.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("none.extxyz",), ["none.extxyz: no such file; check the path"]),
        ((SAMPLES / "sample.extxyz", "--pair-cutoff", "1"), ["pair cutoff = 1 A: choose 2 to 10 A"]),
        ((SAMPLES / "sample.extxyz", "--out", "charges.txt"), ["charges.txt: a file of charges ends in .yaml"]),
    ],
)
def test_errors_are_one_line(
    words: tuple[object, ...],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("charges", *words) == 1
    one_error_line(capsys.readouterr().err, expected)
    assert listing(tmp_path) == []


def test_left_out_frames_and_molecules_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [to_atoms(labelled(a, {"Na": 0.7, "Cl": -0.7}, SALT)) for a in crystals(rock_salt(), 8, 0.1, 0.02)]
    rows[0].calc.results["forces"] = 100.0 * rows[0].calc.results["forces"]
    rows[1].calc.results.pop("forces")
    ase.io.write(tmp_path / "rows.extxyz", rows, write_results=True)
    assert run_cli("charges", tmp_path / "rows.extxyz", "--out", tmp_path / "c.yaml", "--molecules", "off") == 0
    shown = capsys.readouterr().out
    assert "7 periodic frames with forces, 288 force components used" in shown
    assert "left out 1 frames without forces" in shown
    assert "left out 1 frames whose root mean square force is above" in shown
    settings = yaml.safe_load((tmp_path / "c.yaml").read_text())["settings"]
    assert settings["molecules"] == "off"
    assert settings["frames"] == 6
    assert np.isfinite(settings["largest_rms_force"])


@pytest.mark.parametrize("cutoff", [1.0, 11.0, "far"])
def test_the_range_of_pair_cutoffs_is_checked_in_settings(cutoff: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.charges\.pair_cutoff = "):
        make_config(settings={"model.charges.pair_cutoff": cutoff})
    assert make_config(settings={"model.charges.pair_cutoff": 4.0}).model.charges.pair_cutoff == 4.0


def test_a_misspelt_start_is_no_file() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.charges\.init = 'prefitt': .*'prefit', 'born', 'oxidation' or 'zero'"
    ):
        make_config(settings={"model.charges.init": "prefitt"})
    assert make_config(settings={"model.charges.init": "charges.yaml"}).model.charges.init == "charges.yaml"
