"""Sums over the wave vectors of a crystal: structure factors of features, and filters that act on features.

The phases depend on the crystals alone: they are made once for a batch and serve every layer. Crystals are padded to
common numbers of atoms and waves, so that the sums are batched matrix products.

A filter, u_i = 1/V sum_k w(|k|) Re e^{ik.r_i} sum_j h_j e^{-ik.r_j}, is computed in one of two ways. `Waves` sums over
atoms, then over waves. `WavePairs` sums over waves first: with w made of few functions of |k| it is a matrix between
the atoms of a crystal for each of them, which is less work wherever a crystal has fewer atoms than waves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.data import Data

from lrpot.errors import StructureError
from lrpot.kspace.lattice import MAX_KVECTORS, check_number, half_sphere
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


@dataclass(frozen=True)
class WavePairs:
    """1/V sum_k 2 b(|k|) cos k.(r_i - r_j) between the atoms of each crystal, for each function b of a basis.

    Attributes:
        matrices: (G, B, A, A), 1/A^3; the envelope is in it. place: (N,), as in `Waves`.
    """

    matrices: Tensor
    place: Tensor

    def filtered(self, values: Tensor, filters: Tensor, mix: Tensor) -> Tensor:
        """(N, C): 1/V sum_k w_c(|k|) Re e^{ik.r_i} sum_j h_jc e^{-ik.r_j}, w_c = sum_br b_b(|k|) filters_br mix_rc.

        Args:
            values: h, (N, C). filters: (B, R). mix: (R, C).
        """
        n_crystals, _, n_atoms, _ = self.matrices.shape
        matrices = torch.einsum("gbij,br->grij", self.matrices, filters).flatten(1, 2)
        padded = _padded(values, self.place, n_crystals, n_atoms)
        each = (matrices @ padded).view(n_crystals, -1, n_atoms, values.shape[1])
        return torch.einsum("grac,rc->gac", each, mix).flatten(0, 1)[self.place]


# What acts on features (N, C) with filters (B, R) and mix (R, C); see `WavePairs.filtered`.
WaveFilter = Callable[[Tensor, Tensor, Tensor], Tensor]


def wave_filter(
    batch: Data, k_cutoff: float, basis: nn.Module, dtype: torch.dtype, *, rank: int, features: int
) -> WaveFilter:
    """Filters on the waves of a batch, by whichever way is less work.

    Args:
        batch, k_cutoff, basis, dtype: as for `wave_pairs`. rank: R. features: C, times how often it will be called.
    Raises:
        StructureError: as `waves`.
    """
    n_waves = _volume(batch) * k_cutoff**3 / (12.0 * math.pi**2)
    n_atoms = torch.bincount(batch_index(batch), minlength=len(batch.cell)).to(n_waves.dtype)
    n_basis = basis(n_waves[:0]).shape[1]
    # multiplications
    by_pairs = (n_atoms**2 * (2.0 * n_waves * n_basis + rank * features)).sum()
    by_waves = (4.0 * n_waves * n_atoms * features).sum()
    if by_pairs <= by_waves:
        return wave_pairs(batch, k_cutoff, basis, dtype).filtered
    found = waves(batch, k_cutoff, dtype)
    functions = basis(found.k) * (found.weight * envelope(found.k, k_cutoff) / found.volume[:, None])[..., None]
    return lambda values, filters, mix: found.filtered(values, functions @ filters @ mix)


def waves(batch: Data, k_cutoff: float, dtype: torch.dtype) -> Waves:
    """The waves of a batch.

    The sphere |k| < k_cutoff, not a box or a number of waves, makes what is summed independent of the choice of the
    cell: in a supercell the waves that are added are extinct. A crystal may have none.

    Args:
        batch: crystals. k_cutoff: 1/A. dtype: of the phases, which are found in float64.
    Raises:
        StructureError: a crystal that is not periodic in all directions, or so many waves that memory would run out.
    """
    phases, lengths = zip(*_phases(batch, k_cutoff), strict=True)
    n_waves, n_atoms = (max(part.shape[axis] for part in phases) for axis in (0, 1))
    cosine, sine = (batch.positions.new_zeros((len(phases), n_waves, n_atoms), dtype=dtype) for _ in range(2))
    for number, part in enumerate(phases):
        cosine[number, : part.shape[0], : part.shape[1]] = part.cos()
        sine[number, : part.shape[0], : part.shape[1]] = part.sin()
    k = pad_sequence(list(lengths), batch_first=True).to(dtype)
    return Waves(cosine, sine, k, 2.0 * (k > 0).to(dtype), _volume(batch).to(dtype), _places(batch, n_atoms))


def check_waves(structure: Data, k_cutoff: float) -> None:
    """Refuse a crystal that has no waves, or too many, before anything is computed.

    Raises:
        StructureError: as `waves`.
    """
    if not bool(structure.pbc.all()):
        raise StructureError(NOT_PERIODIC)
    check_number(float(_volume(structure)[0]), k_cutoff, MAX_KVECTORS)


def wave_pairs(batch: Data, k_cutoff: float, basis: nn.Module, dtype: torch.dtype) -> WavePairs:
    """The same waves, already summed for each function of a basis.

    Args:
        basis: (K,) -> (K, B), 1/A. The others, and what is raised: as for `waves`.
    """
    phases, lengths = zip(*_phases(batch, k_cutoff), strict=True)
    n_atoms = max(part.shape[1] for part in phases)
    n_basis = basis(lengths[0][:0]).shape[1]
    matrices = batch.positions.new_zeros((len(phases), n_basis, n_atoms, n_atoms), dtype=dtype)
    for matrix, part, k, volume in zip(matrices, phases, lengths, _volume(batch), strict=True):
        n = part.shape[1]
        functions = (basis(k) * (2.0 * envelope(k, k_cutoff) / volume)[:, None]).to(dtype)
        both = torch.cat([part.cos(), part.sin()]).to(dtype)
        weighted = torch.einsum("ki,kb->kbi", both, functions.repeat(2, 1)).flatten(1)
        matrix[:, :n, :n] = (both.mT @ weighted).view(n, n_basis, n).transpose(0, 1)
    return WavePairs(matrices, _places(batch, n_atoms))


def envelope(k: Tensor, k_cutoff: float) -> Tensor:
    """(1 - (k / k_cutoff)^2)^3, so that a wave that crosses the cutoff under strain leaves no step."""
    return (1.0 - (k / k_cutoff) ** 2).clamp(min=0.0) ** 3


def _phases(batch: Data, k_cutoff: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each crystal: k . r (K, N), within a turn, and |k| (K,), float64."""
    if not bool(batch.pbc.all()):
        raise StructureError(NOT_PERIODIC)
    index = batch_index(batch)
    fractional = torch.linalg.solve(batch.cell[index].mT, batch.positions[:, :, None])[:, :, 0]
    counts = torch.bincount(index, minlength=len(batch.cell)).tolist()
    for cell, part in zip(batch.cell.numpy(force=True), fractional.split(counts), strict=True):
        indices = torch.from_numpy(half_sphere(cell, k_cutoff)).to(part.device, torch.float64)
        turns = indices @ part.T
        vectors = indices @ torch.from_numpy(2.0 * math.pi * np.linalg.inv(cell).T).to(part.device)
        yield 2.0 * math.pi * (turns - turns.round()), torch.linalg.vector_norm(vectors, dim=1)


def _volume(batch: Data) -> Tensor:
    return torch.linalg.det(batch.cell).abs()


def _places(batch: Data, n_atoms: int) -> Tensor:
    """(N,) where each atom stands when every crystal has room for `n_atoms`."""
    index = batch_index(batch)
    counts = torch.bincount(index, minlength=len(batch.cell))
    first = counts.cumsum(0) - counts
    return torch.arange(len(index), device=index.device) - first[index] + index * n_atoms


def _padded(values: Tensor, place: Tensor, n_crystals: int, n_atoms: int) -> Tensor:
    """(G, A, C) of (N, C)."""
    whole = values.new_zeros(n_crystals * n_atoms, values.shape[1]).index_copy(0, place, values)
    return whole.view(n_crystals, n_atoms, -1)
