"""PRDNet's network on the graph of a crystal: attention between neighbours, number by number.

Source: "Beyond Structure: Invariant Crystal Property Prediction with Pseudo-Particle Ray Diffraction" (PRDNet, ICLR
2026), whose code knows an edge by its length alone. Beside the graph stands `lrpot.properties.diffraction`, which works
with any encoder. Edges to the corners of the cell, which that code adds, depend on the choice of the cell and are left
out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.basis import BatchNorm, Gaussians
from lrpot.properties.checks import check_heads
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.radial_table import RadialTable, interpolation
from lrpot.structure import edge_vectors


class CrystalAttention(nn.Module):
    """h_i <- b h_i + (1 - b) silu(BN(W sum_j m_ij)), with a balance b of h_i and the sum.

    A message m_ij = LN(W' v_ij * g_ij) has the gate g_ij = sigmoid(LN(q_i * k_ij / sqrt(3 d))), products taken number
    by number: k_ij stands for three vectors, of the centre, of the neighbour and of the edge, and q_i meets each. v_ij
    is linear in the same three.
    """

    def __init__(self, features: int, heads: int) -> None:
        """
        Args:
            features: width, a multiple of the number of heads.
        """
        super().__init__()
        self.heads = heads
        width = features // heads
        self.scale = (3 * width) ** -0.5
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.edge_key = nn.Linear(features, features, bias=False)
        self.centre = nn.Linear(features, 3 * features)
        self.neighbour = nn.Linear(features, 3 * features, bias=False)
        self.edge = nn.Linear(features, 3 * features, bias=False)
        self.gate_norm = nn.LayerNorm(3 * width)
        self.message = nn.Linear(3 * width, width)
        self.message_norm = nn.LayerNorm(width)
        self.update = nn.Linear(features, features)
        self.norm = BatchNorm(features)
        self.balance = nn.Linear(2 * features, features)

    def forward(self, h: Tensor, edge_index: Tensor, table: RadialTable) -> Tensor:
        """(N, features).

        Args:
            h: (N, features). edge_index: (2, E). table: features of an edge as a function of its length.
        """
        neighbour, centre = edge_index
        query, key = self._split(self.query(h)), self._split(self.key(h))
        asked = query.index_select(0, centre)
        scores = torch.cat(
            [
                (query * key).index_select(0, centre),
                asked * key.index_select(0, neighbour),
                asked * self._split(table(self.edge_key)),
            ],
            dim=2,
        )
        gate = torch.sigmoid(self.gate_norm(scores * self.scale))
        values = table(self.edge) + self.centre(h).index_select(0, centre)
        values = values + self.neighbour(h).index_select(0, neighbour)
        messages = self.message_norm(self.message(self._split(values) * gate)).flatten(1)
        gathered = torch.zeros_like(h).index_add(0, centre, messages)
        balance = torch.sigmoid(self.balance(torch.cat([h, gathered], dim=1)))
        return balance * h + (1.0 - balance) * nn.functional.silu(self.norm(self.update(gathered)))

    def _split(self, values: Tensor) -> Tensor:
        """(X, heads, width) of (X, heads * width)."""
        return values.unflatten(1, (self.heads, -1))


class PRDNet(nn.Module):
    """Layers of crystal attention, and a mean over atoms."""

    def __init__(
        self,
        features: int = 128,
        blocks: int = 4,
        heads: int = 8,
        neighbours: int = 12,
        reach: float = 8.0,
        basis: int = 256,
    ) -> None:
        """
        Args:
            features: width; 256, each head as wide as all are here, in the paper. blocks: layers, 6 in the paper.
            heads: of the attention, which share the width. neighbours: nearest ones of each atom, in whole shells.
            reach: A, of the longest edge and of the last of the `basis` Gaussians in the distance.
        Raises:
            ConfigError: heads that do not share the width evenly.
        """
        check_heads("prdnet", features, heads)
        super().__init__()
        self.features = self.atom_features = features
        self.shells, self.cutoff, self.wave_cutoff = neighbours, float(reach), None
        self.embedding = ElementEmbedding(features)
        self.basis = Gaussians(0.0, self.cutoff, basis)
        self.edge = nn.Linear(basis, features)
        self.blocks = nn.ModuleList(CrystalAttention(features, heads) for _ in range(blocks))

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals and (N, `features`) of the atoms, of a batch with edges."""
        h = self.embedding(batch.numbers)
        distances = torch.linalg.vector_norm(edge_vectors(batch), dim=1)
        table = RadialTable(self._edge_features, interpolation(distances, 0.0, self.cutoff, h.dtype))
        for block in self.blocks:
            h = block(h, batch.edge_index, table)
        return CrystalFeatures(mean_over_atoms(h, batch), h)

    def _edge_features(self, distances: Tensor) -> Tensor:
        """(X, features) from distances (X,), A."""
        return nn.functional.softplus(self.edge(self.basis(distances)))
