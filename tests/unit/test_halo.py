"""What a process sees of a crystal: the atoms and edges that its own energies depend on, each atom once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from lrpot.errors import StructureError
from lrpot.interfaces.halo import Halo
from lrpot.structure import Structure, edge_vectors
from tests.conftest import RandomCrystal

CUTOFF, SKIN = 3.0, 0.4


def ghosts(crystal: Structure, own: np.ndarray, reach: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Ids from 1 and positions, A, of the own atoms, then of the others and of images of all."""
    positions, cell = crystal.positions.numpy(), crystal.cell[0].numpy()
    others = np.setdiff1d(np.arange(len(positions)), own)
    images = [s for s in product(range(-reach, reach + 1), repeat=3) if any(s)]
    rows = [own, others, *(np.arange(len(positions)) for _ in images)]
    shifts = [np.zeros(3), np.zeros(3), *(np.array(s) @ cell for s in images)]
    ids = np.concatenate(rows) + 1
    return ids, np.concatenate([positions[row] + shift for row, shift in zip(rows, shifts, strict=True)])


def bonds(structure: Structure, ids: np.ndarray) -> set[tuple[float, ...]]:
    """Ids of centre and neighbour of each edge, and its vector to 1e-6 A."""
    neighbour, centre = structure.edge_index.numpy()
    vectors = np.round(edge_vectors(structure).numpy(), 6) + 0.0  # no negative zeros
    return {(ids[i], ids[j], *vector) for i, j, vector in zip(centre, neighbour, vectors.tolist(), strict=True)}


@pytest.mark.parametrize("depth", [1, 2])
def test_edges_are_those_of_the_crystal(depth: int, random_crystal: RandomCrystal) -> None:
    crystal = random_crystal(5, 40, cutoff=CUTOFF)
    own = np.array([7, 2])
    ids, positions = ghosts(crystal, own)
    cell = crystal.cell[0].numpy()
    numbers = crystal.numbers.numpy()[ids - 1]
    halo = Halo(ids, positions, cell, len(own), CUTOFF, SKIN, depth)
    seen = halo.structure(positions, numbers, cell)
    assert halo.ids[:2].tolist() == [8, 3]
    assert len(set(halo.ids.tolist())) == len(halo.ids)
    np.testing.assert_array_equal(seen.numbers.numpy(), crystal.numbers.numpy()[halo.ids - 1])
    assert (np.diff(seen.edge_index[1].numpy()) >= 0).all()
    everything = bonds(crystal, np.arange(1, 41))
    centres = {8, 3}
    if depth == 2:
        centres |= {bond[1] for bond in everything if bond[0] in centres}
    assert {bond for bond in everything if bond[0] in centres} <= bonds(seen, halo.ids) < everything


def test_it_serves_until_atoms_have_moved(random_crystal: RandomCrystal) -> None:
    crystal = random_crystal(5, 12, cutoff=CUTOFF)
    own = np.arange(12)
    ids, positions = ghosts(crystal, own)
    halo = Halo(ids, positions, crystal.cell[0].numpy(), 12, CUTOFF, SKIN, 1)
    moved = positions.copy()
    moved[3, 0] += 0.49 * SKIN
    assert halo.serves(ids, moved, 12)
    assert not halo.serves(ids[::-1].copy(), moved, 12)
    assert not halo.serves(ids, moved, 11)
    moved[3, 0] += 0.02 * SKIN
    assert not halo.serves(ids, moved, 12)
    seen = halo.structure(positions, crystal.numbers.numpy()[ids - 1], crystal.cell[0].numpy())
    assert bonds(seen, halo.ids) == bonds(crystal, np.arange(1, 13))


def test_wrong_positions_are_named(random_crystal: RandomCrystal) -> None:
    crystal = random_crystal(5, 12, cutoff=CUTOFF)
    ids, positions = ghosts(crystal, np.arange(12))
    cell = crystal.cell[0].numpy()
    wrong = positions.copy()
    wrong[4, 1] = np.nan
    with pytest.raises(StructureError, match="the position of atom 5 is not finite; use a smaller time step"):
        Halo(ids, wrong, cell, 12, CUTOFF, SKIN, 1)
    with pytest.raises(StructureError, match="are not whole cells apart; make the box periodic"):
        Halo(ids, positions, cell * 1.1, 12, CUTOFF, SKIN, 1)
