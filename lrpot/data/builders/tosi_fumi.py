"""The potential of Fumi and Tosi for NaCl, as an ASE calculator: rigid ions of charge +1 and -1 e.

    E = E_Coulomb + sum_{i<j} b_ij exp((s_ij - r) / rho) - c_ij / r^6 - d_ij / r^8

Source: Fumi and Tosi, J. Phys. Chem. Solids 25, 31 and 45 (1964).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from vesin import NeighborList

from lrpot.data.builders.ewald import screened, smooth_part, splitting
from lrpot.errors import UnknownElementError

CHARGES = {11: 1.0, 17: -1.0}  # e, by atomic number
RHO = 0.317  # A
# by number of Cl in the pair: b (eV), s (A), c (eV A^6), d (eV A^8)
PAIRS = np.array(
    [
        (0.2637, 2.340, 1.0486, 0.4993),
        (0.2110, 2.755, 6.9906, 8.6758),
        (0.1582, 3.170, 72.4022, 145.4285),
    ]
)
TAPERED = 0.2  # the part of the cutoff over which the pair energies go to zero


class TosiFumi(Calculator):
    """Energy (eV), forces (eV/A) and stress (eV/A^3) of Na and Cl in a cell that is periodic in all directions.

    A cell with a net charge has the uniform background that neutralises it.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, cutoff: float = 9.0, *, coulomb: bool = True, **kwargs: Any) -> None:
        """
        Args:
            cutoff: A; the repulsion and dispersion of pairs go to zero over its last fifth, with two continuous
                derivatives. The Coulomb energy does not depend on it.
            coulomb: False leaves the Coulomb energy to somebody else.
        """
        super().__init__(**kwargs)
        self.cutoff = cutoff
        self.coulomb = coulomb
        self.neighbours = NeighborList(cutoff=cutoff, full_list=False)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`.

        Raises:
            UnknownElementError: names an atom that is neither Na nor Cl.
        """
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        charges = _charges(atoms)
        cell = atoms.cell.array
        i, j, r, vectors = self.neighbours.compute(points=atoms.positions, box=cell, periodic=True, quantities="ijdD")
        i, j = i.astype(int), j.astype(int)
        is_cl = (atoms.numbers == 17).astype(int)
        pair, slope = _short_range(r, is_cl[i] + is_cl[j], self.cutoff)
        energy, forces, by_strain = 0.0, np.zeros((len(atoms), 3)), np.zeros((3, 3))
        if self.coulomb:
            alpha, k_cutoff = splitting(self.cutoff)
            energy, forces, by_strain = smooth_part(atoms.positions, cell, charges, alpha, k_cutoff)
            unit, unit_slope = screened(r, alpha)
            pair = pair + charges[i] * charges[j] * unit
            slope = slope + charges[i] * charges[j] * unit_slope
        pulls = (slope / r)[:, None] * vectors  # vectors point from i to j
        for axis in range(3):
            forces[:, axis] += np.bincount(i, pulls[:, axis], len(atoms)) - np.bincount(j, pulls[:, axis], len(atoms))
        energy += float(pair.sum())
        by_strain = by_strain + vectors.T @ pulls
        stress = full_3x3_to_voigt_6_stress(by_strain / atoms.get_volume())
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, "stress": stress}


def _charges(atoms: Atoms) -> np.ndarray:
    """(n_atoms,), e."""
    for index, (number, symbol) in enumerate(zip(atoms.numbers, atoms.symbols, strict=True)):
        if number not in CHARGES:
            raise UnknownElementError(f"atom {index} is {symbol}; the Tosi-Fumi potential of NaCl knows Na and Cl only")
    return np.array([CHARGES[number] for number in atoms.numbers])


def _short_range(r: np.ndarray, n_cl: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Repulsion and dispersion, (n_pairs,), eV, and their derivative by r, eV/A.

    Args:
        r: (n_pairs,), A. n_cl: (n_pairs,), how many of the two are Cl. cutoff: A.
    """
    b, s, c, d = PAIRS[n_cl].T
    repulsion = b * np.exp((s - r) / RHO)
    energy = repulsion - c / r**6 - d / r**8
    slope = -repulsion / RHO + 6.0 * c / r**7 + 8.0 * d / r**9
    t = np.clip((r / cutoff - 1.0 + TAPERED) / TAPERED, 0.0, 1.0)
    taper = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)
    taper_slope = -30.0 * t**2 * (1.0 - t) ** 2 / (TAPERED * cutoff)
    return energy * taper, slope * taper + energy * taper_slope
