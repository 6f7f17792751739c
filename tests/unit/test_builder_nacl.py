"""The NaCl builder: physics against independent numbers, digits of the file, refusals, the command."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from typer.testing import CliRunner

from lrpot.cli.data import app
from lrpot.data.builders import nacl
from lrpot.data.builders.extxyz import extxyz_text
from lrpot.data.builders.nacl import atoms_per_structure, build_nacl, nacl_structure
from lrpot.errors import ConfigError, OutputError

RECORD = Path(__file__).parents[2] / "datasets" / "nacl"

MADELUNG = 1.747564594633182  # of rock salt, referred to the distance of nearest neighbours
COULOMB = 14.399645478  # eV A
SUM_TOLERANCE = 1e-10  # relative, of an Ewald sum converged to 12 digits
STEP = 1e-3  # A
DIFFERENCE_TOLERANCE = 1e-6  # eV/A, of a central difference: STEP^2 / 6 times the third derivative


def small(tmp_path: Path, name: str = "nacl.extxyz", **settings: object) -> Path:
    """A quick build: 16 atoms a row."""
    return build_nacl(tmp_path / name, **{"n": 5, "supercell": 2, **settings})


def same_atoms(one: Atoms, other: Atoms, tolerance: float) -> None:
    assert one.get_chemical_symbols() == other.get_chemical_symbols()
    assert one.pbc.all()
    assert other.pbc.all()
    for key in ("positions", "forces"):
        a, b = (getattr(atoms, f"get_{key}")() for atoms in (one, other))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.cell.array, other.cell.array, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.get_potential_energy(), other.get_potential_energy(), rtol=tolerance)
    assert one.info.keys() == other.info.keys()
    assert one.info["defect"] == other.info["defect"]
    for key in one.info.keys() - {"defect"}:
        np.testing.assert_allclose(one.info[key], other.info[key], rtol=tolerance, err_msg=key)


# --- physics


@pytest.mark.parametrize("supercell", [1, 3])
def test_perfect_lattice_has_the_madelung_energy(supercell: int) -> None:
    atoms = nacl_structure(0, supercell=supercell, rattle=0)
    per_pair = atoms.get_potential_energy() / (len(atoms) / 2)
    assert per_pair == pytest.approx(-MADELUNG * COULOMB / (nacl.LATTICE_CONSTANT / 2), rel=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), 0, atol=1e-10)


@pytest.mark.parametrize("defect", ["none", "vacancy"])
def test_only_the_reciprocal_part_depends_on_eta(defect: str) -> None:
    atoms = nacl_structure(1, defect=defect)
    energy, reciprocal, forces = nacl._ewald(atoms, eta=2 * nacl.ETA)
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=SUM_TOLERANCE)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)
    assert abs(reciprocal - atoms.info["energy_reciprocal"]) > 0.1


@pytest.mark.parametrize("defect", ["none", "vacancy"])
def test_forces_are_the_slope_of_the_energy(defect: str) -> None:
    atoms = nacl_structure(2, supercell=2, defect=defect)
    for atom, axis in [(0, 0), (3, 1), (7, 2), (14, 0)]:
        energies = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * STEP
            energies.append(nacl._ewald(moved)[0])
        slope = (energies[1] - energies[0]) / (2 * STEP)
        assert atoms.get_forces()[atom, axis] == pytest.approx(-slope, abs=DIFFERENCE_TOLERANCE)


def test_displacements_are_gaussian_with_the_asked_width() -> None:
    recipe = nacl.Recipe(supercell=6, rattle=0.1, seed=0, defect="none")
    perfect = nacl._rattled(0, nacl.Recipe(supercell=6, rattle=0.0, seed=0, defect="none"))
    moves = np.concatenate([nacl._rattled(row, recipe).positions - perfect.positions for row in range(20)])
    # 20 * 432 numbers for each axis: the standard error of the width is 0.1 / sqrt(2 * 8640) = 0.8e-3 A
    np.testing.assert_allclose(moves.std(axis=0), 0.1, atol=4e-3)
    np.testing.assert_allclose(moves.mean(axis=0), 0, atol=5e-3)
    assert (moves**4).mean() / (moves**2).mean() ** 2 == pytest.approx(3, abs=0.15)


def test_vacancy_is_the_same_crystal_without_one_ion() -> None:
    seen = set()
    for row in range(8):
        whole = nacl_structure(row, supercell=2)
        holed = nacl_structure(row, supercell=2, defect="vacancy")
        assert len(holed) == atoms_per_structure(2, "vacancy") == len(whole) - 1
        kept = {tuple(position) for position in holed.positions}
        (missing,) = [atom for atom in whole if tuple(atom.position) not in kept]
        assert holed.info["net_charge"] == -nacl.CHARGES[missing.symbol]
        seen.add(missing.symbol)
    assert seen == {"Na", "Cl"}


# --- rows


def test_a_row_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    first = small(tmp_path, "a.extxyz", n=5).read_bytes()
    assert small(tmp_path, "jobs.extxyz", n=5, jobs=2).read_bytes() == first
    assert small(tmp_path, "longer.extxyz", n=8).read_bytes().startswith(first)
    rows = ase.io.read(tmp_path / "a.extxyz", ":")
    assert [atoms.info["row"] for atoms in rows] == list(range(5))
    energies = {atoms.get_potential_energy() for atoms in rows}
    energies |= {nacl_structure(row, supercell=2, seed=1).get_potential_energy() for row in range(5)}
    assert len(energies) == 10


@pytest.mark.parametrize("defect", ["none", "vacancy"])
def test_file_keeps_every_digit(tmp_path: Path, defect: str) -> None:
    atoms = nacl_structure(0, defect=defect)
    (tmp_path / "row.extxyz").write_text(extxyz_text(atoms))
    again = ase.io.read(tmp_path / "row.extxyz")
    same_atoms(again, atoms, tolerance=0)
    # the file's numbers are enough to find the energy again
    assert nacl._ewald(again)[0] == pytest.approx(again.get_potential_energy(), rel=SUM_TOLERANCE)


def test_info_of_a_row_is_as_documented() -> None:
    atoms = nacl_structure(4, supercell=1, rattle=0.05, seed=7, defect="vacancy")
    asked = {"row": 4, "supercell": 1, "rattle": 0.05, "seed": 7, "defect": "vacancy", "eta": nacl.ETA}
    assert atoms.info.keys() - asked.keys() == {"net_charge", "energy_reciprocal"}
    assert asked.items() <= atoms.info.items()


# --- the committed sample


def test_sample_is_what_its_record_says() -> None:
    record = yaml.safe_load((RECORD / "record.yaml").read_text())
    settings = record["settings"]
    assert settings["lattice_constant"] == nacl.LATTICE_CONSTANT
    assert settings["eta"] == nacl.ETA
    assert settings["acc_factor"] == nacl.ACC_FACTOR
    assert {path.name for path in RECORD.glob("*.extxyz")} == {s["file"] for s in record["samples"]}
    for sample in record["samples"]:
        path = RECORD / sample["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sample["sha256"]
        rows = ase.io.read(path, ":")
        assert len(rows) == sample["rows"]
        for atoms in rows:
            assert len(atoms) == sample["atoms"]
            assert atoms.info["rattle"] == settings["rattle"]


def test_sample_is_made_by_the_command_of_its_record(tmp_path: Path) -> None:
    record = yaml.safe_load((RECORD / "record.yaml").read_text())
    for sample in record["samples"]:
        program, group, *words = sample["command"].split()
        assert (program, group) == ("lrpot", "data")
        words[words.index("--out") + 1] = str(tmp_path / sample["file"])
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0
        made, kept = (ase.io.read(folder / sample["file"], ":") for folder in (tmp_path, RECORD))
        assert len(made) == len(kept)
        for one, other in zip(made, kept, strict=True):
            same_atoms(one, other, SUM_TOLERANCE)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": -3}, "n = -3"),
        ({"supercell": 0}, "supercell = 0"),
        ({"rattle": -0.1}, "rattle = -0.1 A"),
        ({"rattle": 3.0}, "may overlap"),
        ({"rattle": float("nan")}, "rattle = nan"),
        ({"seed": -1}, "seed = -1"),
        ({"jobs": 0}, "jobs = 0"),
        ({"defect": "interstitial"}, "one of none, vacancy"),
        ({"name": "nacl.json"}, "extxyz"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        small(tmp_path, **settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "nacl.extxyz"
    out.write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        small(tmp_path)
    assert out.read_text() == "precious"
    small(tmp_path, overwrite=True)
    assert len(ase.io.read(out, ":")) == 5
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another"):
        small(tmp_path / "file")


# --- command


def test_command_makes_the_same_file_and_prints_one_line(tmp_path: Path) -> None:
    out = tmp_path / "command.extxyz"
    words = ["nacl", "--out", str(out), "--n", "5", "--supercell", "2", "--defect", "vacancy", "--jobs", "2"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith(f"{out}: 5 rows of 15 atoms; ")
    assert result.stdout.endswith(" structures/s\n")
    assert out.read_bytes() == small(tmp_path, "call.extxyz", defect="vacancy").read_bytes()


def test_help_names_units_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lrpot.cli.data import app; app(['nacl', '--help'], standalone_mode=False);"
        "print([name for name in ('torch', 'ase', 'pymatgen', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "displacement, A." in run.stdout
