"""Edges of a crystal graph, by vesin; edges that MD uses again."""

from __future__ import annotations

import numpy as np
import torch
from ase.neighborlist import primitive_neighbor_list
from vesin import NeighborList

from lrpot.errors import ConfigError, StructureError
from lrpot.structure import Structure

# No two nuclei come this close; a file that says so is wrong.
OVERLAP = 0.1

# A cell so small that every atom has more neighbours than this is a mistake in units.
MAX_NEIGHBOURS = 100_000

# A. No calculation has a cell this long; beyond it positions lose the digits that forces need.
LONGEST = 1e6

# vesin sorts atoms into at most MAX_BINS boxes as long as the cutoff. Where there would be more, it makes them longer
# by one factor for all axes, and ends the process if that leaves less than one box along an axis: thin crystals.
MAX_BINS = 100_000

# Cells outside the first one from which on an atom is moved back: to find it there takes vesin long.
FAR_CELLS = 100


def add_edges(structure: Structure, cutoff: float) -> Structure:
    """Give a structure every directed edge (j -> i) with 0 < |r_ij| < cutoff, periodic images included.

    Args:
        structure: any cell: smaller than the cutoff, skewed, left-handed, of mixed periodicity.
        cutoff: A.
    Returns:
        the same object, with `edge_index` (2, E), sorted by centre, and `edge_shift` (E, 3).
    Raises:
        StructureError: positions that are not numbers, a singular cell, or atoms closer than 0.1 A.
    """
    positions = structure.positions.numpy()
    pbc = structure.pbc[0].numpy()
    check_geometry(positions, structure.cell[0].numpy(), pbc)
    check_density(positions, structure.cell[0].numpy(), pbc, cutoff)
    centre, neighbour, shift, distance = find_pairs(positions, filled_cell(structure.cell[0].numpy(), pbc), pbc, cutoff)
    check_overlap(centre, neighbour, distance)
    structure.edge_index = torch.from_numpy(np.stack([neighbour, centre]))
    structure.edge_shift = torch.from_numpy(shift)
    return structure


class NeighbourList:
    """Edges for MD: found up to cutoff + skin, and used again until an edge may be missing.

    What `update` gives is what `add_edges` gives, whatever happened since: atoms that moved, jumped by a lattice
    vector, or are others; a cell under strain. The order of the edges does not tell when they were found, so that sums
    over them, to the last bit, depend on where the atoms are and on nothing before. An edge that was longer than
    cutoff + skin is longer than the cutoff as long as

        s (cutoff + skin) - 2 max_i |u_i| >= cutoff,

    where s is the smallest singular value of the deformation of the cell and u_i is how far atom i went beyond that
    deformation (and beyond what all atoms went in common). Under a constant cell that is skin / 2 for each atom.

    Attributes:
        rebuilds: how often the edges were found anew.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        """
        Args:
            cutoff: A. skin: A; a long one is found anew less often, and costs more in every step.
        Raises:
            ConfigError: a skin that is negative or not finite.
        """
        if not 0.0 <= skin < np.inf:
            raise ConfigError(f"skin = {skin:g} A: must be finite and not negative")
        self.cutoff = cutoff
        self.skin = skin
        self.rebuilds = 0
        self._found: Structure | None = None

    def update(self, structure: Structure) -> Structure:
        """The same as `add_edges(structure, cutoff)`.

        Raises:
            StructureError: see `add_edges`.
        """
        positions = structure.positions.numpy()
        check_geometry(positions, structure.cell[0].numpy(), structure.pbc[0].numpy())
        if self._found is None or not self._complete(self._found, structure):
            self._found = None  # should the next line refuse the structure
            self._found = _ordered(add_edges(structure.clone(), self.cutoff + self.skin))
            self.rebuilds += 1
        neighbour, centre = self._found.edge_index
        # index_select takes half the time of brackets
        vectors = torch.index_select(structure.positions, 0, neighbour)
        vectors -= torch.index_select(structure.positions, 0, centre)
        vectors += self._found.edge_shift @ structure.cell[0]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        kept = torch.nonzero(distances < self.cutoff)[:, 0]
        if distances.numel() and float(distances.min()) < OVERLAP:
            check_overlap(centre.numpy(), neighbour.numpy(), distances.numpy())
        structure.edge_index = torch.index_select(self._found.edge_index, 1, kept)
        structure.edge_shift = torch.index_select(self._found.edge_shift, 0, kept)
        return structure

    def _complete(self, found: Structure, now: Structure) -> bool:
        """Whether no edge below the cutoff can be missing."""
        if found.positions.shape != now.positions.shape or not torch.equal(found.pbc, now.pbc):
            return False
        before, smallest = found.positions, 1.0
        if not torch.equal(found.cell, now.cell):
            if not bool(now.pbc.all()):
                return False
            deformation = torch.linalg.solve(found.cell[0], now.cell[0])
            before = before @ deformation
            smallest = float(torch.linalg.svdvals(deformation)[-1])
        moves = now.positions - before
        moves = moves - moves.mean(dim=0)
        farthest = float(torch.linalg.vector_norm(moves, dim=1).max())
        return smallest * (self.cutoff + self.skin) - 2.0 * farthest >= self.cutoff


def _ordered(structure: Structure) -> Structure:
    """The same, edges sorted by centre, neighbour and shift."""
    order = np.lexsort((*structure.edge_shift.numpy().T, *structure.edge_index.numpy()))
    structure.edge_index = structure.edge_index[:, order]
    structure.edge_shift = structure.edge_shift[order]
    return structure


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    """Refuse what no neighbour list can treat.

    Args:
        positions: (N, 3), A. cell: (3, 3), A. pbc: (3,) bool.
    Raises:
        StructureError: no atoms, numbers that are not finite, or a cell without volume along periodic directions.
    """
    if len(positions) == 0:
        raise StructureError("the structure has no atoms; remove the row or correct the file")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(f"the position of atom {atom} is not a finite number; correct it")
    if not np.isfinite(cell).all():
        raise StructureError("the cell holds a number that is not finite; correct it")
    if (largest := max(np.abs(positions).max(), np.abs(cell).max())) > LONGEST:
        raise StructureError(f"a position or lattice vector is {largest:.3g} A long; check its units (A)")
    if not pbc.any():
        return
    lengths = np.linalg.norm(cell[pbc], axis=1)
    # volume of the periodic directions relative to a right-angled cell of the same lengths
    gram = cell[pbc] @ cell[pbc].T
    if lengths.min() < 1e-3 or np.sqrt(max(np.linalg.det(gram), 0.0)) < 1e-6 * lengths.prod():
        raise StructureError(
            f"the cell has no volume (lattice vectors of {', '.join(f'{x:.3g}' for x in lengths)} A span nothing); "
            "correct the cell, or set pbc to False"
        )
    per_atom = 4.2 * len(positions) / max(np.sqrt(np.linalg.det(gram)), 1e-300)
    if pbc.all() and per_atom * OVERLAP**3 > 1.0:
        raise StructureError(
            f"{len(positions)} atoms share a cell of {np.sqrt(np.linalg.det(gram)):.3g} A^3; check its units (A)"
        )


def check_density(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> None:
    """Refuse what would fill the memory with neighbours, before any is taken.

    Args:
        positions: (N, 3), A. cell: (3, 3), A. pbc: (3,) bool. cutoff: A.
    Raises:
        StructureError: a crystal so dense, or a cutoff so long, that each atom would have MAX_NEIGHBOURS.
    """
    box = filled_cell(cell, pbc)
    thickness = np.ptp(positions @ np.linalg.inv(box), axis=0) + cutoff  # where nothing repeats
    volume = abs(np.linalg.det(box)) * float(np.prod(thickness[~pbc]))
    expected = len(positions) / volume * 4.0 / 3.0 * np.pi * cutoff**3
    if expected > MAX_NEIGHBOURS:
        raise StructureError(
            f"{len(positions)} atoms in {volume:.3g} A^3 have about {expected:.1e} neighbours each within {cutoff:g} "
            "A; check the units of cell and positions (A), or shorten the cutoff"
        )


def check_overlap(centre: np.ndarray, neighbour: np.ndarray, distance: np.ndarray) -> None:
    if distance.size and distance.min() < OVERLAP:
        worst = int(distance.argmin())
        raise StructureError(
            f"atoms {centre[worst]} and {neighbour[worst]} are {distance[worst]:.3g} A apart "
            f"(less than {OVERLAP} A); remove one of them or correct the positions"
        )


def find_pairs(
    positions: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every directed pair within a cutoff, sorted by centre.

    Args:
        positions: (N, 3), A. box: from `filled_cell`. pbc: (3,) bool. cutoff: A.
    Returns:
        centre (E,), neighbour (E,), shift (E, 3) in whole cells, distance (E,) in A.
    """
    inverse = np.linalg.inv(box)
    scaled = positions @ inverse
    outside = np.where(pbc, np.floor(scaled), 0.0)
    if np.abs(outside).max(initial=0.0) > FAR_CELLS:
        centre, neighbour, shift, distance = find_pairs(positions - outside @ box, box, pbc, cutoff)
        return centre, neighbour, shift + outside[centre] - outside[neighbour], distance
    if _too_thin(scaled, inverse, pbc, cutoff):
        found = primitive_neighbor_list("ijSd", pbc, box, positions, cutoff)
        order = np.argsort(found[0], kind="stable")
        centre, neighbour, shift, distance = (values[order] for values in found)
    else:
        finder = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
        centre, neighbour, shift, distance = finder.compute(
            points=positions, box=box, periodic=pbc, quantities="ijSd", copy=True
        )
    return centre.astype(np.int64), neighbour.astype(np.int64), shift.astype(np.float64), distance


def _too_thin(scaled: np.ndarray, inverse: np.ndarray, pbc: np.ndarray, cutoff: float) -> bool:
    """Whether vesin, see `MAX_BINS`, cannot treat a crystal; so near its limit ASE's slower list is as right."""
    across = 1.0 / np.linalg.norm(inverse, axis=0)  # A, between the faces of the box
    extent = np.ptp(scaled, axis=0) * across
    bins = np.maximum(np.where(pbc, across, extent) / cutoff, 1.0)
    shrink = max(np.prod(bins) / MAX_BINS, 1.0) ** (1.0 / 3.0)
    return bool(shrink > 1.0 and bins.min() < 2.0 * shrink)


def filled_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with its non-periodic vectors replaced by unit normals, which vesin wants and nothing depends on."""
    box = cell.copy()
    for axis in np.flatnonzero(~pbc):
        box[axis] = 0.0
        # the right singular vectors beyond the rank are orthogonal to all rows
        _, _, right = np.linalg.svd(box)
        box[axis] = right[-1] if box.any() else np.eye(3)[axis]
    return box
