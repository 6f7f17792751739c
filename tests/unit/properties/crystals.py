"""Crystals and what must not change them: other cells, other orders, moved, turned, mirrored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from scipy.spatial.transform import Rotation

from lrpot.data.readers import to_structure
from lrpot.data.shells import add_shells
from lrpot.structure import Structure


def triclinic(seed: int = 0, n: int = 5) -> Atoms:
    """No symmetry, five atoms of four elements."""
    rng = np.random.default_rng(seed)
    cell = np.diag([4.1, 5.3, 6.2]) + 0.8 * rng.normal(size=(3, 3))
    while True:
        atoms = Atoms(["Na", "Cl", "Ga", "O", "Cl"][:n], scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)
        distances = atoms.get_all_distances(mic=True) + 9.0 * np.eye(n)
        if distances.min() > 1.2:
            return atoms


CRYSTALS: dict[str, Callable[[], Atoms]] = {
    "triclinic": triclinic,
    "rock salt": lambda: bulk("NaCl", "rocksalt", a=5.64),
    "one atom": lambda: bulk("Cu", "fcc", a=3.6),
    "diamond": lambda: bulk("Si", "diamond", a=5.43, cubic=True),
}


def moved(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.translate([0.37, 1.21, -0.83])
    atoms.wrap()
    return atoms


def other_images(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(1).integers(-2, 3, size=(len(atoms), 3)) @ atoms.cell.array
    return atoms


def rotated(atoms: Atoms) -> Atoms:
    return _turned(atoms, Rotation.random(random_state=3).as_matrix())


def mirrored(atoms: Atoms) -> Atoms:
    return _turned(atoms, Rotation.random(random_state=4).as_matrix() @ np.diag([1.0, 1.0, -1.0]))


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ matrix.T, scale_atoms=False)
    atoms.positions = atoms.positions @ matrix.T
    return atoms


def permuted(atoms: Atoms) -> Atoms:
    return atoms[np.random.default_rng(2).permutation(len(atoms))]


def cyclic_axes(atoms: Atoms) -> Atoms:
    return _other_cell(atoms, [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def sheared_cell(atoms: Atoms) -> Atoms:
    return _other_cell(atoms, [[1, 1, 0], [0, 1, 0], [1, 0, 1]])


def _other_cell(atoms: Atoms, matrix: list[list[int]]) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell(np.array(matrix) @ atoms.cell.array, scale_atoms=False)
    return atoms


def doubled(atoms: Atoms) -> Atoms:
    return atoms.repeat((2, 1, 1))


def eightfold(atoms: Atoms) -> Atoms:
    return make_supercell(atoms, 2 * np.eye(3))


CHANGES: dict[str, Callable[[Atoms], Atoms]] = {
    change.__name__.replace("_", " "): change
    for change in (moved, other_images, rotated, mirrored, permuted, cyclic_axes, sheared_cell, doubled, eightfold)
}


def seen_by(encoder: Any, atoms: Atoms) -> Structure:
    """With the edges that an encoder wants; of those that want shells, 12 neighbours."""
    return graph(atoms) if encoder.shells else to_structure(atoms, encoder.cutoff)


def graph(atoms: Atoms, neighbours: int = 12) -> Structure:
    structure = to_structure(atoms, 1.0)
    return add_shells(structure, neighbours)
