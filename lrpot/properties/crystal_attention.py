"""Attention between all atoms of a crystal: GwT, the last step of CrysToGraph.

Source: Wang et al., "CrysToGraph", eqs. 12-15.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.features import at_rows, rows_by_size
from lrpot.properties.neighbour_attention import FeedForward

# Of its feed-forward network over its own, which is half of what the neighbours' have.
WIDEN = 2


class CrystalAttention(nn.Module):
    """x_i + LN(W sum_j softmax_j(q_i . k_j / sqrt(d)) v_j) over the atoms of its crystal, then a feed-forward network.

    In a larger cell each image takes an equal share of what the atom had: nothing changes. Crystals with equal numbers
    of atoms go together, so that there is no padding, no mask, and no matrix larger than a crystal.
    """

    def __init__(self, features: int, heads: int, width: int, summed: bool = False) -> None:
        """
        Args:
            features: width of the atoms. heads: how many. width: of each.
            summed: a plain sum of the values, as the paper's code has it; it grows with the cell, of which the norm
                takes away all but what its epsilon leaves.
        """
        super().__init__()
        self.heads, self.width, self.summed = heads, width, summed
        self.query_key_value = nn.Linear(features, 3 * heads * width, bias=False)
        self.last = nn.Linear(heads * width, features, bias=False)
        self.norm = nn.LayerNorm(features)
        self.forth = FeedForward(features, nn.LayerNorm(features), WIDEN)

    def forward(self, x: Tensor, batch: Data) -> Tensor:
        """(N, features) from (N, features)."""
        found = x.new_empty(len(x), self.heads * self.width)
        parts = self.query_key_value(x)
        for rows in rows_by_size(batch):
            query, key, value = self._split(at_rows(parts, rows))
            if self.summed:
                mixed = value.sum(dim=2, keepdim=True).expand_as(value)
            else:
                mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            found = found.index_copy(0, rows.flatten(), mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.forth(x + self.norm(self.last(found)))

    def weights(self, x: Tensor) -> Tensor:
        """(heads, N, N) attention of each atom, in rows, to each; of one crystal."""
        query, key, _ = self._split(self.query_key_value(x)[None])
        if self.summed:
            return torch.ones_like(query[0] @ key[0].mT)
        return (query[0] @ key[0].mT * self.width**-0.5).softmax(dim=-1)

    def _split(self, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (G, heads, n, width)."""
        split = parts.unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        return split[0], split[1], split[2]
