"""Filters of |k| that act on features of atoms, computed by whichever way is less work.

A filter, u_i = 1/V sum_k 2 w(|k|) Re e^{ik.r_i} sum_j h_j e^{-ik.r_j} over half of the waves, may sum over atoms, then
over waves. Or it sums over waves first: with w made of few functions of |k|, one matrix between the atoms of a crystal
for each of these is all that is needed of its waves. They depend on the crystal alone, so that a fit makes them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.features import atom_counts
from lrpot.properties.waves import Waves, envelope, expected_waves, joined, phases, volume, waves
from lrpot.structure import Structure

# The field of a batch that holds `pair_functions` of its crystals, if they were made before.
PAIRS = "wave_pairs"

# Of one crystal that is prepared: 724 atoms, 34 MB of 16 functions in float32. Larger ones take too much room on disk.
MOST_PAIRS = 2**19

# Cosines of pairs and waves that are in memory at a time.
_CHUNK = 2**20

# (N, C) from features (N, C): each of the H functions w acts on C / H of them, in turn.
WaveFilter = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """Multiplications for filters of a batch.

    Attributes:
        make_pairs: for the functions of its pairs. use_pairs, use_waves: for the filters, with and without these.
    """

    make_pairs: float
    use_pairs: float
    use_waves: float


def work(batch: Data, k_cutoff: float, n_features: int, filters: Sequence[Tensor]) -> Work:
    """Estimated from the volumes and the numbers of atoms.

    Args:
        batch, k_cutoff, filters: as for `wave_filters`. n_features: C.
    """
    n_basis, n_filters = filters[0].shape
    n_waves = expected_waves(batch, k_cutoff)
    n_atoms = atom_counts(batch).to(n_waves.dtype)
    n_pairs = n_atoms**2
    return Work(
        make_pairs=float((n_waves * n_pairs).sum()) * n_basis,
        use_pairs=float(n_pairs.sum()) * len(filters) * (n_basis * n_filters + n_features),
        use_waves=float((n_waves * n_atoms).sum()) * len(filters) * 4.0 * n_features,
    )


def wave_filters(
    batch: Data, k_cutoff: float, basis: nn.Module, filters: Sequence[Tensor], n_features: int
) -> list[WaveFilter]:
    """Filters on the waves of a batch.

    Args:
        batch: crystals; the field `PAIRS` is used if all of them have it. k_cutoff: 1/A.
        basis: (K,) -> (K, B), of |k|. filters: (B, H) each; w is the basis times these, times the envelope.
        n_features: C, a multiple of H.
    Raises:
        StructureError: as `lrpot.properties.waves.waves`.
    """
    counts, dtype = atom_counts(batch), filters[0].dtype
    pairs = getattr(batch, PAIRS, None)
    if pairs is None or len(pairs) != int((counts**2).sum()):
        cost = work(batch, k_cutoff, n_features, filters)
        if cost.make_pairs + cost.use_pairs > cost.use_waves:
            return _filters_by_waves(waves(batch, k_cutoff, dtype), k_cutoff, basis, filters, n_features)
        pairs = pair_functions(batch, k_cutoff, basis, dtype)
    return _filters_by_pairs(pairs, counts, filters)


def prepared(
    structure: Structure, k_cutoff: float, basis: nn.Module, filters: Sequence[Tensor], n_features: int
) -> dict[str, Tensor]:
    """What a crystal brings into every batch, so that `wave_filters` need not find it again.

    A crystal whose waves are less work, or whose matrices would be too large, brings no rows; a batch with such a
    crystal is computed as if nothing were prepared.

    Args:
        structure: one crystal. The others, and what is raised: as for `wave_filters`.
    """
    n_pairs = structure.num_nodes**2
    cost = work(structure, k_cutoff, n_features, filters)
    if n_pairs > MOST_PAIRS or cost.use_pairs > cost.use_waves:
        return {PAIRS: filters[0].new_empty(0, len(filters[0]))}
    return {PAIRS: pair_functions(structure, k_cutoff, basis, filters[0].dtype)}


def pair_functions(batch: Data, k_cutoff: float, basis: nn.Module, dtype: torch.dtype) -> Tensor:
    """(sum A^2, B), 1/A^3: 1/V sum_k 2 b(|k|) envelope(|k|) cos k.(r_i - r_j), a row for each pair i, j of a crystal.

    Args:
        batch, k_cutoff, basis: as for `wave_filters`. dtype: of the result.
    Raises:
        StructureError: as `lrpot.properties.waves.waves`.
    """
    found = []
    for (angles, k), size in zip(phases(batch, k_cutoff), volume(batch).tolist(), strict=True):
        n_atoms = angles.shape[1]
        functions = (basis(k) * (2.0 * envelope(k, k_cutoff) / size)[:, None]).to(dtype)
        cosine, sine = (part.T.contiguous().to(dtype) for part in (angles.cos(), angles.sin()))
        total = functions.new_empty(n_atoms, n_atoms, functions.shape[1])
        step = max(1, _CHUNK // max(1, cosine.numel()))
        for start in range(0, n_atoms, step):
            some = slice(start, start + step)
            differences = (cosine[some, None] * cosine[start:]).addcmul_(sine[some, None], sine[start:])
            values = differences @ functions
            total[some, start:] = values
            total[start:, some] = values.transpose(0, 1)
        found.append(total.flatten(0, 1))
    return torch.cat(found)


def _filters_by_waves(
    blocks: Sequence[Waves], k_cutoff: float, basis: nn.Module, filters: Sequence[Tensor], n_features: int
) -> list[WaveFilter]:
    functions = [
        basis(block.k) * (block.weight * envelope(block.k, k_cutoff) / block.volume[:, None])[..., None]
        for block in blocks
    ]
    atoms = [block.atoms for block in blocks]

    def of_one(each: Tensor) -> WaveFilter:
        ws = [(part @ each).repeat_interleave(n_features // each.shape[1], dim=2) for part in functions]
        return lambda values: joined([block.filtered(values, w) for block, w in zip(blocks, ws, strict=True)], atoms)

    return [of_one(each) for each in filters]


def _filters_by_pairs(pairs: Tensor, counts: Tensor, filters: Sequence[Tensor]) -> list[WaveFilter]:
    sizes = counts.tolist()
    rows, atoms = pairs.split([n * n for n in sizes]), torch.arange(sum(sizes), device=pairs.device).split(sizes)
    n_filters, weights = filters[0].shape[1], torch.cat(list(filters), dim=1).T
    matrices, order = [], []
    for size in sorted(set(sizes)):
        members = [number for number, n in enumerate(sizes) if n == size]
        # without a copy of what a large crystal brings
        together = rows[members[0]] if len(members) == 1 else torch.cat([rows[number] for number in members])
        matrices.append((weights @ together.T).view(len(filters), n_filters, len(members), size, size).unbind())
        order += [atoms[number] for number in members]
    by_size = torch.cat(order)
    back = by_size.argsort()
    return [_PairFilter(of_one, by_size, back) for of_one in zip(*matrices, strict=True)]


@dataclass(frozen=True)
class _PairFilter:
    """A filter by matrices between the atoms of each crystal; crystals of one size share a product.

    Attributes:
        matrices: (H, G, A, A) for each size A of G crystals. by_size: (N,) the atoms in this order. back: (N,) where
            they stand in it.
    """

    matrices: tuple[Tensor, ...]
    by_size: Tensor
    back: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        parts = values.index_select(0, self.by_size).split([each.shape[1] * each.shape[2] for each in self.matrices])
        found = []
        for matrix, part in zip(self.matrices, parts, strict=True):
            n_filters, n_crystals, size, _ = matrix.shape
            groups = part.view(n_crystals, size, n_filters, -1).permute(2, 0, 1, 3)
            found.append((matrix @ groups).permute(1, 2, 0, 3).reshape(part.shape))
        return torch.cat(found).index_select(0, self.back)
