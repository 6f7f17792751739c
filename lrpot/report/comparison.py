"""Predictions beside labels and where each number comes from; errors by structure, element, size and formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import ase.units
import numpy as np
from ase.data import chemical_symbols

from lrpot.charge_scale import ErrorAlongScale, errors_along_scale
from lrpot.data.graph_builder import reduced_formula
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.potential import Potential
from lrpot.report.held_out import Part

# How errors are told: factor from the units of `lrpot.evaluation`, and the name of the unit.
SHOWN_UNITS = {
    "energy": (1e3, "meV/atom"),
    "forces": (1e3, "meV/Å"),
    "stress": (1.0 / ase.units.GPa, "GPa"),
    "charges": (1.0, "e"),
    "dipole": (1.0, "e Å"),
    "born_charges": (1.0, "e"),
}

# Sizes of which each gets a line of its own; more are put together.
MAX_SIZES = 12


@dataclass(frozen=True)
class Errors:
    """Of some numbers, in the units of `SHOWN_UNITS`."""

    count: int
    mae: float
    rmse: float
    largest: float


def errors_of(differences: np.ndarray, quantity: str) -> Errors | None:
    """Of prediction - label (n,) in the units of `lrpot.evaluation`; None of nothing."""
    if len(differences) == 0:
        return None
    size = np.abs(differences) * SHOWN_UNITS[quantity][0]
    return Errors(len(size), float(size.mean()), float(np.sqrt((size**2).mean())), float(size.max()))


@dataclass(frozen=True)
class Group:
    """Structures or atoms that have something in common.

    Attributes:
        name: what it is. structures, atoms: how many. errors: by quantity, of those that have labels.
    """

    name: str
    structures: int
    atoms: int
    errors: dict[str, Errors]


@dataclass(frozen=True)
class Comparison:
    """A model beside the labels of a part.

    Attributes:
        part: G structures with N atoms in all.
        evaluation: of the model on it.
        along_scale: errors along the scale of the charges.
        numbers: (N,) atomic numbers. atoms: (G,) atoms of each structure. formulas: (G,) reduced formulas.
    """

    part: Part
    evaluation: Evaluation
    along_scale: dict[str, ErrorAlongScale]
    numbers: np.ndarray
    atoms: np.ndarray
    formulas: np.ndarray

    @property
    def quantities(self) -> list[str]:
        return list(self.evaluation.reference)

    @cached_property
    def first_atom(self) -> np.ndarray:
        """(G,) place of the first atom of each structure among all atoms."""
        return np.cumsum(self.atoms) - self.atoms

    def reference(self, quantity: str) -> np.ndarray:
        """(n,) labels, in the units of `lrpot.evaluation`."""
        return self.evaluation.reference[quantity].numpy()

    def differences(self, quantity: str) -> np.ndarray:
        """(n,) prediction - label, in the units of `lrpot.evaluation`."""
        return self.evaluation.predicted[quantity].numpy() - self.reference(quantity)

    def owner(self, quantity: str) -> np.ndarray:
        """(n,) the structure that each number belongs to."""
        return self.evaluation.places[quantity][:, 0].numpy()

    def place(self, quantity: str) -> np.ndarray:
        """(n,) place of each number in the flattened label of its structure."""
        return self.evaluation.places[quantity][:, 1].numpy()

    def element(self, quantity: str) -> np.ndarray:
        """(n,) atomic number of the atom that each number of "forces", "charges" or "born_charges" belongs to."""
        width = {"forces": 3, "charges": 1, "born_charges": 9}[quantity]
        return self.numbers[self.first_atom[self.owner(quantity)] + self.place(quantity) // width]

    @cached_property
    def energy_errors(self) -> np.ndarray:
        """(G,) prediction - label, eV/atom; nan without a label."""
        found = np.full(len(self.atoms), np.nan)
        if "energy" in self.quantities:
            found[self.owner("energy")] = self.differences("energy")
        return found

    @cached_property
    def force_errors(self) -> np.ndarray:
        """(N, 3) prediction - label, eV/A; nan without a label."""
        found = np.full((len(self.numbers), 3), np.nan)
        if "forces" in self.quantities:
            place = self.place("forces")
            atom = self.first_atom[self.owner("forces")] + place // 3
            found[atom, place % 3] = self.differences("forces")
        return found

    @cached_property
    def largest_force_errors(self) -> np.ndarray:
        """(G,) length of the largest error of a force, eV/A; nan without a label."""
        return np.maximum.reduceat(np.linalg.norm(self.force_errors, axis=1), self.first_atom)

    def atoms_of(self, structure: int) -> slice:
        """Its atoms among all atoms."""
        return slice(self.first_atom[structure], self.first_atom[structure] + self.atoms[structure])

    def where(self, structure: int) -> str:
        """File and row."""
        return f"{self.part.files[self.part.file[structure]]}, row {self.part.row[structure]}"

    def by_element(self) -> list[Group]:
        """Errors of what belongs to atoms."""
        quantities = [quantity for quantity in self.quantities if quantity in ("forces", "charges", "born_charges")]
        elements = {quantity: self.element(quantity) for quantity in quantities}
        owner = np.repeat(np.arange(len(self.atoms)), self.atoms)
        groups = []
        for z in np.unique(self.numbers).tolist():
            mine = self.numbers == z
            errors = _present(
                (quantity, errors_of(self.differences(quantity)[elements[quantity] == z], quantity))
                for quantity in quantities
            )
            groups.append(Group(chemical_symbols[z], len(np.unique(owner[mine])), int(mine.sum()), errors))
        return groups

    def by_size(self) -> list[Group]:
        """Errors by number of atoms; of many sizes, ranges with about as many structures each."""
        sizes = np.unique(self.atoms)
        if len(sizes) > MAX_SIZES:
            cuts = np.unique(np.quantile(self.atoms, np.linspace(0, 1, MAX_SIZES + 1)[1:-1], method="lower"))
            key = np.searchsorted(cuts, self.atoms)
        else:
            key = np.searchsorted(sizes, self.atoms)

        def name(members: np.ndarray) -> str:
            low, high = self.atoms[members].min(), self.atoms[members].max()
            return str(low) if low == high else f"{low} to {high}"

        return self._groups(key, name)

    def by_formula(self) -> list[Group]:
        """Errors by reduced formula."""
        _, key = np.unique(self.formulas, return_inverse=True)
        return self._groups(key, lambda members: str(self.formulas[members[0]]))

    def _groups(self, key: np.ndarray, name: Callable[[np.ndarray], str]) -> list[Group]:
        """One for each value of a key (G,), ascending."""
        kinds = {quantity: key[self.owner(quantity)] for quantity in self.quantities}
        groups = []
        for value in np.unique(key).tolist():
            members = np.flatnonzero(key == value)
            errors = _present(
                (quantity, errors_of(self.differences(quantity)[kind == value], quantity))
                for quantity, kind in kinds.items()
            )
            groups.append(Group(name(members), len(members), int(self.atoms[members].sum()), errors))
        return groups


def _present(errors: Iterator[tuple[str, Errors | None]]) -> dict[str, Errors]:
    return {quantity: found for quantity, found in errors if found is not None}


def compare(model: Potential, part: Part, progress: Callable[[int], None] | None = None) -> Comparison:
    """Evaluate a model on a part.

    Args:
        progress: called with the number of structures done.
    """
    evaluation = evaluate_structures(model, part.structures, progress=progress)
    numbers = [structure.numbers.numpy() for structure in part.structures]
    return Comparison(
        part=part,
        evaluation=evaluation,
        along_scale=errors_along_scale(model, part.structures, evaluation),
        numbers=np.concatenate(numbers),
        atoms=np.array([len(of_one) for of_one in numbers]),
        formulas=np.array([reduced_formula(of_one) for of_one in numbers]),
    )
