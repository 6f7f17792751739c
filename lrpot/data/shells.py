"""Edges to the nearest neighbours of each atom, in whole shells: what property models read."""

from __future__ import annotations

import numpy as np
import torch

from lrpot.data.neighbours import check_density, check_geometry, check_overlap, filled_cell, find_pairs
from lrpot.structure import Structure

# Distances that differ by less, relatively, belong to one shell.
SAME_SHELL = 1e-4

# A; beyond it an atom is alone, however few neighbours it has.
FARTHEST = 30.0


def add_shells(structure: Structure, neighbours: int, cutoff: float = FARTHEST) -> Structure:
    """Give each atom edges from its nearest neighbours, and from all others as far away as the last of these.

    A shell of equal distances is never cut, so that the graph of a crystal depends neither on the choice of its cell
    nor on the order of its atoms; every image is one edge.

    Args:
        structure: any cell. neighbours: per atom, at least, if there are so many within the cutoff. cutoff: A.
    Returns:
        the same object, with `edge_index` (2, E), sorted by centre, and `edge_shift` (E, 3).
    Raises:
        StructureError: positions that are not numbers, a singular cell, or atoms closer than 0.1 A.
    """
    positions, cell, pbc = structure.positions.numpy(), structure.cell[0].numpy(), structure.pbc[0].numpy()
    check_geometry(positions, cell, pbc)
    n_atoms, box = len(positions), filled_cell(cell, pbc)
    reach = min(_first_reach(n_atoms, cell, pbc, neighbours), cutoff)
    while True:
        check_density(positions, cell, pbc, reach)
        centre, neighbour, shift, distance = find_pairs(positions, box, pbc, reach)
        check_overlap(centre, neighbour, distance)
        counts = np.bincount(centre, minlength=n_atoms)
        order = np.lexsort((distance, centre))
        last = np.full(n_atoms, np.inf)
        enough = counts >= neighbours
        starts = np.cumsum(counts) - counts
        last[enough] = distance[order][starts[enough] + neighbours - 1] * (1.0 + SAME_SHELL)
        # an atom whose last shell may go on beyond the reach
        if reach >= cutoff or last.max() < reach:
            break
        reach = min(1.3 * reach, cutoff)
    kept = distance <= last[centre]
    structure.edge_index = torch.from_numpy(np.stack([neighbour[kept], centre[kept]]))
    structure.edge_shift = torch.from_numpy(shift[kept])
    return structure


def _first_reach(n_atoms: int, cell: np.ndarray, pbc: np.ndarray, neighbours: int) -> float:
    """A, of a sphere that holds so many atoms at the mean density, or that of a solid where there is none."""
    density = n_atoms / abs(np.linalg.det(cell)) if pbc.all() else 0.0
    return 1.2 * (3.0 * (neighbours + 1) / (4.0 * np.pi * max(density, 0.03))) ** (1.0 / 3.0)
