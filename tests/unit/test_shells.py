"""Edges to whole shells of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from lrpot.data.readers import to_structure
from lrpot.data.shells import SAME_SHELL, add_shells
from lrpot.structure import edge_vectors


def counts(atoms: Atoms, neighbours: int, **settings: float) -> list[int]:
    structure = add_shells(to_structure(atoms, 1.0), neighbours, **settings)
    return np.bincount(structure.edge_index[1].numpy(), minlength=len(atoms)).tolist()


@pytest.mark.parametrize(
    ("atoms", "wanted", "found"),
    [
        (bulk("NaCl", "rocksalt", a=5.64), 6, 6),
        (bulk("NaCl", "rocksalt", a=5.64), 12, 18),
        (bulk("Fe", "bcc", a=2.87), 12, 14),
        (bulk("Si", "diamond", a=5.43), 12, 16),
        (bulk("Cu", "fcc", a=3.6), 12, 12),
        (bulk("Cu", "fcc", a=3.6), 13, 18),
    ],
)
def test_shells_are_whole_in_every_cell(atoms: Atoms, wanted: int, found: int) -> None:
    for cell in (atoms, atoms.repeat((2, 1, 1)), atoms.repeat((3, 2, 1))):
        assert counts(cell, wanted) == [found] * len(cell)


def test_edges_are_the_nearest() -> None:
    """Against all distances to all images."""
    rng = np.random.default_rng(0)
    atoms = Atoms("NaClGaO", scaled_positions=rng.random((4, 3)), cell=np.diag([5.0, 6.0, 9.0]) + rng.random((3, 3)))
    atoms.pbc = True
    structure = add_shells(to_structure(atoms, 1.0), 10)
    lengths = np.linalg.norm(edge_vectors(structure).numpy(), axis=1)
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), axis=-1).reshape(-1, 3) @ atoms.cell.array
    for atom in range(4):
        every = np.linalg.norm(atoms.positions[:, None] + shifts - atoms.positions[atom], axis=2).ravel()
        expected = np.sort(every[every > 1e-9])
        expected = expected[expected <= expected[9] * (1.0 + SAME_SHELL)]  # an image and its opposite are as far away
        assert np.allclose(np.sort(lengths[structure.edge_index[1].numpy() == atom]), expected)


def test_few_atoms_give_what_there_is() -> None:
    assert counts(molecule("H2O"), 12) == [2, 2, 2]
    assert counts(Atoms("He"), 12) == [0]
    assert counts(bulk("Cu", "fcc", a=3.6), 12, cutoff=2.0) == [0]


def test_a_vacuum_does_not_hide_neighbours() -> None:
    layer = bulk("Cu", "fcc", a=3.6).repeat((2, 2, 1))
    layer.cell[2] *= 20.0
    assert min(counts(layer, 12)) >= 12
