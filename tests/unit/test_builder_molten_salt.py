"""The molten-salt builder: what its rows are, that they are the same again, its command and its refusals."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from lrpot.data.builders import molten_salt
from lrpot.data.builders.molten_salt import KINDS, build_molten_salt, salt_structure
from lrpot.data.builders.tosi_fumi import TosiFumi
from lrpot.errors import ConfigError
from tests.helpers_cli import run_cli

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


def test_a_file_keeps_every_digit_and_does_not_depend_on_the_processes(tmp_path: Path) -> None:
    one = build_molten_salt(tmp_path / "one.extxyz", n=2, **SMALL)
    two = build_molten_salt(tmp_path / "two.extxyz", n=2, jobs=2, **SMALL)
    assert one.read_bytes() == two.read_bytes()
    for row, atoms in enumerate(ase.io.read(one, ":")):
        expected = salt_structure(row, **SMALL)
        assert atoms.info == expected.info
        assert atoms.get_potential_energy() == expected.get_potential_energy()
        for name in ("forces", "stress"):
            np.testing.assert_array_equal(atoms.calc.results[name], expected.calc.results[name])
    other = salt_structure(0, **SMALL, seed=1)
    assert other.get_potential_energy() != salt_structure(0, **SMALL).get_potential_energy()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "salt.extxyz"
    assert run_cli("data", "molten-salt", "--out", out, "--n", 1, "--supercell", 1) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 rows of up to 8 atoms; ")
    assert len(ase.io.read(out, ":")) == 1
    assert run_cli("data", "molten-salt", "--out", out, "--n", 1) == 1
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
