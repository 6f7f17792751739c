"""Which atoms are one molecule: across the boundary, beside ions, and never a network."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from lrpot.charges.molecules import LONGEST_BOND, molecules
from lrpot.data.neighbours import add_edges
from lrpot.structure import make_structure


def found(atoms: Atoms) -> list[int]:
    structure = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, [True] * 3)
    return molecules(add_edges(structure, LONGEST_BOND)).tolist()


def boxed(atoms: Atoms, corner: float = 0.0) -> Atoms:
    box = Atoms(atoms.symbols, atoms.positions - atoms.positions[0] + corner, cell=8.0 * np.eye(3), pbc=True)
    box.wrap()
    return box


@pytest.mark.parametrize("corner", [0.0, 4.0], ids=["across the boundary", "inside"])
def test_a_molecule_is_one_wherever_it_lies(corner: float) -> None:
    assert found(boxed(molecule("H2O"), corner)) == [0, 0, 0]
    assert found(boxed(molecule("C6H6"), corner)) == [0] * 12


def test_ions_stand_alone_beside_molecules() -> None:
    water = boxed(molecule("H2O"), 4.0)
    ions = Atoms("NaCl", [[4.0, 4.0, 6.3], [4.0, 4.0, 1.0]])
    assert found(water + ions) == [0, 0, 0, 1, 2]
    assert found(Atoms(ions.symbols, ions.positions, cell=8.0 * np.eye(3), pbc=True) + water) == [0, 1, 2, 2, 2]


def test_molecules_are_numbered_by_their_first_atoms() -> None:
    first, second = boxed(molecule("H2O"), 1.0), boxed(molecule("H2O"), 5.0)
    mixed = first + second
    assert found(mixed[[0, 3, 1, 4, 2, 5]]) == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "crystal",
    [bulk("C", "diamond", 3.57), bulk("C", "diamond", 3.57) * (2, 2, 2), bulk("NaCl", "rocksalt", 5.64)],
    ids=["diamond", "diamond, larger", "rock salt"],
)
def test_networks_and_ions_are_no_molecules(crystal: Atoms) -> None:
    assert found(crystal) == list(range(len(crystal)))


def test_a_chain_through_the_boundary_is_a_network() -> None:
    """Four carbon atoms in a row, bonded to their own images or not."""
    chain = Atoms("C4", [[1.3 * n, 0.0, 0.0] for n in range(4)], cell=np.diag([5.2, 9.0, 9.0]), pbc=True)
    assert found(chain) == [0, 1, 2, 3]
    chain.set_cell(np.diag([9.0, 9.0, 9.0]))
    assert found(chain) == [0, 0, 0, 0]
