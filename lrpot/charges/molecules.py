"""Which atoms belong to one molecule: inside it, bonds and angles would drown every field from outside."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lrpot.structure import Structure, edge_vectors

# Two atoms are bonded up to this multiple of the sum of their covalent radii: room for a vibration, not for a
# hydrogen bond (O-H is bonded up to 1.26 A, a hydrogen bond has 1.5 A or more).
BOND = 1.3

# Bonds of all other elements are those of metals or ions, and their field is what is looked for.
NONMETALS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)

# A; two tellurium atoms are bonded up to 3.5 A.
LONGEST_BOND = 4.0


def molecules(structure: Structure) -> np.ndarray:
    """The molecule of every atom: bonded components of nonmetals that end somewhere.

    A component that is bonded to its own periodic image is a network, and each of its atoms stands alone, as does an
    atom without bonds.

    Args:
        structure: with edges up to LONGEST_BOND or more.
    Returns:
        (N,) int64, numbered from 0 without gaps, in the order of their first atoms.
    """
    numbers = structure.numbers.numpy()
    neighbour, centre = structure.edge_index.numpy()
    length = np.linalg.norm(edge_vectors(structure).numpy(), axis=1)
    may_bond = np.isin(numbers, NONMETALS)
    bonded = may_bond[neighbour] & may_bond[centre]
    bonded &= length < BOND * (covalent_radii[numbers[neighbour]] + covalent_radii[numbers[centre]])
    neighbour, centre, shift = neighbour[bonded], centre[bonded], structure.edge_shift.numpy()[bonded]
    n = len(numbers)
    _, label = connected_components(coo_array((np.ones(len(centre)), (centre, neighbour)), shape=(n, n)))
    image = _images(label, neighbour, centre, shift)
    # around a ring that closes through the periodic boundary the images do not add up
    open_ends = np.abs(image[centre] + shift - image[neighbour]).max(axis=1, initial=0.0) > 0.5
    network = np.isin(label, label[centre[open_ends]])
    label[network] = n + np.flatnonzero(network)
    _, first, member = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[member.reshape(-1)]


def _images(label: np.ndarray, neighbour: np.ndarray, centre: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(N, 3) the image in which each atom continues its component, reached along bonds from the first atom of it."""
    image = np.zeros((len(label), 3))
    known = np.zeros(len(label), dtype=bool)
    known[np.unique(label, return_index=True)[1]] = True
    while True:
        new = known[centre] & ~known[neighbour]
        if not new.any():
            return image
        image[neighbour[new]] = image[centre[new]] + shift[new]
        known[neighbour[new]] = True
