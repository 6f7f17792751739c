"""CGCNN, the crystal graph convolution: the plain baseline of every table.

Source: Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018); the convolution is torch_geometric's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import CGConv

from lrpot.properties.basis import BatchNorm, Gaussians
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.structure import edge_vectors


class CGCNN(nn.Module):
    """Gated convolutions over the neighbours of each atom, and a mean over atoms."""

    def __init__(
        self, features: int = 64, blocks: int = 3, neighbours: int = 12, reach: float = 8.0, basis: int = 41
    ) -> None:
        """
        Args:
            features: width. blocks: convolutions. neighbours: nearest ones of each atom, in whole shells.
            reach: A, of the longest edge and of the last of the `basis` Gaussians in the distance.
        """
        super().__init__()
        self.features = self.atom_features = features
        self.shells, self.cutoff, self.wave_cutoff = neighbours, float(reach), None
        self.embedding = ElementEmbedding(features, learned=0)
        self.basis = Gaussians(0.0, reach, basis)
        self.blocks = nn.ModuleList(CGConv(features, basis, batch_norm=True) for _ in range(blocks))
        for block in self.blocks:
            block.bn = BatchNorm(features)

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals and (N, `features`) of the atoms, of a batch with edges."""
        h = self.embedding(batch.numbers)
        edges = self.basis(torch.linalg.vector_norm(edge_vectors(batch), dim=1).to(h.dtype))
        for block in self.blocks:
            h = nn.functional.softplus(block(h, batch.edge_index, edges))
        return CrystalFeatures(mean_over_atoms(h, batch), h)
