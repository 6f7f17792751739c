"""Crystals of NaCl with the model that comes with lrpot, and what is no crystal."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT

from lrpot.interfaces.ase import LRCalculator
from lrpot.workflows.relax import relax

FORCE_LIMIT, STRESS_LIMIT = 1e-5, 1e-4  # eV/A, GPa


@pytest.fixture(scope="package")
def calculator() -> LRCalculator:
    return LRCalculator("nacl.pt")


@pytest.fixture(scope="package")
def relaxed_salt(calculator: LRCalculator) -> Atoms:
    """The primitive cell of rock salt at rest."""
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.calc = calculator
    run = relax(atoms, cell="full", fmax=FORCE_LIMIT, smax=STRESS_LIMIT, symmetry=True)
    assert run.converged
    return run.atoms


@pytest.fixture
def salt(relaxed_salt: Atoms) -> Atoms:
    """The same, for one test."""
    atoms = relaxed_salt.copy()
    atoms.calc = relaxed_salt.calc
    return atoms


@pytest.fixture
def slab() -> Atoms:
    """Three layers of copper, periodic in two directions."""
    atoms = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    atoms.calc = EMT()
    return atoms
