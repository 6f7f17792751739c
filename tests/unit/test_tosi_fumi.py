"""The potential of Fumi and Tosi and its Ewald sum, beside pymatgen's sum, plain sums over images and differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from lrpot.data.builders import nacl
from lrpot.data.builders.tosi_fumi import PAIRS, RHO, TosiFumi
from lrpot.errors import UnknownElementError

EWALD_TOLERANCE = 1e-6  # eV, eV/A: exp(-DEPTH^2) is 1e-7
DIFFERENCE_TOLERANCE = 1e-6  # eV/A, eV/A^3, of central differences


def sheared(defect: str = "none") -> Atoms:
    """Rattled rock salt in a triclinic cell, with unwrapped atoms."""
    atoms = nacl._rattled(3, nacl.Recipe(supercell=2, rattle=0.1, seed=0, defect=defect))
    shear = np.array([[1.02, 0.05, 0.0], [0.0, 0.98, -0.03], [0.04, 0.0, 1.01]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.positions[0] += atoms.cell[1]
    return atoms


def calculated(atoms: Atoms, **settings: object) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = TosiFumi(**settings)
    return atoms


@pytest.mark.parametrize("defect", ["none", "vacancy"])
@pytest.mark.parametrize("cutoff", [7.0, 9.0])
def test_the_coulomb_part_is_pymatgens_ewald_sum(defect: str, cutoff: float) -> None:
    atoms = sheared(defect)
    energy, _, forces = nacl._ewald(atoms)
    whole, rest = calculated(atoms, cutoff=cutoff), calculated(atoms, cutoff=cutoff, coulomb=False)
    assert whole.get_potential_energy() - rest.get_potential_energy() == pytest.approx(
        energy, abs=len(atoms) * EWALD_TOLERANCE
    )
    np.testing.assert_allclose(whole.get_forces() - rest.get_forces(), forces, atol=EWALD_TOLERANCE)


def test_the_rest_is_the_sum_over_all_images() -> None:
    atoms = sheared()
    cutoff = 6.0
    images = np.array(list(itertools.product(range(-3, 4), repeat=3))) @ atoms.cell.array
    expected = 0.0
    wrapped = atoms.get_positions(wrap=True)
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        b, s, c, d = PAIRS[(atoms.numbers[[i, j]] == 17).sum()]
        r = np.linalg.norm(wrapped[j] + images - wrapped[i], axis=1)
        r = r[(r > 0) & (r < cutoff)]
        t = np.maximum((r - 0.8 * cutoff) / (0.2 * cutoff), 0.0)
        taper = 1 - 10 * t**3 + 15 * t**4 - 6 * t**5
        expected += 0.5 * ((b * np.exp((s - r) / RHO) - c / r**6 - d / r**8) * taper).sum()
    assert calculated(atoms, cutoff=cutoff, coulomb=False).get_potential_energy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("defect", ["none", "vacancy"])
def test_forces_and_stress_are_derivatives_of_the_energy(defect: str) -> None:
    atoms = calculated(sheared(defect))
    moved = [0, 5, 14]
    forces = calculate_numerical_forces(atoms, eps=1e-4, iatoms=moved)
    np.testing.assert_allclose(atoms.get_forces()[moved], forces, atol=DIFFERENCE_TOLERANCE)
    stress = calculate_numerical_stress(atoms, eps=1e-4, voigt=True)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=DIFFERENCE_TOLERANCE)
    assert np.abs(stress).min() > 100 * DIFFERENCE_TOLERANCE


def test_the_crystal_is_that_of_the_literature() -> None:
    """Its authors fitted it to rock salt: 5.64 A at room temperature, and a lattice energy of 8.16 eV (787 kJ/mol)."""
    atoms = calculated(bulk("NaCl", "rocksalt", a=5.5))
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=50)
    assert (4 * atoms.get_volume()) ** (1 / 3) == pytest.approx(5.64, abs=0.02)
    assert atoms.get_potential_energy() == pytest.approx(-8.16, rel=0.02)


def test_another_element_is_refused() -> None:
    with pytest.raises(UnknownElementError, match=r"atom 1 is Br; .* Na and Cl only"):
        calculated(bulk("NaBr", "rocksalt", a=6.0)).get_potential_energy()
