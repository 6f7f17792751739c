"""Files of crystals become structures; every row that cannot is reported."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.data.readers import labels_of, read_rows, to_structure, to_structures, total_charge
from lrpot.errors import ConfigError, DataError, StructureError, UnknownElementError
from tests.helpers_cli import rock_salt

CUTOFF = 4.0
EXACT = 1e-7  # A; a text file keeps 8 decimals


def labelled(**results: object) -> Atoms:
    atoms = rock_salt(1)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def good(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        labelled(energy=float(n), forces=rng.normal(size=(2, 3)), stress=np.arange(6.0) * 1e-3 + n) for n in range(4)
    ]
    ase.io.write(tmp_path / "good.extxyz", rows, format="extxyz")
    return tmp_path / "good.extxyz"


# --- reading


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.extxyz", "extxyz"), ("a.traj", "traj"), ("a.cif", "cif"), ("POSCAR", "vasp"), ("a.db", "db")],
)
def test_formats(tmp_path: Path, name: str, format: str) -> None:
    atoms = rock_salt()
    ase.io.write(tmp_path / name, atoms, format=format)
    (row,) = read_rows(tmp_path / name)
    assert row.number == 0
    assert row.file == tmp_path / name
    assert sorted(row.atoms.symbols) == sorted(atoms.symbols)
    assert row.atoms.pbc.all()
    assert row.atoms.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-5)


def test_compressed_and_oddly_named_files(tmp_path: Path, good: Path) -> None:
    with open(good, "rb") as plain, gzip.open(tmp_path / "a.extxyz.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    for name in ("nacl@300K.extxyz", "rows [1].extxyz", "a b.extxyz", "größe.extxyz"):
        shutil.copy(good, tmp_path / name)
        assert len(read_rows(tmp_path / name)) == 4
    assert len(read_rows(tmp_path / "a.extxyz.gz")) == 4


def test_rows_are_numbered_and_progress_is_told(good: Path) -> None:
    seen: list[int] = []
    rows = read_rows(str(good), progress=seen.append)
    assert [row.number for row in rows] == [0, 1, 2, 3]
    assert seen == [1, 2, 3, 4]
    assert str(rows[2]) == f"{good}, row 2"


def test_a_row_that_cannot_be_read_is_named(good: Path) -> None:
    good.write_text(good.read_text().replace("Na ", "Qq ", 3).replace("Qq ", "Na ", 2))
    with pytest.raises(DataError, match=r"good\.extxyz: row 2 cannot be read \(KeyError: unknown name 'Qq'\)"):
        read_rows(good)


# --- labels


def test_labels_come_back_as_written(good: Path) -> None:
    structure = to_structure(read_rows(good)[2].atoms, CUTOFF)
    rng = np.random.default_rng(0)
    forces = [rng.normal(size=(2, 3)) for _ in range(3)][2]
    assert structure.energy.tolist() == [2.0]
    np.testing.assert_allclose(structure.forces.numpy(), forces, atol=EXACT)
    xx, yy, zz, yz, xz, xy = np.arange(6.0) * 1e-3 + 2
    np.testing.assert_allclose(structure.stress[0].numpy(), [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], atol=EXACT)
    assert {structure[name].dtype for name in ("energy", "forces", "stress")} == {torch.float64}


def test_no_labels_are_no_error() -> None:
    structure = to_structure(rock_salt(1), CUTOFF)
    assert not {"energy", "forces", "stress"} & set(structure.keys())
    assert labels_of(rock_salt(1)) == {}


@pytest.mark.parametrize("shape", [(6,), (3, 3), (9,)])
def test_stress_in_any_of_its_shapes(shape: tuple[int, ...]) -> None:
    full = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    atoms = labelled(energy=0.0)
    atoms.calc.results["stress"] = np.arange(1.0, 7.0) if shape == (6,) else full.reshape(shape)
    np.testing.assert_array_equal(to_structure(atoms, CUTOFF).stress[0].numpy(), full)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"energy": np.nan}, "energy is not a finite number; correct it or remove the row"),
        ({"energy": np.inf}, "energy is not a finite number"),
        ({"energy": "low"}, "energy = 'low' is not a number"),
        ({"energy": [1.0, 2.0]}, r"energy has shape \(2,\), expected \(\)"),
        ({"forces": np.zeros((3, 3))}, r"forces has shape \(3, 3\), expected \(2, 3\)"),
        ({"forces": [[0, 0, 0], [0, np.nan, 0]]}, "the force on atom 1 is not a finite number"),
        ({"stress": np.zeros(5)}, r"stress has shape \(5,\), expected \(6,\)"),
        ({"stress": [np.nan, 0, 0, 0, 0, 0]}, "stress is not a finite number"),
    ],
)
def test_labels_that_are_no_labels(results: dict[str, object], message: str) -> None:
    atoms = labelled(energy=0.0)
    atoms.calc.results |= results
    with pytest.raises(DataError, match=message):
        to_structure(atoms, CUTOFF)


def test_stress_of_what_is_not_periodic() -> None:
    atoms = labelled(energy=0.0, stress=np.zeros(6))
    atoms.pbc = [True, True, False]
    with pytest.raises(DataError, match=r"has a stress, but pbc = \[True, True, False\]; .* remove it"):
        to_structure(atoms, CUTOFF)


def test_total_charge() -> None:
    atoms = rock_salt(1)
    assert total_charge(atoms) == 0.0
    for value in (-1, "2", np.array([0.5])):
        atoms.info["charge"] = value
        assert to_structure(atoms, CUTOFF).total_charge.tolist() == [float(np.squeeze(value))]
    for value in ("plus", np.nan, [1.0, 2.0], None):
        atoms.info["charge"] = value
        with pytest.raises(DataError, match=r"^charge = .*; (give the total charge in e|correct it)"):
            total_charge(atoms)


# --- geometry and elements


def test_structures_do_not_share_memory_with_the_atoms() -> None:
    atoms = rock_salt(1)
    structure = to_structure(atoms, CUTOFF)
    structure.positions += 1.0
    structure.cell += 1.0
    np.testing.assert_array_equal(atoms.positions, rock_salt(1).positions)
    np.testing.assert_array_equal(atoms.cell.array, rock_salt(1).cell.array)


def test_elements_that_a_model_does_not_know() -> None:
    atoms = rock_salt(1)
    atoms.symbols[1] = "K"
    message = r"element K \(atom 1\) is not known to the model, which was fitted to Na, Cl; use a model that covers K"
    with pytest.raises(UnknownElementError, match=message):
        to_structure(atoms, CUTOFF, elements=[17, 11])
    atoms.numbers[1] = 0
    with pytest.raises(UnknownElementError, match=r"atom 1 is of no element \(number 0\); name its element"):
        to_structure(atoms, CUTOFF)


@pytest.mark.parametrize(
    ("occupants", "refused"),
    [({"Na": 1.0}, False), ({"Na": 0.9999}, False), ({"Na": 0.5}, True), ({"Na": 0.5, "K": 0.5}, True)],
)
def test_partial_occupancy(occupants: dict[str, float], refused: bool) -> None:
    atoms = rock_salt(1)
    atoms.info["occupancy"] = {"0": {"Cl": 1.0}, "1": occupants}
    atoms.set_array("spacegroup_kinds", np.array([1, 0]))
    if refused:
        with pytest.raises(StructureError, match=r"the site of atom 0 is occupied in part \(Na 0\.5"):
            to_structure(atoms, CUTOFF)
    else:
        to_structure(atoms, CUTOFF)


def test_occupancies_of_other_origin_do_not_matter() -> None:
    atoms = rock_salt(1)
    for value in (0.5, {"0": {"Na": 0.5}}, "full"):
        atoms.info["occupancy"] = value  # of some other program: nothing says which atoms are meant
        to_structure(atoms, CUTOFF)


# --- many rows


def spoil(path: Path, numbers: list[int], n: int) -> list[Atoms]:
    rows = [labelled(energy=np.nan if number in numbers else 1.0) for number in range(n)]
    ase.io.write(path, rows, format="extxyz")
    return rows


def test_all_bad_rows_are_found_before_the_first_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "many.extxyz"
    spoil(path, [2, *range(5, 18)], 20)
    with pytest.raises(DataError) as error:
        to_structures(read_rows(path), CUTOFF)
    assert str(error.value) == (
        f"{path}, row 2: energy is not a finite number; correct it or remove the row "
        "(13 more bad rows: 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...)"
    )


def test_skipped_rows_are_told_and_counted_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "some.extxyz"
    spoil(path, [0, 3], 5)
    told: list[str] = []
    structures = to_structures(read_rows(path), CUTOFF, skip_bad=told.append)
    assert [int(s.row) for s in structures] == [1, 2, 4]
    assert told == [
        f"{path}, row 0: energy is not a finite number; correct it or remove the row",
        f"{path}, row 3: energy is not a finite number; correct it or remove the row",
        f"{path}: left out 2 of 5 rows",
    ]


def test_skipping_every_row_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none.extxyz"
    spoil(path, [0, 1], 2)
    with pytest.raises(DataError, match="every row is bad; row 0: energy is not a finite number; correct it"):
        to_structures(read_rows(path), CUTOFF, skip_bad=lambda _: None)


def test_nothing_is_told_if_no_row_is_bad(good: Path) -> None:
    told: list[str] = []
    assert len(to_structures(read_rows(good), CUTOFF, skip_bad=told.append)) == 4
    assert told == []


def test_required_labels_and_further_checks(good: Path) -> None:
    rows = read_rows(good)
    del rows[1].atoms.calc.results["forces"]
    with pytest.raises(DataError, match=r"row 1: has no forces; add it to the file or remove the row$"):
        to_structures(rows, CUTOFF, require=("energy", "forces"))

    def check(structure: object) -> None:
        raise ConfigError("does not suit; choose another")

    with pytest.raises(DataError, match=r"row 0: does not suit; choose another \(3 more bad rows: 1, 2, 3\)$"):
        to_structures(rows, CUTOFF, check=check)


@pytest.mark.parametrize("kind", [StructureError, UnknownElementError])
def test_the_kind_of_error_is_kept(tmp_path: Path, kind: type[Exception]) -> None:
    atoms = rock_salt(1)
    if kind is StructureError:
        atoms.positions[1] = atoms.positions[0] + 0.01
    ase.io.write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(kind, match=r"a\.extxyz, row 0: "):
        to_structures(read_rows(tmp_path / "a.extxyz"), CUTOFF, elements=[11] if kind is not StructureError else None)


def test_progress_of_many_rows(good: Path) -> None:
    seen: list[int] = []
    to_structures(read_rows(good), CUTOFF, progress=seen.append)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"1\n\n" + bytes(range(256)) * 40)[:-20]])
def test_a_packed_file_that_is_cut_short_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.extxyz.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.extxyz\.gz: cannot be unpacked \(.*\); get it anew") as error:
        read_rows(tmp_path / "rows.extxyz.gz")
    assert "\n" not in str(error.value)
