"""What every encoder of crystals returns, means over the atoms of each crystal, and crystals of one size together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.structure import batch_index


class CrystalFeatures(NamedTuple):
    """Features of G crystals with N atoms together.

    Attributes:
        graph: (G, D), intensive: the same for any cell of one crystal.
        atom: (N, F), or None if the encoder has none.
        gates: (G, E), how much it took of each of its experts; None if it has none.
    """

    graph: Tensor
    atom: Tensor | None
    gates: Tensor | None = None


def atom_counts(batch: Data) -> Tensor:
    """(G,) number of atoms of each crystal."""
    return torch.bincount(batch_index(batch), minlength=len(batch.cell))


def mean_over_atoms(values: Tensor, batch: Data) -> Tensor:
    """(G, F) means of (N, F) over the atoms of each crystal."""
    sums = values.new_zeros(len(batch.cell), values.shape[1]).index_add(0, batch_index(batch), values)
    return sums / atom_counts(batch)[:, None]


def rows_by_size(batch: Data) -> Iterator[Tensor]:
    """(G', n) atoms of the crystals that have n, for each n, so that pairs of atoms need no padding."""
    counts = atom_counts(batch)
    starts = counts.cumsum(0) - counts
    for n in counts.unique().tolist():
        yield starts[counts == n][:, None] + torch.arange(n, device=counts.device)


def at_rows(values: Tensor, rows: Tensor) -> Tensor:
    """(*rows, ...) of (N, ...); unlike an index in brackets, with gradients that are summed without sorting."""
    return values.index_select(0, rows.flatten()).unflatten(0, rows.shape)
