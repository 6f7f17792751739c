"""Models that come with lrpot: found by name, what their cards say, and behind files of the user's own."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator

import lrpot.shipped
from lrpot import LRCalculator, load
from lrpot.data.builders.tosi_fumi import TosiFumi
from lrpot.errors import ModelFileError
from lrpot.model_file import ModelInfo, save
from lrpot.shipped import FOLDER, Card, find_model, read_card, shipped_models
from tests.helpers_cli import listing, one_error_line, rock_salt, run_cli, save_model, small_model

ROOT = Path(__file__).parents[2]
LARGEST = 5_000_000  # bytes
STEP = 0.02  # A
FORCE_CONSTANT_TOLERANCE = 0.03  # of the largest one; a network with a cusp is off by a quarter
NAMES = shipped_models()

CARD = {
    "title": "a small model",
    "elements": ["Na", "Cl"],
    "method": "none",
    "why": "none",
    "data": "none",
    "range": {"phases": "none", "temperature": [0, 1], "pressure": [0, 1], "cells": "none", "not_for": "all"},
    "errors": {
        "8 atoms": {
            "n_structures": 2,
            "n_atoms": 16,
            "energy": {"mae": 2e-3, "rmse": 0.003},
            "forces": {"mae": 0.0456, "rmse": 0.05},
        }
    },
    "licence": "MIT",
    "citation": "none",
    "commands": ["lrpot fit rows.extxyz"],
    "sha256": "0",
}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that comes with one model, tiny.pt; the current directory is another, empty one."""
    folder, here = tmp_path / "models", tmp_path / "here"
    here.mkdir()
    save_model(folder / "tiny.pt")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CARD))
    monkeypatch.setattr(lrpot.shipped, "FOLDER", folder)
    monkeypatch.chdir(here)
    return folder


# --- what comes with lrpot


def test_some_come_with_lrpot() -> None:
    assert "nacl" in NAMES
    assert {path.suffix for path in FOLDER.iterdir()} == {".pt", ".yaml"}
    assert [path.stem for path in sorted(FOLDER.glob("*.yaml"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_what_its_card_says(name: str) -> None:
    card, path = read_card(name), find_model(name)
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == card.sha256
    assert len(content) < LARGEST
    info = load(name).info
    assert isinstance(info, ModelInfo)
    assert info.elements == card.elements
    assert "/" not in json.dumps([info.config["data"], info.data])  # no folder of who made it
    for errors in card.errors.values():
        for label in (errors.energy, errors.forces):
            assert 0 < label.mae <= label.rmse


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_is_in_the_repository(name: str) -> None:
    """The card is the one that is written by hand, and what was measured."""
    written = yaml.safe_load((ROOT / "models" / name / "card.yaml").read_text())
    assert (ROOT / "models" / name / "fit.yaml").is_file()
    assert list(written.pop("tests")) == list(read_card(name).errors)
    measured = {"errors": read_card(name).errors, "sha256": read_card(name).sha256}
    assert Card.model_validate({**written, **measured}) == read_card(name)


def test_package_data_has_models_and_cards() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lrpot"]
    packed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert {*FOLDER.iterdir()} <= packed


def test_nacl_has_the_force_constants_of_its_labels() -> None:
    """At the sites of the perfect crystal, where the norms of a network's vectors may have a cusp."""
    crystal = bulk("NaCl", "rocksalt", a=5.62, cubic=True) * (2, 2, 2)

    def force_constants(calculator: Calculator, atom: int) -> np.ndarray:
        forces = []
        for sign in (-1, 1):
            atoms = crystal.copy()
            atoms.positions[atom, 0] += sign * STEP
            atoms.calc = calculator
            forces.append(atoms.get_forces())
        return (forces[0] - forces[1]) / (2.0 * STEP)

    model, labels = LRCalculator("nacl.pt"), TosiFumi()
    for atom in (0, 1):  # Na and Cl
        expected = force_constants(labels, atom)
        error = np.abs(force_constants(model, atom) - expected).max()
        assert error < FORCE_CONSTANT_TOLERANCE * np.abs(expected).max()


# --- found by name


@pytest.mark.parametrize("name", ["tiny", "tiny.pt"])
def test_a_name_is_enough(shipped: Path, name: str) -> None:
    atoms = rock_salt()
    atoms.calc = LRCalculator(name)
    own = rock_salt()
    own.calc = LRCalculator(small_model())
    assert find_model(name) == shipped / "tiny.pt"
    assert atoms.get_potential_energy() == own.get_potential_energy()


def test_a_file_of_that_name_goes_first(shipped: Path) -> None:
    assert save(small_model(seed=1), "tiny.pt").read_bytes() != (shipped / "tiny.pt").read_bytes()
    assert find_model("tiny.pt") == Path("tiny.pt")
    assert find_model("tiny") == shipped / "tiny.pt"
    Path("tiny").mkdir()  # no model file
    assert find_model("tiny") == shipped / "tiny.pt"


@pytest.mark.parametrize("path", ["folder/tiny.pt", "tiny.pth", "small.pt"])
def test_what_is_not_there_is_told_with_what_is(shipped: Path, path: str) -> None:
    with pytest.raises(ModelFileError, match=rf"^{path}: no such file; check the path, .*comes with lrpot: tiny$"):
        load(path)


@pytest.mark.slow
def test_every_command_takes_a_name_and_leaves_the_package_alone(
    shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (shipped / name).read_bytes() for name in listing(shipped)}
    rows = [rock_salt(seed=seed) for seed in range(12)]
    for atoms in rows:
        atoms.calc = SinglePointCalculator(atoms, energy=-50.0 + atoms.positions.std(), forces=np.sin(atoms.positions))
    ase.io.write("rows.extxyz", rows)
    for words in (
        ("info", "tiny"),
        ("predict", "tiny.pt", "rows.extxyz", "--out", "predicted.csv"),
        ("evaluate", "tiny.pt", "rows.extxyz"),
        ("plot", "kernel", "tiny.pt"),
        ("md", "tiny", "rows.extxyz", "--steps", 2, "--out", "md.traj"),
        ("fit", "rows.extxyz", "--from", "tiny.pt", "--out", "run", "--set", "training.max_epochs=1"),
    ):
        assert run_cli(*words) == 0, capsys.readouterr().err
    assert str(shipped / "tiny.pt") in capsys.readouterr().out
    assert {name: (shipped / name).read_bytes() for name in listing(shipped)} == before
    record = json.loads(Path("run/record.json").read_text())
    assert record["from"] == {"model": "tiny.pt", "sha256": hashlib.sha256(before["tiny.pt"]).hexdigest()}
    made = {"predicted.csv", "evaluation-rows.json", "parity-rows.png", "kernel-tiny.png", "md.traj", "run/model.pt"}
    assert made <= set(listing(Path()))


# --- lrpot models


def test_the_list(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("models") == 0
    output = capsys.readouterr().out
    size = (shipped / "tiny.pt").stat().st_size / 1e6
    for words in ("tiny.pt", "Na Cl", f"{size:.2f} MB", "2 ", "45.6", "MIT", "lrpot models NAME"):
        assert words in output


def test_a_card(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("models", "tiny.pt") == 0
    output = capsys.readouterr().out
    for words in ("a small model", "0 to 1 K", "45.6 / 50", "lrpot fit rows.extxyz", " - "):
        assert words in output


@pytest.mark.parametrize("name", NAMES)
def test_every_card_can_be_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("models", name) == 0
    assert read_card(name).title in capsys.readouterr().out


def test_an_unknown_name(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("models", "big") == 1
    one_error_line(capsys.readouterr().err, ["big: no model of that name", "tiny"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "No such file"), ("title: [", "expected"), ("title: a\n", "elements"), ("errors: .nan\n", "title")],
)
def test_a_card_that_cannot_be_read(
    shipped: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    card = shipped / "tiny.yaml"
    card.unlink()
    if text is not None:
        card.write_text(text)
    assert run_cli("models", "tiny") == 1
    one_error_line(capsys.readouterr().err, [f"{card}: the card cannot be read", reason, "install lrpot anew"])
