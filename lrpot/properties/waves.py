"""The wave vectors of crystals, their phases at the atoms, and structure factors of features.

The phases depend on the crystals alone: they are made once for a batch and serve every layer. Crystals of a like size
are padded to common numbers of atoms and waves, so that the sums are batched matrix products. Those of other sizes
stand in other blocks, so that small ones beside a large one do not cost as much as it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


# A crystal of a block takes at most so many times the room that its own waves and atoms need.
MOST_PADDING = 4


@dataclass(frozen=True)
class Waves:
    """The wave vectors 0 < |k| < k_cutoff of G crystals of a batch, half space, with their phases at their N atoms.

    Attributes:
        cosine, sine: (G, K, A) of k . r, zero where a crystal has fewer waves or atoms.
        k: (G, K), 1/A, zero where there is none. weight: (G, K), 2 for a wave and its opposite, 0 for none.
        volume: (G,), A^3.
        crystals: (G,) which of the batch they are. atoms: (N,) which of the batch are theirs.
        place: (N,), where each of these stands in an array (G * A,).
    """

    cosine: Tensor
    sine: Tensor
    k: Tensor
    weight: Tensor
    volume: Tensor
    crystals: Tensor
    atoms: Tensor
    place: Tensor

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum_i values_i cos k.r_i and sin k.r_i, (G, K, C) each, of values of all atoms of the batch, (., C)."""
        n_crystals, _, n_atoms = self.cosine.shape
        padded = values.new_zeros(n_crystals * n_atoms, values.shape[1])
        padded = padded.index_copy(0, self.place, values.index_select(0, self.atoms)).view(n_crystals, n_atoms, -1)
        return self.cosine @ padded, self.sine @ padded

    def filtered(self, values: Tensor, w: Tensor) -> Tensor:
        """(N, C): sum_k w_kc Re e^{ik.r_i} sum_j h_jc e^{-ik.r_j} of h, of all atoms of the batch, and w (G, K, C)."""
        cosines, sines = self.sums(values)
        field = self.cosine.mT @ (w * cosines) + self.sine.mT @ (w * sines)
        return field.flatten(0, 1)[self.place]


def waves(batch: Data, k_cutoff: float, dtype: torch.dtype) -> list[Waves]:
    """The waves of a batch, in blocks of crystals of a like size; see `joined`.

    The sphere |k| < k_cutoff, not a box or a number of waves, makes what is summed independent of the choice of the
    cell: in a supercell the waves that are added are extinct. A crystal may have none.

    Args:
        batch: crystals. k_cutoff: 1/A. dtype: of the phases, which are found in float64.
    Raises:
        StructureError: a crystal that is not periodic in all directions, or so many waves that memory would run out.
    """
    angles, lengths = zip(*phases(batch, k_cutoff), strict=True)
    volumes, counts = volume(batch).to(dtype), atom_counts(batch)
    rows = torch.arange(len(batch.numbers), device=counts.device).split(counts.tolist())
    blocks = []
    for members in _like_sizes([(part.shape[0], part.shape[1]) for part in angles]):
        n_waves, n_atoms = (max(angles[member].shape[axis] for member in members) for axis in (0, 1))
        cosine, sine = (batch.positions.new_zeros((len(members), n_waves, n_atoms), dtype=dtype) for _ in range(2))
        place = []
        for number, member in enumerate(members):
            part = angles[member]
            cosine[number, : part.shape[0], : part.shape[1]] = part.cos()
            sine[number, : part.shape[0], : part.shape[1]] = part.sin()
            place.append(torch.arange(part.shape[1], device=part.device) + number * n_atoms)
        k = pad_sequence([lengths[member] for member in members], batch_first=True).to(dtype)
        crystals = torch.tensor(members, device=counts.device)
        atoms = torch.cat([rows[member] for member in members])
        weight = 2.0 * (k > 0).to(dtype)
        blocks.append(Waves(cosine, sine, k, weight, volumes[crystals], crystals, atoms, torch.cat(place)))
    return blocks


def joined(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """What was found block by block, in the order of the batch.

    Args:
        parts: (n, ...) of each block. rows: (n,) the crystals, or the atoms, that they belong to.
    """
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts)).index_select(0, torch.cat(list(rows)).argsort())


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


def expected_waves(batch: Data, k_cutoff: float) -> Tensor:
    """(G,), about how many waves each crystal has, without looking for them."""
    # the half sphere's volume over the volume (2 pi)^3 / V of one reciprocal cell
    return volume(batch) * k_cutoff**3 / (12.0 * math.pi**2)


def volume(batch: Data) -> Tensor:
    """(G,), A^3."""
    return torch.linalg.det(batch.cell).abs()


def _like_sizes(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Divide crystals of so many waves and atoms into blocks, the members of each in their order, see MOST_PADDING."""
    own = [max(n_waves, 1) * n_atoms for n_waves, n_atoms in sizes]  # a crystal may have no wave
    blocks: list[list[int]] = []
    room = (0, 0)
    for member in sorted(range(len(sizes)), key=lambda member: -own[member]):
        wider = max(room[0], sizes[member][0]), max(room[1], sizes[member][1])
        if not blocks or wider[0] * wider[1] > MOST_PADDING * own[member]:
            blocks.append([])
            wider = sizes[member]
        blocks[-1].append(member)
        room = wider
    return [sorted(block) for block in blocks]
