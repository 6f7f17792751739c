"""Statistics of a crystal as an encoder: what it is made of, how dense it is, and how its atoms surround each other.

No graph is learned. On sets of a few hundred crystals that is often worth more than a network that must learn from them
what an element is; on large sets it is the baseline.

Statistics of elements over a composition: Ward et al., npj Comput. Mater. 2, 16028 (2016); a network on a choice of
statistics: De Breuck et al., npj Comput. Mater. 7, 83 (2021). The choice here is lrpot's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.elements import element_quantities
from lrpot.properties.features import CrystalFeatures, atom_counts, mean_over_atoms
from lrpot.properties.waves import volume
from lrpot.structure import Structure, batch_index, edge_vectors

# A, within which neighbours are counted with weights that fall to zero there, smoothly.
RADII = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

# A^3: what stands for the volume per atom of what has no cell.
_NO_CELL = 1e3

# Counts of neighbours below this are as good as none.
_FEW = 0.1

# Standard deviations at which an input is cut off: a crystal unlike all others shall not decide alone.
_FARTHEST = 5.0


class Statistics(nn.Module):
    """Means, standard deviations and extremes over atoms -> a network, or as they are.

    Attributes:
        n_inputs: how many statistics there are.
    """

    quantities: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, features: int = 256, layers: int = 2, dropout: float = 0.1) -> None:
        """
        Args:
            features: width of the network. layers: how many; with 0 the features are the statistics themselves, less
                their mean and over their spread.
            dropout: share of inputs and features left out in training.
        """
        super().__init__()
        self.shells, self.cutoff, self.wave_cutoff = None, max(RADII), None
        quantities = element_quantities()
        self.register_buffer("quantities", quantities, persistent=False)
        self.n_inputs = 4 * quantities.shape[1] + 3 + 2 + 2 * len(RADII)
        self.register_buffer("centre", torch.zeros(self.n_inputs))
        self.register_buffer("spread", torch.ones(self.n_inputs))
        widths = [self.n_inputs, *[features] * layers]
        self.features, self.atom_features = widths[-1], 0
        self.network = nn.Sequential(
            nn.Dropout(dropout),
            *(
                layer
                for one, other in pairwise(widths)
                for layer in (nn.Linear(one, other), nn.SiLU(), nn.Dropout(dropout))
            ),
        )

    def forward(self, batch: Data) -> CrystalFeatures:
        """Features (G, `features`) of the crystals, of a batch with all edges up to 10 A."""
        scaled = ((self._inputs(batch) - self.centre) / self.spread).clamp(-_FARTHEST, _FARTHEST)
        return CrystalFeatures(self.network(scaled.to(self.centre.dtype)), None)

    def _inputs(self, batch: Data) -> Tensor:
        return batch.statistics if "statistics" in batch else self.statistics(batch)

    def prepared(self, structure: Structure) -> dict[str, Tensor]:
        """`statistics` (1, n_inputs), which depend on a crystal alone, for `Graphs.attach`; `forward` finds the same
        without them."""
        return {"statistics": self.statistics(structure)}

    def prepared_size(self, atoms: np.ndarray) -> int:
        """Bytes that it brings, of crystals of so many atoms (n,)."""
        return 8 * self.n_inputs * len(atoms)

    def standardise(self, structures: Iterable[Structure]) -> None:
        """Set mean and spread of the inputs from the training set."""
        statistics = torch.cat([self._inputs(structure) for structure in structures])
        self.centre.copy_(statistics.mean(dim=0))
        spread = statistics.std(dim=0, correction=0)
        # what is the same everywhere says nothing, and must not be divided by its rounding
        self.spread.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def statistics(self, batch: Data) -> Tensor:
        """(G, n_inputs) float64; the same for any cell of a crystal."""
        own = self.quantities[batch.numbers].to(torch.float64)
        mean = mean_over_atoms(own, batch)
        spread = mean_over_atoms((own - mean[batch_index(batch)]) ** 2, batch).sqrt()
        parts = [mean, spread, _extreme(own, batch, "amin"), _extreme(own, batch, "amax")]
        parts += [_mixing(batch), self._packing(batch), _surroundings(batch)]
        return torch.cat(parts, dim=1)

    def _packing(self, batch: Data) -> Tensor:
        """(G, 2): logarithms of the volume per atom, A^3, and of its share in spheres of covalent radius."""
        per_atom = torch.where(batch.pbc.all(dim=1), volume(batch) / atom_counts(batch), _NO_CELL)
        radii = self.quantities[batch.numbers, 3].to(torch.float64) / 100.0
        spheres = mean_over_atoms((4.0 / 3.0 * math.pi * radii**3)[:, None], batch)[:, 0]
        return torch.stack([per_atom.log(), (spheres / per_atom).log()], dim=1)


def _extreme(values: Tensor, batch: Data, which: str) -> Tensor:
    """(G, F) smallest or largest of values (N, F)."""
    index = batch_index(batch)[:, None].expand_as(values)
    found = values.new_zeros(len(batch.cell), values.shape[1])
    return found.scatter_reduce(0, index, values, which, include_self=False)


def _mixing(batch: Data) -> Tensor:
    """(G, 3): number of elements, entropy and 2-norm of their shares."""
    index, n = batch_index(batch), len(batch.cell)
    width = int(batch.numbers.max()) + 1
    counts = torch.bincount(index * width + batch.numbers, minlength=n * width).view(n, width).to(torch.float64)
    shares = counts / counts.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return torch.stack([(counts > 0).sum(dim=1).to(torch.float64), entropy, (shares**2).sum(dim=1).sqrt()], dim=1)


def _surroundings(batch: Data) -> Tensor:
    """(G, 12): of the weighted numbers of neighbours within each of `RADII`, log of the mean, and relative spread."""
    centre = batch.edge_index[1]
    distances = torch.linalg.vector_norm(edge_vectors(batch), dim=1)
    columns = []
    for radius in RADII:
        weights = (1.0 - (distances / radius) ** 2).clamp(min=0.0) ** 2
        counts = weights.new_zeros(len(batch.numbers)).index_add(0, centre, weights)[:, None]
        mean = mean_over_atoms(counts, batch)
        spread = mean_over_atoms((counts - mean[batch_index(batch)]) ** 2, batch).sqrt()
        columns += [(mean + _FEW).log(), spread / (mean + _FEW)]
    return torch.cat(columns, dim=1)
