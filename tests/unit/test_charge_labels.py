"""Labels of the charges: read, checked, put into batches; where a dipole is defined."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.charges.polarisation import dipoles
from lrpot.data.labels import charge_labels_of, open_directions
from lrpot.data.readers import read_rows, to_structure, to_structures
from lrpot.errors import DataError
from lrpot.interfaces.ase import LRCalculator
from lrpot.prediction import predict
from lrpot.structure import CHARGE_LABELS, collate, collate_with_gaps
from tests.helpers_cli import rock_salt, small_model

CUTOFF = 4.0
TEXT = 1e-7  # a text file keeps 8 decimals


def molecule(**results: object) -> Atoms:
    atoms = Atoms("NaClNa", [[0.0, 0.0, 0.0], [2.4, 0.0, 0.3], [3.5, 2.2, 0.0]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, **results)
    return atoms


def test_labels_come_back_from_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    charges, dipole, born = rng.normal(size=3), rng.normal(size=3), rng.normal(size=(3, 3, 3))
    born -= born.mean(axis=0)
    atoms = molecule(charges=charges, dipole=dipole)
    atoms.arrays["born_charges"] = born.reshape(3, 9)
    ase.io.write(tmp_path / "a.extxyz", [atoms, molecule()], format="extxyz")
    first, second = to_structures(read_rows(tmp_path / "a.extxyz"), CUTOFF)
    np.testing.assert_allclose(first.charges.numpy(), charges, atol=TEXT)
    np.testing.assert_allclose(first.dipole[0].numpy(), dipole, atol=TEXT)
    np.testing.assert_allclose(first.born_charges.numpy(), born, atol=TEXT)
    assert {first[name].dtype for name in CHARGE_LABELS} == {torch.float64}
    assert not set(CHARGE_LABELS) & set(second.keys())


def test_arrays_and_info_hold_labels_too_and_initial_charges_are_none() -> None:
    atoms = molecule()
    atoms.arrays["initial_charges"] = np.ones(3)
    assert charge_labels_of(atoms, 0.0) == {}
    atoms.arrays["charges"], atoms.info["dipole"] = np.arange(3.0), [1.0, 2.0, 3.0]
    found = charge_labels_of(atoms, 0.0)
    assert found["charges"].tolist() == [0.0, 1.0, 2.0]
    assert found["dipole"].tolist() == [1.0, 2.0, 3.0]
    atoms.calc = SinglePointCalculator(atoms, charges=np.zeros(3))
    assert charge_labels_of(atoms, 0.0)["charges"].tolist() == [0.0, 0.0, 0.0]  # what was computed wins


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_born_charges_are_screened_and_obey_the_sum_rule(total: float) -> None:
    atoms = molecule()
    born = np.random.default_rng(1).normal(size=(3, 3, 3))
    atoms.arrays["born_charges"] = born
    plain = charge_labels_of(atoms, total)["born_charges"]
    np.testing.assert_allclose(plain.sum(axis=0), total * np.eye(3), atol=1e-14)
    np.testing.assert_allclose(np.ptp(born - plain, axis=0), 0.0, atol=1e-14)  # the same from every atom
    atoms.info["dielectric"] = np.diag([2.0, 3.0, 7.0])
    np.testing.assert_allclose(charge_labels_of(atoms, total)["born_charges"], plain / 2.0, atol=1e-14)


@pytest.mark.parametrize(
    ("place", "name", "value", "message"),
    [
        ("arrays", "charges", np.zeros((3, 2)), r"charges has shape \(3, 2\), expected \(3,\)"),
        ("arrays", "charges", np.array([0.0, np.nan, 0.0]), "charges of atom 1 holds something that is not a finite"),
        ("arrays", "charges", np.array(["a", "b", "c"]), "charges = .* is not a number; correct it or remove the row"),
        ("info", "dipole", [1.0, 2.0], r"dipole has shape \(2,\), expected \(3,\)"),
        ("info", "dipole", [1.0, np.inf, 2.0], "dipole holds something that is not a finite number"),
        ("info", "dipole", "large", "dipole = 'large' is not a number"),
        ("arrays", "born_charges", np.zeros((3, 8)), r"born_charges has shape \(3, 8\), expected \(3, 3, 3\)"),
        ("arrays", "born_charges", np.full((3, 9), np.nan), "born_charges of atom 0 holds something"),
    ],
)
def test_bad_labels_are_refused_in_one_line(place: str, name: str, value: object, message: str) -> None:
    atoms = molecule()
    getattr(atoms, place)[name] = value
    with pytest.raises(DataError, match=message) as e:
        to_structure(atoms, CUTOFF)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("dielectric", "message"),
    [(np.eye(3) * 0.5, "0.5, less than vacuum"), (np.eye(2), "expected"), ("high", "is not a number")],
)
def test_an_impossible_dielectric_constant_is_refused(dielectric: object, message: str) -> None:
    atoms = molecule()
    atoms.arrays["born_charges"] = np.zeros((3, 9))
    atoms.info["dielectric"] = dielectric
    with pytest.raises(DataError, match=message):
        to_structure(atoms, CUTOFF)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [molecule(), molecule(dipole=np.array([1.0, np.nan, 0.0]))]
    ase.io.write(tmp_path / "a.extxyz", rows, format="extxyz")
    with pytest.raises(DataError, match=r"a\.extxyz, row 1: dipole holds"):
        to_structures(read_rows(tmp_path / "a.extxyz"), CUTOFF)


def test_bad_labels_do_not_stop_a_prediction(tmp_path: Path) -> None:
    atoms = molecule()
    atoms.arrays["born_charges"] = np.zeros((3, 8))
    atoms.info["dipole"] = [0.0, np.nan, 0.0]
    ase.io.write(tmp_path / "a.extxyz", atoms, format="extxyz")
    (found,) = predict(small_model(), tmp_path / "a.extxyz")
    atoms.calc = LRCalculator(small_model())
    assert atoms.get_potential_energy() == pytest.approx(found.energy, abs=1e-6)


# --- where a dipole is defined


def test_directions_of_a_dipole() -> None:
    cell = np.array([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.4, 0.5, 9.0]])
    np.testing.assert_array_equal(open_directions(np.zeros((3, 3)), np.array([False] * 3)), np.eye(3))
    slab = open_directions(cell, np.array([True, True, False]))
    np.testing.assert_allclose(slab, [[0.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3], atol=1e-15)
    tilted = open_directions(cell, np.array([True, False, True]))[0]
    np.testing.assert_allclose(cell[[0, 2]] @ tilted, 0.0, atol=1e-14)
    assert np.linalg.norm(tilted) == pytest.approx(1.0)
    for pbc in ([True] * 3, [True, False, False]):
        assert not open_directions(cell, np.array(pbc)).any()


def test_the_dipole_of_a_slab_is_known_along_its_normal_only() -> None:
    atoms = rock_salt(1)
    atoms.info["dipole"] = [1.0, 2.0, 3.0]
    assert to_structure(atoms, CUTOFF).dipole.isnan().all()
    atoms.pbc = [True, True, False]
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    found = to_structure(atoms, CUTOFF).dipole[0].numpy()
    assert found[0] == pytest.approx(normal @ [1.0, 2.0, 3.0] / np.linalg.norm(normal))
    assert np.isnan(found[1:]).all()


def test_a_charged_molecule_has_no_dipole() -> None:
    atoms = molecule(dipole=np.ones(3))
    atoms.info["charge"] = -1
    assert to_structure(atoms, CUTOFF).dipole.isnan().all()


def test_dipoles_of_charges() -> None:
    """A pair, wherever it is; a slab with layers of opposite charge, wrapped or not; nothing for a crystal."""
    pair = Atoms("NaCl", [[7.0, 1.0, 2.0], [9.0, 1.0, 2.5]])
    layers = Atoms("NaCl", [[0.0, 0.0, 0.0], [4.0, -3.0, 1.5]], cell=[[4, 0, 0], [1, 4, 0], [0, 0, 9]], pbc=[1, 1, 0])
    crystal = rock_salt(1)
    batch = collate([to_structure(atoms, CUTOFF) for atoms in (pair, layers, crystal)])
    found = dipoles(batch, torch.tensor([0.5, -0.5] * 3, dtype=torch.float64))
    expected = [[-1.0, 0.0, -0.25], [-0.75, 0.0, 0.0], [0.0] * 3]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_dipoles_do_not_depend_on_the_origin_where_charges_do_not_add_up() -> None:
    q = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64)
    one, other = molecule(), molecule()
    other.positions += [3.0, -5.0, 0.7]
    first, second = (dipoles(to_structure(atoms, CUTOFF), q) for atoms in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-13)


# --- batches


def test_batches_with_and_without_gaps() -> None:
    with_all = molecule(charges=np.arange(3.0), dipole=np.ones(3))
    with_all.arrays["born_charges"] = np.zeros((3, 9))
    structures = [to_structure(atoms, CUTOFF) for atoms in (with_all, molecule(charges=np.ones(3)))]
    whole = collate(structures)
    assert whole.charges.tolist() == [0.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    assert not {"dipole", "born_charges"} & set(whole.keys())
    gaps = collate_with_gaps(structures)
    assert gaps.dipole.shape == (2, 3)
    assert gaps.dipole[0].tolist() == [1.0, 1.0, 1.0]
    assert gaps.dipole[1].isnan().all()
    assert gaps.born_charges.shape == (6, 3, 3)
    assert not gaps.born_charges[:3].isnan().any()
    assert gaps.born_charges[3:].isnan().all()
    assert "dipole" not in structures[1]
