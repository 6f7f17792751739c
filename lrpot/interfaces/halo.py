"""The atoms that one process of several must see: its own and, around them, copies of others, as one structure.

A process of a simulation has some of the atoms and, as ghosts, copies of all that lie near: atoms of other processes
and periodic images. The energies of its own atoms depend on atoms up to `depth` edges away. Copies of one atom have the
same surroundings, so each atom is one row here, and edges say by shifts, in whole cells, which copy they lead to: what
comes out is a `Structure` like that of the whole crystal, with fewer atoms.
"""

from __future__ import annotations

import numpy as np
import torch

from lrpot.data.neighbours import OVERLAP, find_pairs
from lrpot.errors import StructureError
from lrpot.structure import Structure, make_structure

# In cells: how far from whole cells the shift between two copies of an atom may be.
WHOLE = 1e-3


class Halo:
    """Made when the simulation has chosen its ghosts, used until it chooses again.

    Attributes:
        n_own: atoms of this process; they are the first rows.
        all_ids: (M,) of atoms and ghosts, as given.
        ids: (n,) of all rows.
        row: (n,) where each is found among the atoms and ghosts.
    """

    def __init__(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        n_own: int,
        cutoff: float,
        skin: float,
        depth: int,
    ) -> None:
        """
        Args:
            ids: (M,) of own atoms, then of ghosts; copies of an atom share it. positions: (M, 3), A, of all of them;
                every copy within depth (cutoff + skin) of an own atom must be among them.
            cell: (3, 3), rows are lattice vectors, A.
            n_own: how many are own.
            cutoff, skin: A. depth: how many edges far the network sees.
        Raises:
            StructureError: copies of an atom that are not whole cells apart.
        """
        _check_finite(ids, positions)
        self.n_own = n_own
        self.all_ids = ids.copy()
        self.cutoff, self.skin = cutoff, skin
        self.reference = positions.copy()
        none = np.zeros(3, dtype=bool)
        centre, neighbour = np.empty(0, np.int64), np.empty(0, np.int64)
        if n_own:
            centre, neighbour, _, _ = find_pairs(positions, np.eye(3), none, cutoff + skin)
        steps = _steps(centre, neighbour, len(ids), n_own, depth)
        self.row, row_of = _one_of_each(ids, steps, depth)
        self.ids = ids[self.row]
        # only the chosen copy of an atom has edges, and only if its features count
        kept = (row_of[centre] >= 0) & (steps[centre] < depth)
        kept[kept] = self.row[row_of[centre[kept]]] == centre[kept]
        centre, neighbour = centre[kept], neighbour[kept]
        start, end = row_of[centre], row_of[neighbour]
        away = (positions[neighbour] - positions[self.row[end]]) @ np.linalg.inv(cell)
        shift = np.rint(away)
        if len(away) and np.abs(away - shift).max() > WHOLE:
            wrong = ids[neighbour[np.abs(away - shift).max(axis=1).argmax()]]
            raise StructureError(f"copies of atom {wrong} are not whole cells apart; make the box periodic (p p p)")
        order = np.argsort(start, kind="stable")
        self.edge_index = torch.from_numpy(np.stack([end, start])[:, order])
        self.edge_shift = torch.from_numpy(shift[order])

    def serves(self, ids: np.ndarray, positions: np.ndarray, n_own: int) -> bool:
        """Whether these are the same atoms and ghosts, none of which went farther than half the skin."""
        if n_own != self.n_own or not np.array_equal(ids, self.all_ids):
            return False
        moves = ((positions - self.reference) ** 2).sum(axis=1)
        # a position that is not a number serves no more
        return bool(moves.max(initial=0.0) <= (0.5 * self.skin) ** 2)

    def structure(self, positions: np.ndarray, numbers: np.ndarray, cell: np.ndarray) -> Structure:
        """The atoms at (M, 3) positions, A, with the edges below the cutoff.

        Args:
            numbers: (M,) atomic numbers. cell: (3, 3), A.
        Raises:
            StructureError: atoms that overlap.
        """
        structure = make_structure(numbers[self.row], positions[self.row], cell, [True] * 3)
        neighbour, centre = self.edge_index
        vectors = structure.positions[neighbour] + self.edge_shift @ structure.cell[0] - structure.positions[centre]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        if len(distances) and float(distances.min()) < OVERLAP:
            edge = int(distances.argmin())
            one, other = self.ids[centre[edge]], self.ids[neighbour[edge]]
            raise StructureError(
                f"atoms {one} and {other} are {float(distances[edge]):.3g} A apart; use a smaller time step, or relax "
                "the crystal first"
            )
        kept = distances < self.cutoff
        structure.edge_index = self.edge_index[:, kept]
        structure.edge_shift = self.edge_shift[kept]
        return structure


def _check_finite(ids: np.ndarray, positions: np.ndarray) -> None:
    wrong = ~np.isfinite(positions).all(axis=1)
    if wrong.any():
        atom = ids[wrong.argmax()]
        raise StructureError(f"the position of atom {atom} is not finite; use a smaller time step, or relax first")


def _steps(centre: np.ndarray, neighbour: np.ndarray, n: int, n_own: int, depth: int) -> np.ndarray:
    """(n,) how many edges away from the nearest own atom; depth + 1 if more than depth."""
    steps = np.full(n, depth + 1)
    steps[:n_own] = 0
    for step in range(depth):
        reached = neighbour[steps[centre] == step]
        steps[reached] = np.minimum(steps[reached], step + 1)
    return steps


def _one_of_each(ids: np.ndarray, steps: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the copies of each atom that is seen the nearest, own atoms first, in their order; and (M,) the row of the
    atom that each is a copy of, -1 if it is not seen."""
    order = np.lexsort((np.arange(len(ids)), steps))
    order = order[steps[order] <= depth]
    _, first = np.unique(ids[order], return_index=True)
    chosen = order[np.sort(first)]
    by_id = np.argsort(ids[chosen])
    place = np.searchsorted(ids[chosen][by_id], ids)
    found = by_id[np.minimum(place, len(chosen) - 1)] if len(chosen) else np.zeros(len(ids), np.int64)
    seen = ids[chosen][found] == ids if len(chosen) else np.zeros(len(ids), dtype=bool)
    return chosen, np.where(seen, found, -1)
