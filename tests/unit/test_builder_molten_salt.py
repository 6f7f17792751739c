"""The molten-salt builder: what its rows are, that they are the same again, its command and its refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms

from lrpot.data.builders import molten_salt
from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.molten_salt import KINDS, build_molten_salt, salt_structure
from lrpot.data.builders.tosi_fumi import TosiFumi
from lrpot.errors import ConfigError
from tests.helpers_cli import run_cli

RECORD = Path(__file__).parents[2] / "datasets" / "molten-salt"
SUM_TOLERANCE = 1e-10  # relative, of sums in another order
FORCE_TOLERANCE = 1e-9  # eV/A, and A, likewise

SMALL = {"supercell": 1}  # 8 atoms, 6 of them beside two vacancies


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molten_salt, "STEPS", 5)


@pytest.mark.parametrize("row", range(len(KINDS)))
def test_labels_are_those_of_the_potential(row: int, quick: None) -> None:
    atoms = salt_structure(row, **SMALL)
    again = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True, calculator=TosiFumi())
    assert atoms.info["kind"] == KINDS[row]
    assert atoms.get_potential_energy() == again.get_potential_energy()
    np.testing.assert_array_equal(atoms.get_forces(), again.get_forces())
    np.testing.assert_array_equal(atoms.get_stress(), again.get_stress())


def test_vacancies_of_all_kinds_charge_their_cells(quick: None) -> None:
    kinds = set()
    for row in range(2, 34, 4):
        atoms = salt_structure(row, **SMALL)
        missing = tuple(4 - (atoms.numbers == number).sum() for number in (11, 17))
        assert atoms.info["net_charge"] == missing[1] - missing[0]
        kinds.add(missing)
    assert kinds == {(1, 0), (0, 1), (1, 1)}


def test_strained_crystals_differ_in_volume_and_shape() -> None:
    cells = np.array(
        [salt_structure(row, **SMALL).cell.array / molten_salt.LATTICE_CONSTANT for row in range(0, 400, 4)]
    )
    strains = cells - np.eye(3)
    np.testing.assert_allclose(strains, strains.transpose(0, 2, 1), atol=1e-12)
    diagonal = strains[:, range(3), range(3)]
    # 300 numbers: the standard error of their width is 4 % of it
    assert diagonal.std() == pytest.approx(molten_salt.STRAIN, rel=0.2)
    assert strains[:, 0, 1].std() == pytest.approx(molten_salt.STRAIN / np.sqrt(2), rel=0.3)


@pytest.mark.slow
def test_a_melt_has_lost_its_lattice_and_a_hot_crystal_has_not() -> None:
    """Rms distance from the sites, against 2.82 A between neighbours: a tenth of it at rest, half of it in a melt."""
    moved = {}
    for row in (1, 3):
        atoms = salt_structure(row, supercell=2)
        sites = molten_salt.bulk("NaCl", "rocksalt", a=1.0, cubic=True) * (2, 2, 2)
        away = atoms.positions - sites.get_scaled_positions() @ atoms.cell.array
        away -= away.mean(axis=0)
        moved[atoms.info["kind"]] = np.sqrt((away**2).sum(axis=1).mean())
    assert moved["hot"] < 0.7
    assert moved["melt"] > 1.3


def test_the_command_writes_the_rows_with_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "salt.extxyz"
    words = ("data", "molten-salt", "--out", out, "--supercell", 1, "--seed", 1)
    assert run_cli(*words, "--n", 2, "--jobs", 2) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 2 rows of up to 8 atoms; ")
    expected = [salt_structure(row, **SMALL, seed=1) for row in range(2)]
    assert out.read_text() == "".join(map(extxyz_text, expected))
    for atoms, own in zip(ase.io.read(out, ":"), expected, strict=True):
        assert atoms.info == own.info
        assert atoms.get_potential_energy() == own.get_potential_energy()
        for name in ("forces", "stress"):
            np.testing.assert_array_equal(atoms.calc.results[name], own.calc.results[name])
    assert expected[0].get_potential_energy() != salt_structure(0, **SMALL).get_potential_energy()
    assert run_cli(*words) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"supercell": 0}, "supercell = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"jobs": 0}, "jobs = 0"),
        ({"name": "salt.json"}, "extxyz"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    settings = {"n": 1, **settings}
    with pytest.raises(ConfigError, match=message) as error:
        build_molten_salt(tmp_path / str(settings.pop("name", "salt.extxyz")), **settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# --- the committed sample


def test_sample_is_what_its_record_says() -> None:
    record = yaml.safe_load((RECORD / "record.yaml").read_text())
    (sample,) = record["samples"]
    path = RECORD / sample["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sample["sha256"]
    rows = ase.io.read(path, ":")
    assert [atoms.info["kind"] for atoms in rows] == [*KINDS, *KINDS]
    assert len(rows) == sample["rows"]
    for atoms in rows:
        again = atoms.copy()
        again.calc = TosiFumi()
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=SUM_TOLERANCE)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=FORCE_TOLERANCE)
    # without dynamics, which other processors continue differently
    np.testing.assert_allclose(salt_structure(4).positions, rows[4].positions, atol=FORCE_TOLERANCE)
