"""The wave vectors of crystals, their phases at the atoms, and structure factors of features.

The phases depend on the crystals alone: they are made once for a batch and serve every layer. Crystals are padded to
common numbers of atoms and waves, so that the sums are batched matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.data import Data

from lrpot.errors import StructureError
from lrpot.kspace.lattice import MAX_KVECTORS, check_number, half_sphere
from lrpot.properties.features import atom_counts
from lrpot.structure import batch_index

NOT_PERIODIC = (
    "reciprocal space needs a crystal that is periodic in all directions; put it into a cell and set pbc, or choose an "
    "encoder without waves"
)


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
        padded = _padded(values, self.place, self.cosine.shape[0], self.cosine.shape[2])
        return self.cosine @ padded, self.sine @ padded

    def filtered(self, values: Tensor, w: Tensor) -> Tensor:
        """(N, C): sum_k w_kc Re e^{ik.r_i} sum_j h_jc e^{-ik.r_j} of h (N, C) and w (G, K, C)."""
        cosines, sines = self.sums(values)
        field = self.cosine.mT @ (w * cosines) + self.sine.mT @ (w * sines)
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
    angles, lengths = zip(*phases(batch, k_cutoff), strict=True)
    n_waves, n_atoms = (max(part.shape[axis] for part in angles) for axis in (0, 1))
    cosine, sine = (batch.positions.new_zeros((len(angles), n_waves, n_atoms), dtype=dtype) for _ in range(2))
    for number, part in enumerate(angles):
        cosine[number, : part.shape[0], : part.shape[1]] = part.cos()
        sine[number, : part.shape[0], : part.shape[1]] = part.sin()
    k = pad_sequence(list(lengths), batch_first=True).to(dtype)
    return Waves(cosine, sine, k, 2.0 * (k > 0).to(dtype), volume(batch).to(dtype), _places(batch, n_atoms))


def check_waves(structure: Data, k_cutoff: float) -> None:
    """Refuse a crystal that has no waves, or too many, before anything is computed.

    Raises:
        StructureError: as `waves`.
    """
    if not bool(structure.pbc.all()):
        raise StructureError(NOT_PERIODIC)
    check_number(float(volume(structure)[0]), k_cutoff, MAX_KVECTORS, structure.cell[0].norm(dim=1).tolist())


def envelope(k: Tensor, k_cutoff: float) -> Tensor:
    """(1 - (k / k_cutoff)^2)^3, so that a wave that crosses the cutoff under strain leaves no step."""
    return (1.0 - (k / k_cutoff) ** 2).clamp(min=0.0) ** 3


def phases(batch: Data, k_cutoff: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each crystal: k . r (K, N), within a turn, and |k| (K,), float64."""
    if not bool(batch.pbc.all()):
        raise StructureError(NOT_PERIODIC)
    fractional = torch.linalg.solve(batch.cell[batch_index(batch)].mT, batch.positions[:, :, None])[:, :, 0]
    parts = fractional.split(atom_counts(batch).tolist())
    for cell, part in zip(batch.cell.numpy(force=True), parts, strict=True):
        indices = torch.from_numpy(half_sphere(cell, k_cutoff)).to(part.device, torch.float64)
        turns = indices @ part.T
        vectors = indices @ torch.from_numpy(2.0 * math.pi * np.linalg.inv(cell).T).to(part.device)
        yield 2.0 * math.pi * (turns - turns.round()), torch.linalg.vector_norm(vectors, dim=1)


def volume(batch: Data) -> Tensor:
    """(G,), A^3."""
    return torch.linalg.det(batch.cell).abs()


def _places(batch: Data, n_atoms: int) -> Tensor:
    """(N,) where each atom stands when every crystal has room for `n_atoms`."""
    index, counts = batch_index(batch), atom_counts(batch)
    first = counts.cumsum(0) - counts
    return torch.arange(len(index), device=index.device) - first[index] + index * n_atoms


def _padded(values: Tensor, place: Tensor, n_crystals: int, n_atoms: int) -> Tensor:
    """(G, A, C) of (N, C)."""
    whole = values.new_zeros(n_crystals * n_atoms, values.shape[1]).index_copy(0, place, values)
    return whole.view(n_crystals, n_atoms, -1)
