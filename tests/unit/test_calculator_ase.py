"""LRCalculator in ASE's hands: its own tests of calculators, optimisers, NEB, thermochemistry, sums of calculators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.filters import FrechetCellFilter
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.phonons import Phonons
from ase.test.calculator import test_fd as of_ase
from ase.thermochemistry import CrystalThermo, HarmonicThermo
from ase.vibrations import Vibrations

from lrpot import LRCalculator
from lrpot.charges import CHARGES
from lrpot.ensemble import Ensemble
from lrpot.interfaces.ase import UndefinedProperty
from lrpot.potential import Potential
from tests.helpers_cli import rock_salt, small_model

SUM_TOLERANCE = 1e-12  # relative, of shares that add up to an energy
SINGLE_TOLERANCE = 1e-5  # relative, of the same in float32
FREQUENCY_TOLERANCE = 1e-3  # relative, of frequencies by two kinds of differences
CURVATURE_STEP = 0.01  # A

# salt of ions that leave their places, and its molecule, were not in the training set of the model
outside = pytest.mark.filterwarnings("ignore::lrpot.coverage.OutsideTrainingWarning")


@pytest.fixture
def atoms() -> Atoms:
    return rock_salt()


@pytest.fixture
def salt() -> LRCalculator:
    return LRCalculator("nacl.pt")


# --- what ASE ships to test calculators with


@pytest.mark.parametrize("check", [of_ase.test_fd, of_ase.test_analytical_forces, of_ase.test_analytical_stress])
def test_ases_own_tests(check: Callable[[Atoms], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_ase, "EMT", lambda: LRCalculator("nacl.pt"))
    atoms = rock_salt(1, rattle=0.3)
    check(atoms)


def test_what_was_computed_is_not_required_and_survives_a_file(atoms: Atoms, tmp_path: Path) -> None:
    atoms.calc = LRCalculator(small_model())
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    assert not atoms.calc.calculation_required(atoms, ["energy", "forces", "stress", "charges"])
    assert atoms.calc.calculation_required(atoms, ["energies"])
    for name in ("a.traj", "a.extxyz"):
        ase.io.write(tmp_path / name, atoms)
        again = ase.io.read(tmp_path / name)
        assert again.get_potential_energy() == pytest.approx(energy, abs=1e-7)
        np.testing.assert_allclose(again.get_forces(), forces, atol=1e-7)
        np.testing.assert_allclose(again.get_stress(), stress, atol=1e-7)
        np.testing.assert_allclose(again.get_charges(), atoms.get_charges(), atol=1e-7)


# --- properties


@pytest.mark.parametrize("charges", sorted(CHARGES))
@pytest.mark.parametrize("total", [0.0, 1.0])
@pytest.mark.parametrize("pbc", [[True] * 3, [True, True, False], [False] * 3], ids=str)
def test_energies_of_atoms_add_up(
    charges: str, total: float, pbc: list[bool], atoms: Atoms, make_potential: Callable[..., Potential]
) -> None:
    atoms.pbc = pbc
    atoms.info["charge"] = total
    atoms.calc = LRCalculator(make_potential("coulomb", charges=charges, channels=2))
    energies = atoms.get_potential_energies()
    assert energies.shape == (16,)
    # charges of the surroundings leave the slab charged, whose integral is that of a difference of terms in 1/k^2
    tolerance = 10.0 * SUM_TOLERANCE if charges == "environment" and sum(pbc) == 2 else SUM_TOLERANCE
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=tolerance)
    assert abs(atoms.calc.results["energy_long"]) > 0.1
    assert np.ptp(energies) > 1e-3


def test_energies_follow_their_atoms(atoms: Atoms) -> None:
    order = np.random.default_rng(0).permutation(len(atoms))
    calculator = LRCalculator(small_model())
    atoms.calc = calculator
    energies = atoms.get_potential_energies()
    turned = atoms[order]
    turned.calc = calculator
    np.testing.assert_allclose(turned.get_potential_energies(), energies[order], rtol=1e-10)


def test_energies_in_single_precision_and_of_an_ensemble(atoms: Atoms) -> None:
    members = [small_model(seed=seed) for seed in range(2)]
    atoms.calc = LRCalculator(Ensemble(members))
    energies = atoms.get_potential_energies()
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=SUM_TOLERANCE)
    atoms.calc = LRCalculator(Ensemble(members), dtype="float32")
    np.testing.assert_allclose(atoms.get_potential_energies(), energies, rtol=SINGLE_TOLERANCE)


def test_dipole_of_molecules_and_slabs(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model())
    atoms.pbc = False
    dipole = atoms.get_dipole_moment()
    np.testing.assert_allclose(dipole, atoms.get_charges() @ atoms.positions, rtol=1e-10)
    assert np.abs(dipole).min() > 1e-3
    atoms.pbc = [True, False, True]
    normal = np.cross(atoms.cell[2], atoms.cell[0])
    normal /= np.linalg.norm(normal)
    np.testing.assert_allclose(atoms.get_dipole_moment(), (dipole @ normal) * normal, rtol=1e-10)


@pytest.mark.parametrize("pbc", [[True] * 3, [True, False, False]], ids=str)
def test_what_is_not_defined_is_told_in_ases_way(pbc: list[bool], atoms: Atoms) -> None:
    atoms.pbc = pbc
    atoms.calc = LRCalculator(small_model("none" if pbc != [True] * 3 else "coulomb"))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stresses()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    atoms.calc = LRCalculator(small_model())
    with pytest.raises(UndefinedProperty, match="the dipole of what repeats depends on the choice") as error:
        atoms.get_dipole_moment()
    assert "\n" not in str(error.value)


def test_a_model_without_charges_has_none(atoms: Atoms) -> None:
    atoms.calc = LRCalculator(small_model("none"))
    atoms.pbc = False
    for ask in (atoms.get_charges, atoms.get_dipole_moment):
        with pytest.raises(PropertyNotImplementedError):
            ask()
    assert "charges" not in atoms.calc.implemented_properties
    assert "charges" in LRCalculator.implemented_properties


def test_stress_along_with_forces(atoms: Atoms) -> None:
    """MD at constant pressure asks for forces, then for the stress; forces are the same to the last bit."""
    together, apart = LRCalculator(small_model(), stress=True), LRCalculator(small_model())
    calls = []
    forward = together.model.forward
    together.model.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    results = []
    for calculator in (together, apart):
        atoms.calc = calculator
        results.append((atoms.get_forces(), atoms.get_stress()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert len(calls) == 1
    atoms.pbc = False
    atoms.calc = together
    assert np.isfinite(atoms.get_forces()).all()


def test_cell_and_info_are_left_as_they_are(atoms: Atoms) -> None:
    atoms.info["charge"] = 0.5
    before = atoms.copy()
    atoms.calc = LRCalculator(small_model())
    atoms.calc.calculate(atoms, ["energy", "energies", "stress"])
    assert atoms == before
    assert atoms.info == before.info
    np.testing.assert_array_equal(atoms.positions, before.positions)
    assert torch.is_grad_enabled()


# --- at work


@pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
def test_optimisers_find_the_crystal(optimizer: type, salt: LRCalculator) -> None:
    """Sheared and rattled, it comes back to the rock salt it was: no force, no stress, right angles."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    ideal = atoms.cell.angles()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + np.diag([0.02, 0.0], 1)), scale_atoms=True)
    atoms.rattle(0.03, seed=0)
    atoms.calc = salt
    assert optimizer(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-3
    np.testing.assert_allclose(atoms.cell.angles(), ideal, atol=0.2)
    np.testing.assert_allclose(atoms.cell.lengths(), atoms.cell.lengths()[0], rtol=2e-3)


@outside
def test_nudged_elastic_band(salt: LRCalculator) -> None:
    """A band whose images share a calculator and one whose images have their own feel the same forces."""
    start = bulk("NaCl", "rocksalt", a=5.62, cubic=True)
    del start[0]
    end = start.copy()
    end.positions[3] += [1.4, 1.4, 0.0]
    forces = []
    for shared in (True, False):
        images = [start.copy() for _ in range(4)] + [end.copy()]
        for image in images:
            image.calc = salt if shared else LRCalculator(salt.model)
        band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=shared)
        band.interpolate(mic=True)
        forces.append(band.get_forces())
        barrier = max(image.get_potential_energy() for image in images) - images[0].get_potential_energy()
        assert barrier > 0.1
    np.testing.assert_array_equal(forces[0], forces[1])


@outside
def test_vibrations_and_their_free_energy(salt: LRCalculator, tmp_path: Path) -> None:
    molecule = Atoms("NaCl", [[0.0, 0.0, 0.0], [0.0, 0.0, 2.4]], cell=np.eye(3) * 12.0)
    molecule.calc = salt
    BFGS(molecule, logfile=None).run(fmax=1e-4)
    vibrations = Vibrations(molecule, name=str(tmp_path / "vib"))
    vibrations.run()
    frequency = vibrations.get_energies()[-1].real  # eV

    def at(shift: float) -> float:
        stretched = molecule.copy()
        stretched.calc = salt
        stretched.set_distance(0, 1, molecule.get_distance(0, 1) + shift, fix=0.5)
        return stretched.get_potential_energy()

    stiffness = (at(CURVATURE_STEP) - 2.0 * at(0.0) + at(-CURVATURE_STEP)) / CURVATURE_STEP**2
    reduced = np.prod(molecule.get_masses()) / molecule.get_masses().sum()
    assert frequency == pytest.approx(
        units._hbar * 1e10 / np.sqrt(units._e * units._amu) * np.sqrt(stiffness / reduced), rel=FREQUENCY_TOLERANCE
    )
    free = HarmonicThermo([frequency]).get_helmholtz_energy(300.0, verbose=False)
    kt = units.kB * 300.0
    assert free == pytest.approx(frequency / 2.0 + kt * np.log1p(-np.exp(-frequency / kt)), rel=1e-9)


def test_phonons_and_thermodynamics_of_a_crystal(salt: LRCalculator, tmp_path: Path) -> None:
    """Far above its Debye temperature a crystal holds 3 kT per atom."""
    crystal = bulk("NaCl", "rocksalt", a=5.62)
    phonons = Phonons(crystal, salt, supercell=(2, 2, 2), delta=0.02, name=str(tmp_path / "phonons"))
    phonons.run()
    phonons.read(acoustic=True)
    density = phonons.get_dos(kpts=(4, 4, 4)).sample_grid(npts=200, width=1e-3)
    thermo = CrystalThermo(
        phonon_energies=density.get_energies()[1:],
        phonon_DOS=density.get_weights()[1:],
        potentialenergy=0.0,
        formula_units=1,
    )
    kt = units.kB * 2000.0
    assert thermo.get_internal_energy(2000.0, verbose=False) == pytest.approx(6.0 * kt, rel=0.02)


def test_sum_with_another_calculator(salt: LRCalculator, atoms: Atoms) -> None:
    pair = LennardJones(sigma=2.5, epsilon=0.02, rc=5.0)
    found = []
    for calculator in (salt, pair, SumCalculator([salt, pair])):
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for one, other, both in zip(*found, strict=True):
        np.testing.assert_allclose(np.add(one, other), both, rtol=1e-12, atol=1e-12)
