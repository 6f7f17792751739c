"""The short-range part of the Tosi-Fumi potential of NaCl, as an ASE calculator.

The Ewald data set of the first example holds Coulomb energies of point charges and nothing else, and opposite point
charges fall into each other. With this repulsion beside a model of the Coulomb part, the sum is the classical
potential of Fumi and Tosi, whose ions carry +1 and -1 e too.

    E = sum_{i<j} b_ij exp((s_ij - r) / rho) - c_ij / r^6 - d_ij / r^8

Source: Fumi and Tosi, J. Phys. Chem. Solids 25, 31 and 45 (1964).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from vesin import NeighborList

RHO = 0.317  # A
# by number of Cl in the pair: b (eV), s (A), c (eV A^6), d (eV A^8)
PAIRS = np.array(
    [
        (0.2637, 2.340, 1.0486, 0.4993),
        (0.2110, 2.755, 6.9906, 8.6758),
        (0.1582, 3.170, 72.4022, 145.4285),
    ]
)


class BornMayer(Calculator):
    """Energy (eV) and forces (eV/A) of Na and Cl at distances up to the cutoff, beyond which all is zero."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, cutoff: float = 9.0, **kwargs: Any) -> None:
        """cutoff: A; the pair energies go to zero over its last fifth, with two continuous derivatives."""
        super().__init__(**kwargs)
        self.cutoff = cutoff
        self.neighbours = NeighborList(cutoff=cutoff, full_list=True)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        i, j, r, vectors = self.neighbours.compute(
            points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijdD"
        )
        is_cl = (atoms.numbers == 17).astype(int)
        b, s, c, d = PAIRS[is_cl[i.astype(int)] + is_cl[j.astype(int)]].T
        repulsion = b * np.exp((s - r) / RHO)
        energy = repulsion - c / r**6 - d / r**8
        slope = -repulsion / RHO + 6 * c / r**7 + 8 * d / r**9
        t = np.clip((r / self.cutoff - 0.8) / 0.2, 0.0, 1.0)
        taper = 1 - t**3 * (10 - 15 * t + 6 * t**2)
        slope = slope * taper - energy * 30 * t**2 * (1 - t) ** 2 / (0.2 * self.cutoff)
        forces = np.zeros_like(atoms.positions)
        np.add.at(forces, i.astype(int), (slope / r)[:, None] * vectors)
        # each pair is listed from both sides
        self.results = {"energy": 0.5 * float((energy * taper).sum()), "forces": forces}
