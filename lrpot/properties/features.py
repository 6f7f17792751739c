"""What every encoder of crystals returns, and means over the atoms of each crystal."""

from __future__ import annotations

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
    """

    graph: Tensor
    atom: Tensor | None


def mean_over_atoms(values: Tensor, batch: Data) -> Tensor:
    """(G, F) means of (N, F) over the atoms of each crystal."""
    index, n = batch_index(batch), batch.cell.shape[0]
    counts = torch.bincount(index, minlength=n).to(values.dtype)
    return values.new_zeros(n, values.shape[1]).index_add(0, index, values) / counts[:, None]
