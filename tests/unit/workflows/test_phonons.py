"""Phonons: against a Hessian by hand, a frozen long wave and the formula of Lyddane, Sachs and Teller's splitting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import phonopy
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import _amu, _e

from lrpot.born import born_charges
from lrpot.ensemble import Ensemble
from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.interfaces.ase import LRCalculator
from lrpot.units import COULOMB_CONSTANT
from lrpot.workflows.nac import LongWaves, long_waves_of_file, long_waves_of_model
from lrpot.workflows.phonons import Phonons, fewest_repeats, phonons, supercell_of
from tests.helpers_cli import one_error_line, run_cli, small_model

FACES = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
CUBE = np.concatenate([FACES, (FACES + np.array([0.5, 0.0, 0.0])) % 1])  # scaled; one element, then the other

# THz of the root of 1 eV/A^2/u.
THZ = np.sqrt(_e / _amu) * 1e10 / (2.0 * np.pi) / 1e12

ZERO = 1e-3  # THz, of acoustic modes at Gamma
STEP = 0.01  # A
ANHARMONIC = 2e-3  # THz, of central differences at that step
INTERPOLATION = 0.01  # relative: short-range force constants beyond 54 atoms


@pytest.fixture(scope="module")
def small(relaxed_salt: Atoms) -> Phonons:
    """In 16 atoms."""
    return phonons(relaxed_salt, supercell=(2, 2, 2), distance=STEP)


@pytest.fixture(scope="module")
def split(relaxed_salt: Atoms) -> Phonons:
    """In 54 atoms, split by the charges of the model."""
    found = phonons(relaxed_salt, supercell=(3, 3, 3), distance=STEP)
    found.set_long_waves(long_waves_of_model(relaxed_salt.calc.model, *supercell_of(found.phonopy)))
    found.run(mesh=20.0, points=11)
    return found


def hessian_frequencies(atoms: Atoms) -> np.ndarray:
    """(3 N,), THz, ascending: all modes of a cell, by central differences of forces."""
    n = len(atoms)
    hessian = np.empty((n, 3, n, 3))
    for atom in range(n):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[atom, axis] += sign * STEP
                forces.append(moved.get_forces())
            hessian[atom, axis] = (forces[1] - forces[0]) / (2 * STEP)
    mass = np.repeat(atoms.get_masses(), 3)
    dynamical = hessian.reshape(3 * n, 3 * n) / np.sqrt(np.outer(mass, mass))
    squares = np.linalg.eigvalsh((dynamical + dynamical.T) / 2)
    return THZ * np.sign(squares) * np.sqrt(np.abs(squares))


def longitudinal(atoms: Atoms, repeats: int) -> tuple[float, float]:
    """THz: LA and LO of the wave as long as so many cells along the third reciprocal vector, from its forces alone.

    Rock salt: along that direction, a threefold axis, longitudinal waves are by themselves, and sites are centres.
    """
    cell = atoms.repeat((1, 1, repeats))
    q = 2 * np.pi * atoms.cell.reciprocal()[2] / repeats
    direction = q / np.linalg.norm(q)
    phase = np.cos(cell.positions @ q), np.sin(cell.positions @ q)
    kinds = [cell.numbers == z for z in atoms.numbers]
    matrix = np.empty((2, 2), dtype=complex)
    for column, moving in enumerate(kinds):
        # the cosine wave is the mean of the waves of q and -q; forces have a part in phase, and one that is not
        amplitude = np.where(moving, phase[0], 0.0)
        forces = []
        for sign in (1, -1):
            moved = cell.copy()
            moved.calc = atoms.calc
            moved.positions += sign * STEP * amplitude[:, None] * direction
            forces.append(moved.get_forces() @ direction)
        response = -(forces[0] - forces[1]) / (2 * STEP)
        for row, kind in enumerate(kinds):
            matrix[row, column] = 2.0 / repeats * np.sum(response[kind] * (phase[0] - 1j * phase[1])[kind])
    mass = atoms.get_masses()
    squares = np.linalg.eigvalsh(matrix / np.sqrt(np.outer(mass, mass)))
    low, high = THZ * np.sqrt(squares)
    return float(low), float(high)


def test_all_modes_of_a_supercell_are_those_of_its_hessian(small: Phonons, relaxed_salt: Atoms) -> None:
    """The eight waves that fit into the supercell, of six modes each, are its 48 modes."""
    supercell, _ = supercell_of(small.phonopy)
    supercell.calc = relaxed_salt.calc
    waves = [(i / 2, j / 2, k / 2) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    found = np.sort(small.phonopy.run_qpoints(waves).frequencies.ravel())
    np.testing.assert_allclose(found, hessian_frequencies(supercell), atol=ANHARMONIC)


def test_a_left_handed_cell_is_the_same_crystal() -> None:
    """Two primitive cells as one, of exchanged vectors; repeats differ and must stay with the vectors."""
    copper = bulk("Cu", "fcc", a=3.6)
    pair = copper * (2, 1, 1)
    pair.set_cell(pair.cell.array[[1, 0, 2]])
    assert pair.cell.handedness == -1
    runs = []
    for atoms, repeats in ((copper, (2, 2, 2)), (pair, (2, 1, 2))):
        atoms.calc = EMT()
        runs.append(phonons(atoms, supercell=repeats, distance=STEP))
    found = runs[1]
    np.testing.assert_array_equal(found.phonopy.supercell_matrix, np.diag((2, 1, 2)))
    wave = np.array([0.2, -0.3, 0.5])  # 1/A
    frequencies = [run.phonopy.run_qpoints([run.phonopy.primitive.cell @ wave]).frequencies[0] for run in runs]
    np.testing.assert_allclose(frequencies[1], frequencies[0], atol=ZERO)
    assert frequencies[0].min() > 1.0
    supercell, _ = supercell_of(found.phonopy)
    np.testing.assert_allclose(-supercell.cell.array, pair.cell.array * [[2], [1], [2]], atol=1e-9)
    # every atom is where it was, up to vectors of the cell
    moved = pair.cell.scaled_positions(found.phonopy.unitcell.positions - pair.positions)
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-9)


def test_acoustic_modes_are_at_rest_at_gamma(split: Phonons) -> None:
    assert np.abs(split.at_gamma()[:3]).max() < ZERO
    assert np.abs(split.toward_gamma((1, 0, 0))[:3]).max() < ZERO
    assert split.lowest > -ZERO


def test_splitting_is_that_of_point_charges(split: Phonons, relaxed_salt: Atoms) -> None:
    """w_LO^2 - w_TO^2 = 4 pi k_e Z^2 / (mu V) of a cubic crystal of two ions."""
    charges = born_charges(relaxed_salt.calc.model, supercell_of(split.phonopy)[0], sum_rule=True).tensors
    z = charges[0, 0, 0]
    assert abs(z) == pytest.approx(1.0, abs=0.01)  # the labels of the model are of ions of one charge
    reduced_mass = 1.0 / (1.0 / relaxed_salt.get_masses()).sum()
    expected = 4 * np.pi * COULOMB_CONSTANT * z**2 / (reduced_mass * relaxed_salt.get_volume()) * THZ**2
    to, lo = split.at_gamma()[-1], split.toward_gamma((1, 0, 0))[-1]
    assert lo**2 - to**2 == pytest.approx(expected, rel=1e-4)
    # a cubic crystal does the same in every direction, and one of them is told
    np.testing.assert_allclose(split.toward_gamma((1, 2, -3)), split.toward_gamma((1, 0, 0)), atol=1e-3)
    assert list(split.splittings()) == [(1, 0, 0)]


def test_long_waves_are_those_that_the_model_itself_has(split: Phonons, relaxed_salt: Atoms) -> None:
    """A wave of eight cells, which does not fit into the supercell; without the long-range term LO is far off."""
    la, lo = longitudinal(relaxed_salt, 8)
    q = [(0, 0, 1 / 8)]
    with_term = split.phonopy.run_qpoints(q).frequencies[0]
    assert with_term[-1] == pytest.approx(lo, rel=INTERPOLATION)
    assert with_term[2] == pytest.approx(la, rel=2 * INTERPOLATION)
    without = phonons(relaxed_salt, supercell=(3, 3, 3), distance=STEP)
    assert abs(without.phonopy.run_qpoints(q).frequencies[0][-1] / lo - 1) > 10 * INTERPOLATION


def test_elements_and_masses_of_the_atoms_count(relaxed_salt: Atoms) -> None:
    heavy = relaxed_salt.copy()
    heavy.calc = relaxed_salt.calc
    heavy.set_masses(4 * relaxed_salt.get_masses())
    found, usual = (phonons(atoms, supercell=(1, 1, 1)).at_gamma()[-1] for atoms in (heavy, relaxed_salt))
    assert found == pytest.approx(usual / 2, rel=1e-6)


def test_a_supercell_has_the_charge_of_all_its_cells() -> None:
    seen = []

    class Recorder(EMT):
        def calculate(self, atoms: Atoms | None = None, *args: object) -> None:
            seen.append(atoms.info.get("charge"))
            super().calculate(atoms, *args)

    for charge in (0.5, None):
        atoms = bulk("Cu", "fcc", a=3.6)
        atoms.calc = Recorder()
        if charge is not None:
            atoms.info["charge"] = charge
        phonons(atoms, supercell=(2, 2, 2))
    assert seen == [4.0, 4.0, None, None]


def test_an_unstable_crystal_has_imaginary_modes() -> None:
    atoms = bulk("Cu", "sc", a=2.4)
    atoms.calc = EMT()
    found = phonons(atoms, supercell=(3, 3, 3))
    found.run(mesh=20.0, points=11)
    assert found.lowest < -0.1
    assert found.record()["long_waves"] is None


def test_the_choice_of_the_cell_changes_nothing(small: Phonons, relaxed_salt: Atoms) -> None:
    """A cube of 8 atoms has the waves that fit into it as any other supercell has."""
    cube = Atoms("Na4Cl4", scaled_positions=CUBE, cell=relaxed_salt.cell.lengths() * 2**0.5, pbc=True)
    cube.calc = relaxed_salt.calc
    found = phonons(cube, supercell=(1, 1, 1))
    assert len(found.phonopy.primitive) == 2
    # X fits into both
    expected = small.phonopy.run_qpoints([(0.5, 0.5, 0.0)]).frequencies[0]
    np.testing.assert_allclose(found.phonopy.run_qpoints([(0.5, 0.5, 0.0)]).frequencies[0], expected, atol=ZERO)


def test_repeats_make_a_supercell_wide_enough() -> None:
    atoms = bulk("NaCl", "rocksalt", a=6.0)
    assert fewest_repeats(atoms, 12.0) == [4, 4, 4]  # planes are 6 / sqrt(3) A apart
    cube = bulk("NaCl", "rocksalt", a=6.0, cubic=True)
    assert fewest_repeats(cube, 12.0) == [2, 2, 2]
    assert fewest_repeats(cube, 12.1) == [3, 3, 3]


def test_files_are_read_by_phonopy(relaxed_salt: Atoms, tmp_path: Path) -> None:
    split = phonons(relaxed_salt, supercell=(2, 2, 2))
    split.set_long_waves(long_waves_of_model(relaxed_salt.calc.model, *supercell_of(split.phonopy)))
    split.run(mesh=20.0, points=11)
    files = split.write(tmp_path)
    assert sorted(file.name for file in files) == sorted(file.name for file in tmp_path.iterdir())
    again = phonopy.load(tmp_path / "phonopy_params.yaml", log_level=0)
    expected = split.toward_gamma((1, 0, 0))
    np.testing.assert_allclose(
        again.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0, 0]).frequencies[0], expected, atol=1e-6
    )
    pieces = phonopy.load(
        unitcell=split.phonopy.unitcell,
        supercell_matrix=split.phonopy.supercell_matrix,
        force_constants_filename=tmp_path / "FORCE_CONSTANTS",
        born_filename=tmp_path / "BORN",
        log_level=0,
    )
    # BORN has eight decimals, and phonopy's own k_e
    found = pieces.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 0, 0]).frequencies[0]
    np.testing.assert_allclose(found[3:], expected[3:], rtol=1e-5)
    record = json.loads((tmp_path / "phonons.json").read_text())
    assert record["gamma_THz"][-1] == pytest.approx(split.at_gamma()[-1])
    assert record["long_waves"]["toward_gamma_THz"]["1 0 0"][-1] == pytest.approx(expected[-1])
    split.set_long_waves(None)
    split.run(mesh=20.0, points=11)
    assert tmp_path / "BORN" not in split.write(tmp_path)
    assert not (tmp_path / "BORN").exists()
    # a mode of 1 THz has 2.07 meV, and the mean frequency of this crystal is 4 to 6 THz
    assert 6 * 4 * 2.07e-3 < record["zero_point_energy_eV"] < 6 * 6 * 2.07e-3


# --- where the splitting comes from


@pytest.mark.parametrize(("form", "message"), [("none", "no charges"), ("free", "no Coulomb tail of one charge")])
def test_models_without_a_tail(form: str, message: str, relaxed_salt: Atoms) -> None:
    with pytest.raises(ConfigError, match=message):
        long_waves_of_model(small_model(form), relaxed_salt, [0, 1])


def test_an_ensemble_has_the_mean_of_its_charges(relaxed_salt: Atoms) -> None:
    models = [small_model(seed=seed) for seed in (0, 1)]
    models[1].long.charges.set_values({11: 0.6, 17: -0.6})
    found = long_waves_of_model(Ensemble(models), relaxed_salt, [0, 1])
    np.testing.assert_allclose(found.born, np.array([0.7, -0.7])[:, None, None] * np.eye(3), atol=1e-12)


def test_charges_and_dielectric_constant_of_a_file(small: Phonons, tmp_path: Path) -> None:
    """Of a table, and of phonopy's BORN: the same, and the sum rule holds."""
    primitive = small.phonopy.primitive
    z, epsilon = 1.09, 2.56
    table = {
        "symbols": primitive.symbols,
        "born_charges": [((z + 0.01) * np.eye(3)).tolist(), (-z * np.eye(3)).tolist()],
        "dielectric": (epsilon * np.eye(3)).tolist(),
    }
    (tmp_path / "born.json").write_text(json.dumps(table))
    tensor = "{0} 0 0 0 {0} 0 0 0 {0}".format
    lines = ["default", tensor(epsilon), tensor(z + 0.01), tensor(-z)]
    (tmp_path / "BORN").write_text("\n".join(lines))
    for name in ("born.json", "BORN"):
        found = long_waves_of_file(tmp_path / name, primitive)
        np.testing.assert_allclose(found.born, np.array([z + 0.005, -z - 0.005])[:, None, None] * np.eye(3), atol=1e-12)
        np.testing.assert_allclose(found.dielectric, epsilon * np.eye(3))
    # only the charge on sqrt(eps) counts in a cubic crystal
    screened = LongWaves(found.born / np.sqrt(epsilon), np.eye(3), "by hand")
    frequencies = []
    for waves in (found, screened):
        small.set_long_waves(waves)
        frequencies.append(small.toward_gamma((1, 0, 0)))
    small.set_long_waves(None)
    np.testing.assert_allclose(frequencies[0], frequencies[1], atol=ZERO)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("BORN", None, "no such file of Born charges"),
        ("BORN", "default\n1 2 3\n", "is no BORN file of this crystal"),
        ("BORN", "default\n2 0 0 0 2 0 0 0 2\n1 0 0 0 1 0 0 0 x\n", "is no BORN file of this crystal"),
        ("BORN", "default\n0 0 0 0 0 0 0 0 0\n1 0 0 0 1 0 0 0 1\n-1 0 0 0 -1 0 0 0 -1\n", "dielectric tensor is"),
        ("BORN", "default\n2 0 0 0 2 0 0 0 2\n1 0 0 0 1 0 0 0 1\n1 0 0 0 1 0 0 0 1\n", "add up to 2 e in place of"),
        ("b.json", '{"symbols": ["Na"], "born_charges": [[1]], "dielectric": 1}', r"must be \(N, 3, 3\)"),
        (
            "b.json",
            json.dumps({"symbols": ["Na"], "born_charges": [np.eye(3).tolist()], "dielectric": np.eye(3).tolist()}),
            "has 1 Born charges of Na; this crystal's primitive cell has Na Cl, in this order",
        ),
    ],
)
def test_files_of_something_else(name: str, content: str | None, message: str, small: Phonons, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        long_waves_of_file(tmp_path / name, small.phonopy.primitive)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": 0.0}, "distance = 0 A: must be positive"),
        ({"supercell": (2, 0, 2)}, r"supercell = \(2, 0, 2\): give three numbers of 1 or more"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str, salt: Atoms) -> None:
    with pytest.raises(ConfigError, match=message):
        phonons(salt, **settings)  # type: ignore[arg-type]


def test_a_crystal_must_be_one_and_at_rest(calculator: LRCalculator, slab: Atoms) -> None:
    with pytest.raises(StructureError, match="so it has no bands"):
        phonons(slab)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = calculator
    with pytest.raises(WorkflowError, match=r"forces up to .* eV/A act on the undisplaced atoms .*relax the crystal"):
        phonons(atoms, supercell=(1, 1, 1))


# --- lrpot phonons


def test_command(tmp_path: Path, salt: Atoms, split: Phonons, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "salt.vasp", salt)
    out = tmp_path / "out"
    words = ["phonons", "nacl.pt", tmp_path / "salt.vasp", "--supercell", 3, 3, 3, "--mesh", 20, "--out", out]
    assert run_cli(*words, "--relax", "none") == 0
    text = capsys.readouterr().out
    assert f"{split.at_gamma()[-1]:.4f}" in text
    assert f"{split.toward_gamma((1, 0, 0))[-1]:.4f}" in text
    na, cl = (tensor.trace() / 3 for tensor in split.long_waves.born)
    told = f"LO-TO splitting by the charges of the model: Na {na:+.3f}, Cl {cl:+.3f} e, dielectric constant 1.000"
    assert told in text
    assert (out / "phonons.png").read_bytes().startswith(b"\x89PNG")
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, ["out: already holds files; add --overwrite"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--born", "nowhere"), "nowhere: no such file of Born charges"),
        (("--mesh", "0"), "--mesh 0: must be positive"),
        (("--supercell", "1", "1", "0"), "give three numbers of 1 or more"),
    ],
)
def test_command_refusals(
    words: Sequence[str],
    message: str,
    tmp_path: Path,
    salt: Atoms,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("salt.vasp", salt)
    assert run_cli("phonons", "nacl.pt", "salt.vasp", "--supercell", 1, 1, 1, "--relax", "none", *words) == 1
    one_error_line(capsys.readouterr().err, [message])
    assert not Path("phonons").exists() or not list(Path("phonons").iterdir())
