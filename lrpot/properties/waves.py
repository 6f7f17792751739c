"""Structure factors of features: sums over the atoms of each crystal with the phases of its wave vectors, and back.

Crystals of a batch are padded to common numbers of atoms and waves, so that both sums are batched matrix products. The
phases depend on the crystals alone: they are made once for a batch and serve every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.data import Data

from lrpot.errors import StructureError
from lrpot.kspace.lattice import half_sphere
from lrpot.structure import batch_index


@dataclass(frozen=True)
class Waves:
    """The wave vectors 0 < |k| < k_cutoff of G crystals, half space, with their phases at the atoms.

    Attributes:
        cosine, sine: (G, K, A) of k . r, zero where a crystal has fewer waves or atoms.
        k: (G, K), 1/A, zero where there is none. weight: (G, K), 2 for a wave and its opposite, 0 for none.
        volume: (G,), A^3.
        place: (N,), where each atom stands in an array (G * A,).
    """

    cosine: Tensor
    sine: Tensor
    k: Tensor
    weight: Tensor
    volume: Tensor
    place: Tensor

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum_i values_i cos k.r_i and sin k.r_i, (G, K, C) each, of values (N, C)."""
        n_crystals, _, n_atoms = self.cosine.shape
        padded = values.new_zeros(n_crystals * n_atoms, values.shape[1]).index_copy(0, self.place, values)
        padded = padded.view(n_crystals, n_atoms, -1)
        return self.cosine @ padded, self.sine @ padded

    def back(self, cosines: Tensor, sines: Tensor) -> Tensor:
        """(N, C): Re sum_k (a_k - i b_k) e^{i k.r_i} of a and b (G, K, C), as `sums` gives them."""
        field = self.cosine.mT @ cosines + self.sine.mT @ sines
        return field.flatten(0, 1)[self.place]


def waves(batch: Data, k_cutoff: float, dtype: torch.dtype) -> Waves:
    """The waves of a batch.

    The sphere |k| < k_cutoff, not a box or a number of waves, makes what is summed independent of the choice of the
    cell: in a supercell the waves that are added are extinct. A crystal may have none.

    Args:
        batch: crystals. k_cutoff: 1/A. dtype: of the phases, which are found in float64.
    Raises:
        StructureError: a crystal that is not periodic in all directions, or so many waves that memory would run out.
    """
    if not bool(batch.pbc.all()):
        raise StructureError(
            "reciprocal space needs a cell that is periodic in all three directions; set pbc and a cell"
        )
    index = batch_index(batch)
    cells = batch.cell.numpy(force=True)
    fractional = torch.linalg.solve(batch.cell[index].mT, batch.positions[:, :, None])[:, :, 0]
    counts = torch.bincount(index, minlength=len(cells)).tolist()
    cosines, sines, lengths = [], [], []
    for cell, part in zip(cells, fractional.split(counts), strict=True):
        indices = torch.from_numpy(half_sphere(cell, k_cutoff)).to(part.device, torch.float64)
        turns = indices @ part.T
        phases = 2.0 * math.pi * (turns - turns.round())
        cosines.append(phases.cos().to(dtype))
        sines.append(phases.sin().to(dtype))
        vectors = indices @ torch.from_numpy(2.0 * math.pi * np.linalg.inv(cell).T).to(part.device)
        lengths.append(torch.linalg.vector_norm(vectors, dim=1).to(dtype))
    n_atoms = max(counts)
    n_waves = max(len(k) for k in lengths)

    def padded(parts: list[Tensor]) -> Tensor:
        whole = parts[0].new_zeros(len(parts), n_waves, n_atoms)
        for target, part in zip(whole, parts, strict=True):
            target[: part.shape[0], : part.shape[1]] = part
        return whole

    k = pad_sequence(lengths, batch_first=True)
    starts = torch.cat([index.new_zeros(1), torch.tensor(counts, device=index.device).cumsum(0)])[:-1]
    place = torch.arange(len(index), device=index.device) - starts[index] + index * n_atoms
    volume = torch.linalg.det(batch.cell).abs().to(dtype)
    return Waves(padded(cosines), padded(sines), k, 2.0 * (k > 0).to(dtype), volume, place)


def envelope(k: Tensor, k_cutoff: float) -> Tensor:
    """(1 - (k / k_cutoff)^2)^3, so that a wave that crosses the cutoff under strain leaves no step."""
    return (1.0 - (k / k_cutoff) ** 2).clamp(min=0.0) ** 3
