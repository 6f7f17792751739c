"""Point defects in a crystal of GaN.

========================  =====================================================================================
class                     defects of a structure
========================  =====================================================================================
`none`
`vacancy`                 V_Ga or V_N
`antisite`                Ga_N or N_Ga, or both
`interstitial`            Ga_i or N_i: in a void of the lattice, or as the half of a split pair on a lattice site
`frenkel`                 V_Ga and Ga_i, or V_N and N_i
`schottky`                V_Ga and V_N
`off_stoichiometric`      two to four of all of these, such that there is not one N for each Ga
========================  =====================================================================================
"""

from __future__ import annotations

import numpy as np
from ase import Atom, Atoms
from ase.geometry import get_distances

CLASSES = ("none", "vacancy", "antisite", "interstitial", "frenkel", "schottky", "off_stoichiometric")

# A. An interstitial nearer than this to a vacancy falls into it; nearer to another interstitial, or to an end of a
# split pair, both push each other out of their places.
FROM_VACANCY, FROM_INTERSTITIAL = 3.0, 2.0

# A, between the two halves of a split pair: about the Ga-Ga bond of the metal, and the N-N bond of such pairs.
SPLIT = {"Ga": 2.3, "N": 1.4}


def with_defects(
    crystal: Atoms, voids: np.ndarray, kind: str, random: np.random.Generator
) -> tuple[Atoms, tuple[str, ...]]:
    """A copy of the crystal with defects of a class, at places of which none has had time to relax.

    Args:
        crystal: perfect; at least 16 atoms, so that there is room for any class.
        voids: (n_voids, 3), A, where an interstitial can stand.
        kind: one of `CLASSES`.
        random: decides species and places.
    Returns:
        The atoms, and the defects in the notation of Kroeger and Vink without charges, such as V_Ga, N_Ga, Ga_i.
    """
    while True:
        defects = _Defects(crystal, voids, random)
        try:
            for name in _drawn(kind, random):
                defects.add(name)
        except _NoRoom:
            continue
        made = defects.atoms()
        if kind != "off_stoichiometric" or 2 * (made.symbols == "N").sum() != len(made):
            return made, tuple(defects.names)


def _drawn(kind: str, random: np.random.Generator) -> list[str]:
    """Names of defects of a class; vacancies first, for interstitials keep away from them."""
    species = str(random.choice(("Ga", "N")))
    match kind:
        case "vacancy":
            return [f"V_{species}"]
        case "antisite":
            return [["Ga_N"], ["N_Ga"], ["Ga_N", "N_Ga"]][random.integers(3)]
        case "interstitial":
            return [f"{species}_i"]
        case "frenkel":
            return [f"V_{species}", f"{species}_i"]
        case "schottky":
            return ["V_Ga", "V_N"]
        case "off_stoichiometric":
            names = random.choice(("V_Ga", "V_N", "Ga_N", "N_Ga", "Ga_i", "N_i"), size=random.integers(2, 5))
            return sorted(map(str, names), key=lambda name: name[0] != "V")
    return []


class _NoRoom(Exception):
    """No place is left for a defect: those that were drawn before are in its way."""


class _Defects:
    """A crystal in the making: what stands on each lattice site, and what beside."""

    def __init__(self, crystal: Atoms, voids: np.ndarray, random: np.random.Generator) -> None:
        self.crystal, self.voids, self.random = crystal, voids, random
        self.symbols = [str(symbol) for symbol in crystal.symbols]
        self.positions = crystal.positions.copy()
        self.untouched = set(range(len(crystal)))
        self.vacant: list[np.ndarray] = []
        self.interstitials: list[Atom] = []
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """Raises _NoRoom where it cannot stand."""
        what, where = name.split("_")
        if what == "V":
            site = self._site(where)
            self.symbols[site] = ""
            self.vacant.append(self.crystal.positions[site])
        elif where == "i":
            self._interstitial(what)
        else:
            self.symbols[self._site(where)] = what
        self.names.append(name)

    def atoms(self) -> Atoms:
        kept = [i for i, symbol in enumerate(self.symbols) if symbol]
        made = Atoms(
            [self.symbols[i] for i in kept], self.positions[kept], cell=self.crystal.cell, pbc=self.crystal.pbc
        )
        for atom in self.interstitials:
            made.append(atom)
        return made

    def _interstitial(self, species: str) -> None:
        if self.random.random() < 0.5:
            place = self._choice([place for place in range(len(self.voids)) if self._is_free(self.voids[place])])
            self.interstitials.append(Atom(species, self.voids[place]))
            return
        site = self._site(species, away=True)
        direction = self.random.standard_normal(3)
        half = 0.5 * SPLIT[species] * direction / np.linalg.norm(direction)
        self.interstitials.append(Atom(species, self.crystal.positions[site] + half))
        self.positions[site] -= half

    def _site(self, species: str, *, away: bool = False) -> int:
        """A lattice site of this species that no defect has touched; far from other defects if it is to be split."""
        site = self._choice(
            [
                i
                for i in sorted(self.untouched)
                if self.symbols[i] == species and (not away or self._is_free(self.crystal.positions[i]))
            ]
        )
        self.untouched.remove(site)
        return site

    def _choice(self, places: list[int]) -> int:
        if not places:
            raise _NoRoom
        return int(self.random.choice(places))

    def _is_free(self, position: np.ndarray) -> bool:
        taken = [(FROM_VACANCY, place) for place in self.vacant]
        taken += [(FROM_INTERSTITIAL, atom.position) for atom in self.interstitials]
        return all(
            get_distances(position, place, cell=self.crystal.cell, pbc=True)[1].item() >= limit
            for limit, place in taken
        )
