"""Pairs of edges that meet at an atom, as one small matrix per atom instead of a list of triplets.

The edges of every atom stand in a row, padded to the longest row of the batch: once those that arrive at it (it is
their centre, they come from k), once those that leave it (it is their neighbour, they go to i). What depends on two
edges, such as their angle, is then an (n_leaving, n_arriving) matrix per atom, and a sum over k is a product of
matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data


class EdgeRows:
    """Edges grouped by one of their atoms, in rows of equal length.

    Attributes:
        n_atoms: N. width: M, the number of edges of the atom that has most.
    """

    def __init__(self, atoms: Tensor, n_atoms: int) -> None:
        """
        Args:
            atoms: (E,) the atom in whose row an edge stands.
            n_atoms: N.
        """
        counts = torch.bincount(atoms, minlength=n_atoms)
        order = torch.argsort(atoms, stable=True)
        place = torch.empty_like(atoms)
        place[order] = torch.arange(atoms.shape[0], device=atoms.device) - (counts.cumsum(0) - counts)[atoms[order]]
        self.n_atoms = n_atoms
        self.width = int(counts.max())
        self.slot = atoms * self.width + place

    def spread(self, values: Tensor) -> Tensor:
        """(N, M, ...) from (E, ...), zero where a row has no edge."""
        rows = values.new_zeros(self.n_atoms * self.width, *values.shape[1:])
        return rows.index_copy(0, self.slot, values).unflatten(0, (self.n_atoms, self.width))

    def collect(self, rows: Tensor) -> Tensor:
        """(E, ...) from (N, M, ...)."""
        return rows.flatten(0, 1)[self.slot]


def reverse_pairs(batch: Data, leaving: EdgeRows, arriving: EdgeRows) -> Tensor:
    """(N, M_leaving, M_arriving) bool: the second edge is the first one backwards, between the same two images.

    Args:
        batch: `edge_index` and `edge_shift` are read. An edge whose reverse is not in the graph has none.
    """
    neighbour, centre = batch.edge_index
    # the edge (j -> i, shift s) ends where (k -> j, shift t) begins if i = k and t = -s
    ends = leaving.spread(torch.column_stack([centre, -batch.edge_shift]))
    begins = arriving.spread(torch.column_stack([neighbour, batch.edge_shift]))
    return (ends[:, :, None] == begins[:, None]).all(dim=-1)


def legendre_of_pairs(
    directions: Tensor, leaving: EdgeRows, arriving: EdgeRows, excluded: Tensor, orders: int
) -> Tensor:
    """Legendre polynomials of the angle between two edges at the atom that they share.

    They are polynomials in the cosine, and the angle itself is never taken: it has no derivative at 0 and 180 degrees.

    Args:
        directions: (E, 3) unit vectors from centre to neighbour.
        leaving, arriving: the edges by neighbour and by centre.
        excluded: (N, M_leaving, M_arriving) bool, pairs whose polynomials shall be zero.
        orders: L >= 2; the orders are 0 ... L - 1.
    Returns:
        (N, M_leaving, M_arriving, L): P_l(u_ji . u_kj); what stands beside padding has no meaning.
    Source: Bonnet's recursion, which is linear in what it starts from, hence keeps the zeros.
    """
    cosine = leaving.spread(directions) @ arriving.spread(directions).mT
    polynomials = [(~excluded).to(cosine.dtype)]
    polynomials.append(cosine * polynomials[0])
    for order in range(2, orders):
        ahead = (2 - 1 / order) * cosine * polynomials[-1]
        polynomials.append(ahead.sub(polynomials[-2], alpha=1 - 1 / order))
    return torch.stack(polynomials, dim=-1)
