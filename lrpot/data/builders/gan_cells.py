"""Cells of perfect GaN: one for each phase, and what is known of them at the level of the labels.

xTB in tblite samples the Brillouin zone at Gamma alone. The energy of a crystal then depends on the shape of its
supercell, by tens of meV/atom in cells of such size (`datasets/gan/README.md`), which no local model can learn. So a
phase has a single cell here, the most compact one of its size: without a metal's bands, the error falls quickly with
the distance between an atom and its nearest image. What is left of it in the perfect crystal is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell


@dataclass(frozen=True)
class Lattice:
    """A crystal of GaN.

    Attributes:
        a: A, edge of the cubic cell of zincblende, or of the hexagonal basis of wurtzite. c: A. u: internal parameter.
    """

    a: float
    c: float | None = None
    u: float | None = None


@dataclass(frozen=True)
class Phase:
    """A phase in its cell.

    Attributes:
        ase_name: the structure as `ase.build.bulk` names it.
        vectors: of the cell, in those of the primitive cell; rows.
        voids: in fractions of the primitive cell, where the lattice has room for an interstitial.
        lattice: at the lowest energy that xTB has in this cell.
        error: eV/atom, what the energy of the perfect crystal in this cell exceeds that in a large one by.
    """

    ase_name: str
    vectors: tuple[tuple[int, int, int], ...]
    voids: tuple[tuple[float, float, float], ...]
    lattice: Lattice
    error: float

    def crystal(self, lattice: Lattice | None = None) -> Atoms:
        """The perfect crystal, with another lattice if one is given."""
        return make_supercell(self._primitive(lattice), np.array(self.vectors))

    def void_positions(self, lattice: Lattice | None = None) -> np.ndarray:
        """(n_voids, 3), A, in that crystal."""
        cell = self._primitive(lattice).cell
        voids = Atoms(["X"] * len(self.voids), scaled_positions=self.voids, cell=cell, pbc=True)
        return make_supercell(voids, np.array(self.vectors)).positions

    def _primitive(self, lattice: Lattice | None) -> Atoms:
        lattice = lattice or self.lattice
        return bulk("GaN", self.ase_name, a=lattice.a, c=lattice.c, u=lattice.u)


# Lattices and errors: `python datasets/gan/lattice.py`, which relaxes a, c and u in these cells.
PHASES = {
    "wurtzite": Phase(
        ase_name="wurtzite",
        vectors=((2, 2, -1), (0, -2, -1), (-3, 0, 0)),
        voids=((2 / 3, 1 / 3, 0.29), (2 / 3, 1 / 3, 0.79)),  # octahedral, in the channel along c
        lattice=Lattice(a=3.1227, c=5.1642, u=0.3718),
        error=0.0159,
    ),
    "zincblende": Phase(
        ase_name="zincblende",
        vectors=((-3, 2, 0), (0, 3, -1), (-1, 0, -2)),
        voids=((0.5, 0.5, 0.5), (0.75, 0.75, 0.75)),  # tetrahedral, between four N and between four Ga
        lattice=Lattice(a=4.4313),
        error=-0.0044,
    ),
}
