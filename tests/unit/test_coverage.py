"""What lies outside a training set is told: by the calculator, by predictions, by the commands."""

from __future__ import annotations

import re
from pathlib import Path

import ase.io
import pytest
from ase import Atoms

from lrpot import LRCalculator
from lrpot.coverage import Coverage, OutsideTrainingWarning, beyond, coverage_of
from lrpot.data.readers import to_structure
from lrpot.model_file import load, save
from tests.helpers_cli import rock_salt, run_cli, small_model

CUTOFF = 4.0  # A, of the small model


def seen() -> Coverage:
    return coverage_of([to_structure(rock_salt(seed=seed), CUTOFF) for seed in range(4)], CUTOFF)


def close_pair() -> Atoms:
    """A crystal in which a chloride has come within 2 A of a sodium."""
    atoms = rock_salt()
    atoms.set_distance(0, 1, 2.0, fix=0, mic=True)
    return atoms


def stretched() -> Atoms:
    atoms = rock_salt()
    atoms.set_cell(1.15 * atoms.cell.array, scale_atoms=True)
    return atoms


def potassium() -> Atoms:
    atoms = rock_salt()
    atoms.numbers[0] = 19
    return atoms


def test_extremes_are_those_of_the_structures() -> None:
    found = seen()
    rows = [rock_salt(seed=seed) for seed in range(4)]
    shortest = min(float(atoms.get_all_distances(mic=True)[0::2, 1::2].min()) for atoms in rows)
    assert found.closest["Na-Cl"] == pytest.approx(shortest, abs=1e-12)
    assert found.closest.keys() == {"Na-Na", "Na-Cl", "Cl-Cl"}
    assert 0 < found.crowding["Na"][0] < found.crowding["Na"][1]


def test_more_of_the_same_is_inside() -> None:
    found = seen()
    assert [beyond(found, to_structure(rock_salt(seed=seed), CUTOFF)) for seed in range(20)] == [None] * 20


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (close_pair(), r"Na-Cl are 2 A apart, in the training set at least 2\.\d+ A"),
        (stretched(), "an atom of (Na|Cl) has fewer neighbours .* than any in the training set .*"),
        (potassium(), "(Na|Cl)-K are neighbours, .* A apart, and nowhere in the training set"),
    ],
)
def test_what_is_outside_is_told(atoms: Atoms, reason: str) -> None:
    told = beyond(seen(), to_structure(atoms, CUTOFF))
    assert told is not None
    assert re.fullmatch(reason, told)


@pytest.mark.parametrize("far", [0.0, 0.3, 0.6])
def test_the_loop_finds_what_plain_extremes_find(far: float) -> None:
    known, told = seen(), []
    for seed in range(30):
        atoms = rock_salt(seed=seed)
        atoms.rattle(far, seed=seed)
        structure = to_structure(atoms, CUTOFF)
        own = coverage_of([structure], CUTOFF)
        outside = any(d < 0.95 * known.closest[pair] for pair, d in own.closest.items()) or any(
            low < known.crowding[symbol][0] - 0.5 or high > known.crowding[symbol][1] + 0.5
            for symbol, (low, high) in own.crowding.items()
        )
        assert (beyond(known, structure) is not None) == outside
        told.append(outside)
    assert any(told) == (far > 0.0)


def test_the_calculator_has_a_flag_and_warns_once(tmp_path: Path) -> None:
    model = small_model("none")
    model.info.coverage = seen()  # type: ignore[union-attr, attr-defined]
    calculator = LRCalculator(load(save(model, tmp_path / "m.pt")))
    inside, outside = rock_salt(seed=2), close_pair()
    inside.calc = outside.calc = calculator
    inside.get_potential_energy()
    assert calculator.results["outside_training"] is False
    with pytest.warns(OutsideTrainingWarning, match="Na-Cl are 2 A apart.*: the model may be wrong there") as told:
        outside.get_potential_energy()
    assert len(told) == 1
    assert calculator.results["outside_training"] is True
    outside.rattle(1e-3)
    outside.get_potential_energy()  # a second warning would be an error
    assert calculator.results["outside_training"] is True


def test_the_command_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model("none")
    model.info.coverage = seen()  # type: ignore[union-attr, attr-defined]
    save(model, tmp_path / "m.pt")
    ase.io.write(tmp_path / "two.extxyz", [rock_salt(), close_pair()])
    assert run_cli("predict", tmp_path / "m.pt", tmp_path / "two.extxyz") == 0
    told = capsys.readouterr().err
    assert "1 of 2 crystals lie outside the training set" in told
    assert "two.extxyz, row 1: Na-Cl are 2 A apart" in told


def test_a_model_without_extremes_says_nothing(tmp_path: Path) -> None:
    atoms = close_pair()
    atoms.calc = LRCalculator(small_model("none"))
    atoms.get_potential_energy()
    assert "outside_training" not in atoms.calc.results
